"""Elementwise losses: the mean with its gradient in one pass; as a training step takes it, which writes the loss into
its place; the value by itself, with any reduction; and backward, from grad, the gradient with respect to the value.

Each is an entry and its functions here, two formulas in ``csrc/kernels/losses.cuh``, and a loss in
:mod:`scratchcuda.engine.losses`, if a model trains with it. All else follows from the entry.

``reduction`` is "none", "mean" or "sum". A value is (), or of the shape of y_pred without reduction. Weights are of a
shape that broadcasts to that of y_pred.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scratchcuda.ops._entries import Parameter
from scratchcuda.ops._losses import Compare, Loss

__all__ = [
    "binary_cross_entropy_backward",
    "binary_cross_entropy_value",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_step_",
    "binary_cross_entropy_with_logits_value",
    "huber",
    "huber_backward",
    "huber_step_",
    "huber_value",
    "l1",
    "l1_backward",
    "l1_step_",
    "l1_value",
    "mse",
    "mse_backward",
    "mse_step_",
    "mse_value",
    "smooth_l1_backward",
    "smooth_l1_value",
]


def _compare_squares(prediction: Tensor, delta: Tensor) -> Compare:
    part, flat = delta[:, : prediction.shape[1]], delta.view(-1)

    def compare(y: Tensor, loss: Tensor) -> None:
        torch.sub(prediction, y, out=part)
        torch.dot(flat, flat, out=loss)

    return compare


MSE = Loss(
    name="mse",
    module=nn.MSELoss,
    function="mse_loss",
    torchs=torch._C._nn.mse_loss,
    formula=lambda m, p, t: (p - t) ** 2,
    derivative=lambda m, p, t: p - t,
    factor=2,
    flops=(2, 1, 2),
    compare=_compare_squares,
)


def mse(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over all elements, and its gradient, as torch.nn.MSELoss.

    Args:
        y_pred: predictions, any shape.
        y_true: targets of the same shape.

    Returns:
        the loss (), and its gradient with respect to y_pred.
    """
    return MSE.loss(y_pred, y_true)


