"""The emulator: the sources of the CUDA kernels and their ops, compiled for the CPU with g++ alone, in seconds."""

import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from . import toolchain
from .library import Library, csrc, kernel_sources, op_sources

#: Ways to build it: what each adds to the flags of the kernels alone (no sanitizer may see the emulator), and of all.
VARIANTS = {
    "sm_75": ([], ["-D__CUDA_ARCH__=750"]),
    # nvcc contracts a * b + c to one instruction that rounds once; g++ does so where it is told to.
    "fma": (["-ffp-contract=fast", *(["-mfma"] if platform.machine() == "x86_64" else [])], []),
    "debug": ([], ["-O0"]),  # every variable and line is there for a debugger
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], ["-DEMULATOR_ADDRESS"]),
    "thread": (["-fsanitize=thread"], ["-DEMULATOR_THREAD"]),
}
_FLAGS = ["-std=c++20", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-semantic-interposition"]
_FLAGS += ["-fno-gnu-unique"]  # two builds in one process share nothing
_FLAGS += ["-Wfatal-errors"]  # of an error in a template, and of all that follows from it, the first
_KERNEL_FLAGS = ["-x", "c++", "-ffp-contract=off", "-fsanitize=alignment", "-fno-sanitize-recover=alignment"]


def namespace(variants: Iterable[str]) -> str:
    """The namespace of torch.ops of this build's ops."""
    return "_".join(["scratchcuda_emulator", *sorted(variants)])


def build(variants: Iterable[str] = (), extra: Iterable[Path] = ()) -> Path:
    """The shared library, built if it is not in the cache.

    Args:
        variants: of :data:`VARIANTS`.
        extra: ``.cu`` files to compile into it in place of the kernels and ops.

    Raises BuildError if there is no compiler, or it refuses the sources, or the cache cannot be written.
    """
    variants, extra = sorted(set(variants)), list(extra)
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise ValueError(f"the emulator's variant is {unknown[0]!r}, expected one of {', '.join(VARIANTS)}")
    compiler = toolchain.host_compiler()
    torch = toolchain.torch()
    include = f"-I{csrc()}/emulator"
    kernels, own = [*_KERNEL_FLAGS], [*_FLAGS]
    if "sm_75" not in variants:
        own.append("-D__CUDA_ARCH__=800")
    for variant in variants:
        kernels += VARIANTS[variant][0]
        own += VARIANTS[variant][1]
    calls = [[*compiler.words, *own, *kernels, include, str(path)] for path in extra or kernel_sources()]
    calls += [[*compiler.words, *own, include, str(path)] for path in sorted((csrc() / "emulator").glob("*.cpp"))]
    link = [*compiler.words, "-shared"]
    link += [flag for flag in kernels if flag.startswith("-fsanitize=") and flag != "-fsanitize=alignment"]
    libraries = ["-Wl,-Bsymbolic", "-Wl,--no-undefined", "-ldl"]  # a launcher that is missing is a fault of the build
    if not extra:
        ops = ["-DSCRATCHCUDA_EMULATOR=1", f"-DSCRATCHCUDA_NAMESPACE={namespace(variants)}", *toolchain.STABLE_FLAGS]
        ops += [f"-isystem{torch.folder}/include", include]
        calls += [[*compiler.words, *_FLAGS, *ops, str(path)] for path in op_sources()]
        libraries += [f"-L{torch.folder}/lib", "-ltorch_cpu"]
    # Where the sources lie, too: a debugger shows them.
    identity = repr([compiler.version, torch.version, platform.machine(), str(csrc())])
    name = "-".join(["emulator", *variants, *(path.stem for path in extra)])
    return Library(name, f"the {name}", identity, calls, link, libraries, {}).built()


def sanitizer_environment(variant: str) -> dict[str, str]:
    """What a process that loads this variant, "address" or "thread", has to be started with: runtime first."""
    # libstdc++ has to be there when AddressSanitizer starts, or it does not survive the first exception.
    runtimes = [{"address": "libasan.so", "thread": "libtsan.so"}[variant], "libstdc++.so.6"]
    find = [[*toolchain.host_compiler().words, f"-print-file-name={runtime}"] for runtime in runtimes]
    found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in find]
    return {
        "SCRATCHCUDA_EMULATOR": variant,
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
        "OMP_NUM_THREADS": "1",  # torch's pool synchronises in ways that ThreadSanitizer does not see
    }


if __name__ == "__main__":  # for make sanitize
    print(*(f"{name}={value}" for name, value in sanitizer_environment(sys.argv[1]).items()))
