"""What the tests know of each op. The file of each family tells it, and test_every_op.py runs what is common to all."""

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from scratchcuda import ops
from scratchcuda.ops import _backend
from scratchcuda.ops._entries import ENTRIES, elementwise

DTYPES = list(_backend.DTYPES)
ELEMENTWISE = [entry.name for entry in elementwise()]
M, K, N = 4, 5, 3  # rows, features in, features out


class Cost(NamedTuple):
    """A call, and what is counted of it by hand: FLOPs, elements moved, and bytes of what is int64."""

    args: Callable[[SimpleNamespace], Sequence[Any]]
    products: int
    others: int
    elements: int
    other_bytes: int = 0


class Refused(NamedTuple):
    """Arguments, made of tensors(), that an op does not take.

    Attributes:
        exception: what the public function raises; None if it takes them.
        message: of both, the public function and the registered op.
        raw: the op's message, if that is another; None if it is not asked.
    """

    args: Callable[[SimpleNamespace], Sequence[Any]]
    exception: type[Exception] | None
    message: str
    raw: str | None = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An op, as its tests need it.

    Attributes:
        arguments: in float64, for a batch of so many rows.
        theirs: what torch makes of them, what becomes of written arguments included.
        formula: what the op gives by its definition, as (m, arguments) in the mathematics m of oracle.py, if a norm of
            errors is what a result is held to.
        magnitudes: the formula with every term taken as positive: what a sum's rounding is in proportion to.
        results: names of what it returns.
        written: the numbers of the arguments that it writes.
        public: the public function with the arguments of the raw op, if that is another call.
        costs: calls that are counted by hand.
        refused: what it does not take.
    """

    arguments: Callable[[int], tuple[Any, ...]]
    theirs: Callable[..., Any]
    formula: Callable[..., tuple[Any, ...]] | None = None
    magnitudes: Callable[..., tuple[Any, ...]] = lambda *args: (0,)
    results: tuple[str, ...] = ("",)
    written: tuple[int, ...] = ()
    public: Callable[..., Any] | None = None
    costs: Sequence[Cost]
    refused: Sequence[Refused]


@functools.cache
def families() -> dict[str, dict[str, Case]]:
    """By family and op, as the files here tell them."""
    names = [path.stem for path in sorted(Path(__file__).parent.glob("test_*.py"))]
    found = {name: getattr(importlib.import_module(name), "CASES", {}) for name in names}
    return {name.removeprefix("test_"): of for name, of in found.items() if of}


@functools.cache
def cases() -> dict[str, Case]:
    return {name: case for of in families().values() for name, case in of.items()}


def rand(*shape, dtype=torch.float64, **options):
    return torch.randn(shape, dtype=torch.float64, **options).to(dtype)


def tensors() -> SimpleNamespace:
    """What calls are made of that are refused, or counted."""
    t = SimpleNamespace(x=rand(M, K), w=rand(K, N), b=rand(N), delta=rand(M, N), a=rand(M, N))
    t.dw, t.db, t.x2, t.delta2 = rand(K, N), rand(N), rand(2, K), rand(2, N)
    t.order, t.step = torch.arange(M), torch.tensor(0)
    return t


def others(activation):
    """Of each of its parameters another value than the default."""
    return tuple(max(p.default, p.least) + 0.25 for p in ENTRIES[activation].parameters.values())


def public(name):
    """The public function, for the arguments of the raw op."""
    return cases()[name].public or getattr(ops, name)


def cast(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return [cast(v, dtype) for v in value] if isinstance(value, list) else value


def as_tuple(value):
    return value if isinstance(value, tuple) else () if value is None else (value,)


def outputs(name, result, args):
    """What the op has returned, and what became of the arguments that it writes."""
    written = [args[i] for i in cases()[name].written]
    return [*as_tuple(result), *(t for arg in written for t in (arg if isinstance(arg, list) else [arg]))]
