"""Under which conditions something is measured: the machine, the versions, the settings."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import scratchcuda
from scratchcuda import use_backend
from scratchcuda.ops import _backend

SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"


def settle(device: torch.device) -> None:
    """One thread on a CPU; on a GPU our kernels, and float32 multiplied as float32. Before JAX is imported.

    Raises:
        RuntimeError: if there is no such device, or our kernels cannot serve it.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
        # Read when JAX starts. The flags alone leave it a pool as large as the machine.
        os.environ["NPROC"] = "1"
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        return
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU; --dry runs on the CPU")
    if reason := _backend.kernels_unfit(device):
        raise RuntimeError(reason)
    use_backend("kernels")
    torch.backends.cuda.matmul.allow_tf32 = False
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of the memory


def conditions(device: torch.device) -> dict[str, Any]:
    """All that the times depend on, as far as it can be asked for."""
    return {
        "device": device_name(device),
        "kind": device.type,
        "backend": _backend.current,
        "threads": torch.get_num_threads(),
        "clocks": _output("nvidia-smi", f"--query-gpu={SMI}", "--format=csv")
        if device.type == "cuda"
        else _megahertz(),
        "settings": {name: os.environ[name] for name in ("NPROC", "XLA_FLAGS") if name in os.environ},
        "versions": versions(),
        **_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def sentence(found: Mapping[str, Any]) -> str:
    """The conditions, for a reader."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    commit = f"commit {found['commit'][:9]}{' with changes' if found['dirty'] else ''}, " if found["commit"] else ""
    return f"{found['device']}, {threads}, {versions}, {commit}{found['date']}"


def device_name(device: torch.device) -> str:
    """The name of the processor or card behind a torch device, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    found = {"scratchcuda": scratchcuda.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for name in ("jax", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any]:
    """Of the checkout that the package lies in; None if it is installed elsewhere, even within another's checkout."""
    git = "git", "-C", str(Path(scratchcuda.__file__).parent)
    if _output(*git, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": False}
    # Results that an earlier run has written there change nothing.
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results")
    return {"commit": _output(*git, "rev-parse", "HEAD"), "dirty": bool(_output(*git, *changed))}


def _megahertz() -> str | None:
    """Of the processor's cores, as Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return ", ".join(f"{value} MHz" for value in re.findall(r"cpu MHz\s*: ([\d.]+)", text)) or None


def age() -> float:
    """Seconds since this process began, as Linux tells; elsewhere 0."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])  # the 22nd field: when it began, after the boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _output(*command: str) -> str | None:
    """What it prints, or None if it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
