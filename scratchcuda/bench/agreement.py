"""Whether a peer has done the same training as torch.nn. Without that there is no ratio."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scratchcuda.bench.peers import Losses
from scratchcuda.compare import Workload

#: Largest relative difference of a loss to torch.nn's, by dtype.
#: float64, float32: JAX's exponentials and hyperbolic tangents are other approximations, correct to some units in the
#: last place; over the steps of a fit that grows.
#: bfloat16: of 8 bits. A reported loss is rounded to 1 in 256, and by each in its own place.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 1e-2}

#: How many times the tolerance a fit must move the loss, so that who trains nothing, or half, is found out.
LEAST_MOVE = 3


class Judge:
    """Compares what peers report and come to with torch.nn.

    Args:
        work: the workload.
        start: the parameters that all begin with, in the order of ``net.parameters()``.
        x, y: the training data.
        dtype: in which they train.
    """

    def __init__(self, work: Workload, start: Sequence[Tensor], x: Tensor, y: Tensor, dtype: str):
        self.net = nn.Sequential(*work.modules()).to(x.device, torch.float64)
        self.loss_f, self.x, self.tolerance = work.loss(), x.double(), TOLERANCE[dtype]
        self.y = y.double() if y.is_floating_point() else y
        self.before = self.loss(start)
        self.expected: Losses = ([], [])
        self.after = self.before

    @torch.no_grad()
    def loss(self, parameters: Sequence[Tensor]) -> float:
        """Of these parameters on the training data, computed in float64, for all peers by this one function."""
        for mine, given in zip(self.net.parameters(), parameters, strict=True):
            mine.copy_(given)
        return self.loss_f(self.net(self.x), self.y).item()

    def witness(self, losses: Losses, parameters: Sequence[Tensor]) -> None:
        """Take torch.nn's results as those that others are compared with.

        Raises:
            ValueError: if its training moves the loss too little to tell a peer that trains from one that does not.
        """
        self.expected, self.after = losses, self.loss(parameters)
        moved = _difference([self.after], [self.before])
        if not moved > LEAST_MOVE * self.tolerance:
            raise ValueError(f"torch.nn's training moves the loss by {moved:.1e} only: nothing can be compared")

    def difference(self, losses: Losses, parameters: Sequence[Tensor]) -> float:
        """The largest relative difference to torch.nn's losses, of those that are reported, and of the one that the
        parameters give."""
        found = [_difference([self.loss(parameters)], [self.after])]
        found += [_difference(got, of) for got, of in zip(losses, self.expected, strict=True) if got]
        return max(found, key=lambda value: (value != value, value))  # NaN is the worst

    def agrees(self, difference: float) -> bool:
        return difference <= self.tolerance


def _difference(got: Sequence[float], expected: Sequence[float]) -> float:
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (got, expected))
    return ((a - b) / b).abs().max().item()
