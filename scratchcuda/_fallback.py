"""Modules that stand in for one of torch's: names that are not theirs are torch's."""

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
