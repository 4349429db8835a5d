"""The end of a fit whose validation loss no longer falls, and the way back to the best epoch."""

import math
from collections.abc import Sequence

from torch import Tensor

from scratchcuda.engine.history import History


class EarlyStopping:
    """Keeps the parameters of the epoch of the least validation loss; NaN and inf are never less than another.

    Args:
        patience: after how many epochs in a row without a better one the fit stops.
    """

    def __init__(self, patience: int):
        self.patience, self.loss, self.epoch = patience, math.inf, -1
        self.parameters: list[Tensor] = []

    def see(self, history: History, held: Sequence[Tensor]) -> None:
        """The epoch that has just been validated, and the tensors that hold the parameters."""
        epoch, loss = len(history.valid_loss) - 1, history.valid_loss[-1]
        if loss < self.loss:
            self.loss, self.epoch, self.parameters = loss, epoch, [tensor.clone() for tensor in held]
        elif epoch - self.epoch >= self.patience:
            best = f"that of epoch {self.epoch} ({self.loss:.6g})" if self.parameters else "inf"
            history.stop(f"no validation loss below {best} in {self.patience} epochs")

    def restore(self, history: History, held: Sequence[Tensor]) -> None:
        """Write the parameters of the best epoch back, bit for bit, if there is one."""
        if self.parameters:
            history.best_epoch = self.epoch
            for tensor, value in zip(held, self.parameters, strict=True):
                tensor.copy_(value)
