"""Records the ops of a training step, each with its phase and its layer, and with copies of what it was called with."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode

from scratchcuda import _ranges
from scratchcuda.ops._backend import plain
from scratchcuda.profiler import costs


@contextmanager
def shown(name: str) -> Iterator[None]:
    """A range that torch.profiler and Nsight see by this name."""
    with record_function(name), torch.cuda.nvtx.range(name) if torch.cuda.is_initialized() else nullcontext():
        yield


class Ranges:
    """The ranges that are open, innermost last: (phase, layer).

    Attributes:
        are_silent: whether to take no notice of any, as while a step is prepared.
    """

    def __init__(self) -> None:
        self.open: list[tuple[str, str]] = [("", "")]
        self.are_silent = False
        self._shown: list[AbstractContextManager[None]] = []

    def push(self, phase: str, layer: str) -> None:
        self.open.append((phase, layer or self.open[-1][1]))
        self._shown.append(shown(" ".join(filter(None, self.open[-1]))))
        self._shown[-1].__enter__()

    def pop(self) -> None:
        self._shown.pop().__exit__(None, None, None)
        self.open.pop()

    def close(self) -> None:
        """Ends what is still open, as where a backward was left by an exception."""
        while self._shown:
            self.pop()

    @contextmanager
    def __call__(self, phase: str, layer: str) -> Iterator[None]:
        if self.are_silent:
            yield
            return
        self.push(phase, layer)
        try:
            yield
        finally:
            self.pop()


@contextmanager
def listening(ranges: Ranges) -> Iterator[None]:
    """Fits and steps tell these ranges what they do, within the block."""
    before, _ranges.listener = _ranges.listener, ranges
    try:
        yield
    finally:
        _ranges.listener = before
        ranges.close()


def nodes_of(tensors: Any, seen: set[Any] | None = None) -> Iterator[Any]:
    """The nodes of autograd's graph that have computed tensors, but for those seen before, which it adds to.

    They are held: a new node might have the id of an old one.
    """
    seen = set() if seen is None else seen
    nodes = [tensor.grad_fn for tensor in costs.tensors_of(tensors)]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [before for before, _ in node.next_functions]


@contextmanager
def watching(module: nn.Module, ranges: Ranges) -> Iterator[Callable[[Any, str], None]]:
    """Ranges of a module's layers, forward and backward, within the block.

    A layer's backward are the nodes that its forward has added to autograd's graph. Gives the function that takes
    those of any other tensors for a name.
    """
    seen: set[Any] = set()
    handles: list[Any] = []

    def take(tensors: Any, name: str) -> None:
        for node in nodes_of(tensors, seen):
            if type(node).__name__ != "AccumulateGrad":
                handles.append(node.register_prehook(lambda grads: ranges.push("backward", name)))
                handles.append(node.register_hook(lambda *grads: ranges.pop()))

    def watch(layer: nn.Module, name: str) -> None:
        @_ranges.looking_on
        def enter(layer: nn.Module, args: Any, kwargs: Any) -> None:
            take((args, kwargs), ranges.open[-1][1])  # what was done before belongs to who calls this layer
            ranges.push("forward", name)

        @_ranges.looking_on
        def leave(layer: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
            ranges.pop()
            take(outputs, name)

        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        # Always: after an exception that is caught, such as those by which checkpoints stop early.
        handles.append(layer.register_forward_hook(leave, with_kwargs=True, always_call=True))

    for name, layer in module.named_modules():
        watch(layer, " ".join(filter(None, (name, type(layer).__name__))))
    try:
        yield take
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Call:
    """A call of an op with tensors of one kind.

    Attributes:
        op: torch's, or one of ours.
        args, kwargs: copies of what it was called with, the first time.
        cost: the least that it has to do.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cost: costs.Cost

    def on_copies(self) -> "partial[Any]":
        """The same call, on data of its own."""
        return partial(self.op, *copied(self.args), **copied(self.kwargs))

    @property
    def name(self) -> str:
        """As torch's documentation has it, without its namespace: mm.out, scratchcuda::dense."""
        name = str(self.op).removesuffix(".default").removeprefix("aten.")
        return name.replace(f"{self.op.namespace}.", "scratchcuda::") if self.is_ours else name

    @property
    def op_name(self) -> str:
        """Without namespace and overload."""
        return costs.name_of(self.op)

    @property
    def is_ours(self) -> bool:
        return costs.is_ours(self.op)

    @property
    def tensors(self) -> list[Tensor]:
        return list(costs.tensors_of((self.args, self.kwargs)))

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in."""
        return next((t.dtype for t in self.tensors if t.is_floating_point()), torch.float32)


class Recorder(TorchDispatchMode):
    """Records each op that is called within a range, on dense tensors of a device.

    Attributes:
        places: how often, by phase, layer and kind, in the order of the first time.
        calls: by kind: the op with all that its time depends on.
        left_out: the names of ops on other tensors.
    """

    def __init__(self, ranges: Ranges, device: torch.device) -> None:
        super().__init__()
        self.ranges, self.device = ranges, device
        self.places: Counter[tuple[str, str, Any]] = Counter()
        self.calls: dict[Any, Call] = {}
        self.left_out: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        phase, layer = self.ranges.open[-1]
        if not phase or op.is_view or op.namespace == "profiler":  # record_function's own
            return op(*args, **kwargs)
        takes = self._takes((args, kwargs))
        if takes and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode ops come whole that are made of others
                return op.decompose(*args, **kwargs)
        kind = _kind((op, args, kwargs), {}) if takes else None
        before = None if kind is None or kind in self.calls else (copied(args), copied(kwargs))  # it may write
        out = op(*args, **kwargs)
        if kind is None or not self._takes(out):
            self.left_out.add(str(op))
            return out
        if before:
            try:
                work = costs.cost(op, args, kwargs, out)
            except Exception:  # of any op there is; a step must not fail of being watched
                self.left_out.add(str(op))
                return out
            self.calls[kind] = Call(op, *before, work)
        if self.calls[kind].cost.bytes:
            self.places[phase, layer, kind] += 1
        return out

    def _takes(self, value: Any) -> bool:
        tensors = list(costs.tensors_of(value))
        is_here = not tensors or any(tensor.device.type == self.device.type for tensor in tensors)
        return is_here and all(map(plain, tensors))


def _kind(value: Any, seen: dict[Any, int]) -> Any:
    """All that matters for what a call costs; ``seen`` tells tensors that are the same from others."""
    if isinstance(value, Tensor):
        of = value.shape, value.stride(), value.dtype
        return *of, seen.setdefault((value.data_ptr(), *of), len(seen))
    if isinstance(value, list | tuple):
        return tuple(_kind(item, seen) for item in value)
    if isinstance(value, dict):
        return tuple((name, _kind(item, seen)) for name, item in value.items())
    return repr(value)


def copied(value: Any, dtype: torch.dtype | None = None) -> Any:
    """The same with all dense tensors copied, strides kept, one copy for a tensor that is in it twice.

    Of a call arguments and keywords are copied apart: what is written with out= over an argument gets a place of its
    own, or a call that is repeated would read what it has written.

    Args:
        value: a tensor, or nested lists, tuples and dicts.
        dtype: of floating-point tensors, and of floating dtypes among the values; their own if None.
    """
    return _copied(value, dtype, {})


def _copied(value: Any, dtype: torch.dtype | None, made: dict[Any, Tensor]) -> Any:
    # No closure that calls itself: it would keep all that it has made until the garbage collector comes.
    if isinstance(value, Tensor):
        if not plain(value):
            return value
        key = value.data_ptr(), value.shape, value.stride(), value.dtype
        if key not in made:
            made[key] = _copy(value, dtype)
        return made[key]
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return dtype or value
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, dtype, made) for item in value)
    if isinstance(value, dict):
        return {name: _copied(item, dtype, made) for name, item in value.items()}
    return value


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
    with torch.inference_mode(False), torch.no_grad():
        # An expanded dimension lies in one place, in the copy too.
        sizes = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        lying = tensor.detach()[tuple(slice(0, size) for size in sizes)]
        made = torch.empty_strided(sizes, tensor.stride(), dtype=kind, device=tensor.device)
        return made.copy_(lying).expand(tensor.shape)
