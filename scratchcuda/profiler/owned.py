"""Copies that belong to the profiler, so that the models, losses and data that it is given stay as they are."""

import copy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scratchcuda.profiler.record import copied


def owned(value: Any, name: str, is_data: bool = False, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy, also of what holds tensors that autograd has computed, as a layer that keeps its activation.

    Args:
        value: a model, a loss or data.
        name: of the argument that it is; none if its attributes are arguments.
        is_data: copy of each tensor its elements alone, and not the larger one that it may be a part of.
        memo: what has a copy already, by id.

    Raises:
        TypeError: for what has no copy, such as a lock; it names the attribute.
    """
    with _Copies(is_data):
        try:
            return copy.deepcopy(value, memo)
        except Exception as error:
            where, what = _culprit(value, name, set()) or (name, value)
            message = f"{where} is a {type(what).__name__}, expected what copy.deepcopy can copy: {error}"
            raise TypeError(message) from error


class _Copies(TorchFunctionMode):
    """Copies tensors that have a gradient function, which copy.deepcopy refuses: their values, as new leaves.

    Those of other kinds, such as sparse ones, stay the same: no step writes into them.
    """

    def __init__(self, of_all: bool) -> None:
        super().__init__()
        self.of_all = of_all

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and (self.of_all or not args[0].is_leaf):
            tensor, memo = args
            made = copied(tensor)
            memo[id(tensor)] = made if made is tensor else made.requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _culprit(value: Any, where: str, seen: set[int]) -> tuple[str, Any] | None:
    """The innermost part that has no copy, with its place; None if only parts that are seen already have none."""
    seen.add(id(value))
    failing = [(name, part) for name, part in _parts(value, where) if not _has_copy(part)]
    found = (_culprit(part, name, seen) for name, part in failing if id(part) not in seen)
    return next(filter(None, found), None) if failing else (where, value)


def _parts(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        yield from ((f"{where}[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{where}[{key!r}]", part) for key, part in value.items())
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        parts = dict(vars(value))
        for kind in ("_parameters", "_buffers", "_modules") if isinstance(value, nn.Module) else ():
            parts |= parts.pop(kind)
        yield from ((f"{where}.{name}".lstrip("."), part) for name, part in parts.items())


def _has_copy(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True
