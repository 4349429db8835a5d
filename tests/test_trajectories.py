"""Training agrees with torch.nn at every step, on both paths."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import same
from sklearn.datasets import load_digits
from torch import nn
from trajectories import TOLERANCE, assert_same_trajectory, mlp

from scratchcuda import (
    L1,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Dense,
    Dropout,
    Flatten,
    Huber,
    InputLayer,
    Linear,
    Model,
    ReLU,
    Sigmoid,
    SimpleLinearRegression,
    Softmax,
    Tanh,
)
from scratchcuda.compare import WORKLOADS
from scratchcuda.engine.activations import layer_of
from scratchcuda.ops import _backend
from scratchcuda.ops._entries import ENTRIES

ACTIVATIONS = {name: partial(layer_of, entry.usual) for name, entry in ENTRIES.items()}


def data(samples, features, outputs, targets="values", dtype=torch.float64):
    x = torch.randn(samples, features, dtype=dtype)
    y = {
        "values": lambda: torch.randn(samples, outputs, dtype=dtype),
        "classes": lambda: torch.randint(outputs, (samples,)),
        "probabilities": lambda: torch.rand(samples, outputs, dtype=dtype).softmax(1),
        "parts": lambda: torch.rand(samples, outputs, dtype=dtype),
        "labels": lambda: torch.randint(2, (samples, outputs)).to(dtype),
    }[targets]()
    return x, y


def loss_of(targets):
    return MSE() if targets == "values" else CrossEntropy()


#: All activations with one loss, and all targets with two of them.
PAIRS = [(name, "values") for name in ACTIVATIONS]
PAIRS += [(name, targets) for name in ("relu", "softmax") for targets in ("classes", "probabilities")]


@pytest.mark.parametrize(("activation", "targets"), PAIRS)
def test_activations_and_losses(activation, targets, path, dtype):
    x, y = data(40, 6, 4, targets, dtype)
    # A softmax divides its gradients by its width: a larger step moves everything far enough to see.
    lr = 1.0 if activation == "softmax" else 0.2
    model = mlp([6, 16, 9, 4], ACTIVATIONS[activation], loss_f=loss_of(targets), dtype=dtype)
    assert_same_trajectory(model, x, y, path, lr=lr)


WEIGHTS = [0.5, 2.0, 0.0, 1.25]
SMOOTHED = {"class_weights": WEIGHTS, "label_smoothing": 0.2}


@pytest.mark.parametrize(("links", "dtype"), [(False, torch.float32), (True, torch.float64)], ids=str)
@pytest.mark.parametrize(
    ("loss_f", "targets", "has_weights"),
    [
        (L1(), "values", False),
        (Huber(), "values", False),
        (Huber(0.25), "values", False),
        (BinaryCrossEntropy(), "labels", False),
        (BinaryCrossEntropy(), "parts", False),
        (CrossEntropy(class_weights=WEIGHTS), "classes", False),
        (CrossEntropy(label_smoothing=0.2), "classes", False),
        (CrossEntropy(**SMOOTHED), "probabilities", False),
        (CrossEntropy(), "probabilities", True),
        (CrossEntropy(), "classes", True),
        (CrossEntropy(**SMOOTHED), "classes", True),
    ],
    ids=str,
)
def test_losses_and_their_weights(loss_f, targets, has_weights, links, path, dtype):
    """Of scores, and after the activation that belongs to the loss."""
    x, y = data(40, 6, 4, targets, dtype)
    last = ACTIVATIONS[loss_f.activation] if links and hasattr(loss_f, "activation") else Sigmoid if links else Linear
    model, weights = mlp([6, 9, 4], Tanh, last, loss_f, dtype), torch.rand(40, dtype=dtype) if has_weights else None
    options = {"epochs": 2, "lr": 0.5, "shuffle": links}
    twin = assert_same_trajectory(model, x, y, path, sample_weight=weights, **options)
    expected = pytest.approx(twin.loss(x, y, weights).item(), rel=TOLERANCE[dtype])
    assert model.evaluate(x, y, weights) == expected
    history = model.fit(x, y, 1, 0.0, 7, x, y, plan=path != "general", verbose=False, sample_weight=weights)
    assert history.valid_loss == [pytest.approx(twin.loss(x, y).item(), rel=TOLERANCE[dtype])]


@pytest.mark.parametrize(("last", "targets"), [pair for pair in PAIRS if pair[0] != "none"])
def test_last_activations(last, targets, path, dtype):
    x, y = data(30, 5, 4, targets, dtype)
    model = mlp([5, 8, 4], Tanh, ACTIVATIONS[last], loss_of(targets), dtype)
    # All outputs of a last ReLU may be 0 for a small batch, which then has no gradient.
    assert_same_trajectory(model, x, y, path, lr=1.0, alive=last != "relu")


@pytest.mark.parametrize("frozen", [(), (1,)], ids=str)
def test_without_bias(frozen, path, dtype):
    """In a first, a middle and a last layer; beside such with one, some of them frozen."""
    x, y = data(24, 5, 3, dtype=dtype)
    layers = [Dense(7, "tanh", bias=False), Dense(6, "silu"), Dense(6, "softmax", bias=False), Dense(3, bias=False)]
    model = Model([InputLayer(5), *layers], dtype=dtype, init="torch")
    for i in frozen:
        model.layers[i].frozen = ("w",)
    assert list(model.state_dict()) == ["layers.0.w", "layers.1.w", "layers.1.b", "layers.2.w", "layers.3.w"]
    assert_same_trajectory(model, x, y, path, weight_decay=0.1, lr=0.5)


@pytest.mark.parametrize(
    "layers",
    [
        [Dropout(0.2), Dense(16, "tanh"), Dropout(), Dense(3)],
        [Dense(16, "gelu"), Dropout(0.3), Dense(8), Dropout(0.1), Tanh(), Dense(3, "softmax")],
        [Dropout(0), Dropout(0.1), ReLU(), Dense(3), Dropout(0.2)],
        [Dense(8), Dropout(1), Dense(3)],
    ],
    ids=repr,
)
@pytest.mark.parametrize("targets", ["values", "classes"])
def test_dropout(layers, targets, path, dtype):
    """From the same seed it draws what torch.nn.Dropout draws; validation has none."""
    x, y = data(24, 5, 3, targets, dtype)
    model = Model([InputLayer(5), *layers], loss_of(targets), dtype=dtype, init="torch")
    drops_all = any(isinstance(layer, Dropout) and layer.p == 1 for layer in layers)
    twin = assert_same_trajectory(model, x, y, path, lr=0.5, alive=not drops_all)
    twin.net.eval()
    expected = pytest.approx(twin.loss(x, y).item(), rel=TOLERANCE[dtype])
    history = model.fit(x, y, 1, 0.0, 7, x, y, plan=path != "general", verbose=False)
    assert (history.valid_loss, model.evaluate(x, y)) == ([expected], expected)


def test_images(path, dtype):
    """Flattened at the door; a later Flatten is the identity."""
    x, y = torch.randn(24, 2, 3, 4, dtype=dtype), torch.randn(24, 3, dtype=dtype)
    model = Model([InputLayer((2, 3, 4)), Flatten(), Dense(8, "tanh"), Flatten(), Dense(3)], dtype=dtype, init="torch")
    assert_same_trajectory(model, x, y, path)
    same(model(x), model.predict(x.view(24, 24)))


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_depths_and_weight_decay(depth, weight_decay, path, dtype):
    x, y = data(24, 5, 3, dtype=dtype)
    model = mlp([5, *[7] * (depth - 1), 3], Tanh, dtype=dtype)
    assert_same_trajectory(model, x, y, path, weight_decay=weight_decay)


@pytest.mark.parametrize("batch_size", [1, 2, 8, 9, 20, 23, 24, 100])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batch_sizes(batch_size, shuffle, path, dtype):
    x, y = data(24, 5, 3, dtype=dtype)
    assert_same_trajectory(
        mlp([5, 7, 3], Tanh, dtype=dtype), x, y, path, batch_size=batch_size, shuffle=shuffle, lr=0.05
    )


@pytest.mark.parametrize(("samples", "features", "units", "outputs"), [(1, 1, 1, 1), (9, 1, 4, 1), (9, 4, 1, 2)])
def test_ones(samples, features, units, outputs, path, dtype):
    x, y = data(samples, features, outputs, dtype=dtype)
    assert_same_trajectory(mlp([features, units, outputs], Tanh, dtype=dtype), x, y, path, batch_size=4)


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(7), Tanh(), Dense(3)],
        [Tanh(), Dense(7, Sigmoid()), Dense(3)],
        [Linear(), Sigmoid(), Tanh(), Dense(7, ReLU()), Softmax(), Linear(), Tanh(), Dense(3), Linear()],
        [Dense(7, Tanh()), Dense(3), Softmax()],
        [Dense(3, Sigmoid()), Tanh(), Softmax()],
    ],
    ids=repr,
)
@pytest.mark.parametrize("targets", ["values", "classes"])
def test_activations_as_layers(layers, targets, path, dtype):
    x, y = data(20, 5, 3, targets, dtype)
    model = Model([InputLayer(5), *layers], loss_of(targets), dtype=dtype)
    assert_same_trajectory(model, x, y, path, lr=0.5)


@pytest.mark.parametrize("batch_size", [1, 8, 9, 50])
@pytest.mark.parametrize(("weight_decay", "shuffle"), [(0.0, False), (0.1, True)])
def test_regression(batch_size, weight_decay, shuffle, path, dtype):
    x = torch.randn(24, dtype=dtype)
    y = 2 * x - 1 + torch.randn(24, dtype=dtype)
    options = {"batch_size": batch_size, "weight_decay": weight_decay, "shuffle": shuffle, "lr": 0.05}
    assert_same_trajectory(SimpleLinearRegression(dtype=dtype), x, y, path, **options)


def test_a_decay_below_the_rounding_unit(path):
    """In float32, 1 - lr * weight_decay is 1 here; joined to the gradient, the decay still shows."""
    x, y = 0.02 * torch.randn(1000, 50), torch.randn(1000, 1)
    start = mlp([50, 1], Tanh, dtype=torch.float32).state_dict()
    norms = []
    for weight_decay in (0.0, 2.5e-5):
        model = mlp([50, 1], Tanh, dtype=torch.float32)
        model.load_state_dict(start)
        model.fit(x, y, 1, 1e-3, 1, weight_decay=weight_decay, plan=path != "general", verbose=False)
        norms.append(model.layers[0].w.double().norm().item())
    # 1,000 steps; the rounding that the decay rides on is some 2 % of it, its loss would be all of it
    assert 1 - norms[1] / norms[0] == pytest.approx(1000 * 1e-3 * 2.5e-5, rel=0.1)


@hypothesis.given(st.data())
def test_any_network(data_):
    """Sizes, depths, losses, batches and options as they come."""
    draw = data_.draw
    sizes = draw(st.lists(st.integers(1, 20), min_size=2, max_size=5))
    targets = draw(st.sampled_from(["values", "classes", "probabilities"]))
    torch.manual_seed(draw(st.integers(0, 9)))
    x, y = data(draw(st.integers(1, 40)), sizes[0], sizes[-1], targets)
    model = mlp(sizes, *(ACTIVATIONS[draw(st.sampled_from(list(ACTIVATIONS)))] for _ in range(2)), loss_of(targets))
    for layer in model.layers[1:]:  # torch.nn's backward takes a network that has something to train
        layer.frozen = draw(st.sampled_from([(), (), "w", "b", "wb"]).map(tuple))
    assert_same_trajectory(
        model,
        x,
        y,
        draw(st.sampled_from(["tensor plan" if _backend.current == "tensor" else "graph plan", "general"])),
        epochs=2,
        lr=0.01,  # at 0.1 a deep linear network diverges on single samples, and amplifies rounding
        batch_size=draw(st.integers(1, 45)),
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
        shuffle=draw(st.booleans()),
        alive=False,  # a softmax of one unit and a dead ReLU have no gradient
    )


def test_digits(path, dtype):
    """The classifier of handwritten digits: every gradient lives at every step."""
    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    model = mlp([64, 128, 64, 10], ReLU, loss_f=CrossEntropy(), dtype=dtype)
    assert_same_trajectory(model, x[:640].to(dtype) / 16, y[:640], path, epochs=2, batch_size=100)


@pytest.mark.parametrize("standardised", [True, False])
def test_seed_mlp(standardised, path, dtype):
    """The documents' network: with their targets all ReLU units die early, with standardised ones none does."""
    work = WORKLOADS["mlp"]
    x, y = (torch.as_tensor(array) for array in work.data(0)[:2])
    if standardised:
        y = (y - y.mean(0)) / y.std(0)
    x, y = x.to(dtype), y.to(dtype)
    model = Model.from_torch(nn.Sequential(*work.modules()).to(dtype))
    # Little of the gradient passes the softmax: the first layers move by some 1e-4, still far beyond the tolerance.
    options = {"lr": 0.1, "moved": 1e-4} if standardised else {"lr": work.lr, "alive": False}
    assert_same_trajectory(model, x, y, path, epochs=8, batch_size=333, **options)


def test_bfloat16(path):
    path = "general" if path == "tensor plan" else path
    x, y = data(20, 5, 3, dtype=torch.bfloat16)
    model = mlp([5, 7, 3], Tanh, dtype=torch.bfloat16)
    # bfloat16 has 8 bits: a handful of roundings are 2e-2
    assert_same_trajectory(model, x, y, path, epochs=1, tolerance=5e-2)
