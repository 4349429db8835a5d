"""``scratchcuda doctor``: what it says of each circumstance."""

import json
import subprocess
import sys

import pytest
import torch

from scratchcuda import doctor
from scratchcuda._build import extension, toolchain
from scratchcuda._build.library import BuildError, Library
from scratchcuda.ops import _backend

pytestmark = pytest.mark.backends("tensor")

TENSOR, KERNELS = "torch's tensor operations", "the kernels"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One on which all is well: a function that changes that."""
    library = tmp_path / "built/kernels-0.so"
    recipe = Library("kernels", "the kernels", "", [], [], [], {"architectures": ["sm_90"]})
    monkeypatch.setattr(Library, "cached", lambda self: library)
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(library.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(extension, "installed", lambda: tmp_path / "_C.so")
    monkeypatch.setattr(_backend, "load", lambda path: "")

    def change(
        backend="auto", cuda="13.0", driver="13.0", cards=((9, 0),), lacks=None, built="", hidden=False, pci=True
    ):
        def make():
            if lacks:
                raise BuildError(lacks, "type this")
            return recipe

        if built:
            library.parent.mkdir()
            library.write_text("")
            facts = {
                "bytes": 0,
                "cuda": built,
                "torch": "2.11.0",
                "architectures": ["sm_90"],
                "sources": extension.sources_digest(),
            }
            library.with_suffix(".json").write_text(json.dumps(facts))
        if hidden:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(_backend, "current", backend)
        monkeypatch.setattr(extension, "recipe", make)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(toolchain, "torch", lambda: toolchain.Torch(tmp_path, "2.11.0", cuda))
        monkeypatch.setattr(doctor, "driver", lambda: driver and {"version": "580.95", "cuda": driver})
        monkeypatch.setattr(doctor, "pci_cards", lambda: ["0000:01:00.0"] * pci)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: cards[getattr(i, "index", i)])
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a card")

    return change


@pytest.mark.parametrize(
    ("changes", "served_by", "why", "cure"),
    [
        ({}, KERNELS, "the first CUDA tensor builds them", None),
        ({"built": "13.0"}, KERNELS, ".so fits", None),
        ({"lacks": "there is no nvcc"}, TENSOR, "there is no nvcc", "type this"),
        ({"lacks": "there is no nvcc", "backend": "kernels"}, "nothing", "there is no nvcc", "type this"),
        ({"backend": "tensor"}, TENSOR, "the backend in use is 'tensor'", None),
        ({"backend": "emulator"}, "nothing", "the backend in use is 'emulator'", None),
        ({"cuda": None, "driver": None}, "nothing", "is built without CUDA", None),
        (
            {"cuda": None, "backend": "kernels"},
            "nothing",
            "is built without CUDA",
            "pip install --force-reinstall torch",
        ),
        ({"driver": None}, "nothing", "there is an NVIDIA card, but no driver", "sudo apt install nvidia-driver"),
        ({"driver": None, "pci": False}, "nothing", "there is no NVIDIA card, and no driver", None),
        ({"driver": None, "pci": False, "lacks": "there is no nvcc"}, "nothing", "there is no NVIDIA card", None),
        (
            {"driver": None, "pci": False, "backend": "kernels"},
            "nothing",
            "there is no NVIDIA card",
            "unset FORCE_CUDA SCRATCHCUDA_BACKEND",
        ),
        (
            {"driver": "12.8"},
            "nothing",
            "the driver supports CUDA 12.8, torch is built for 13.0",
            "sudo apt install --only",
        ),
        ({"cards": ()}, "nothing", "no GPU is visible", "nvidia-smi"),
        ({"cards": (), "hidden": True}, "nothing", "no GPU is visible", "unset CUDA_VISIBLE_DEVICES"),
        (
            {"cards": ((8, 6),)},
            TENSOR,
            "it was built for sm_90, not for compute capability 8.6",
            "unset TORCH_CUDA_ARCH",
        ),
        ({"cards": ((6, 1),)}, TENSOR, "the kernels do not run on a card", "SCRATCHCUDA_BACKEND=tensor"),
    ],
)
def test_what_serves_cuda_tensors_and_what_to_type(changes, served_by, why, cure, machine, capsys):
    machine(**changes)
    asked = changes.get("backend") == "kernels"
    assert doctor.run("-") == int(asked and served_by != KERNELS)
    found = json.loads(capsys.readouterr().out)
    assert found["cuda_tensors"]["served_by"] == served_by
    assert why in found["cuda_tensors"]["why"]
    assert found["cpu_tensors"]["served_by"] == ("the emulator" if changes.get("backend") == "emulator" else TENSOR)
    assert [problem["cure"].startswith(cure) for problem in found["problems"]] == [True] * bool(cure)
    assert doctor.run() == int(asked and served_by != KERNELS)
    shown = capsys.readouterr().out
    assert all(text in shown for problem in found["problems"] for text in problem.values())
    assert f"CUDA tensors  served by {served_by}: {found['cuda_tensors']['why']}" in shown


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("SCRATCHCUDA_CACHE", __file__, f"{__file__} cannot be written ("),
        ("SCRATCHCUDA_CACHE", "/proc/cache", "/proc/cache cannot be written ("),
        ("MAX_JOBS", "0", "MAX_JOBS is '0', expected a positive integer"),
    ],
)
def test_settings_that_cannot_do_are_problems(name, value, cause, machine, monkeypatch):
    machine()
    monkeypatch.setenv(name, value)
    (problem,) = doctor.examine()["problems"]
    assert problem["cause"].startswith(cause)


def test_builds_are_told_with_their_fault(machine, capsys, monkeypatch):
    machine(built="12.8")
    doctor.run()
    told = "kernels-0.so (sm_90, CUDA 12.8, torch 2.11.0); not used: it was built for CUDA 12.8, torch has 13.0"
    plain = capsys.readouterr().out
    assert told in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    doctor.run()
    wrapped = capsys.readouterr().out
    assert wrapped.split() == plain.split()
    assert all(len(line) <= 40 or len(line.split()) == 1 for line in wrapped.splitlines())  # but for long paths


def test_a_masked_sys_has_no_cards(monkeypatch):
    monkeypatch.setattr(doctor.Path, "glob", lambda self, pattern: [self / "0000:01:00.0"])
    assert doctor.pci_cards() == []


def test_it_needs_no_extra_and_builds_nothing(tmp_path):
    code = "import sys; sys.modules |= {'typer': None, 'matplotlib': None}; sys.argv[1:] = ['doctor', '--json=-']\n"
    code += "from scratchcuda import __main__; __main__.main()"
    cache = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"SCRATCHCUDA_CACHE": cache}
    )
    assert json.loads(done.stdout)["torch"]["version"] == torch.__version__
    assert json.loads(done.stdout)["settings"] == {"SCRATCHCUDA_CACHE": cache}
    assert not (tmp_path / "cache").exists()
