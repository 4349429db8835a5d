"""Measures each call of a step by itself: its times, its error, its kernels, torch's time for the same work."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scratchcuda.ops._registry import twins
from scratchcuda.profiler import costs
from scratchcuda.profiler.ceilings import Ceilings
from scratchcuda.profiler.clocks import Clock, quartiles
from scratchcuda.profiler.kernels import Kernel
from scratchcuda.profiler.race import AGREEMENT
from scratchcuda.profiler.record import Call, copied
from scratchcuda.profiler.turns import ratio


@dataclass
class Row:
    """One op of a layer in a phase. Times are seconds of a call, as first quartile, median and third quartile.

    Attributes:
        phase, layer, op, calls: as of the recorded call; calls in a step.
        shapes: of its tensors.
        dtype: that it computes in.
        warm: its data may be in a cache.
        cold: nothing is in the caches.
        host: that the host takes to enqueue it; None on a CPU, where that is part of the time.
        flops, bytes: the least that it has to do.
        kernels: that it launches.
        floor: the least seconds by the measured ceilings.
        limit: what sets the floor: "memory", "arithmetic" or "launch latency".
        error: ||result - oracle|| / ||oracle||, in float64; None where torch's float64 is its own oracle, or where it
            draws random numbers.
        eager, compiled: the time of torch's functions for the same work, eager and compiled, divided by this one, warm;
            None where this is torch's function, and where the error says that the results differ.
    """

    phase: str
    layer: str
    op: str
    calls: int
    shapes: list[list[int]]
    dtype: str
    warm: list[float]
    cold: list[float]
    host: list[float] | None
    flops: int
    bytes: int
    kernels: list[Kernel]
    floor: float
    limit: str
    error: float | None
    eager: list[float] | None
    compiled: list[float] | None

    @property
    def seconds(self) -> float:
        """Of all its calls in a step, warm."""
        return self.calls * self.warm[1]

    @property
    def bandwidth(self) -> float:
        """Bytes a second that it has moved at least. Of the cold time: in a cache it would not be memory's."""
        return self.bytes / self.cold[1]

    @property
    def rate(self) -> float:
        """FLOPs a second, of the cold time."""
        return self.flops / self.cold[1]

    @property
    def of_floor(self) -> float:
        """The floor as a share of the cold time."""
        return self.floor / self.cold[1]


def measure(call: Call, kernels: list[Kernel], clock: Clock, ceilings: Ceilings, compile: bool) -> Row:
    """Measure one call; whose it is, and how often, stays empty.

    Args:
        call: what was recorded.
        kernels: that it launches.
        clock: of its device.
        ceilings: of its device.
        compile: whether to compare with torch.compile, which takes seconds for each call.
    """
    error = error_of(call)  # first: it has copies of its own, and frees them
    run, other = call.on_copies(), call.on_copies()
    args, kwargs = run.args, run.keywords
    dtype = str(call.dtype).removeprefix("torch.")
    floor, limit = ceilings.floor(call.cost.bytes, call.cost.flops, dtype, max(1, len(kernels)))

    def restore() -> None:  # what is updated in place again and again would vanish, or grow
        for tensor, start in zip(
            _written(call.op, args, kwargs), _written(call.op, call.args, call.kwargs), strict=True
        ):
            tensor.copy_(start)

    with torch.no_grad():
        warm = clock.warm(run, restore)
        restore()
        cold = clock.cold(run, other)
        restore()
        host = clock.host(run)
        eager = compiled = None
        if call.is_ours and (error is None or error <= AGREEMENT[dtype]):  # nothing is said of other results
            twin = getattr(twins, call.op_name)
            eager = ratio(clock.warm(partial(twin, *args, **kwargs), restore), warm)["quartiles"]
            if compile:
                torch._dynamo.reset()  # or the twin's ninth shape would run eagerly
                twin = torch.compile(twin, dynamic=False)
                compiled = ratio(clock.warm(partial(twin, *args, **kwargs), restore), warm)["quartiles"]
    return Row(
        "",
        "",
        call.name,
        0,
        [list(tensor.shape) for tensor in call.tensors],
        dtype,
        quartiles(warm),
        quartiles(cold),
        None if host is None else quartiles(host),
        call.cost.flops,
        call.cost.bytes,
        kernels,
        floor,
        limit,
        error,
        eager,
        compiled,
    )


def error_of(call: Call) -> float | None:
    """The error against the same op in float64, of ours its twin in torch's functions; None where there is no such."""
    if torch.Tag.nondeterministic_seeded in call.op.tags or (not call.is_ours and call.dtype == torch.float64):
        return None
    run = call.on_copies()
    found = _results(call.op, call.op, run.args, run.keywords)
    args, kwargs = (copied(given, torch.float64) for given in (call.args, call.kwargs))
    oracle = getattr(twins, call.op_name) if call.is_ours else call.op
    try:
        expected = _results(call.op, oracle, args, kwargs)
    except RuntimeError:  # some of torch's ops know no float64
        return None
    pairs = zip(found, expected, strict=True)
    errors = [_difference(a.double(), b.double()) for a, b in pairs if a.is_floating_point()]
    return max(errors, key=lambda error: (math.isnan(error), error), default=None)  # NaN is the worst


def _results(op: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> list[Tensor]:
    """What it returns, then what it mutates."""
    with torch.no_grad():
        out = function(*args, **kwargs)
    return [*costs.tensors_of(out), *_written(op, args, kwargs)]


def _written(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that it mutates, as its schema tells."""
    given = costs.arguments(op, args, kwargs)
    return list(costs.tensors_of([given[a.name] for a in op._schema.arguments if a.is_write]))


def _difference(found: Tensor, expected: Tensor) -> float:
    norm = expected.norm().item()
    difference = (found - expected).norm().item()
    return difference / norm if norm else difference
