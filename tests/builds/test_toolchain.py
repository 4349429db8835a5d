"""What is found to build with, and what is said where something is missing."""

import re
import sys
from pathlib import Path

import pytest
from toolkits import make_toolkit

from scratchcuda import _build
from scratchcuda._build import extension, toolchain
from scratchcuda._build.library import BuildError

pytestmark = pytest.mark.backends("tensor")


def test_toolkits_are_found_in_order_and_behind_wrappers(bare, monkeypatch):
    home, on_path, usual = (make_toolkit(bare / name) for name in ("home", "elsewhere", "usual"))
    pypi = bare / "site/nvidia/cu13"
    make_toolkit(pypi, without=["include/cuda_runtime_api.h"])  # which came with torch, into another folder
    runtime = bare / "other site/nvidia/cu13"
    make_toolkit(runtime, without=["bin/nvcc"])
    (bare / "bin").mkdir()
    (bare / "bin/nvcc").write_text(f'#!/bin/sh\nexec {on_path}/bin/nvcc "$@"\n')
    (bare / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("PATH", f"{bare / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "pypi_folders", lambda: [pypi, runtime])
    found = toolchain.toolkits("13.2")  # another minor version is none
    assert [kit.nvcc for kit in found] == [top / "bin/nvcc" for top in (home, pypi, on_path, usual)]
    assert [kit.source for kit in found] == ["CUDA_HOME", "PyPI", "PATH", str(bare / "usual")]
    assert [kit.fault for kit in found] == [""] * 4
    assert found[1].includes == (pypi / "include", runtime / "include")
    monkeypatch.setenv("CUDA_HOME", str(on_path))
    assert len(toolchain.toolkits()) == 3  # the same one is not told twice


def test_pypi_folders_are_all_on_the_path(tmp_path, monkeypatch):
    places = [tmp_path / site / "nvidia/cu13" for site in ("a", "b")]
    for place in places:
        place.mkdir(parents=True)
        monkeypatch.syspath_prepend(place.parents[1])
    assert set(places) <= set(toolchain.pypi_folders())


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ({"without": ["bin/nvcc"]}, "there is no nvcc"),
        ({"version": "13"}, "nvcc does not run"),
        ({"without": ["include/cuda_runtime_api.h"]}, "holds no include/cuda_runtime_api.h"),
        ({"of_headers": "13.2"}, r"its nvcc is of CUDA 13.0, its headers in .*/include of 13.2"),
        ({"without": ["nvvm/bin/cicc"]}, "holds no .*/nvvm/bin/cicc"),
        ({"without": ["include/crt/host_config.h"]}, "holds no .*/include/crt/host_config.h"),
        ({"version": "12.8"}, "it is of CUDA 12.8, torch is built for 13.0"),
    ],
)
def test_a_toolkit_that_does_not_do_is_passed_by_and_named(made, fault, cuda_torch, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(cuda_torch / "home", **made)))
    assert toolchain.toolkit("13.0").nvcc == cuda_torch / "usual/bin/nvcc"
    monkeypatch.setattr(toolchain, "USUAL", cuda_torch / "nowhere")
    cure = r"; pip install 'cuda-toolkit\[nvcc,cccl,crt,nvvm\]==13.0.\*'"
    with pytest.raises(BuildError, match=rf"no CUDA toolkit can be used: .*/nvcc \(CUDA_HOME\): .*{fault}{cure}"):
        extension.recipe()


@pytest.mark.parametrize(
    ("asked", "cards", "expected"),
    [
        ("", [], "sm_75 sm_80 sm_86 sm_90 sm_100 compute_100"),  # 8.9 and 12.0 are unknown to this nvcc
        ("", [(9, 0)], "sm_90"),
        ("", [(9, 0), (8, 6), (9, 0)], "sm_86 sm_90"),
        ("", [(12, 0)], "sm_100 compute_100"),
        ("8.0;9.0+PTX", [(7, 5)], "sm_80 sm_90 compute_90"),
        ("8.0 9.0a", [], "sm_80 sm_90a"),
        ("Hopper", [], "sm_90 compute_90"),
        ("Turing;Hopper+PTX", [], "sm_75 sm_90 compute_75 compute_90"),
        ("7.0", [], "TORCH_CUDA_ARCH_LIST has '7.0', expected some of 7.5, 8.0, 8.6, 9.0, 10.0, each with"),
        ("sm_90", [], "TORCH_CUDA_ARCH_LIST has 'sm_90', expected some of 7.5, "),
    ],
)
def test_architectures(asked, cards, expected, bare, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    nvcc = make_toolkit(bare / "home") / "bin/nvcc"
    if expected.startswith("sm_"):
        assert toolchain.codes(nvcc, cards) == expected.split()
    else:
        with pytest.raises(BuildError, match=re.escape(expected)):
            toolchain.codes(nvcc, cards)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CXX", "no-such-compiler", "the host compiler no-such-compiler does not run; unset CXX"),
        ("CXX", "false", "the host compiler false does not run; unset CXX"),
        ("CXX", "-m64", "the host compiler -m64 does not run; unset CXX"),
        ("CXX", "g++ '", r"CXX is \"g\+\+ '\" \(No closing quotation\); unset CXX"),
        ("PATH", "", r"the host compiler g\+\+ does not run; sudo apt install g\+\+"),
    ],
)
def test_a_missing_compiler_is_named(name, value, message, bare, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=message):
        _build.emulator.build()


@pytest.mark.parametrize(
    ("version", "cuda", "message"),
    [
        ("2.13.0+cpu", None, r"torch 2.13.0\+cpu is built without CUDA; pip install --force-reinstall torch"),
        ("2.9.1", "12.8", "torch is 2.9.1, expected 2.11 or later; pip install 'torch>=2.11'"),
        (
            "2.11.0",
            "12.8",
            "no CUDA toolkit can be used: .* torch is built for 12.8; conda install -c nvidia cuda-toolkit",
        ),
        (None, None, "torch is not installed here; pip install torch$"),
    ],
)
def test_a_torch_that_does_not_do_is_named(version, cuda, message, bare, monkeypatch):
    make_toolkit(bare / "usual")
    (bare / "torch").mkdir()
    if version:
        (bare / "torch/__init__.py").touch()
    (bare / "torch/version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    find = lambda name: toolchain.importlib.machinery.PathFinder.find_spec(name, [str(bare)])  # noqa: E731
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", find)
    with pytest.raises(BuildError, match=message):
        extension.recipe()


def test_ninja_is_that_of_pypi_in_this_environment_or_beneath_it(bare, monkeypatch):
    site, programs = bare / "lib/site-packages", [bare / "bin/ninja", bare / "on path/ninja"]
    for folder in (site / "ninja-1.dist-info", *(program.parent for program in programs)):
        folder.mkdir(parents=True)
    (site / "ninja-1.dist-info/METADATA").write_text("Name: ninja")
    (site / "ninja-1.dist-info/RECORD").write_text("../../bin/ninja,,")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PATH", str(programs[1].parent), prepend=":")
    for program in reversed(programs):  # where that of PyPI is not whole, that on PATH
        program.write_text("#!/bin/sh\necho 1\n")
        program.chmod(0o755)
        assert Path(toolchain.ninja()).resolve() == program


@pytest.mark.parametrize("name", ["ninja", "pybind11"])
def test_what_pip_brings_is_named_where_it_is_missing(name, cuda_torch, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # find_spec finds none
    if name == "ninja":
        monkeypatch.setattr(toolchain.importlib.metadata, "files", lambda name: None)
        monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=f"{name} is not installed here; pip install {name}"):
        extension.recipe()
