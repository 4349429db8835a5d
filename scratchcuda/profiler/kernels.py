"""Which kernels a call launches, and what each takes of the device."""

import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from scratchcuda.ops import _backend, _emulator
from scratchcuda.profiler.findings import Kernel
from scratchcuda.profiler.record import Call

Events = list[dict[str, Any]]


def launched(calls: Sequence[Call], device: torch.device) -> list[list[Kernel]]:
    """The kernels that each call launches, by torch.profiler (CUPTI) on a GPU; none on a CPU but for the emulator's."""
    if device.type == "cuda":
        return _on_gpu(calls)
    return [_emulated(call) for call in calls] if _backend.current == "emulator" else [[] for _ in calls]


def _emulated(call: Call) -> list[Kernel]:
    run = call.on_copies()
    _emulator.record(True)
    run()
    found = _emulator.launches()
    _emulator.record(False)
    return [Kernel(k.kernel, list(k.grid), list(k.block), None, k.shared_bytes, None) for k in found]


def _on_gpu(calls: Sequence[Call]) -> list[list[Kernel]]:
    with _profiler([ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for i, call in enumerate(calls):
            run = call.on_copies()
            torch.cuda.synchronize()
            with record_function(f"call {i}"):
                run()
                torch.cuda.synchronize()
    events = events_of(profiler)
    built = {}
    if _backend.kernels_missing() == "":
        from scratchcuda import _C  # type: ignore[attr-defined]

        built = {resources["kernel"]: resources["occupancy"] for resources in _C.kernel_resources()}
    return [kernels_in(events, f"call {i}", built) for i in range(len(calls))]


@contextmanager
def _profiler(activities: Sequence[ProfilerActivity]) -> Iterator[torch.profiler.profile]:
    """torch.profiler, whose library, Kineto, would write to stderr when it starts and ends; a level that is set stays.

    Its errors are silenced with that, as they rank below it. What matters of them, that kernels are missing, is told.
    """
    is_ours = "KINETO_LOG_LEVEL" not in os.environ
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when a process first uses it
    try:
        with torch.profiler.profile(activities=activities, acc_events=True) as profiler:  # or 2.11 warns
            yield profiler
    finally:
        if is_ours:
            del os.environ["KINETO_LOG_LEVEL"]


def events_of(profiler: torch.profiler.profile) -> Events:
    """What torch.profiler has recorded, as Chrome's trace format has it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        return json.loads(file.read_text())["traceEvents"]


def kernels_in(events: Events, name: str, occupancies: dict[str, float]) -> list[Kernel]:
    """The kernels that were launched within the range of this name, in order.

    Args:
        events: of a trace.
        name: of a range of record_function, which occurs once.
        occupancies: of kernels by name.
    """
    span = next(e for e in events if e.get("cat") == "user_annotation" and e["name"] == name)
    calls = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    within = (e for e in calls if span["ts"] <= e["ts"] <= span["ts"] + span["dur"])
    launches = {e["args"].get("correlation") for e in within}
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    found = [e for e in events if e.get("cat") in kinds and e["args"].get("correlation") in launches]
    kernels = []
    for event in sorted(found, key=lambda event: event["ts"]):
        of, name = event["args"], event["name"]
        registers, shared = of.get("registers per thread"), of.get("shared memory", 0)
        sizes = of.get("grid", []), of.get("block", [])
        kernels.append(Kernel(name, *sizes, registers, shared, occupancies.get(name)))
    return kernels


def notices(device: torch.device) -> list[str]:
    """What may keep profilers from seeing this device, in sentences."""
    if device.type != "cuda":
        return []
    found = []
    injected = [name for name in ("CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH") if os.environ.get(name)]
    if injected:
        found.append(
            f"Another profiler is in this process ({', '.join(injected)} is set): CUPTI serves one at a time, so "
            "kernels, registers and occupancy may be missing here"
        )
    parameters = Path("/proc/driver/nvidia/params")
    if parameters.exists() and "RmProfilingAdminOnly: 1" in parameters.read_text() and os.geteuid() != 0:
        found.append(
            "The driver gives hardware counters to administrators only (NVreg_RestrictProfilingToAdminUsers=1): ncu "
            "will end with ERR_NVGPUCTRPERM; times here need no counters"
        )
    return found


def trace(show: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """A step in Chrome's trace format, which Perfetto opens, with the ranges of phases and layers."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    show()  # what is done once, such as loading kernels, is not shown
    with _profiler(activities) as profiler:
        show()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return {"traceEvents": events_of(profiler), "displayTimeUnit": "ms"}


def nsight(tool: str, arguments: Sequence[str]) -> str:
    """The command line that shows a workload's steps to Nsight Systems ("nsys") or Nsight Compute ("ncu").

    Args:
        tool: which.
        arguments: of ``scratchcuda profile``.
    """
    command = f"{shlex.join(['scratchcuda', 'profile', *arguments])} --steps-only 3"
    if tool == "nsys":
        return f"nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --output=scratchcuda {command}"
    return f"ncu --set full --nvtx --profile-from-start off --export scratchcuda {command}"
