"""torch.nn's layers of a model made ours, and back: by their classes, so that each stays the very same object."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import Module

from scratchcuda import _backend
from scratchcuda.nn import layers

_OURS: dict[type[Module], type[Module]] = {
    getattr(torch.nn, ours.__name__): ours
    for ours in (
        layers.Linear,
        layers.ReLU,
        layers.Sigmoid,
        layers.Tanh,
        layers.Softmax,
        layers.MSELoss,
        layers.CrossEntropyLoss,
    )
}
_FORWARDS = {theirs: theirs.forward for theirs in _OURS}  # as they are before anybody patches them
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}
_ACTIVATIONS = {getattr(torch.nn, name): name.lower() for name in ("ReLU", "Sigmoid", "Tanh", "Softmax")}


class Fused(torch.nn.Identity):
    """Stands in a torch.nn.Sequential for an activation that the Linear before it computes.

    It does nothing, so another layer in that Linear's place gets no activation: :func:`revert` first.
    """

    replaced: type[Module]

    def extra_repr(self) -> str:
        return self.replaced.__name__


@dataclass
class Conversion:
    """What :func:`convert` or :func:`revert` has done, by the modules' names in the model.

    Attributes:
        swapped: modules that have changed sides.
        fused: activations that the Linear before them computes from now on, or no longer.
        left: modules that stay as they are, or unfused, and why.
    """

    swapped: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} swapped, {len(self.fused)} fused, {len(self.left)} left"]
        return "\n".join(lines + [f"  {name or 'the model'}: {reason}" for name, reason in self.left.items()])


def convert(
    model: Module,
    filter: Callable[[Module, str], bool] | None = None,
    *,
    fuse: bool = False,
) -> Conversion:
    """Makes the layers of a model ours, in place.

    Each stays the same object with the same parameters, hooks and buffers, so that optimizers, tied weights and
    references stay valid. Only layers of exactly torch.nn's class are swapped: what owns a subclass may read its weight
    without calling it, as torch.nn.MultiheadAttention does.

    Args:
        model: any module; it may itself be a layer.
        filter: asked for each layer, with its name in the model; what it refuses is left.
        fuse: let a Linear compute the activation that follows it in a torch.nn.Sequential; :class:`Fused` takes the
            activation's place. Not for code that calls one of the two by itself.

    Returns:
        what was swapped and what was left, and why; ``print`` shows it.
    """
    done, chosen, refused = Conversion(), [], set()
    for name, module in _named(model):
        theirs = next((theirs for theirs in _OURS if isinstance(module, theirs)), None)
        if theirs is None:
            continue
        is_ours = type(module) in _TORCHS
        if not is_ours and (reason := _unfit(module, theirs)):
            done.left[name] = reason
        elif filter is not None and not filter(module, name):
            refused.add(module)
            if not is_ours:
                done.left[name] = "refused by the filter"
        elif not is_ours:
            chosen.append(module)
            done.swapped.append(name)
    for module in chosen:  # now that no filter can raise any more
        module.__class__ = _OURS[type(module)]
    if fuse:
        _fuse(model, refused, done)
    return done


def revert(model: Module) -> Conversion:
    """Makes our layers of a model torch.nn's again, in place; the inverse of :func:`convert`.

    A Linear that was made with an activation has no counterpart, and is left.
    """
    done = Conversion()
    for (_, layer), (name, activation) in _pairs(model):
        fused = type(layer) is layers.Linear and type(activation) is Fused
        if fused and layer.activation == _ACTIVATIONS[activation.replaced]:
            del layer.activation
            activation.__class__ = activation.__dict__.pop("replaced")
            done.fused.append(name)
    for name, module in _named(model):
        ours = next((ours for ours in _TORCHS if isinstance(module, ours)), None)
        if type(module) is Fused:
            done.left[name] = "the layer before it does not compute it"
        elif ours is None:
            continue
        elif type(module) is not ours:
            done.left[name] = f"is a {type(module).__name__}, not exactly a scratchcuda.nn.{ours.__name__}"
        elif isinstance(module, layers.Linear) and module.activation != "none":
            done.left[name] = f"torch.nn.Linear has no activation {module.activation!r}"
        else:
            module.__class__ = _TORCHS[ours]
            done.swapped.append(name)
    return done


def _named(model: Module) -> list[tuple[str, Module]]:
    if not isinstance(model, Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    return list(model.named_modules())


def _unfit(module: Module, theirs: type[Module]) -> str:
    """Why this layer cannot be ours."""
    if type(module) is not theirs:
        return f"is a {type(module).__name__}, not exactly a torch.nn.{theirs.__name__}"
    if _has_own_forward(module) or theirs.forward is not _FORWARDS[theirs]:
        return "has a forward of its own"
    dtype = getattr(getattr(module, "weight", None), "dtype", None)
    if dtype not in (*_backend.DTYPES, None):
        return f"has weights of {dtype}"
    return ""


def _has_own_forward(module: Module) -> bool:
    return "forward" in vars(module)


def _pairs(model: Module) -> list[tuple[tuple[str, Module], tuple[str, Module]]]:
    """Neighbours in torch.nn.Sequential, with their names."""
    return [
        tuple((f"{name}.{key}" if name else key, module) for key, module in pair)  # type: ignore[misc]
        for name, sequential in _named(model)
        if type(sequential) is torch.nn.Sequential and not _has_own_forward(sequential)
        for pair in itertools.pairwise(sequential._modules.items())  # named_children leaves repetitions out
    ]


def _fuse(model: Module, refused: set[Module], done: Conversion) -> None:
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for (layer_name, layer), (name, activation) in _pairs(model):
        theirs = _TORCHS.get(type(activation))
        if type(layer) is not layers.Linear or theirs not in _ACTIVATIONS:
            continue
        if {layer, activation} & refused:
            done.left[name] = "not fused: refused by the filter"
        elif _has_own_forward(layer) or _has_own_forward(activation):
            done.left[name] = "not fused: it or the layer before it has a forward of its own"
        elif uses[id(layer)] > 1 or uses[id(activation)] > 1:
            done.left[name] = "not fused: it or the layer before it is used in several places"
        elif layer.activation != "none":
            done.left[name] = f"not fused: {layer_name} has the activation {layer.activation!r} already"
        elif isinstance(activation, torch.nn.Softmax) and activation.dim != -1:
            done.left[name] = f"not fused: its dim is {activation.dim}, not -1"
        elif _watched(layer) or _watched(activation) or activation._forward_pre_hooks:
            done.left[name] = "not fused: hooks would see other values"
        else:
            layer.activation = _ACTIVATIONS[theirs]
            activation.__class__, activation.__dict__["replaced"] = Fused, theirs
            done.fused.append(name)


def _watched(module: Module) -> bool:
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
