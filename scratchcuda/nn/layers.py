"""torch.nn's modules of the same names, on the functions of :mod:`scratchcuda.nn.functional`.

Each takes the arguments of torch.nn's, and has its parameters, initial values, state_dict and repr. None keeps any
other state, so copies, pickles and checkpoints go both ways.
"""

from typing import Any

import torch
from torch import Tensor

from scratchcuda import _checks
from scratchcuda.nn import functional
from scratchcuda.ops import ACTIVATIONS


class Linear(torch.nn.Linear):
    """torch.nn.Linear, ``y = f(x weight^T + bias)``, with an activation f that is computed along with it.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear's.
        activation: one of :data:`scratchcuda.ops.ACTIVATIONS`; softmax runs over the last dimension.

    Shapes: x (..., in_features), y (..., out_features).
    """

    activation = "none"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ):
        _checks.one_of("activation", activation, ACTIVATIONS)
        super().__init__(in_features, out_features, bias, device, dtype)
        if activation != "none":
            self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        parameters = self._parameters  # where they usually are: through Module's attributes it takes half a µs each
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if weight is None or bias is None:
            return functional.linear(input, self.weight, self.bias, self.activation)
        return functional.linear(input, weight, bias, self.activation)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation!r}" if self.activation != "none" else "")


class ReLU(torch.nn.ReLU):
    """torch.nn.ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """torch.nn.Sigmoid."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.sigmoid(input)


class Tanh(torch.nn.Tanh):
    """torch.nn.Tanh."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.tanh(input)


class Softmax(torch.nn.Softmax):
    """torch.nn.Softmax."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class MSELoss(torch.nn.MSELoss):
    """torch.nn.MSELoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
