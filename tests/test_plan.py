"""Which path serves a fit, and that both give the same numbers."""

import copy
import functools
import math
import os
import pickle
import signal
import threading
import weakref

import pytest
import test_graph_plan
import torch
from oracle import same
from test_graph_plan import CHANGES, network
from trajectories import TOLERANCE, documents_backward, mlp

from scratchcuda import (
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Dense,
    Dropout,
    Flatten,
    Huber,
    InputLayer,
    Losses,
    Model,
    ReLU,
    Sigmoid,
    SimpleLinearRegression,
    Softmax,
    Tanh,
)
from scratchcuda.engine.plans import graph as graph_plan
from scratchcuda.engine.plans import tensor as tensor_plan
from scratchcuda.engine.plans import tensor_steps

TOLERANCE = TOLERANCE[torch.float64]


def data(samples=20, features=5, outputs=3):
    return torch.randn(samples, features, dtype=torch.float64), torch.randn(samples, outputs, dtype=torch.float64)


def fit(model, x, y, **options):
    return model.fit(x, y, 3, 0.1, 6, verbose=False, **options)


#: Everything that a user may patch, and that changes training when its result is negated.
PATCHES = [
    (Tanh, "backward"),
    (Tanh, "__call__"),
    (ReLU, "backward"),
    (Sigmoid, "__call__"),
    (Softmax, "backward"),
    (MSE, "backward"),
    (Dense, "forward"),
    (Dense, "__forward__"),
    (Dense, "backward"),
    (Dropout, "__forward__"),
    (Dropout, "backward"),
    (Flatten, "forward"),
    (Flatten, "backward"),
    (Model, "__forward__"),
    (Model, "update"),
    (CrossEntropy, "backward"),
    (BinaryCrossEntropy, "backward"),
    (Huber, "backward"),
]


@pytest.mark.parametrize(("cls", "name"), PATCHES, ids=lambda value: getattr(value, "__name__", value))
def test_patched_methods_take_effect(cls, name, usual_path, monkeypatch):
    """The documents' way of teaching: a method patched onto our class changes training, on every path."""
    layers = [Dense(8, Tanh()), Flatten(), Dense(8, ReLU()), Dropout(0.2), Dense(8, Sigmoid()), Dense(4, Softmax())]
    model = Model([InputLayer(5), *layers, Dense(3)], cls() if issubclass(cls, Losses) else MSE(), dtype=torch.float64)
    x, y = data()
    y = y.sigmoid()
    start = {key: p.clone() for key, p in model.state_dict().items()}
    torch.manual_seed(1)  # of the noise
    assert fit(model, x, y).path == usual_path
    trained = {key: p.clone() for key, p in model.state_dict().items()}
    original = getattr(cls, name)
    with monkeypatch.context() as patch:
        if name == "update":
            patch.setattr(cls, name, lambda self, y_pred, y_true, lr: original(self, y_pred, y_true, lr / 10))
        else:
            patch.setattr(cls, name, lambda self, *args: -original(self, *args))
        model.load_state_dict(start)
        torch.manual_seed(1)
        history = fit(model, x, y)
        assert history.path == "general"
        assert "methods of its own" in history.reason
        assert any(not torch.allclose(p, trained[key]) for key, p in model.state_dict().items())
    model.load_state_dict(start)
    torch.manual_seed(1)
    assert fit(model, x, y).path == usual_path, "the patch is gone"
    same(model.state_dict(), trained)


@pytest.mark.parametrize("name", ["__call__", "predict"])
def test_patched_predictions_take_effect(name, usual_path, monkeypatch):
    model, (x, y) = mlp([5, 3], Tanh), data()
    assert fit(model, x, y).path == usual_path
    predicted = getattr(Model, name)
    monkeypatch.setattr(Model, name, lambda self, x: -predicted(self, x))
    same(model(x), -model.layers[0].forward(x))
    assert fit(model, x, y).path == "general"


def test_patched_regression_and_losses(usual_path, monkeypatch):
    x, y = torch.randn(20), torch.randn(20)
    regression = SimpleLinearRegression()
    assert regression.fit(x, y, 1, 0.1, 5, verbose=False).path == usual_path
    monkeypatch.setattr(SimpleLinearRegression, "mse_loss", lambda self, y_true, y_pred: 7.0)
    assert regression.fit(x, y, 1, 0.1, 5, verbose=False).loss == [7.0]
    monkeypatch.setattr(MSE, "loss", lambda self, y_pred, y_true: 8.0)
    assert fit(mlp([5, 3], Tanh), *data()).loss == [8.0] * 3


