"""The elementwise activations: a = f(z), and backward, from delta = dL/da: dL/dz = delta f'(z).

One entry tells all that differs from one to the next: from :data:`ENTRIES` follow the layers, the plans, what a dense
layer computes along, the drop-in functions and modules, conversions, costs, benchmarks, and the oracle of the tests.
An entry is added here, its kernels' formulas in ``csrc/kernels/activations.cuh``, and its layer in
:mod:`scratchcuda.engine.activations`.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._registry import operation

__all__ = [
    "leaky_relu",
    "leaky_relu_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "tanh",
    "tanh_backward",
]

aten = torch.ops.aten
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Parameter(NamedTuple):
    """Of an activation: its default, and the least value with which the derivative is right."""

    default: float
    least: float = -math.inf


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An activation, as torch has it.

    Functions take what their names say, and then the parameters, in order.

    Attributes:
        name: of the op, and of torch.nn.functional's function.
        module: torch.nn's.
        forward, in_place: torch's functions of z.
        into: torch's function of z, with ``out`` and the parameters as keywords: a call of the tensor plan.
        gradient, arguments: torch's op of the derivative, and what it takes after delta, made of value.
        out: the overload of ``gradient`` that takes memory for its result.
        of_input: whether value, which the derivative is in terms of, is the input z; else it is the output a.
        flops: of an element, forward and backward.
        parameters: by the names that module and function give them.
        known: values of other arguments of the module that are computed here; "inplace" changes none.
    """

    name: str
    module: type[nn.Module]
    forward: Callable[..., Tensor]
    in_place: Callable[..., Tensor]
    into: Callable[..., object]
    gradient: Any = None
    arguments: Callable[..., tuple[Any, ...]] = lambda value: (value,)
    out: str = "grad_input"
    of_input: bool = False
    flops: tuple[int, int]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    known: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ENTRIES[self.name] = self

    @cached_property
    def others(self) -> dict[str, Any]:
        """The other arguments of the module, with their defaults."""
        arguments = inspect.signature(self.module).parameters.values()
        named = [argument for argument in arguments if argument.kind not in _VARIABLE]
        return {argument.name: argument.default for argument in named if argument.name not in self.parameters}

    def backward(self, delta: Tensor, value: Tensor, *parameters: float) -> Tensor:
        """``delta f'(z)``."""
        result: Tensor = self.gradient(delta, *self.arguments(value, *parameters))
        return result

    def backward_in_place(self, delta: Tensor, value: Tensor, *parameters: float) -> Callable[[], object]:
        """The call that puts it in the place of delta."""
        op = getattr(self.gradient, self.out)
        return partial(op, delta, *self.arguments(value, *parameters), grad_input=delta)

    def values(self, given: Sequence[float] = (), of: str = "") -> tuple[float, ...]:
        """These values of the parameters, checked, or their defaults if there are none; errors say ``of`` what."""
        if not given:
            return tuple(parameter.default for parameter in self.parameters.values())
        if len(given) != len(self.parameters):
            raise ValueError(
                f"activation_parameters has {len(given)} numbers, expected {len(self.parameters)} for {self.name}"
            )
        named = zip(self.parameters.items(), given, strict=True)
        return tuple(_checks.at_least(of + name, value, parameter.least) for (name, parameter), value in named)

    def values_of(self, name: str, module: nn.Module) -> tuple[float, ...]:
        """The values of the parameters that this module of ``self.module`` has, on rows (m, n).

        Raises:
            ValueError: if it has one that ours lacks, or a value that ours does not take.
        """
        for argument, default in self.others.items():
            known = self.known.get(argument, (default,))
            if argument != "inplace" and getattr(module, argument) not in known:
                expected = " or ".join(f"{argument}={value!r}" for value in known)
                raise ValueError(f"{name} is {module}, expected {expected}")
        return self.values([getattr(module, parameter) for parameter in self.parameters], f"{name}.")

    def takes(self, given: Sequence[Any]) -> bool:
        """Whether the derivative is right with these values of the parameters."""
        return all(
            type(value) in (float, int) and math.isfinite(value) and value >= parameter.least
            for value, parameter in zip(given, self.parameters.values(), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Elementwise(Entry):
    """One that has ops of its own.

    Attributes:
        formula, derivative: f(z) as (m, z), and delta f'(z) as (m, delta, value), by the functions ``where``, ``exp``,
            ``tanh`` of some mathematics m: NumPy's, or torch's.
    """

    formula: Callable[..., Any]
    derivative: Callable[..., Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        options = "".join(f", float {name}={parameter.default}" for name, parameter in self.parameters.items())
        value, (forward, backward) = "z" if self.of_input else "a", self.flops
        operation(f"{self.name}(Tensor z{options}) -> Tensor", others=forward)(self.forward)
        schema = f"{self.name}_backward(Tensor delta, Tensor {value}{options}) -> Tensor"
        operation(schema, others=backward)(self.backward)


class Chosen(NamedTuple):
    """An activation with its parameters, as a dense layer or a plan computes it."""

    name: str
    parameters: tuple[float, ...] = ()

    @property
    def entry(self) -> Entry:
        return ENTRIES[self.name]

    def module(self) -> nn.Module:
        """Torch.nn's, on rows."""
        options: dict[str, Any] = dict(zip(self.entry.parameters, self.parameters, strict=True))
        return self.entry.module(**options, **{name: values[-1] for name, values in self.entry.known.items()})


def chosen(name: str, parameters: Sequence[float], known: Collection[str] | None = None) -> Chosen:
    """An activation by the arguments of a dense layer, checked; of these names, or of all."""
    _checks.one_of("activation", name, ENTRIES if known is None else known)
    return Chosen(name, ENTRIES[name].values(parameters, f"{name}'s "))


#: By name, each that was made, here or in softmax.py.
ENTRIES: dict[str, Entry] = {}


def elementwise() -> list[Elementwise]:
    return [entry for entry in ENTRIES.values() if isinstance(entry, Elementwise)]


Entry(
    name="none",
    module=nn.Identity,
    forward=lambda z: z,
    in_place=lambda z: z,
    into=torch.clone,
    flops=(0, 0),
)

Elementwise(
    name="relu",
    module=nn.ReLU,
    formula=lambda m, z: m.where(z < 0, 0, z),
    derivative=lambda m, delta, a: m.where(a <= 0, 0, delta),
    forward=torch.relu,
    in_place=torch.relu_,
    into=partial(torch.clamp_min, min=0),
    gradient=aten.threshold_backward,
    arguments=lambda a: (a, 0),
    flops=(1, 1),
)


def relu(z: Tensor) -> Tensor:
    """``max(z, 0)``, any shape."""
    return _forward("relu", z)


def relu_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta`` where ``a > 0``, else 0, with ``a = relu(z)``; both of one shape."""
    return _backward("relu", delta, a)


Elementwise(
    name="sigmoid",
    module=nn.Sigmoid,
    formula=lambda m, z: 1 / (1 + m.exp(-z)),
    derivative=lambda m, delta, a: delta * a * (1 - a),
    forward=torch.sigmoid,
    in_place=torch.sigmoid_,
    into=torch.sigmoid,
    gradient=aten.sigmoid_backward,
    flops=(4, 3),
)


def sigmoid(z: Tensor) -> Tensor:
    """``1 / (1 + exp(-z))``, any shape."""
    return _forward("sigmoid", z)


def sigmoid_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta a (1 - a)``, with ``a = sigmoid(z)``; both of one shape."""
    return _backward("sigmoid", delta, a)


Elementwise(
    name="tanh",
    module=nn.Tanh,
    formula=lambda m, z: m.tanh(z),
    derivative=lambda m, delta, a: delta * (1 - a * a),
    forward=torch.tanh,
    in_place=torch.tanh_,
    into=torch.tanh,
    gradient=aten.tanh_backward,
    flops=(1, 3),
)


def tanh(z: Tensor) -> Tensor:
    """``tanh(z)``, any shape."""
    return _forward("tanh", z)


def tanh_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta (1 - a^2)``, with ``a = tanh(z)``; both of one shape."""
    return _backward("tanh", delta, a)


Elementwise(
    name="leaky_relu",
    module=nn.LeakyReLU,
    parameters={"negative_slope": Parameter(0.01, least=0)},  # below 0 the output does not tell the sign of the input
    formula=lambda m, z, slope: m.where(z > 0, z, slope * z),
    derivative=lambda m, delta, a, slope: m.where(a > 0, delta, slope * delta),
    forward=functional.leaky_relu,
    in_place=functional.leaky_relu_,
    into=torch._C._nn.leaky_relu,
    gradient=aten.leaky_relu_backward,
    arguments=lambda a, slope: (a, slope, True),
    flops=(2, 2),
)


def leaky_relu(z: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``z`` where ``z > 0``, else ``negative_slope z``, any shape; the slope is at least 0."""
    return _forward("leaky_relu", z, negative_slope)


def leaky_relu_backward(delta: Tensor, a: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``delta`` where ``a > 0``, else ``negative_slope delta``, with ``a = leaky_relu(z)``; both of one shape."""
    return _backward("leaky_relu", delta, a, negative_slope)


def _forward(name: str, z: Tensor, *parameters: float) -> Tensor:
    _checks.floating("z", z)
    return _backend.serving(name, z)(z, *ENTRIES[name].values(parameters))


def _backward(name: str, delta: Tensor, value: Tensor, *parameters: float) -> Tensor:
    entry = ENTRIES[name]
    _checks.outputs(delta, value, "z" if entry.of_input else "a")
    return _backend.serving(f"{name}_backward", delta, value)(delta, value, *entry.values(parameters))
