"""torch.nn's modules of the same names, on the functions of :mod:`scratchcuda.nn.functional`.

Each takes the arguments of torch.nn's, and has its parameters, initial values, state_dict and repr. None keeps any
other state, so copies, pickles and checkpoints go both ways.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from scratchcuda import _ranges
from scratchcuda._fallback import StandIn
from scratchcuda.nn import functional
from scratchcuda.ops import _entries, _losses
from scratchcuda.ops._entries import ENTRIES, Chosen, Elementwise, Entry, elementwise
from scratchcuda.ops._losses import Loss


class Linear(torch.nn.Linear, metaclass=StandIn):
    """torch.nn.Linear, ``y = f(x weight^T + bias)``, with an activation f that is computed along with it.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear's.
        activation: one of :data:`scratchcuda.ops.ACTIVATIONS`; softmax runs over the last dimension.
        activation_parameters: those of its function, in order; their defaults if there are none.

    Shapes: x (..., in_features), y (..., out_features).
    """

    activation = "none"
    activation_parameters: Sequence[float] = ()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        activation_parameters: Sequence[float] = (),
    ):
        chosen = _entries.chosen(activation, activation_parameters)
        super().__init__(in_features, out_features, bias, device, dtype)
        if activation != "none":
            self.activation = activation
        if chosen.parameters:
            self.activation_parameters = chosen.parameters

    def forward(self, input: Tensor, activation: str = "", activation_parameters: Sequence[float] = ()) -> Tensor:
        if not activation:
            activation, activation_parameters = self.activation, self.activation_parameters
        parameters = self._parameters  # where they usually are: through Module's attributes it takes half a µs each
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if weight is None or bias is None:
            return functional.linear(input, self.weight, self.bias, activation, activation_parameters)
        return functional.linear(input, weight, bias, activation, activation_parameters)

    def extra_repr(self) -> str:
        own = f", activation={self.activation!r}" if self.activation != "none" else ""
        own += f", activation_parameters={self.activation_parameters!r}" if self.activation_parameters else ""
        return super().extra_repr() + own


class LazyLinear(torch.nn.LazyLinear, metaclass=StandIn):
    """torch.nn.LazyLinear, which becomes our :class:`Linear`."""

    cls_to_become = Linear
    activation = "none"
    activation_parameters: Sequence[float] = ()
    forward = Linear.forward  # of the call in which it becomes one


def _module(entry: Elementwise) -> Any:
    """Ours of torch.nn's class: its forward is our function of the same name."""
    names, others = tuple(entry.parameters), tuple(entry.others.items())

    def forward(self: Any, input: Tensor) -> Tensor:
        function: Callable[..., Tensor] = getattr(functional, entry.name)
        for argument, default in others:
            if getattr(self, argument) != default:
                return function(input, **{name: getattr(self, name) for name in (*names, *entry.others)})
        return function(input, *[getattr(self, name) for name in names]) if names else function(input)

    return _derived(entry.module, forward)


def _derived(module: type[torch.nn.Module], forward: Any) -> Any:
    name = module.__name__
    forward.__qualname__ = f"{name}.forward"
    return StandIn(name, (module,), {"__module__": __name__, "__doc__": f"torch.nn.{name}.", "forward": forward})


