"""The peak of memory while something runs."""

import ctypes
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

_PROC = Path("/proc/self")


class Peak:
    """A context that measures by how many bytes memory grows inside of it, at its highest.

    On a GPU, what torch and JAX have allocated there. On a CPU, the resident memory of the process, as Linux tells it.

    Attributes:
        bytes: None where it cannot be known: on other systems, and of JAX on a GPU if it stays below an earlier peak.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before, self.jax = torch.cuda.memory_allocated(), _jax()
        elif (_PROC / "clear_refs").exists():
            _give_back()
            (_PROC / "clear_refs").write_text("5")  # sets the highest to the present
            self.before = _resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            jax = _jax_growth(self.jax, _jax())
            self.bytes = None if jax is None else torch.cuda.max_memory_allocated() - self.before + jax
        elif (_PROC / "clear_refs").exists():
            self.bytes = max(0, _resident("VmHWM") - self.before)


def _resident(name: str) -> int:
    lines = (_PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def _give_back() -> None:
    """What the allocator keeps from before would serve without any growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _jax() -> dict[str, Any]:
    """What JAX's allocator on the GPU tells; its peak is the highest since the process began."""
    jax = sys.modules.get("jax")
    return (jax and jax.devices()[0].memory_stats()) or {}


def _jax_growth(before: dict[str, Any], after: dict[str, Any]) -> int | None:
    if after.get("num_allocs") == before.get("num_allocs"):
        return 0
    if after["peak_bytes_in_use"] == before.get("peak_bytes_in_use"):
        return None
    return after["peak_bytes_in_use"] - before.get("bytes_in_use", 0)
