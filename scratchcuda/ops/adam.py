"""The updates of torch.optim.Adam and AdamW on a list of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks, _updates
from scratchcuda.ops._registry import operation

__all__ = ["adam_update_"]


def flops(of: dict[str, Any], params: Sequence[Tensor]) -> int:
    """Of the update, ours or torch's, with these options."""
    # the averages 3 and 4, the root over its correction, and eps, 3, the step 3
    terms = 13 + of["maximize"] + of["amsgrad"]
    if of["weight_decay"]:  # a product, and, where it joins the gradient, a sum
        terms += 1 if of.get("decoupled_weight_decay") else 2
    return terms * sum(p.numel() for p in params)


@operation(
    "adam_update_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "bool decoupled_weight_decay, bool amsgrad, bool maximize, int step, Tensor? rates=None, Tensor? turn=None) -> ()",
    others=lambda of, out: flops(of, of["params"]),
)
@torch.no_grad()
def adam_update_twin(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    lr: Any,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    amsgrad: bool,
    maximize: bool,
    step: int,
    rates: Tensor | None = None,
    turn: Tensor | None = None,
) -> None:
    # rounded in the order of torch.optim.Adam; rates (steps, 3), turn ()
    if not params:
        return
    correction1: Any = 1 - beta1**step
    correction2_root: Any = (1 - beta2**step) ** 0.5
    if rates is not None and turn is not None:
        written = [*params, *exp_avgs, *exp_avg_sqs, *(max_exp_avg_sqs if amsgrad else [])]
        before = [tensor.clone() for tensor in written]
        lr, correction1, correction2_root = _updates.of_turn(rates, turn)
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if weight_decay and decoupled_weight_decay:
        _updates.scale(params, 1 - lr * weight_decay)
    elif weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    _updates.scale(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    if amsgrad:
        torch._foreach_maximum_(max_exp_avg_sqs, exp_avg_sqs)
    denominators = torch._foreach_sqrt(max_exp_avg_sqs if amsgrad else exp_avg_sqs)
    torch._foreach_div_(denominators, correction2_root)
    torch._foreach_add_(denominators, eps)
    if rates is not None and turn is not None:  # torch has no such op that takes its number from a device
        updates = torch._foreach_div(torch._foreach_mul(exp_avgs, lr / correction1), denominators)
        torch._foreach_sub_(params, updates)
        _updates.restore(written, before, rates, turn)
    else:
        torch._foreach_addcdiv_(params, exp_avgs, denominators, -lr / correction1)


def adam_update_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    lr: float,
    *,
    max_exp_avg_sqs: Sequence[Tensor] = (),
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    maximize: bool = False,
    step: int,
    rates: Tensor | None = None,
    turn: Tensor | None = None,
) -> None:
    """One step of Adam in place, as torch.optim.Adam and AdamW.

    ``g <- -g`` to maximize; ``g <- g + weight_decay p``, or, decoupled, ``p <- p - lr weight_decay p``;
    ``m <- m + (1 - beta1) (g - m)``; ``v <- beta2 v + (1 - beta2) g^2``; with amsgrad ``u <- max(u, v)``, which then
    stands for v in ``p <- p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)``.

    Args:
        params: tensors p to update, of any sizes and floating-point dtypes, on one device, each in memory of its own.
        grads: one gradient g for each, of its shape and dtype.
        exp_avgs: a tensor m for each, of its shape and dtype; zeros before the first step.
        exp_avg_sqs: a tensor v for each, likewise.
        lr: learning rate, finite, at least 0.
        max_exp_avg_sqs: with amsgrad, a tensor u for each, likewise.
        betas: beta1 and beta2, each at least 0 and less than 1.
        eps: finite, at least 0.
        weight_decay: factor of the L2 penalty, or of the decay, finite, at least 0.
        decoupled_weight_decay: the decay is not part of the gradient, as in AdamW.
        amsgrad: the largest v of all steps is what counts.
        maximize: ascend instead.
        step: the number of this step, from 1.
        rates: the numbers of each step (steps, 3), float64: ``lr, 1 - beta1^step, sqrt(1 - beta2^step)``, for a CUDA
            Graph to replay steps that differ.
        turn: with rates, the number of the step (), int64, from 1: these numbers are those of row ``turn - 1``
            instead, and where that is not there, nothing is updated.
    """
    lr, eps = _checks.non_negative("lr", lr), _checks.non_negative("eps", eps)
    weight_decay = _checks.non_negative("weight_decay", weight_decay)
    beta1, beta2 = _checks.betas(betas)
    flags = {"decoupled_weight_decay": decoupled_weight_decay, "amsgrad": amsgrad, "maximize": maximize}
    for name, value in flags.items():
        _checks.flag(name, value)
    step = _checks.positive_int("step", step)
    params, grads = _checks.tensors("params", params), _checks.tensors("grads", grads)
    exp_avgs, exp_avg_sqs = _checks.tensors("exp_avgs", exp_avgs), _checks.tensors("exp_avg_sqs", exp_avg_sqs)
    max_exp_avg_sqs = _checks.tensors("max_exp_avg_sqs", max_exp_avg_sqs) if amsgrad else []
    state = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs} | (
        {"max_exp_avg_sqs": max_exp_avg_sqs} if amsgrad else {}
    )
    _checks.update(params, grads, state, rates, turn, columns=3)
    if not params:
        return
    tensors = params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs
    options = lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, amsgrad, maximize, step, rates, turn
    with torch.no_grad():
        _backend.serving("adam_update_", *(t for each in tensors for t in each))(*tensors, *options)
    _backend.bump_versions(*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs)
