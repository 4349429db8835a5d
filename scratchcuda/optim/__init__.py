"""torch.optim.SGD on the fused update of :func:`scratchcuda.ops.sgd_update_`; all other names are torch.optim's."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import sgd

from scratchcuda._fallback import StandIn, fallback
from scratchcuda.ops import _backend, _checks

_Row = tuple[Tensor, Tensor, Tensor | None]  # a parameter, its gradient and its momentum
_OPTIONS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")

# torch.optim hooks the step of each class that it makes an instance of, to call hooks; for ours it has called them.
_torchs_step: Any = torch.optim.SGD.step
_torchs_step = _torchs_step.__wrapped__ if hasattr(_torchs_step, "hooked") else _torchs_step


class SGD(torch.optim.SGD, metaclass=StandIn):
    """torch.optim.SGD, with its arguments, state and param_groups, so that a state_dict of either loads into the other.

    Where the kernels serve, a step is one launch for each group and device. Parameters may be DTensors, as those of
    FSDP2, whose local parts are updated. Elsewhere torch's own step runs, and so it does under torch.compile, with
    ``foreach``, ``fused`` or ``differentiable``, which name torch's implementations, for sparse gradients and other
    dtypes than the kernels', for options that the kernels do not take, as a tensor or what is negative or not finite,
    and for a group in which tensors share memory, as a parameter that is listed twice: one after another, as on a CPU.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Args:
            closure: if given, called first, with gradients recorded; it computes the loss anew.

        Returns:
            what the closure has returned.
        """
        if torch.compiler.is_compiling() or not all(_is_ours(group) for group in self.param_groups):
            return _torchs_step(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        rows: list[_Row] = []
        lists: dict[Any, list[_Row]] = defaultdict(list)
        gaps = False
        for p in group["params"]:
            if p.grad is not None:
                buffer = self.state[p].get("momentum_buffer") if group["momentum"] else None
                row, fits = (p, p.grad, buffer), _fit(p, p.grad, buffer)
                rows.append(row)
                lists[(p.device, buffer is None) if fits else "torch's"].append(row)
                gaps = gaps or (fits and not p.is_contiguous())
        # Within a list the op itself notices it, unless there may be gaps between elements.
        if (gaps or len(lists) > 1) and _share_memory(rows):
            lists = {"torch's": rows}
        for key, listed in lists.items():
            params, grads, buffers = (list(column) for column in zip(*listed, strict=True))
            if key == "torch's":
                _torchs(params, grads, buffers, group)
            else:
                try:
                    buffers = [*_fused(params, grads, buffers, group)]
                except RuntimeError:
                    if not _share_memory(listed):
                        raise
                    _torchs(params, grads, buffers, group)
            if group["momentum"]:
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer


def _is_ours(group: dict[str, Any]) -> bool:
    """Whether kernels may serve this group, and nothing asks for torch's implementation."""
    if not all(_backend.reaches(p) for p in group["params"][:1]):  # one is asked for all, in time
        return False
    numbers = [group[name] for name in ("lr", "weight_decay", "momentum", "dampening")]
    if any(not isinstance(number, float) and type(number) is not int for number in numbers):
        return False
    if not all(map(math.isfinite, numbers)) or min(numbers[:3]) < 0:
        return False
    if any(type(group[name]) is not bool for name in ("nesterov", "maximize", "differentiable")):
        return False
    if group["nesterov"] and (not group["momentum"] or group["dampening"]):  # as a scheduler may leave it
        return False
    return not (group["foreach"] or group["fused"] or group["differentiable"])


def _fit(p: Tensor, grad: Tensor, buffer: Tensor | None) -> bool:
    """Whether these are dense and of one of the kernels' dtypes, and all plain tensors or DTensors laid out alike."""
    others = [grad] if buffer is None else [grad, buffer]
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


def _fused(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None], group: dict[str, Any]
) -> list[Tensor]:
    """One update. All momentum buffers are there, or none; returns them."""
    is_first_step = bool(group["momentum"]) and buffers[0] is None
    filled = [torch.empty_like(p) for p in params] if is_first_step else [b for b in buffers if b is not None]
    local = [[_local(tensor) for tensor in tensors] for tensors in (params, grads, filled)]
    options = (group[name] for name in _OPTIONS)
    _backend.serving("sgd_update_", *itertools.chain(*local))(*local, *options, is_first_step)
    _backend.bump_versions(*params, *filled)
    return filled


def _torchs(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None], group: dict[str, Any]) -> None:
    """torch's update of one after another, which fills in the momentum buffers that are not there."""
    options: dict[str, Any] = {name: group[name] for name in _OPTIONS}
    sgd.sgd(params, grads, buffers, foreach=False, fused=False, **options)


def _share_memory(rows: list[_Row]) -> bool:
    """Whether one that an update writes lies in memory of another, or in a gap between its elements."""
    params, grads, buffers = ([_local(t) for t in column if t is not None] for column in zip(*rows, strict=True))
    written = {"params": params, "momentum_buffers": buffers}
    return _checks.shared_memory(written, {"grads": grads}, gaps=True) is not None


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's part on this process."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


if TYPE_CHECKING:
    from torch.optim import *  # type: ignore[assignment]
else:
    __getattr__, __dir__, __all__ = fallback(globals(), torch.optim)
