"""Which backend serves an op, and the emulator's build."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import scratchcuda
from scratchcuda import Dense, InputLayer, Model, Tanh, _backend, _build, _emulator, ops
from scratchcuda.compare import WORKLOADS, Pair

pytestmark = pytest.mark.backends("tensor")


@pytest.fixture
def served(monkeypatch):
    """The names of the ops that kernels have served."""
    names = []
    for name, kernel in _emulator.KERNELS.items():
        monkeypatch.setitem(_emulator.KERNELS, name, lambda *args, n=name, k=kernel: (names.append(n), k(*args))[1])
    return names


def test_a_block_chooses_and_restores(served):
    z = torch.randn(3)
    ops.tanh(z)
    with scratchcuda.use_backend("emulator"):
        ops.tanh(z)
        with scratchcuda.use_backend("tensor"):
            ops.tanh(z)
        assert _backend.current == "emulator"
    ops.tanh(z)
    assert served == ["tanh"]


def test_a_call_chooses_from_there_on(served):
    with scratchcuda.use_backend("tensor"):
        scratchcuda.use_backend("emulator")
        ops.tanh(torch.randn(3))
    assert served == ["tanh"]
    assert _backend.current == "tensor"


def test_training_runs_on_kernels(served):
    model = Model([InputLayer(5), Dense(8, Tanh()), Dense(3)])
    with scratchcuda.use_backend("emulator"):
        history = model.fit(torch.randn(20, 5), torch.randn(20, 3), 2, 0.1, 10, verbose=False)
    assert (history.path, history.reason) == ("general", "the emulator trains layer by layer")
    assert len(served) == 2 * 2 * (2 + 2 + 2 + 1)  # forward, input gradients, updates, the tanh's gradient


@pytest.mark.parametrize("workload", ["slr", "mlp", "digits"])
def test_training_repeats_bit_for_bit_in_any_order(workload):
    """From run to run, and whatever the order of threads and blocks."""
    pair, found = Pair(WORKLOADS[workload], "cpu", torch.float64, 0), []
    for seed in (0, 0, 1):
        pair.reset()
        with scratchcuda.use_backend("emulator"):
            _emulator.seed(seed)
            history = pair.fit_scratch(2, 0.01, 333, validate=False)
        found.append([*history.step_loss, *(p.clone() for p in pair.scratch.state_dict().values())])
    assert len(found[0]) >= 2 + 2
    for other in found[1:]:
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(found[0], other, strict=True))


def test_ops_without_a_kernel_say_so():
    missing = [name for name in ops.SCHEMAS if name not in _emulator.KERNELS]
    assert missing == ["mse", "cross_entropy", "sgd_update_"]
    _emulator._said.clear()
    with scratchcuda.use_backend("emulator"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            ops.mse(torch.zeros(2), torch.ones(2))
    assert [str(w.message) for w in said] == ["mse has no kernel yet: its tensor twin serves it on the emulator"]
    assert said[0].filename == __file__


def test_twins_serve_where_autograd_records(served):
    x, w, b = torch.randn(4, 3), torch.randn(3, 2, requires_grad=True), torch.randn(2)
    with scratchcuda.use_backend("emulator"):
        assert ops.dense(x, w, b).requires_grad
        assert served == []
        with torch.no_grad():
            ops.dense(x, w, b)
        ops.dense_update_(torch.randn(4, 2), x, w, b, 0.1)
    assert served == ["dense", "dense_update_"]


def test_an_update_bumps_versions():
    """A graph that saved the parameter before the update must raise, not lie."""
    for backend in ("tensor", "emulator"):
        w, b = torch.randn(3, 2, requires_grad=True), torch.zeros(2)
        loss = (w * w).sum()
        with scratchcuda.use_backend(backend):
            ops.dense_update_(torch.randn(4, 2), torch.randn(4, 3), w, b, 0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        with torch.inference_mode(), scratchcuda.use_backend(backend):
            ops.dense_update_(torch.randn(4, 2), torch.randn(4, 3), torch.zeros(3, 2), torch.zeros(2), 0.1)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda: scratchcuda.use_backend("cuda"), ValueError, "name is 'cuda', expected one of tensor, emulator"),
        (lambda: _emulator.serving("tanh", torch.zeros(1).to(torch.float8_e4m3fn)), TypeError, "expected float64, fl"),
        (lambda: _build.emulator(["sm_60"]), ValueError, "variant is 'sm_60', expected one of sm_75, fma"),
    ],
)
def test_refusals(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_tensors_elsewhere_are_refused(monkeypatch):
    monkeypatch.setattr(_emulator, "Tensor", SimpleNamespace)
    tensor = SimpleNamespace(is_meta=False, is_neg=lambda: False, device=torch.device("cuda:0"), dtype=torch.float32)
    with pytest.raises(ValueError, match="tanh got a tensor on device cuda:0, expected cpu"):
        _emulator.serving("tanh", tensor)


def test_twins_serve_what_has_no_numbers_in_memory(served):
    z = torch.randn(3)
    with scratchcuda.use_backend("emulator"):
        assert torch.equal(torch.vmap(ops.tanh)(z), z.tanh())
        assert torch.allclose(torch.func.jvp(ops.tanh, (z,), (torch.ones(3),))[1], 1 - z.tanh() ** 2)
        with FakeTensorMode() as mode:
            assert ops.tanh(mode.from_tensor(z)).shape == (3,)
        negative = torch.randn(3, dtype=torch.complex128).conj().imag
        assert negative.is_neg()
        assert torch.equal(ops.tanh(negative), negative.tanh())
    assert served == []


def test_the_environment_is_checked_at_import(monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_BACKEND", "gpu")
    done = subprocess.run([sys.executable, "-c", "import scratchcuda"], capture_output=True, text=True, check=False)
    assert "ValueError: SCRATCHCUDA_BACKEND is 'gpu', expected one of tensor, emulator" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CXX", "no-such-compiler", "needs the compiler no-such-compiler: install g"),
        ("CXX", "false", "the emulator's compiler false does not run"),
        ("SCRATCHCUDA_CACHE", __file__, "set SCRATCHCUDA_CACHE"),
    ],
)
def test_a_build_that_cannot_be_says_why(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=message):
        _build.emulator()


def test_a_build_is_made_once_and_anew_for_other_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(tmp_path / "a cache"))
    broken = tmp_path / "more.cu"
    broken.write_text("#error broken on purpose")
    compiled = []
    monkeypatch.setattr(_build, "_run", compiled.append)
    monkeypatch.setattr(_build.os, "replace", lambda source, target: open(target, "w").close())
    assert _build.emulator() == _build.emulator()
    once = len(compiled)
    assert _build.emulator(extra=[broken]) != _build.emulator(["fma"])
    assert len(compiled) == 3 * once + 1
    monkeypatch.undo()
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(tmp_path / "a cache"))
    broken.write_text("#error broken on purpose, again")
    with pytest.raises(RuntimeError, match=r"does not compile: (?s:.*)broken on purpose"):
        _build.emulator(extra=[broken])
    assert not list((tmp_path / "a cache").glob("tmp*"))


def test_sources_are_found_beside_the_package_and_within(tmp_path, monkeypatch):
    assert (_build.csrc() / "kernels/dense.cu").exists()
    for place in (tmp_path / "csrc", tmp_path / "scratchcuda/csrc"):
        (place / "kernels").mkdir(parents=True)
        monkeypatch.setattr(_build, "_PACKAGE", tmp_path / "scratchcuda")
        assert _build.csrc() == place


def test_no_copies_on_the_way_to_a_kernel(monkeypatch):
    """Operands go in as they are, whatever their strides: see test_kernels.py for that they are right."""
    seen = []
    of = _emulator._Tensor.of
    monkeypatch.setattr(_emulator._Tensor, "of", lambda tensor: (seen.append(tensor.data_ptr()), of(tensor))[1])
    x, w, b = torch.randn(6, 4).mT, torch.randn(5, 12)[:, ::2].mT, torch.randn(10)[::2]
    delta = torch.randn(5, 4).mT
    with scratchcuda.use_backend("emulator"):
        ops.dense(x, w, b)
        ops.dense_backward_input(delta, w)
        ops.dense_update_(delta, x, w, b, 0.1)
        ops.tanh_backward(delta, delta.clone()[:, :])
        ops.softmax(x)
    assert {tensor.data_ptr() for tensor in (x, w, b, delta)} <= set(seen)
    source = (_build._PACKAGE / "_emulator.py").read_text()
    assert not any(copy in source for copy in ("contiguous(", ".clone(", "reshape(", ".copy_(", "resolve_"))
