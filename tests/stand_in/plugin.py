"""A stand-in for a GPU, loaded by pytest's -p: from here on a CPU build of torch has two CUDA devices.

They are made of host memory. The kernels run on the emulator, under the ops as they are compiled for CUDA tensors;
torch's own operations are those of its CPU, on the same memory; and torch.cuda is torch's own Python, with what it asks
of torch._C in the library that is built here. Work is done at once, or recorded by a capture and done again in replays.

What would go wrong on a GPU is an error here: a launch on another device or stream than torch's current ones, or with
memory of another device; tensors of several devices in one operation; a wait for the device, a copy between it and the
host, or an allocation outside the graph's pool, within a capture; a replay that reaches for released memory. Memory is
NaN until it is written. It cannot show what depends on time: work of two streams that wants an event between them, or a
read before the device is done. Nor has it nvcc, CUPTI, or torch's own CUDA kernels.
"""

import importlib
import platform
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scratchcuda._build import emulator, extension, toolchain
from scratchcuda._build.library import Library, csrc, digest, kernel_sources, op_sources
from scratchcuda.ops import _backend

HERE = Path(__file__).parent
#: What can show nothing here, by parts of its name, and why.
LEFT_OUT = {
    "test_instructions.py": "nvcc makes the kernels of these",
    "test_kernel_resources": "there are no registers",
    "test_a_graph_takes_the_memory_of_a_step": "takes the emulator a minute",
    "test_printed_lines_equal_torch": "takes the emulator a minute, and the trajectories have it",
    "test_offsets_beyond_32_bits": "the emulator has its own, and it takes 4 GiB",
    "test_the_graph_plan_tells_phases_and_layers": "needs CUPTI to see kernels",
    "test_ratios_and_kernels_of_our_ops": "needs CUPTI to see kernels",
    "test_trains_as_the_original[kernels-recurrent": "torch's LSTM has CUDA kernels of its own",
    "::test_compiled_by_inductor[kernels": "Inductor makes CUDA kernels by Triton",
    "::test_autocast[kernels": "torch's softmax from float16 to float32 is CUDA's alone",
    "::test_softmax_in_another_dtype[kernels": "torch's softmax from float16 to float32 is CUDA's alone",
    "::test_gradients_of_other_kinds[kernels": "the stand-in has no sparse tensors",
    "::test_gradients_that_kernels_do_not_take[kernels": "the stand-in has no sparse tensors",
}


def pytest_ignore_collect(collection_path):
    return True if collection_path.name in LEFT_OUT else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("kernels"):
            item.add_marker(pytest.mark.skip("on the stand-in: the emulator has run the kernels"))
        for name, reason in LEFT_OUT.items():
            if name in item.nodeid:
                item.add_marker(pytest.mark.skip(f"on the stand-in: {reason}"))


def recipe() -> Library:
    """scratchcuda._C: the kernels on the emulator, the ops as for CUDA tensors, and the devices of this folder."""
    compiler, torch_build = toolchain.host_compiler(), toolchain.torch()
    flags = [*compiler.words, *emulator._FLAGS, f"-I{csrc() / 'emulator'}"]
    kernels = [*emulator._KERNEL_FLAGS, "-D__CUDA_ARCH__=800", "-include", str(HERE / "launches.h")]
    kernels += ["-ftrivial-auto-var-init=zero"]  # or a parameter's unused bytes might look like a tensor's address
    includes = [torch_build.folder / "include", torch_build.folder / "include/torch/csrc/api/include"]
    ops = ["-DUSE_CUDA", *(f"-isystem{path}" for path in (*includes, sysconfig.get_path("include")))]
    calls = [[*flags, *kernels, str(path)] for path in kernel_sources()]
    calls += [[*flags, "-D__CUDA_ARCH__=800", str(path)] for path in sorted((csrc() / "emulator").glob("*.cpp"))]
    calls += [[*flags, *ops, *toolchain.STABLE_FLAGS, str(path)] for path in op_sources()]
    calls += [[*flags, *ops, str(path)] for path in sorted(HERE.glob("*.cpp"))]
    libraries = ["-Wl,-Bsymbolic", "-ldl", f"-L{torch_build.folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch_python"]
    headers = (path.read_text() for path in sorted(HERE.glob("*.h")))
    identity = repr([compiler.version, torch_build.version, platform.python_version(), platform.machine()])
    identity = digest(identity, *headers)
    return Library("stand-in", "the stand-in for a GPU", identity, calls, [*compiler.words, "-shared"], libraries, {})


def install() -> None:
    extension.recipe = recipe
    if fault := _backend.kernels_missing():
        raise pytest.UsageError(fault)
    from scratchcuda import _C

    for name, value in vars(_C.torch).items():
        if not name.startswith("__"):
            setattr(torch._C, name, value)
    torch._C._has_cuda = True
    torch._C._CudaStreamBase, torch._C._CudaEventBase = Stream, Event
    torch._C._cuda_CUDAAllocator_AllocatorState, torch._C._set_cached_tensors_enabled = object, bool  # for Inductor
    torch._C._cudart = SimpleNamespace(
        cudaError=SimpleNamespace(success=0), cudaProfilerStart=lambda: 0, cudaProfilerStop=lambda: 0
    )
    torch._C._nvtx = SimpleNamespace(rangePushA=lambda name: 0, rangePop=lambda: 0)
    for module in ("streams", "graphs", "nvtx"):
        importlib.reload(getattr(torch.cuda, module))
    importlib.reload(torch.cuda)
    torch.UntypedStorage.__new__ = new_storage
    torch.profiler.profile = profile
    torch.cuda._initialized = True
    torch.cuda.default_generators = (torch.default_generator,) * torch.cuda.device_count()
    torch.cuda._get_device_properties = lambda device: SimpleNamespace(
        name="stand-in", major=9, minor=0, L2_cache_size=50 << 20, multi_processor_count=132, total_memory=80 << 30
    )


def new_storage(cls, *args, device=None, **named):
    """Of torch.UntypedStorage, whose own knows the devices that torch was built for."""
    if torch.device(device or "cpu").type == "cuda":
        return torch.empty(*args, dtype=torch.uint8, device=device).untyped_storage()
    return torch._C.StorageBase.__new__(cls, *args, **({"device": device} if device else {}), **named)


def profile(activities=None, profile=torch.profiler.profile, **named):
    """torch.profiler.profile without CUPTI, as where another profiler has it."""
    return profile(activities=[torch.profiler.ProfilerActivity.CPU], **named)


class Stream(torch.Stream):
    """torch._C._CudaStreamBase."""

    def __new__(cls, priority=0, **named):
        named = named or {"device": torch.device("cuda", torch.cuda.current_device())}
        return super().__new__(cls, priority=priority, **named)

    @property
    def cuda_stream(self):
        return self.stream_id


class Event:
    """torch._C._CudaEventBase: whatever came before an event is done when it is recorded."""

    def __new__(cls, **_):
        return super().__new__(cls)

    def record(self, stream):
        self.time = time.perf_counter()

    def wait(self, stream):
        pass

    def synchronize(self):
        torch._C._cuda_synchronize()

    def elapsed_time(self, later):
        return 1e3 * (later.time - self.time)


install()
