"""Whole fits of small networks on the CPU: scratchcuda beside torch.nn, torch.compile, JAX and the documents' code.

Every peer trains the same network from the same parameters on the same data, with torch on one thread. All are
warmed up, then timed in turns, so that a change of the machine's speed meets all of them. A peer whose losses are not
torch.nn's gets no ratio. Peers that are not installed are left out.

    python benchmarks/fit.py [slr mlp digits ...] [--rounds 15] [--dtype float64] [--json FILE]
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from scratchcuda import __version__, _backend
from scratchcuda.compare import WORKLOADS, Pair, Workload, device_name

#: Largest relative difference of a loss to torch.nn's. JAX's exponentials and hyperbolic tangents are other
#: approximations, correct to some units in the last place; over the steps of a fit that grows.
AGREEMENT = {"float64": 1e-9, "float32": 1e-3}

Losses = tuple[list[float], list[float]]
Fit = Callable[[], Losses]


def batches(pair, batch_size):
    return list(zip(pair.x.split(batch_size), pair.y.split(batch_size), strict=True))


def torch_nn(pair, work, validate) -> Fit:
    def fit() -> Losses:
        losses = pair.fit_torch(work.epochs, work.lr, work.batch_size, validate)
        return losses.train, losses.valid

    return fit


def scratchcuda(pair, work, validate) -> Fit:
    def fit() -> Losses:
        history = pair.fit_scratch(work.epochs, work.lr, work.batch_size, validate)
        # What CPU tensors take if nothing else is asked for; CUDA tensors and the emulator have paths of their own.
        others = pair.x.is_cuda or _backend.current == "emulator"
        assert others or history.path == "tensor plan", history.reason
        return history.loss, history.valid_loss

    return fit


def torch_compile(pair, work, validate) -> Fit:
    """Forward with loss and the optimizer's step compiled, as torch's tutorials do."""
    torch._dynamo.reset()
    net, loss_f = pair.net, pair.loss_f
    optimizer = torch.optim.SGD(net.parameters(), lr=work.lr)
    loss_of = torch.compile(lambda x, y: loss_f(net(x), y), dynamic=False)
    evaluate = torch.compile(lambda x, y: loss_f(net(x), y), dynamic=False)
    update = torch.compile(optimizer.step)

    def fit() -> Losses:
        train, valid = [], []
        for _ in range(work.epochs):
            steps = []
            for x, y in batches(pair, work.batch_size):
                loss = loss_of(x, y)
                optimizer.zero_grad()
                loss.backward()
                update()
                steps.append(loss.detach())
            found = torch.stack(steps).tolist()
            train.append(sum(found) / len(found))
            if validate:
                with torch.no_grad():
                    valid.append(evaluate(pair.x_valid, pair.y_valid).item())
        return train, valid

    return fit


def documents(pair, work, validate) -> Fit:
    """The formulas of the two documents, layer by layer, on plain tensors; they have no cross-entropy."""
    if work.loss is not nn.MSELoss:
        raise NotImplementedError("the documents define no cross-entropy")

    def tanh(z):
        e = torch.exp(-2 * z)
        return (1 - e) / (1 + e)

    def softmax(z):
        e = torch.exp(z - z.max(dim=1, keepdim=True)[0])
        return e / e.sum(1, keepdim=True)

    forward = {
        nn.Tanh: (tanh, lambda delta, a: delta * (1 - a**2)),
        nn.Softmax: (softmax, lambda delta, a: a * (delta - (delta * a).sum(1, keepdim=True))),
        nn.Sigmoid: (lambda z: 1 / (1 + torch.exp(-z)), lambda delta, a: delta * (a * (1 - a))),
        nn.ReLU: (lambda z: torch.max(z, torch.zeros_like(z)), lambda delta, a: delta * (1 * (a > 0))),
    }
    modules = list(pair.net)

    def predict(layers, x, keep):
        for layer in layers:
            if keep:
                layer["input"] = x.clone()
            x = layer["f"](torch.matmul(x, layer["w"]) + layer["b"])
            layer["a"] = x
        return x

    def fit() -> Losses:
        layers = []
        for module in modules:
            if isinstance(module, nn.Linear):
                w, b = (p.detach().clone() for p in (module.weight.T, module.bias))
                layers.append({"w": w, "b": b, "f": lambda z: z, "df": lambda delta, a: delta})
            else:
                layers[-1]["f"], layers[-1]["df"] = forward[type(module)]
        train, valid = [], []
        for _ in range(work.epochs):
            steps = []
            for start in range(0, len(pair.y), work.batch_size):
                x, y = (data[start : start + work.batch_size] for data in (pair.x, pair.y))
                y_pred = predict(layers, x, True)
                steps.append(((y_pred - y) ** 2).mean().item())
                delta = 2 * (y_pred - y) / y.numel()
                for layer in reversed(layers):
                    delta = layer["df"](delta, layer["a"])
                    layer["b"] -= work.lr * torch.sum(delta, dim=0)
                    w_der = torch.matmul(layer["input"].T, delta)
                    delta = torch.matmul(delta, layer["w"].T)
                    layer["w"] -= work.lr * w_der
            train.append(sum(steps) / len(steps))
            if validate:
                valid.append(((predict(layers, pair.x_valid, False) - pair.y_valid) ** 2).mean().item())
        return train, valid

    return fit


def jax_fit(pair, work, validate) -> Fit:
    """The whole fit as one jit: a scan over the epochs of a scan over the full batches, and the smaller last batch."""
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", pair.x.dtype == torch.float64)
    jax.config.update("jax_default_device", jax.devices("gpu" if pair.x.is_cuda else "cpu")[0])
    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU float32 would be multiplied as TF32

    def as_jax(tensor):
        return jnp.asarray(tensor.detach().cpu().numpy())

    activations = {
        nn.Tanh: jnp.tanh,
        nn.Softmax: lambda z: jax.nn.softmax(z, axis=1),
        nn.Sigmoid: jax.nn.sigmoid,
        nn.ReLU: jax.nn.relu,
    }
    kinds = [type(module) for module in pair.net]
    x, y, x_valid, y_valid = (as_jax(data) for data in (pair.x, pair.y, pair.x_valid, pair.y_valid))
    full = len(y) // work.batch_size
    cut = full * work.batch_size
    blocks = [data[:cut].reshape(full, work.batch_size, *data.shape[1:]) for data in (x, y)]

    def loss_of(params, x, y):
        params = iter(params)
        for kind in kinds:
            if kind is nn.Linear:
                w, b = next(params)
                x = x @ w + b
            else:
                x = activations[kind](x)
        if work.loss is nn.MSELoss:
            return ((x - y) ** 2).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(x, axis=1), y[:, None], axis=1).mean()

    def step(params, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        return jax.tree.map(lambda p, g: p - work.lr * g, params, grads), loss

    def epoch(params, _):
        params, losses = jax.lax.scan(step, params, blocks)
        total, count = losses.sum(), full
        if cut < len(y):
            params, loss = step(params, (x[cut:], y[cut:]))
            total, count = total + loss, full + 1
        return params, (total / count, loss_of(params, x_valid, y_valid) if validate else total)

    run = jax.jit(lambda params: jax.lax.scan(epoch, params, None, length=work.epochs)[1])
    linears = [module for module in pair.net if isinstance(module, nn.Linear)]
    start = [(as_jax(module.weight.T), as_jax(module.bias)) for module in linears]

    def fit() -> Losses:
        train, valid = run(start)
        return train.tolist(), valid.tolist() if validate else []

    return fit


PEERS = {
    "torch.nn": torch_nn,
    "scratchcuda": scratchcuda,
    "documents' code": documents,
    "torch.compile": torch_compile,
    "JAX, jit of the fit": jax_fit,
}


def measure(work: Workload, dtype: str, validate: bool, rounds: int, device: str = "cpu", peers: dict = PEERS) -> dict:
    """Time the peers on one workload; for each its times, its losses' difference to torch.nn's and its ratio."""
    pairs, fits, prepared, notes, errors = {}, {}, {}, {}, {}
    for peer, make in peers.items():
        pairs[peer] = Pair(work, device, getattr(torch, dtype), seed=0)
        start = time.perf_counter()
        try:
            if make is jax_fit and importlib.util.find_spec("jax") is None:
                raise NotImplementedError("not installed")
            fit = make(pairs[peer], work, validate)
            fit()
            fits[peer] = fit
        except NotImplementedError as error:
            notes[peer] = str(error)
        except Exception as error:
            if peer in ("torch.nn", "scratchcuda"):  # without which nothing is compared
                raise
            notes[peer] = f"{type(error).__name__}: {error}".splitlines()[0]
            errors[peer] = traceback.format_exc()
        prepared[peer] = time.perf_counter() - start
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {peer: [] for peer in fits}
    losses: dict[str, Losses] = {}
    for _ in range(rounds):
        for peer, fit in fits.items():
            pairs[peer].reset()
            synchronize()
            start = time.perf_counter()
            losses[peer] = fit()
            synchronize()
            times[peer].append(time.perf_counter() - start)
    expected = torch.tensor([*losses["torch.nn"][0], *losses["torch.nn"][1]], dtype=torch.float64)
    rows = {}
    for peer in fits:
        got = torch.tensor([*losses[peer][0], *losses[peer][1]], dtype=torch.float64)
        difference = ((got - expected) / expected).abs().max().item()
        ratios = sorted(theirs / ours for theirs, ours in zip(times["torch.nn"], times[peer], strict=True))
        rows[peer] = {"seconds": times[peer], "prepared": prepared[peer]}
        rows[peer] |= {"difference": difference, "agrees": difference <= AGREEMENT[dtype]}
        if (history := pairs[peer].scratch.history) is not None:  # which scratchcuda alone has
            rows[peer] |= {"path": history.path, "reason": history.reason}
        if rows[peer]["agrees"]:
            rows[peer]["ratio"] = [ratios[len(ratios) // 4], statistics.median(ratios), ratios[-1 - len(ratios) // 4]]
    found = {"title": work.title, "dtype": dtype, "validation": validate, "peers": rows}
    return found | {"notes": notes, "errors": errors}


def versions() -> dict:
    found = {"scratchcuda": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if importlib.util.find_spec("jax") is not None:
        found["jax"] = importlib.metadata.version("jax")
    return found


def show(found: dict) -> None:
    from rich.console import Console  # only here: the peers serve gpu.py too, where there may be no rich
    from rich.table import Table

    console = Console()
    validation = "with validation" if found["validation"] else "without validation"
    table = Table("peer", "ms", "quartiles", "faster", "quartiles", "losses")
    for column in table.columns:
        column.no_wrap = True
    for peer, row in found["peers"].items():
        quartiles = (1e3 * q for q in statistics.quantiles(row["seconds"], n=4))
        low, median, high = (f"{q:.0f}" if q >= 100 else f"{q:.3g}" for q in quartiles)
        ratio, spread = "none", "other losses"
        if row["agrees"]:
            ratio, spread = f"{row['ratio'][1]:.1f}", f"{row['ratio'][0]:.1f} to {row['ratio'][2]:.1f}"
        table.add_row(peer, median, f"{low} to {high}", ratio, spread, f"{row['difference']:.0e}")
    console.print(f"[bold]{found['title']}[/bold], {found['dtype']}, whole fit {validation}", highlight=False)
    console.print(
        "medians; faster: torch.nn's time divided by the peer's; losses: their relative difference to torch.nn's"
    )
    console.print(table)
    for peer, note in found["notes"].items():
        console.print(f"{peer}: {note}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["slr", "mlp", "digits"], metavar="WORKLOAD")
    parser.add_argument("--rounds", type=int, default=15, help="fits of each peer (default: 15)")
    parser.add_argument("--dtype", choices=AGREEMENT, default="float64")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything into this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {', '.join(unknown)}, expected {', '.join(WORKLOADS)}")
    torch.set_num_threads(1)
    # Read when JAX starts: one thread for it too.
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    result = {"device": device_name(torch.device("cpu")), "threads": 1, "versions": versions(), "fits": []}
    print(f"{result['device']}, {os.cpu_count()} cores, one thread, {result['versions']}")
    for name in arguments.workloads:
        for validate in (False, True):
            found = {"workload": name} | measure(WORKLOADS[name], arguments.dtype, validate, arguments.rounds)
            show(found)
            result["fits"].append(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
