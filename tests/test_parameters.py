"""Frozen and tied parameters train as torch.nn's, whatever path serves, and keep their places wherever they go."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from oracle import same
from torch import nn
from trajectories import TOLERANCE, assert_same_trajectory, documents_backward, mlp

import scratchcuda as sc
from scratchcuda import CrossEntropy, Dense, InputLayer, Model, Tanh

TOLERANCE = TOLERANCE[torch.float64]


def data(samples=20, features=5, outputs=3, dtype=torch.float64):
    return torch.randn(samples, features, dtype=dtype), torch.randn(samples, outputs, dtype=dtype)


#: What is frozen, of each of three layers.
FROZEN = ["w--", "-w-", "--w", "b--", "-b-", "--b", "ww-", "wb-", "*--", "-*-", "--*", "**-", "-**", "*-*", "*wb"]


def frozen(model, which):
    for layer, names in zip(model.layers, which, strict=True):
        layer.is_trainable = names != "*"
        layer.frozen = names if isinstance(names, set) else set(names) & {"w", "b"}
    return model


@pytest.mark.parametrize("which", FROZEN)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_frozen_parameters(which, weight_decay, path):
    model = frozen(mlp([5, 7, 6, 3], Tanh), which)
    assert_same_trajectory(model, *data(), path, weight_decay=weight_decay)


@pytest.mark.parametrize("which", ["*--", "-w-", "**b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_frozen_classifier(which, dtype, path):
    model = frozen(mlp([5, 7, 6, 3], Tanh, loss_f=CrossEntropy(), dtype=dtype), which)
    assert_same_trajectory(model, data(dtype=dtype)[0], torch.arange(20) % 3, path, lr=0.5)


def test_all_frozen_and_freezing_between_fits(path):
    x, y = data()
    model = mlp([5, 7, 6, 3], Tanh)
    options = {"plan": path != "general", "verbose": False}
    for which in ("***", "-w-", "*--", "---", "***"):  # a plan that is kept must not serve another choice
        before = copy.deepcopy(frozen(model, which))
        history = model.fit(x, y, 2, 0.1, 7, x, y, **options)
        assert (history.path, len(history.valid_loss)) == (path, 2)
        for slot, p in zip(model._slots(), before.state_dict().values(), strict=True):
            assert torch.equal(slot.tensor, p) == (slot.attribute not in slot.owner.trained)
    assert model.layers[1].a.shape == (6, 6)


class Rebinding(Dense):
    """Assigns anew what it updates, its input's gradient by weights that it has updated."""

    def backward(self, delta, lr):
        delta = self.act_f.backward(delta, self.a)
        dx, self.w, self.b = delta @ self.w.T, self.w - lr * self.input.T @ delta, self.b - lr * delta.sum(0)
        return dx


def patched(monkeypatch):
    monkeypatch.setattr(Dense, "backward", documents_backward)
    return [Dense(5, Tanh()) for _ in range(3)]


#: Layers of three kinds: ours, ours with the documents' backward, and somebody's own.
KINDS = {
    "ours": lambda monkeypatch: [Dense(5, Tanh()) for _ in range(3)],
    "patched": patched,
    "own": lambda monkeypatch: [Rebinding(5, Tanh()) for _ in range(3)],
    "mixed": lambda monkeypatch: [Dense(5, Tanh()), Rebinding(5, Tanh()), Dense(5, Tanh())],
}
#: How layers share parameters with earlier ones, as (layer, name, earlier layer, view of its parameter of that name).
TIES = {
    "one pair": [(1, "w", 0, lambda p: p)],
    "three": [(1, "w", 0, lambda p: p), (2, "w", 1, lambda p: p)],
    "all": [(i, name, 0, lambda p: p) for i in (1, 2) for name in "wb"],
    "biases": [(2, "b", 0, lambda p: p)],
    "crosswise": [(2, "w", 0, lambda p: p), (1, "b", 0, lambda p: p)],
    "transposed": [(2, "w", 1, lambda p: p.T)],
    "in part": [(3, "w", 0, lambda p: p[:, :3]), (3, "b", 1, lambda p: p[2:])],
}


def tie(model, ties):
    for i, name, of, view in ties:
        setattr(model.layers[i], name, view(getattr(model.layers[of], name)))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", TIES)
def test_tied_parameters(ties, kind, monkeypatch):
    """Beside autograd, which adds up the gradients of what is used twice; at a rate of 1, where a mix-up shows."""
    model = Model([InputLayer(5), *KINDS[kind](monkeypatch), Dense(3)], dtype=torch.float64)
    leaves = {
        (i, name): getattr(layer, name).mul_(0.5).clone() for i, layer in enumerate(model.layers) for name in "wb"
    }
    views = {(i, name): (of, view) for i, name, of, view in TIES[ties]}
    tie(model, TIES[ties])

    def twin(i, name):
        of, view = views.get((i, name), (None, None))
        return leaves[i, name] if view is None else view(twin(of, name))

    leaves = {key: leaf.requires_grad_() for key, leaf in leaves.items() if key not in views}
    lr, weight_decay = 1.0, 0.1 if kind == "ours" else 0.0
    for x, y in zip(*(values.split(7) for values in data()), strict=True):
        value = x
        for i in range(4):
            value = value @ twin(i, "w") + twin(i, "b")
            value = value if i == 3 else value.tanh()
        loss = nn.functional.mse_loss(value, y)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        history = model.fit(x, y, 1, lr, 7, weight_decay=weight_decay, verbose=False)
        assert history.step_loss == [pytest.approx(loss.item(), rel=TOLERANCE)]
        with torch.no_grad():
            for ((_, name), leaf), grad in zip(leaves.items(), grads, strict=True):
                leaf -= lr * (grad + weight_decay * leaf * (name == "w"))
        for i, name in itertools.product(range(4), "wb"):
            # some dozen roundings of numbers about 1
            torch.testing.assert_close(getattr(model.layers[i], name), twin(i, name), rtol=TOLERANCE, atol=TOLERANCE)


