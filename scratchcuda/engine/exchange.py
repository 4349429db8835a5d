"""A torch.nn.Sequential as layers of a Model, and back. What the other side cannot keep is an error that names it."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from scratchcuda.engine._patching import original
from scratchcuda.engine.activations import KINDS, Activation, Layer, Linear, chosen, layer_of
from scratchcuda.engine.layers import Dense, Dropout, Flatten
from scratchcuda.engine.losses import Losses, OfScores
from scratchcuda.engine.parameters import Parameters, Slot, overlap, place_of
from scratchcuda.nn.conversion import TORCHS
from scratchcuda.ops import _entries
from scratchcuda.ops._entries import ENTRIES, MODULES, Chosen

_KINDS: list[type[nn.Module]] = [nn.Linear, *MODULES, nn.Flatten, nn.Dropout]
#: The modules' forwards before anybody patches them.
_FORWARDS = {kind: kind.forward for pair in TORCHS.items() for kind in pair} | {
    kind: kind.forward for kind in (nn.Identity, nn.Flatten, nn.Dropout)
}


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
            layers.append(Dense(len(child.weight), bias=child.bias is not None))
            along = Chosen("none")
            if type(child) in TORCHS:  # ours
                along = _entries.chosen(child.activation, child.activation_parameters)  # type: ignore[arg-type]
            activation = layer_of(along)
        elif kind in (nn.Flatten, nn.Dropout):
            layers.append(_flatten_of(name, child) if kind is nn.Flatten else Dropout(child.p))  # type: ignore[arg-type]
            continue
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
        parameters = dict(zip(("w", "b"), parameters_of(linear), strict=False))
        for name, parameter in parameters.items():
            owner, attribute = owners.setdefault(parameter, (layer, name))
            setattr(layer, name, getattr(owner, attribute))
        frozen = tuple(name for name, parameter in parameters.items() if not parameter.requires_grad)
        layer.is_trainable = len(frozen) < len(parameters)
        layer.frozen = frozen if layer.is_trainable else ()


def parameters_of(linear: nn.Linear) -> list[Tensor]:
    """Its weight, then its bias if there is one."""
    return [linear.weight] if linear.bias is None else [linear.weight, linear.bias]


def copy_into(slots: Sequence[Slot], parameters: Callable[[], Iterable[Tensor]]) -> None:
    """:meth:`Model.copy_parameters` into these, of layers."""
    if not callable(parameters):
        raise TypeError(f"parameters is {type(parameters).__name__}, expected a method such as net.parameters")
    if isinstance(owner := getattr(parameters, "__self__", None), Parameters):
        raise TypeError(
            f"parameters is a method of a {type(owner).__name__}, whose weights are (n_in, n_out), expected one of "
            "a torch module; load_state_dict(other.state_dict()) copies another model's"
        )
    given = list(parameters())
    places = [place_of(slot.tensor) for slot in slots]
    expected = len(set(places))  # torch.nn gives parameters that are tied once
    if len(given) != expected:
        raise ValueError(f"parameters gives {len(given)} tensors, expected {expected}")
    by_place = dict(zip(dict.fromkeys(places), given, strict=True))
    given = [by_place[place] for place in places]
    for layer, of_layer in itertools.groupby(slots, lambda slot: slot.owner):
        layer.set_params(*[given.pop(0) for _ in of_layer])


def sequential_of(layers: Sequence[Layer], slots: Sequence[Slot]) -> nn.Sequential:
    """A torch.nn.Sequential with copies of the parameters, tied and frozen as they are."""
    modules: list[nn.Module] = []
    made: dict[object, tuple[Slot, nn.Parameter]] = {}
    for i, layer in enumerate(layers):
        activation: Layer = layer
        if isinstance(layer, Dense) and (type(layer) is Dense or original(layer)):
            if layer.b is not None and "b" not in layer.parameter_names:
                raise TypeError(f"layers[{i}] is {layer!r} with a b, expected None, which is no parameter of it")
            n_in, n_out = layer.w.shape
            linear = nn.Linear(n_in, n_out, layer.b is not None, device=layer.w.device, dtype=layer.w.dtype)
            for slot in (slot for slot in slots if slot.owner is layer):
                theirs = "weight" if slot.attribute == "w" else "bias"
                setattr(linear, theirs, _parameter(slot, getattr(linear, theirs), made))
            modules.append(linear)
            activation = layer.act_f
        elif isinstance(layer, Dropout | Flatten) and original(layer):
            modules.append(nn.Flatten() if isinstance(layer, Flatten) else nn.Dropout(layer.p))
            continue
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


def _flatten_of(name: str, module: nn.Module) -> Flatten:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(f"{name} is {module}, expected start_dim=1 and end_dim=-1")
    return Flatten()


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
    for attribute in ("weight", "bias")[: len(parameters_of(linear))]:
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
            for of_other in parameters_of(other):
                if of_other is not parameter and overlap(of_other, parameter):
                    raise TypeError(
                        f"{what} shares memory with a parameter of {other_name}, expected the same Parameter"
                    )