class Softmax(torch.nn.Softmax, metaclass=StandIn):
    """torch.nn.Softmax."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


#: The elementwise activations, as all that this package has; of several variants the first.
ELEMENTWISE: dict[type[Any], Elementwise] = {_module(entry): entry for entry in elementwise() if entry.is_first}
globals().update({kind.__name__: kind for kind in ELEMENTWISE})

#: The activations that a Linear can compute.
ACTIVATIONS: dict[type[Any], Entry] = {**ELEMENTWISE, Softmax: ENTRIES["softmax"]}


class FusedSequential(torch.nn.Sequential):
    """torch.nn.Sequential, in which a Linear computes the activation after it, where nobody can tell the difference.

    That is decided at each call (:func:`unfused`), so that modules may be taken out, replaced, hooked and patched. In
    16 bits the value between the two is not rounded, as it is between two modules, unless the derivative is in terms of
    it.
    """

    def forward(self, input: Any) -> Any:
        return in_turn(self._modules.values(), input)


def in_turn(functions: Iterable[Any], input: Any) -> Any:
    """Modules, or other functions, one after another, each on what the one before it returns."""
    computed = False
    for function, following in itertools.pairwise([*functions, None]):
        if computed:  # by the Linear before it
            computed = False
        elif activation := computed_with(function, following, input):
            input, computed = function(input, *activation), True
        else:
            input = function(input)
    return input


def computed_with(function: Any, following: Any, input: Any) -> Chosen | None:
    """The activation that a layer computes along, as nobody can tell the difference; None if it does not.

    Args:
        function, following: what is called on the input, and on its result.
    """
    if type(function) in LAYERS and type(input) in _TENSORS:
        activation = _MODULES.get(following) if type(following) in _FUNCTIONS else following
        if not unfused(function, activation, input.dim()):
            return ACTIVATIONS[type(activation)].of(activation)
    return None


_FUNCTIONS = (FunctionType, BuiltinFunctionType)
#: Functions that compute what one of these does.
_MODULES: dict[Any, torch.nn.Module] = {
    function: kind()
    for kind, entry in ELEMENTWISE.items()
    for function in (entry.forward, *(getattr(of, entry.name) for of in (torch.nn.functional, functional)))
}
_TENSORS = (Tensor, torch.nn.Parameter)
#: The layers that compute an activation along.
LAYERS: set[type[Any]] = {Linear}
#: As they are written.
_FORWARDS: dict[type[Any], Any] = {Linear: Linear.forward} | {kind: kind.forward for kind in ACTIVATIONS}
_CALL = torch.nn.Module.__call__


def computes_as(made: type[Any], ours: type[Any]) -> None:
    """Lets a class fuse as one of ours does."""
    _FORWARDS[made] = made.forward
    if ours in LAYERS:
        LAYERS.add(made)
    else:
        ACTIVATIONS[made] = ACTIVATIONS[ours]


def unfused(layer: Any, activation: Any, dims: int | None = None) -> str:
    """Why a layer does not compute the activation after it in a :class:`FusedSequential`; nothing if it does.

    Args:
        layer, activation: neighbours.
        dims: of the input, if it is known.
    """
    kind = type(activation)
    if type(layer) not in LAYERS or kind not in ACTIVATIONS:
        return "they are no Linear and activation of ours"
    if layer.activation != "none":
        return "the layer before it has an activation already"
    entry = ACTIVATIONS[kind]
    if entry.parameters and not entry.takes(entry.of(activation).parameters):
        return f"the kernels do not take {activation}"
    if kind is not Softmax and entry.lacking(activation):
        return f"the kernels do not take {activation}"
    if kind is Softmax and activation.dim != -1 and (dims is None or activation.dim != dims - 1):
        return "it does not run over the last dimension"
    if is_watched(layer) or is_watched(activation) or _has_any_global_hook():
        return "hooks would see other values"
    if _has_own_forward(layer) or _has_own_forward(activation):
        return "one of the two has a forward of its own"
    return _uncompiled(layer, activation) if torch.compiler.is_compiling() else ""


def is_watched(module: torch.nn.Module) -> bool:
    """Whether hooks of its own see what it is given or returns; a profiler's, which look on, do not count."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    if not (before or after or module._backward_hooks or module._backward_pre_hooks):
        return False
    looks_on = all(_ranges.looks_on(hook) for hook in (*before.values(), *after.values()))
    return bool(module._backward_hooks or module._backward_pre_hooks) or not looks_on


def _has_own_forward(module: torch.nn.Module) -> bool:
    own, kind = module.__dict__, type(module)
    if "forward" in own or "_compiled_call_impl" in own:
        return True
    return kind.forward is not _FORWARDS[kind] or kind.__call__ is not _CALL


def _uncompiled(layer: Any, activation: Any) -> str:
    if _is_exporting():
        return "an export shows each module"
    # Always equal. But what is looked up by attribute, torch.compile guards: it notices a patch after it has compiled.
    found, written = layer.forward.__func__, _FORWARDS[type(layer)]
    is_same = found is written and activation.forward.__func__ is _FORWARDS[type(activation)]
    return "" if is_same else "one of the two has a forward of its own"


def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


_is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch 2.11 traces it as always true


class CrossEntropyLoss(torch.nn.CrossEntropyLoss, metaclass=StandIn):
    """torch.nn.CrossEntropyLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _loss_module(entry: Loss) -> Any:
    """Ours of torch.nn's class: its forward is our function."""
    names = (*entry.weights, *entry.parameters, "reduction")

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        function: Callable[..., Tensor] = getattr(functional, entry.function)
        if len(names) == 1:
            return function(input, target, reduction=self.reduction)
        return function(input, target, **{name: getattr(self, name) for name in names})

    return _derived(entry.module, forward)


#: The elementwise losses.
LOSSES: dict[type[Any], Loss] = {_loss_module(entry): entry for entry in _losses.LOSSES.values()}
globals().update({kind.__name__: kind for kind in LOSSES})