def mse_step_(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    """:func:`mse` in a training step: writes the loss to ``losses[step]``, if it has such a place; increments step.

    Nothing waits for a GPU, so that a CUDA Graph can replay it.

    Args:
        y_pred, y_true: as mse takes them.
        losses: of all steps (steps,), of their dtype.
        step: the number of this step (), int64, at least 0.

    Returns:
        the gradient with respect to y_pred.
    """
    return MSE.step(y_pred, y_true, losses, step)


def mse_value(y_pred: Tensor, y_true: Tensor, reduction: str = "mean") -> Tensor:
    """``(y_pred - y_true)^2``, of tensors of one shape."""
    return MSE.value(y_pred, y_true, reduction)


def mse_backward(grad: Tensor, y_pred: Tensor, y_true: Tensor, reduction: str = "mean") -> Tensor:
    """The gradient of :func:`mse_value` with respect to y_pred."""
    return MSE.backward(grad, y_pred, y_true, reduction)


def _sign(m: Any, x: Any) -> Any:
    nothing = m.where(x > 0, x, 0)  # where it is chosen below: of the dtype of x, and for autograd a function of it
    return m.where(x > 0, 1, m.where(x < 0, -1, nothing))


def _compare_absolutes(prediction: Tensor, delta: Tensor) -> Compare:
    part, flat = delta[:, : prediction.shape[1]], delta.view(-1)

    def compare(y: Tensor, loss: Tensor) -> None:
        torch.sub(prediction, y, out=part)
        torch.linalg.vector_norm(flat, 1, out=loss)
        torch.sign(part, out=part)

    return compare


L1 = Loss(
    name="l1",
    module=nn.L1Loss,
    function="l1_loss",
    torchs=torch._C._nn.l1_loss,
    formula=lambda m, p, t: abs(p - t),
    derivative=lambda m, p, t: _sign(m, p - t),
    flops=(2, 3, 4),
    compare=_compare_absolutes,
)


def l1(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error over all elements, and its gradient, as torch.nn.L1Loss; see :func:`mse`."""
    return L1.loss(y_pred, y_true)


def l1_step_(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    """:func:`l1` in a training step, as :func:`mse_step_`."""
    return L1.step(y_pred, y_true, losses, step)


def l1_value(y_pred: Tensor, y_true: Tensor, reduction: str = "mean") -> Tensor:
    """``|y_pred - y_true|``, of tensors of one shape."""
    return L1.value(y_pred, y_true, reduction)


def l1_backward(grad: Tensor, y_pred: Tensor, y_true: Tensor, reduction: str = "mean") -> Tensor:
    """The gradient of :func:`l1_value` with respect to y_pred; where that is y_true, it is 0."""
    return L1.backward(grad, y_pred, y_true, reduction)


def _cut(m: Any, p: Any, t: Any, delta: float) -> Any:
    """The difference, cut to at most delta."""
    difference = p - t
    return m.where(difference > delta, delta, m.where(difference < -delta, -delta, difference))


def _huber(m: Any, p: Any, t: Any, delta: float) -> Any:
    cut = _cut(m, p, t, delta)
    return cut * (p - t - cut * 0.5)


def _compare_cut(prediction: Tensor, delta: Tensor, most: float) -> Compare:
    part, flat = delta[:, : prediction.shape[1]], delta.view(-1)
    rest = torch.zeros_like(delta)
    rest_part, rest_flat = rest[:, : prediction.shape[1]], rest.view(-1)

    def compare(y: Tensor, loss: Tensor) -> None:
        torch.sub(prediction, y, out=rest_part)
        torch.clamp(rest_part, -most, most, out=part)
        torch.sub(rest_part, part, alpha=0.5, out=rest_part)
        torch.dot(flat, rest_flat, out=loss)

    return compare


HUBER = Loss(
    name="huber",
    module=nn.HuberLoss,
    function="huber_loss",
    torchs=torch._C._nn.huber_loss,
    parameters={"delta": Parameter(1.0, least=torch.finfo(torch.float32).tiny)},  # what torch takes is above 0
    formula=_huber,
    derivative=_cut,
    flops=(6, 3, 6),
    compare=_compare_cut,
)


def huber(y_pred: Tensor, y_true: Tensor, delta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean of :func:`huber_value` over all elements, and its gradient, as torch.nn.HuberLoss; see :func:`mse`."""
    return HUBER.loss(y_pred, y_true, delta)


def huber_step_(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor, delta: float = 1.0) -> Tensor:
    """:func:`huber` in a training step, as :func:`mse_step_`."""
    return HUBER.step(y_pred, y_true, losses, step, delta)


def huber_value(y_pred: Tensor, y_true: Tensor, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """``d^2 / 2`` where ``d = |y_pred - y_true|`` is at most delta, and ``delta (d - delta / 2)`` beyond."""
    return HUBER.value(y_pred, y_true, delta, reduction)


def huber_backward(grad: Tensor, y_pred: Tensor, y_true: Tensor, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """The gradient of :func:`huber_value` with respect to y_pred."""
    return HUBER.backward(grad, y_pred, y_true, delta, reduction)


def _slope(m: Any, p: Any, t: Any, beta: float) -> Any:
    difference = p - t
    return m.where(abs(difference) >= beta, _sign(m, difference), difference / (beta or 1))  # NaN alone, of a beta of 0


def _smooth_l1(m: Any, p: Any, t: Any, beta: float) -> Any:
    slope = _slope(m, p, t, beta)
    return slope * (p - t - slope * (0.5 * beta))


SMOOTH_L1 = Loss(
    name="smooth_l1",
    module=nn.SmoothL1Loss,
    function="smooth_l1_loss",
    torchs=torch._C._nn.smooth_l1_loss,
    parameters={"beta": Parameter(1.0, least=0)},
    formula=_smooth_l1,
    derivative=_slope,
    flops=(9, 6, 9),
)


def smooth_l1_value(y_pred: Tensor, y_true: Tensor, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """``d^2 / (2 beta)`` where ``d = |y_pred - y_true|`` is less than beta, and ``d - beta / 2`` beyond."""
    return SMOOTH_L1.value(y_pred, y_true, beta, reduction)


def smooth_l1_backward(
    grad: Tensor, y_pred: Tensor, y_true: Tensor, beta: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """The gradient of :func:`smooth_l1_value` with respect to y_pred."""
    return SMOOTH_L1.backward(grad, y_pred, y_true, beta, reduction)


def _cross_entropy(m: Any, p: Any, t: Any) -> Any:
    rest, log_p, log_rest = 1 - t, m.log(p), m.log1p(-p)
    log_p, log_rest = (m.where(log < -100, -100, log) for log in (log_p, log_rest))
    return m.where(rest * t < 0, math.nan, -(rest * log_rest + t * log_p))


def _cross_entropy_derivative(m: Any, p: Any, t: Any) -> Any:
    variance = (1 - p) * p
    return (p - t) / m.where(variance < 0, math.nan, m.where(variance < 1e-12, 1e-12, variance))


BINARY_CROSS_ENTROPY = Loss(
    name="binary_cross_entropy",
    module=nn.BCELoss,
    function="binary_cross_entropy",
    torchs=torch._C._nn.binary_cross_entropy,
    of_probabilities=True,
    weights=("weight",),
    formula=_cross_entropy,
    derivative=_cross_entropy_derivative,
    flops=(12, 6, 18),
)


def binary_cross_entropy_value(
    y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """``-weight (t log p + (1 - t) log(1 - p))``, of probabilities p and targets t of one shape.

    A logarithm counts as at least -100, as torch has it. What is no probability makes the value NaN where the kernels
    serve, as to refuse it is to wait for the GPU; elsewhere torch raises RuntimeError.
    """
    return BINARY_CROSS_ENTROPY.value(y_pred, y_true, weight, reduction)


def binary_cross_entropy_backward(
    grad: Tensor, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """The gradient of :func:`binary_cross_entropy_value` with respect to y_pred, ``(p - t) / (p (1 - p))``.

    The divisor counts as at least 1e-12, as torch has it. What is no probability makes it NaN.
    """
    return BINARY_CROSS_ENTROPY.backward(grad, y_pred, y_true, weight, reduction)


def _exp_of_minus_abs(m: Any, x: Any) -> Any:
    """Chosen at 0 as where the formulas choose: autograd takes all their derivatives from one side then."""
    return m.exp(m.where(x < 0, x, -x))


def _logits(m: Any, x: Any, t: Any, positive: Any = None) -> Any:
    rest = m.log1p(_exp_of_minus_abs(m, x))
    true = t if positive is None else positive * t
    return (1 - t) * (m.where(x < 0, 0, x) + rest) + true * (m.where(x < 0, -x, 0) + rest)


def _logits_derivative(m: Any, x: Any, t: Any, positive: Any = None) -> Any:
    e = _exp_of_minus_abs(m, x)
    larger = 1 / (1 + e)
    smaller = e * larger
    true = t if positive is None else positive * t
    return (1 - t) * m.where(x < 0, smaller, larger) - true * m.where(x < 0, larger, smaller)


def _compare_logits(prediction: Tensor, delta: Tensor) -> Compare:
    part = delta[:, : prediction.shape[1]]
    values = torch.zeros_like(delta)
    values_part, flat = values[:, : prediction.shape[1]], values.view(-1)

    def compare(y: Tensor, loss: Tensor) -> None:
        # log(1 + e^x) - x y; of scores above 40 the first is x, to less than a rounding.
        torch._C._nn.softplus(prediction, 1, 40, out=values_part)  # type: ignore[call-arg]
        torch.addcmul(values_part, prediction, y, value=-1, out=values_part)
        torch.sum(flat, 0, out=loss)
        torch.sigmoid(prediction, out=part)
        torch.sub(part, y, out=part)

    return compare


BINARY_CROSS_ENTROPY_WITH_LOGITS = Loss(
    name="binary_cross_entropy_with_logits",
    module=nn.BCEWithLogitsLoss,
    function="binary_cross_entropy_with_logits",
    torchs=torch.binary_cross_entropy_with_logits,
    weights=("weight", "pos_weight"),
    formula=_logits,
    derivative=_logits_derivative,
    flops=(10, 10, 16),
    compare=_compare_logits,
)


def binary_cross_entropy_with_logits(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy of sigmoid(y_pred) over all elements, and its gradient, as torch.nn.BCEWithLogitsLoss.

    Computed from the scores y_pred, so that none of them makes it inf or NaN; see :func:`mse`.
    """
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.loss(y_pred, y_true)


def binary_cross_entropy_with_logits_step_(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    """:func:`binary_cross_entropy_with_logits` in a training step, as :func:`mse_step_`."""
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.step(y_pred, y_true, losses, step)


def binary_cross_entropy_with_logits_value(
    y_pred: Tensor,
    y_true: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``-weight (pos_weight t log p + (1 - t) log(1 - p))``, with ``p = sigmoid(y_pred)``, for targets t."""
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.value(y_pred, y_true, weight, pos_weight, reduction)


def binary_cross_entropy_with_logits_backward(
    grad: Tensor,
    y_pred: Tensor,
    y_true: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The gradient of :func:`binary_cross_entropy_with_logits_value` with respect to y_pred."""
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.backward(grad, y_pred, y_true, weight, pos_weight, reduction)
