"""Forward and backward of the drop-in functions on the kernels, as autograd Functions.

Each is entered only where a gradient is asked for, and saves and computes nothing that no gradient needs. It keeps the
namespace of its kernels, torch.ops.<kernels>: a backward runs on another thread, and maybe under another backend. Where
a backward is itself recorded, for second derivatives, the twins serve, which torch can differentiate.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from scratchcuda import tensor_ops


def linear(kernels: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    # x (..., n_in), weight (n_out, n_in), bias (n_out,) -> (..., n_out)
    if not _records(x, weight, bias):
        return _ops(kernels).dense(x, weight.T, bias, activation)
    result: Tensor = _Linear.apply(x, weight, bias, activation, kernels)
    return result


def activation(kernels: str, z: Tensor, name: str, *dim: int) -> Tensor:
    if not _records(z):
        return getattr(_ops(kernels), name)(z, *dim)
    result: Tensor = _Activation.apply(z, name, dim, kernels)
    return result


def loss(kernels: str, name: str, y_pred: Tensor, y_true: Tensor, *options: int) -> Tensor:
    if not _records(y_pred):
        return getattr(_ops(kernels), name)(y_pred, y_true, *options)[0]
    result: Tensor = _Loss.apply(y_pred, y_true, name, options, kernels)
    return result


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, kernels: str) -> Tensor:
        a = _ops(kernels).dense(x, weight.T, bias, activation)
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None, a if activation != "none" else None)
        ctx.activation, ctx.kernels = activation, kernels
        ctx.set_materialize_grads(False)
        return a

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        if delta is None:
            return None, None, None, None, None
        x, weight, a = ctx.saved_tensors
        ops = _ops_of_backward(ctx.kernels)
        if a is not None:
            delta = getattr(ops, f"{ctx.activation}_backward")(delta, a)
        dx = dw = db = None
        if weight is not None:
            dx = ops.dense_backward_input(delta, weight.T)
        if x is not None:
            dw, db = ops.dense_backward_weights(delta, x)
            dw = dw.T
        elif ctx.needs_input_grad[2]:
            db = delta.sum_to_size(delta.shape[-1:])
        return dx, dw, db if ctx.needs_input_grad[2] else None, None, None


class _Activation(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, name: str, dim: tuple[int, ...], kernels: str) -> Tensor:
        a: Tensor = getattr(_ops(kernels), name)(z, *dim)
        ctx.save_for_backward(a)
        ctx.op, ctx.dim, ctx.kernels = name, dim, kernels
        ctx.set_materialize_grads(False)
        return a

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        if delta is None:
            return None, None, None, None
        (a,) = ctx.saved_tensors
        return getattr(_ops_of_backward(ctx.kernels), f"{ctx.op}_backward")(delta, a, *ctx.dim), None, None, None


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, y_pred: Tensor, y_true: Tensor, name: str, options: tuple[int, ...], kernels: str) -> Tensor:
        value, gradient = getattr(_ops(kernels), name)(y_pred, y_true, *options)
        ctx.save_for_backward(y_pred, y_true, gradient)
        ctx.op, ctx.options, ctx.kernels = name, options, kernels
        ctx.set_materialize_grads(False)
        return value

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        if delta is None:
            return None, None, None, None, None
        y_pred, y_true, gradient = ctx.saved_tensors
        ops = _ops_of_backward(ctx.kernels)
        if ops is tensor_ops:  # as a function of the predictions
            gradient = getattr(ops, ctx.op)(y_pred, y_true, *ctx.options)[1]
        return gradient * delta, None, None, None, None


def _records(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _ops(kernels: str) -> Any:
    return getattr(torch.ops, kernels)


def _ops_of_backward(kernels: str) -> Any:
    """The kernels, or, where the backward is recorded, their twins."""
    return tensor_ops if torch.is_grad_enabled() else _ops(kernels)
