"""Softmax over a dimension, ``a_i = exp(z_i) / sum_j exp(z_j)``, and its backward, ``a (delta - sum(delta a))``."""

from functools import partial

import torch
from torch import Tensor, nn

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._entries import Entry
from scratchcuda.ops._registry import operation

__all__ = ["softmax", "softmax_backward"]

aten = torch.ops.aten


@operation("softmax(Tensor z, int dim=-1) -> Tensor", others=5)
def softmax_twin(z: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(z, dim)


@operation("softmax_backward(Tensor delta, Tensor a, int dim=-1) -> Tensor", others=4)
def softmax_backward_twin(delta: Tensor, a: Tensor, dim: int = -1) -> Tensor:
    result: Tensor = aten._softmax_backward_data(delta, a, dim, a.dtype)
    return result


#: As an activation of a dense layer, over the last dimension; in the tensor plan features come first.
Entry(
    name="softmax",
    module=nn.Softmax,
    forward=softmax_twin,
    in_place=softmax_twin,
    into=partial(torch._softmax, dim=0, half_to_float=False),
    gradient=aten._softmax_backward_data,
    arguments=lambda a: (a, 0, a.dtype),
    out="out",
    known={"dim": (1, -1)},
    flops=(5, 4),
)


def softmax(z: Tensor, dim: int = -1) -> Tensor:
    """``exp(z_i) / sum_j exp(z_j)`` over the dimension ``dim``, any shape."""
    _checks.floating("z", z)
    dim = _checks.dim("dim", dim, "z", z)
    return _backend.serving("softmax", z)(z, dim)


def softmax_backward(delta: Tensor, a: Tensor, dim: int = -1) -> Tensor:
    """``a (delta - sum(delta a))``, sums over the dimension ``dim``; with ``a = softmax(z, dim)`` of the same shape."""
    _checks.outputs(delta, a)
    dim = _checks.dim("dim", dim, "delta", delta)
    return _backend.serving("softmax_backward", delta, a)(delta, a, dim)
