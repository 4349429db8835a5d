"""Which objects still run the methods they were written with.

The documents teach by patching methods onto classes. A faster form of a method (a fused op, a plan) may stand in
for it only while nobody has patched it or overridden it in a subclass.
"""

from typing import TypeVar

_T = TypeVar("_T", bound=type)
_METHODS = ("__call__", "__forward__", "forward", "backward", "loss", "mse_loss", "predict", "evaluate", "update")
_originals: dict[type, dict[str, object]] = {}


def _resolve(cls: type) -> dict[str, object]:
    # Not getattr, which finds __call__ of a class without one in its metaclass.
    return {name: next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None) for name in _METHODS}


def replaceable(cls: _T) -> _T:
    """Class decorator: remember the methods that a faster form stands in for."""
    _originals[cls] = _resolve(cls)
    return cls


def original(obj: object) -> type | None:
    """The remembered class whose methods ``obj`` runs unchanged, or None if any was patched or overridden."""
    cls = next((base for base in type(obj).__mro__ if base in _originals), None)
    if cls is None or _resolve(type(obj)) != _originals[cls] or not vars(obj).keys().isdisjoint(_METHODS):
        return None
    return cls
