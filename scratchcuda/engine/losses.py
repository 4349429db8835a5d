"""Losses: each is callable and has ``backward``, the gradient with respect to the predictions."""

from typing import Any

import torch
from torch import Tensor

from scratchcuda import ops
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.ops import _checks


class Losses:
    """Base class of losses.

    One of your own needs ``loss(y_pred, y_true)``, a float, and ``backward(y_pred, y_true)``, the gradient with
    respect to y_pred.
    """

    def loss(self, y_pred: Tensor, y_true: Tensor) -> float:
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def backward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def loss_and_gradient(self, y_pred: Tensor, y_true: Tensor) -> tuple[float | Tensor, Tensor]:
        """Loss and gradient of a training step, for targets from as_targets.

        A loss that is a tensor () stays on its device until the epoch has ended.
        """
        return self(y_pred, y_true), self.backward(y_pred, y_true)

    def __call__(self, y_pred: Tensor, y_true: Tensor) -> float:
        return self.loss(y_pred, y_true)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Targets for predictions of this shape, dtype and device, or an error that names the argument."""
        targets = y if isinstance(y, Tensor) else _checks.as_tensor(name, y).to(like.device)
        _checks.on_device(name, targets, "the predictions", like.device)
        return targets.to(like.dtype) if targets.is_floating_point() else targets

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@replaceable
class MSE(Losses):
    """Mean of the squared differences over all elements, as torch.nn.MSELoss.

    Targets are floating-point, of the shape of the predictions (m, n_out).
    """

    def loss(self, y_pred: Tensor, y_true: Tensor) -> float:
        return ops.mse(y_pred, self._targets(y_pred, y_true))[0].item()

    def backward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return ops.mse(y_pred, self._targets(y_pred, y_true))[1]

    def loss_and_gradient(self, y_pred: Tensor, y_true: Tensor) -> tuple[float | Tensor, Tensor]:
        return ops.mse(y_pred, y_true) if original(self) else super().loss_and_gradient(y_pred, y_true)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        targets = super().as_targets(name, y, shape, like)
        _checks.floating(name, targets)
        _checks.shape(name, targets, shape)
        return targets

    def _targets(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self.as_targets("y_true", y_true, tuple(y_pred.shape), y_pred)


@replaceable
class CrossEntropy(Losses):
    """Cross-entropy, mean over the samples.

    Args:
        probabilities: whether the predictions are probabilities, or the scores before a softmax, as
            torch.nn.CrossEntropyLoss takes them. A Model whose last activation is Softmax sets this by itself.

    Predictions are (m, classes). Targets are class indices (m,) of an integer dtype, or probabilities or one-hot
    rows (m, classes) of any dtype. Probabilities made by our Softmax carry their scores, and the loss and its
    gradient are computed from these, so that a probability of 0 gives neither inf nor NaN.
    """

    def __init__(self, probabilities: bool = False):
        self.probabilities = probabilities

    def loss(self, y_pred: Tensor, y_true: Tensor) -> float:
        targets = self._targets(y_pred, y_true)
        if self.probabilities and not hasattr(y_pred, "scores"):
            return -(self._rows(y_pred, targets) * self._positive(y_pred).log()).sum().item() / len(y_pred)
        scores = getattr(y_pred, "scores", y_pred) if self.probabilities else y_pred
        return ops.cross_entropy(scores, targets)[0].item()

    def backward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        targets = self._targets(y_pred, y_true)
        if not self.probabilities:
            return ops.cross_entropy(y_pred, targets)[1]
        delta = -self._rows(y_pred, targets) / self._positive(y_pred) / len(y_pred)
        if hasattr(y_pred, "scores"):
            # Read by Softmax.backward.
            delta.scores = ops.cross_entropy(y_pred.scores, targets)[1]  # type: ignore[attr-defined]
        return delta

    def loss_and_gradient(self, y_pred: Tensor, y_true: Tensor) -> tuple[float | Tensor, Tensor]:
        if self.probabilities or not original(self):
            return super().loss_and_gradient(y_pred, y_true)
        return ops.cross_entropy(y_pred, y_true)

    def as_targets(self, name: str, y: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        targets = super().as_targets(name, y, shape, like)
        if targets.dim() == 1:
            if targets.shape != shape[:1]:
                raise ValueError(f"{name} has shape {tuple(targets.shape)}, expected {shape[:1]} class indices")
            _checks.class_indices(name, targets, shape[1])
            return targets.long()
        _checks.shape(name, targets, shape)
        return targets.to(like.dtype)

    @staticmethod
    def _rows(y_pred: Tensor, targets: Tensor) -> Tensor:
        return targets if targets.dim() == 2 else torch.nn.functional.one_hot(targets, y_pred.shape[1])

    @staticmethod
    def _positive(y_pred: Tensor) -> Tensor:
        return y_pred.clamp_min(torch.finfo(y_pred.dtype).tiny)

    def _targets(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self.as_targets("y_true", y_true, tuple(y_pred.shape), y_pred)

    def __repr__(self) -> str:
        return f"CrossEntropy(probabilities={self.probabilities})"
