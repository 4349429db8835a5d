"""When the cases are gathered, and how the kernels themselves are run (kernels.py)."""

import functools
import os

import pytest
import torch
from cases import cases

from scratchcuda.ops import _emulator

#: Builds of the emulator: as sm_80; and as sm_75, without asynchronous copies, with a * b + c rounded once, as by nvcc.
#: These two go together, as neither has a part in the other: one changes how operands come, the other how they round.
VARIANTS = [os.environ["SCRATCHCUDA_EMULATOR"]] if "SCRATCHCUDA_EMULATOR" in os.environ else ["", "sm_75,fma"]


@functools.cache
def built(variant):
    return _emulator.load(name for name in variant.split(",") if name)


@pytest.fixture(scope="session", autouse=True)
def _gathered():
    """Before the first test: hypothesis has none of its tests made within another."""
    cases()


@pytest.fixture(params=VARIANTS)
def _variant(request, monkeypatch):
    monkeypatch.setattr(_emulator, "_usual", lambda: built(request.param))


@pytest.fixture
def _on_the_cpu():
    """There the formulas are computed, on a GPU the kernels alone."""
    with torch.device("cpu"):
        yield


@pytest.fixture
def _poisoned():
    """Memory that torch hands out is full of NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
