"""What is right of cross-entropy, and torch's."""

import numpy as np
import torch
from losses import theirs
from oracle import TRUTH, added
from torch.nn import functional


def terms(m, scores, y_true, ignored, class_weights, smoothing, sample_weights=None):
    """With the classes last: scores, log p and the effective targets; what each row counts in the mean."""
    number, by_index = scores.dtype.type, y_true.ndim < scores.ndim
    z = np.moveaxis(scores, min(1, scores.ndim - 1), -1)
    classes = np.arange(z.shape[-1])
    given = (
        (y_true[..., None] == classes).astype(number) if by_index else np.moveaxis(y_true, min(1, y_true.ndim - 1), -1)
    )
    weights = np.ones(len(classes), number) if class_weights is None else class_weights
    of_row = np.ones(z.shape[:-1], number) if sample_weights is None else sample_weights
    of_row = np.where(ignored is not None and by_index and y_true == ignored, number(0), of_row)[..., None]
    smoothed = number(1 - smoothing) * given + number(smoothing / max(1, len(classes)))
    targets = of_row * weights * smoothed
    if by_index:
        targets = np.where(of_row * smoothed == 0, number(0), targets)
        of_row = added(np.where(given == 1, of_row * weights, number(0)))
    shifted = z - z.max(-1, keepdims=True, initial=-np.inf)
    return z, shifted - m.log(added(m.exp(shifted))), targets, of_row


def reduced(losses, counts, reduction):
    losses = added(losses)[..., 0]
    return losses if reduction == "none" else added(losses.ravel())[..., 0] / divisor(counts, reduction)


def scaled(values, grad, counts, reduction, scores):
    scale = np.where(counts == 0, scores.dtype.type(0), np.asarray(grad)[..., None] / divisor(counts, reduction))
    return np.moveaxis(values * scale, -1, min(1, scores.ndim - 1))


def divisor(counts, reduction):
    return added(counts.ravel())[..., 0] if reduction == "mean" else counts.dtype.type(1)


def value(m, scores, y_true, ignored, class_weights, smoothing, reduction, *sample_weights):
    _, log_p, targets, counts = terms(m, scores, y_true, ignored, class_weights, smoothing, *sample_weights)
    no_part = (targets == 0) & (y_true.ndim < scores.ndim)
    return (reduced(np.where(no_part, 0, -targets * log_p), counts, reduction),)


def value_sizes(scores, y_true, ignored, class_weights, smoothing, reduction, *sample_weights):
    z, log_p, targets, counts = terms(TRUTH, abs(scores), y_true, ignored, class_weights, smoothing, *sample_weights)
    return (reduced(targets * (2 * z - log_p), counts, reduction),)


def backward(m, grad, scores, y_true, ignored, class_weights, smoothing, reduction, *sample_weights):
    _, log_p, targets, counts = terms(m, scores, y_true, ignored, class_weights, smoothing, *sample_weights)
    return (scaled(m.exp(log_p) * added(targets) - targets, grad, counts, reduction, scores),)


def backward_sizes(grad, scores, y_true, ignored, class_weights, smoothing, reduction, *sample_weights):
    _, _, targets, counts = terms(TRUTH, scores, y_true, ignored, class_weights, smoothing, *sample_weights)
    return (scaled(added(targets) + targets, abs(grad), counts, reduction, scores),)


def both(m, scores, y_true, ignored=None, class_weights=None, sample_weights=None, smoothing=0.0):
    args = scores, y_true, ignored, class_weights, smoothing, "mean", sample_weights
    return *value(m, *args), *backward(m, scores.dtype.type(1), *args)


def both_sizes(scores, y_true, ignored=None, class_weights=None, sample_weights=None, smoothing=0.0):
    args = scores, y_true, ignored, class_weights, smoothing, "mean", sample_weights
    return *value_sizes(*args), *backward_sizes(1, *args)


def torchs(scores, y_true, ignored, class_weights, smoothing, reduction):
    skipped = -100 if ignored is None else ignored
    options = {"ignore_index": skipped, "label_smoothing": smoothing, "reduction": reduction}
    return functional.cross_entropy(scores, y_true, class_weights, **options)


def torchs_backward(grad, scores, *args):
    leaf = scores.clone().requires_grad_()
    return torch.autograd.grad(torchs(leaf, *args), leaf, grad)[0]


@theirs
def torchs_both(scores, y_true, ignored=None, class_weights=None, sample_weights=None, smoothing=0.0):
    """torch has no sample weights."""
    losses = torchs(scores, y_true, ignored, class_weights, smoothing, "none")
    weights = torch.ones_like(losses) if sample_weights is None else sample_weights
    if y_true.dim() == 1:
        counts = weights if class_weights is None else weights * class_weights[y_true.clamp(0)]
        counts = counts if ignored is None else counts * (y_true != ignored)
        return (weights * losses).sum() / counts.sum()
    return (weights * losses).sum() / weights.sum()
