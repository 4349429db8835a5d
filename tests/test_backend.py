"""Which backend serves an op."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from oracle import same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import scratchcuda
from scratchcuda import (
    MSE,
    CrossEntropy,
    Dense,
    InputLayer,
    Linear,
    Model,
    ReLU,
    Sigmoid,
    SimpleLinearRegression,
    Softmax,
    Tanh,
    _build,
    ops,
)
from scratchcuda._build.library import BuildError
from scratchcuda.compare import WORKLOADS, Pair
from scratchcuda.ops import _backend, _emulator, _registry
from scratchcuda.ops._registry import twins

pytestmark = pytest.mark.backends("tensor")


class Served(list):
    """The names of the ops that kernels have served."""

    ops = _emulator.current().ops

    def __getattr__(self, name):
        self.append(name)
        return getattr(self.ops, name)


@pytest.fixture
def served(monkeypatch):
    names = Served()
    monkeypatch.setattr(torch.ops, "served", names, raising=False)
    monkeypatch.setattr(_emulator, "_usual", lambda: _emulator.Emulator("served", None))
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
        remembered = len(_backend._choices)
        for _ in range(3):
            scratchcuda.use_backend("auto")
        assert len(_backend._choices) == remembered
    assert served == ["tanh"]
    assert _backend.current == "tensor"


def test_a_block_is_entered_again():
    block = scratchcuda.use_backend("emulator")
    for _ in range(2):
        with block:
            scratchcuda.use_backend("auto")
            with scratchcuda.use_backend("kernels"), block:
                assert _backend.current == "emulator"
            assert _backend.current == "auto"
        assert _backend.current == "tensor"


def test_a_decorator():
    """Also of what calls itself, is suspended, raises, or is compiled."""

    @scratchcuda.use_backend("emulator")
    def backends(depth=1):
        inner = backends(depth - 1) if depth else []
        return [*inner, _backend.current]

    @scratchcuda.use_backend("emulator")
    def each():
        yield _backend.current
        raise KeyError(_backend.current)

    assert _backend.current == "tensor"
    assert backends() == torch.compile(backends, backend="eager", fullgraph=True)() == ["emulator", "emulator"]
    assert backends.__name__ == "backends"
    suspended = each()
    assert next(suspended) == "emulator"
    assert _backend.current == "tensor"
    with pytest.raises(KeyError, match="emulator"):
        next(suspended)
    assert _backend.current == "tensor"


async def coroutine():
    pass


async def asynchronous_generator():
    yield


@pytest.mark.parametrize("function", [None, int, coroutine, asynchronous_generator])
def test_what_it_does_not_decorate(function):
    with pytest.raises(TypeError, match="expected a function or a generator function"):
        scratchcuda.use_backend("emulator")(function)
    assert _backend.current == "tensor"


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AAABBB"))), ids="".join)
@pytest.mark.parametrize("plain", ["tensor", "auto"])
def test_blocks_that_overlap(plain, order):
    """As those of several threads, each made, entered and left; a plain call after the first is made stays."""
    entered = []

    def steps(name):
        block = scratchcuda.use_backend(name)
        yield name
        with block:
            entered.append(name)
            yield name
            entered.remove(name)
        yield entered[-1] if entered else _backend.current

    blocks = {"A": steps("emulator"), "B": steps("kernels")}
    for step, block in enumerate(order):
        assert next(blocks[block]) == _backend.current
        if step == 0:
            scratchcuda.use_backend(plain)
    assert _backend.current == plain


@pytest.mark.parametrize(
    ("plan", "step"),
    [
        (True, "take_batch_ dense dense mse_step_ dense_backward_input dense_update_ dense_update_"),
        (
            False,
            "dense dense mse dense_backward_input dense_update_ tanh_backward dense_backward_input dense_update_",
        ),
    ],
)
def test_training_runs_on_kernels(plan, step, served):
    model = Model([InputLayer(5), Dense(8, Tanh()), Dense(3)])
    with scratchcuda.use_backend("emulator"):
        model.fit(torch.randn(20, 5), torch.randn(20, 3), 2, 0.1, 10, plan=plan, verbose=False)
    assert served == 4 * step.split()


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("loss_f", [CrossEntropy(), MSE()], ids=repr)
@pytest.mark.parametrize("last", [Softmax(), Tanh(), Linear()], ids=repr)
def test_no_twin_has_a_part_in_training(last, loss_f, plan, monkeypatch):
    """Nor has any other product, activation, loss or update of torch's: what is left is copies and the like."""
    for name in _registry.OPS:
        monkeypatch.setattr(twins, name, None)
    layers = [InputLayer(5), Dense(8, Sigmoid()), Dense(4), ReLU(), Dense(3, last)]
    with scratchcuda.use_backend("emulator"):
        model = Model(layers, loss_f)
        x, y = torch.randn(20, 5), torch.randint(3, (20,)) if isinstance(loss_f, CrossEntropy) else torch.randn(20, 3)
        with Called() as called:
            model.fit(x, y, 2, 0.1, 10, x, y, weight_decay=0.1, shuffle=True, plan=plan, verbose=False)
            SimpleLinearRegression().fit(x[:, 0], x[:, 1], 2, 0.1, 10, x[:, 0], x[:, 1], plan=plan, verbose=False)
    assert called.names <= LAYOUT | {"aminmax", "_local_scalar_dense"}  # class indices checked, validation losses read


