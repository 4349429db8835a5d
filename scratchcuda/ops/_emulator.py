"""The ops on the emulator: the sources of the CUDA kernels, run on the CPU (docs/emulator.md)."""

import ctypes
import functools
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scratchcuda._build import emulator as _build
from scratchcuda._build.library import BuildError
from scratchcuda.ops import _registry

#: Block tiles of the matrix product, as in csrc/kernels/launchers.h.
TILES = {"automatic": -1, "small": 0, "medium": 1, "large": 2, "thin": 3}


class Emulator(NamedTuple):
    """One build of the emulator.

    Attributes:
        namespace: of torch.ops, where its ops are.
        controls: what it has besides the ops: seed, record, the current stream and device, the tile of products.
    """

    namespace: str
    controls: ctypes.CDLL

    @property
    def ops(self) -> Any:
        return getattr(torch.ops, self.namespace)


class Launch(NamedTuple):
    """What the emulator recorded of a kernel's launch."""

    device: int
    stream: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    kernel: str


_lock = threading.Lock()


def current() -> Emulator:
    """The emulator, built and loaded once, in the variants that are asked for."""
    with _lock:
        return _usual()


def asked() -> set[str]:
    """The variants that ``SCRATCHCUDA_EMULATOR`` names."""
    names = os.environ.get("SCRATCHCUDA_EMULATOR", "").split(",")
    return {name.strip() for name in names if name.strip()}


@functools.cache
def _usual() -> Emulator:
    first_seed = int(os.environ.get("SCRATCHCUDA_EMULATOR_SEED", "0"))
    if unknown := sorted(asked() - _build.VARIANTS.keys()):
        cause = f"SCRATCHCUDA_EMULATOR names {unknown[0]!r}, expected some of {', '.join(_build.VARIANTS)}"
        raise BuildError(cause, "unset SCRATCHCUDA_EMULATOR")
    emulator = load(asked())
    emulator.controls.emulator_seed(first_seed)
    return emulator


def load(variants: Iterable[str]) -> Emulator:
    variants = sorted(set(variants))
    path = _build.build(variants)
    namespace = _build.namespace(variants)
    _registry.define(namespace)
    return Emulator(namespace, controls(path))  # loading the library registers its kernels


def controls(path: Path) -> ctypes.CDLL:
    """The library at this path, with what it has besides the ops."""
    loaded = ctypes.CDLL(os.fspath(path))
    loaded.emulator_seed.argtypes = loaded.emulator_set_stream.argtypes = [ctypes.c_uint64]
    for name in ("emulator_records", "cudaGetErrorName", "cudaGetErrorString"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def seed(number: int) -> None:
    """Shuffle threads and blocks in another order from here on."""
    current().controls.emulator_seed(number)


def record(on: bool) -> None:
    """Begin a new record of launches, or end recording."""
    current().controls.emulator_record(on)


def launches() -> list[Launch]:
    """The launches recorded so far."""
    found = []
    for line in current().controls.emulator_records().decode().splitlines():
        device, stream, grid, block, shared_bytes, kernel = line.split(" ", 5)
        grid_size, block_size = (tuple(int(size) for size in text.split(",")) for text in (grid, block))
        address = 0 if stream == "(nil)" else int(stream, 16)
        found.append(Launch(int(device), address, grid_size, block_size, int(shared_bytes), kernel))
    return found


def define() -> None:
    """The ops of what is asked for, before their kernels: a FlopCounterMode knows those that it finds when made."""
    if asked() <= _build.VARIANTS.keys():
        _registry.define(_build.namespace(asked()))
