"""What serves the ops: their twins in tensor operations, the CUDA kernels, or the emulator."""

import functools
import importlib.util
import inspect
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._contextlib import context_decorator

from scratchcuda._build import extension, toolchain
from scratchcuda._build.library import BuildError, Library, asked
from scratchcuda.ops import _emulator
from scratchcuda.ops._registry import twins

BACKENDS = ("auto", "tensor", "kernels", "emulator")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _checked(source: str, name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


#: What the environment asks of an installation, and so the backend to begin with where it names none.
_ASKED = "kernels" if asked("FORCE_CUDA") else "tensor" if asked("SCRATCHCUDA_NO_CUDA") else "auto"

#: The backend in use. One module attribute, which torch.compile guards.
current = _checked("SCRATCHCUDA_BACKEND", os.environ.get("SCRATCHCUDA_BACKEND") or _ASKED)


_Function = TypeVar("_Function", bound=Callable[..., Any])
_NOT_DECORATED = (inspect.isclass, inspect.iscoroutinefunction, inspect.isasyncgenfunction)  # a call runs none of it


class _Choice:
    """A choice that may yet be taken back: what was in force before it, and, unless it is a block's, who made it.

    That is the object that a plain call returns, which a ``with`` statement may yet enter.
    """

    def __init__(self, before: str, maker: "weakref.ref[use_backend] | None"):
        self.before, self.maker = before, maker


_choices: list[_Choice] = []  # the last has made the current backend what it is
_choosing = threading.Lock()


def _choose(name: str, maker: "weakref.ref[use_backend] | None" = None) -> _Choice:
    global current
    if torch.compiler.is_compiling():  # blocks end in order there, and a list would be guarded
        choice, current = _Choice(current, maker), name
        return choice
    with _choosing:
        if _choices and (made_last := _choices[-1].maker) and not made_last():  # it stays, and hides those beneath
            while _choices and _choices[-1].maker:
                _choices.pop()
        choice, current = _Choice(current, maker), name
        _choices.append(choice)
    return choice


def _take_back(choice: _Choice) -> None:
    """What was in force before it is so again, or will be once what was chosen after it is taken back."""
    global current
    if torch.compiler.is_compiling():
        current = choice.before
        return
    with _choosing:
        if choice not in _choices:  # a plain call's, which has ended with its block
            return
        begin = _choices.index(choice)
        end = begin + 1
        while not choice.maker and end < len(_choices) and _choices[end].maker:  # plain calls within this block
            end += 1
        if end < len(_choices):
            _choices[end].before = choice.before
        else:
            current = choice.before
        del _choices[begin:end]


class use_backend:  # noqa: N801  (a function to its users, as torch.no_grad)
    """Choose what serves the ops from here on, or within the block of a ``with`` statement, or as a decorator.

    Args:
        name: "auto" (the CUDA kernels for CUDA tensors, torch's tensor operations for all others, and for CUDA
            tensors too, with a warning, if there is no usable build of the kernels and none can be made), "tensor"
            (torch's tensor operations, on any device), "kernels" (as "auto", but without the kernels CUDA tensors
            raise RuntimeError) or "emulator" (the CUDA kernels' sources compiled for the CPU; CPU tensors only, much
            slower, and stricter than a GPU).

    A plain call holds until the block ends that it is made in. The object may be entered again, also while it is. As a
    decorator of a function or a generator function it holds while that runs.

    All threads share the one backend: it is that of the block entered last, in any thread, that has not ended. When
    all have ended, what was there before is back.

    The environment variable ``SCRATCHCUDA_BACKEND`` names the one to begin with, read once, at import. Without it
    ``FORCE_CUDA=1`` means "kernels", and ``SCRATCHCUDA_NO_CUDA=1`` means "tensor".
    """

    def __init__(self, name: str):
        self._name = _checked("name", name)
        self._blocks: list[_Choice] = []
        self._plain: _Choice | None = _choose(name, weakref.ref(self))

    def __enter__(self) -> None:
        self._take_back_plain()
        self._blocks.append(_choose(self._name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _take_back(self._blocks.pop())

    def __call__(self, function: _Function) -> _Function:
        self._take_back_plain()
        if not callable(function) or any(is_one(function) for is_one in _NOT_DECORATED):
            raise TypeError(f"use_backend decorates {function!r}, expected a function or a generator function")
        decorated: _Function = context_decorator(lambda: use_backend(self._name), function)
        return decorated

    def _take_back_plain(self) -> None:
        if self._plain:
            _take_back(self._plain)
            self._plain = None


_lock = threading.Lock()


def kernels_missing() -> str:
    """Loads the CUDA kernels, once: those installed, or else those of the cache, built now if they have to be.

    Returns why they cannot be used, and the cure; nothing if they can.
    """
    with _lock:
        return _missing()


@functools.cache
def _missing() -> str:
    try:
        find(Library.built)
    except BuildError as error:
        return str(error)
    return ""


def find(build: Callable[[Library], Path | None]) -> tuple[Path | None, str]:
    """What serves CUDA tensors, loaded: the build that is installed, or else what this function makes of the recipe for
    another; and why the one installed is set aside, if it is. Raises BuildError if nothing serves."""
    installed = extension.installed()
    if not (fault := extension.misfit(installed) or load(installed)):
        return installed, ""
    aside = f"{installed} is set aside: {fault}" if installed.exists() else ""
    try:
        recipe = extension.recipe()
        library = build(recipe._replace(title=f"{recipe.title}{aside and ', because '}{aside}"))
        if library and (fault := load(library)):
            raise BuildError(fault, "set SCRATCHCUDA_CACHE to another folder, from which programs may run")
    except BuildError as error:
        raise BuildError(f"{aside}; {error.cause}" if aside else error.cause, error.cure) from None
    return library, aside


def load(library: Path) -> str:
    """Makes it ``scratchcuda._C``. Returns why it cannot be; nothing if it can."""
    loader = ExtensionFileLoader("scratchcuda._C", os.fspath(library))
    loaded = sys.modules.get(loader.name)
    if loaded is not None:  # by an import statement, say
        return "" if loaded.__file__ == loader.path else f"{loaded.__file__} is loaded already"
    try:
        spec = ModuleSpec(loader.name, loader, origin=loader.path)
        spec.has_location = True
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        return f"{library.name} does not load beside torch {torch.__version__} ({error})"
    sys.modules[loader.name] = module
    vars(sys.modules["scratchcuda"])["_C"] = module  # as an import statement does
    return ""


def too_old(device: torch.device) -> BuildError | None:
    """Why no build of the kernels runs on this device, if so."""
    least = toolchain.ARCHITECTURES[0]
    if torch.cuda.get_device_capability(device) >= least:
        return None
    cause = f"the kernels do not run on {_named(device)}, less than {least[0]}.{least[1]}"
    return BuildError(cause, "SCRATCHCUDA_BACKEND=tensor asks for none")


def _named(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, which has compute capability {major}.{minor}"


@functools.cache
def kernels_unfit(device: torch.device) -> str:
    """Why the CUDA kernels cannot be used on this device, and the cure; nothing if they can."""
    if reason := str(too_old(device) or "") or kernels_missing():
        return reason
    from scratchcuda import _C  # type: ignore[attr-defined]

    card, architectures = torch.cuda.get_device_capability(device), _C.build_facts()["architectures"]
    if any(extension.runs(architecture, card) for architecture in architectures):
        return ""
    return (
        f"the kernels were built for {', '.join(architectures)}, not for {_named(device)}; unset TORCH_CUDA_ARCH_LIST"
    )


def serving(name: str, *tensors: Tensor) -> Callable[..., Any]:
    """What serves an op for these tensors: its twin, or a kernel. Where autograd records, it is the twin."""
    records = torch.is_grad_enabled() and not name.endswith("_") and any(tensor.requires_grad for tensor in tensors)
    kernels = "" if records else kernels_for(name, *tensors)
    return getattr(getattr(torch.ops, kernels) if kernels else twins, name)


def bump_versions(*tensors: Tensor) -> None:
    """Bump versions: kernels write behind autograd's back, and a graph that saved these tensors must raise, not lie."""
    if not torch.compiler.is_compiling():  # which keeps account of its own
        torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def reaches(tensor: Tensor) -> bool:
    """Whether the backend in use has kernels for tensors of this device. All that CPU tensors are usually asked."""
    return current != "tensor" and (current == "emulator" or tensor.is_cuda)


def plain(tensor: Tensor) -> bool:
    """Whether this is dense memory, and not a fake, a subclass, a tensor of torch.jit.trace, or the like."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested or torch.jit.is_tracing())


def kernels_for(name: str, *tensors: Tensor) -> str:
    """The namespace of torch.ops whose kernels take an op's tensors; none where torch's own operations serve.

    These serve wherever more is asked than numbers in memory: in forward-mode AD, under the transforms of torch.func,
    for an export, and for tensors that are not :func:`plain` or have the negative bit.
    """
    if not any(reaches(tensor) for tensor in tensors):
        return ""
    if forward_ad._current_level >= 0:
        return ""
    for tensor in tensors:
        if not plain(tensor):
            return ""
        if not torch.compiler.is_compiling() and tensor.is_neg():  # the compiler resolves such views itself
            return ""
        if tensor.dtype not in (*DTYPES, torch.int64):
            raise TypeError(f"{name} got dtype {tensor.dtype}, expected float64, float32, float16 or bfloat16")
    return _namespace(name, current, tensors[0].device)


def _namespace(name: str, backend: str, device: torch.device) -> str:
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    if transformed or torch.compiler.is_exporting():
        return ""
    if backend == "emulator":
        if device.type != "cpu":
            raise ValueError(f"{name} got a tensor on device {device}, expected cpu: the emulator runs there alone")
        return _emulator.current().namespace
    if reason := kernels_unfit(device):
        if backend == "kernels":
            raise RuntimeError(f"{name} got CUDA tensors, but {reason}")
        _warn_once(f"CUDA tensors are served by torch's tensor operations, because {reason}")
        return ""
    return "scratchcuda"


# What torch.compiler.assume_constant_result sets, which would import the compiler: this is asked, not traced.
_namespace._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # the caller of the function in ops
