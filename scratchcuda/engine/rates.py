"""The learning rates of a fit, epoch by epoch: a number, a function of the epoch, or a scheduler of torch.optim."""

import warnings
from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from scratchcuda.ops import _checks


class Rates:
    """Of a number, or of a function of the epoch.

    Attributes:
        varies: whether the rate may change from epoch to epoch.
    """

    def __init__(self, lr: Any):
        self.lr, self.varies = lr, callable(lr)

    def of(self, epoch: int) -> float:
        """That of an epoch, from 0, all before which have ended."""
        return _checks.non_negative(f"lr of epoch {epoch}", self.lr(epoch)) if self.varies else self.lr

    def advance(self, loss: float) -> None:
        """To the next epoch, after one of this loss."""


class Scheduled(Rates):
    """Those of the optimizer that a scheduler sets."""

    def __init__(self, scheduler: LRScheduler):
        self.scheduler, self.groups, self.varies = scheduler, scheduler.optimizer.param_groups, True
        if len(self.groups) != 1:
            raise ValueError(f"lr is {_name(scheduler)} of {len(self.groups)} parameter groups, expected one")
        for part in _parts(scheduler):
            if getattr(part, "cycle_momentum", False):
                raise ValueError(f"lr is {_name(part)} that cycles momentum, expected cycle_momentum=False")
            if isinstance(part, ReduceLROnPlateau) and part is not scheduler:
                raise ValueError(f"lr is {_name(scheduler)} of a {_name(part)}, which would get no loss from it")

    def of(self, epoch: int) -> float:
        return _checks.non_negative(f"lr of epoch {epoch}", self.groups[0]["lr"])

    def advance(self, loss: float) -> None:
        with warnings.catch_warnings():
            # torch would have its optimizer step before, which has nothing to do here.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
            warnings.filterwarnings("ignore", r"Seems like `optimizer\.step\(\)` has been overridden", UserWarning)
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(loss)
            else:
                self.scheduler.step()


def rates_of(lr: Any) -> Rates:
    """The rates that Model.fit's ``lr`` asks for."""
    if isinstance(lr, type):
        raise TypeError(f"lr is the class {lr.__name__}, expected a number, a function of the epoch, or a scheduler")
    if isinstance(lr, LRScheduler):
        return Scheduled(lr)
    return Rates(lr if callable(lr) else _checks.non_negative("lr", lr))


def _parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler, and those that it is made of, as of a SequentialLR."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)


def _name(scheduler: object) -> str:
    return type(scheduler).__name__
