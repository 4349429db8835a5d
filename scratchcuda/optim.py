"""torch.optim.SGD on the fused update of :func:`scratchcuda.ops.sgd_update_`."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import sgd

from scratchcuda import ops
from scratchcuda._backend import serving

_OPTIONS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")


class SGD(torch.optim.SGD):
    """torch.optim.SGD, with its arguments, state and param_groups, so that a state_dict of either loads into the other.

    A step is one launch of a kernel for each group and device. Parameters may be DTensors, as those of FSDP2, whose
    local parts are updated. ``foreach``, ``fused`` and ``differentiable`` name torch's own implementations: an
    optimizer that asks for one of them runs it. So does one under torch.compile, or with a tensor for a learning rate
    or weight decay; and so do sparse gradients and complex parameters.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Args:
            closure: if given, called first, with gradients recorded; it computes the loss anew.

        Returns:
            what the closure has returned.
        """
        if torch.compiler.is_compiling() or any(_asks_for_torchs(group) for group in self.param_groups):
            step: Any = torch.optim.SGD.step
            if getattr(step, "hooked", False):  # torch.optim wraps it, to call hooks, which have been called for this
                step = step.__wrapped__
            return step(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        lists: dict[Any, list[tuple[Tensor, Tensor, Tensor | None]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                buffer = self.state[p].get("momentum_buffer") if group["momentum"] else None
                ours = _is_ours(p, *(t for t in (p.grad, buffer) if t is not None))
                lists[ours and (p.device, buffer is None)].append((p, p.grad, buffer))
        for ours, rows in lists.items():
            params, grads, buffers = (list(column) for column in zip(*rows, strict=True))
            if ours:
                buffers = _fused(params, grads, buffers, group)
            else:
                options: dict[str, Any] = {name: group[name] for name in _OPTIONS}
                sparse = any(grad.is_sparse for grad in grads)
                sgd.sgd(params, grads, buffers, sparse, foreach=False, fused=False, **options)
            if group["momentum"]:
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer


def _fused(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None], group: dict[str, Any]
) -> list[Tensor]:
    """One update. All buffers are there, or none; returns them."""
    is_first_step = bool(group["momentum"]) and buffers[0] is None
    filled = [torch.empty_like(p) for p in params] if is_first_step else [b for b in buffers if b is not None]
    local = [[_local(tensor) for tensor in tensors] for tensors in (params, grads, filled)]
    options = (group[name] for name in _OPTIONS)
    serving("sgd_update_", *itertools.chain(*local))(*local, *options, is_first_step)
    ops.bump_versions(*params, *filled)
    return filled


def _asks_for_torchs(group: dict[str, Any]) -> bool:
    by_tensor = isinstance(group["lr"], Tensor) or isinstance(group["weight_decay"], Tensor)
    return bool(by_tensor or group["foreach"] or group["fused"] or group["differentiable"])


def _is_ours(p: Tensor, *others: Tensor) -> bool:
    """Whether these are dense and floating-point, of one dtype, and all plain tensors or DTensors laid out alike."""
    if not p.is_floating_point() or any(t.dtype != p.dtype or t.layout != torch.strided for t in others):
        return False
    if type(p) is torch.nn.Parameter or type(p) is Tensor:
        return all(type(t) is Tensor for t in others)
    if not all(hasattr(t, "to_local") for t in (p, *others)):
        return False
    layout, *layouts = ((t.device_mesh, t.placements) for t in (p, *others))  # type: ignore[attr-defined]
    return all(each == layout for each in layouts)


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's part on this process."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
