"""What a fit minimises, as the ops and the plans know it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from scratchcuda import ops


@dataclass
class Objective:
    """A loss as the ops and the plans know it.

    Attributes:
        name: of its ops.
        parameters: by the names that its ops give them.
        class_weights: (classes,), of cross-entropy alone.
        activation: a last one that belongs to the loss, which is computed from the scores before it; "" if none does.
    """

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    class_weights: Tensor | None = None
    activation: str = ""

    def arguments(self, sample_weight: Tensor | None = None) -> dict[str, Any]:
        """What its ops take besides predictions and targets."""
        found: dict[str, Any] = {**self.parameters}
        if self.class_weights is not None:
            found["class_weights"] = self.class_weights
        if sample_weight is not None:
            found["sample_weights"] = sample_weight
        return found

    def of(self, y_pred: Tensor, y_true: Tensor, sample_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss (), and its gradient with respect to the predictions (or scores)."""
        found: tuple[Tensor, Tensor] = getattr(ops, self.name)(y_pred, y_true, **self.arguments(sample_weight))
        return found

    def counts(self, y_true: Tensor, like: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Of cross-entropy, what each row adds to the divisor (m,): for class indices the factor of -log p, too."""
        counts = like.new_ones(len(y_true))
        if y_true.dim() == 1 and self.class_weights is not None:
            counts = self.class_weights[y_true]
        return counts if sample_weight is None else counts * sample_weight

    def rows(self, y_true: Tensor, like: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Of cross-entropy, the factors (m, classes) of -log p.

        Args:
            y_true: class indices (m,), or probabilities (m, classes).
            like: a tensor of as many columns as there are classes, whose dtype the rows get.
        """
        classes, smoothing = like.shape[1], self.parameters.get("label_smoothing", 0.0)
        rows = y_true
        if y_true.dim() == 1:
            rows = nn.functional.one_hot(y_true, classes).to(like.dtype)
        if smoothing:
            rows = rows * (1 - smoothing) + smoothing / classes
        if self.class_weights is not None:
            rows = rows * self.class_weights
        return rows if sample_weight is None else rows * sample_weight.unsqueeze(1)

    def labels(self, y_true: Tensor) -> Tensor:
        """What predictions are to hit: of each sample the class (m,), or of each element whether it is 1 (m, n_out)."""
        if self.name == "cross_entropy":
            return y_true if y_true.dim() == 1 else y_true.argmax(1)
        return y_true >= 0.5

    def hits(self, y_pred: Tensor, labels: Tensor, least: float = 0.0) -> Tensor:
        """Whether predictions hit these labels, of their shape, bool: the largest of a row, or those of at least 0."""
        return (y_pred.argmax(1) if self.name == "cross_entropy" else y_pred >= least) == labels
