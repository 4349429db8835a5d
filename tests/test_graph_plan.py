"""The graph plan: its launches, and the graphs made of them. On the emulator a stand-in for CUDA Graphs records ops."""

import copy
import gc
import itertools
import pickle
import weakref

import pytest
import torch
from oracle import same
from test_gpu import DTYPES
from trajectories import mlp

from scratchcuda import (
    ELU,
    GELU,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Dense,
    Dropout,
    Flatten,
    Huber,
    InputLayer,
    Model,
    ReLU,
    Sigmoid,
    SiLU,
    SimpleLinearRegression,
    Softmax,
    Tanh,
    ops,
)
from scratchcuda.compare import WORKLOADS, Pair
from scratchcuda.engine.layers import noise_like
from scratchcuda.engine.plans import graph as graph_plan
from scratchcuda.ops import _backend, _emulator

pytestmark = pytest.mark.backends("emulator", "kernels")


WEIGHTS = {"class_weights": [0.5, 2, 1], "label_smoothing": 0.1}
#: Loss, last activation, targets of so many samples, and options of the fit.
LOSSES = {
    "mse": (MSE(), None, lambda m: torch.randn(m, 3), {}),
    "huber": (Huber(0.5), None, lambda m: torch.randn(m, 3), {}),
    "binary": (BinaryCrossEntropy(), Sigmoid(), lambda m: torch.rand(m, 3), {}),
    "classes": (CrossEntropy(), None, lambda m: torch.randint(3, (m,)), {}),
    "probabilities": (CrossEntropy(), Softmax(), lambda m: torch.randint(3, (m,)), {}),
    "weights": (CrossEntropy(**WEIGHTS), Softmax(), lambda m: torch.randint(3, (m,)), {"sample_weight": range(1, 24)}),
}


def network(loss, dtype=torch.float64):
    """Layers of all kinds, in every order that a plan treats in another way."""
    layers = [Tanh(), Dense(8, Tanh()), Dense(8, Softmax()), Dense(7), ReLU(), SiLU(), Dropout(0.3), Dense(8, GELU())]
    layers += [Dropout(0.2), Dense(7, bias=False), ELU(), Softmax(), Dropout(0.1), Flatten(), Dense(8, Sigmoid())]
    loss_f, last, _, _ = LOSSES[loss]
    return Model([InputLayer(5), *layers, Dense(6, ReLU()), Dense(3, copy.copy(last))], loss_f).to(dtype)


def data(loss, dtype=torch.float64, samples=23):
    x, y = torch.randn(samples, 5, dtype=torch.float64).to(dtype), LOSSES[loss][2](samples)
    return x, y.to(dtype) if y.is_floating_point() else y


def fit(model, x, y, plan=True, epochs=3, lr=0.1, batch_size=7, **options):
    """What a fit leaves behind: its losses, the parameters, and what the layers show."""
    generator = torch.Generator("cpu").manual_seed(1)
    torch.manual_seed(2)  # of the noise
    options = {"weight_decay": 0.01, "shuffle": True, "generator": generator, "x_valid": x, "y_valid": y} | options
    history = model.fit(x, y, epochs, lr, batch_size, plan=plan, verbose=False, **options)
    assert history.path == ("graph plan" if plan else "general"), history.reason
    shown = [getattr(layer, name) for layer in model.layers for name in ("a", "input") if hasattr(layer, name)]
    return history.step_loss, history.valid_loss, list(map(torch.clone, model.state_dict().values())), shown


def assert_same_bits(first, second):
    assert first[:2] == second[:2]
    for ours, theirs in zip(first[2] + first[3], second[2] + second[3], strict=True):
        same(ours, theirs)


class Graph:
    """A stand-in for a CUDA Graph: it keeps the ops that are called while it captures, and calls them again."""

    capturing = None

    def __init__(self):
        self.ops, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for call, outputs in self.ops:
            for output, value in zip(outputs, as_tuple(call()), strict=True):
                output.copy_(value)


def as_tuple(value):
    return value if isinstance(value, tuple) else () if value is None else (value,)


