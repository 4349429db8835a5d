"""The operations by name, as the file of each family tells them, and as torch knows them.

``torch.ops.scratchcuda`` has the twins for tensors of every device, until ``_C`` adds the kernels for CUDA tensors.
Each build of the emulator has a namespace of its own. These raw ops are private: one without an autograd formula loses
gradients silently. The functions of :mod:`scratchcuda.ops` are differentiable.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import torch
from torch.library import Library
from torch.utils.flop_counter import flop_registry, register_flop_formula

Twin = TypeVar("Twin", bound=Callable[..., Any])


class Op(NamedTuple):
    """What an op is, besides its public function, which checks, and its kernel.

    Attributes:
        schema: of its arguments and results.
        products: FLOPs of its matrix products, from the shapes of its arguments; None if it has none.
        others: its other FLOPs, where a sum, a product, a quotient, a comparison and a function, as the exponential,
            count as one each: so many for each element of its largest tensor, or what this function of its arguments
            by name, and of its result, gives.
        moved: the bytes that it has to read and write, as such a function; None if each tensor that it takes is read
            once, and each that it returns or mutates is written once.
    """

    schema: str
    products: Callable[..., int] | None
    others: int | Callable[[dict[str, Any], Any], int]
    moved: Callable[[dict[str, Any], Any], int] | None


OPS: dict[str, Op] = {}

#: By name, each op in plain tensor operations: what serves CPU tensors, the fake of the op, and what its kernel is
#: compared with. Each has the op's arguments, checks nothing, and is made of torch's own differentiable functions, so
#: that autograd, torch.func and fake tensors go straight through it.
twins = SimpleNamespace()

_libraries: dict[str, Library] = {}


def operation(
    schema: str,
    *,
    products: Callable[..., int] | None = None,
    others: int | Callable[[dict[str, Any], Any], int] = 0,
    moved: Callable[[dict[str, Any], Any], int] | None = None,
) -> Callable[[Twin], Twin]:
    """Makes the decorated function the twin of an op: ``name(Tensor x) -> Tensor``, and the rest as in :class:`Op`."""
    name, bracket, rest = schema.partition("(")
    OPS[name] = Op(bracket + rest, products, others, moved)

    def named(twin: Twin) -> Twin:
        setattr(twins, name, twin)
        return twin

    return named


def define(namespace: str) -> Library:
    """The ops in ``torch.ops.<namespace>``, defined once. A twin computes shapes too: it is the fake."""
    if namespace not in _libraries:
        library = _libraries[namespace] = Library(namespace, "DEF")
        for name, op in OPS.items():
            library.define(name + op.schema)
            torch.library.register_fake(f"{namespace}::{name}", getattr(twins, name), lib=library)
            if op.products:
                _let_count(getattr(getattr(torch.ops, namespace), name), op.products)
    return _libraries[namespace]


def _let_count(packet: Any, products: Callable[..., int]) -> None:
    """Let torch's FlopCounterMode, which counts products alone, know ours."""
    if packet not in flop_registry:
        register_flop_formula(packet)(lambda *shapes, out_shape=None, **kwargs: products(*shapes))
