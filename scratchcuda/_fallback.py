"""What stands in for torch's: modules whose other names are torch's, classes that know torch's instances as theirs."""

from abc import ABCMeta
from collections.abc import Callable
from types import ModuleType
from typing import Any


def fallback(names: dict[str, Any], torchs: ModuleType) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a module with these globals."""

    def get(name: str) -> Any:
        if name.startswith("__"):  # torch's path would make imports below ours load torch's modules again
            raise AttributeError(f"module {names['__name__']!r} has no attribute {name!r}")
        return getattr(torchs, name)

    return get, lambda: sorted({*names, *dir(torchs)})


class StandIn(ABCMeta):
    """Of a class that stands in for torch's of the same name: whatever is one of torch's is one of ours.

    So code whose import has changed finds the layers that torch makes by itself. What derives from ours is a class as
    any other. An ABCMeta, so that users may derive from ours and from abc.ABC.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        theirs = cls._theirs()
        return isinstance(instance, theirs) if theirs else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        theirs = cls._theirs()
        return issubclass(subclass, theirs) if theirs else super().__subclasscheck__(subclass)

    def _theirs(cls) -> type | None:
        """Torch's class that this one stands in for."""
        first, *others = cls.__bases__
        return first if first.__name__ == cls.__name__ and not others and type(first) is type else None