@pytest.mark.parametrize("plan", [True, False])
def test_nothing_waits_for_the_device_within_an_epoch(plan):
    model, x = Model([InputLayer(5), Dense(3, Softmax())], CrossEntropy()), torch.randn(20, 5)
    for fitted, y in ((model, x[:, :3].softmax(1)), (Model([InputLayer(5), Dense(3)]), x[:, :3])):
        with scratchcuda.use_backend("emulator"), Called() as called:
            history = fitted.fit(x, y, 2, 0.1, 10, plan=plan, verbose=False)
        assert called.names <= LAYOUT
        assert len(history.step_loss) == 4
        assert all(isinstance(loss, float) for loss in history.step_loss)


#: Ops of torch's that compute nothing, and wait for nothing.
LAYOUT = {"clone", "copy_", "detach", "empty", "empty_like", "new_empty", "_to_copy", "index", "randperm", "randn"}
LAYOUT |= {
    "arange",
    "zeros",
    "zero_",
    "slice",
    "split",
    "select",
    "squeeze",
    "unsqueeze",
    "alias",
    "view",
    "stack",
    "cat",
}


class Called(TorchDispatchMode):
    """The names of torch's own ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.name().startswith("scratchcuda"):
            self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


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
        same(found[0], other)


def test_twins_serve_where_autograd_records(served):
    x, w, b = torch.randn(4, 3), torch.randn(3, 2, requires_grad=True), torch.randn(2)
    with scratchcuda.use_backend("emulator"):
        assert ops.dense(x, w, b).requires_grad
        assert served == []
        with torch.no_grad():
            ops.dense(x, w, b)
        ops.dense_update_(torch.randn(4, 2), x, w, b, 0.1)
        ops.sgd_update_([w], [torch.randn(3, 2)], 0.1)
    assert served == ["dense", "dense_update_", "sgd_update_"]


@pytest.mark.parametrize("backend_in_use", ["tensor", "emulator"])
@pytest.mark.parametrize(
    "update",
    [
        lambda p, other: ops.dense_update_(torch.randn(4, 2), torch.randn(4, 3), p, other, 0.1),
        lambda p, other: ops.dense_update_(torch.randn(4, 2), torch.randn(4, 3), other, p, 0.1),
        lambda p, other: ops.sgd_update_([other, p], [other.clone(), p.clone()], 0.1),
        lambda p, other: ops.sgd_update_([other], [p.detach().clone()], 0.1, momentum=0.9, momentum_buffers=[p]),
    ],
    ids=["dense w", "dense b", "params", "momentum"],
)
def test_an_update_bumps_versions(update, backend_in_use, request):
    """A graph that saved a tensor before the update must raise, not lie."""
    shapes = {"dense w": [(3, 2), (2,)], "dense b": [(2,), (3, 2)]}.get(
        request.node.callspec.id.split("-")[1], [(3,), (3,)]
    )
    with scratchcuda.use_backend(backend_in_use):
        p, other = torch.randn(shapes[0], requires_grad=True), torch.zeros(shapes[1])
        loss = (p * p).sum()
        update(p, other)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        with torch.inference_mode():
            update(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (
            lambda: scratchcuda.use_backend("cuda"),
            ValueError,
            "name is 'cuda', expected one of auto, tensor, kernels, em",
        ),
        (lambda: ops.tanh(torch.zeros(1).to(torch.float8_e4m3fn)), TypeError, "expected float64, fl"),
        (lambda: _build.emulator.build(["sm_60"]), ValueError, "variant is 'sm_60', expected one of sm_75, fma"),
    ],
)
def test_refusals(call, exception, message):
    with scratchcuda.use_backend("emulator"):
        with pytest.raises(exception, match=message):
            call()
        assert _backend.current == "emulator"


class OnDevice(SimpleNamespace):
    """Stands in for a tensor of which _backend asks these questions."""

    is_meta, is_nested, requires_grad, dtype, layout = False, False, False, torch.float32, torch.strided
    is_neg = staticmethod(lambda: False)
    is_cuda = property(lambda self: self.device.type == "cuda")


def test_tensors_elsewhere_are_refused_on_the_emulator(monkeypatch):
    monkeypatch.setattr(_backend, "Tensor", OnDevice)
    with (
        scratchcuda.use_backend("emulator"),
        pytest.raises(ValueError, match="tanh got a tensor on device cuda:0, exp"),
    ):
        _backend.serving("tanh", OnDevice(device=torch.device("cuda:0")))


def test_cuda_tensors_without_kernels(monkeypatch, recwarn):
    """One warning that says why and what to do; an error where kernels are asked for."""
    monkeypatch.setattr(_backend, "Tensor", OnDevice)
    monkeypatch.setattr(_backend, "kernels_unfit", lambda device: "the reason; the cure")
    _backend._warn_once.cache_clear()
    cuda, cpu = OnDevice(device=torch.device("cuda:0")), OnDevice(device=torch.device("cpu"))
    with scratchcuda.use_backend("auto"):
        assert _backend.serving("tanh", cuda) is _backend.serving("tanh", cuda) is twins.tanh
    (warning,) = recwarn.list
    assert str(warning.message) == "CUDA tensors are served by torch's tensor operations, because the reason; the cure"
    with scratchcuda.use_backend("kernels"):
        assert _backend.serving("tanh", cpu) is twins.tanh
        with pytest.raises(RuntimeError, match="tanh got CUDA tensors, but the reason; the cure"):
            _backend.serving("tanh", cuda)
    monkeypatch.setattr(_backend, "kernels_unfit", lambda device: "")
    with scratchcuda.use_backend("auto"):
        assert _backend.serving("tanh", cuda) == torch.ops.scratchcuda.tanh
    with scratchcuda.use_backend("tensor"):
        assert _backend.serving("tanh", cuda) is twins.tanh


def test_twins_serve_what_has_no_numbers_in_memory(served):
    z = torch.randn(3)
    with scratchcuda.use_backend("emulator"):
        same(torch.vmap(ops.tanh)(z), z.tanh())
        assert torch.allclose(torch.func.jvp(ops.tanh, (z,), (torch.ones(3),))[1], 1 - z.tanh() ** 2)
        with FakeTensorMode() as mode:
            assert ops.tanh(mode.from_tensor(z)).shape == (3,)
        negative = torch.randn(3, dtype=torch.complex128).conj().imag
        assert negative.is_neg()
        same(ops.tanh(negative), negative.tanh())
    assert served == []


def test_the_environment_is_checked_at_import(monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_BACKEND", "gpu")
    done = subprocess.run([sys.executable, "-c", "import scratchcuda"], capture_output=True, text=True, check=False)
    assert "ValueError: SCRATCHCUDA_BACKEND is 'gpu', expected one of auto, tensor, kernels, emulator" in done.stderr


def test_the_emulator_has_to_be_one_that_there_is(monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_EMULATOR", "fma,gpu")
    monkeypatch.setattr(_emulator, "_usual", _emulator._usual.__wrapped__)
    with pytest.raises(BuildError, match=r"^SCRATCHCUDA_EMULATOR names 'gpu', expected some of sm_75, fma, .*"):
        _emulator.current()
