"""Backends, dtypes, seeds, and the paths of a fit, for all tests."""

import os

import hypothesis
import pytest
import torch

import scratchcuda

hypothesis.settings.register_profile("scratchcuda", deadline=None, max_examples=60, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("scratchcuda")


@pytest.fixture(autouse=True, params=["tensor", "emulator", "kernels"])
def backend(request, monkeypatch):
    """Every test runs on each backend that CPU tensors have, unless its mark names others.

    In this process, and in those that it starts.
    """
    monkeypatch.setenv("SCRATCHCUDA_BACKEND", request.param)
    with scratchcuda.use_backend(request.param):
        yield request.param


def pytest_collection_modifyitems(config, items):
    def fits(item):
        params, mark = item.callspec.params, item.get_closest_marker("backends")
        backends = ("tensor", "emulator") if mark is None else mark.args
        return params["backend"] in backends

    config.hook.pytest_deselected(items=[item for item in items if not fits(item)])
    items[:] = [item for item in items if fits(item)]


@pytest.fixture(autouse=True)
def _torch_as_it_starts():
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def usual_path(backend):
    """The path of a fit that asks for none."""
    return "tensor plan" if backend == "tensor" else "graph plan"


@pytest.fixture(params=["plan", "general"])
def path(request, usual_path):
    """Of this backend."""
    return usual_path if request.param == "plan" else "general"
