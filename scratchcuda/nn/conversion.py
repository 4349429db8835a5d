"""torch.nn's layers of a model made ours, and back: by their classes, so that each stays the very same object."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import Module

from scratchcuda import _backend
from scratchcuda.nn import layers

_OURS: dict[type[Module], type[Module]] = {torch.nn.Sequential: layers.FusedSequential} | {
    getattr(torch.nn, ours.__name__): ours
    for ours in (
        layers.Linear,
        layers.LazyLinear,
        layers.ReLU,
        layers.Sigmoid,
        layers.Tanh,
        layers.Softmax,
        layers.MSELoss,
        layers.CrossEntropyLoss,
    )
}
_FORWARDS = {theirs: theirs.forward for theirs in _OURS}  # as they are before anybody patches them
#: What each class of ours is in torch.nn.
TORCHS = {ours: theirs for theirs, ours in _OURS.items()}


@dataclass
class Conversion:
    """What :func:`convert` or :func:`revert` has done, by the modules' names in the model.

    Attributes:
        swapped: modules that have changed sides.
        fused: activations that the Linear before them computes, as things stand.
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
        fuse: make each torch.nn.Sequential a :class:`FusedSequential`, in which a Linear computes the activation that
            follows it. Neither of the two changes, so each may be taken out, replaced, hooked, patched and called by
            itself.

    Returns:
        what was swapped and what was left, and why; ``print`` shows it.
    """
    done, chosen = Conversion(), []
    for name, module in _named(model):
        theirs = _counterpart(module, _OURS)
        if theirs is None or type(module) in TORCHS or (theirs is torch.nn.Sequential and not fuse):
            continue
        if reason := _unfit(module, theirs):
            done.left[name] = reason
        elif filter is not None and not filter(module, name):
            done.left[name] = "refused by the filter"
        else:
            chosen.append(module)
            done.swapped.append(name)
    for module in chosen:  # now that no filter can raise any more
        module.__class__ = _OURS[type(module)]
    for name, layer, activation in _pairs(model) if fuse else ():
        if reason := layers.unfused(layer, activation):
            done.left[name] = f"not fused: {reason}"
        else:
            done.fused.append(name)
    return done


def revert(model: Module) -> Conversion:
    """Makes our layers of a model torch.nn's again, in place; the inverse of :func:`convert`.

    A Linear that was made with an activation has no counterpart, and is left.
    """
    done = Conversion()
    for name, module in _named(model):
        ours = _counterpart(module, TORCHS)
        if ours is None:
            continue
        if type(module) is not ours:
            done.left[name] = f"is a {type(module).__name__}, not exactly a scratchcuda.nn.{ours.__name__}"
        elif isinstance(module, layers.Linear) and module.activation != "none":
            done.left[name] = f"torch.nn.Linear has no activation {module.activation!r}"
        else:
            module.__class__ = TORCHS[ours]
            done.swapped.append(name)
    return done


def _named(model: Module) -> list[tuple[str, Module]]:
    if not isinstance(model, Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    return list(model.named_modules())


def _counterpart(module: Module, kinds: Mapping[type[Module], type[Module]]) -> type[Module] | None:
    """The one of these classes that it is of, or else that its class derives from."""
    return next((kind for kind in type(module).__mro__ if kind in kinds), None)


def _unfit(module: Module, theirs: type[Module]) -> str:
    """Why this layer cannot be ours."""
    if type(module) is not theirs:
        return f"is a {type(module).__name__}, not exactly a torch.nn.{theirs.__name__}"
    if "forward" in vars(module) or theirs.forward is not _FORWARDS[theirs]:
        return "has a forward of its own"
    dtype = getattr(getattr(module, "weight", None), "dtype", None)
    if dtype not in (*_backend.DTYPES, None):
        return f"has weights of {dtype}"
    return ""


def _pairs(model: Module) -> Iterator[tuple[str, Module, Module]]:
    """The names of activations of ours after a Linear of ours, and the two, where FusedSequential's forward runs."""
    for name, sequential in _named(model):
        if getattr(sequential.forward, "__func__", None) is layers.FusedSequential.forward:
            for (_, layer), (key, activation) in itertools.pairwise(sequential._modules.items()):
                if type(layer) is layers.Linear and type(activation) in layers.ACTIVATIONS:
                    assert activation is not None
                    yield f"{name}.{key}" if name else key, layer, activation
