"""A torch.nn.Sequential as layers of a Model, and back. What the other side cannot keep is an error that names it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from scratchcuda.engine._patching import original
from scratchcuda.engine.activations import KINDS, Activation, Layer, Linear, chosen, layer_of
from scratchcuda.engine.layers import Dense
from scratchcuda.engine.losses import Losses, OfScores
from scratchcuda.engine.parameters import Slot, overlap, place_of
from scratchcuda.nn.conversion import TORCHS
from scratchcuda.ops import _entries
from scratchcuda.ops._entries import ENTRIES, MODULES, Chosen

_KINDS: list[type[nn.Module]] = [nn.Linear, *MODULES]
#: The modules' forwards before anybody patches them.
_FORWARDS = {kind: kind.forward for pair in TORCHS.items() for kind in pair} | {nn.Identity: nn.Identity.forward}


def layers_of(module: nn.Module) -> tuple[list[Layer], list[nn.Linear]]:
    """The layers of a Model as this module, and the Linear that each of its Dense layers is to have the parameters of.

    Raises:
        TypeError, ValueError: if a Model cannot be, or not stay, as the module is.
    """
    layers: list[Layer] = []
    linears: dict[str, nn.Linear] = {}
    for name, child in _flatten("module", module):
        kind = _torchs(child)
        if isinstance(child, nn.Linear) and kind is nn.Linear:
            _check_parameters(name, child, linears)
            linears[name] = child
            layers.append(Dense(len(child.weight)))
            along = Chosen("none")
            if type(child) in TORCHS:  # ours
                along = _entries.chosen(child.activation, child.activation_parameters)  # type: ignore[arg-type]
            activation = layer_of(along)
        elif kind in MODULES:
            activation = layer_of(MODULES[kind].checked(name, child))
        else:
            names = ", ".join(kind.__name__ for kind in _KINDS)
            raise TypeError(f"{name} is a {type(child).__name__}, expected one of {names}")
        last = layers[-1] if layers else None
        if isinstance(last, Dense) and isinstance(last.act_f, Linear):
            last.act_f = activation
        elif kind is not nn.Linear:
            layers.append(activation)
    if not linears:
        raise ValueError(f"module is {module}, expected at least one Linear")
    return layers, list(linears.values())


def share(layers: Sequence[Layer], linears: Sequence[nn.Linear]) -> None:
    """Tie and freeze the parameters of Dense layers as those of these Linears are."""
    owners: dict[Tensor, tuple[Dense, str]] = {}
    for layer, linear in zip((layer for layer in layers if isinstance(layer, Dense)), linears, strict=True):
        parameters = {"w": linear.weight, "b": linear.bias}
        for name, parameter in parameters.items():
            owner, attribute = owners.setdefault(parameter, (layer, name))
            setattr(layer, name, getattr(owner, attribute))
        frozen = tuple(name for name, parameter in parameters.items() if not parameter.requires_grad)
        layer.is_trainable, layer.frozen = len(frozen) < 2, frozen if len(frozen) < 2 else ()


def sequential_of(layers: Sequence[Layer], slots: Sequence[Slot]) -> nn.Sequential:
    """A torch.nn.Sequential with copies of the parameters, tied and frozen as they are."""
    modules: list[nn.Module] = []
    made: dict[object, tuple[Slot, nn.Parameter]] = {}
    for i, layer in enumerate(layers):
        activation: Layer = layer
        if isinstance(layer, Dense) and (type(layer) is Dense or original(layer)):
            n_in, n_out = layer.w.shape
            linear = nn.Linear(n_in, n_out, device=layer.w.device, dtype=layer.w.dtype)
            for slot in (slot for slot in slots if slot.owner is layer):
                theirs = "weight" if slot.attribute == "w" else "bias"
                setattr(linear, theirs, _parameter(slot, getattr(linear, theirs), made))
            modules.append(linear)
            activation = layer.act_f
        if not isinstance(activation, Activation) or type(activation) is not KINDS.get(activation.op):
            raise TypeError(f"layers[{i}] is {layer!r}, which torch.nn has no module for")
        if activation.op != "none":
            modules.append(chosen(activation).module())
    return nn.Sequential(*modules)


def training_of(net: nn.Sequential, loss_f: Losses) -> tuple[nn.Sequential, nn.Module]:
    """What torch.nn trains as a Model does that is this network with this loss: the net up to its scores, and the loss.

    Raises:
        TypeError: if torch.nn has no such loss.
    """
    loss = loss_f.to_torch()
    if isinstance(loss_f, OfScores) and loss_f.probabilities:
        last = ENTRIES[loss_f.activation].module
        if not isinstance(net[-1], last):
            raise TypeError(f"loss_f takes probabilities that no last {last.__name__} makes; torch.nn's takes scores")
        net = net[:-1]  # type: ignore[assignment]
    return net, loss


def _parameter(slot: Slot, new: nn.Parameter, made: dict[object, tuple[Slot, nn.Parameter]]) -> nn.Parameter:
    """The new parameter with the values of ours, or that which was made for another with which ours is tied."""
    tensor, trained = slot.tensor, slot.attribute in slot.owner.trained
    for other, parameter in made.values():
        if not overlap(tensor, other.tensor):
            continue
        if place_of(tensor) != place_of(other.tensor) or parameter.requires_grad != trained:
            raise TypeError(f"{slot.name} shares memory with {other.name} in a way that torch.nn has no parameters for")
        return parameter
    with torch.no_grad():
        new.copy_(tensor.t())
    new.requires_grad_(trained)
    made[slot.name] = slot, new
    return new


def _torchs(module: nn.Module) -> type[nn.Module]:
    return TORCHS.get(type(module), type(module))


def _flatten(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules within Sequentials, by name, none of which does anything besides."""
    own, kind = "", type(module)
    for kinds in ("forward_pre", "forward", "backward_pre", "backward"):
        for hook in getattr(module, f"_{kinds}_hooks").values():
            own = f"{kinds} hook {getattr(hook, '__qualname__', type(hook).__name__)}"
    if "forward" in vars(module) or (kind in _FORWARDS and kind.forward is not _FORWARDS[kind]):
        own = "forward of its own"
    if own:
        raise TypeError(f"{name} is a {kind.__name__} with a {own}, expected one without, which no Model would call")
    if _torchs(module) is nn.Sequential:
        for key, child in module._modules.items():
            if child is not None:
                yield from _flatten(f"{name}[{key}]", child)
    else:
        yield name, module


def _check_parameters(name: str, linear: nn.Linear, before: dict[str, nn.Linear]) -> None:
    """One dtype, one device, memory of their own, and what torch.nn would train is all there is."""
    if linear.bias is None:
        raise ValueError(f"{name} is {linear}, expected a Linear with bias")
    for attribute in ("weight", "bias"):
        parameter = getattr(linear, attribute)
        what = f"{name}.{attribute}"
        if type(parameter) is not nn.Parameter:
            raise TypeError(f"{what} is {type(parameter).__name__}, expected a Parameter, which no other tensor makes")
        first_name, first = next(iter(before.items()), (name, linear))
        if parameter.dtype != first.weight.dtype:
            raise TypeError(f"{what} has dtype {parameter.dtype}, expected {first.weight.dtype} as {first_name}.weight")
        if parameter.device != first.weight.device:
            raise ValueError(
                f"{what} is on device {parameter.device}, expected {first.weight.device} as {first_name}.weight"
            )
        for other_name, other in before.items():
            for of_other in (other.weight, other.bias):
                if of_other is not parameter and overlap(of_other, parameter):
                    raise TypeError(
                        f"{what} shares memory with a parameter of {other_name}, expected the same Parameter"
                    )