def test_a_method_patched_onto_one_object_takes_effect(usual_path):
    model, x, y = mlp([5, 8, 3], Tanh), *data()
    model.loss_f.loss = lambda y_pred, y_true: 7.0
    history = fit(model, x, y)
    assert (history.path, history.loss) == ("general", [7.0] * 3)
    model.loss_f = MSE()
    assert fit(model, x, y).path == usual_path
    model.layers[0].act_f.backward = lambda delta, a: -delta
    assert fit(model, x, y).path == "general"


def test_subclasses_that_change_nothing_keep_the_plan(usual_path):
    class Net(Model):
        def __init__(self):
            super().__init__([InputLayer(5), Dense(3, Tanh())], dtype=torch.float64)

        def summary(self):
            return repr(self)

    assert fit(Net(), *data()).path == usual_path


def test_the_documents_formulas_agree_with_the_plan(monkeypatch):
    """Patched with the notebooks' own formulas, the general path trains to the same numbers."""
    x, y = data()
    model = Model(
        [InputLayer(5), Dense(8, Tanh()), Dense(8, Softmax()), Dense(8, Sigmoid()), Dense(3)], dtype=torch.float64
    )
    start = {key: p.clone() for key, p in model.state_dict().items()}
    fit(model, x, y)
    planned = {key: p.clone() for key, p in model.state_dict().items()}
    model.load_state_dict(start)

    def tanh(self, z):
        e = torch.exp(-2 * z)
        return (1 - e) / (1 + e)

    def softmax(self, z):
        e = torch.exp(z - z.max(1, keepdim=True)[0])
        return e / e.sum(1, keepdim=True)

    monkeypatch.setattr(Tanh, "__call__", tanh)
    monkeypatch.setattr(Softmax, "__call__", softmax)
    monkeypatch.setattr(Dense, "backward", documents_backward)
    assert fit(model, x, y).path == "general"
    for key, p in model.state_dict().items():
        torch.testing.assert_close(p, planned[key], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("last", "loss_f", "formula"),
    [
        (Softmax, CrossEntropy(class_weights=[1, 2, 3]), lambda self, z: z.exp() / z.exp().sum(1, keepdim=True)),
        (Sigmoid, BinaryCrossEntropy(), lambda self, z: 1 / (1 + torch.exp(-z))),
    ],
)
def test_a_patched_last_activation_keeps_the_loss_on_probabilities(last, loss_f, formula, usual_path, monkeypatch):
    """It carries no scores: loss and gradient are those of the probabilities alone, and train to the same numbers."""
    x, y = data()[0], torch.rand(20, 3, dtype=torch.float64)
    models = [mlp([5, 3], Tanh, last, loss_f) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    planned = fit(models[0], x, y, x_valid=x, y_valid=y)
    monkeypatch.setattr(last, "__call__", formula)
    patched = fit(models[1], x, y, x_valid=x, y_valid=y)
    assert (planned.path, patched.path) == (usual_path, "general")
    assert patched.step_loss + patched.valid_loss == pytest.approx(
        planned.step_loss + planned.valid_loss, rel=TOLERANCE
    )
    torch.testing.assert_close(models[1].layers[0].w, models[0].layers[0].w, rtol=TOLERANCE, atol=TOLERANCE)


def reassign(layer, name, change):
    setattr(layer, name, change(getattr(layer, name)))


@pytest.mark.parametrize(
    "change",
    [torch.clone, lambda p: torch.nn.Parameter(p.clone()), lambda p: torch.stack([p, p], -1)[..., 0]],
    ids=["clone", "Parameter", "strided"],
)
def test_reassigned_parameters_are_trained(change, usual_path):
    model, x, y = mlp([5, 8, 3], Tanh), *data()
    fit(model, x, y)
    for layer in model.layers:
        reassign(layer, "w", change)
        reassign(layer, "b", change)
    own = model.layers[0].w
    before = own.detach().clone()
    assert fit(model, x, y).path == usual_path
    assert model.layers[0].w is own
    assert not torch.equal(own, before)


def test_what_no_plan_can_train_takes_the_general_path(usual_path):
    x, y = data()
    tied = mlp([5, 5, 5, 3], Tanh)
    tied.layers[1].w = tied.layers[0].w
    untied = mlp([5, 5, 5, 3], Tanh)
    assert fit(tied, x, y).reason == "parameters share memory"
    sixteen_bits = fit(mlp([5, 3], Tanh, dtype=torch.bfloat16), x.bfloat16(), y.bfloat16())
    assert sixteen_bits.path == ("general" if usual_path == "tensor plan" else usual_path)
    assert fit(Model([InputLayer(3), Tanh()], dtype=torch.float64), y, y).reason == "no Dense layer to train"
    assert fit(untied, x, y).path == usual_path
    assert fit(untied, x, y, plan=False).reason == "asked for"


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("batch_size", [6, 20])
def test_a_masked_class_leaves_the_losses_finite(batch_size, weights, path):
    x, classes = data()[0], torch.arange(20) % 2
    model = mlp([5, 8, 3], Tanh, loss_f=CrossEntropy(class_weights=weights))
    model.layers[1].b[2] = -math.inf
    loss_f = torch.nn.CrossEntropyLoss(weights and x.new_tensor(weights))
    expected = loss_f(model.predict(x[:batch_size]), classes[:batch_size]).item()
    options = {"x_valid": x, "y_valid": classes, "plan": path != "general", "verbose": False}
    history = model.fit(x, classes, 2, 0.1, batch_size, **options)
    assert history.step_loss[0] == pytest.approx(expected, rel=TOLERANCE)
    assert all(map(math.isfinite, history.valid_loss))


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda signum, frame: None], ids=["ignored", "handled"])
def test_an_ignored_or_handled_signal_ends_nothing(handler, path, monkeypatch):
    previous = signal.signal(signal.SIGINT, handler)
    try:
        with monkeypatch.context() as patch:
            model = interrupted(patch, path, at=2)
            history = fit(model, *data(), plan=path != "general")
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(history.loss) == 3
    assert len(history.step_loss) == 12


