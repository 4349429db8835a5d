"""torch.optim's SGD, Adam and AdamW on the updates of :mod:`scratchcuda.ops`; all other names are torch.optim's."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import adam, sgd

from scratchcuda._fallback import StandIn, fallback
from scratchcuda.optim import _fused
from scratchcuda.optim._fused import Group, Row

_SGD_OPTIONS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")
_ADAM_OPTIONS = ("eps", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize")

_sgd_step, _adam_step = _fused.torchs_step(torch.optim.SGD), _fused.torchs_step(torch.optim.Adam)


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
        return _fused.step(self, closure, _sgd_step, _sgd_is_ours, self._update)

    def _update(self, group: Group) -> None:
        has_momentum, rows = bool(group["momentum"]), []
        for p in group["params"]:
            if p.grad is not None:
                buffer = self.state[p].get("momentum_buffer") if has_momentum else None
                rows.append(Row(p, p.grad, () if buffer is None else (buffer,), has_momentum and buffer is None))

        def keep(params: list[Tensor], buffers: list[Any]) -> None:
            if has_momentum:
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer

        def fused(rows: list[Row]) -> None:
            params, grads, states, keys, _ = _fused.columns(rows)
            buffers = (
                [torch.empty_like(p) for p in params] if keys[0] else [buffer for each in states for buffer in each]
            )
            options = (group[name] for name in _SGD_OPTIONS)
            _fused.launch("sgd_update_", params, grads, [buffers], *options, keys[0])
            keep(params, buffers)

        def torchs(rows: list[Row]) -> None:
            params, grads, states, _, _ = _fused.columns(rows)
            buffers: list[Tensor | None] = [state[0] if state else None for state in states]
            options: dict[str, Any] = {name: group[name] for name in _SGD_OPTIONS}
            sgd.sgd(params, grads, buffers, foreach=False, fused=False, **options)
            keep(params, buffers)

        _fused.update(rows, fused, torchs)


class Adam(torch.optim.Adam, metaclass=StandIn):
    """torch.optim.Adam, with its arguments, state and param_groups: a state_dict of either loads into the other.

    Where the kernels serve, a step is one launch for each group, device and number of steps that parameters have had.
    All else is as :class:`SGD` says; torch's step runs with ``capturable`` too, and while a CUDA Graph is captured.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As :meth:`SGD.step`."""
        return _fused.step(self, closure, _adam_step, _adam_is_ours, lambda group: _update_adam(self, group))


class AdamW(torch.optim.AdamW, metaclass=StandIn):
    """torch.optim.AdamW, as :class:`Adam` is torch.optim.Adam."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As :meth:`SGD.step`."""
        return _fused.step(self, closure, _adam_step, _adam_is_ours, lambda group: _update_adam(self, group))


def _update_adam(optimizer: torch.optim.Adam, group: Group) -> None:
    columns: list[list[Tensor]] = [[] for _ in range(6)]
    optimizer._init_group(group, *columns)
    params, grads, *state, steps = columns
    counts = [step.item() for step in steps]
    keys = [int(count) + 1 if count >= 0 and float(count).is_integer() else None for count in counts]
    states = zip(*(tensors for tensors in state if tensors), strict=True) if params else ()
    rows = list(map(Row, params, grads, states, keys, steps))
    beta1, beta2 = group["betas"]

    def lists(states: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        return [*map(list, zip(*states, strict=True)), *([] for _ in range(3 - len(states[0])))]

    def fused(rows: list[Row]) -> None:
        params, grads, states, keys, steps = _fused.columns(rows)
        options = group["lr"], beta1, beta2, *(group[name] for name in _ADAM_OPTIONS)
        _fused.launch("adam_update_", params, grads, lists(states), *options, keys[0])
        torch._foreach_add_(steps, 1)

    def torchs(rows: list[Row]) -> None:
        params, grads, states, _, steps = _fused.columns(rows)
        m, v, u = lists(states)
        options: dict[str, Any] = {name: group[name] for name in (*_ADAM_OPTIONS, "lr")}
        adam.adam(params, grads, m, v, u, steps, foreach=False, fused=False, beta1=beta1, beta2=beta2, **options)

    _fused.update(rows, fused, torchs)


def _sgd_is_ours(group: Group) -> bool:
    if group["nesterov"] and (not group["momentum"] or group["dampening"]):  # as a scheduler may leave it
        return False
    non_negative = [group[name] for name in ("lr", "weight_decay", "momentum")]
    return _fused.is_ours(group, [group["dampening"]], non_negative, ("nesterov", "maximize"))


def _adam_is_ours(group: Group) -> bool:
    on_gpu = any(p.is_cuda for p in group["params"][:1])
    if group["capturable"] or (on_gpu and torch.cuda.is_current_stream_capturing()):  # which torch's step refuses
        return False
    non_negative = [group["lr"], group["eps"], group["weight_decay"], *group["betas"]]
    flags = ("decoupled_weight_decay", "amsgrad", "maximize")
    return _fused.is_ours(group, [], non_negative, flags) and max(group["betas"]) < 1


if TYPE_CHECKING:
    from torch.optim import *  # type: ignore[assignment]
else:
    __getattr__, __dir__, __all__ = fallback(globals(), torch.optim)
