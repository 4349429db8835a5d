"""Ranges: what runs by phase ("batch", "forward", "loss", "backward", "update") and layer, told to the profiler.

All phases of a training step are within one more, "step"; what a fit does before and after its steps is not.
Where nobody listens, :func:`bound` and :func:`each` give back what they were given, so that a fit pays nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

#: Makes the context of a range from its phase and layer; set by who listens.
listener: Callable[[str, str], AbstractContextManager[object]] | None = None


def named(phase: str, layer: str = "") -> AbstractContextManager[object]:
    """The context of a range. Without a name of its own it belongs to the layer of the range around it."""
    return nullcontext() if listener is None else listener(phase, layer)


def bound(phase: str, layer: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, within its range."""
    if listener is None:
        return call

    def ranged(*args: Any) -> Any:
        with named(phase, layer):
            return call(*args)

    return ranged


def each(phase: str, layers: Iterable[tuple[int, Any]]) -> Iterable[tuple[int, Any]]:
    """Numbered layers one after another, each within its range."""
    return layers if listener is None else _ranged(phase, layers)


def _ranged(phase: str, layers: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    for i, layer in layers:
        with named(phase, name_of(i, layer)):
            yield i, layer


def looking_on(hook: T) -> T:
    """A hook that only opens and closes ranges: it does not keep two layers from being computed in one."""
    hook.looks_on = True  # type: ignore[attr-defined]
    return hook


def looks_on(hook: Callable[..., Any]) -> bool:
    return getattr(hook, "looks_on", False)


def name_of(i: int, layer: object) -> str:
    """A layer's name in a profile: its place in the model, and its class."""
    return f"{i} {type(layer).__name__}"
