"""Machines to build on, for all tests of builds."""

import pytest
from toolkits import make_toolkit

from scratchcuda import doctor
from scratchcuda._build import toolchain


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No toolkit anywhere but in places that a test adds, no settings, a cache of its own."""
    for name in doctor.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "USUAL", tmp_path / "usual")
    monkeypatch.setattr(toolchain, "pypi_folders", list)
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(tmp_path / "a cache"))
    return tmp_path


@pytest.fixture
def cuda_torch(bare, monkeypatch):
    """As if torch were a CUDA build, with a whole toolkit."""
    monkeypatch.setattr(toolchain, "torch", lambda: toolchain.Torch(bare / "torch", "2.11.0+cu130", "13.0"))
    make_toolkit(bare / "usual")
    return bare