@pytest.fixture
def graphs(backend, monkeypatch):
    """On the emulator plans capture, as on a GPU; all graphs that they make."""
    if backend == "kernels":
        return None
    made, serving, init = [], _backend.serving, graph_plan.Captured.__init__

    class Capture:
        def __init__(self, graph, pool, stream, capture_error_mode):
            self.graph = graph

        def __enter__(self):
            Graph.capturing = self.graph

        def __exit__(self, *exception):
            Graph.capturing = None

    def captured(name, *tensors):
        op = serving(name, *tensors)

        def call(*args):
            if Graph.capturing is None:
                return op(*args)
            tensors = [arg for each in args for arg in (each if isinstance(each, list) else [each])]
            before = [(arg, arg.clone()) for arg in tensors if isinstance(arg, torch.Tensor)]
            outputs = op(*args)
            for arg, value in before:  # nothing runs while it is captured
                arg.copy_(value)
            Graph.capturing.ops.append((lambda: op(*args), as_tuple(outputs)))
            return outputs

        return call

    def drawn(x, p):
        if Graph.capturing is None:
            return noise_like(x, p)
        noise = torch.empty_like(x)
        Graph.capturing.ops.append((lambda: noise_like(x, p), (noise,)))
        return noise

    def make():
        made.append(Graph())
        return made[-1]

    def pooled(self, *args):
        init(self, *args)
        self.pool = "pool"

    monkeypatch.setattr(_backend, "serving", captured)
    monkeypatch.setattr(graph_plan, "noise_like", drawn)
    monkeypatch.setattr(graph_plan.Captured, "__init__", pooled)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda pool, include_traces: [{"total_size": 4096}])
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_as_layer_by_layer(loss, dtype):
    model, (x, y), options = network(loss, dtype), data(loss, dtype), LOSSES[loss][3]
    twin = copy.deepcopy(model)
    assert_same_bits(fit(model, x, y, **options), fit(twin, x, y, plan=False, **options))


@pytest.mark.parametrize("loss", LOSSES)
def test_replays_do_what_was_captured(loss, graphs):
    model, (x, y), options = network(loss), data(loss), LOSSES[loss][3]
    options = {name: torch.tensor(weights, dtype=x.dtype) for name, weights in options.items()}  # kept between the fits
    twin = copy.deepcopy(model)
    for epochs in (3, 2):  # the second fit replays alone
        options["epochs"] = epochs
        assert_same_bits(fit(model, x, y, **options), fit(twin, x, y, plan=False, **options))
    # Three batches of 7, one of 2, and the validation; the first of each is eager.
    assert graphs is None or [graph.replays for graph in graphs] == [3 * 5 - 1, 5 - 1, 5 - 1]


