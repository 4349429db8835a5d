"""What an elementwise loss is: all that tells one from another, in one entry.

From :data:`LOSSES` follow the ops, the plans' calls, the drop-in functions and modules, conversions, costs, benchmarks,
and what the tests hold the kernels to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._entries import Parametrized
from scratchcuda.ops._registry import operation
from scratchcuda.ops._steps import record, step_bytes, take_step

#: By the number that torch has for each.
REDUCTIONS = ("none", "mean", "sum")
NUMBERS = {reduction: number for number, reduction in enumerate(REDUCTIONS)}

Compare = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True, kw_only=True)
class Loss(Parametrized):
    """An elementwise loss, as torch has it.

    Its functions take what their names say, then weights, then parameters; operands are the weight of positive targets,
    if it has one, and parameters.

    Attributes:
        name: of its ops.
        module: torch.nn's.
        function: the name of torch.nn.functional's.
        torchs: torch's op, of input, target, weights, the number of the reduction and parameters.
        formula, derivative: the value, and its derivative with respect to p up to ``factor``, as (m, p, t, *operands)
            by the functions ``where``, ``exp``, ``log``, ``log1p`` of some mathematics m: NumPy's, or torch's.
        flops: of an element: of the formula, the derivative, and both together.
        factor: what the derivative is to be multiplied by.
        of_probabilities: whether it takes predictions from 0 to 1 alone.
        weights: "weight", of the values, and "pos_weight", of positive targets; those that it takes.
        parameters: one at most.
        compare: makes the call of the tensor plan, of a prediction (n_out, m), and of delta (n_out, columns), whose
            columns beyond m are 0, and of the parameters. Of targets (n_out, m) and a loss () it writes the derivative
            into delta, and the sum of the values into the loss. None if no model trains with it.
    """

    name: str
    module: type[nn.Module]
    function: str
    torchs: Callable[..., Tensor]
    formula: Callable[..., Any]
    derivative: Callable[..., Any]
    flops: tuple[int, int, int]
    factor: int = 1
    of_probabilities: bool = False
    weights: tuple[str, ...] = ()
    compare: Callable[..., Compare] | None = None

    def __post_init__(self) -> None:
        LOSSES[self.name] = self
        pair, reduction, (value, derivative, both) = "Tensor y_pred, Tensor y_true", 'str reduction="mean"', self.flops
        weights = "".join(f", Tensor? {name}=None" for name in self.weights)
        options = self.options

        def flops(each: int, of: dict[str, Any]) -> int:
            given = sum(of[name] is not None for name in self.weights)
            return (each + given) * int(of["y_pred"].numel())

        operation(
            f"{self.name}_value({pair}{weights}{options}, {reduction}) -> Tensor",
            others=lambda of, out: flops(value + (of["reduction"] != "none"), of),
        )(self.value_twin)
        operation(
            f"{self.name}_backward(Tensor grad, {pair}{weights}{options}, {reduction}) -> Tensor",
            others=lambda of, out: flops(derivative + 1, of),
        )(self.backward_twin)
        if self.compare:
            operation(f"{self.name}({pair}{options}) -> (Tensor, Tensor)", others=both + 2)(self.twin)
            schema = f"{self.name}_step_({pair}, Tensor(a!) losses, Tensor(b!) step{options}) -> Tensor"
            operation(schema, others=both + 2, moved=step_bytes)(self.step_twin)

    @cached_property
    def defaults(self) -> tuple[Any, ...]:
        """Of the arguments after y_pred and y_true: weights, parameters, reduction."""
        return *(None for _ in self.weights), *(each.default for each in self.parameters.values()), "mean"

    @cached_property
    def defaults_by_name(self) -> dict[str, Any]:
        return dict(zip((*self.weights, *self.parameters, "reduction"), self.defaults, strict=True))

    def value_twin(self, y_pred: Tensor, y_true: Tensor, *given: Any) -> Tensor:
        *options, reduction = *given, *self.defaults[len(given) :]
        weights, parameters = options[: len(self.weights)], options[len(self.weights) :]
        if any(weight is not None and weight.requires_grad for weight in weights):  # which torch's has no formula for
            weight, *operands = options
            values = self.formula(torch, y_pred, y_true, *(o for o in operands if o is not None))
            values = values if weight is None else values * weight
            return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()
        return self.torchs(y_pred, y_true, *weights, NUMBERS[reduction], *parameters)

    def backward_twin(self, grad: Tensor, y_pred: Tensor, y_true: Tensor, *given: Any) -> Tensor:
        # grad of the loss's shape, y_pred and y_true of one -> gradient with respect to y_pred
        *options, reduction = *given, *self.defaults[len(given) :]
        return self._gradient(grad, y_pred, y_true, *options, of_mean=reduction == "mean")

    def _gradient(self, grad: Any, y_pred: Tensor, y_true: Tensor, *options: Any, of_mean: bool) -> Tensor:
        """In 16 bits it is rounded once, as a scale in grad may yet bring it into range."""
        dtype = y_pred.dtype
        if dtype.itemsize == 2:
            values = grad, y_pred, y_true, *options
            grad, y_pred, y_true, *options = (v.float() if isinstance(v, Tensor) else v for v in values)  # type: ignore[assignment]
        weight, *operands = options if self.weights else (None, *options)
        scale = grad * (self.factor / max(1, y_pred.numel() if of_mean else 1))
        result: Tensor = self.derivative(torch, y_pred, y_true, *(o for o in operands if o is not None)) * scale
        return (result if weight is None else result * weight).to(dtype)

    def twin(self, y_pred: Tensor, y_true: Tensor, *parameters: float) -> tuple[Tensor, Tensor]:
        # y_pred, y_true of one shape -> loss (), gradient with respect to y_pred
        options = *(None for _ in self.weights), *(parameters or self.defaults[len(self.weights) : -1])
        return self.value_twin(y_pred, y_true, *options), self._gradient(1, y_pred, y_true, *options, of_mean=True)

    def step_twin(self, y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor, *parameters: float) -> Tensor:
        return record(*self.twin(y_pred, y_true, *parameters), losses, step)

    # The public functions: each is checked, then served.

    def loss(self, y_pred: Tensor, y_true: Tensor, *parameters: float) -> tuple[Tensor, Tensor]:
        self._check(y_pred, y_true, parameters)
        result: tuple[Tensor, Tensor] = _backend.serving(self.name, y_pred, y_true)(y_pred, y_true, *parameters)
        return result

    def step(self, y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor, *parameters: float) -> Tensor:
        self._check(y_pred, y_true, parameters)
        return take_step(f"{self.name}_step_", "y_pred", y_pred, y_true, losses, step, *parameters)

    def value(self, y_pred: Tensor, y_true: Tensor, *options: Any) -> Tensor:
        """Options are weights, parameters and the reduction."""
        tensors = y_pred, y_true, *self._check_all(y_pred, y_true, options)
        result: Tensor = _backend.serving(f"{self.name}_value", *tensors)(y_pred, y_true, *options)
        return result

    def backward(self, grad: Tensor, y_pred: Tensor, y_true: Tensor, *options: Any) -> Tensor:
        tensors = grad, y_pred, y_true, *self._check_all(y_pred, y_true, options)
        _checks.alike("grad", grad, "y_pred", y_pred)
        _checks.shape("grad", grad, tuple(y_pred.shape) if options[-1] == "none" else ())
        result: Tensor = _backend.serving(f"{self.name}_backward", *tensors)(grad, y_pred, y_true, *options)
        return result

    def _check(self, y_pred: Tensor, y_true: Tensor, parameters: Sequence[float]) -> None:
        _checks.floating("y_pred", y_pred)
        _checks.alike("y_true", y_true, "y_pred", y_pred)
        _checks.shape("y_true", y_true, tuple(y_pred.shape))
        self.checked_values(parameters)

    def _check_all(self, y_pred: Tensor, y_true: Tensor, options: Sequence[Any]) -> list[Tensor]:
        """Returns the weights that are given."""
        *options, reduction = options
        weights = dict(zip(self.weights, options, strict=False))
        self._check(y_pred, y_true, options[len(weights) :])
        for name, weight in weights.items():
            if weight is not None:
                _checks.alike(name, weight, "y_pred", y_pred)
                _checks.broadcasts(name, weight, "y_pred", y_pred)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        return [weight for weight in weights.values() if weight is not None]


#: By name, each that was made, in losses.py.
LOSSES: dict[str, Loss] = {}
