"""Measures each call of a step by itself: its times, its error, its kernels, torch's time for the same work."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scratchcuda.ops._registry import twins
from scratchcuda.profiler import costs
from scratchcuda.profiler.clocks import Clock, quartiles
from scratchcuda.profiler.findings import Ceilings, Kernel, Row
from scratchcuda.profiler.race import AGREEMENT
from scratchcuda.profiler.record import Call, copied
from scratchcuda.profiler.turns import ratio


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
