"""The update of torch.optim.SGD on a list of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks, _updates
from scratchcuda.ops._registry import operation

__all__ = ["sgd_update_"]


def flops(of: dict[str, Any], params: Sequence[Tensor]) -> int:
    """Of the update, ours or torch's, with these options."""
    momentum = of["momentum"] and not of["is_first_step"]
    terms = 1 + bool(of["weight_decay"]) + bool(momentum) + bool(of["nesterov"])  # each a product and a sum
    return (2 * terms + of["maximize"]) * sum(p.numel() for p in params)


@operation(
    "sgd_update_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, float lr, float weight_decay, "
    "float momentum, float dampening, bool nesterov, bool maximize, bool is_first_step, Tensor? rates=None, "
    "Tensor? turn=None) -> ()",
    others=lambda of, out: flops(of, of["params"]),
)
@torch.no_grad()
def sgd_update_twin(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    is_first_step: bool = False,
    rates: Tensor | None = None,
    turn: Tensor | None = None,
) -> None:
    # rounded in the order of torch.optim.SGD; rates (steps, 1), turn ()
    if not params:
        return
    if rates is not None and turn is not None:
        written = [*params, *(momentum_buffers if momentum else [])]
        before, (rate,) = [tensor.clone() for tensor in written], _updates.of_turn(rates, turn)
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    if momentum:
        if is_first_step:
            torch._foreach_copy_(momentum_buffers, grads)
        else:
            _updates.scale(momentum_buffers, momentum)
            torch._foreach_add_(momentum_buffers, grads, alpha=1 - dampening)
        grads = list(torch._foreach_add(grads, momentum_buffers, alpha=momentum)) if nesterov else momentum_buffers
    if rates is not None and turn is not None:
        torch._foreach_sub_(params, torch._foreach_mul(grads, rate))
        _updates.restore(written, before, rates, turn)
    else:
        torch._foreach_add_(params, grads, alpha=-lr)


def sgd_update_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    weight_decay: float = 0.0,
    *,
    momentum_buffers: Sequence[Tensor] = (),
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    is_first_step: bool = False,
    rates: Tensor | None = None,
    turn: Tensor | None = None,
) -> None:
    """One step of stochastic gradient descent in place, as torch.optim.SGD.

    ``g <- -g`` to maximize; ``g <- g + weight_decay p``; with momentum ``m <- momentum m + (1 - dampening) g``, then
    ``g <- m``, or ``g + momentum m`` with nesterov; ``p <- p - lr g``.

    Args:
        params: tensors p to update, of any sizes and floating-point dtypes, on one device, each in memory of its own.
        grads: one gradient g for each, of its shape and dtype.
        lr: learning rate, finite, at least 0.
        weight_decay: factor of the L2 penalty, finite, at least 0.
        momentum_buffers: with momentum, a tensor m for each parameter, of its shape and dtype.
        momentum: finite, at least 0; 0 is none.
        dampening: of the gradient that joins the momentum, finite.
        nesterov: Nesterov's momentum, which needs momentum and no dampening.
        maximize: ascend instead.
        is_first_step: the buffers hold nothing yet; they become the gradients.
        rates: the lr of each step (steps, 1), float64, for a CUDA Graph to replay steps that differ.
        turn: with rates, the number of the step (), int64, from 1: lr is that of row ``turn - 1`` instead, and where
            that is not there, nothing is updated.
    """
    lr, weight_decay = _checks.non_negative("lr", lr), _checks.non_negative("weight_decay", weight_decay)
    momentum, dampening = _checks.non_negative("momentum", momentum), _checks.finite("dampening", dampening)
    for name, value in (("nesterov", nesterov), ("maximize", maximize), ("is_first_step", is_first_step)):
        _checks.flag(name, value)
    params, grads = _checks.tensors("params", params), _checks.tensors("grads", grads)
    momentum_buffers = _checks.tensors("momentum_buffers", momentum_buffers) if momentum else []
    _checks.nesterov(nesterov, momentum, dampening)
    _checks.update(params, grads, {"momentum_buffers": momentum_buffers} if momentum else {}, rates, turn, columns=1)
    if not params:
        return
    options = lr, weight_decay, momentum, dampening, nesterov, maximize, is_first_step, rates, turn
    with torch.no_grad():
        _backend.serving("sgd_update_", *params, *grads, *momentum_buffers)(params, grads, momentum_buffers, *options)
    _backend.bump_versions(*params, *momentum_buffers)
