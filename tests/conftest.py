"""Dtypes, seeds, and the paths of a fit, for all tests."""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("scratchcuda", deadline=None, max_examples=60, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("scratchcuda")


@pytest.fixture(autouse=True)
def _torch_as_it_starts():
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(params=["tensor plan", "general"])
def path(request):
    return request.param
