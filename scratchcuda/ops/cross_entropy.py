"""Cross-entropy with its gradient, and as a training step takes it, which writes the loss into its place; and the two
by themselves, as the drop-in needs them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._losses import REDUCTIONS
from scratchcuda.ops._registry import operation, twins
from scratchcuda.ops._steps import record, step_bytes, take_step

__all__ = ["cross_entropy", "cross_entropy_backward", "cross_entropy_step_", "cross_entropy_value"]

aten = torch.ops.aten
_MEAN, _NONE = 1, -100  # of torch's negative log-likelihood: its reduction, and a class index to skip that is none


def _by_index(scores: Tensor, y_true: Tensor) -> bool:
    return y_true.dim() == scores.dim() - 1


def _flops(by_index: int, dense: int) -> Any:
    """For each score: so many by class indices alone, and where every class has a part."""

    def count(of: dict[str, Any], out: Any) -> int:
        scores, by_rows = of["scores"], not _by_index(of["scores"], of["y_true"])
        if not (by_rows or of["label_smoothing"]):
            return by_index * int(scores.numel())
        weighting = (of["class_weights"] is not None) + 2 * (by_rows and of["label_smoothing"] > 0)
        return (dense + weighting) * int(scores.numel())

    return count


class _Terms(NamedTuple):
    """Of scores with their classes along `dim`; a row is one of the other dimensions.

    Attributes:
        dim: of the classes.
        log_p: of scores' shape, in the type of sums.
        targets: the effective ones, of scores' shape; 0 in a row that is ignored.
        losses: of each row.
        counts: of each row its weight in the mean.
        kept: whether a row is not ignored; None if all are.
    """

    dim: int
    log_p: Tensor
    targets: Tensor
    losses: Tensor
    counts: Tensor
    kept: Tensor | None

    def loss(self, reduction: str, dtype: torch.dtype) -> Tensor:
        total = self.losses if reduction == "none" else self.losses.sum()
        return (total / self.counts.sum() if reduction == "mean" else total).to(dtype)

    def gradient(self, grad: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
        scale = grad.to(self.log_p.dtype)
        scale = (scale / self.counts.sum() if reduction == "mean" else scale).expand_as(self.losses)
        if self.kept is not None:
            scale = scale.where(self.kept, 0)
        targets = -self.targets * scale.unsqueeze(self.dim)
        gradient: Tensor = aten._log_softmax_backward_data(targets, self.log_p, self.dim, self.log_p.dtype)
        return gradient.to(dtype)


def _terms(
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None,
    class_weights: Tensor | None,
    sample_weights: Tensor | None,
    smoothing: float,
) -> _Terms:
    # scores (m, c), (n, c, d...) or (c,), y_true the same or without c, class_weights (c,), sample_weights without c
    dim, dtype, kept = min(1, scores.dim() - 1), torch.promote_types(scores.dtype, torch.float32), None
    log_p = torch.log_softmax(scores, dim, dtype)
    counts = torch.ones_like(log_p.select(dim, 0)) if sample_weights is None else sample_weights.to(dtype)
    spread = counts.unsqueeze(dim) * (smoothing / scores.shape[dim]) if smoothing else None
    beside = None if class_weights is None else class_weights.to(dtype).view(-1, *[1] * (scores.dim() - dim - 1))
    if not _by_index(scores, y_true):
        targets = (1 - smoothing) * counts.unsqueeze(dim) * y_true
        targets = targets if spread is None else targets + spread
        targets = targets if beside is None else targets * beside
        return _Terms(dim, log_p, targets, -(targets * log_p).sum(dim), counts, kept)
    if ignore_index is not None:
        kept = y_true != ignore_index
        y_true, counts = y_true.where(kept, 0), counts.where(kept, 0)
    counts = counts if class_weights is None else counts * class_weights.to(dtype)[y_true]
    picked, index = (1 - smoothing) * counts if smoothing else counts, y_true.unsqueeze(dim)
    targets = torch.zeros_like(log_p).scatter(dim, index, picked.unsqueeze(dim))
    losses = -picked * log_p.gather(dim, index).squeeze(dim)  # a class that is not picked may have a score of -inf
    if spread is not None:
        spread = spread if beside is None else spread * beside
        spread = spread if kept is None else spread.where(kept.unsqueeze(dim), 0)
        targets, losses = targets + spread, losses - (spread * log_p).sum(dim)
    return _Terms(dim, log_p, targets, losses if kept is None else losses.where(kept, 0), counts, kept)


@operation(
    "cross_entropy(Tensor scores, Tensor y_true, int? ignore_index=None, Tensor? class_weights=None, "
    "Tensor? sample_weights=None, float label_smoothing=0.) -> (Tensor, Tensor)",
    others=_flops(8, 10),
)
def cross_entropy_twin(
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    # scores (m, c), y_true (m, c) or class indices (m,) -> loss (), gradient with respect to scores (m, c)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if y_true.dim() == 1 and sample_weights is None and not label_smoothing:  # torch's own is faster, and knows these
        log_p = torch.log_softmax(scores, 1, dtype)
        weights = None if class_weights is None else class_weights.to(dtype)
        given = log_p, y_true, weights, _MEAN, _NONE if ignore_index is None else ignore_index
        loss, count = aten.nll_loss_forward(*given)
        gradient = aten.nll_loss_backward(torch.ones_like(loss), *given, count)
        gradient = aten._log_softmax_backward_data(gradient, log_p, 1, dtype)
        return loss.to(scores.dtype), gradient.to(scores.dtype)
    terms = _terms(scores, y_true, ignore_index, class_weights, sample_weights, label_smoothing)
    return terms.loss("mean", scores.dtype), terms.gradient(scores.new_ones(()), "mean", scores.dtype)


def cross_entropy(
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(scores), mean over the rows, and its gradient, as torch.nn.CrossEntropyLoss.

    Args:
        scores: unnormalised log-probabilities (m, classes).
        y_true: probabilities (m, classes), or class indices (m,) of an integer dtype. Where the kernels serve a GPU,
            the range is not checked, which would wait for it: an index that is no class makes loss and gradient NaN.
        ignore_index: a class index whose rows have no part in it; the loss is the mean over the others.
        class_weights: (classes,), by which the terms of each class are multiplied; with class indices a row also counts
            in the mean by the weight of its class.
        sample_weights: (m,), by which the rows are multiplied, and by which they count in the mean.
        label_smoothing: from 0 to 1: so much of each target is shared out equally among all classes.

    Returns:
        the loss (), and its gradient with respect to scores (m, classes).
    """
    y_true = _targets(scores, y_true, class_weights, label_smoothing, sample_weights)
    weights = _given(class_weights, sample_weights)
    op = _backend.serving("cross_entropy", scores, y_true, *weights)
    ignore_index = _ignored(scores, y_true, ignore_index, op is twins.cross_entropy)
    return op(scores, y_true, ignore_index, class_weights, sample_weights, label_smoothing)


