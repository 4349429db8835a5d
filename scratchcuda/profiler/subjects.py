"""What is profiled: training steps of our models, of any torch.nn.Module, and of these compiled."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scratchcuda import _ranges
from scratchcuda.engine.exchange import training_of
from scratchcuda.engine.linear_regression import SimpleLinearRegression
from scratchcuda.engine.model import Model
from scratchcuda.profiler import costs
from scratchcuda.profiler.clocks import nothing
from scratchcuda.profiler.owned import owned
from scratchcuda.profiler.record import Ranges, listening, nodes_of, shown, watching

#: One of the given module's parameters, or what makes one of the parameters that are trained.
Optimizer = torch.optim.Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


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
        self.model, self.x, self.y, self.lr = owned(model, "model"), x, y, lr
        self.data: dict[int, list[Tensor]] = {}  # for so many steps: a captured step knows where its data are
        self.given = model
        self.device = x.device
        self.path = self._fit(owned(model, "model"), 1).path

    def reset(self) -> None:
        self.model.load_state_dict(self.given.state_dict())

    def run(self, steps: int) -> list[float]:
        return self._fit(self.model, steps).step_loss

    def show(self, ranges: Ranges) -> None:
        with listening(ranges):
            with shown("set-up"):
                model = owned(self.given, "model")
                if self.path != "graph plan":  # which runs the first step of a model, and that alone, eagerly
                    ranges.are_silent = True
                    self._fit(model, 1)  # binds, and touches its memory
                    ranges.are_silent = False
                    model.load_state_dict(self.given.state_dict())
            with shown("fit"):
                self._fit(model, 1)

    def _fit(self, model: Model | SimpleLinearRegression, steps: int) -> Any:
        if steps not in self.data:
            self.data[steps] = [data.repeat(steps, *[1] * (data.dim() - 1)) for data in (self.x, self.y)]
        x, y = self.data[steps]
        return model.fit(x, y, 1, self.lr, len(self.x), verbose=False)


class ModuleSubject:
    """Steps of a module with autograd and an optimizer, eager or compiled.

    They start from what the given module and loss hold, of which it needs that they stay as they are. ``change`` is
    called with the copy of the module that trains.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Any,
        targets: Any,
        loss: Callable[[Any, Any], Tensor] | None,
        optimizer: Optimizer,
        kwargs: Mapping[str, Any] | None = None,
        compiled: bool = False,
        change: Callable[[nn.Module], object] = lambda module: None,
    ):
        self.module = _eager(owned(module, "model"))
        change(self.module)
        self.loss = owned(loss, "loss") if isinstance(loss, nn.Module) else loss
        if isinstance(inputs, Mapping):
            inputs = dict(inputs)
        elif not isinstance(inputs, tuple):
            inputs = (inputs,)
        self.given = SimpleNamespace(inputs=inputs, kwargs=dict(kwargs or {}), targets=targets)
        self.start = list(zip(self._tensors(), _state(module, loss), strict=True))
        self.path = "torch.compile" if compiled else "eager"
        self.device = next(costs.tensors_of((list(module.parameters()), inputs, kwargs)), torch.empty(0)).device
        trains = any(parameter.requires_grad for parameter in self.module.parameters())
        self.optimizer = _made(optimizer, module, self.module) if trains else None
        self.reset()
        self.objective: Callable[[], Tensor] = self._objective
        self.update: Callable[[], object] = self.optimizer.step if self.optimizer else nothing
        if compiled:
            self.objective = torch.compile(self.objective, dynamic=False)
            self.update = torch.compile(self.update)
        self.reset()

    def _tensors(self) -> list[Tensor]:
        return _state(self.module, self.loss)

    @torch.no_grad()
    def reset(self) -> None:
        for tensor, value in self.start:
            tensor.copy_(value)
            tensor.grad = None
        # Of its own: a module may write into them, and they may get gradients.
        data = owned(self.given, "", is_data=True)
        self.inputs, self.kwargs, self.targets = data.inputs, data.kwargs, data.targets
        if self.optimizer:
            self.optimizer.state.clear()
        torch.manual_seed(0)  # of what is drawn within

    def _objective(self) -> Tensor:
        return self._loss(self._outputs())

    def _outputs(self) -> Any:
        if isinstance(self.inputs, dict):
            return self.module(**self.inputs)
        return self.module(*self.inputs, **self.kwargs)

    def _loss(self, outputs: Any) -> Tensor:
        if self.loss is None:
            return next(filter(Tensor.is_floating_point, costs.tensors_of(outputs))).square().mean()
        return self.loss(outputs, self.targets)

    def _check(self) -> None:
        """That the outputs have a loss, and this a gradient; timed steps take it for granted."""
        outputs = self._outputs()
        if self.loss is None and not any(map(Tensor.is_floating_point, costs.tensors_of(outputs))):
            raise TypeError(
                f"model returns {_words(outputs)}, expected a floating-point tensor in it, or a loss of what there is"
            )
        loss = self._loss(outputs)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise TypeError(f"loss returns {_words(loss)}, expected a tensor of one floating-point number")
        if self.optimizer and torch.is_grad_enabled() and not loss.requires_grad:
            name, what = ("model", "outputs") if self.loss is None else ("loss", "a tensor")
            raise ValueError(
                f"{name} returns {what} without a gradient, expected one with respect to the parameters; to profile a "
                "forward alone, call profile under torch.no_grad()"
            )
        given = {id(tensor) for _, tensor in self.start}
        if any(id(getattr(node, "variable", None)) in given for node in nodes_of([loss])):
            raise ValueError(
                "loss takes parameters of the model itself, expected outputs and targets alone: what trains is a copy"
            )

    def _finish(self, loss: Tensor) -> None:
        if loss.requires_grad:
            with _ranges.named("backward"):
                loss.backward()
        with _ranges.named("update"):
            self.update()
        for tensor in (*self._tensors(), *costs.tensors_of((self.inputs, self.kwargs, self.targets))):
            tensor.grad = None

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = self.objective()
            self._finish(loss)
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def show(self, ranges: Ranges) -> None:
        with shown("set-up"):
            self.reset()
            self._check()
            self.run(1)  # an optimizer's first step may differ from all others
        with listening(ranges), watching(self.module, ranges) as take, _ranges.named("step"):
            with _ranges.named("forward"):
                outputs = self._outputs()
            with _ranges.named("loss"):
                take(outputs, "")
                loss = self._loss(outputs)
                take(loss, "loss")
            self._finish(loss)
        self.reset()


