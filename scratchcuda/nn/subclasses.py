"""Subclasses made of the classes of others, by which a module computes otherwise and stays what it is.

Each has the name of its original, by which pickles refer to it: where one is loaded, the subclass is made again.
"""

from collections.abc import Callable
from typing import Any

from torch.nn import Module

_MAKER = "_scratchcuda_maker"
Maker = Callable[[type[Module]], type[Module] | None]


class _Made:
    """The first base of what :func:`subclass` makes."""

    def __init_subclass__(cls, **options: Any) -> None:
        """The other base, which may count what derives from it, is not told of that."""
        if _MAKER not in vars(cls):
            super().__init_subclass__(**options)

    def __reduce_ex__(self, protocol: Any) -> Any:  # pickle finds the class of that name, which is the original
        reduced: Any = super().__reduce_ex__(protocol)
        if not is_made(type(self)) or isinstance(reduced, str):
            return reduced
        function, args, *rest = reduced
        return _again, (vars(type(self))[_MAKER], original(function), *map(original, args)), *rest


def is_made(kind: type[Any]) -> bool:
    return _MAKER in vars(kind)


def original(kind: Any) -> Any:
    """The class that this one of :func:`subclass` stands for; of anything else itself."""
    return kind.__bases__[1] if isinstance(kind, type) and is_made(kind) else kind


def _again(maker: Maker, function: Any, *args: Any) -> Any:
    made = function(*args)
    made.__class__ = maker(type(made)) or type(made)
    return made


def subclass(
    kind: type[Module], maker: Maker, names: Callable[[type[Module]], dict[str, Any] | None]
) -> type[Module] | None:
    """The subclass of this class that a maker makes; None if it makes none.

    Args:
        maker: a function of a module, which returns what this one does.
        names: gives the names of the subclass that differ; none if there is to be no subclass.
    """
    for made in type.__subclasses__(kind):  # which forget what nobody uses
        if vars(made).get(_MAKER) is maker:
            return made
    if (differing := names(kind)) is None:
        return None
    kept = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    try:
        return type(kind)(kind.__name__, (_Made, kind), kept | differing | {_MAKER: maker})  # type: ignore[misc]
    except Exception:  # of a metaclass that does not want it
        return None
