"""Every operation of :mod:`scratchcuda.ops` in plain tensor operations.

These twins are what the layers compute with, and the oracle of the CUDA kernels. Each has the signature of its op,
checks nothing (``ops`` does), and is built from torch's own differentiable functions, so autograd, ``torch.func`` and
fake tensors go straight through it. The tensor plan binds the same formulas once more, on buffers of its own: to see an
edit here in training, call ``fit(plan=False)``, or patch a method, which rules the plan out.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten
_MEAN, _NONE = 1, -100  # of torch's negative log-likelihood: its reduction, and a class index to skip that is none

# In place, on the fresh output of the product: one buffer less than torch.tanh(linear(...)).
_ACTIVATE = {"none": lambda z: z, "relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_}


def dense(x: Tensor, w: Tensor, b: Tensor | None, activation: str) -> Tensor:
    # x (..., n_in), w (n_in, n_out), b (n_out,) -> (..., n_out)
    z = functional.linear(x, w.mT, b)
    return torch.softmax(z, -1) if activation == "softmax" else _ACTIVATE[activation](z)


def dense_backward_input(delta: Tensor, w: Tensor, a: Tensor | None = None, activation: str = "none") -> Tensor:
    # delta (..., n_out), w (n_in, n_out), a (..., n_in) -> dx (..., n_in)
    dx = delta @ w.mT
    return dx if a is None or activation == "none" else _DIFFERENTIATE[activation](dx, a)


def dense_backward_weights(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    # delta (..., n_out), x (..., n_in) -> dw (n_in, n_out), in memory as torch.nn's weights (n_out, n_in), db (n_out,)
    rows, inputs = _rows(delta), _rows(x)
    return (rows.mT @ inputs).mT, rows.sum(0)


def _rows(x: Tensor) -> Tensor:
    # (..., n) -> (m, n); -1 for m would be ambiguous beside 0 features
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@torch.no_grad()
def dense_update_(delta: Tensor, x: Tensor, w: Tensor, b: Tensor, lr: float, weight_decay: float) -> None:
    # delta (..., n_out), x (..., n_in), w (n_in, n_out), b (n_out,)
    rows, inputs = _rows(delta), _rows(x)
    # In the order in which the weights lie: to add a gradient in another takes many times as long.
    dw = inputs.mT @ rows if w.is_contiguous() else (rows.mT @ inputs).mT
    sgd_update_([w], [dw], [], lr, weight_decay)
    sgd_update_([b], [rows.sum(0)], [], lr)


def relu(z: Tensor) -> Tensor:
    return torch.relu(z)


def sigmoid(z: Tensor) -> Tensor:
    return torch.sigmoid(z)


def tanh(z: Tensor) -> Tensor:
    return torch.tanh(z)


def softmax(z: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(z, dim)


def relu_backward(delta: Tensor, a: Tensor) -> Tensor:
    return aten.threshold_backward(delta, a, 0)


def sigmoid_backward(delta: Tensor, a: Tensor) -> Tensor:
    return aten.sigmoid_backward(delta, a)


def tanh_backward(delta: Tensor, a: Tensor) -> Tensor:
    return aten.tanh_backward(delta, a)


def softmax_backward(delta: Tensor, a: Tensor, dim: int = -1) -> Tensor:
    return aten._softmax_backward_data(delta, a, dim, a.dtype)


_DIFFERENTIATE = {"relu": relu_backward, "sigmoid": sigmoid_backward, "tanh": tanh_backward}


def mse(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    # y_pred, y_true of one shape -> loss (), gradient with respect to y_pred
    difference = y_pred - y_true
    return difference.square().mean(), difference * (2 / max(1, difference.numel()))


def cross_entropy(scores: Tensor, y_true: Tensor, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
    # scores (m, c), y_true (m, c) or class indices (m,) -> loss (), gradient with respect to scores (m, c)
    log_p = torch.log_softmax(scores, 1)
    if y_true.dim() == 1:
        ignored = _NONE if ignore_index is None else ignore_index
        loss, count = aten.nll_loss_forward(log_p, y_true, None, _MEAN, ignored)
        gradient = aten.nll_loss_backward(torch.ones_like(loss), log_p, y_true, None, _MEAN, ignored, count)
    else:
        loss = (y_true * log_p).sum() / -len(scores)
        gradient = y_true / -len(scores)
    return loss, aten._log_softmax_backward_data(gradient, log_p, 1, scores.dtype)


def mse_step_(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    return _record(*mse(y_pred, y_true), losses, step)


def cross_entropy_step_(scores: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    return _record(*cross_entropy(scores, y_true), losses, step)


def _record(loss: Tensor, gradient: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    # losses (steps,), step ()
    here = torch.arange(len(losses), device=losses.device) == step
    losses.copy_(torch.where(here, loss, losses))
    step.add_(1)
    return gradient


def take_batch_(
    x: Tensor, y: Tensor, order: Tensor, step: Tensor, batch_size: int, x_batch: Tensor, y_batch: Tensor
) -> None:
    # x (samples, n_in), y (samples, ...), order (samples,), step () -> x_batch (m, n_in), y_batch (m, ...)
    rows = order[step * batch_size + torch.arange(len(x_batch), device=x.device)]
    torch.index_select(x, 0, rows, out=x_batch)
    torch.index_select(y, 0, rows, out=y_batch)


@torch.no_grad()
def sgd_update_(
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
) -> None:
    # rounded in the order of torch.optim.SGD
    if not params:
        return
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    if momentum:
        if is_first_step:
            torch._foreach_copy_(momentum_buffers, grads)
        else:
            torch._foreach_mul_(momentum_buffers, momentum)
            torch._foreach_add_(momentum_buffers, grads, alpha=1 - dampening)
        grads = list(torch._foreach_add(grads, momentum_buffers, alpha=momentum)) if nesterov else momentum_buffers
    torch._foreach_add_(params, grads, alpha=-lr)
