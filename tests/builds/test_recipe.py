"""What the extension is built from, and how."""

import itertools
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from toolkits import make_toolkit

import scratchcuda
from scratchcuda import doctor
from scratchcuda._build import extension, toolchain
from scratchcuda._build.library import BuildError

pytestmark = pytest.mark.backends("tensor")

ROOT = Path(__file__).parents[2]


def test_the_cards_are_those_that_the_kernels_can_run_on(monkeypatch):
    capabilities = [(9, 0), (6, 1), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert extension.cards() == [(8, 6), (9, 0)]


def test_cards_that_cannot_be_asked(monkeypatch):
    def busy(device):
        raise RuntimeError("all devices are busy")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", busy)
    with pytest.raises(
        BuildError, match=r"torch does not tell which cards there are \(all devices are busy\); nvidia-smi"
    ):
        extension.cards()


def test_the_recipe(cuda_torch, monkeypatch):
    """For the visible cards, with the facts that decide about it."""
    monkeypatch.setattr(extension, "cards", lambda: [(8, 6), (9, 0)])
    recipe = extension.recipe()
    facts = {
        "version": scratchcuda.__version__,
        "torch": "2.11.0+cu130",
        "cuda": "13.0",
        "architectures": ["sm_86", "sm_90"],
    }
    assert recipe.facts.items() >= (facts | {"sources": extension.sources_digest()}).items()
    generated = [word for word in recipe.calls[0] if word.startswith("-gencode")]
    assert generated == ["-gencode=arch=compute_86,code=sm_86", "-gencode=arch=compute_90,code=sm_90"]
    assert recipe.libraries[-1] == str(cuda_torch / "usual/lib64/libcudart.so.13")
    monkeypatch.setattr(toolchain, "pypi_folders", lambda: [make_toolkit(cuda_torch / "pypi", library="lib")])
    assert extension.recipe().libraries[-1] == str(cuda_torch / "pypi/lib/libcudart.so.13")
    made, identities = {recipe.made_of()}, {recipe.identity}
    for place, name, changed in (
        (toolchain, "torch", lambda: toolchain.Torch(cuda_torch / "torch", "2.12.0", "13.0")),
        (toolchain, "host_compiler", lambda: toolchain.Compiler(["g++"], "g++", [], "another")),
        (toolchain, "pybind11", lambda: (cuda_torch, "another")),
        (extension.platform, "python_version", lambda: "3.99"),
        (extension, "cards", lambda: [(9, 0)]),
        (toolchain, "pypi_folders", lambda: [make_toolkit(cuda_torch / "pypi", nvcc="13.0.99", library="lib")]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, changed)
            made.add(extension.recipe().made_of())
            identities.add(extension.recipe().identity)
    assert len(made) == 7
    assert len(identities) == 6  # the cards are in the calls


def test_a_compiler_of_several_words(cuda_torch, monkeypatch):
    ccache = cuda_torch / "cc ache"
    ccache.write_text('#!/bin/sh\n[ "$1" = --version ] && echo ccache 9 || exec "$@"\n')
    ccache.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{ccache}' g++ -m64 -include time")  # time is a program, but not the compiler
    recipe = extension.recipe()
    assert recipe.facts["compiler"] == toolchain.text("g++", "--version").splitlines()[0]
    assert recipe.link[:3] == [str(ccache), "g++", "-m64"]
    assert recipe.calls[0][1:5] == ["-ccbin", "g++", "-Xcompiler", "-m64"]


def test_what_else_is_missing_is_named(cuda_torch, monkeypatch):
    monkeypatch.setattr(extension.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(BuildError, match=rf"no /nowhere/Python.h; sudo apt install python3.{sys.version_info[1]}-dev"):
        extension.recipe()


def test_where_things_lie_does_not_matter(cuda_torch, monkeypatch):
    """One cache serves many environments; only the system's own headers keep their place among the compiler's."""
    first = extension.recipe()
    monkeypatch.setattr(toolchain, "USUAL", make_toolkit(cuda_torch / "elsewhere"))
    monkeypatch.setattr(toolchain, "torch", lambda: toolchain.Torch(cuda_torch / "moved/torch", "2.11.0+cu130", "13.0"))
    second = extension.recipe()
    assert first.calls != second.calls
    assert first.made_of() == second.made_of()
    system = toolchain.toolkit()._replace(includes=(Path("/usr/include"), cuda_torch))
    monkeypatch.setattr(toolchain, "toolkit", lambda cuda: system)
    call = extension.recipe().calls[0]
    assert [word for before, word in itertools.pairwise(call) if before == "-isystem"] == [str(cuda_torch)]


def test_the_runtime_is_named(cuda_torch):
    (cuda_torch / "usual/lib64/libcudart.so.13").unlink()
    with pytest.raises(BuildError, match=r"there is no libcudart.so.13; pip install 'cuda-toolkit\[cudart\]==13.0"):
        extension.recipe()


def test_no_cuda_means_none(cuda_torch, monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_NO_CUDA", "1")
    with pytest.raises(BuildError, match="SCRATCHCUDA_NO_CUDA is set; unset SCRATCHCUDA_NO_CUDA"):
        extension.recipe()


def test_what_is_told_in_several_places_agrees():
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert described["dependencies"] == ["ninja", "pybind11", "torch>={}.{}".format(*toolchain.TORCH_FLOOR)]
    assert described["optional-dependencies"]["cuda"][0].split(";")[0] in toolchain.toolkit_cure("13.0")
    told = (ROOT / "docs/install.md").read_text()
    assert [name for name in doctor.SETTINGS if f"`{name}" not in told] == []
    assert toolchain.STABLE_FLAGS == ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
