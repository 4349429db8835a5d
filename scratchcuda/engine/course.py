"""How a fit is run: what Model.fit takes besides the data, checked before anything changes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from scratchcuda.engine.optimizers import DEFAULTS, optimizer_of
from scratchcuda.engine.progress import bar_class
from scratchcuda.engine.rates import rates_of
from scratchcuda.ops import _checks


@dataclass(kw_only=True)
class Course:
    """The arguments of :meth:`Model.fit` but for the data, as they are described there.

    Once they are checked, ``lr`` is the Rates, and ``optimizer`` the Optimizer with its options.
    """

    epochs: int
    lr: Any
    batch_size: int
    weight_decay: float | None = None
    shuffle: bool = False
    generator: torch.Generator | None = None
    plan: bool = True
    verbose: bool = True
    optimizer: Any = "sgd"
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    callbacks: Any = ()
    early_stopping: int | None = None
    drop_last: bool = False
    validation_split: float = 0.0
    accuracy: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        self.epochs = _checks.positive_int("epochs", self.epochs)
        self.batch_size = _checks.positive_int("batch_size", self.batch_size)
        self.lr = rates_of(self.lr)
        self.optimizer = optimizer_of(self.optimizer, {name: getattr(self, name) for name in DEFAULTS})
        if not isinstance(self.generator, torch.Generator | None):
            raise TypeError(f"generator is {self.generator!r}, expected a torch.Generator")
        self.callbacks = _callables(self.callbacks)
        if self.early_stopping is not None:
            self.early_stopping = _checks.positive_int("early_stopping", self.early_stopping)
        for name in ("drop_last", "accuracy", "progress"):
            _checks.flag(name, getattr(self, name))
        self.validation_split = _checks.between("validation_split", self.validation_split, 0, 1)
        if self.progress:
            bar_class()  # raises where there is none

    def check_loss(self, loss_f: object) -> None:
        if self.accuracy and not hasattr(loss_f, "hits"):
            raise ValueError(
                f"accuracy is True, but the loss is {loss_f!r}, expected CrossEntropy or BinaryCrossEntropy"
            )

    def check_validation(self, x_valid: Any, y_valid: Any) -> None:
        """Whether there is what is asked for, and once."""
        given = [name for name, data in (("x_valid", x_valid), ("y_valid", y_valid)) if data is not None]
        if self.validation_split and given:
            raise ValueError(f"validation_split is {self.validation_split} beside {given[0]}, expected one of the two")
        if self.early_stopping and not (self.validation_split or given):
            raise ValueError(
                f"early_stopping is {self.early_stopping} without validation data, expected x_valid and y_valid, or "
                "validation_split"
            )

    def trained(self, samples: int) -> int:
        """How many of the samples are trained on, the first ones; those after them validate."""
        first = math.floor(samples * (1 - self.validation_split)) if self.validation_split else samples  # as Keras
        if self.validation_split and not 0 < first < samples:
            split = f"validation_split is {self.validation_split}, which of {samples} samples trains on {first}"
            raise ValueError(f"{split} and validates {samples - first}, expected at least one each")
        if self.drop_last and first < self.batch_size:
            expected = f"at most the {first} samples that are trained on"
            raise ValueError(f"batch_size is {self.batch_size} with drop_last, expected {expected}")
        return first


def _callables(given: Any) -> tuple[Callable[..., object], ...]:
    if callable(given):
        return (given,)
    if not isinstance(given, Iterable):
        raise TypeError(f"callbacks is {given!r}, expected a callable or a sequence of them")
    found = tuple(given)
    for i, callback in enumerate(found):
        if not callable(callback):
            raise TypeError(f"callbacks[{i}] is {callback!r}, expected a callable")
    return found