def _state(*modules: Any) -> list[Tensor]:
    """All that a step may change, in a module and in a loss that is one."""
    return [tensor for m in modules if isinstance(m, nn.Module) for tensor in (*m.parameters(), *m.buffers())]


def _eager(module: nn.Module) -> nn.Module:
    """Without what torch.compile has put around it, or around modules within; a copy has dropped Module.compile."""
    module = getattr(module, "_orig_mod", module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            setattr(parent, name, getattr(child, "_orig_mod", child))
    return module


def _made(optimizer: Optimizer, given: nn.Module, own: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a copy of the given module, if it serves here."""
    parameters = list(own.parameters())
    if isinstance(optimizer, torch.optim.Optimizer):
        memo: dict[int, Any] = dict(zip(map(id, given.parameters()), parameters, strict=True))
        memo[id(optimizer.state)] = defaultdict(dict)  # which begins anew
        made = owned(optimizer, "optimizer", memo=memo)
    else:
        made = optimizer([p for p in parameters if p.requires_grad])
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer returns {_words(made)}, expected a torch.optim.Optimizer")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure and closure.default is inspect.Parameter.empty:
        raise TypeError(f"optimizer is {type(made).__name__}, expected one whose step needs no closure")
    if not {id(p) for group in made.param_groups for p in group["params"]} <= set(map(id, parameters)):
        raise ValueError(f"optimizer is {type(made).__name__} of other parameters, expected one of the model's")
    return made


def _words(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return "None" if value is None else type(value).__name__


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
        net, loss = training_of(model.to_torch(), model.loss_f)
        loss.to(x)
        y = model.loss_f.as_targets("y", y, (len(x), model.n_out), x)
    return torch_subjects(net.to(x.device), (x,), y, loss, partial(torch.optim.SGD, lr=lr), compile)


def torch_subjects(
    net: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Any,
    optimizer: Optimizer,
    compile: bool,
    kwargs: Mapping[str, Any] | None = None,
    change: Callable[[nn.Module], object] = lambda module: None,
) -> dict[str, Subject]:
    made = partial(ModuleSubject, net, inputs, targets, loss, optimizer, kwargs, change=change)
    found: dict[str, Subject] = {"torch eager": made()}
    if compile:
        found["torch.compile"] = made(compiled=True)
    return found
