"""Simple linear regression, ``y = b + w x``, trained by gradient descent written out by hand."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from scratchcuda import ops
from scratchcuda._ranges import named
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.engine.course import Course
from scratchcuda.engine.history import History
from scratchcuda.engine.losses import MSE
from scratchcuda.engine.network import Network, Product, Task
from scratchcuda.engine.objective import Objective
from scratchcuda.engine.optimizers import Optimizer, update_options
from scratchcuda.engine.parameters import Slot
from scratchcuda.engine.plans import plan_of
from scratchcuda.engine.training import FitPath, Fitted, Step
from scratchcuda.ops import _checks


@replaceable
class SimpleLinearRegression(Fitted):
    """One feature, one target, ``y = b + w x``.

    Args:
        device: where the parameters are made and stay. If None they are made on torch's default device and move
            once, to the device of the first data they meet.
        dtype: floating-point dtype of the parameters, torch's default one if None.
        generator: source of the normally distributed initial values, torch's default one if None.

    Attributes:
        w: the weight (1,), may be read and assigned.
        b: the bias (1,), may be read and assigned.
        history: of the last fit, also of one that Ctrl-C ended; None before.
        optimizer: of the last fit, with its state; None before.
    """

    _epoch = "epoch"
    #: The names of the parameters that training changes.
    trained = ("w", "b")

    def __init__(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ):
        _checks.float_dtype(dtype)
        with torch.inference_mode(False):  # or a model made there could not be trained
            self.w = torch.randn(1, device=device, dtype=dtype, generator=generator)
            self.b = torch.randn(1, device=device, dtype=dtype, generator=generator)
        self._like = self.w
        self._may_move = device is None
        self.history: History | None = None

    def copy_params(self, torch_layer: nn.Linear) -> None:
        """Copy the parameters of a torch.nn.Linear(1, 1)."""
        bias = getattr(torch_layer, "bias", None)
        if not isinstance(torch_layer, nn.Linear) or torch_layer.weight.shape != (1, 1) or bias is None:
            raise ValueError(f"torch_layer is {torch_layer}, expected a Linear of one feature, one output and a bias")
        with self._unchanged_on_error():
            self.w.copy_(torch_layer.weight[0])
            self.b.copy_(bias)

    def predict(self, x: Any) -> Tensor:
        """x (n_samples,) -> predictions (n_samples,)."""
        samples = self._data("x", x)
        self._settle(x)
        return ops.dense(samples.unsqueeze(-1), self.w.unsqueeze(-1), self.b).squeeze(-1)

    def mse_loss(self, y_true: Tensor, y_pred: Tensor) -> float:
        """Mean squared error of y_pred against y_true, both (n_samples,)."""
        return ops.mse(y_pred, y_true)[0].item()

    def evaluate(self, x: Any, y_true: Any) -> float:
        """Mean squared error of the predictions for x against y_true, both (n_samples,)."""
        samples, y = self._pair("x", x, "y_true", y_true)
        self._settle(x)
        return self.mse_loss(y, self.predict(samples))

    def update(
        self,
        x: Tensor,
        y_true: Tensor,
        y_pred: Tensor,
        lr: float,
        weight_decay: float = 0.0,
        optimizer: Optimizer | None = None,
    ) -> None:
        """One step of gradient descent.

        Args:
            x, y_true, y_pred: inputs, targets and predictions (n_samples,).
            lr: learning rate.
            weight_decay: factor of the L2 penalty on w, not on b.
            optimizer: takes the step instead of plain gradient descent, with its own weight decay.
        """
        x, y_true = self._pair("x", x, "y_true", y_true)
        self._descend(x, ops.mse(y_pred, y_true)[1], lr, weight_decay, optimizer)

    def _descend(
        self, x: Tensor, delta: Tensor, lr: float, weight_decay: float = 0.0, optimizer: Optimizer | None = None
    ) -> None:
        delta, x = delta.unsqueeze(-1), x.unsqueeze(-1)
        if optimizer is None:
            ops.dense_update_(delta, x, self.w.unsqueeze(-1), self.b, lr, weight_decay)
        else:
            w, b = ops.dense_backward_weights(delta, x)
            optimizer.step(self._slots(), {"w": w.squeeze(-1), "b": b}, lr)

    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int,
        lr: float | Callable[[int], float] | LRScheduler,
        batch_size: int,
        x_valid: Any = None,
        y_valid: Any = None,
        **options: Any,
    ) -> History:
        """Train by mini-batch gradient descent; arguments, result and errors as in :meth:`Model.fit`.

        All data are (n_samples,).

        Args:
            options: those that Model.fit takes by name; there are no sample weights.
        """
        if unknown := [name for name in options if name not in Course.__dataclass_fields__]:
            raise TypeError(f"fit() got an unexpected keyword argument {unknown[0]!r}")
        course = Course(epochs=epochs, lr=lr, batch_size=batch_size, **options)
        course.check_loss(MSE())
        return self._fit(("x", x, "y", y), x_valid, y_valid, course)

    def _update_options(self, optimizer: Optimizer) -> dict[str, Any]:
        return update_options(optimizer, [] if original(self) else [self.update])

    def _planned(self, task: Task) -> FitPath | str:
        network = Network([Product(self.w.unsqueeze(-1), self.b)], Objective("mse"), [], (1, 1))
        x, y = task.x.unsqueeze(-1), task.y.unsqueeze(-1)
        valid = None if task.valid is None else (task.valid[0].unsqueeze(-1), task.valid[1].unsqueeze(-1))
        return plan_of(self, network, replace(task, x=x, y=y, valid=valid))

    def _general_step(self, task: Task, options: dict[str, Any]) -> Step:
        def step(x: Tensor, y: Tensor) -> tuple[float | Tensor, Tensor]:
            with named("forward"):
                y_pred = self.predict(x)
            if original(self):
                with named("loss"):
                    loss, delta = ops.mse(y_pred, y)
                with named("update"):
                    self._descend(x, delta, task.lr, **options)
                return loss, y_pred
            with named("loss"):
                mean = self.mse_loss(y, y_pred)
            with named("update"):
                self.update(x, y, y_pred, task.lr, **options)
            return mean, y_pred

        return step

    def _figures(self, history: History) -> str:
        found = f"MSE: {round(history.loss[-1], 4)}"
        return found + (f" - MSE_v: {round(history.valid_loss[-1], 4)}" if history.valid_loss else "")

    def __repr__(self) -> str:
        return f"SimpleLinearRegression(w={self.w}, b={self.b})"

    def _slots(self) -> Iterator[Slot]:
        yield Slot("w", self, "w")
        yield Slot("b", self, "b")

    def _data(self, name: str, x: Any, beside: Tensor | None = None) -> Tensor:
        x = super()._data(name, x, beside)
        if x.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected (n_samples,)")
        return x

    def _pair(self, x_name: str, x: Any, y_name: str, y: Any, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets that fit each other."""
        x = self._data(x_name, x, beside)
        _checks.not_empty(x_name, x)
        y = y.to(x.dtype) if isinstance(y, Tensor) and y.is_floating_point() else y
        y = self._data(y_name, y, beside=x)
        _checks.same_length(y_name, y, x_name, x)
        return x, y