def test_tied_parameters_beside_torch_nn():
    """With its own ties, that a conversion keeps both ways."""
    model = tie(mlp([5, 5, 5, 5, 3], Tanh), TIES["all"])
    assert_same_trajectory(model, *data(), "general", weight_decay=0.1, lr=0.5)


def moves(model):
    return copy.deepcopy(model).to(torch.float32)


def saves(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("there", [copy.deepcopy, moves, saves, lambda model: pickle.loads(pickle.dumps(model))])
def test_ties_and_freezing_last(there, ties):
    model = tie(Model([InputLayer(5), *[Dense(5) for _ in range(3)], Dense(3)], dtype=torch.float64), TIES[ties])
    model.layers[3].frozen = ("b",)
    twin = there(model)
    assert twin.layers[3].trained == ("w",)
    for i, name, of, view in TIES[ties]:
        getattr(twin.layers[of], name).copy_(torch.arange(25).reshape(5, 5) if name == "w" else torch.arange(5))
        same(getattr(twin.layers[i], name), view(getattr(twin.layers[of], name)))
    same(model.to(torch.float32).state_dict(), moves(model).state_dict())


def test_a_frozen_layer_is_in_the_state_dict_and_moves():
    model = frozen(mlp([5, 4, 3], Tanh), "*-").to(torch.float32)
    assert list(model.state_dict()) == ["layers.0.w", "layers.0.b", "layers.1.w", "layers.1.b"]
    assert {p.dtype for p in model.state_dict().values()} == {torch.float32}
    other = mlp([5, 4, 3], Tanh, dtype=torch.float32)
    other.load_state_dict(model.state_dict())
    same(other.state_dict(), model.state_dict())
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model.copy_parameters(net.parameters)
    same(model.layers[0].w, net[0].weight.T.detach())


class Standardised(sc.Layer):
    """Constants, not parameters: torch.nn would have buffers."""

    def construct(self, x):
        self.w, self.b = x.new_full((1, x.shape[1]), 2.0), x.new_zeros(1, x.shape[1])
        return self.forward(x)

    def forward(self, x):
        return (x - self.b) * self.w

    def backward(self, delta, lr):
        return delta * self.w


def test_a_layer_of_constants():
    model = Model([InputLayer(5), Standardised(), Dense(3)], dtype=torch.float64).to(torch.float32)
    assert model.state_dict()["layers.0.w"].dtype == torch.float32
    model.copy_parameters(nn.Linear(5, 3).parameters)
    x, y = data(dtype=torch.float32)
    model.fit(x, y, 1, 0.1, 7, verbose=False)
    same(model.layers[0].w, torch.full((1, 5), 2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_layer_stays_whatever_its_backward_does(kind, monkeypatch):
    model = frozen(Model([InputLayer(5), *KINDS[kind](monkeypatch)], dtype=torch.float64), ["*", "w", "b"])
    before = {name: p.clone() for name, p in model.state_dict().items()}
    x, y = data(outputs=5)
    model.fit(x, y, 2, 0.1, 7, verbose=False)
    model.update(model.__forward__(x), y, 0.1)
    for slot in model._slots():
        assert torch.equal(slot.tensor, before[slot.name]) == (slot.attribute not in slot.owner.trained)


def biased_by_a_weight():
    model = mlp([5, 5, 5], Tanh)
    model.layers[1].b = model.layers[0].w[1]
    return model


def half_tied():
    return tie(frozen(mlp([5, 5, 5], Tanh), "*-"), [(1, "w", 0, lambda p: p.T)])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (half_tied, {}, "layers.1.w shares memory with layers.0.w, which is frozen, expected both or none"),
        (
            lambda: frozen(mlp([5, 5], Tanh), [{"weight"}]),
            {},
            r"frozen is {'weight'}, expected a collection of some of",
        ),
        (lambda: changed(mlp([5, 5], Tanh), "frozen", "w"), {}, "frozen is 'w', expected a collection"),
        (
            lambda: tie(Model([InputLayer(5), Rebinding(5), Dense(5)], dtype=torch.float64), TIES["one pair"]),
            {"weight_decay": 0.1},
            "weight_decay is 0.1, but .* no such argument",
        ),
        (
            biased_by_a_weight,
            {"optimizer": "adam", "weight_decay": 0.1},
            "layers.0.w, which decays, shares memory with layers.1.b, which does not",
        ),
        (
            lambda: tie(Model([InputLayer(5), Decaying(5), Dense(5)], dtype=torch.float64), TIES["one pair"]),
            {"weight_decay": 0.1},
            "weight_decay is 0.1, but layers.0.w is shared, and its layer has methods of its own",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(model, options, message):
    model, (x, y) = model(), data(outputs=5)
    before = {slot.name: slot.tensor.clone() for slot in model._slots()}
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(x, y, 1, 0.1, 7, verbose=False, **options)
    same(model.state_dict(), before)
    assert model.history is None


class Decaying(Dense):
    def backward(self, delta, lr, weight_decay=0.0):
        return super().backward(delta, lr, weight_decay)


def changed(model, name, value):
    setattr(model.layers[0], name, value)
    return model
