"""The CUDA extension ``_C``: its sources, flags and architectures; and whether one that was built fits."""

import json
import platform
import re
import sys
import sysconfig
from pathlib import Path

from . import toolchain
from .library import PACKAGE, BuildError, Library, asked, csrc, digest, facts_of, headers, kernel_sources, op_sources

_OP_FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-DUSE_CUDA"]
_NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def recipe() -> Library:
    """How to build it here. Raises BuildError if it cannot be built."""
    if asked("SCRATCHCUDA_NO_CUDA"):
        raise BuildError("SCRATCHCUDA_NO_CUDA is set", "unset SCRATCHCUDA_NO_CUDA")
    torch = toolchain.torch()
    if torch.cuda is None:
        raise BuildError(f"torch {torch.version} is built without CUDA", "pip install --force-reinstall torch")
    cxx = toolchain.host_compiler()
    kit = toolchain.toolkit(torch.cuda)
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        cause = f"there is no {python / 'Python.h'}"
        raise BuildError(cause, f"sudo apt install python3.{sys.version_info.minor}-dev")
    pybind11, pybind11_version = toolchain.pybind11()
    toolchain.ninja()  # that it is missing is said before anything is done
    facts = {
        "version": re.search(r'__version__ = "(.*)"', (PACKAGE / "__init__.py").read_text())[1],  # type: ignore[index]
        "torch": torch.version,
        "cuda": kit.version,
        "nvcc": kit.release,
        "architectures": toolchain.codes(kit.nvcc, cards()),
        "compiler": cxx.version,
        "python": platform.python_version(),
        "sources": sources_digest(),
    }
    # Two words, as nvcc wants it; and the system's own folder has its place among those of the compiler.
    cuda = [word for path in kit.includes if path != Path("/usr/include") for word in ("-isystem", str(path))]
    generate = [f"-gencode=arch=compute_{code.split('_')[1]},code={code}" for code in facts["architectures"]]
    kernels = [str(kit.nvcc), *cxx.for_nvcc(), *_NVCC_FLAGS, *generate, *cuda]
    ops = [*cxx.words, *_OP_FLAGS, *cuda]
    told = f'-DBUILD_FACTS=R"facts({json.dumps(facts)})facts"'
    calls = [[*kernels, str(path)] for path in kernel_sources()]
    stable = [*toolchain.STABLE_FLAGS, f"-isystem{torch.folder / 'include'}"]
    calls += [[*ops, *stable, str(path)] for path in op_sources()]
    calls += [[*ops, told, f"-isystem{pybind11}", f"-isystem{python}", str(csrc() / "ops/module.cpp")]]
    libraries = [f"-L{torch.folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", str(_runtime(kit))]
    versions = [facts["torch"], facts["nvcc"], facts["compiler"], facts["python"], pybind11_version]
    identity = repr([*versions, platform.machine()])
    title = f"the CUDA kernels ({', '.join(facts['architectures'])})"
    return Library("kernels", title, identity, calls, [*cxx.words, "-shared"], libraries, facts)


def cards() -> list[tuple[int, int]]:
    """The compute capabilities of the cards that are visible, as far as the kernels can run on them."""
    try:
        import torch

        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        raise BuildError(f"torch does not tell which cards there are ({error})", "nvidia-smi") from None
    return sorted(card for card in found if card >= toolchain.ARCHITECTURES[0])


def sources_digest() -> str:
    """Of all that goes into the extension."""
    paths = [*headers(), *kernel_sources(), *sorted((csrc() / "ops").glob("*.cpp"))]
    return digest(*(path.read_bytes() for path in paths))


def _runtime(kit: toolchain.Toolkit) -> Path:
    """CUDA's runtime, which is torch's own if that is PyPI's: it has no libcudart.so without a version."""
    name, top = f"libcudart.so.{kit.version.split('.')[0]}", kit.nvcc.parents[1]
    folders = [folder / "lib" for folder in toolchain.pypi_folders()]
    folders += [top / "lib64", top / "lib", *top.glob("targets/*/lib")]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise BuildError(f"there is no {name}", f"pip install 'cuda-toolkit[cudart]=={kit.version}.*'")


def installed() -> Path:
    """Where setup.py puts the extension, whether it is there or not."""
    return PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def misfit(library: Path) -> str:
    """Why this build of the extension cannot be used with the torch, the sources and the cards here, if so.

    It is not loaded for that: one that is loaded cannot be replaced.
    """
    if not library.exists():
        return "it was not built"
    if (facts := facts_of(library)) is None:
        return f"it is cut off, or {library.with_suffix('.json').name} beside it is missing or damaged"
    cuda = toolchain.torch().cuda or "none"
    if facts["cuda"].split(".")[0] != cuda.split(".")[0]:
        return f"it was built for CUDA {facts['cuda']}, torch has {cuda}"
    if facts["sources"] != sources_digest():
        return f"it was built from other sources than those in {csrc()}"
    return no_code(facts["architectures"])


def no_code(architectures: list[str]) -> str:
    """Which card none of these architectures runs on, if there is one."""
    for card in cards():
        if not any(runs(architecture, card) for architecture in architectures):
            return f"it was built for {', '.join(architectures)}, not for compute capability {card[0]}.{card[1]}"
    return ""


def runs(architecture: str, card: tuple[int, int]) -> bool:
    """Binaries (sm_) run on later minor versions too, PTX (compute_) on all later ones; what ends in f as binaries do,
    what ends in a nowhere else."""
    kind, number = architecture.split("_")
    built, here = int(number.rstrip("af")), 10 * card[0] + card[1]
    anywhere_later = kind == "compute" and number.isdecimal()
    return built == here or (built < here and number[-1] != "a" and (anywhere_later or built // 10 == card[0]))
