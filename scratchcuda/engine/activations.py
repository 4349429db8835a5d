"""Activations: each is callable, has ``backward(delta, a)``, and serves inside a Dense or as a layer of its own.

What is computed stands in :mod:`scratchcuda.ops.activations`, by the name that each has as its ``op``.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from scratchcuda import ops
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.ops import _checks
from scratchcuda.ops._entries import ENTRIES, Chosen

__all__ = [
    "ELU",
    "GELU",
    "Activation",
    "Layer",
    "LeakyReLU",
    "Linear",
    "ReLU",
    "RelU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]

T = TypeVar("T", bound="Activation")


class Layer:
    """Base class of everything that a Model stacks.

    A layer of your own needs ``construct(x)`` (make the parameters for inputs like x, return the output),
    ``forward(x)``, ``__forward__(x)`` (the forward of a training step, which keeps what backward needs) and
    ``backward(delta, lr)`` (update the parameters, return the gradient with respect to the input). If it is
    trainable, ``parameter_names`` names its tensors, and ``set_params`` takes them in this order. For momentum and Adam
    its backward needs an argument ``gradients=None``: if that is a dict, the gradients of what is trained go there, by
    name, and nothing is updated. For a weight decay by plain SGD it needs ``weight_decay=0.0``.

    A frozen parameter stays as it is in training, and gradients pass through its layer: all those of a layer whose
    ``is_trainable`` is False, and those that ``frozen`` names. They are in the state_dict, and move, as all others.
    """

    is_trainable: bool = False
    parameter_names: tuple[str, ...] = ("w", "b")
    frozen: Collection[str] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that training changes."""
        if not self.frozen:
            return self.parameter_names if self.is_trainable else ()
        if isinstance(self.frozen, str) or not set(self.frozen) <= set(self.parameter_names):
            raise ValueError(f"frozen is {self.frozen!r}, expected a collection of some of {self.parameter_names}")
        return tuple(name for name in self.parameter_names if name not in self.frozen) if self.is_trainable else ()

    def show(self, make: Callable[[int], Tensor], **indices: int) -> None:
        """Give it attributes that ``make(index)`` makes when they are asked for."""
        attributes = vars(self)
        for name in indices:
            attributes.pop(name, None)
        attributes["_shown"] = make, indices

    if not TYPE_CHECKING:  # which would take any name for an attribute's

        def __getattr__(self, name: str) -> Any:
            make, indices = vars(self).get("_shown", (None, ()))
            if name not in indices:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = vars(self)[name] = make(indices[name])
            return value

    def __getstate__(self) -> dict[str, Any]:
        for name in vars(self).get("_shown", (None, ()))[1]:
            getattr(self, name)
        return {name: value for name, value in vars(self).items() if name != "_shown"}

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __forward__(self, x: Tensor) -> Tensor:
        return self.forward(x)


