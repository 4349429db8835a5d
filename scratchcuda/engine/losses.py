"""Losses: each is callable and has ``backward``, the gradient with respect to the predictions.

What is computed stands in :mod:`scratchcuda.ops.losses` and :mod:`scratchcuda.ops.cross_entropy`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from scratchcuda import ops
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.engine.objective import Objective
from scratchcuda.ops import _checks
from scratchcuda.ops._losses import LOSSES

__all__ = ["L1", "MSE", "BinaryCrossEntropy", "CrossEntropy", "Huber", "Losses"]


class Losses:
    """Base class of losses.

    One of your own needs ``loss(y_pred, y_true)``, a float, and ``backward(y_pred, y_true)``, the gradient with
    respect to y_pred. Where both take ``sample_weight`` (m,) besides, fit and evaluate take it too.
    """

    #: Whether targets may be class indices.
    takes_classes = False

    def loss(self, y_pred: Tensor, y_true: Tensor) -> float:
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def backward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def loss_and_gradient(self, y_pred: Tensor, y_true: Tensor, **weights: Tensor) -> tuple[float | Tensor, Tensor]:
        """Loss and gradient of a training step, for targets from as_targets.

        A loss that is a tensor () stays on its device until the epoch has ended.
        """
        return self(y_pred, y_true, **weights), self.backward(y_pred, y_true, **weights)

    def __call__(self, y_pred: Tensor, y_true: Tensor, **weights: Tensor) -> float:
        return self.loss(y_pred, y_true, **weights)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Targets for predictions of this shape, dtype and device, or an error that names the argument."""
        targets = _placed(name, y, like)
        return targets.to(like.dtype) if targets.is_floating_point() else targets

    def objective(self, like: Tensor) -> Objective:
        """It, as the ops know it, for predictions of the dtype and device of ``like``."""
        raise NotImplementedError(f"{type(self).__name__} is computed by no op")

    def to_torch(self) -> nn.Module:
        """torch.nn's loss of the same meaning: of the scores, if an activation belongs to the loss."""
        raise TypeError(f"loss_f is {self!r}, which torch.nn has no module for")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Elementwise(Losses):
    """Base class of losses that are means over all elements, of predictions that are compared as they are.

    Targets are of any real dtype, of the shape of the predictions (m, n_out), or (m,) for one output.
    """

    #: The name of its ops; their parameters are attributes.
    op: str

    def loss(self, y_pred: Tensor, y_true: Tensor) -> float:
        return self.objective(y_pred).of(y_pred, _targets(self, y_pred, y_true))[0].item()

    def backward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self.objective(y_pred).of(y_pred, _targets(self, y_pred, y_true))[1]

    def loss_and_gradient(self, y_pred: Tensor, y_true: Tensor, **weights: Tensor) -> tuple[float | Tensor, Tensor]:
        if original(self):
            return self.objective(y_pred).of(y_pred, y_true)
        return super().loss_and_gradient(y_pred, y_true, **weights)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return _elements(name, y, shape, like).to(like.dtype)

    def objective(self, like: Tensor) -> Objective:
        given = self._parameters
        return Objective(self.op, dict(zip(given, LOSSES[self.op].checked_values([*given.values()]), strict=True)))

    @property
    def _parameters(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in LOSSES[self.op].parameters}

    def to_torch(self) -> nn.Module:
        return LOSSES[self.op].module(**self._parameters) if original(self) else super().to_torch()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._parameters.items())})"


@replaceable
class MSE(Elementwise):
    """Mean of the squared differences, as torch.nn.MSELoss."""

    op = "mse"


@replaceable
class L1(Elementwise):
    """Mean of the absolute differences, as torch.nn.L1Loss."""

    op = "l1"


@replaceable
class Huber(Elementwise):
    """Mean of d^2 / 2 where the difference d is at most delta, else of delta (|d| - delta / 2), as torch.nn.HuberLoss.

    Args:
        delta: above 0.
    """

    op = "huber"

    def __init__(self, delta: float = 1.0):
        (self.delta,) = LOSSES["huber"].checked_values([delta])


