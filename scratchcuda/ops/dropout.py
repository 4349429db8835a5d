"""Dropout with the noise given: who trains draws it, as torch does."""

from torch import Tensor

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._registry import operation

__all__ = ["dropout"]


@operation("dropout(Tensor x, Tensor noise) -> Tensor", others=1)
def dropout_twin(x: Tensor, noise: Tensor) -> Tensor:
    # x (...), noise (...) -> (...)
    return x * noise


def dropout(x: Tensor, noise: Tensor) -> Tensor:
    """``x noise``; and, of a gradient with respect to that, the gradient with respect to x.

    Args:
        x: input, or gradient (...).
        noise: 0 where a value is dropped, else 1 / (1 - p), of x's shape:
            ``torch.nn.functional.dropout(torch.ones_like(x), p)``.

    Returns:
        (...).
    """
    _checks.floating("x", x)
    _checks.alike("noise", noise, "x", x)
    _checks.shape("noise", noise, tuple(x.shape))
    return _backend.serving("dropout", x, noise)(x, noise)
