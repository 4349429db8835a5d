"""What is profiled: training steps of our models, of any torch.nn.Module, and of these compiled."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scratchcuda import _ranges, costs
from scratchcuda._patching import original
from scratchcuda.linear_regression import SimpleLinearRegression
from scratchcuda.losses import MSE, CrossEntropy
from scratchcuda.model import Model
from scratchcuda.profiler.clocks import nothing
from scratchcuda.profiler.record import Ranges, copied, listening, watching

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
        self.data: dict[int, list[Tensor]] = {}  # for so many steps: a captured step knows where its data are
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
        if steps not in self.data:
            self.data[steps] = [data.repeat(steps, *[1] * (data.dim() - 1)) for data in (self.x, self.y)]
        x, y = self.data[steps]
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
        self.module, self.loss = copy.deepcopy(module), copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
        self.given = inputs, targets
        self.start = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        self.path = "torch.compile" if compiled else "eager"
        self.device = next(costs.tensors_of((list(module.parameters()), list(inputs)))).device
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = optimizer(parameters) if parameters else None
        self.objective: Callable[[], Tensor] = self._objective
        self.update: Callable[[], object] = self.optimizer.step if self.optimizer else nothing
        if compiled:
            self.objective = torch.compile(self.objective, dynamic=False)
            self.update = torch.compile(self.update)
        self.reset()

    def _tensors(self) -> list[Tensor]:
        """All that a step may change, in the module and in a loss that is one."""
        modules = [self.module, *([self.loss] if isinstance(self.loss, nn.Module) else [])]
        return [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]

    @torch.no_grad()
    def reset(self) -> None:
        for tensor, value in self.start:
            tensor.copy_(value)
            tensor.grad = None
        # Of its own: a module may write into them, and they may get gradients.
        self.inputs, self.targets = copied(self.given)
        for given, own in zip(costs.tensors_of(self.given[0]), costs.tensors_of(self.inputs), strict=True):
            own.requires_grad_(given.requires_grad)
        if self.optimizer:
            self.optimizer.state.clear()
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
        with _ranges.named("update"):
            self.update()
        for tensor in (*self._tensors(), *costs.tensors_of(self.inputs)):
            tensor.grad = None

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = self.objective()
            self._finish(loss)
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def show(self, ranges: Ranges) -> None:
        self.reset()
        self.run(1)  # an optimizer's first step may differ from all others
        with listening(ranges), watching(self.module, ranges) as take:
            with _ranges.named("forward"):
                outputs = self.module(*self.inputs)
            with _ranges.named("loss"):
                take(outputs, "")
                loss = self._loss(outputs)
                take(loss, "loss")
            self._finish(loss)
        self.reset()


def peers_of(
    model: Model | SimpleLinearRegression, x: Tensor, y: Tensor, lr: float, compile: bool
) -> dict[str, Subject]:
    """The same steps by torch.nn, eager and compiled. Raises TypeError for what torch.nn has no module or loss for."""
    if isinstance(model, SimpleLinearRegression):
        net: nn.Module = nn.Linear(1, 1, device=model.w.device, dtype=model.w.dtype)
        with torch.no_grad():
            net.weight.copy_(model.w.unsqueeze(-1)), net.bias.copy_(model.b)  # type: ignore
        loss: nn.Module = nn.MSELoss()
        x, y = x.unsqueeze(-1), y.unsqueeze(-1)
    else:
        net, kind = model.to_torch(), original(model.loss_f)
        if kind not in (MSE, CrossEntropy):
            raise TypeError(f"loss_f is {model.loss_f!r}, which torch.nn has no module for")
        loss = nn.MSELoss() if kind is MSE else nn.CrossEntropyLoss()
        if isinstance(model.loss_f, CrossEntropy) and model.loss_f.probabilities:
            if not isinstance(net[-1], nn.Softmax):
                raise TypeError("loss_f takes probabilities that no last Softmax makes; torch.nn's takes scores")
            net = net[:-1]
    return torch_subjects(net.to(x.device), (x,), y, loss, partial(torch.optim.SGD, lr=lr), compile)


def torch_subjects(
    net: nn.Module, inputs: tuple[Any, ...], targets: Any, loss: Any, optimizer: Optimizer, compile: bool
) -> dict[str, Subject]:
    found: dict[str, Subject] = {"torch eager": ModuleSubject(net, inputs, targets, loss, optimizer)}
    if compile:
        found["torch.compile"] = ModuleSubject(net, inputs, targets, loss, optimizer, compiled=True)
    return found
