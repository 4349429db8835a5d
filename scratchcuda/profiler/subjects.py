"""What is profiled: training steps of our models, of any torch.nn.Module, and of these compiled."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scratchcuda import _ranges, costs
from scratchcuda.linear_regression import SimpleLinearRegression
from scratchcuda.model import Model
from scratchcuda.profiler.record import Ranges, listening, watching

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Subject(Protocol):
    """Something that trains, from the same start again and again.

    Attributes:
        path: what serves a step: a path of Model.fit, or "eager" or "torch.compile".
        device: where.
    """

    path: str
    device: torch.device

    def reset(self) -> None:
        """Back to the start."""

    def run(self, steps: int) -> list[float]:
        """So many steps, all on the same batch; returns the losses before each."""

    def show(self, ranges: Ranges) -> None:
        """One step, eagerly, with its ranges; it leaves the start as it is."""


class FitSubject:
    """Steps of Model.fit or SimpleLinearRegression.fit."""

    def __init__(self, model: Model | SimpleLinearRegression, x: Tensor, y: Tensor, lr: float):
        self.model, self.x, self.y, self.lr = copy.deepcopy(model), x, y, lr
        self.start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.device = x.device
        self.path = self._fit(copy.deepcopy(model), 1).path

    def reset(self) -> None:
        self.model.load_state_dict(self.start)

    def run(self, steps: int) -> list[float]:
        return self._fit(self.model, steps).step_loss

    def show(self, ranges: Ranges) -> None:
        with listening(ranges):
            self._fit(copy.deepcopy(self.model), 1)  # a graph plan runs the first step of a model eagerly

    def _fit(self, model: Model | SimpleLinearRegression, steps: int) -> Any:
        x, y = (data.repeat(steps, *[1] * (data.dim() - 1)) for data in (self.x, self.y))
        return model.fit(x, y, 1, self.lr, len(self.x), verbose=False)


class ModuleSubject:
    """Steps of a module with autograd and an optimizer, eager or compiled."""

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Any, ...],
        targets: Any,
        loss: Callable[[Any, Any], Tensor] | None,
        optimizer: Optimizer,
        compiled: bool = False,
    ):
        self.module, self.inputs, self.targets, self.loss = copy.deepcopy(module), inputs, targets, loss
        self.start = copy.deepcopy(module.state_dict())
        self.make, self.path = optimizer, "torch.compile" if compiled else "eager"
        self.device = next(costs.tensors_of((list(module.parameters()), list(inputs)))).device
        self.objective = torch.compile(self._objective, dynamic=False) if compiled else self._objective
        self.reset()

    def reset(self) -> None:
        self.module.load_state_dict(self.start)
        self.module.zero_grad()
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = self.make(parameters) if parameters else None
        if self.optimizer and self.path == "torch.compile":
            self.optimizer.step = torch.compile(self.optimizer.step)  # type: ignore
        torch.manual_seed(0)  # of what is drawn within

    def _objective(self) -> Tensor:
        return self._loss(self.module(*self.inputs))

    def _loss(self, outputs: Any) -> Tensor:
        if self.loss is None:
            return next(costs.tensors_of(outputs)).square().mean()
        return self.loss(outputs, self.targets)

    def _finish(self, loss: Tensor) -> None:
        if loss.requires_grad:
            with _ranges.named("backward"):
                loss.backward()
        if self.optimizer:
            with _ranges.named("update"):
                self.optimizer.step()
            self.optimizer.zero_grad()

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = self.objective()
            self._finish(loss)
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def show(self, ranges: Ranges) -> None:
        with listening(ranges), watching(self.module, ranges) as take:
            with _ranges.named("forward"):
                outputs = self.module(*self.inputs)
            with _ranges.named("loss"):
                loss = self._loss(outputs)
                take(loss, "loss")
            self._finish(loss)
        self.reset()
