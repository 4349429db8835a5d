"""torch.optim.SGD on the fused update of :func:`scratchcuda.ops.sgd_update_`; all other names are torch.optim's."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import sgd

from scratchcuda import _backend, ops
from scratchcuda._fallback import StandIn, fallback

_OPTIONS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")

# torch.optim hooks the step of each class that it makes an instance of, to call hooks; for ours it has called them.
_torchs_step: Any = torch.optim.SGD.step
_torchs_step = _torchs_step.__wrapped__ if hasattr(_torchs_step, "hooked") else _torchs_step


class SGD(torch.optim.SGD, metaclass=StandIn):
    """torch.optim.SGD, with its arguments, state and param_groups, so that a state_dict of either loads into the other.

    Where the kernels serve, a step is one launch for each group and device. Parameters may be DTensors, as those of
    FSDP2, whose local parts are updated. Elsewhere torch's own step runs, and so it does under torch.compile, with a
    tensor for a learning rate or weight decay, with ``foreach``, ``fused`` or ``differentiable``, which name torch's
    implementations, and for sparse gradients, other dtypes than the kernels', and a negative learning rate.
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
        lists: dict[Any, list[tuple[Tensor, Tensor, Tensor | None]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                buffer = self.state[p].get("momentum_buffer") if group["momentum"] else None
                together = (p.device, buffer is None)
                lists[together if _fit(p, p.grad, buffer) else "torch's"].append((p, p.grad, buffer))
        for key, rows in lists.items():
            params, grads, buffers = (list(column) for column in zip(*rows, strict=True))
            if key == "torch's":
                options: dict[str, Any] = {name: group[name] for name in _OPTIONS}
                sgd.sgd(params, grads, buffers, foreach=False, fused=False, **options)
            else:
                buffers = _fused(params, grads, buffers, group)
            if group["momentum"]:
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer


def _is_ours(group: dict[str, Any]) -> bool:
    """Whether kernels may serve this group, and nothing asks for torch's implementation."""
    if not all(_backend.reaches(p) for p in group["params"][:1]):  # one is asked for all, in time
        return False
    numbers = [group[name] for name in ("lr", "weight_decay", "momentum")]
    if any(isinstance(number, Tensor) or not 0 <= number < math.inf for number in numbers):
        return False
    if group["nesterov"] and (not group["momentum"] or group["dampening"]):  # as a scheduler may leave it
        return False
    return not (group["foreach"] or group["fused"] or group["differentiable"])


def _fit(p: Tensor, grad: Tensor, buffer: Tensor | None) -> bool:
    """Whether these are dense and of one of the kernels' dtypes, and all plain tensors or DTensors laid out alike."""
    others = [grad] if buffer is None else [grad, buffer]
    if p.dtype not in _backend.DTYPES or any(t.dtype != p.dtype or t.layout != torch.strided for t in others):
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
    ops.bump_versions(*params, *filled)
    return filled


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's part on this process."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


__getattr__, __dir__ = fallback(globals(), torch.optim)
