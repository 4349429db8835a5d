r"""Fits and kernels on a CUDA GPU: times, shares of what the GPU can do, and what a model by hand predicts for an H100.

Fits of small networks beside torch.nn, torch.nn under a CUDA graph captured by hand, torch.compile and JAX, in turns as
in fit.py. Each op over a sweep of sizes beside torch's functions, by the events of the device, warm (many calls in one
CUDA graph) and cold (nothing in the cache). Results are compared before a time or a ratio is reported. Last the bars.

    python benchmarks/gpu.py [--parts fits,kernels] [--seconds 150] [--json FILE]
    python benchmarks/gpu.py --dry    # the same on the CPU, tiny: it shows that all of it runs, and measures nothing
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import fit
import kernels
import numpy as np
import torch
from kernels import DRY_SIZES, KERNELS, SIZES
from torch import nn

from scratchcuda import _backend, use_backend
from scratchcuda.compare import WORKLOADS, Workload

GRAPH, JAX, OVERLAP = "torch.nn, CUDA graph", "JAX, jit of the fit", "scratchcuda, overlapping launches"

#: What the model by hand assumes, in seconds, and in bytes and operations a second. Rates are of NVIDIA's data sheet of
#: the H100 SXM: for ours without tensor cores (bfloat16 is summed in float32), for cuBLAS with them where it uses them.
#: The bandwidth is that of a copy on an H100. The times are usual ones of launches.
ASSUMED = {
    "bandwidth": 3.0e12,
    "ours": {"float32": 67e12, "float64": 33.5e12, "bfloat16": 67e12},
    "cuBLAS": {"float32": 67e12, "float64": 67e12, "bfloat16": 989e12},
    "launch": 1.5e-6,  # of a kernel inside a graph
    "replay": 5e-6,  # of a graph, until its first kernel starts
    "wait": 20e-6,  # until the host has read a result
    "eager": 15e-6,  # of a kernel through Python, autograd and the dispatcher
}


def launches(work: Workload) -> dict[str, int]:
    """How many kernels our graph plan and torch launch for a full batch, and for a validation.

    Of networks in which each activation follows a Linear. Ours does elementwise ones within the products.
    """
    modules = work.modules()
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    softmaxes = sum(isinstance(module, nn.Softmax) for module in modules)
    by_class = work.loss is nn.CrossEntropyLoss
    rows, n_out = work.batch_size, linears[-1].out_features
    loss = kernels.cross_entropy_launches(rows, n_out) if by_class else kernels.mse_launches(rows * n_out)
    gradients = sum(kernels.gradient_launches(rows, m.in_features, m.out_features) for m in linears)
    forward = len(linears) + softmaxes
    backward = len(linears) - 1 + softmaxes + gradients  # the first layer's input needs no gradient
    torchs_loss = 2 if by_class else 1  # log_softmax, and the choice of a class
    torchs_forward = len(modules) + torchs_loss
    # Of a Linear the gradients of weights, bias and, but for the first, input; a one to begin with; one update of all.
    torchs_backward = torchs_loss + (len(modules) - len(linears)) + 3 * len(linears) - 1 + 1 + 1
    return {
        "step": 1 + forward + loss + backward,  # 1: takes the batch out of the data
        "validation": forward + loss,
        "torch's step": torchs_forward + torchs_backward,
        "torch's validation": torchs_forward,
    }


def predict(work: Workload, steps: int, validate: bool) -> dict[str, float]:
    """Seconds of a fit, of its launches alone: bytes and operations of such small networks take far less."""
    count, launch, read = launches(work), ASSUMED["launch"], work.epochs * ASSUMED["wait"]
    ours, torchs = (
        steps * count[who + "step"] + validate * work.epochs * count[who + "validation"] for who in ("", "torch's ")
    )
    return {
        "torch.nn": torchs * ASSUMED["eager"] + read,
        # The host is ahead: it starts the next replay while the device is at work.
        "scratchcuda": ours * launch + work.epochs * ASSUMED["replay"] + read,
        # Copies of x and y, and the sum of the losses; a replay's few kernels do not hide the start of the next.
        GRAPH: (torchs + 3 * steps) * launch + steps * ASSUMED["replay"] + read,
    }


def torch_graph(pair, work, validate) -> fit.Fit:
    """torch.nn with the whole step captured by hand, a CUDA graph for each size of batch, and one for validation."""
    if not pair.x.is_cuda:
        raise NotImplementedError("needs a GPU")
    net, loss_f = pair.net, pair.loss_f
    optimizer = torch.optim.SGD(net.parameters(), lr=work.lr, fused=True)
    stream = torch.cuda.Stream()  # one for all, or autograd would wait for another, which a capture cannot
    losses = torch.zeros(2, dtype=torch.float64, device=pair.x.device)  # sum of the epoch's steps, and validation
    data = fit.batches(pair, work.batch_size)

    def step(x, y):
        optimizer.zero_grad()  # to None, so that a capture makes them in its graph's memory
        loss = loss_f(net(x), y)
        loss.backward()
        optimizer.step()
        losses[0].add_(loss.detach())

    def evaluate():
        with torch.no_grad():
            losses[1].copy_(loss_f(net(pair.x_valid), pair.y_valid))

    steps = {}
    for x, y in data:
        if len(x) not in steps:
            inputs = x.clone(), y.clone()
            steps[len(x)] = *inputs, kernels.capture(partial(step, *inputs), stream)
    validation = kernels.capture(evaluate, stream) if validate else None
    pair.reset()  # the warm-up has trained

    def run() -> fit.Losses:
        train, valid = [], []
        for _ in range(work.epochs):
            losses.zero_()
            for x, y in data:
                x_input, y_input, graph = steps[len(x)]
                x_input.copy_(x)
                y_input.copy_(y)
                graph.replay()
            if validation is not None:
                validation.replay()
            total, valid_loss = losses.tolist()  # once an epoch
            train.append(total / len(data))
            valid += [valid_loss] * validate
        return train, valid

    return run


def overlapping(pair, work, validate) -> fit.Fit:
    """Ours, with launches that may begin while the one before them ends."""
    if not pair.x.is_cuda or torch.cuda.get_device_capability() < (9, 0):
        raise NotImplementedError("needs a GPU of compute capability 9.0")
    from scratchcuda import _C

    run = fit.scratchcuda(pair, work, validate)

    def overlapped() -> fit.Losses:
        _C.set_overlap(True)  # read when a launch is captured
        try:
            return run()
        finally:
            _C.set_overlap(False)

    return overlapped


def resized(work: Workload, rows: int, valid: int, **changes) -> Workload:
    """The workload on so many rows, its own repeated."""

    def data(seed):
        sizes = rows, rows, valid, valid
        return tuple(np.resize(a, (size, *a.shape[1:])) for a, size in zip(work.data(seed), sizes, strict=True))

    return replace(work, data=data, **changes)


def measure_fit(name: str, dtype: str, kind: str, device: str, rounds: int, dry: bool) -> dict:
    """A whole "fit", one "with validation", or "steps": an epoch of 200 full batches."""
    work, validate = WORKLOADS[name], kind == "fit with validation"
    if dry:
        work = resized(work, 20, 20, epochs=2, batch_size=8)
    if kind == "steps":
        work = resized(work, (3 if dry else 200) * work.batch_size, 1, epochs=1)
    compiled = [] if name == "slr" or dry else ["torch.compile"]  # which takes longer than all else
    every = fit.PEERS | {GRAPH: torch_graph, OVERLAP: overlapping}
    peers = {peer: every[peer] for peer in ("torch.nn", "scratchcuda", OVERLAP, GRAPH, *compiled, JAX)}
    found = fit.measure(work, dtype, validate, rounds, device, peers)
    steps = work.epochs * math.ceil(len(work.data(0)[0]) / work.batch_size)
    predicted = predict(work, steps, validate)
    for peer, row in found["peers"].items():
        row |= {"quartiles": kernels.quartiles(row["seconds"]), "predicted": predicted.get(peer)}
    figures = {f"times as fast as {peer}": times_as_fast(found["peers"], peer) for peer in ("torch.nn", GRAPH)}
    return {"workload": name, "kind": kind, "steps": steps} | found | {"figures": figures}


def times_as_fast(peers: dict, peer: str) -> tuple[float, float] | None:
    """Of scratchcuda beside a peer with the same losses: measured, as median of the rounds, and predicted."""
    if not all(who in peers and peers[who]["agrees"] for who in (peer, "scratchcuda")):
        return None
    theirs, ours = peers[peer], peers["scratchcuda"]
    ratio = statistics.median(a / b for a, b in zip(theirs["seconds"], ours["seconds"], strict=True))
    return ratio, theirs["predicted"] / ours["predicted"]


def measure_kernel(name: str, shape: tuple[int, ...], dtype: str, clock, ceiling: dict) -> dict:
    row = kernels.measure(name, shape, dtype, clock, ceiling)
    moves, computes = row["bytes"] / ASSUMED["bandwidth"], row["operations"] / ASSUMED["ours"][dtype]
    row["predicted"] = predicted = row["launches"] * ASSUMED["launch"] + max(moves, computes)
    if "error" not in row:
        of_cublas = row["operations"] / ASSUMED["cuBLAS"][dtype] / predicted
        row["figures"] = {"of copy": (row["of copy"], moves / predicted), "of cuBLAS": (row["of cuBLAS"], of_cublas)}
    return row


@dataclass(frozen=True)
class Job:
    """A row to measure, and the bars for its figures."""

    part: str
    label: str
    run: Callable[[], dict]
    bars: dict[str, float]


def jobs(clock, ceiling: dict, rounds: int, dry: bool) -> list[Job]:
    """All rows: first those with bars, then the other kernels, then the other fits, which take longer."""
    found = []
    for name, kernel in KERNELS.items():
        sizes, product = (DRY_SIZES if dry else SIZES)[kernel.dims], kernel.dims == "mkn"
        largest = {"of cuBLAS": {"float32": 0.75, "float64": 0.5}} if product else {"of copy": {"float32": 0.85}}
        for shape, dtype in [*((s, "float32") for s in sizes), (sizes[-1], "float64"), (sizes[-1], "bfloat16")]:
            bars = {key: of[dtype] for key, of in largest.items() if dtype in of and shape == sizes[-1]}
            label = f"{name} {'x'.join(map(str, shape))} {dtype}"
            found.append(Job("kernels", label, partial(measure_kernel, name, shape, dtype, clock, ceiling), bars))
    for kind in ("fit", "steps", "fit with validation"):
        for name, dtype in (("mlp", "float64"), ("digits", "float32"), ("digits", "float64"), ("slr", "float64")):
            bars = {"times as fast as torch.nn": 10.0, f"times as fast as {GRAPH}": 1.0}
            run = partial(measure_fit, name, dtype, kind, clock.device, rounds, dry)
            found.append(Job("fits", f"{name} {dtype} {kind}", run, bars if (name, kind) == ("mlp", "fit") else {}))
    return sorted(found, key=lambda job: not job.bars)


def reached(todo: list[Job], rows: dict[str, dict], dry: bool) -> list[dict]:
    """Each bar, and whether it was reached: None where it was not measured."""
    found = []
    for job in todo:
        for key, target in job.bars.items():
            measured, predicted = rows.get(job.label, {}).get("figures", {}).get(key) or (None, None)
            verdict = None if measured is None else measured >= target and not dry
            of = {"target": target, "measured": measured, "predicted": predicted, "reached": verdict}
            found.append({"bar": f"{job.label}: {key}"} | of)
    return found


def line(label: str, *columns: object) -> str:
    texts = (f"{column:.3g}" if isinstance(column, float) else str(column) for column in columns)
    return f"{label:58}" + "".join(f"{text:>10}" for text in texts)


def report(row: dict) -> str:
    if "error" in row:
        return f"{row['label']}: {row['error']}"
    if "kernel" in row:
        times = [1e6 * row[who][state][1] for who in ("ours", "torch") for state in ("warm", "cold")]
        rates = row["bytes a second"] / 1e9, row["operations a second"] / 1e12
        return line(row["label"], *times, 1e6 * row["predicted"], *rates, row["of copy"], row["of cuBLAS"])
    lines = [line(f"{row['label']}, {row['steps']} steps", "ms", "from", "to", "model", "faster", "losses")]
    for peer, of in row["peers"].items():
        low, median, high = (1e3 * q for q in of["quartiles"])
        predicted = "" if of["predicted"] is None else 1e3 * of["predicted"]
        ratio = of["ratio"][1] if of["agrees"] else "none"
        path = f" ({of['path']})" if "path" in of else ""
        lines.append(line(f"  {peer}{path}", median, low, high, predicted, ratio, of["difference"]))
    return "\n".join([*lines, *(f"  {peer}: {note}" for peer, note in row["notes"].items())])


def output_of(*command: str) -> str | None:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="fits,kernels", help="what to measure (default: fits,kernels)")
    parser.add_argument("--seconds", type=float, default=150, help="no row begins after these (default: 150)")
    parser.add_argument("--rounds", type=int, default=7, help="fits of each peer (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything into this file")
    parser.add_argument("--dry", action="store_true", help="run all of it, tiny, on the CPU; measures nothing")
    arguments = parser.parse_args()
    dry, rounds = arguments.dry, arguments.rounds
    if not set(arguments.parts.split(",")) <= {"fits", "kernels"}:
        parser.error(f"--parts is {arguments.parts}, expected fits, kernels or fits,kernels")
    if dry:
        torch.set_num_threads(1)
        clock, rounds = kernels.HostClock(), 2
    else:
        if not torch.cuda.is_available():
            parser.error("there is no GPU; --dry runs on the CPU")
        if reason := _backend.kernels_unfit(torch.device("cuda")):
            parser.error(reason)
        use_backend("kernels")
        torch.backends.cuda.matmul.allow_tf32 = False
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # read when JAX starts, which would take most memory
        clock = kernels.DeviceClock()
    smi = "name,driver_version,clocks.max.sm,clocks.max.memory,power.limit"
    result = {
        "device": clock.name,
        "dry": dry,
        "backend": _backend.current,
        "versions": fit.versions() | {"cuda": torch.version.cuda},
        "nvidia-smi": None if dry else output_of("nvidia-smi", f"--query-gpu={smi}", "--format=csv"),
        "commit": output_of("git", "rev-parse", "HEAD"),
        "assumed": ASSUMED,
        "ceilings": kernels.ceilings(clock, dry),
        "rows": [],
    }
    loudly = ", A DRY RUN ON THE CPU: IT MEASURES NOTHING"
    print("\n".join(f"{key}: {value}" for key, value in result.items() if key not in ("assumed", "rows")))
    print(f"Measured on {clock.name}{dry * loudly}; the model is of an H100")
    titles = "warm", "cold", "torch's", "cold", "model", "GB/s", "TFLOP/s", "of copy", "of cuBLAS"
    print(line("microseconds of a kernel", *titles), flush=True)
    todo = [job for job in jobs(clock, result["ceilings"], rounds, dry) if job.part in arguments.parts.split(",")]

    def save() -> None:
        done = {row["label"]: row for row in result["rows"]}
        result["left out"] = [job.label for job in todo if job.label not in done]
        result["bars"] = reached(todo, done, dry)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")

    for job in todo:
        if time.perf_counter() - begun > arguments.seconds:
            break
        row = {"part": job.part, "label": job.label}
        try:
            row |= job.run()
        except Exception as error:  # costs this row alone
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            row["traceback"] = traceback.format_exc()
        result["rows"].append(row)
        print(report(row), flush=True)
        save()  # in case that the next row ends it all
    save()
    if result["left out"]:
        print(f"left out, for want of time: {', '.join(result['left out'])}")
    print("\n" + line("bar", "target", "found", "model", "reached"))
    for bar in result["bars"]:
        figures = ["" if bar[key] is None else bar[key] for key in ("target", "measured", "predicted")]
        verdict = {None: "unknown", True: "yes", False: "DRY RUN" if dry else "no"}[bar["reached"]]
        print(line(bar["bar"], *figures, verdict))
    print(f"{time.perf_counter() - begun:.0f} s on {clock.name}{dry * loudly}")


if __name__ == "__main__":
    main()
