"""Which objects still run the methods they were written with.

The documents teach by patching methods onto classes. A faster form of a method (a fused op, a plan) may stand in
for it only while nobody has patched it or overridden it in a subclass.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeVar

_T = TypeVar("_T", bound=type)
_METHODS = (
    "__call__",
    "__forward__",
    "forward",
    "backward",
    "loss",
    "mse_loss",
    "predict",
    "evaluate",
    "update",
    "hits",
)
_originals: dict[type, tuple[Callable[[type], Any], Any]] = {}  # what gets the methods of a class, and what it has got


def replaceable(cls: _T) -> _T:
    """Class decorator: remember the methods that a faster form stands in for."""
    methods = attrgetter(*(name for name in _METHODS if any(name in vars(base) for base in cls.__mro__)))
    _originals[cls] = methods, methods(cls)
    return cls


def original(obj: object) -> type | None:
    """The remembered class whose methods ``obj`` runs unchanged, or None if any was patched or overridden."""
    cls: type = type(obj)
    known = cls if cls in _originals else next((base for base in cls.__mro__ if base in _originals), None)
    if known is None or not vars(obj).keys().isdisjoint(_METHODS):
        return None
    methods, as_written = _originals[known]
    return known if methods(cls) == as_written else None
