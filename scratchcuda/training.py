"""What every fit shares: the loop over the epochs, its history, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import Self

import torch
from torch import Tensor


@dataclass
class History:
    """What a fit did.

    Attributes:
        loss: mean of the batches' training losses, by epoch.
        valid_loss: loss on the validation data after each epoch; empty without such data.
        step_loss: training loss of every step (batch), before its update.
        path: the way that served the fit, "tensor plan" or "general".
        reason: why the general path served; empty for a plan.
    """

    path: str
    reason: str = ""
    loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    step_loss: list[float] = field(default_factory=list)


class Path:
    """One way to run the steps of a fit: a plan, or the general path.

    Attributes:
        mode: the context in which everything but finish is called.
    """

    mode: Callable[[], AbstractContextManager[object]]

    def load(self, order: Tensor | None) -> None:
        """Take the training data in this order of the samples; None is the order given."""
        raise NotImplementedError

    def epoch(self, stop: "HeldInterrupt") -> list[float]:
        """Run one step for each batch, until stop.pending, and return the losses of the steps that ran."""
        raise NotImplementedError

    def validate(self) -> float:
        """The loss on the validation data."""
        raise NotImplementedError

    def finish(self) -> None:
        """Leave the parameters as after the last finished step."""


class GeneralPath(Path):
    """The steps layer by layer, through whatever methods the model's objects have."""

    mode = torch.no_grad

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], float],
        evaluate: Callable[[], float],
        x: Tensor,
        y: Tensor,
        batch_size: int,
    ):
        self.step, self.evaluate = step, evaluate
        self.x, self.y, self.batch_size = x, y, batch_size

    def load(self, order: Tensor | None) -> None:
        x, y = (self.x, self.y) if order is None else (self.x[order], self.y[order])
        self.batches = list(zip(x.split(self.batch_size), y.split(self.batch_size), strict=True))

    def epoch(self, stop: "HeldInterrupt") -> list[float]:
        losses = []
        for x, y in self.batches:
            losses.append(self.step(x, y))
            if stop.pending:
                break
        return losses

    def validate(self) -> float:
        return self.evaluate()


class HeldInterrupt:
    """Holds Ctrl-C back, so that a step always finishes; on leaving, it is delivered."""

    pending = False

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only; a handler set from C cannot be put back.
        self.previous = signal.getsignal(signal.SIGINT)
        self.holds = threading.current_thread() is threading.main_thread() and self.previous is not None
        if self.holds:
            signal.signal(signal.SIGINT, self._hold)
        return self

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self.pending = True

    def __exit__(self, *exception: object) -> None:
        if self.holds:
            signal.signal(signal.SIGINT, self.previous)
            if self.pending:
                signal.raise_signal(signal.SIGINT)


def run(
    path: Path,
    history: History,
    epochs: int,
    samples: int,
    shuffle: bool,
    generator: torch.Generator | None,
    validates: bool,
    report: Callable[[int, History], None] | None,
) -> None:
    """Run the epochs on this path, filling the history as they pass."""
    device = "cpu" if generator is None else generator.device
    with HeldInterrupt() as stop:
        try:
            with path.mode():
                for epoch in range(epochs):
                    if stop.pending:
                        break
                    if shuffle:
                        path.load(torch.randperm(samples, generator=generator, device=device))
                    elif epoch == 0:
                        path.load(None)
                    losses = path.epoch(stop)
                    history.step_loss += losses
                    if stop.pending:
                        break
                    history.loss.append(sum(losses) / len(losses))
                    if validates:
                        history.valid_loss.append(path.validate())
                    if report is not None:
                        report(epoch, history)
        finally:
            path.finish()