OPTIMIZERS = {
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "dampening": {"optimizer": "sgd", "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.0},
    "amsgrad": {"optimizer": "adam", "amsgrad": True},
    "adamw": {"optimizer": "adamw"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_capture_serves_all_rates_and_all_steps_of_an_optimizer(name, graphs):
    model, (x, y), anew = network("mse"), data("mse"), OPTIMIZERS[name]
    twin, kept = copy.deepcopy(model), None
    for lr in (lambda epoch: 0.02 / (1 + epoch), 0.01, None, 0.03):  # the third goes on
        options = anew | {"lr": lr} if lr else {"lr": 0.005, "weight_decay": None}
        given = [options if lr else options | {"optimizer": m.optimizer} for m in (model, twin)]
        assert_same_bits(fit(model, x, y, **given[0]), fit(twin, x, y, plan=False, **given[1]))
        assert model.optimizer.steps == twin.optimizer.steps == (12 if lr else 24)
        for of_name, states in twin.optimizer.state.items():
            same([*model.optimizer.state[of_name].values()], [*states.values()])
        kept = kept or graph_plan._kept[model]
        assert graph_plan._kept[model] is kept
    # Three batches of 7, one of 2, and the validation; what is first is eager, and with dampening each first step.
    steps = 3 * 12 - 1 - 3 * (name == "dampening")
    assert graphs is None or [graph.replays for graph in graphs] == [steps, 12 - 1, 12 - 1]


def test_one_capture_serves_a_rate_that_varies(graphs):
    model, (x, y) = network("mse"), data("mse")
    twin = copy.deepcopy(model)
    for decay in (0.1, 0.2):
        rates = {"lr": lambda epoch, decay=decay: 0.1 * decay**epoch}
        ours, theirs = fit(model, x, y, **rates), fit(twin, x, y, plan=False, **rates)
        assert ours[0] == pytest.approx(theirs[0], rel=1e-11)  # one update of all, and one in each product
        for p, q in zip(ours[2], theirs[2], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    assert graphs is None or [graph.replays for graph in graphs] == [3 * 6 - 1, 6 - 1, 6 - 1]


def test_a_regression_is_captured(graphs):
    x, y = torch.randn(20), torch.randn(20)
    model = SimpleLinearRegression()
    twin = copy.deepcopy(model)
    histories = [m.fit(x, y, 4, 0.1, 6, x, y, plan=m is model, verbose=False) for m in (model, twin)]
    assert histories[0].step_loss == histories[1].step_loss
    assert histories[0].valid_loss == histories[1].valid_loss
    same(model.w, twin.w)
    same(model.b, twin.b)
    assert len(graph_plan._kept[model].graphs) == 3


#: What is done before the next fit, and its options.
CHANGES = {
    "nothing": lambda model, x, y: {},
    "parameters in place": lambda model, x, y: [model.layers[-1].w.zero_(), {}][-1],
    "data in place": lambda model, x, y: [x.neg_(), {}][-1],
    "lr": lambda model, x, y: {"lr": 0.2},
    "weight_decay": lambda model, x, y: {"weight_decay": 0.0},
    "batch_size": lambda model, x, y: {"batch_size": 5},
    "no validation": lambda model, x, y: {"x_valid": None, "y_valid": None},
    "data elsewhere": lambda model, x, y: {"x": x.clone()},
    "strides": lambda model, x, y: {"x": x.T.contiguous().T},
    "a parameter elsewhere": lambda model, x, y: [setattr(model.layers[-1], "w", model.layers[-1].w.clone()), {}][-1],
    "dtype": lambda model, x, y: [model.to(torch.float32), {"x": x.float(), "y": y.float()}][-1],
    "an activation": lambda model, x, y: [setattr(model.layers[1], "act_f", Sigmoid()), {}][-1],
    "a probability": lambda model, x, y: [setattr(model.layers[6], "p", 0.6), {}][-1],
    "another fusion": lambda model, x, y: [setattr(model.layers[3], "act_f", model.layers.pop(4)), {}][-1],
    "the loss": lambda model, x, y: [setattr(model, "loss_f", CrossEntropy()), {"y": y.softmax(1)}][-1],
    "class weights": lambda model, x, y: [setattr(model, "loss_f", CrossEntropy(**WEIGHTS)), {"y": y.softmax(1)}][-1],
    "sample weights": lambda model, x, y: CHANGES["the loss"](model, x, y) | {"sample_weight": range(1, 24)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_serves_until_what_it_has_captured_changes(change, graphs):
    model, (x, y) = network("mse"), data("mse")
    fit(model, x, y)
    kept = graph_plan._kept[model]
    options = {"x": x, "y": y} | CHANGES[change](model, x, y)
    options = {"x_valid": options["x"], "y_valid": options["y"]} | options
    twin = copy.deepcopy(model)
    assert_same_bits(fit(model, **options), fit(twin, plan=False, **options))
    assert (graph_plan._kept[model] is kept) == (change in list(CHANGES)[:3])


@pytest.mark.backends("emulator")
def test_a_failed_capture_is_not_used_again(graphs, monkeypatch):
    model, (x, y) = network("mse"), data("mse")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "graph", lambda *args, **options: [].pop())
        with pytest.raises(IndexError):
            fit(model, x, y)
    failed, twin = graph_plan._kept[model], copy.deepcopy(model)
    assert_same_bits(fit(model, x, y), fit(twin, x, y, plan=False))
    assert graph_plan._kept[model] is not failed


def test_nothing_is_kept_longer_than_its_model_and_copies_have_nothing():
    model, (x, y) = network("mse"), data("mse")
    x_alive = weakref.ref(x)
    fit(model, x, y)
    kept = weakref.ref(graph_plan._kept[model])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin not in graph_plan._kept
    del x, y
    gc.collect()
    assert x_alive() is None
    assert kept() is not None
    del model
    gc.collect()
    assert kept() is None


def kernels(launches):
    """The launched kernels' names, without what they are templates of."""
    return [launch.kernel.partition("(")[0].partition("<")[0].split("::")[-1].split(" ")[-1] for launch in launches]


@pytest.mark.backends("emulator")
@pytest.mark.parametrize(("workload", "count"), [("slr", 4), ("mlp", 18), ("digits", 11)])
@pytest.mark.parametrize(("options", "more"), [({}, 0), ({"momentum": 0.9}, 1), (OPTIMIZERS["adamw"], 2)])
def test_launches_of_a_step(workload, count, options, more):
    """As many as docs/architecture.md says."""
    pair, work = Pair(WORKLOADS[workload], "cpu", torch.float64, 0), WORKLOADS[workload]
    x, y = (t[: work.batch_size].squeeze(-1) for t in (pair.x, pair.y))
    _emulator.record(True)
    pair.scratch.fit(x, y, 1, work.lr, work.batch_size, verbose=False, **options)
    found = kernels(_emulator.launches())
    _emulator.record(False)
    assert len(found) == count + more
    assert found[0] == "take_rows"


@pytest.mark.backends("emulator")
@pytest.mark.parametrize(("activation", "kept"), [(Tanh, 1), (SiLU, 2)])  # its output, or also its input
def test_a_step_keeps_its_activations_once_and_no_gradient_of_weights(activation, kept, monkeypatch):
    sizes, m = [5, 64, 48, 3], 4
    model, x, y = mlp(sizes, activation), torch.randn(m, 5, dtype=torch.float64), torch.randn(m, 3, dtype=torch.float64)
    live, peak = 0, 0
    serving = _backend.serving

    def watched(name, *tensors):
        def call(*args):
            nonlocal live, peak
            outputs = serving(name, *tensors)(*args)
            for output in as_tuple(outputs):
                live += output.nbytes
                weakref.finalize(output, release, output.nbytes)
            peak = max(peak, live)
            return outputs

        return call

    def release(freed):
        nonlocal live
        live -= freed

    monkeypatch.setattr(_backend, "serving", watched)
    _emulator.record(True)
    model.fit(x, y, 1, 0.1, m, verbose=False)
    assert len(_emulator.launches()) == 1 + 3 + 1 + 2 + 3
    _emulator.record(False)
    deltas = max(a + b for a, b in itertools.pairwise(sizes[1:]))  # above and below a layer
    assert peak == 8 * m * (kept * sum(sizes[1:-1]) + sizes[-1] + deltas)
    history = model.fit(x, y, 1, 0.1, m, verbose=False)
    # The batch, the order of 4 samples, the step, and two places for losses.
    assert history.graph_bytes == 8 * (m * 5 + m * 3 + m + 1 + 2)


def test_a_stale_graph_raises():
    """Replays write parameters behind autograd's back."""
    model, (x, y) = network("mse"), data("mse")
    w = model.layers[-1].w.requires_grad_()
    loss = (w * w).sum()
    fit(model, x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.backends("emulator")
def test_launches_may_overlap():
    """Every thread of every kernel waits for the launch before: the emulator would say who does not."""
    controls = _emulator.current().controls
    model, (x, y) = network("classes"), data("classes")
    twin = copy.deepcopy(model)
    expected = fit(twin, x, y)
    try:
        controls.scratchcuda_set_overlap(True)
        assert_same_bits(fit(model, x, y), expected)
        ops.sgd_update_([x], [x.clone()], 0.1)
        ops.dense_update_(x.new_ones(1100, 3), x.new_ones(1100, 5), x.new_ones(5, 3), x.new_ones(3), 0.1)
        ops.mse(x.new_ones(9000, 5), x.new_ones(9000, 5))
    finally:
        controls.scratchcuda_set_overlap(False)
