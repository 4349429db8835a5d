"""torch.nn's layers of a model made ours, and back: by their classes, so that each stays the very same object."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from scratchcuda.nn import fusing, known, layers
from scratchcuda.nn.report import Conversion
from scratchcuda.nn.subclasses import is_made, original
from scratchcuda.ops import _backend

_KINDS: list[type[Module]] = [
    layers.Linear,
    layers.LazyLinear,
    layers.CrossEntropyLoss,
    *layers.LOSSES,
    *layers.ACTIVATIONS,
]
_OURS: dict[type[Module], type[Module]] = {getattr(torch.nn, ours.__name__): ours for ours in _KINDS}
_OURS[torch.nn.Sequential] = layers.FusedSequential
_FORWARDS = {theirs: theirs.forward for theirs in _OURS}  # as they are before anybody patches them
#: What each class of ours is in torch.nn.
TORCHS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(
    model: Module,
    filter: Callable[[Module, str], bool] | None = None,
    *,
    fuse: bool = False,
    inputs: Any = None,
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
        inputs: of one call of the model, its argument, a tuple of arguments, or a dict of keyword arguments. With
            ``fuse``, a Linear computes the activation as well where the forward of a module says ``act(layer(x))``, or
            the same in two statements (:mod:`scratchcuda.nn.fusing`). Of the modules that do so in this call the class
            becomes a subclass of the same name. The call leaves buffers and random numbers as they were.

    Returns:
        what was swapped and fused, and what was left, and why; ``print`` shows it.
    """
    if inputs is not None and not fuse:
        raise ValueError(f"inputs is a {type(inputs).__name__}, expected None without fuse=True")
    done, named, chosen = Conversion(), _named(model), []
    if inputs is not None and any(map(torch.nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise ValueError("inputs are for a model whose parameters have their shapes: call it once before")
    for name, module in named:
        theirs = _nearest(module)
        if type(module) in TORCHS or is_made(type(module)) or (theirs is torch.nn.Sequential and not fuse):
            continue
        if theirs is None:
            if _is_layer(module):
                done.left[name] = "no layer of ours"
        elif reason := _unfit(module, theirs):
            done.left[name] = reason
        elif filter is not None and not filter(module, name):
            done.left[name] = "refused by the filter"
        else:
            chosen.append(module)
    kinds = {module: type(module) for _, module in named}
    trace = None
    try:
        for module in chosen:  # now that no filter can raise any more
            module.__class__ = _counterpart(type(module), module) or type(module)
        if inputs is not None:
            trace = _traced(model, inputs)
    except BaseException:
        for module, kind in kinds.items():
            module.__class__ = kind
        raise
    done.swapped = [name for name, module in named if type(module) is not kinds[module]]
    for name in done.swapped:  # what derives from a Sequential, and fuses as a call has shown
        done.left.pop(name, None)
    if fuse:
        _tell_pairs(done, model, trace)
    told = {*done.swapped, *done.fused, *done.left}
    done.kinds = {name: kinds[module].__name__ for name, module in named if name in told}
    return done


def revert(model: Module) -> Conversion:
    """Makes our layers of a model torch.nn's again, in place; the inverse of :func:`convert`.

    A Linear that was made with an activation has no counterpart, and is left.
    """
    done = Conversion()
    for name, module in _named(model):
        kind, ours = type(module), next((TORCHS[kind] for kind in type(module).__mro__ if kind in TORCHS), None)
        if kind in TORCHS or is_made(type(module)):
            if isinstance(module, layers.Linear) and module.activation != "none":
                done.left[name] = f"torch.nn.Linear has no activation {module.activation!r}"
            else:
                module.__class__ = TORCHS.get(kind) or original(kind)
                done.swapped.append(name)
        elif ours is not None:
            done.left[name] = f"is a {kind.__name__}, not exactly a scratchcuda.nn.{ours.__name__}"
        elif any(map(is_made, kind.__mro__)):
            done.left[name] = f"is a {kind.__name__}, derived from a class that convert made"
        else:
            continue
        done.kinds[name] = kind.__name__
    return done


def _named(model: Module) -> list[tuple[str, Module]]:
    if not isinstance(model, Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    return list(model.named_modules())


def _counterpart(kind: type[Any] | None, module: Any) -> type[Module] | None:
    """Ours of a class of this module, torch's or another's."""
    return kind and (_OURS.get(kind) or known.counterpart(kind, module))


def _nearest(module: Any) -> type[Any] | None:
    """The class that it is of, or else derives from, which has a counterpart."""
    return next((kind for kind in type(module).__mro__ if _counterpart(kind, module)), None)


def _unfit(module: Module, theirs: type[Module]) -> str:
    """Why this layer cannot be ours."""
    if type(module) is not theirs:
        exactly = f"{'torch.nn.' if theirs in _OURS else ''}{theirs.__name__}"
        return f"is a {type(module).__name__}, not exactly a {exactly}"
    if "forward" in vars(module) or theirs.forward is not _FORWARDS.get(theirs, theirs.forward):
        return "has a forward of its own"
    dtype = getattr(getattr(module, "weight", None), "dtype", None)
    if dtype not in (*_backend.DTYPES, None):
        return f"has weights of {dtype}"
    return ""


def _is_layer(module: Module) -> bool:
    """Whether this computes something itself, and not only by the modules in it."""
    if isinstance(module, torch.nn.Sequential | torch.nn.ModuleList | torch.nn.ModuleDict):
        return False
    is_torchs = type(module).__module__.startswith("torch.")
    return not module._modules or (is_torchs and any(p is not None for p in module._parameters.values()))


def _traced(model: Module, inputs: Any) -> fusing.Trace:
    """A call of the model, of whose modules those become fusing ones that have layers that fuse in it."""
    ours: dict[type[Module], type[Module] | None] = {}
    kinds = {}
    for module in model.modules():
        kind = type(module)
        if parametrize.is_parametrized(module) or not any(type(part) in layers.LAYERS for part in module.modules()):
            continue
        if kind not in ours:
            ours[kind] = None if isinstance(module, torch.jit.ScriptModule) else fusing.fused(kind)
        if made := ours[kind]:
            kinds[module], module.__class__ = kind, made
    trace = fusing.Trace(model, inputs)
    for module, kind in kinds.items():
        if trace.fused.keys().isdisjoint(module.modules()):
            module.__class__ = kind
    return trace


def _tell_pairs(done: Conversion, model: Module, trace: fusing.Trace | None) -> None:
    """Which of our Linears compute the activation after them, and why others do not."""
    pairs = dict(_neighbours(model))
    for name, layer in _named(model):
        if type(layer) not in layers.LAYERS:
            continue
        following: Any = pairs.get(layer) or (trace and trace.met.get(layer))
        kind, reason = type(following), ""
        if trace and layer in trace.fused:
            done.fused[name] = trace.fused[layer]
        elif kind in layers.ACTIVATIONS:
            reason = layers.unfused(layer, following)
            if not reason and layer in pairs:
                done.fused[name] = layers.ACTIVATIONS[kind].of(following).name
            elif not reason:
                reason = "no forward shows that the activation alone reads what it returns"
        elif _counterpart(_nearest(following), following) in layers.ACTIVATIONS:
            reason = f"its {kind.__name__} is not converted"
        elif _is_activation(kind):
            reason = f"{kind.__name__} is no activation of ours"
        elif layer not in pairs and layer.activation == "none":
            if trace is None:
                reason = "no Sequential calls it; inputs=... would show what does"
            elif layer in trace.called:
                reason = "no activation module is given what it returns"
            else:
                reason = "not called with these inputs"
        if reason:
            done.left[name] = f"not fused: {reason}"


def _is_activation(kind: type[Any]) -> bool:
    """Of torch, and of transformers, whose modules of activations have like names."""
    return kind.__module__.rpartition(".")[2].startswith("activation") and kind is not torch.nn.MultiheadAttention


def _neighbours(model: Module) -> Iterator[tuple[Module, Module | None]]:
    """What stands after each module where FusedSequential's forward runs."""
    for module in model.modules():
        if getattr(module.forward, "__func__", None) is layers.FusedSequential.forward:
            yield from itertools.pairwise([*module._modules.values(), None])
