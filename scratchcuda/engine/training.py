"""What every fit shares: its checks, the choice of its path, the loop over the epochs, its history, and Ctrl-C."""

import _signal  # type: ignore[import-not-found]  # whose functions signal wraps, to look for enums first, at 3 µs each
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor

from scratchcuda._ranges import named
from scratchcuda.engine._patching import original
from scratchcuda.engine.network import Task
from scratchcuda.engine.parameters import Parameters
from scratchcuda.ops import _checks


@dataclass
class History:
    """What a fit did.

    Attributes:
        loss: mean of the batches' training losses, by epoch.
        valid_loss: loss on the validation data after each epoch; empty without such data.
        step_loss: training loss of every step (batch), before its update.
        path: the way that served the fit, "tensor plan", "graph plan" or "general".
        reason: why the general path served; empty for a plan.
        graph_bytes: device memory that a graph plan takes and keeps, besides parameters and data; 0 for other paths.
    """

    path: str
    reason: str = ""
    graph_bytes: int = 0
    loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    step_loss: list[float] = field(default_factory=list)


class FitPath:
    """One way to run the steps of a fit: a plan, or the general path.

    Attributes:
        name, reason, graph_bytes: as of the History.
    """

    name: str
    reason: str = ""
    graph_bytes: int = 0

    def mode(self) -> AbstractContextManager[object]:
        """The context in which all the others are called."""
        raise NotImplementedError

    def load(self, order: Tensor | None) -> None:
        """Take the training data in this order of the samples; None is the order given."""
        raise NotImplementedError

    def epoch(self, stop: "HeldInterrupt", losses: list[float]) -> None:
        """Run one step for each batch, with stop.check() after it; append the losses of all that ran."""
        raise NotImplementedError

    def validate(self) -> float:
        """The loss on the validation data."""
        raise NotImplementedError

    def finish(self) -> None:
        """Leave the parameters as after the last finished step."""


#: Trains on the inputs and targets of a batch, and its sample weights if there are any, and gives their loss.
Step = Callable[..., float | Tensor]


class GeneralPath(FitPath):
    """The steps layer by layer, through whatever methods the model's objects have."""

    name = "general"

    def __init__(self, reason: str, step: Step, evaluate: Callable[[], float], task: Task):
        self.reason, self.step, self.evaluate, self.task = reason, step, evaluate, task

    def mode(self) -> AbstractContextManager[object]:
        return torch.no_grad()

    def load(self, order: Tensor | None) -> None:
        data = [self.task.x, self.task.y, *([] if self.task.sample_weights is None else [self.task.sample_weights])]
        parts = ((part if order is None else part[order]).split(self.task.batch_size) for part in data)
        self.batches = list(zip(*parts, strict=True))

    def epoch(self, stop: "HeldInterrupt", losses: list[float]) -> None:
        found: list[float | Tensor] = []  # tensors stay on their device: to read one is to wait for it
        try:
            for batch in self.batches:
                with named("step"):
                    found.append(self.step(*batch))
                stop.check()
        finally:
            scalars = [loss for loss in found if isinstance(loss, Tensor) and loss.dim() == 0]
            losses += torch.stack(scalars).tolist() if scalars and len(scalars) == len(found) else map(float, found)

    def validate(self) -> float:
        return self.evaluate()


class HeldInterrupt:
    """Holds Ctrl-C back until check(), so that a step always finishes. A second Ctrl-C comes through at once."""

    def __enter__(self) -> Self:
        self.pending = False
        self.previous = _signal.getsignal(signal.SIGINT)
        # Python delivers signals to the main thread only; an ignored signal and a handler set from C stay as they are.
        self.holds = threading.current_thread() is threading.main_thread() and callable(self.previous)
        if self.holds:
            _signal.signal(signal.SIGINT, self._hold)
        return self

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self.frame = frame
        if self.pending:
            self.check()
        self.pending = True

    def check(self) -> None:
        """Pass a signal that was held back on to its handler; Python's own raises KeyboardInterrupt."""
        if self.pending and callable(self.previous):
            self.pending = False
            self.previous(signal.SIGINT, self.frame)

    def __exit__(self, *exception: object) -> None:
        if self.holds:
            _signal.signal(signal.SIGINT, self.previous)
            self.check()


class Fitted(Parameters):
    """Base class of the models. A subclass says what its data are, which plan serves it, and what a step is."""

    history: History | None
    #: Inputs and targets that fit each other and the model, from both with their names, beside other data.
    _pair: Callable[..., tuple[Tensor, Tensor]]
    #: Weight decay as its methods take it.
    _decay_options: Callable[[float], dict[str, float]]
    #: A plan in place of methods that nobody has patched, or the reason why there is none.
    _planned: Callable[[Task], FitPath | str]
    #: The step of the general path, by learning rate and weight decay.
    _general_step: Callable[[float, dict[str, float]], Step]
    evaluate: Callable[..., float]
    #: Weights of the samples with these targets, as given; an error where the loss takes none.
    _sample_weights: Callable[[Any, Tensor], Tensor]
    #: Prints a line, of an epoch and the history so far.
    _print: Callable[[int, History], None]

    def _fit(
        self,
        data: tuple[str, Any, str, Any],
        x_valid: Any,
        y_valid: Any,
        epochs: int,
        lr: float,
        batch_size: int,
        weight_decay: float,
        shuffle: bool,
        generator: torch.Generator | None,
        plan: bool,
        verbose: bool,
        sample_weight: Any = None,
    ) -> History:
        """Fit, by the arguments of Model.fit; data are inputs and targets, each after its name."""
        epochs = _checks.positive_int("epochs", epochs)
        batch_size = _checks.positive_int("batch_size", batch_size)
        lr = _checks.non_negative("lr", lr)
        weight_decay = _checks.non_negative("weight_decay", weight_decay)
        options = self._decay_options(weight_decay)
        x, y = self._pair(*data)
        sample_weights = None if sample_weight is None else self._sample_weights(sample_weight, y)
        valid = None
        if x_valid is not None or y_valid is not None:
            valid = self._pair("x_valid", x_valid, "y_valid", y_valid, beside=x)
        self._settle(data[1])
        task = Task(x, y, min(batch_size, y.shape[0]), lr, weight_decay, valid, sample_weights)
        path: FitPath | str = "the model has methods of its own"
        if not plan:
            path = "asked for"
        elif original(self):
            path = self._planned(task)
        if isinstance(path, str):
            path = GeneralPath(path, self._general_step(lr, options), lambda: self.evaluate(*valid), task)  # type: ignore[misc]

        history = self.history = History(path.name, path.reason)
        device = y.device if generator is None else generator.device  # of the orders
        with HeldInterrupt() as stop, path.mode():
            try:
                for epoch in range(epochs):
                    if shuffle:
                        path.load(torch.randperm(len(y), generator=generator, device=device))
                    elif epoch == 0:
                        path.load(None)
                    done = len(history.step_loss)
                    path.epoch(stop, history.step_loss)
                    losses = history.step_loss[done:]
                    history.loss.append(sum(losses) / len(losses))
                    if valid is not None:
                        history.valid_loss.append(path.validate())
                    if verbose:
                        self._print(epoch, history)
                    stop.check()
            finally:
                path.finish()
                history.graph_bytes = path.graph_bytes
        return history