def test_a_second_ctrl_c_comes_through_at_once(monkeypatch):
    def hangs(*args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(Dense, "backward", hangs)
    with pytest.raises(KeyboardInterrupt):
        fit(mlp([5, 8, 3], Tanh), *data())


@pytest.mark.backends("tensor")
@pytest.mark.parametrize("samples", [1, 5, 70, 1000])
def test_validation_in_chunks(samples, monkeypatch):
    monkeypatch.setattr(tensor_plan, "CHUNK_BYTES", 4096)  # chunks of 64 samples
    classes, weights = torch.arange(samples) % 3, [1, 2, 5]
    losses = (MSE(), data(samples)[1]), (CrossEntropy(), classes), (CrossEntropy(class_weights=weights), classes)
    for loss_f, y_valid in losses:
        (x, y), x_valid = data(), data(samples)[0]
        model = mlp([5, 8, 3], Sigmoid, loss_f=loss_f)
        y = y if isinstance(loss_f, MSE) else torch.arange(20) % 3
        history = fit(model, x, y, x_valid=x_valid, y_valid=y_valid)
        assert history.path == "tensor plan"
        assert len(history.loss) == len(history.valid_loss) == 3
        assert history.valid_loss[-1] == pytest.approx(model.evaluate(x_valid, y_valid), rel=TOLERANCE)


def test_non_contiguous_data_and_gradients_of_the_caller():
    x, y = data(40)
    contiguous, strided = mlp([5, 8, 3], Tanh), mlp([5, 8, 3], Tanh)
    strided.load_state_dict(contiguous.state_dict())
    fit(contiguous, x[::2].clone(), y[::2].clone())
    fit(strided, x.T.contiguous().T[::2].requires_grad_(), y[::2])
    same([layer.w for layer in contiguous.layers], [layer.w for layer in strided.layers])
    assert not strided.layers[0].w.requires_grad


#: Before the next fit. Unlike the graph plan, what the tensor plan has bound knows no data, and serves other data too.
CHANGES = CHANGES | {
    "frozen": lambda model, x, y: [setattr(model.layers[1], "frozen", ("w",)), {}][-1],
    "a parameter in another's place": lambda model, x, y: [model.layers[2].w.t_(), {}][-1],
    "fewer samples": lambda model, x, y: {"x": x[:9], "y": y[:9]},
    "one batch": lambda model, x, y: {"batch_size": len(y)},
}
ANEW = {"weight_decay", "a parameter elsewhere", "dtype", "an activation", "another fusion", "the loss", "frozen"}
ANEW |= {"class weights", "sample weights"}  # of another loss
ANEW |= {"a parameter in another's place", "a probability"}


@pytest.mark.backends("tensor")
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_fit_has_bound_serves_the_next_until_that_is_another(change):
    model, (x, y) = network("mse"), test_graph_plan.data("mse")
    options = {"weight_decay": 0.01, "x_valid": x, "y_valid": y, "verbose": False}
    model.fit(x, y, 2, 0.1, 7, **options)
    kept, shown = model._plan, [layer.a for layer in model.layers]
    before = [a.clone() for a in shown]
    options |= {"x": x, "y": y, "lr": 0.1, "batch_size": 7} | CHANGES[change](model, x, y)
    x, y, lr, batch_size = (options.pop(name) for name in ("x", "y", "lr", "batch_size"))
    options |= {"x_valid": x, "y_valid": y} if options["x_valid"] is not None else {}
    twin = copy.deepcopy(model)
    histories = []
    for m in (model, twin):
        torch.manual_seed(2)  # of the noise
        histories.append(m.fit(x, y, 2, lr, batch_size, plan=m is model, **options))
    assert [history.path for history in histories] == ["tensor plan", "general"]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if model.dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    for name in ("step_loss", "valid_loss"):  # other sums, a few dozen roundings; and below
        assert getattr(histories[0], name) == pytest.approx(getattr(histories[1], name), rel=tolerance["rtol"])
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
    for ours, theirs in zip(model.layers, twin.layers, strict=True):
        torch.testing.assert_close(ours.a, theirs.a, **tolerance)
    assert (model._plan is kept) == (change not in ANEW)
    same(shown, before)


@pytest.mark.backends("tensor")
def test_what_is_kept_between_fits(monkeypatch):
    (x, y), model = data(), mlp([5, 8, 3], Tanh)
    fit(model, x, y)
    alive = weakref.ref(x)
    a = model.layers[0].a.clone()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._plan is None
        same(twin.layers[0].a, a)
    model.layers[0].w += 1
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(torch, "randperm", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(model, x, y, shuffle=True)
    same(model.state_dict(), before)  # not as the last fit has left them
    for m in range(1, 12):  # batches of more sizes than are kept
        model.fit(x[:m], y[:m], 1, 0.1, m, verbose=False)
    assert len(model._plan.steps) == tensor_plan.KEPT_SIZES
    del x, y
    assert alive() is None


@pytest.mark.backends("tensor")
def test_a_fit_within_a_fit(monkeypatch):
    """By a handler of signals, say: each has a plan of its own."""
    (x, y), model, twin = data(), mlp([5, 8, 3], Tanh), mlp([5, 8, 3], Tanh)
    twin.load_state_dict(model.state_dict())
    fit(model, x, y)
    fit(twin, x, y)
    run, within = tensor_steps.Step.run, []

    def runs(self, *batch):
        run(self, *batch)
        if not within:
            within.append(True)
            fit(model, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_steps.Step, "run", runs)
        fit(model, x, y)
    fit(twin, x, y)
    same(model.state_dict(), twin.state_dict())  # the outer fit ends last


def test_expanded_targets():
    x, y = data()
    model = mlp([5, 8, 3], Tanh)
    assert fit(model, x, y[:1, :1].expand(20, 3)).loss[-1] > 0


def test_the_same_input_gives_the_same_bits(path):
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        model, (x, y) = mlp([5, 16, 3], Tanh), data(50)
        fit(model, x, y, shuffle=True, plan=path != "general")
        runs.append(model.state_dict())
    same(*runs)


def interrupted(monkeypatch, path, at):
    """A model whose fit gets Ctrl-C in the middle of step ``at``."""
    count = 0
    owner, name, calls_a_step = {
        "tensor plan": (tensor_steps.Step, "run", 1),
        "graph plan": (graph_plan.Captured, "run", 1),
        "general": (Dense, "backward", 2),
    }[path]
    original = getattr(owner, name)

    @functools.wraps(original)
    def run(*args, **options):
        nonlocal count
        count += "validation" not in args
        if count == at * calls_a_step:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, run)
    return mlp([5, 8, 3], Tanh)


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """As in a terminal; a process that a shell has put into the background begins without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at", [1, 4, 5, 12])
def test_ctrl_c_leaves_the_last_finished_step(at, path, monkeypatch):
    x, y = data()  # batches of 6: four steps an epoch
    with monkeypatch.context() as patch:
        model = interrupted(patch, path, at)
        twin = mlp([5, 8, 3], Tanh)
        twin.load_state_dict(model.state_dict())
        with pytest.raises(KeyboardInterrupt):
            fit(model, x, y, x_valid=x, y_valid=y, plan=path != "general")
    assert model.history.path == path
    assert len(model.history.step_loss) == at
    assert len(model.history.loss) == (at - 1) // 4
    steps = [(x[i : i + 6], y[i : i + 6]) for _ in range(3) for i in range(0, 20, 6)]
    for x_batch, y_batch in steps[:at]:
        twin.fit(x_batch, y_batch, 1, 0.1, 6, verbose=False)
    for ours, expected in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_from_outside_and_fits_in_threads():
    x, y = data()
    model = mlp([5, 8, 3], Tanh)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, 10**9, 0.1, 6, verbose=False)
    assert model.history.step_loss
    thread = threading.Thread(target=fit, args=(model, x, y))
    thread.start()
    thread.join()
    assert len(model.history.loss) == 3
