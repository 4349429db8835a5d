"""The profiler: what it records, what it measures of calls that are known, and what it writes."""

import contextlib
import copy
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from oracle import same
from torch import nn
from torch.utils.flop_counter import register_flop_formula

import scratchcuda
from scratchcuda import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dense,
    InputLayer,
    Model,
    ReLU,
    Sigmoid,
    SimpleLinearRegression,
    Softmax,
    Tanh,
    _ranges,
)
from scratchcuda.profiler import ceilings, kernels, measure, profile, race
from scratchcuda.profiler.clocks import HostClock, clock_of, nothing
from scratchcuda.profiler.costs import Cost
from scratchcuda.profiler.findings import Ceilings
from scratchcuda.profiler.record import Call, Ranges, Recorder, copied
from scratchcuda.profiler.subjects import FitSubject, ModuleSubject

pytestmark = pytest.mark.backends("tensor")

#: Round numbers: 1 GB/s, 1 GFLOP/s, 1 ms a call.
LIMITS = Ceilings("a device", {}, 1e9, dict.fromkeys(ceilings.DTYPES, 1e9), 1e-3)
SGD = partial(torch.optim.SGD, lr=0.1)
torch.manual_seed(0)
X, Y = torch.randn(20, 6), torch.randn(20, 3)


@pytest.fixture
def clock(backend):
    return clock_of("cuda", samples=3) if backend == "kernels" else HostClock(samples=3, least=1e-4, flushed=1 << 16)


def mlp(*layers):
    return Model([InputLayer(6), *(layers or (Dense(8, Tanh()), Dense(7), ReLU(), Dense(3)))])


def recorded(subject):
    with Recorder(Ranges(), subject.device) as recorder:
        subject.show(recorder.ranges)
    assert recorder.ranges.open == [("", "")]
    return recorder


def places(recorder):
    """The phases and layers that anything was done in, in order."""
    return list(dict.fromkeys((phase, layer) for phase, layer, _ in recorder.places))


def ops(recorder, phase):
    return [recorder.calls[kind].name for of, _, kind in recorder.places if of == phase]


NAMES = ["0 Dense", "1 Dense", "2 ReLU", "3 Dense"]
FIT = [("forward", name) for name in NAMES] + [("loss", "")]
BACK = [("backward", "3 Dense"), ("update", "3 Dense"), ("backward", "2 ReLU"), ("backward", "1 Dense")]
BACK += [("update", "1 Dense"), ("backward", "0 Dense"), ("update", "0 Dense")]


def test_a_plan_tells_phases_and_layers():
    assert places(recorded(FitSubject(mlp(), X, Y, 0.1))) == FIT + BACK


@pytest.mark.backends("emulator", "kernels")
def test_the_graph_plan_tells_phases_and_layers():
    recorder = recorded(FitSubject(mlp(), X, Y, 0.1))
    fused = [("backward", "2 ReLU"), ("backward", "0 Dense")]  # with the product of the layer above
    places_there = [place for place in FIT + BACK if place not in fused]
    assert places(recorder) == [("batch", ""), *places_there]
    assert set(ops(recorder, "update")) == {"scratchcuda::dense_update_"}
    found = kernels.launched([recorder.calls[kind] for _, _, kind in recorder.places], X.device)
    assert all(len(kernel) == 1 for kernel in found)
    assert all(name in found[i][0].name for i, name in ((0, "take_rows"), (1, "matmul")))


class Twice(Tanh):
    def forward(self, z):
        return 2 * super().forward(z)


def test_layers_of_ones_own_tell_phases_and_layers():
    calls = recorded(FitSubject(mlp(Dense(3, Twice())), X, Y, 0.1))
    expected = [("forward", "0 Dense"), ("loss", ""), ("backward", "0 Dense"), ("update", "0 Dense")]
    assert places(calls) == expected


def test_ops_between_the_phases_belong_to_the_step():
    model = mlp(Dense(6), Dense(6))
    model.layers[1].w = model.layers[0].w
    calls = recorded(FitSubject(model, X, X, 0.1))
    assert {"clone", "copy_"} <= set(ops(calls, "step"))  # the copies that are updated apart


