"""The ops on the emulator: the sources of the CUDA kernels, run on the CPU (docs/emulator.md).

Each function here has the signature of its twin in :mod:`scratchcuda.tensor_ops`; it allocates the output and calls
the launcher in ``csrc/kernels``. Arguments have been checked by :mod:`scratchcuda.ops`.
"""

import ctypes
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from scratchcuda import _build, tensor_ops

# As in csrc/kernels/launchers.h.
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_ACTIVATIONS = {"none": 0, "relu": 1, "sigmoid": 2, "tanh": 3}
TILES = {"automatic": -1, "small": 0, "medium": 1, "large": 2, "thin": 3}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("dims", ctypes.c_int32),
        ("size", ctypes.POINTER(ctypes.c_int64)),
        ("stride", ctypes.POINTER(ctypes.c_int64)),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> "_Tensor":
        dims = ctypes.c_int64 * tensor.dim()
        return cls(tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.dim(), dims(*tensor.shape), dims(*tensor.stride()))


class Launch(NamedTuple):
    """What the emulator recorded of a kernel's launch."""

    device: int
    stream: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    kernel: str


_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The emulator, built and loaded once, in the variants that ``SCRATCHCUDA_EMULATOR`` names."""
    global _loaded
    with _lock:
        if _loaded is None:
            names = os.environ.get("SCRATCHCUDA_EMULATOR", "")
            first_seed = int(os.environ.get("SCRATCHCUDA_EMULATOR_SEED", "0"))
            loaded = load(_build.emulator(name.strip() for name in names.split(",") if name.strip()))
            loaded.emulator_seed(first_seed)
            _loaded = loaded
        return _loaded


def load(path: os.PathLike[str]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(os.fspath(path))
    tensor, tile, stream = _Tensor, ctypes.c_int32, ctypes.c_void_p
    for name, types in {
        "dense_forward": [tensor] * 4 + [ctypes.c_int32, tile, stream],
        "dense_backward_input": [tensor] * 3 + [tile, stream],
        "dense_backward_weights": [tensor] * 4 + [ctypes.c_void_p, tile, stream],
        "dense_update": [tensor] * 4 + [ctypes.c_double] * 2 + [ctypes.c_void_p, tile, stream],
        "dense_workspace_bytes": [tensor] * 2 + [tile],
        "matmul_tile": [ctypes.c_int64] * 2,
        "activation_forward": [tensor] * 2 + [ctypes.c_int32, stream],
        "activation_backward": [tensor] * 3 + [ctypes.c_int32, stream],
        "softmax_forward": [tensor] * 2 + [stream],
        "softmax_backward": [tensor] * 3 + [stream],
        "emulator_seed": [ctypes.c_uint64],
        "emulator_record": [ctypes.c_int],
        "emulator_message": [],
        "emulator_records": [],
        "cudaGetErrorName": [ctypes.c_int],
    }.items():
        getattr(loaded, name).argtypes = types
    for name in ("emulator_message", "emulator_records", "cudaGetErrorName"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.dense_workspace_bytes.restype = ctypes.c_int64
    return loaded


def seed(number: int) -> None:
    """Shuffle threads and blocks in another order from here on."""
    library().emulator_seed(number)


def record(on: bool) -> None:
    """Begin a new record of launches, or end recording."""
    library().emulator_record(on)


def launches() -> list[Launch]:
    """The launches recorded so far."""
    found = []
    for line in library().emulator_records().decode().splitlines():
        device, stream, grid, block, shared_bytes, kernel = line.split(" ", 5)
        grid_size, block_size = (tuple(int(size) for size in text.split(",")) for text in (grid, block))
        address = 0 if stream == "(nil)" else int(stream, 16)
        found.append(Launch(int(device), address, grid_size, block_size, int(shared_bytes), kernel))
    return found


def _launch(name: str, *args: Any) -> None:
    values = [_Tensor.of(arg) if isinstance(arg, Tensor) else arg for arg in args]
    error = getattr(library(), name)(*values, None)
    if error:
        reason = "a tensor has more than 16 dimensions that cannot be merged"  # all that a launcher itself refuses
        if library().cudaGetLastError():
            reason = library().emulator_message().decode()
        raise RuntimeError(f"{name} failed on the emulator, {library().cudaGetErrorName(error).decode()}: {reason}")


def dense(x: Tensor, w: Tensor, b: Tensor, activation: str, tile: str = "automatic") -> Tensor:
    a = x.new_empty(*x.shape[:-1], w.shape[1])
    _launch("dense_forward", x, w, b, a, _ACTIVATIONS.get(activation, 0), TILES[tile])
    if activation == "softmax":
        _launch("softmax_forward", a, a)
    return a


def dense_backward_input(delta: Tensor, w: Tensor, tile: str = "automatic") -> Tensor:
    dx = delta.new_empty(*delta.shape[:-1], w.shape[0])
    _launch("dense_backward_input", delta, w, dx, TILES[tile])
    return dx


def dense_backward_weights(delta: Tensor, x: Tensor, tile: str = "automatic") -> tuple[Tensor, Tensor]:
    dw, db = x.new_empty(x.shape[-1], delta.shape[-1]), x.new_empty(delta.shape[-1])
    workspace = _workspace(delta, x, tile)
    _launch("dense_backward_weights", delta, x, dw, db, workspace.data_ptr(), TILES[tile])
    return dw, db


def dense_update_(
    delta: Tensor, x: Tensor, w: Tensor, b: Tensor, lr: float, weight_decay: float, tile: str = "automatic"
) -> None:
    workspace = _workspace(delta, x, tile)
    _launch("dense_update", delta, x, w, b, lr, weight_decay, workspace.data_ptr(), TILES[tile])
    torch.autograd.graph.increment_version([t for t in (w, b) if not t.is_inference()])


def _workspace(delta: Tensor, x: Tensor, tile: str) -> Tensor:
    size = library().dense_workspace_bytes(_Tensor.of(delta), _Tensor.of(x), TILES[tile])
    return x.new_empty(size, dtype=torch.uint8)


def _forward(name: str) -> Callable[[Tensor], Tensor]:
    def forward(z: Tensor) -> Tensor:
        a = torch.empty_like(z)
        _launch("activation_forward", z, a, _ACTIVATIONS[name])
        return a

    return forward


def _backward(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    def backward(delta: Tensor, a: Tensor) -> Tensor:
        dz = torch.empty_like(delta)
        _launch("activation_backward", delta, a, dz, _ACTIVATIONS[name])
        return dz

    return backward


def softmax(z: Tensor) -> Tensor:
    a = torch.empty_like(z)
    _launch("softmax_forward", z, a)
    return a


def softmax_backward(delta: Tensor, a: Tensor) -> Tensor:
    dz = torch.empty_like(delta)
    _launch("softmax_backward", delta, a, dz)
    return dz


#: The ops that have a kernel.
KERNELS: dict[str, Callable[..., Any]] = {
    "dense": dense,
    "dense_backward_input": dense_backward_input,
    "dense_backward_weights": dense_backward_weights,
    "dense_update_": dense_update_,
    "softmax": softmax,
    "softmax_backward": softmax_backward,
    **{name: _forward(name) for name in ("relu", "sigmoid", "tanh")},
    **{f"{name}_backward": _backward(name) for name in ("relu", "sigmoid", "tanh")},
}

_said: set[str] = set()


def serving(name: str, *tensors: Tensor) -> Callable[..., Any]:
    """What serves an op: its kernel; or its twin where there is none, which is said once.

    The twin also serves where more is asked than numbers in memory: where autograd records, under the transforms of
    torch.func, and for tensors of other kinds (meta, fake, with the negative bit).
    """
    twin = getattr(tensor_ops, name)
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta or tensor.is_neg():
            return twin
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{name} got a tensor on device {tensor.device}, expected cpu: the emulator runs there alone"
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} got dtype {tensor.dtype}, expected float64, float32, float16 or bfloat16")
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    records = torch.is_grad_enabled() and not name.endswith("_") and any(tensor.requires_grad for tensor in tensors)
    if transformed or records:
        return twin
    if name not in KERNELS and name not in _said:
        _said.add(name)
        warnings.warn(f"{name} has no kernel yet: its tensor twin serves it on the emulator", stacklevel=4)
    return KERNELS.get(name, twin)
