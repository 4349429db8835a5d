"""Backends, devices, dtypes, seeds, and the paths of a fit, for all tests."""

import functools
import math
import os
import sys
import tempfile
import time

import hypothesis
import pytest
import torch

import scratchcuda
from scratchcuda._build import emulator
from scratchcuda._build.library import BuildError
from scratchcuda.ops import _backend, _emulator

BACKENDS = ("tensor", "emulator", "kernels")
pytest.register_assert_rewrite("drop_in")
collect_ignore = [] if "tests.stand_in.plugin" in sys.modules else ["stand_in"]

hypothesis.settings.register_profile("scratchcuda", deadline=None, max_examples=60, derandomize="CI" in os.environ)
hypothesis.settings.register_profile(
    "brief",
    hypothesis.settings.get_profile("scratchcuda"),
    phases=[hypothesis.Phase.generate],
    report_multiple_bugs=False,
)
hypothesis.settings.load_profile("scratchcuda")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help=f"run on this backend alone, of {', '.join(BACKENDS)}; several with commas, or by several options",
    )
    parser.addoption("--until", type=float, default=math.inf, help="no test begins after this time, as time.time()")


@functools.cache
def kernels_unfit():
    """Why no test can run on the CUDA kernels here; nothing if they can."""
    return _backend.kernels_unfit(torch.device("cuda")) if torch.cuda.is_available() else "there is no GPU"


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, monkeypatch):
    """Every test runs on each backend that the machine has, unless its mark names others.

    In this process, and in those that it starts. On the kernels, tensors are made on the GPU.
    """
    if request.param == "kernels":
        if kernels_unfit():
            pytest.skip(kernels_unfit())
        torch.set_default_device("cuda")
        for name, value in vars(request.module).items():
            if isinstance(value, torch.Tensor):  # made at import
                monkeypatch.setattr(request.module, name, value.cuda())
    monkeypatch.setenv("SCRATCHCUDA_BACKEND", request.param)
    with scratchcuda.use_backend(request.param):
        yield request.param


def is_repetition(item):
    """Whether a test shows nothing in the further build of the emulator that it does not show in the usual one.

    Layouts decide how elements are reached, and the further build changes that for products alone.
    """
    variant, layout = (item.callspec.params.get(name) for name in ("_variant", "layout"))
    if not variant or variant == os.environ.get("SCRATCHCUDA_EMULATOR"):
        return False
    return "dense" not in item.name and (layout not in (None, "rows") or item.name.startswith("test_any_"))


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)  # the other cores have workers of their own
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
        return
    # What Inductor has kept of another run may be made for wider vectors, and gives wrong numbers here.
    folder = tempfile.TemporaryDirectory(prefix="inductor-")
    config.add_cleanup(folder.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    if "emulator" in asked(config) and not config.option.collectonly:
        try:
            emulator.build(_emulator.asked())  # or each test would try, and fail
        except (BuildError, ValueError) as error:
            what = "tests need the emulator, but for those that --backend tensor runs, and it cannot be built"
            raise pytest.UsageError(f"{what}: {error}") from None


def asked(config):
    """The backends that tests are wanted on."""
    names = [name for names in config.getoption("--backend") for name in names.split(",")]
    if unknown := set(names).difference(BACKENDS):
        raise pytest.UsageError(f"--backend is {unknown.pop()!r}, expected some of {', '.join(BACKENDS)}")
    return names or BACKENDS


def pytest_runtest_teardown(item):
    if time.time() > item.config.getoption("--until"):
        item.session.shouldstop = "no time is left for more tests"


def pytest_collection_modifyitems(config, items):
    wanted = asked(config)

    def fits(item):
        params, mark = item.callspec.params, item.get_closest_marker("backends")
        backend, backends = params["backend"], BACKENDS if mark is None else mark.args
        if backend not in backends or backend not in wanted or is_repetition(item):
            return False
        if backend == "kernels":
            # Where they cannot run, the tests of nothing else are skipped, to say why.
            return not params.get("_variant") and (backends == ("kernels",) or not kernels_unfit())
        return True

    config.hook.pytest_deselected(items=[item for item in items if not fits(item)])
    items[:] = [item for item in items if fits(item)]


@pytest.fixture(autouse=True)
def _torch_as_it_starts():
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


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