def test_regressions_tell_their_phases():
    calls = recorded(FitSubject(SimpleLinearRegression(), X[:, 0], Y[:, 0], 0.1))
    assert places(calls) == [("loss", ""), ("update", "")]  # the plan has the target in its product


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.backends("tensor", "emulator", "kernels")
def test_modules_tell_phases_and_layers(ours):
    net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 3)))
    if ours:
        scratchcuda.nn.convert(net)
    found = places(recorded(ModuleSubject(net, (X,), Y, nn.MSELoss(), SGD)))
    names = ["0 Linear", "1.0 Tanh", "1.1 Linear"]
    forward, backward = ([(phase, name) for name in names] for phase in ("forward", "backward"))
    found.remove(("backward", ""))  # the gradient of the loss itself, 1
    assert found == [*forward, ("loss", ""), ("backward", "loss"), *reversed(backward), ("update", "")]
    assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.backends("tensor", "emulator", "kernels")
def test_what_is_recorded_of_a_fused_network_is_what_runs():
    """The ranges' own hooks make no two layers of a pair."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    scratchcuda.nn.convert(net, fuse=True)
    found = places(recorded(ModuleSubject(net, (X,), Y, nn.MSELoss(), SGD)))
    assert [place for place in found if place[0] == "forward"] == [("forward", "0 Linear"), ("forward", "2 Linear")]
    net[1].register_forward_hook(lambda *args: None)
    assert ("forward", "1 Tanh") in places(recorded(ModuleSubject(net, (X,), Y, nn.MSELoss(), SGD)))


SUBJECTS = {
    "plan": lambda: FitSubject(mlp(), X, Y, 0.1),
    "regression": lambda: FitSubject(SimpleLinearRegression(), X[:, 0], Y[:, 0], 0.1),
    "general": lambda: FitSubject(mlp(Dense(3, Twice())), X, Y, 0.1),
    "module": lambda: ModuleSubject(nn.Sequential(nn.Linear(6, 3)), (X,), Y, nn.MSELoss(), SGD),
}


@pytest.mark.backends("tensor", "emulator", "kernels")
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_traces_step_is_its_phases_and_what_prepares_it_stands_before(name):
    subject = SUBJECTS[name]()
    events = kernels.trace(lambda: subject.show(Ranges()), subject.device)["traceEvents"]
    spans = [(e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") == "user_annotation"]
    (prepared,), (step,) = ([span for span in spans if span[2] == name] for name in ("set-up", "step"))
    phases = [span for span in spans if span[2].split()[0] in ("batch", "forward", "loss", "backward", "update")]
    assert prepared[1] <= step[0] <= min(phases)[0] <= max(end for _, end, _ in phases) <= step[1]
    ops = [
        e for e in events if e.get("cat") == "cpu_op" and step[0] <= e["ts"] <= step[1] and "profiler" not in e["name"]
    ]
    assert ops
    assert all(any(begin <= op["ts"] <= end for begin, end, _ in phases) for op in ops)


class Between(nn.Module):
    """Functions between layers, a layer that is used twice, a checkpoint, and an exception that is caught."""

    def __init__(self):
        super().__init__()
        self.twice, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = nn.functional.gelu(self.twice(x))
        x = torch.utils.checkpoint.checkpoint(self.twice, x, use_reentrant=False)
        with contextlib.suppress(RuntimeError):
            self.last(x[:, :1])
        return self.last(x)


def test_functions_belong_to_who_calls_them():
    recorder = recorded(ModuleSubject(Between(), (X,), Y, nn.MSELoss(), SGD))
    of = {recorder.calls[kind].name: layer for _, layer, kind in recorder.places}
    assert of["gelu"] == of["gelu_backward"] == "Between"
    counts = {
        (phase, layer): count
        for (phase, layer, kind), count in recorder.places.items()
        if recorder.calls[kind].name == "addmm"
    }
    assert counts["forward", "twice Linear"] == 2
    assert counts["forward", "last Linear"] == 1
    assert {layer for phase, layer, _ in recorder.places if phase == "update"} == {""}


def test_an_update_is_not_an_optimizers_first_one():
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False)
    assert ops(recorded(ModuleSubject(nn.Linear(6, 3, bias=False), (X,), Y, nn.MSELoss(), sgd)), "update") == [
        "mul_.Tensor",
        "add_.Tensor",
        "add_.Tensor",
    ]


def test_without_a_listener_ranges_are_nothing():
    assert _ranges.bound("forward", "", test_a_plan_tells_phases_and_layers) is test_a_plan_tells_phases_and_layers
    layers = enumerate([Dense(3)])
    assert _ranges.each("forward", layers) is layers


def test_calls_keep_what_they_were_called_with():
    expanded = torch.randn(3).expand(2, 3)
    made = copied([X.T, expanded, X.T])
    same(made[0], X.T)
    assert made[0].stride() == X.T.stride()
    assert made[1].stride() == (0, 1)
    assert made[0] is made[2]
    assert made[0].data_ptr() != X.data_ptr()


library = torch.library.Library("profiled", "DEF")
library.define("nap(Tensor x, float seconds) -> Tensor")


@torch.library.impl(library, "nap", "CPU")
def nap(x, seconds):
    time.sleep(seconds)
    return x.clone()


register_flop_formula(torch.ops.profiled.nap)(lambda shape, seconds, out_shape=None, **kwargs: 10 * shape.numel())


@pytest.mark.parametrize("seconds", [0.004, 0.012])
def test_a_call_of_known_time_bytes_and_flops(clock, seconds):
    x = torch.randn(1000, dtype=torch.float64)
    net = nn.Module()
    net.forward = lambda x: torch.ops.profiled.nap(x, seconds)
    with torch.no_grad():
        call = next(iter(recorded(ModuleSubject(net, (x,), None, None, SGD)).calls.values()))
    assert call.cost == Cost(10_000, 0, 16_000)
    row = measure.measure(call, [], clock, LIMITS, compile=False)
    for times in (row.warm, row.cold):
        assert seconds <= times[0] <= times[1] <= 1.5 * seconds + 0.005  # a loaded machine wakes late
    assert row.bandwidth == 16_000 / row.cold[1]
    assert row.rate == 10_000 / row.cold[1]


def test_the_clock_does_not_time_itself():
    assert min(HostClock(samples=5).cold(nothing)) < 5e-6  # 16 us if the clock itself is out of the cache


def test_cold_data_take_longer():
    x = np.zeros(1 << 20, dtype=np.int8)  # by numpy, on one thread
    clock = HostClock(samples=9)
    assert min(clock.cold(partial(np.add, x, 1, out=x))) > min(clock.warm(partial(np.add, x, 1, out=x)))


@pytest.mark.backends("emulator")
def test_ratios_are_torchs_time_by_ours(monkeypatch):
    right, op = scratchcuda.ops._registry.twins.relu, scratchcuda.ops._emulator.current().ops.relu.default
    seconds = {op: [2.0, 4.0], right: [8.0, 16.0], "compiled": [16.0, 32.0]}

    class Clock(HostClock):
        def __init__(self):
            pass

        def warm(self, call, before):
            call()
            return seconds[call.func if call.func in seconds else "compiled"]

        def cold(self, call, other):
            return self.warm(call, None)

    monkeypatch.setattr(torch, "compile", lambda twin, dynamic: lambda z: twin(z))
    call = Call(op, (X.cpu(),), {}, Cost(0, 1, 1))
    row = measure.measure(call, [], Clock(), LIMITS, compile=True)
    assert (row.warm[1], row.eager, row.compiled) == (3.0, [4.0] * 3, [8.0] * 3)
    monkeypatch.setattr(scratchcuda.ops._registry.twins, "relu", lambda z: 1.001 * right(z))
    assert measure.measure(call, [], Clock(), LIMITS, compile=True).eager is None  # of other results


def test_what_is_written_in_place_is_restored():
    class Clock(HostClock):
        def __init__(self):
            self.seen = []

        def warm(self, call, before):
            call(), call(), before()
            self.seen.append(call.args[0].tolist())
            call()
            return [1.0, 1.0]

        def cold(self, call, other):
            self.seen.append(call.args[0].tolist())
            assert other.args[0] is not call.args[0]
            call()
            return [1.0, 1.0]

        def host(self, call):
            self.seen.append(call.args[0].tolist())

    clock, call = Clock(), Call(torch.ops.aten.mul_.Tensor, (torch.ones(2), torch.zeros(2)), {}, Cost(0, 1, 1))
    measure.measure(call, [], clock, LIMITS, compile=False)
    assert clock.seen == [[1, 1]] * 3


@pytest.mark.parametrize(
    ("moved", "flops", "launches", "expected"),
    [
        (4_000_000, 10, 1, (4e-3, "memory")),
        (10, 5_000_000, 1, (5e-3, "arithmetic")),
        (10, 10, 2, (2e-3, "launch latency")),
    ],
)
def test_what_limits_a_call(moved, flops, launches, expected):
    assert LIMITS.floor(moved, flops, "float32", launches) == expected


@pytest.mark.backends("emulator")
def test_errors_against_the_oracle(monkeypatch):
    x, w, b = torch.randn(5, 7), torch.randn(7, 3), torch.randn(3)
    op = scratchcuda.ops._emulator.current().ops.dense.default
    call = Call(op, (x, w, b, "none"), {}, Cost(1, 1, 1))
    assert 0 < measure.error_of(call) < 1e-6
    right = scratchcuda.ops._registry.twins.dense
    monkeypatch.setattr(scratchcuda.ops._registry.twins, "dense", lambda *args: 1.01 * right(*args))
    assert measure.error_of(call) == pytest.approx(0.01 / 1.01, rel=1e-3)
    monkeypatch.setattr(scratchcuda.ops._registry.twins, "dense", lambda *args: float("nan") * right(*args))
    assert math.isnan(measure.error_of(call))
    update = Call(torch.ops.aten.add_.Tensor, (x, x), {}, Cost(1, 1, 1))
    assert measure.error_of(update) < 1e-7  # of what is written
    same(update.args[0], x)


def test_steps_with_other_losses_get_no_ratio():
    net = nn.Linear(6, 3)
    subjects = {
        name: ModuleSubject(net, (X,), Y, nn.MSELoss(), partial(torch.optim.SGD, lr=lr))
        for name, lr in (("torch eager", 0.1), ("the same", 0.1), ("wrong", 0.101))
    }
    subjects["broken"] = ModuleSubject(net, (X,), Y, lambda *args: 1 / 0, SGD)
    found, failed = race.race(subjects, "float32", samples=3, least=1e-4)
    assert failed == {"broken": "ZeroDivisionError: division by zero"}
    assert [name for name, step in found.items() if step.ratio] == ["torch eager", "the same"]
    assert found["the same"].difference == 0 < found["wrong"].difference


MODELS = {
    "mlp": mlp,
    "softmax": lambda: mlp(Dense(3, Softmax())),
    "regression": SimpleLinearRegression,
    "module": lambda: nn.Linear(6, 3),
}


@pytest.mark.backends("tensor", "kernels")
@pytest.mark.parametrize("name", MODELS)
def test_a_profile_leaves_all_as_it_was(name, clock):
    model = MODELS[name]()
    x, y = (X[:, 0], Y[:, 0]) if isinstance(model, SimpleLinearRegression) else (X, Y)
    before, data, random = copy.deepcopy(model.state_dict()), (x.clone(), y.clone()), torch.get_rng_state()
    found = profile(model, x, y, compile=False, clock=clock, limits=LIMITS, samples=3)
    same(before, model.state_dict())
    same(x, data[0])
    same(y, data[1])
    assert found.rows
    assert all(step.ratio for step in found.steps.values())
    assert _ranges.listener is None
    same(torch.get_rng_state(), random)


def test_a_model_that_torch_has_no_modules_for(clock):
    class Own(Tanh):
        pass

    found = profile(mlp(Dense(3, Own())), X, Y, clock=clock, limits=LIMITS, samples=3)
    assert list(found.steps) == ["this"]
    assert "There is no ratio to torch: layers[0]" in found.notices[0]


@pytest.mark.backends("emulator", "kernels")
def test_ratios_and_kernels_of_our_ops(clock, backend):
    found = profile(mlp(Dense(3)), X, Y, compile=False, clock=clock, limits=LIMITS, samples=3)
    assert found.path == "graph plan"
    assert all(row.eager and row.kernels and row.error < 1e-6 for row in found.rows), found.notices
    resources = [(k.registers, k.occupancy) for row in found.rows for k in row.kernels]
    if backend == "emulator":
        assert set(resources) == {(None, None)}
    else:
        # The profiler and the binary may name a kernel differently, and then its occupancy is not known.
        assert all(registers > 0 and 0 < (occupancy or 1) <= 1 for registers, occupancy in resources)
        assert all(row.host for row in found.rows)


def test_inputs_keep_their_gradients(clock):
    x = X.clone().requires_grad_()
    found = profile(nn.ReLU(), x, compile=False, clock=clock, limits=LIMITS, samples=3)
    assert x.grad is None
    assert ("backward", "ReLU") in [(row.phase, row.layer) for row in found.rows]


def test_another_torch_profiler_is_left_alone(clock):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as outer:
        found = profile(nn.ReLU(), X, compile=False, clock=clock, limits=LIMITS, samples=3)
    assert "torch.profiler is at work" in found.notices[0]
    assert found.trace == {}
    assert any("relu" in event.key for event in outer.key_averages())


def test_sparse_tensors_are_left_out_and_named(clock):
    net = nn.Embedding(9, 3, sparse=True)
    found = profile(net, torch.arange(5), compile=False, clock=clock, limits=LIMITS, samples=3)
    assert {"forward", "loss"} <= {row.phase for row in found.rows}
    assert "sparse" in found.notices[0]


@pytest.mark.parametrize(
    ("last", "loss_f"),
    [
        (Dense(3, Softmax()), CrossEntropy(probabilities=True, class_weights=[1, 2, 3])),
        (Dense(1, Sigmoid()), BinaryCrossEntropy()),
    ],
)
def test_classes_by_a_last_activation(last, loss_f, clock):
    model, y = mlp(last), torch.arange(20) % last.units
    model.loss_f = loss_f
    found = profile(model, X, y, compile=False, clock=clock, limits=LIMITS, samples=3)
    assert found.steps["this"].ratio


def test_ceilings_are_measured_once(tmp_path, monkeypatch, clock):
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(tmp_path))
    monkeypatch.setattr(ceilings, "measure", partial(ceilings.measure, copied=1 << 12, n=8))
    first = ceilings.of(clock)
    assert first.bandwidth > 0
    assert set(first.flops) == set(ceilings.DTYPES)
    with monkeypatch.context() as patched:
        patched.setattr(ceilings, "measure", None)
        assert ceilings.of(clock) == first
    (file,) = tmp_path.iterdir()
    file.write_text("")  # as a full disk leaves it
    assert ceilings.of(clock).bandwidth > 0


class KnownClock:
    """Two seconds for each call, whatever it does."""

    device, name = torch.device("cpu"), "a device"

    def warm(self, call, before=None):
        call()
        return [2.0, 2.0]

    cold = warm


def test_ceilings_by_hand():
    found = ceilings.measure(KnownClock(), copied=1 << 12, n=8)
    assert found.bandwidth == 2 * (1 << 12) / 2  # read and written
    assert found.flops == dict.fromkeys(ceilings.DTYPES, 2 * 8**3 / 2)
    assert found.launch == 2


def event(kind, name, ts, dur=1.0, **args):
    return {"ph": "X", "cat": kind, "name": name, "ts": ts, "dur": dur, "args": args}


def test_kernels_of_a_trace():
    of = {"registers per thread": 32, "shared memory": 1024, "grid": [2, 1, 1], "block": [256, 1, 1]}
    events = [
        event("user_annotation", "call 0", 0, 10),
        event("user_annotation", "call 1", 20, 10),
        event("cuda_runtime", "cudaLaunchKernel", 1, correlation=7),
        event("cuda_driver", "cuLaunchKernelEx", 2, correlation=8),
        event("cuda_runtime", "cudaLaunchKernel", 21, correlation=9),
        event("kernel", "second", 6, correlation=8, **of),
        event("kernel", "first", 5, correlation=7, **of),
        event("gpu_memset", "Memset (Device)", 7, correlation=10),
        event("cuda_runtime", "cudaMemsetAsync", 3, correlation=10),
        event("kernel", "other", 25, correlation=9, **of),
    ]
    found = kernels.kernels_in(events, "call 0", {"second": 0.25})
    assert [(k.name, k.occupancy, k.registers, k.shared_bytes) for k in found] == [
        ("first", None, 32, 1024),
        ("second", 0.25, 32, 1024),
        ("Memset (Device)", None, None, 0),
    ]


def test_another_profiler_is_told_of(monkeypatch):
    assert kernels.notices(torch.device("cpu")) == []
    monkeypatch.setenv("CUDA_INJECTION64_PATH", "/opt/nsight.so")
    assert "CUDA_INJECTION64_PATH" in kernels.notices(torch.device("cuda"))[0]
