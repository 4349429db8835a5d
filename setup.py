"""The package is described in pyproject.toml; here the CUDA extension is added, where it can be built.

It is built beside a CUDA build of torch, so without build isolation: ``pip install --no-build-isolation .``, for the
architectures of ``TORCH_CUDA_ARCH_LIST``. Where there is none, the package installs without it; ``FORCE_CUDA=1`` makes
that an error.
"""

import json
import os
import platform
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import setuptools

# With --no-build-isolation nobody checks build-system.requires, and an older setuptools fails beyond recognition.
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"setuptools is {setuptools.__version__}, expected 77 or later: pip install --upgrade setuptools")

ROOT = Path(__file__).resolve().parent
description = SimpleNamespace(**runpy.run_path(str(ROOT / "scratchcuda" / "_build.py")))


def missing() -> str:
    """Why the extension cannot be built; empty if it can."""
    try:
        import torch
    except ImportError:
        return "torch cannot be imported here: pip install torch, then pip install --no-build-isolation ."
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if description.toolkit() is None:
        return "there is no CUDA toolkit: set CUDA_HOME to one that holds bin/nvcc and include/cuda_runtime.h"
    return ""


def extension() -> dict:
    """setup's arguments for it."""
    home = description.toolkit()
    os.environ["CUDA_HOME"] = str(home)  # torch, when imported, would take the first nvcc on PATH
    os.environ["TORCH_CUDA_ARCH_LIST"] = description.architectures(home / "bin/nvcc")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, _get_cuda_arch_flags

    def version(*command: str, pattern: str) -> str:
        return re.search(pattern, subprocess.run(command, capture_output=True, text=True, check=True).stdout).group()

    class Build(BuildExtension):
        """Writes the facts of the build into the binary, and beside it for when it cannot be loaded."""

        def run(self) -> None:
            facts = {
                "version": self.distribution.get_version(),
                "torch": torch.__version__,
                "cuda": version(str(home / "bin/nvcc"), "--version", pattern=r"(?<=release )[\d.]+"),
                "architectures": re.findall(r",code=(\w+)", " ".join(_get_cuda_arch_flags())),
                "compiler": version(*shlex.split(os.environ.get("CXX", "c++")), "--version", pattern=r".*"),
                "python": platform.python_version(),
            }
            text = json.dumps(facts, indent=2)
            header = Path(self.build_temp, "build_facts.h")
            header.parent.mkdir(parents=True, exist_ok=True)
            header.write_text(f'constexpr const char* build_facts = R"facts({text})facts";\n')
            self.extensions[0].include_dirs.append(str(header.parent.resolve()))
            begin = time.monotonic()
            super().run()
            seconds = time.monotonic() - begin
            Path(self.get_ext_fullpath("scratchcuda._C")).with_name("_C.json").write_text(text)
            print(f"scratchcuda._C: built for {', '.join(facts['architectures'])} in {seconds:.0f} s", file=sys.stderr)

    folder = Path(torch.__file__).parent
    major = torch.version.cuda.partition(".")[0]
    runtime = next(folder.parent.glob(f"nvidia/*/lib/libcudart.so.{major}"), home / "lib64/libcudart.so")
    sources = [*description.op_sources(), ROOT / "csrc/ops/module.cpp", *sorted((ROOT / "csrc/kernels").glob("*.cu"))]
    binary = setuptools.Extension(
        "scratchcuda._C",
        [str(source.relative_to(ROOT)) for source in sources],
        depends=[str(header.relative_to(ROOT)) for header in ROOT.glob("csrc/*/*.*h")],
        # pybind11 first: torch's own copy refuses to be used beside its stable interface.
        include_dirs=[pybind11.get_include(), str(folder / "include"), str(home / "include")],
        library_dirs=[str(folder / "lib")],
        libraries=["torch", "torch_cpu", "torch_cuda"],
        extra_compile_args=description.CUDA_FLAGS,
        extra_link_args=[str(runtime)],
    )
    return {"ext_modules": [binary], "cmdclass": {"build_ext": Build}}


reason = missing()
if reason and os.environ.get("FORCE_CUDA") == "1":
    sys.exit(f"FORCE_CUDA is set, but {reason}")
if reason:
    print(f"scratchcuda is built without its CUDA kernels: {reason}", file=sys.stderr)
setuptools.setup(**({} if reason else extension()))