@operation(
    "cross_entropy_step_(Tensor scores, Tensor y_true, Tensor(a!) losses, Tensor(b!) step, "
    "Tensor? class_weights=None, Tensor? sample_weights=None, float label_smoothing=0.) -> Tensor",
    others=_flops(8, 10),
    moved=step_bytes,
)
def cross_entropy_step_twin(
    scores: Tensor,
    y_true: Tensor,
    losses: Tensor,
    step: Tensor,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    found = cross_entropy_twin(scores, y_true, None, class_weights, sample_weights, label_smoothing)
    return record(*found, losses, step)


def cross_entropy_step_(
    scores: Tensor,
    y_true: Tensor,
    losses: Tensor,
    step: Tensor,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """:func:`cross_entropy` in a training step, as :func:`mse_step_`; the range of class indices is not checked.

    Returns:
        the gradient with respect to scores (m, classes).
    """
    y_true = _targets(scores, y_true, class_weights, label_smoothing, sample_weights)
    options = class_weights, sample_weights, label_smoothing
    return take_step("cross_entropy_step_", "scores", scores, y_true, losses, step, *options)


@operation(
    "cross_entropy_value(Tensor scores, Tensor y_true, int? ignore_index=None, Tensor? class_weights=None, "
    'float label_smoothing=0., str reduction="mean") -> Tensor',
    others=_flops(4, 7),
)
def cross_entropy_value_twin(
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    # scores (m, c), (n, c, d...) or (c,), y_true the same or without c -> (), or of each row without reduction
    terms = _terms(scores, y_true, ignore_index, class_weights, None, label_smoothing)
    return terms.loss(reduction, scores.dtype)


def cross_entropy_value(
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The loss alone, of scores of any dimensions, as torch.nn.functional.cross_entropy.

    Args:
        scores: (m, classes), (n, classes, d...) or (classes,).
        y_true: probabilities of the same shape, or class indices of that shape without the classes.
        ignore_index, class_weights, label_smoothing: as in :func:`cross_entropy`.
        reduction: "mean", "sum" or "none".

    Returns:
        (), or, without reduction, the losses in the shape of scores without the classes: 0 where ignored.
    """
    y_true = _targets(scores, y_true, class_weights, label_smoothing)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    op = _backend.serving("cross_entropy_value", scores, y_true, *_given(class_weights))
    ignore_index = _ignored(scores, y_true, ignore_index, op is twins.cross_entropy_value)
    return op(scores, y_true, ignore_index, class_weights, label_smoothing, reduction)


@operation(
    "cross_entropy_backward(Tensor grad, Tensor scores, Tensor y_true, int? ignore_index=None, "
    'Tensor? class_weights=None, float label_smoothing=0., str reduction="mean") -> Tensor',
    others=_flops(8, 10),
)
def cross_entropy_backward_twin(
    grad: Tensor,
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    # grad (), or of each row without reduction -> as scores
    terms = _terms(scores, y_true, ignore_index, class_weights, None, label_smoothing)
    return terms.gradient(grad, reduction, scores.dtype)


def cross_entropy_backward(
    grad: Tensor,
    scores: Tensor,
    y_true: Tensor,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """``grad`` times the gradient of :func:`cross_entropy_value` with respect to scores, rounded once.

    Args:
        grad: the gradient with respect to that loss, of its shape.
        scores, y_true, ignore_index, class_weights, label_smoothing, reduction: as it takes them.

    Returns:
        of the shape of scores.
    """
    y_true = _targets(scores, y_true, class_weights, label_smoothing)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _checks.alike("grad", grad, "scores", scores)
    _checks.shape("grad", grad, _rows(scores) if reduction == "none" else ())
    op = _backend.serving("cross_entropy_backward", grad, scores, y_true, *_given(class_weights))
    ignore_index = _ignored(scores, y_true, ignore_index, op is twins.cross_entropy_backward)
    return op(grad, scores, y_true, ignore_index, class_weights, label_smoothing, reduction)


def _given(*weights: Tensor | None) -> list[Tensor]:
    return [each for each in weights if each is not None]


def _rows(scores: Tensor) -> tuple[int, ...]:
    """The shape of scores without the classes."""
    return (*scores.shape[:1], *scores.shape[2:]) if scores.dim() > 1 else ()


def _targets(
    scores: Tensor, y_true: Tensor, class_weights: Tensor | None, label_smoothing: float, *sample_weights: Tensor | None
) -> Tensor:
    """The targets, when all is checked; with sample weights, or None in their place, scores are (m, classes)."""
    _checks.floating("scores", scores)
    _checks.tensor("y_true", y_true)
    if scores.dim() != 2 if sample_weights else not scores.dim():
        expected = "(m, classes)" if sample_weights else "(m, classes), (n, classes, d...) or (classes,)"
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected {expected}")
    classes = scores.shape[min(1, scores.dim() - 1)]
    if not classes:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected at least one class")
    for name, weights, shape in [
        ("class_weights", class_weights, (classes,)),
        *(("sample_weights", weights, _rows(scores)) for weights in sample_weights),
    ]:
        if weights is not None:
            _checks.alike(name, weights, "scores", scores)
            _checks.shape(name, weights, shape)
    _checks.between("label_smoothing", label_smoothing, 0, 1)
    if _by_index(scores, y_true):
        _checks.on_device("y_true", y_true, "scores", scores.device)
        _checks.shape("y_true", y_true, _rows(scores))
        _checks.class_indices("y_true", y_true, None)
        return y_true.long()
    _checks.alike("y_true", y_true, "scores", scores)
    _checks.shape("y_true", y_true, tuple(scores.shape))
    return y_true


def _ignored(scores: Tensor, y_true: Tensor, ignore_index: int | None, by_twin: bool) -> int | None:
    """The index to ignore, when that and the others are checked, on a GPU only where the twin serves."""
    if ignore_index is not None:
        ignore_index = _checks.integer("ignore_index", ignore_index, "an integer or None")
        if not _by_index(scores, y_true):
            raise ValueError(f"ignore_index is {ignore_index}, expected None with probabilities")
    if _by_index(scores, y_true) and (by_twin or not scores.is_cuda):
        used = y_true if ignore_index is None else y_true[y_true != ignore_index]
        _checks.class_indices("y_true", used, scores.shape[min(1, scores.dim() - 1)])
    return ignore_index
