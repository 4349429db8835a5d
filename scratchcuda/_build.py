"""What is compiled, and how: the CUDA extension, which setup.py builds, and the emulator, which is built here.

The emulator is the sources of the CUDA kernels and their ops, compiled for the CPU with g++ alone: one shared library,
built on demand, in seconds, and cached by a hash of the sources, the flags, the compiler and torch.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

#: For the ops: of torch's headers they use only the stable interface as it is since torch 2.11.
STABLE_FLAGS = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]

#: Of the CUDA extension, by torch's names of the compilers; torch adds the language's version and the architectures.
CUDA_FLAGS = {
    "cxx": ["-fvisibility=hidden", "-DUSE_CUDA", *STABLE_FLAGS],
    "nvcc": ["-O3", "-Xcompiler", "-fvisibility=hidden"],
}
#: What it is built for unless TORCH_CUDA_ARCH_LIST says otherwise, as far as nvcc knows them.
CUDA_ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]

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
_KERNEL_FLAGS = ["-x", "c++", "-ffp-contract=off", "-fsanitize=alignment", "-fno-sanitize-recover=alignment"]


def csrc() -> Path:
    """The C++ sources: within the package where it is installed, beside it in a checkout."""
    within = _PACKAGE / "csrc"
    return within if within.is_dir() else _PACKAGE.parent / "csrc"


def op_sources() -> list[Path]:
    """The ops that CUDA and the emulator share."""
    return [path for path in sorted((csrc() / "ops").glob("*.cpp")) if path.stem != "module"]


def toolkit() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, or that of the nvcc on PATH, or /usr/local/cuda.

    An nvcc without CUDA's headers beside it is a wrapper in a folder that is no toolkit, and is passed by.
    """
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    found = (Path(home) for home in homes if home)
    return next((h for h in found if (h / "bin/nvcc").exists() and (h / "include/cuda_runtime.h").exists()), None)


def architectures(nvcc: Path) -> str:
    """Those to build for, in the form of TORCH_CUDA_ARCH_LIST: its own, or all of ours that this nvcc knows."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked:
        return asked
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return ";".join(arch for arch in CUDA_ARCHITECTURES if f"sm_{arch.replace('.', '')}" in known) + "+PTX"


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed: pip install torch")
    return Path(spec.origin).parent


def emulator_namespace(variants: Iterable[str]) -> str:
    """The namespace of torch.ops of this build's ops."""
    return "_".join(["scratchcuda_emulator", *sorted(variants)])


def cache() -> Path:
    """Where built libraries are kept: ``SCRATCHCUDA_CACHE``, or scratchcuda's folder in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SCRATCHCUDA_CACHE") or Path(user, "scratchcuda")).absolute()


def emulator(variants: Iterable[str] = (), extra: Iterable[Path] = ()) -> Path:
    """The shared library, built if it is not in the cache.

    Args:
        variants: of :data:`VARIANTS`.
        extra: ``.cu`` files to compile into it in place of the ops.

    Raises RuntimeError if there is no compiler, or it refuses the sources, or the cache cannot be written.
    """
    variants = sorted(set(variants))
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise ValueError(f"the emulator's variant is {unknown[0]!r}, expected one of {', '.join(VARIANTS)}")
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise RuntimeError(f"the emulator needs the compiler {compiler}: install g++, or name another one in CXX")
    kernels, own = [*_KERNEL_FLAGS], [*_FLAGS]
    if "sm_75" not in variants:
        own.append("-D__CUDA_ARCH__=800")
    for variant in variants:
        kernels += VARIANTS[variant][0]
        own += VARIANTS[variant][1]
    ops = ["-DSCRATCHCUDA_EMULATOR=1", f"-DSCRATCHCUDA_NAMESPACE={emulator_namespace(variants)}", *STABLE_FLAGS]
    root, torch = csrc(), torch_folder()
    commands = [[*own, *kernels, str(path)] for path in [*sorted((root / "kernels").glob("*.cu")), *extra]]
    commands += [[*own, str(path)] for path in sorted((root / "emulator").glob("*.cpp"))]
    link = [flag for flag in kernels if flag.startswith("-fsanitize=") and flag != "-fsanitize=alignment"]
    if not extra:
        commands += [[*_FLAGS, *ops, f"-isystem{torch}/include", str(path)] for path in op_sources()]
        link += [f"-L{torch}/lib", "-ltorch_cpu"]

    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    if version.returncode:
        raise RuntimeError(f"the emulator's compiler {compiler} does not run: {version.stderr}")
    digest = hashlib.sha256(repr([version.stdout, platform.machine(), commands]).encode())
    for path in sorted([*root.glob("*/*.[ch]*"), torch / "version.py", *extra]):
        digest.update(path.read_bytes())
    library = cache() / f"emulator-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            objects = [f"{folder}/{i}.o" for i in range(len(commands))]
            jobs = [
                [compiler, *command[:-1], f"-I{root}/emulator", "-c", command[-1], "-o", object_]
                for command, object_ in zip(commands, objects, strict=True)
            ]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_run, jobs))
            _run([compiler, "-shared", *objects, *link, "-o", f"{folder}/emulator.so", "-Wl,-Bsymbolic", "-ldl"])
            os.replace(f"{folder}/emulator.so", library)  # whole, or not at all
    except OSError as error:
        raise RuntimeError(f"the emulator cannot be built in {cache()} ({error}): set SCRATCHCUDA_CACHE") from None
    return library


def sanitizer_environment(variant: str) -> dict[str, str]:
    """What a process that loads this variant, "address" or "thread", has to be started with: runtime first."""
    # libstdc++ has to be there when AddressSanitizer starts, or it does not survive the first exception.
    runtimes = [{"address": "libasan.so", "thread": "libtsan.so"}[variant], "libstdc++.so.6"]
    find = [[os.environ.get("CXX", "g++"), f"-print-file-name={runtime}"] for runtime in runtimes]
    found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in find]
    return {
        "SCRATCHCUDA_EMULATOR": variant,
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
        "OMP_NUM_THREADS": "1",  # torch's pool synchronises in ways that ThreadSanitizer does not see
    }


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the emulator does not compile: {' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":  # for make sanitize
    print(*(f"{name}={value}" for name, value in sanitizer_environment(sys.argv[1]).items()))
