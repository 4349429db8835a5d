"""How far two sets of numbers are apart, and how often predictions hit."""

from typing import Any

import torch
from torch import Tensor


def mape(y_true: Any, y_pred: Any) -> float:
    """Mean absolute percentage error as a fraction, mean of ``|y_true - y_pred| / |y_true|``.

    Where y_true is 0 the term is ``|y_pred|``, as the documents define it.

    Args:
        y_true, y_pred: tensors, arrays, lists or numbers of one shape; computed in float64.

    Raises:
        ValueError: for different shapes, or no elements.
    """
    true, pred = _float64(y_true, y_pred)
    return _mean_relative(true, pred, true.abs())


def smape(y_true: Any, y_pred: Any) -> float:
    """Symmetric MAPE as a fraction, from 0 to 2: mean of ``|y_true - y_pred| / ((|y_true| + |y_pred|) / 2)``.

    Where y_true is 0 the term is ``|y_pred|``, as in :func:`mape`. Arguments and errors as there.
    """
    true, pred = _float64(y_true, y_pred)
    return _mean_relative(true, pred, (true.abs() + pred.abs()) / 2)


def accuracy(y_true: Any, y_pred: Any) -> float:
    """The share of the samples whose class is predicted right, from 0 to 1.

    Of several classes the one with the largest score or probability is predicted, the first of several. One output is
    the probability of class 1, which is predicted from 1/2 on.

    Args:
        y_true: classes (m,) or (m, 1), or as many columns as y_pred, of which the largest is the class.
        y_pred: scores or probabilities (m, classes); or probabilities (m,) or (m, 1).

    Raises:
        ValueError: for other shapes, or no samples.
    """
    true, pred = (torch.as_tensor(y, device="cpu").detach() for y in (y_true, y_pred))
    true, pred = (y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y for y in (true, pred))
    if pred.dim() not in (1, 2) or true.shape not in (pred.shape, pred.shape[:1]):
        expected = f"classes {tuple(pred.shape[:1])} or rows {tuple(pred.shape)} as y_pred"
        raise ValueError(f"y_true has shape {tuple(true.shape)}, expected {expected}")
    _not_empty(true)
    if pred.dim() == 1:
        return ((pred >= 0.5) == (true >= 0.5)).double().mean().item()
    return (pred.argmax(1) == (true if true.dim() == 1 else true.argmax(1))).double().mean().item()


def _mean_relative(true: Tensor, pred: Tensor, scale: Tensor) -> float:
    return torch.where(true == 0, pred.abs(), (true - pred).abs() / scale).mean().item()


def _float64(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    true, pred = (torch.as_tensor(y, dtype=torch.float64, device="cpu").detach() for y in (y_true, y_pred))
    if true.shape != pred.shape:
        raise ValueError(f"y_pred has shape {tuple(pred.shape)}, expected {tuple(true.shape)} as y_true")
    _not_empty(true)
    return true, pred


def _not_empty(true: Tensor) -> None:
    if true.numel() == 0:
        raise ValueError(f"y_true is empty (shape {tuple(true.shape)}), expected at least one element")
