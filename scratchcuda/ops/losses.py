"""Losses, each with its gradient; and as a training step takes them, which writes the loss into its place."""

from typing import Any

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._bytes import stored, total
from scratchcuda.ops._registry import operation, twins

__all__ = ["cross_entropy", "cross_entropy_step_", "mse", "mse_step_"]

aten = torch.ops.aten
_MEAN, _NONE = 1, -100  # of torch's negative log-likelihood: its reduction, and a class index to skip that is none


@operation("mse(Tensor y_pred, Tensor y_true) -> (Tensor, Tensor)", others=4)
def mse_twin(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    # y_pred, y_true of one shape -> loss (), gradient with respect to y_pred
    difference = y_pred - y_true
    return difference.square().mean(), difference * (2 / max(1, difference.numel()))


def mse(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over all elements, and its gradient, as torch.nn.MSELoss.

    Args:
        y_pred: predictions, any shape.
        y_true: targets of the same shape.

    Returns:
        the loss (), and its gradient with respect to y_pred.
    """
    _predictions(y_pred, y_true)
    return _backend.serving("mse", y_pred, y_true)(y_pred, y_true)


def _cross_entropy_flops(of: dict[str, Any], out: Any) -> int:
    return (8 if of["y_true"].dim() == 1 else 10) * of["scores"].numel()


@operation(
    "cross_entropy(Tensor scores, Tensor y_true, int? ignore_index=None) -> (Tensor, Tensor)",
    others=_cross_entropy_flops,
)
def cross_entropy_twin(scores: Tensor, y_true: Tensor, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
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


def cross_entropy(scores: Tensor, y_true: Tensor, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(scores), mean over the rows, and its gradient, as torch.nn.CrossEntropyLoss.

    Args:
        scores: unnormalised log-probabilities (m, classes).
        y_true: probabilities (m, classes), or class indices (m,) of an integer dtype. Where the kernels serve a GPU,
            the range is not checked, which would wait for it: an index that is no class makes loss and gradient NaN.
        ignore_index: a class index whose rows have no part in it; the loss is the mean over the others.

    Returns:
        the loss (), and its gradient with respect to scores (m, classes).
    """
    y_true = _targets(scores, y_true)
    if ignore_index is not None:
        ignore_index = _checks.integer("ignore_index", ignore_index, "an integer or None")
        if y_true.dim() != 1:
            raise ValueError(f"ignore_index is {ignore_index}, expected None with probabilities")
    op = _backend.serving("cross_entropy", scores, y_true)
    if y_true.dim() == 1 and (op is twins.cross_entropy or not scores.is_cuda):
        used = y_true if ignore_index is None else y_true[y_true != ignore_index]
        _checks.class_indices("y_true", used, scores.shape[1])
    return op(scores, y_true, ignore_index)


def _step_bytes(of: dict[str, Any], out: Any) -> int:
    """Of the losses one place is written."""
    read = [value for name, value in of.items() if name != "losses"]
    return total(read) + total(out) + of["losses"].itemsize + stored(of["step"])


@operation(
    "mse_step_(Tensor y_pred, Tensor y_true, Tensor(a!) losses, Tensor(b!) step) -> Tensor",
    others=4,
    moved=_step_bytes,
)
def mse_step_twin(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    return _record(*mse_twin(y_pred, y_true), losses, step)


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
    _predictions(y_pred, y_true)
    return _step("mse_step_", "y_pred", y_pred, y_true, losses, step)


@operation(
    "cross_entropy_step_(Tensor scores, Tensor y_true, Tensor(a!) losses, Tensor(b!) step) -> Tensor",
    others=_cross_entropy_flops,
    moved=_step_bytes,
)
def cross_entropy_step_twin(scores: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    return _record(*cross_entropy_twin(scores, y_true), losses, step)


def cross_entropy_step_(scores: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    """:func:`cross_entropy` in a training step, as :func:`mse_step_`; the range of class indices is not checked.

    Returns:
        the gradient with respect to scores (m, classes).
    """
    return _step("cross_entropy_step_", "scores", scores, _targets(scores, y_true), losses, step)


def _record(loss: Tensor, gradient: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    # losses (steps,), step ()
    here = torch.arange(len(losses), device=losses.device) == step
    losses.copy_(torch.where(here, loss, losses))
    step.add_(1)
    return gradient


def _step(name: str, first: str, y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    _checks.alike("losses", losses, first, y_pred)
    if losses.dim() != 1:
        raise ValueError(f"losses has shape {tuple(losses.shape)}, expected (steps,)")
    _checks.writable("losses", losses)
    _checks.numbers("step", step, y_pred, 0)
    with torch.no_grad():
        gradient: Tensor = _backend.serving(name, y_pred, y_true)(y_pred, y_true, losses, step)
    _backend.bump_versions(losses, step)
    return gradient


def _predictions(y_pred: Tensor, y_true: Tensor) -> None:
    _checks.floating("y_pred", y_pred)
    _checks.alike("y_true", y_true, "y_pred", y_pred)
    _checks.shape("y_true", y_true, tuple(y_pred.shape))


def _targets(scores: Tensor, y_true: Tensor) -> Tensor:
    _checks.floating("scores", scores)
    _checks.tensor("y_true", y_true)
    if scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected (m, classes)")
    if y_true.dim() == 1:
        _checks.on_device("y_true", y_true, "scores", scores.device)
        _checks.same_length("y_true", y_true, "scores", scores)
        _checks.class_indices("y_true", y_true, None)
        return y_true.long()
    _checks.alike("y_true", y_true, "scores", scores)
    _checks.shape("y_true", y_true, tuple(scores.shape))
    return y_true
