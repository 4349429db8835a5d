"""Rows of single ops: ours beside torch's way to do the same, warm and cold, with the share of the device's limits."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scratchcuda import ops
from scratchcuda.ops._entries import elementwise
from scratchcuda.ops._losses import LOSSES, Loss
from scratchcuda.ops._registry import twins
from scratchcuda.profiler import costs
from scratchcuda.profiler.ceilings import Ceilings
from scratchcuda.profiler.clocks import Clock, quartiles
from scratchcuda.profiler.turns import fastest, ratio, rotated

# So large that an update left out would show.
LR, MOMENTUM = 0.5, 0.9

#: Largest relative difference, ||got - torch's|| / ||torch's||: of some thousand roundings of both signs. In bfloat16
#: torch rounds log-probabilities of about -10 to multiples of 1/16 before it takes their exponentials.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 4e-2}

#: By dimensions: n elements; m rows of c; m images of c classes and d pixels; products of x (m, k) and w (k, n). The
#: last is measured in all dtypes.
SIZES: dict[str, list[tuple[int, ...]]] = {
    "n": [(1 << 12,), (1 << 16,), (1 << 20,), (1 << 24,), (1 << 27,)],
    "mc": [(65536, 10), (8192, 1024), (1024, 32768)],
    "mcd": [(16, 21, 65536)],
    "mkn": [(64, 64, 64), (333, 32, 32), (65536, 64, 10), (64, 1024, 1024), (512, 1024, 1024), (4096, 4096, 4096)],
}
#: Less than 8 elements: of more in bfloat16 torch's fused SGD leaves some out on the CPU (pytorch issue 191763).
DRY_SIZES: dict[str, list[tuple[int, ...]]] = {
    "n": [(3,), (7,)],
    "mc": [(6, 10)],
    "mcd": [(2, 3, 5)],
    "mkn": [(9, 8, 5)],
}

OURS, TORCH, ADDMM, COMPILED = "scratchcuda", "torch", "torch.addmm", "torch.compile"

#: How often each takes its turn; a clock takes several samples in each.
TURNS = 3


@dataclass(frozen=True)
class Operation:
    """One op, or one use of it.

    Attributes:
        op: its name.
        dims: of its shape, a key of :data:`SIZES`.
        arguments: its tensors, each named by its dimensions; i is class indices (m,) or (m, d), o an order of all rows
            (m,), p probabilities as scores, u such (n,), s a scalar ().
        options: its further arguments.
        ours, torchs: functions of the tensors that return what they have made or written; None is the op itself, and
            its twin, which is made of torch's functions.
        given: how the registered op is called with the tensors, where that differs: as keywords.
        torchs_name: what torch's way is called.
    """

    op: str
    dims: str
    arguments: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Callable[..., Any] | None = None
    torchs: Callable[..., Any] | None = None
    given: Callable[..., dict[str, Any]] | None = None
    torchs_name: str = TORCH

    def sizes(self, tensor: str, shape: tuple[int, ...]) -> list[int]:
        of = dict(zip(self.dims, shape, strict=True))
        named = {"i": self.dims.replace("c", ""), "o": "m", "p": self.dims, "u": "n", "s": ""}
        return [of[dim] for dim in named.get(tensor, tensor)]

    def make(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Random arguments."""
        made = []
        for tensor in self.arguments.split():
            sizes = self.sizes(tensor, shape)
            if tensor == "i":
                made.append(torch.randint(shape[1], sizes, device=device))
            elif tensor == "o":
                made.append(torch.randperm(*sizes, device=device))
            else:
                values = torch.randn(sizes, dtype=dtype, device=device)
                made.append(values.softmax(1) if tensor == "p" else values.sigmoid() if tensor == "u" else values)
        return made

    def ways(self) -> dict[str, Callable[..., Any]]:
        ours, torchs = (partial(getattr(module, self.op), **self.options) for module in (ops, twins))
        return {self.torchs_name: self.torchs or torchs, OURS: self.ours or ours}

    def cost(self, arguments: list[Tensor], out: Any) -> costs.Cost:
        """The least work of a call that has returned ``out``."""
        args, given = (arguments, self.options) if self.given is None else ([], self.given(*arguments))
        returns = getattr(torch.ops.scratchcuda, self.op).default._schema.returns
        return costs.cost(
            getattr(torch.ops.scratchcuda, self.op).default, tuple(args), dict(given), out if returns else None
        )


def torch_cross_entropy(
    z: Tensor, t: Tensor, c: Tensor | None = None, label_smoothing: float = 0
) -> tuple[Tensor, ...]:
    leaf = z.detach().requires_grad_()
    loss = functional.cross_entropy(leaf, t, c, label_smoothing=label_smoothing)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def cross_entropy_given(z: Tensor, t: Tensor, c: Tensor) -> dict[str, Any]:
    return {"scores": z, "y_true": t, "class_weights": c}