class Activation(Layer):
    """Base class of activations, elementwise or by row.

    One of your own needs ``__call__(z)`` and ``backward(delta, a)``: from the gradient with respect to the output
    a = f(z), the gradient with respect to z. Both are (m, n) tensors.
    """

    a: Tensor
    #: Its name among ops.ACTIVATIONS; None if the ops do not know it, so that it is always called.
    op: str | None = None
    #: Whether its output carries its input, as the attribute ``scores``, for the loss that a last one belongs to.
    carries_scores: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def backward(self, delta: Tensor, a: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def forward(self, x: Tensor) -> Tensor:
        return self(x)

    def __forward__(self, x: Tensor) -> Tensor:
        self.a = self.forward(x)
        return self.a

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def computed_by(op: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: gives a class methods of its own that call the op, or another variant of it.

    It has the parameters, and what tells variants apart, as attributes.
    """
    entry = ENTRIES[op]

    def decorate(cls: type[T]) -> type[T]:
        def call(self: T, z: Tensor) -> Tensor:
            name, parameters = entry.of(self)
            a: Tensor = getattr(ops, name)(z, *parameters)
            if entry.of_input:
                a.z = z  # type: ignore[attr-defined]
            if self.carries_scores:
                a.scores = z  # type: ignore[attr-defined]
            return a

        def backward(self: T, delta: Tensor, a: Tensor) -> Tensor:
            if self.carries_scores and hasattr(delta, "scores"):
                return delta.scores
            name, parameters = entry.of(self)
            value = getattr(a, "z", None) if entry.of_input else a
            if value is None:  # as that of a plan, or of some arithmetic
                raise ValueError(f"a has no attribute z, expected what a call of {self!r} has returned")
            result: Tensor = getattr(ops, f"{name}_backward")(delta, value, *parameters)
            return result

        def shown(self: T) -> str:
            arguments = (f"{name}={getattr(self, name)!r}" for name in (*entry.parameters, *entry.variant))
            return f"{type(self).__name__}({', '.join(arguments)})"

        cls.op = op
        for name, method in {"__call__": call, "backward": backward, "__repr__": shown}.items():
            method.__qualname__ = f"{cls.__qualname__}.{name}"
            setattr(cls, name, method)
        return replaceable(cls)

    return decorate


@replaceable
class Linear(Activation):
    """The identity, f(z) = z."""

    op = "none"

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def backward(self, delta: Tensor, a: Tensor) -> Tensor:
        return delta


@computed_by("relu")
class ReLU(Activation):
    """f(z) = max(z, 0)."""


#: The documents' name.
RelU = ReLU


@computed_by("sigmoid")
class Sigmoid(Activation):
    """f(z) = 1 / (1 + exp(-z))."""


@computed_by("tanh")
class Tanh(Activation):
    """f(z) = tanh(z)."""


@computed_by("leaky_relu")
class LeakyReLU(Activation):
    """f(z) = z where z > 0, else negative_slope z.

    Args:
        negative_slope: at least 0.
    """

    def __init__(self, negative_slope: float = 0.01):
        (self.negative_slope,) = ENTRIES["leaky_relu"].values([negative_slope])


@computed_by("elu")
class ELU(Activation):
    """f(z) = z where z > 0, else alpha (exp(z) - 1).

    Args:
        alpha: finite.
    """

    def __init__(self, alpha: float = 1.0):
        (self.alpha,) = ENTRIES["elu"].values([alpha])


@computed_by("softplus")
class Softplus(Activation):
    """f(z) = z where beta z > threshold, else log(1 + exp(beta z)) / beta.

    Args:
        beta, threshold: finite.
    """

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        self.beta, self.threshold = ENTRIES["softplus"].values([beta, threshold])


@computed_by("silu")
class SiLU(Activation):
    """f(z) = z / (1 + exp(-z))."""


@computed_by("gelu")
class GELU(Activation):
    """f(z) = z P(X <= z), of a standard normal X.

    Args:
        approximate: "none", or "tanh" for z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2.
    """

    def __init__(self, approximate: str = "none"):
        _checks.one_of("approximate", approximate, ("none", "tanh"))
        self.approximate = approximate


@replaceable
class Softmax(Activation):
    """Rows of probabilities, f(z)_i = exp(z_i) / sum_j exp(z_j) over the last dimension.

    The output carries its scores z as the attribute ``scores``, and a gradient may carry its value with respect
    to them: where a probability has saturated to 0, CrossEntropy can be computed from the scores alone.
    """

    op = "softmax"
    carries_scores = True

    def __call__(self, z: Tensor) -> Tensor:
        a = ops.softmax(z)
        a.scores = z  # type: ignore[attr-defined]
        return a

    def backward(self, delta: Tensor, a: Tensor) -> Tensor:
        return delta.scores if hasattr(delta, "scores") else ops.softmax_backward(delta, a)


#: By op; of several variants the first.
KINDS = {kind.op: kind for kind in Activation.__subclasses__()}


def chosen(activation: Activation) -> Chosen:
    """One of ours as the ops know it, its parameters checked."""
    name, parameters = ENTRIES[str(activation.op)].of(activation)
    return Chosen(name, ENTRIES[name].values(parameters)) if parameters else ENTRIES[name].usual


def layer_of(chosen: Chosen) -> Activation:
    """The layer that computes this."""
    return KINDS[chosen.entry.variants[0].name](**chosen.arguments)


def fused(activation: Activation) -> Chosen | None:
    """The activation that ops.dense may compute in its place; None if it has to be called.

    What carries its scores has to be.
    """
    if activation.op is None or original(activation) is None or activation.carries_scores:
        return None
    return chosen(activation)
