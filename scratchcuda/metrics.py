"""How far two sets of numbers are apart."""

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


def _mean_relative(true: Tensor, pred: Tensor, scale: Tensor) -> float:
    return torch.where(true == 0, pred.abs(), (true - pred).abs() / scale).mean().item()


def _float64(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    true, pred = (torch.as_tensor(y, dtype=torch.float64, device="cpu").detach() for y in (y_true, y_pred))
    if true.shape != pred.shape:
        raise ValueError(f"y_pred has shape {tuple(pred.shape)}, expected {tuple(true.shape)} as y_true")
    if true.numel() == 0:
        raise ValueError(f"y_true is empty (shape {tuple(true.shape)}), expected at least one element")
    return true, pred