def weighted_cross_entropy(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    return ops.cross_entropy(**cross_entropy_given(*tensors))


def torch_cross_entropy_backward(grad: Tensor, z: Tensor, t: Tensor) -> Tensor:
    leaf = z.detach().requires_grad_()
    return torch.autograd.grad(functional.cross_entropy(leaf, t), leaf, grad)[0]


def sgd_given(p: Tensor, g: Tensor, *m: Tensor) -> dict[str, Any]:
    momentum = MOMENTUM if m else 0.0
    options = {"weight_decay": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
    return {"params": [p], "grads": [g], "lr": LR, "momentum_buffers": list(m), "momentum": momentum} | options


def sgd(p: Tensor, g: Tensor, *m: Tensor) -> tuple[Tensor, ...]:
    ops.sgd_update_(**sgd_given(p, g, *m))
    return p, *m


def torch_sgd(p: Tensor, g: Tensor, *m: Tensor) -> tuple[Tensor, ...]:
    given = sgd_given(p, g, *m)
    torch._fused_sgd_(given.pop("params"), given.pop("grads"), given.pop("momentum_buffers"), **given)
    return p, *m


def adam_options(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> dict[str, Any]:
    """All that ours and torch's fused Adam take by the same names."""
    flags = {"amsgrad": False, "maximize": False}
    lists = {"grads": [g], "exp_avgs": [m], "exp_avg_sqs": [v], "max_exp_avg_sqs": []}
    return lists | flags | {"lr": LR, "beta1": MOMENTUM, "beta2": MOMENTUM, "eps": 1e-3, "weight_decay": 0.0}


def adam_given(*tensors: Tensor) -> dict[str, Any]:
    return {"params": [tensors[0]], "decoupled_weight_decay": False, "step": 1} | adam_options(*tensors)


def adam(*tensors: Tensor) -> tuple[Tensor, ...]:
    given = adam_given(*tensors)
    ops.adam_update_(betas=(given.pop("beta1"), given.pop("beta2")), **given)
    return tensors[0], *tensors[2:]


def torch_adam(*tensors: Tensor) -> tuple[Tensor, ...]:
    given = adam_options(*tensors)
    torch._fused_adam_(self=[tensors[0]], state_steps=[one(tensors[0].device)], **given)
    return tensors[0], *tensors[2:]


@functools.cache
def one(device: torch.device) -> Tensor:
    """The number of a step, as torch counts them."""
    return torch.ones((), device=device)


def update(delta: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    ops.dense_update_(delta, x, w, b, LR)
    return w, b


def torch_update(delta: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return w.addmm_(x.mT, delta, alpha=-LR), b.add_(delta.sum(0), alpha=-LR)


def take_given(x: Tensor, y: Tensor, order: Tensor, x_batch: Tensor, y_batch: Tensor) -> dict[str, Any]:
    rows = {"step": first_step(x.device), "batch_size": len(x)}
    return {"x": x, "y": y, "order": order, "x_batch": x_batch, "y_batch": y_batch} | rows


def take(*tensors: Tensor) -> tuple[Tensor, ...]:
    ops.take_batch_(**take_given(*tensors))
    return tensors[3:]


@functools.cache
def first_step(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=device)


def torch_take(x: Tensor, y: Tensor, order: Tensor, x_batch: Tensor, y_batch: Tensor) -> tuple[Tensor, Tensor]:
    return torch.index_select(x, 0, order, out=x_batch), torch.index_select(y, 0, order, out=y_batch)


def loss_rows(entry: Loss) -> dict[str, Operation]:
    """Of the ops of a loss but its step."""
    pair = "u u" if entry.of_probabilities else "n u" if entry.weights else "n n"
    rows = {f"{entry.name}_value": pair, f"{entry.name}_backward": f"s {pair}"}
    if entry.compare:
        rows[entry.name] = pair
    return {name: Operation(name, "n", arguments) for name, arguments in rows.items()}


ACTIVATIONS = [entry.name for entry in elementwise()]
NONE, RELU = {"activation": "none"}, {"activation": "relu"}
torch_smoothed = partial(torch_cross_entropy, label_smoothing=0.1)
SMOOTHED = {"label_smoothing": 0.1}
OPERATIONS = {
    "dense none": Operation("dense", "mkn", "mk kn n", NONE, torchs=lambda x, w, b: b.addmm(x, w), torchs_name=ADDMM),
    "dense relu": Operation("dense", "mkn", "mk kn n", RELU),
    "dense_with_preactivation silu": Operation("dense_with_preactivation", "mkn", "mk kn n", {"activation": "silu"}),
    "dense_backward_input": Operation("dense_backward_input", "mkn", "mn kn"),
    "dense_backward_input relu": Operation("dense_backward_input", "mkn", "mn kn mk", RELU),
    "dense_backward_weights": Operation("dense_backward_weights", "mkn", "mn mk"),
    "dense_update_": Operation("dense_update_", "mkn", "mn mk kn n", {"lr": LR}, update, torch_update),
    **{name: Operation(name, "n", "n") for name in ACTIVATIONS},
    **{f"{name}_backward": Operation(f"{name}_backward", "n", "n n") for name in ACTIVATIONS},
    **{name: row for entry in LOSSES.values() for name, row in loss_rows(entry).items()},
    "dropout": Operation("dropout", "n", "n n"),
    "sgd_update_": Operation("sgd_update_", "n", "n n", {}, sgd, torch_sgd, sgd_given),
    "sgd_update_ momentum": Operation("sgd_update_", "n", "n n n", {}, sgd, torch_sgd, sgd_given),
    "adam_update_": Operation("adam_update_", "n", "n n n u", {}, adam, torch_adam, adam_given),
    "softmax": Operation("softmax", "mc", "mc"),
    "softmax_backward": Operation("softmax_backward", "mc", "mc mc"),
    "cross_entropy classes": Operation("cross_entropy", "mc", "mc i", torchs=torch_cross_entropy),
    "cross_entropy rows": Operation("cross_entropy", "mc", "mc p", torchs=torch_cross_entropy),
    "cross_entropy weighted": Operation(
        "cross_entropy", "mc", "mc i c", {}, weighted_cross_entropy, torch_cross_entropy, cross_entropy_given
    ),
    "cross_entropy smoothed": Operation("cross_entropy", "mc", "mc i", SMOOTHED, torchs=torch_smoothed),
    **{
        f"{op} {what}": Operation(op, dims, arguments, torchs=torchs)
        for what, dims in (("classes", "mc"), ("pixels", "mcd"))
        for op, arguments, torchs in (
            ("cross_entropy_value", f"{dims} i", functional.cross_entropy),
            ("cross_entropy_backward", f"s {dims} i", torch_cross_entropy_backward),
        )
    },
    "take_batch_": Operation("take_batch_", "mc", "mc o o mc o", {}, take, torch_take, take_given),
}


def measure(
    name: str, shape: tuple[int, ...], dtype: str, clock: Clock, limits: Ceilings, with_compiled: bool
) -> dict[str, Any]:
    """Compare the results with torch's, then time all in turns, warm and cold. Who has another result has no times.

    Args:
        name: a key of :data:`OPERATIONS`.
        shape: by its dims.
        dtype: a key of :data:`TOLERANCE`.
        clock: of the device; each of the :data:`TURNS` takes its samples.
        limits: of the same device.
        with_compiled: whether torch.compile of torch's way takes part.

    Returns:
        a row: of each peer the seconds of a call, and of scratchcuda the share of the device's limits.
    """
    operation = OPERATIONS[name]
    ways = operation.ways()
    arguments = operation.make(shape, getattr(torch, dtype), clock.device)
    expected = ways[operation.torchs_name](*(argument.clone() for argument in arguments))
    notes: dict[str, str] = {}
    if with_compiled:
        compiled = torch.compile(ways[operation.torchs_name], dynamic=False)
        try:
            compiled(*(argument.clone() for argument in arguments))
            ways[COMPILED] = compiled
        except Exception as error:  # as of what the compiler does not know
            notes[COMPILED] = f"{type(error).__name__}: {error}".splitlines()[0]
    peers: dict[str, dict[str, Any]] = {}
    for who, way in ways.items():
        result = way(*(argument.clone() for argument in arguments))
        difference = _difference(result, expected)
        peers[who] = {"difference": difference, "agrees": difference <= TOLERANCE[dtype]}
    work = operation.cost(arguments, expected)
    del expected, result
    times: dict[str, dict[str, list[float]]] = {"warm": {}, "cold": {}}
    agreeing = [who for who in ways if peers[who]["agrees"]]
    for turn in range(TURNS):
        for who in rotated(agreeing, turn):
            for state, samples in times.items():
                samples.setdefault(who, []).extend(getattr(clock, state)(partial(ways[who], *arguments)))
    for who in agreeing:
        warm, cold = times["warm"][who], times["cold"][who]
        peers[who] |= {"seconds": quartiles(warm), "samples": warm, "cold": quartiles(cold), "cold samples": cold}
        peers[who]["ratio"] = ratio(times["warm"][operation.torchs_name], warm)
    row = {"kind": "op", "op": operation.op, "shape": shape, "dtype": dtype, "bytes": work.bytes, "flops": work.flops}
    row |= {
        "spread": "quartiles",
        "peers": peers,
        "fastest": fastest(times["warm"], operation.torchs_name, "quartiles"),
        "notes": notes,
    }
    if peers[OURS]["agrees"]:
        seconds = peers[OURS]["seconds"][1]
        floor, limit = limits.floor(work.bytes, work.flops, dtype)
        # A bandwidth is of the cold time: in a cache it would not be memory's.
        of_copy = work.bytes / peers[OURS]["cold"][1] / limits.bandwidth
        row |= {"of copy": of_copy, "limit": limit, "of limit": floor / seconds}
        row["of product"] = work.flops / seconds / limits.flops[dtype]
    return row


def _difference(got: Any, expected: Any) -> float:
    """The largest of all tensors, relative by norm."""
    pairs = zip(*([value] if isinstance(value, Tensor) else value for value in (got, expected)), strict=True)
    found = [((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)).item() for a, b in pairs]
    return max(found, key=lambda value: (math.isnan(value), value))
