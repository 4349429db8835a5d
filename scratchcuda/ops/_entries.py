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
    """Of an activation or a loss: its default, and the least value with which the derivative is right."""

    default: float
    least: float = -math.inf

    def takes(self, value: Any) -> bool:
        return type(value) in (float, int) and -math.inf < value < math.inf and value >= self.least


@dataclass(frozen=True, kw_only=True)
class Parametrized:
    """What has parameters: an activation, or a loss.

    Attributes:
        parameters: by the names that torch's module and function give them.
    """

    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def options(self) -> str:
        """They, in a schema."""
        return "".join(f", float {name}={parameter.default}" for name, parameter in self.parameters.items())

    def takes(self, given: Sequence[Any]) -> bool:
        """Whether the formulas are right with these values of the parameters."""
        return all(parameter.takes(value) for parameter, value in zip(self.parameters.values(), given, strict=True))

    def checked_values(self, given: Sequence[Any], of: str = "") -> tuple[float, ...]:
        """These values, or an error that says ``of`` what they are."""
        named = zip(self.parameters.items(), given, strict=True)
        return tuple(_checks.at_least(of + name, value, parameter.least) for (name, parameter), value in named)


@dataclass(frozen=True, kw_only=True)
class Entry(Parametrized):
    """An activation, as torch has it.

    Functions take what their names say, and then the parameters, in order.

    Attributes:
        name: of the op, and of torch.nn.functional's function.
        module: torch.nn's.
        forward, in_place: torch's functions of z.
        into: torch's function of z, with ``out`` and the parameters as keywords: a call of the tensor plan.
        gradient, arguments: torch's op of the derivative, and what it takes after delta, made of value.
        out: the overload of ``gradient`` that takes memory for its result; empty if there is none.
        of_input: whether value, which the derivative is in terms of, is the input z; else it is the output a.
        flops: of an element, forward and backward.
        variant: the argument of module, function and gradient that tells this formula from others of the same module,
            which have the same parameters.
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
    variant: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ENTRIES[self.name] = self
        MODULES.setdefault(self.module, self)

    @cached_property
    def usual(self) -> "Chosen":
        """It, with the defaults of its parameters."""
        return Chosen(self.name, tuple(parameter.default for parameter in self.parameters.values()))

    @cached_property
    def variants(self) -> "list[Entry]":
        """Those of the same module, itself among them."""
        return [entry for entry in ENTRIES.values() if entry.module is self.module]

    @property
    def is_first(self) -> bool:
        """Whether it stands for all its variants, as the class of their modules."""
        return self.variants[0] is self

    def among(self, arguments: Mapping[str, Any]) -> "Entry | None":
        """Of its variants that of these arguments, if there is one."""
        for entry in self.variants:
            if all(arguments[name] == value for name, value in entry.variant.items()):
                return entry
        return None

    def of(self, owner: object) -> "Chosen":
        """It, or another of its variants, with the parameters that an object has as attributes, as they are."""
        entry: Entry = self
        if self.variant:
            given = {name: getattr(owner, name) for name in self.variant}
            if (found := self.among(given)) is None:
                raise ValueError(f"{owner} has {given}, expected one of {[dict(v.variant) for v in self.variants]}")
            entry = found
        if not entry.parameters:
            return entry.usual
        return Chosen(entry.name, tuple(getattr(owner, name) for name in entry.parameters))

    @cached_property
    def others(self) -> dict[str, Any]:
        """The other arguments of the module, with their defaults."""
        arguments = inspect.signature(self.module).parameters.values()
        named = [argument for argument in arguments if argument.kind not in _VARIABLE]
        return {argument.name: argument.default for argument in named if argument.name not in self.parameters}

    def backward_in_place(self, delta: Tensor, value: Tensor, *parameters: float) -> Callable[[], object]:
        """The call that puts it in the place of delta."""
        arguments = self.arguments(value, *parameters)
        if not self.out:
            return lambda: delta.copy_(self.gradient(delta, *arguments, **self.variant))
        return partial(getattr(self.gradient, self.out), delta, *arguments, **self.variant, grad_input=delta)

    def values(self, given: Sequence[float] = (), of: str = "") -> tuple[float, ...]:
        """These values of the parameters, checked, or their defaults if there are none; errors say ``of`` what."""
        if not given:
            return self.usual.parameters
        if len(given) != len(self.parameters):
            raise ValueError(
                f"activation_parameters has {len(given)} numbers, expected {len(self.parameters)} for {self.name}"
            )
        return self.checked_values(given, of)

    def checked(self, name: str, module: nn.Module) -> "Chosen":
        """What this module of ``self.module`` computes, on rows (m, n).

        Raises:
            ValueError: if it has an argument that ours lacks, or a value that ours does not take.
        """
        for argument, known in self.lacking(module).items():
            expected = " or ".join(f"{argument}={value!r}" for value in known)
            raise ValueError(f"{name} is {module}, expected {expected}")
        of, parameters = self.of(module)
        return Chosen(of, self.values(parameters, f"{name}."))

    def lacking(self, module: nn.Module) -> dict[str, tuple[Any, ...]]:
        """The arguments of a module that are others than are computed here, and what they would have to be."""
        return {argument: known for argument, known in self._computed.items() if getattr(module, argument) not in known}

    @cached_property
    def _computed(self) -> dict[str, tuple[Any, ...]]:
        others = {argument: (default,) for argument, default in self.others.items() if argument != "inplace"}
        variants = {name: tuple(entry.variant[name] for entry in self.variants) for name in self.variant}
        return others | variants | dict(self.known)


@dataclass(frozen=True, kw_only=True)
class Elementwise(Entry):
    """One that has ops of its own.

    Attributes:
        formula, derivative: f(z) as (m, z), and delta f'(z) as (m, delta, value), by the functions ``where``, ``exp``,
            ``expm1``, ``log1p``, ``erfc`` and ``tanh`` of some mathematics m: NumPy's, or torch's.
        is_last: whether ``gradient`` has no derivative of its own, so that the formula serves where that is asked for.
    """

    formula: Callable[..., Any]
    derivative: Callable[..., Any]
    is_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        value, (forward, backward) = "z" if self.of_input else "a", self.flops
        operation(f"{self.name}(Tensor z{self.options}) -> Tensor", others=forward)(self.forward)
        schema = f"{self.name}_backward(Tensor delta, Tensor {value}{self.options}) -> Tensor"
        operation(schema, others=backward)(self.backward)

    def backward(self, delta: Tensor, value: Tensor, *parameters: float) -> Tensor:
        """``delta f'(z)``, with the defaults of the parameters if there are none."""
        parameters = parameters or self.usual.parameters
        if self.is_last and torch.is_grad_enabled() and (delta.requires_grad or value.requires_grad):
            result: Tensor = self.derivative(torch, delta, value, *parameters)
        else:
            result = self.gradient(delta, *self.arguments(value, *parameters), **self.variant)
        return result


class Chosen(NamedTuple):
    """An activation with its parameters, as a dense layer or a plan computes it."""

    name: str
    parameters: tuple[float, ...] = ()

    @property
    def entry(self) -> Entry:
        return ENTRIES[self.name]

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the module, or of the layer of the engine."""
        return dict(zip(self.entry.parameters, self.parameters, strict=True)) | dict(self.entry.variant)

    def module(self) -> nn.Module:
        """Torch.nn's, on rows."""
        return self.entry.module(**self.arguments, **{name: values[-1] for name, values in self.entry.known.items()})


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
#: By torch's module; of several variants the first.
MODULES: dict[type[nn.Module], Entry] = {}


def elementwise() -> list[Elementwise]:
    return [entry for entry in ENTRIES.values() if isinstance(entry, Elementwise)]
