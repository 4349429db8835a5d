"""The step of an optimizer whose rows, parameters that have a gradient, kernels update: one launch for many of them."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks

Group = dict[str, Any]


class Row(NamedTuple):
    """A parameter with its gradient and its state.

    Attributes:
        state: what is written besides, each of the parameter's shape and dtype.
        key: what the rows of a launch have in common, besides their device; None of one that no kernel takes.
        step: a tensor that counts, if the optimizer's state has one.
    """

    p: Tensor
    grad: Tensor
    state: tuple[Tensor, ...]
    key: Hashable
    step: Tensor | None = None


def columns(rows: list[Row]) -> Any:
    """Of a row each, as lists."""
    return map(list, zip(*rows, strict=True))


def torchs_step(optimizer: type[torch.optim.Optimizer]) -> Any:
    """Its step without hooks: torch has every class that it makes an instance of call them, ours too."""
    step: Any = optimizer.step
    return step.__wrapped__ if hasattr(step, "hooked") else step


def step(
    optimizer: torch.optim.Optimizer,
    closure: Callable[[], Any] | None,
    torchs: Callable[..., Any],
    is_ours: Callable[[Group], bool],
    update: Callable[[Group], None],
) -> Any:
    """One step: torch's, unless kernels may serve all groups; then an update of each. Returns what the closure has."""
    if torch.compiler.is_compiling() or not all(map(is_ours, optimizer.param_groups)):
        return torchs(optimizer, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        for group in optimizer.param_groups:
            update(group)
    return loss


def is_ours(group: Group, numbers: Iterable[Any], non_negative: Iterable[Any], flags: Iterable[str]) -> bool:
    """Whether kernels may serve this group, with such options, and nothing asks for torch's implementation."""
    if not all(_backend.reaches(p) for p in group["params"][:1]):  # one is asked for all, in time
        return False
    numbers, non_negative = [*numbers, *non_negative], [*non_negative]
    if any(not isinstance(number, float) and type(number) is not int for number in numbers):
        return False
    if not all(map(math.isfinite, numbers)) or min(non_negative) < 0:
        return False
    if any(type(group[name]) is not bool for name in (*flags, "differentiable")):
        return False
    return not (group["foreach"] or group["fused"] or group["differentiable"])


def update(rows: list[Row], fused: Callable[[list[Row]], None], torchs: Callable[[list[Row]], None]) -> None:
    """One launch for all rows that kernels take and that have a device and a key in common; torch's update of others.

    That updates one after another, and so do all rows, if they share memory.
    """
    lists: dict[Any, list[Row]] = defaultdict(list)
    gaps = False
    for row in rows:
        fits = row.key is not None and _fit(row.p, row.grad, *row.state)
        lists[(row.p.device, row.key) if fits else "torch's"].append(row)
        gaps = gaps or (fits and not row.p.is_contiguous())
    # Within a list the op itself notices it, unless there may be gaps between elements.
    if (gaps or len(lists) > 1) and _share_memory(rows):
        lists = {"torch's": rows}
    for key, listed in lists.items():
        if key == "torch's":
            torchs(listed)
        else:
            try:
                fused(listed)
            except RuntimeError:
                if not _share_memory(listed):
                    raise
                torchs(listed)


def launch(op: str, params: list[Tensor], grads: list[Tensor], state: Sequence[list[Tensor]], *options: Any) -> None:
    """The op on the local parts of these tensors, of which all but the gradients are written."""
    local = [[_local(tensor) for tensor in tensors] for tensors in (params, grads, *state)]
    _backend.serving(op, *itertools.chain(*local))(*local, *options)
    _backend.bump_versions(*itertools.chain(params, *state))


def _fit(p: Tensor, *others: Tensor) -> bool:
    """Whether these are dense and of one of the kernels' dtypes, and all plain tensors or DTensors laid out alike."""
    if p.dtype not in _backend.DTYPES or p.layout != torch.strided:
        return False
    if any(t.dtype != p.dtype or t.layout != torch.strided for t in others):
        return False
    if type(p) in (Tensor, torch.nn.Parameter):
        return all(type(t) is Tensor for t in others)
    if not all(hasattr(t, "to_local") for t in (p, *others)):
        return False
    layout, *layouts = ((t.device_mesh, t.placements) for t in (p, *others))  # type: ignore[attr-defined]
    return all(each == layout for each in layouts)


def _share_memory(rows: list[Row]) -> bool:
    """Whether one that an update writes lies in memory of another, or in a gap between its elements."""
    params, grads, states, _, _ = columns(rows)
    state = [tensor for each in states for tensor in each]
    params, grads, state = ([_local(tensor) for tensor in tensors] for tensors in (params, grads, state))
    return _checks.shared_memory({"params": params, "state": state}, {"grads": grads}, gaps=True) is not None


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's part on this process."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
