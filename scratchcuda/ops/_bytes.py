"""The bytes that tensors take."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a tensor, or of nested lists, tuples, mappings and dataclasses of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif is_dataclass(value):
        yield from tensors_of([getattr(value, field.name, None) for field in fields(value)])


def stored(tensor: Tensor) -> int:
    """The bytes that a tensor's elements take: those of an expanded dimension lie in one place."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return math.prod(sizes) * tensor.itemsize


def total(value: Any) -> int:
    """The bytes of all tensors in a value; one that is in it twice counts once."""
    return sum({(t.data_ptr(), t.shape, t.stride()): stored(t) for t in tensors_of(value)}.values())