class OfScores(Losses):
    """Base class of losses of scores, or of the probabilities that an activation makes of these."""

    #: The activation that makes probabilities of scores.
    activation: str

    def __init__(self, probabilities: bool = False):
        self.probabilities = probabilities

    def loss_and_gradient(self, y_pred: Tensor, y_true: Tensor, **weights: Tensor) -> tuple[float | Tensor, Tensor]:
        if self.probabilities or not original(self):
            return super().loss_and_gradient(y_pred, y_true, **weights)
        return self.objective(y_pred).of(y_pred, y_true, **weights)

    def hits(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Whether predictions are right, for targets from as_targets: of each sample (m,), or each element (m, n_out).

        A class is right if its score or probability is the largest, as is that of its target; of several the first
        counts. An element is 1 if its probability is at least 1/2, which is a score of at least 0.
        """
        scores, least = y_pred, 0.0
        if self.probabilities:  # which are rounded where the scores are not
            scores, least = (y_pred.scores, 0.0) if hasattr(y_pred, "scores") else (y_pred, 0.5)
        objective = self.objective(y_pred)
        return objective.hits(scores, objective.labels(y_true), least)

    def _of_probabilities(
        self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient with respect to probabilities, from these alone."""
        raise NotImplementedError

    def _loss(self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None) -> float:
        targets = _targets(self, y_pred, y_true)
        if self.probabilities and not hasattr(y_pred, "scores"):
            return self._of_probabilities(y_pred, targets, sample_weight)[0].item()
        scores = getattr(y_pred, "scores", y_pred) if self.probabilities else y_pred
        return self.objective(scores).of(scores, targets, sample_weight)[0].item()

    def _gradient(self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        targets, objective = _targets(self, y_pred, y_true), self.objective(y_pred)
        if not self.probabilities:
            return objective.of(y_pred, targets, sample_weight)[1]
        delta = self._of_probabilities(y_pred, targets, sample_weight)[1]
        if hasattr(y_pred, "scores"):
            # Read by the backward of the activation.
            delta.scores = objective.of(y_pred.scores, targets, sample_weight)[1]  # type: ignore[attr-defined]
        return delta


@replaceable
class BinaryCrossEntropy(OfScores):
    """Binary cross-entropy, mean over all elements, of scores, or after a last Sigmoid of probabilities.

    Args:
        probabilities: whether the predictions are probabilities (as torch.nn.BCELoss takes them), or the scores before
            a sigmoid (torch.nn.BCEWithLogitsLoss). A Model whose last activation is Sigmoid sets this by itself.

    Targets are from 0 to 1, of any real dtype or bool, of the shape of the predictions (m, n_out), or (m,) for one
    output. Probabilities made by our Sigmoid carry their scores, and the loss and its gradient are computed from
    these, so that a probability of 0 or 1 gives neither inf nor NaN.
    """

    op = "binary_cross_entropy_with_logits"
    activation = "sigmoid"

    def loss(self, y_pred: Tensor, y_true: Tensor) -> float:
        return self._loss(y_pred, y_true)

    def backward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self._gradient(y_pred, y_true)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        targets = _checks.comparable(_elements(name, y, shape, like))
        outside = targets[~((targets >= 0) & (targets <= 1))]
        if outside.numel():
            hint = "; write (y + 1) / 2 for labels of -1 and 1" if (targets.abs() == 1).all() else ""
            raise ValueError(f"{name} holds {outside[0].item()}, expected 0 to 1{hint}")
        return targets.to(like.dtype)

    def objective(self, like: Tensor) -> Objective:
        return Objective(self.op, activation=self.activation if self.probabilities else "")

    def to_torch(self) -> nn.Module:
        return LOSSES[self.op].module() if original(self) else super().to_torch()

    def _of_probabilities(
        self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loss = ops.binary_cross_entropy_value(y_pred, y_true)
        return loss, ops.binary_cross_entropy_backward(torch.ones_like(loss), y_pred, y_true)

    def __repr__(self) -> str:
        return f"BinaryCrossEntropy(probabilities={self.probabilities})"


@replaceable
class CrossEntropy(OfScores):
    """Cross-entropy, mean over the samples.

    Args:
        probabilities: whether the predictions are probabilities, or the scores before a softmax, as
            torch.nn.CrossEntropyLoss takes them. A Model whose last activation is Softmax sets this by itself.
        class_weights: a factor of each class (classes,), at least 0: a tensor, an array or a list. With class indices
            the mean is weighted by those of the samples' classes, as torch's is.
        label_smoothing: from 0 to 1, how much of each target is shared out to all classes alike.

    Predictions are (m, classes). Targets are class indices (m,) or (m, 1), whole numbers of any real dtype, or
    probabilities or one-hot rows (m, classes) of any real dtype. Sample weights (m,) multiply the terms and the
    divisor of the mean. Probabilities made by our Softmax carry their scores, and the loss and its gradient are
    computed from these, so that a probability of 0 gives neither inf nor NaN.
    """

    activation = "softmax"
    takes_classes = True

    def __init__(self, probabilities: bool = False, class_weights: Any = None, label_smoothing: float = 0.0):
        super().__init__(probabilities)
        if class_weights is not None:
            class_weights = _checks.weights("class_weights", class_weights)
        self._class_weights: Tensor | None = class_weights
        self._beside: tuple[object, Tensor | None] = None, None  # the same beside the last predictions, and as what
        self.label_smoothing = _checks.between("label_smoothing", label_smoothing, 0, 1)

    @property
    def class_weights(self) -> Tensor | None:
        """As they were given; what is written into them counts from the next fit on."""
        return self._class_weights

    def loss(self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None) -> float:
        return self._loss(y_pred, y_true, sample_weight)

    def backward(self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return self._gradient(y_pred, y_true, sample_weight)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self._class_weights is not None:
            _checks.shape("class_weights", self._class_weights, shape[1:])
        targets = _placed(name, y, like)
        if targets.dim() == 2 and targets.shape[1] == 1 != shape[1]:
            targets = targets.squeeze(1)
        if targets.dim() != 1:
            _checks.shape(name, targets, shape)
            return targets.to(like.dtype)
        if targets.shape != shape[:1]:
            raise ValueError(f"{name} has shape {tuple(targets.shape)}, expected {shape[:1]} class indices")
        indices = targets.long()
        if targets.is_floating_point() and (broken := targets[indices != targets]).numel():
            raise ValueError(
                f"{name} holds {broken[0].item()}, expected class indices {shape[:1]} or rows of probabilities {shape}"
            )
        if shape[1] == 1 and (indices == 1).any():
            raise ValueError(
                f"{name} holds class index 1, expected 0 alone; BinaryCrossEntropy takes 0 and 1 of one output"
            )
        _checks.class_indices(name, indices, shape[1])
        return indices

    def objective(self, like: Tensor) -> Objective:
        given = self._class_weights
        if given is not None:
            # Kept, since a graph plan knows its address, until somebody writes into those that were given.
            beside = None if given.is_inference() else given._version, like.dtype, like.device
            if self._beside[0] != beside:
                self._beside = beside, given.to(like)
        parameters = {}
        if self.label_smoothing:
            parameters["label_smoothing"] = _checks.between("label_smoothing", self.label_smoothing, 0, 1)
        return Objective("cross_entropy", parameters, self._beside[1], self.activation if self.probabilities else "")

    def to_torch(self) -> nn.Module:
        loss = nn.CrossEntropyLoss(self._class_weights, label_smoothing=self.label_smoothing)
        return loss if original(self) else super().to_torch()

    def _of_probabilities(
        self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        objective, of = self.objective(y_pred), (y_true, y_pred, sample_weight)
        rows, terms = objective.rows(*of), objective.counts(*of).sum()
        positive = y_pred.clamp_min(torch.finfo(y_pred.dtype).tiny)
        return -(rows * positive.log()).sum() / terms, -rows / positive / terms

    def __repr__(self) -> str:
        weights = "" if self._class_weights is None else f", class_weights={self._class_weights.tolist()}"
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return f"CrossEntropy(probabilities={self.probabilities}{weights}{smoothing})"


#: By torch.nn's module.
KINDS = {type(kind().to_torch()): kind for kind in (*Elementwise.__subclasses__(), *OfScores.__subclasses__())}


def _placed(name: str, y: Any, like: Tensor) -> Tensor:
    targets = y if isinstance(y, Tensor) else _checks.as_tensor(name, y).to(like.device)
    _checks.on_device(name, targets, "the predictions", like.device)
    _checks.real(name, targets)
    return targets


def _elements(name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Targets of elements, of any real dtype; (m,) is (m, 1)."""
    targets = _placed(name, y, like)
    if targets.dim() == 1 and shape[1:] == (1,):
        targets = targets.unsqueeze(1)
    _checks.shape(name, targets, shape)
    return targets


def _targets(loss_f: Losses, y_pred: Tensor, y_true: Tensor) -> Tensor:
    return loss_f.as_targets("y_true", y_true, tuple(y_pred.shape), y_pred)
