"""Which build serves the first CUDA tensor, and what is said where none does."""

import json
import re
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import scratchcuda
from scratchcuda._build import extension
from scratchcuda._build.library import Library
from scratchcuda.ops import _backend

pytestmark = pytest.mark.backends("tensor")


@pytest.mark.parametrize(
    ("variables", "backend"),
    [
        ({}, "auto"),
        ({"FORCE_CUDA": "1"}, "kernels"),
        ({"SCRATCHCUDA_NO_CUDA": "1"}, "tensor"),
        ({"FORCE_CUDA": "1", "SCRATCHCUDA_BACKEND": "emulator"}, "emulator"),
    ],
)
def test_the_backend_to_begin_with(variables, backend, bare, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runpy.run_path(_backend.__file__)["current"] == backend  # once more, as if it were imported first


FACTS = {
    "bytes": 0,
    "cuda": "13.0",
    "architectures": ["sm_80", "sm_90"],
    "torch": "2.11.0",
    "sources": extension.sources_digest(),
}


@pytest.mark.parametrize(
    ("facts", "cards", "fault"),
    [
        ({}, [(8, 6), (9, 0)], ""),
        ({"cuda": "13.4", "torch": "2.99.0"}, [], ""),  # the stable interface serves all torch with this CUDA
        ({"cuda": "12.8"}, [], "it was built for CUDA 12.8, torch has 13.0"),
        ({"sources": "others"}, [], "it was built from other sources than those in "),
        ({}, [(9, 0), (12, 0)], "it was built for sm_80, sm_90, not for compute capability 12.0"),
        ({"bytes": 1}, [], "it is cut off, or _C.json beside it is missing or damaged"),
        (None, [], "it is cut off, or _C.json beside it is missing or damaged"),
    ],
)
def test_a_build_that_does_not_fit_is_known_without_loading_it(facts, cards, fault, cuda_torch, monkeypatch):
    monkeypatch.setattr(extension, "cards", lambda: cards)
    binary = cuda_torch / "_C.so"
    assert extension.misfit(binary) == "it was not built"
    binary.touch()
    if facts is not None:
        binary.with_suffix(".json").write_text(json.dumps(FACTS | facts))
    found = extension.misfit(binary)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


@pytest.mark.parametrize(
    ("architecture", "card", "does"),
    [
        ("sm_90", (9, 0), True),
        ("sm_90", (8, 9), False),
        ("sm_80", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_90", (12, 0), False),
        ("compute_80", (12, 0), True),
        ("compute_120", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("compute_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("compute_100f", (12, 0), False),
    ],
)
def test_where_code_runs(architecture, card, does):
    assert extension.runs(architecture, card) == does


@pytest.fixture
def first_use(cuda_torch, monkeypatch):
    """What a first CUDA tensor does, with builds that are written by the test, in their place and in the cache."""
    binary = cuda_torch / "_C.so"
    monkeypatch.setattr(extension, "installed", lambda: binary)
    monkeypatch.delitem(sys.modules, "scratchcuda._C", raising=False)

    def make(self, folder, built):
        built.parent.mkdir()
        built.write_text("")
        print(self.title)

    monkeypatch.setattr(Library, "make", make)
    _backend._missing.cache_clear()
    yield binary
    _backend._missing.cache_clear()


def test_builds_that_do_not_load_are_a_reason(first_use):
    """That which was installed, then that of the first use."""
    first_use.touch()
    first_use.with_suffix(".json").write_text(json.dumps(FACTS))
    fault = r"does not load beside torch .* \(.*\)"
    told = rf"/.*/_C.so is set aside: _C.so {fault}; kernels-\w+.so {fault}; set SCRATCHCUDA_CACHE to another folder"
    assert re.match(told, _backend.kernels_missing())


def test_threads_that_ask_at_once_load_one(first_use, monkeypatch):
    asked = []
    monkeypatch.setattr(extension, "misfit", lambda library: asked.append(library) or time.sleep(0.1) or "no")
    monkeypatch.setattr(_backend, "load", lambda path: "")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: _backend.kernels_missing(), range(4))) == [""] * 4
    assert len(asked) == 1


def test_what_is_loaded_is_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "scratchcuda._C", SimpleNamespace(__file__="/one/_C.so"))
    assert _backend.load(Path("/one/_C.so")) == ""
    assert _backend.load(Path("/another/_C.so")) == "/one/_C.so is loaded already"


def test_an_unfit_build_is_set_aside(first_use, capsys, monkeypatch):
    loaded = []
    monkeypatch.setattr(_backend, "load", lambda path: loaded.append(path) or "")
    first_use.touch()
    first_use.with_suffix(".json").write_text(json.dumps(FACTS | {"cuda": "12.8"}))
    assert _backend.kernels_missing() == ""
    assert loaded == [extension.recipe().cached()]
    aside = f"because {first_use} is set aside: it was built for CUDA 12.8, torch has 13.0\n"
    assert capsys.readouterr().out.endswith(aside)


def test_why_nothing_can_be_built_is_said(first_use, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    cause = "the host compiler false does not run; unset CXX, or name one that does"
    assert _backend.kernels_missing() == cause
    first_use.touch()
    _backend._missing.cache_clear()
    assert (
        _backend.kernels_missing()
        == f"{first_use} is set aside: it is cut off, or _C.json beside it is missing or damaged; {cause}"
    )


@pytest.mark.parametrize(
    ("architectures", "card", "reason"),
    [
        (["sm_80"], (8, 6), ""),
        (
            ["sm_80"],
            (9, 0),
            "the kernels were built for sm_80, not for a card, which has compute capability 9.0; unset T",
        ),
        (
            ["sm_80"],
            (6, 1),
            "the kernels do not run on a card, which has compute capability 6.1, less than 7.5; SCRATCHCUDA",
        ),
    ],
)
def test_a_card_that_the_kernels_do_not_run_on(architectures, card, reason, monkeypatch):
    class Module:
        build_facts = staticmethod(lambda: {"architectures": architectures})

    monkeypatch.setitem(sys.modules, "scratchcuda._C", Module)
    monkeypatch.setattr(scratchcuda, "_C", Module, raising=False)
    monkeypatch.setattr(_backend, "kernels_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    found = _backend.kernels_unfit.__wrapped__(torch.device("cuda:0"))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
