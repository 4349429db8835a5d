"""What an activation is: all that tells one from another, in one entry.

From :data:`ENTRIES` follow the plans, what a dense layer computes along, the drop-in functions and modules,
conversions, costs, benchmarks, and what the tests hold the kernels to.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scratchcuda.ops import _checks
from scratchcuda.ops._registry import operation

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Parameter(NamedTuple):
    """Of an activation: its default, and the least value with which the derivative is right."""

    default: float
    least: float = -math.inf

    def takes(self, value: Any) -> bool:
        return type(value) in (float, int) and self.least <= value < math.inf


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
        ENTRIES[self.name] = MODULES[self.module] = self

    @cached_property
    def usual(self) -> "Chosen":
        """It, with the defaults of its parameters."""
        return Chosen(self.name, tuple(parameter.default for parameter in self.parameters.values()))

    def of(self, owner: object) -> "Chosen":
        """It, with the parameters that an object has as attributes, as they are."""
        if not self.parameters:
            return self.usual
        return Chosen(self.name, tuple(getattr(owner, name) for name in self.parameters))

    @cached_property
    def others(self) -> dict[str, Any]:
        """The other arguments of the module, with their defaults."""
        arguments = inspect.signature(self.module).parameters.values()
        named = [argument for argument in arguments if argument.kind not in _VARIABLE]
        return {argument.name: argument.default for argument in named if argument.name not in self.parameters}

    def backward_in_place(self, delta: Tensor, value: Tensor, *parameters: float) -> Callable[[], object]:
        """The call that puts it in the place of delta."""
        op = getattr(self.gradient, self.out)
        return partial(op, delta, *self.arguments(value, *parameters), grad_input=delta)

    def values(self, given: Sequence[float] = (), of: str = "") -> tuple[float, ...]:
        """These values of the parameters, checked, or their defaults if there are none; errors say ``of`` what."""
        if not given:
            return self.usual.parameters
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
        for argument, known in self.lacking(module).items():
            expected = " or ".join(f"{argument}={value!r}" for value in known)
            raise ValueError(f"{name} is {module}, expected {expected}")
        return self.values(self.of(module).parameters, f"{name}.")

    def takes(self, given: Sequence[Any]) -> bool:
        """Whether the derivative is right with these values of the parameters."""
        return all(parameter.takes(value) for parameter, value in zip(self.parameters.values(), given, strict=True))

    def lacking(self, module: nn.Module) -> dict[str, tuple[Any, ...]]:
        """The arguments of a module that are others than are computed here, and what they would have to be."""
        return {argument: known for argument, known in self._computed.items() if getattr(module, argument) not in known}

    @cached_property
    def _computed(self) -> dict[str, tuple[Any, ...]]:
        others = {argument: default for argument, default in self.others.items() if argument != "inplace"}
        return {argument: self.known.get(argument, (default,)) for argument, default in others.items()}


@dataclass(frozen=True, kw_only=True)
class Elementwise(Entry):
    """One that has ops of its own.

    Attributes:
        formula, derivative: f(z) as (m, z), and delta f'(z) as (m, delta, value), by the functions ``where``, ``exp``,
            ``tanh`` of some mathematics m: NumPy's, or torch's.
        is_last: whether ``gradient`` has no derivative of its own, so that the formula serves where that is asked for.
    """

    formula: Callable[..., Any]
    derivative: Callable[..., Any]
    is_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        options = "".join(f", float {name}={parameter.default}" for name, parameter in self.parameters.items())
        value, (forward, backward) = "z" if self.of_input else "a", self.flops
        operation(f"{self.name}(Tensor z{options}) -> Tensor", others=forward)(self.forward)
        schema = f"{self.name}_backward(Tensor delta, Tensor {value}{options}) -> Tensor"
        operation(schema, others=backward)(self.backward)

    def backward(self, delta: Tensor, value: Tensor, *parameters: float) -> Tensor:
        """``delta f'(z)``, with the defaults of the parameters if there are none."""
        parameters = parameters or self.usual.parameters
        if self.is_last and torch.is_grad_enabled() and (delta.requires_grad or value.requires_grad):
            result: Tensor = self.derivative(torch, delta, value, *parameters)
        else:
            result = self.gradient(delta, *self.arguments(value, *parameters))
        return result


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


def chosen(name: str, parameters: Sequence[float], but: str = "") -> Chosen:
    """An activation by the arguments of a dense layer, checked; of all but one, if there is one."""
    if type(name) is not str or name not in ENTRIES or name == but:
        _checks.one_of("activation", name, [each for each in ENTRIES if each != but])
    if type(parameters) is tuple and not parameters:
        return ENTRIES[name].usual
    if isinstance(parameters, str | set | frozenset | Mapping) or not isinstance(parameters, Iterable):
        raise TypeError(f"activation_parameters is {parameters!r}, expected a sequence of numbers")
    return Chosen(name, ENTRIES[name].values(tuple(parameters), f"{name}'s "))


#: By name, each that was made, in activations.py or softmax.py.
ENTRIES: dict[str, Entry] = {}
#: The same by torch's module.
MODULES: dict[type[nn.Module], Entry] = {}


def elementwise() -> list[Elementwise]:
    return [entry for entry in ENTRIES.values() if isinstance(entry, Elementwise)]
