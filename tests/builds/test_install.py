"""Installs as users do, in every circumstance that is known to go wrong (make install-check; one architecture, no GPU).

Environments are fresh, and layered on one that has torch: that which runs this (a CPU build), and CUDA_VENV. All paths
have spaces. pip needs a network.
"""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from environments import Environment
from toolkits import make_toolkit

import scratchcuda

pytestmark = [pytest.mark.backends("tensor"), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CUDA_BASE = os.environ.get("CUDA_VENV")
needs_cuda_torch = pytest.mark.skipif(not CUDA_BASE, reason="CUDA_VENV names no environment with a CUDA torch")

#: What a first CUDA tensor does.
FIRST_USE = "from scratchcuda.ops import _backend; print(_backend.kernels_missing() or 'ready')"
CPU_TORCH = f"torch {torch.__version__} is built without CUDA; pip install --force-reinstall torch\n"
NO_TOOLKIT_CURE = "pip install 'cuda-toolkit[nvcc,cccl,crt,nvvm]==13.0.*'"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkout."""
    folder = tmp_path_factory.mktemp("a checkout") / "scratchcuda"
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split("\n")
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture
def cpu(tmp_path):
    return Environment(tmp_path / "a cpu environment", sys.prefix)


@pytest.fixture
def cuda(tmp_path):
    """Beside a CUDA build of torch, and with the toolkit of this machine."""
    return Environment(tmp_path / "a cuda environment", CUDA_BASE)


@pytest.fixture
def bare(cuda):
    """Beside a CUDA build of torch, and without a toolkit."""
    cuda.hide("/usr/local/cuda")
    return cuda


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Built beside a CUDA torch, with the toolkit of this machine."""
    environment = Environment(tmp_path_factory.mktemp("builds") / "an environment", CUDA_BASE)
    environment.pip(
        "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", environment.folder, source, FORCE_CUDA="1"
    )
    (found,) = environment.folder.glob("*.whl")
    return found


@pytest.mark.parametrize("options", [[], ["--no-build-isolation"]], ids=["isolated", "beside"])
def test_a_cpu_torch(options, cpu, source):
    cause = f"torch {torch.__version__} is built without CUDA" if options else "an isolated build sees no torch"
    assert f"scratchcuda is built without its CUDA kernels: {cause}; pip install" in cpu.install(*options, source)
    assert cpu.run("-c", "import scratchcuda, torch; print(scratchcuda.ops.relu(-torch.ones(1)))") == "tensor([0.])\n"
    found = cpu.doctor()
    assert found["cpu_tensors"]["served_by"] == "torch's tensor operations"
    assert found["cuda_tensors"]["served_by"] == "nothing"
    assert (
        cpu.doctor(status=1, FORCE_CUDA="1")["problems"][0]["cause"]
        == f"torch {torch.__version__} is built without CUDA"
    )
    assert f"FORCE_CUDA is set, but {cause}" in cpu.install(*options, source, status=1, FORCE_CUDA="1")


def test_no_torch(tmp_path, source):
    environment = Environment(tmp_path / "an environment")
    environment.install(source)
    told = environment.run("-c", "import scratchcuda", status=1)
    assert "ImportError: scratchcuda cannot be imported: torch is not installed here; pip install torch" in told


def test_an_old_torch(cpu, source):
    (cpu.site / "torch").mkdir()
    (cpu.site / "torch/__init__.py").touch()
    (cpu.site / "torch/version.py").write_text("__version__ = '2.9.1+cu128'\ncuda = '12.8'\n")
    cause = "torch is 2.9.1+cu128, expected 2.11 or later; pip install 'torch>=2.11'"
    assert f"without its CUDA kernels: {cause}" in cpu.install("--no-build-isolation", source)
    assert f"ImportError: scratchcuda cannot be imported: {cause}" in cpu.run("-c", "import scratchcuda", status=1)


def test_an_old_setuptools(cpu, source):
    """Which a new environment of Python 3.11 has."""
    cpu.pip("install", "-q", "setuptools==76.1.0")
    told = "setuptools is 76.1.0, expected 77 or later; pip install 'setuptools>=77,<82'"
    assert told in cpu.install("--no-build-isolation", source, status=1)


@needs_cuda_torch
def test_first_use(cuda, source, tmp_path):
    """Killed once, then asked for by two processes at once; with a toolkit behind a wrapper on PATH."""
    told = cuda.install(source)
    assert "without its CUDA kernels: an isolated build sees no torch" in told
    assert not list(cuda.site.glob("scratchcuda/_C*"))
    wrapper = tmp_path / "a bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\nexec /usr/local/cuda/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    cuda.variables["PATH"] = f"{wrapper.parent}:/usr/bin:/bin"
    assert cuda.doctor()["kernels"] == "the first CUDA tensor builds them, in about half a minute on two cores"
    assert not (cuda.folder / "a cache").exists()  # neither the doctor builds nor an import

    def start():
        return subprocess.Popen(
            **cuda.command("-c", FIRST_USE), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def compiled():
        """What ninja remembers of objects that are whole."""
        log = cuda.folder / "a cache/kernels/.ninja_log"
        return set(re.findall(r"^.*\.o\t.*$", log.read_text(), re.MULTILINE)) if log.exists() else set()

    killed = start()
    while len(compiled()) < 2:
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    before = compiled()
    told = [process.communicate(timeout=300)[0] for process in (start(), start())]
    assert [text.endswith("ready\n") for text in told] == [True, True], told
    assert "".join(told).count("building the CUDA kernels (sm_90) ...") == 1
    assert before <= compiled()  # none of these was compiled again
    assert cuda.run("-c", FIRST_USE) == "ready\n"  # from the cache
    found = cuda.doctor()
    assert found["toolkits"][0]["fault"] == ""
    assert found["kernels"].endswith(".so fits")
    assert found["builds"][0]["facts"]["architectures"] == ["sm_90"]


@needs_cuda_torch
def test_a_toolkit_from_pypi_alone(bare, source):
    """pip finds the version that suits torch; its folder is not that of the headers, which came with torch."""
    bare.install(source)
    bare.pip("install", "-q", "scratchcuda[cuda]")
    told = bare.run("-c", FIRST_USE)
    assert told.startswith("scratchcuda: building the CUDA kernels (sm_90) ... ")
    assert told.endswith(" s\nready\n")
    (kit,) = bare.doctor()["toolkits"]
    assert Path(kit["nvcc"]) == bare.site / "nvidia/cu13/bin/nvcc"
    assert (kit["source"], kit["fault"]) == ("PyPI", "")


@needs_cuda_torch
def test_no_toolkit(bare, source):
    cure = f"there is no CUDA toolkit; {NO_TOOLKIT_CURE}"
    assert f"without its CUDA kernels: {cure}" in bare.install("--no-build-isolation", source)
    assert bare.run("-c", FIRST_USE) == f"{cure}\n"
    assert {"cause": "there is no CUDA toolkit", "cure": NO_TOOLKIT_CURE} in bare.doctor(status=1, FORCE_CUDA="1")[
        "problems"
    ]
    assert f"FORCE_CUDA is set, but {cure}" in bare.install("--no-build-isolation", source, status=1, FORCE_CUDA="1")


@needs_cuda_torch
def test_no_pybind11(cuda, source):
    """Which pip brings after a build without isolation."""
    (cuda.site / "sitecustomize.py").write_text("import sys\nsys.modules['pybind11'] = None\n")
    cure = "pybind11 is not installed here; pip install pybind11"
    assert f"without its CUDA kernels: {cure}" in cuda.install("--no-build-isolation", source)
    assert cuda.run("-c", FIRST_USE) == f"{cure}\n"
    assert f"FORCE_CUDA is set, but {cure}" in cuda.install("--no-build-isolation", source, status=1, FORCE_CUDA="1")


@needs_cuda_torch
def test_no_cuda_is_asked_for(cuda, source):
    cause = "SCRATCHCUDA_NO_CUDA is set; unset SCRATCHCUDA_NO_CUDA"
    assert f"without its CUDA kernels: {cause}" in cuda.install("--no-build-isolation", source, SCRATCHCUDA_NO_CUDA="1")
    assert cuda.run("-c", FIRST_USE, SCRATCHCUDA_NO_CUDA="1") == f"{cause}\n"


@needs_cuda_torch
def test_a_toolkit_of_another_version(bare, source, tmp_path):
    home = make_toolkit(tmp_path / "a toolkit", version="12.8")
    bare.variables["CUDA_HOME"] = str(home)
    cause = f"no CUDA toolkit can be used: {home}/bin/nvcc (CUDA_HOME): it is of CUDA 12.8, torch is built for 13.0"
    assert f"{cause}; {NO_TOOLKIT_CURE}" in bare.install("--no-build-isolation", source)
    assert bare.run("-c", FIRST_USE) == f"{cause}; {NO_TOOLKIT_CURE}\n"


@needs_cuda_torch
def test_a_cache_that_cannot_be_written(cuda, source):
    cuda.install(source)
    told = cuda.run("-c", FIRST_USE, SCRATCHCUDA_CACHE="/proc/cache")
    assert told.startswith("what is built cannot be kept in /proc/cache (")
    assert told.endswith("); set SCRATCHCUDA_CACHE to a folder that can be written\n")


@needs_cuda_torch
def test_a_wheel(wheel, bare, cpu):
    """Its name, what it holds, and that it serves without a toolkit; beside a torch without CUDA it is set aside."""
    assert f"+cu13-cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"scratchcuda/csrc/kernels/dense.cu", "scratchcuda/_build/extension.py"} <= set(names)
    assert len([name for name in names if name.startswith("scratchcuda/_C.")]) == 2  # the library and its facts
    bare.install(wheel)
    assert bare.run("-c", FIRST_USE) == "ready\n"
    assert bare.doctor()["kernels"].endswith(" fits")
    cpu.install(wheel)
    (build,) = cpu.doctor()["builds"]
    assert build["fault"] == "it was built for CUDA 13.0, torch has none"
    assert cpu.run("-c", "import scratchcuda, torch; print(scratchcuda.ops.relu(-torch.ones(1)))") == "tensor([0.])\n"
    assert cpu.run("-c", FIRST_USE).endswith("is set aside: it was built for CUDA 13.0, torch has none; " + CPU_TORCH)


@needs_cuda_torch
def test_an_editable_install(source, cuda):
    """After an edit the build is set aside, and another one compiled."""
    cuda.install("--no-build-isolation", "-e", source, FORCE_CUDA="1")
    assert cuda.run("-c", FIRST_USE) == "ready\n"
    assert Path(cuda.doctor()["scratchcuda"]["folder"]) == source / "scratchcuda"
    kernel = source / "csrc/kernels/batch.cu"
    before = kernel.read_text()
    try:
        kernel.write_text(before + "// edited\n")
        told = cuda.run("-c", FIRST_USE)
        assert ".so is set aside: it was built from other sources than those in" in told
        assert told.endswith(" s\nready\n")
    finally:
        kernel.write_text(before)


@needs_cuda_torch
def test_what_was_removed_is_in_no_later_wheel(source, bare):
    left = source / "csrc/kernels/left.cuh"

    def packed():
        bare.pip("wheel", "--no-build-isolation", "--no-deps", "-w", bare.folder, source)
        (made,) = bare.folder.glob("*-py3-none-any.whl")
        return "scratchcuda/csrc/kernels/left.cuh" in zipfile.ZipFile(made).namelist()

    try:
        left.touch()
        assert packed()
    finally:
        left.unlink()
    assert not packed()


@needs_cuda_torch
def test_a_source_distribution_beside_a_cuda_torch_is_of_no_version_of_cuda(source, cuda, tmp_path):
    cuda.run("setup.py", "-q", "sdist", "-d", tmp_path, cwd=source)
    assert [path.name for path in tmp_path.glob("*.tar.gz")] == [f"scratchcuda-{scratchcuda.__version__}.tar.gz"]


def test_a_source_distribution(source, cpu, tmp_path):
    """It holds all that a wheel is built from, and the tests."""
    subprocess.run([sys.executable, "-m", "build", "--sdist", "-o", tmp_path, source], check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "setup.py",
        "Makefile",
        "csrc/kernels/dense.cu",
        "csrc/ops/op.h",
        "scratchcuda/_build/extension.py",
    } <= names
    assert {"tests/builds/test_install.py", "LICENSE", "constraints.txt"} <= names
    cpu.install(archive)
    assert len(list(cpu.site.glob("scratchcuda/csrc/kernels/*.cu"))) == len(list(ROOT.glob("csrc/kernels/*.cu")))
