"""Modules of other packages whose forward is known: it is one that is written here too, word for word.

A subclass of their class computes the same on the kernels, and fuses as ours do: a Linear whose weight is transposed
with the activation after it, an activation with the Linear before it. No package is imported, and names and versions
do not count.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scratchcuda.nn import functional, layers
from scratchcuda.nn.subclasses import subclass


class Known(NamedTuple):
    """What computes as a forward does: a class of ours, and the names that a subclass of theirs then has."""

    ours: type[Any]
    names: dict[str, Any]


def counterpart(kind: type[nn.Module], module: nn.Module) -> type[nn.Module] | None:
    """A class as this one, on the kernels; None if its forward is none that is known.

    Args:
        module: of this class, or of one that derives from it.
    """
    known = _known(kind)
    if known is None or (known.names["forward"] is _gelu and _held_gelu(module) is None):
        return None
    return _made(kind)


def _made(kind: type[nn.Module]) -> type[nn.Module] | None:
    if (known := _known(kind)) is None:
        return None
    made = subclass(kind, _made, lambda kind: known.names)
    if made is not None:
        layers.computes_as(made, known.ours)
    return made


def _known(kind: type[Any]) -> Known | None:
    if not issubclass(kind, nn.Module) or kind.__call__ is not nn.Module.__call__:
        return None
    written = vars(kind).get("forward")
    return next((known for forward, known in _KNOWN.items() if _says(written, forward)), None)


def _says(written: Any, known: Any) -> bool:
    """Whether a function says what this one does, of the same things."""
    if type(written) is not FunctionType:
        return False
    one, other = ([getattr(each.__code__, name) for name in _CODE] for each in (written, known))
    return one == other and all(
        written.__globals__.get(name) is value for name, value in _GLOBALS.items() if name in known.__code__.co_names
    )


_GLOBALS = {"math": math, "nn": nn, "torch": torch}
#: What a function does, whatever its variables are called.
_CODE = ("co_code", "co_consts", "co_names", "co_argcount", "co_kwonlyargcount", "co_nlocals")


# As they write it. A docstring would be part of what is compared.
def _conv1d(self: Any, x: Any) -> Any:  # weight (n_in, n_out), bias (n_out,)
    size_out = x.size()[:-1] + (self.nf,)  # noqa: RUF005
    x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
    x = x.view(size_out)
    return x  # noqa: RET504


def _silu(self: Any, input: Any) -> Any:
    return nn.functional.silu(input)


def _gelu_tanh(self: Any, input: Any) -> Any:
    return nn.functional.gelu(input, approximate="tanh")


def _gelu_tanh_in_words(self: Any, input: Any) -> Any:
    return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))


def _held(self: Any, input: Any) -> Any:
    return self.act(input)


def _transposed(self: Any, input: Tensor, activation: str = "none", parameters: Sequence[float] = ()) -> Tensor:
    """Without a copy: strides do not matter to the kernels."""
    return functional.linear(input, self.weight.t(), self.bias, activation, parameters)


def _held_gelu(module: Any) -> str | None:
    """Which gelu a module holds; None if it holds another function."""
    act = getattr(module, "act", None)
    if type(act) is partial and act.func is nn.functional.gelu and not act.args:
        return "tanh" if act.keywords == {"approximate": "tanh"} else None
    return "none" if act is nn.functional.gelu else None


def _gelu(self: Any, input: Tensor) -> Tensor:
    result: Tensor = self.act(input) if self.approximate is None else _GELU.forward(self, input)
    return result


_GELU, _SILU = (next(ours for ours in layers.ELEMENTWISE if ours.__name__ == name) for name in ("GELU", "SiLU"))
_KNOWN: dict[Callable[..., Any], Known] = {
    _conv1d: Known(layers.Linear, {"forward": _transposed, "activation": "none"}),
    _silu: Known(_SILU, {"forward": _SILU.forward, "inplace": False}),
    _gelu_tanh: Known(_GELU, {"forward": _GELU.forward, "approximate": "tanh"}),
    _gelu_tanh_in_words: Known(_GELU, {"forward": _GELU.forward, "approximate": "tanh"}),
    _held: Known(_GELU, {"forward": _gelu, "approximate": property(_held_gelu)}),
}
