"""What stands in for torch's: modules whose other names are torch's, classes that know torch's instances as theirs."""

import sys
from abc import ABCMeta
from collections.abc import Callable, Sequence
from importlib import import_module, util
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def fallback(
    names: dict[str, Any], torchs: ModuleType
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a module with these globals."""

    def get(name: str) -> Any:
        if name.startswith("__"):  # torch's path would make imports below ours load torch's modules again
            raise AttributeError(f"module {names['__name__']!r} has no attribute {name!r}")
        value = getattr(torchs, name)
        if isinstance(value, ModuleType) and value.__name__.startswith(("torch.nn.", "torch.optim.")):
            return import_module(value.__name__.replace("torch", "scratchcuda", 1))
        return value

    public = getattr(torchs, "__all__", None) or [name for name in dir(torchs) if not name.startswith("_")]
    return get, lambda: sorted({*names, *dir(torchs)}), sorted({*names.get("__all__", ()), *public})


class _Modules(Loader):
    """Finds modules below ours that torch has: torch's own, or where that has classes that are ours, one with these.

    Asked before files are looked for: below a module of torch's those are torch's, which would be loaded again, and
    those of ours that name a module of torch's are for type checkers, and never run.
    """

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(("scratchcuda.nn.", "scratchcuda.optim.")) or name == "scratchcuda.nn.functional":
            return None
        torchs = util.find_spec(_torchs(name))
        return torchs and util.spec_from_file_location(
            name, torchs.origin, loader=cls(), submodule_search_locations=torchs.submodule_search_locations
        )

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty one, as usual."""

    def exec_module(self, module: ModuleType) -> None:
        name, torchs = module.__name__, import_module(_torchs(module.__name__))
        package = sys.modules[".".join(name.split(".")[:2])]
        ours = {kind._theirs(): kind for kind in vars(package).values() if isinstance(kind, StandIn)}
        shown = {key: ours[kind] for key, kind in vars(torchs).items() if isinstance(kind, type) and kind in ours}
        if shown:
            names = vars(module)
            names.update(shown)
            names["__getattr__"], names["__dir__"], names["__all__"] = fallback(names, torchs)
        else:
            sys.modules[name] = torchs


def _torchs(name: str) -> str:
    return name.replace("scratchcuda", "torch", 1)


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


sys.meta_path.insert(0, _Modules())
