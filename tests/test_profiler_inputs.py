"""What can be profiled: modules that keep things, their inputs and outputs, and what is refused in a sentence."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from oracle import same
from torch import nn

import scratchcuda
from scratchcuda import Dense, InputLayer, Model
from scratchcuda.nn.conversion import TORCHS
from scratchcuda.profiler import ceilings, profile, race
from scratchcuda.profiler.clocks import HostClock
from scratchcuda.profiler.costs import tensors_of
from scratchcuda.profiler.owned import owned
from scratchcuda.profiler.record import Ranges, Recorder, copied
from scratchcuda.profiler.subjects import ModuleSubject

pytestmark = pytest.mark.backends("tensor")
LIMITS = ceilings.Ceilings("a device", {}, 1e9, dict.fromkeys(ceilings.DTYPES, 1e9), 1e-3)
CLOCK = HostClock(samples=2, least=1e-5, flushed=1 << 10)
SGD = partial(torch.optim.SGD, lr=0.1)
X, Y = torch.randn(4, 6), torch.randn(4, 3)
MSE = nn.MSELoss()
profiled = partial(profile, compile=False, clock=CLOCK, limits=LIMITS, samples=2)


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


@dataclass
class Outputs:
    hidden: torch.Tensor
    logits: torch.Tensor


class Calls(nn.Module):
    """A Linear, and a function of it and the inputs."""

    def __init__(self, function=lambda layer, x: layer(x), **kept):
        super().__init__()
        self.layer, self.function = nn.Linear(6, 3), function
        vars(self).update(kept)

    def forward(self, *args, **kwargs):
        return self.function(self.layer, *args, **kwargs)


def recorded(net, inputs, targets=None, loss=None):
    with Recorder(Ranges(), torch.device("cpu")) as recorder:
        ModuleSubject(net, inputs, targets, loss, SGD).show(recorder.ranges)
    return recorder


def products(recorder):
    """FLOPs of all matrix products of a step."""
    return sum(count * recorder.calls[kind].cost.products for (*_, kind), count in recorder.places.items())


def uncounted(recorder):
    return {call.name for call in recorder.calls.values() if not call.cost.counted}


RECURRENT = {
    "lstm": partial(nn.LSTM, 5, 7, 2, bidirectional=True),
    "lstm without bias": partial(nn.LSTM, 5, 7, bias=False, batch_first=True),
    "projected": partial(nn.LSTM, 5, 7, 2, proj_size=3),
    "gru": partial(nn.GRU, 5, 7, 2, bidirectional=True),
    "rnn": partial(nn.RNN, 5, 7),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # oneDNN has no LSTM of float64
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_by_hand(name, dtype):
    net = RECURRENT[name]().to(dtype)
    x = torch.randn(3, 3, 5, dtype=dtype, requires_grad=True)  # 3 steps of 3 samples
    sizes = [net.proj_size or 7, 7] if isinstance(net, nn.LSTM) else [7]
    directed = net.num_layers * (1 + net.bidirectional)
    states = [torch.zeros(directed, 3, size, dtype=dtype, requires_grad=True) for size in sizes]
    recorder = recorded(net, (x, tuple(states) if len(states) > 1 else states[0]))
    weights = sum(weight.numel() for weight in net.parameters() if weight.dim() == 2)
    assert products(recorder) == 3 * 2 * (3 * 3) * weights  # the forward, and two gradients
    assert not uncounted(recorder)


def test_bilinear_by_hand():
    batch, i, j, out = 4, 5, 7, 3
    x, z = torch.randn(batch, i, requires_grad=True), torch.randn(batch, j, requires_grad=True)
    found = sorted(call.cost.products for call in recorded(nn.Bilinear(i, j, out), (x, z)).calls.values())
    # the large product has all four sizes, the small one those that are left
    assert found[-4:] == sorted(2 * batch * (out * i * j + n) for n in (out * j, out * j, i * j, out * i))


COMMON = {
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.GroupNorm(2, 4),
            nn.Conv2d(4, 4, 2, groups=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        torch.randn(2, 2, 9, 9),
        torch.tensor([0, 1]),
    ),
    "transformer": lambda: (
        nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Dropout()),
        torch.randint(9, (2, 5)),
        torch.randint(5, (2, 8)),
    ),
}


@pytest.mark.parametrize("name", COMMON)
def test_common_networks_are_counted_wholly(name):
    assert not uncounted(recorded(*COMMON[name](), nn.CrossEntropyLoss()))


def test_what_is_not_counted_is_named():
    found = profiled(nn.Sequential(nn.Linear(6, 4), nn.GLU()), X)
    assert found.notices == ["FLOPs are not counted of, and shown as 0: glu, glu_backward"]


def test_inference_mode_hides_no_op():
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            counts.append(products(recorded(nn.Linear(6, 3), X)))
    assert counts == [2 * 4 * 6 * 3] * 2


ACTIVATION = nn.Linear(6, 3)(X)
KEPT = {
    "plain": ACTIVATION,
    "part": ACTIVATION[0, :2],
    "list": [ACTIVATION, ACTIVATION],
    "dict of tuples": {"a": (ACTIVATION, 1)},
    "dataclass": Outputs(ACTIVATION, ACTIVATION),
    "sparse": ACTIVATION.to_sparse(),
}


@pytest.mark.parametrize("name", KEPT)
def test_activations_may_be_kept(name):
    class Loss(nn.Module):
        def forward(self, outputs, targets):
            self.kept = (outputs - targets).square().mean()
            return self.kept

    net, loss = nn.Sequential(Calls(kept=KEPT[name]), nn.Tanh()), Loss()
    loss(net(X), Y)
    recorded(net, X, Y, loss)
    for copy, given in zip(*(tensors_of(vars(of)["kept"]) for of in (owned(net, "model")[0], net[0])), strict=True):
        if given.layout is torch.strided:
            same(copy, given, check_stride=True)
            assert copy.is_leaf
            assert copy.data_ptr() != given.data_ptr()
    assert net[0].kept is KEPT[name]
    assert loss.kept.grad_fn


def test_a_model_of_ours_may_keep_an_activation():
    model = Model([InputLayer(6), Dense(3)])
    model.layers[-1].kept = ACTIVATION
    assert profiled(model, X, Y).steps["this"].ratio


def test_weights_by_the_old_weight_norm():
    with pytest.warns(FutureWarning):
        net = nn.utils.weight_norm(nn.Linear(6, 3))
    net(X)
    recorded(net, X)


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"model": nn.Sequential(nn.Tanh(), Calls(kept=[1, LOCK]))}, r"model\.1\.kept\[1\] is a lock"),
        ({"model": Calls(up=SimpleNamespace(), files=iter("ab"), kept=(i for i in X))}, r"model\.kept is a generator"),
        ({"loss": Calls(kept={"a": LOCK})}, r"loss\.kept\['a'\] is a lock"),
        ({"inputs": (X, LOCK)}, r"inputs\[1\] is a lock"),
        ({"targets": SimpleNamespace(y=LOCK)}, r"targets\.y is a lock"),
    ],
)
def test_what_has_no_copy_is_named(given, where):
    given = {"model": Calls(), "inputs": X, "targets": Y, "loss": MSE} | given
    model = given["model"]
    if hasattr(model, "up"):
        model.up.back = model  # round in a circle
    with pytest.raises(TypeError, match=f"{where}, expected what copy.deepcopy can copy: cannot pickle"):
        profiled(**given)


class Needs(torch.optim.Optimizer):
    """Its step needs a closure."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure):
        pass


NET = nn.Linear(6, 3)
REFUSED = {
    "no tensor": ({"model": Calls(lambda layer, x: 3.0)}, TypeError, "model returns float, expected a floating-point"),
    "nothing": ({"model": Calls(lambda layer, x: None)}, TypeError, "model returns None, expected"),
    "classes": ({"model": Calls(lambda layer, x: layer(x).argmax(1))}, TypeError, r"shape \(4,\) and torch.int64"),
    "no gradient": ({"model": Calls(lambda layer, x: layer(x).detach())}, ValueError, "model returns outputs without"),
    "loss float": ({"loss": lambda out, y: MSE(out, y).item()}, TypeError, "loss returns float, expected a tensor of"),
    "loss None": ({"loss": lambda out, y: None}, TypeError, "loss returns None, expected"),
    "loss of rows": ({"loss": nn.MSELoss(reduction="none")}, TypeError, r"loss returns a tensor of shape \(4, 3\)"),
    "loss integer": ({"loss": lambda out, y: (out > y).sum()}, TypeError, "loss returns .* torch.int64, expected"),
    "loss detached": ({"loss": lambda out, y: MSE(out, y).detach()}, ValueError, "loss returns a tensor without a gr"),
    "loss of weights": (
        {"loss": lambda out, y: MSE(out, y) + NET.weight.square().sum()},
        ValueError,
        "loss takes parameters of the model itself",
    ),
    "loss class": ({"loss": nn.MSELoss}, TypeError, "loss is <class .*MSELoss'>, expected a function"),
    "loss name": ({"loss": "mse"}, TypeError, "loss is 'mse', expected a function"),
    "loss as targets": ({"targets": MSE}, TypeError, r"targets is MSELoss\(\), expected data"),
    "LBFGS": ({"optimizer": torch.optim.LBFGS}, TypeError, "optimizer is LBFGS, expected one whose step needs no"),
    "closure": ({"optimizer": Needs}, TypeError, "optimizer is Needs, expected one whose step needs no closure"),
    "another's": ({"optimizer": SGD(nn.Linear(6, 3).parameters())}, ValueError, "optimizer is SGD of other parameters"),
    "optimizer name": ({"optimizer": "sgd"}, TypeError, "optimizer is str, expected one of the model's, or a class"),
    "no optimizer": ({"optimizer": lambda params: None}, TypeError, "optimizer returns None, expected a torch.optim"),
    "others": ({"optimizer": lambda params: SGD(NET.parameters())}, ValueError, "optimizer is SGD of other param"),
    "samples": ({"samples": 0}, ValueError, "samples is 0, expected a positive integer"),
    "no sample": ({"inputs": X[:0]}, ValueError, r"inputs is empty \(shape \(0, 6\)\), expected at least one sample"),
    "no sample by name": ({"inputs": (), "kwargs": {"x": X[:0]}}, ValueError, "kwargs is empty"),
    "none of ours": ({"model": Model([InputLayer(6), Dense(3)]), "inputs": X[:0]}, ValueError, "inputs is empty"),
    "kwargs list": ({"kwargs": [X]}, TypeError, "kwargs is list, expected a dict of keyword arguments"),
    "kwargs twice": ({"inputs": {"x": X}, "kwargs": {}}, TypeError, "kwargs is given besides inputs of keyword arg"),
    "kwargs of fit": (
        {"model": Model([InputLayer(6), Dense(3)]), "kwargs": {}},
        TypeError,
        "kwargs is given, expected",
    ),
    "script": ({"model": lambda: torch.jit.script(nn.Linear(6, 3))}, TypeError, "model is RecursiveScriptModule, exp"),
    "script within": (
        {"model": lambda: nn.Sequential(torch.jit.trace(nn.Linear(6, 3), X))},
        TypeError,
        "model.0 is TopLevelTracedModule, expected the torch.nn.Module",
    ),
    "lazy": ({"model": nn.Sequential(nn.LazyLinear(3))}, ValueError, "model.0.weight waits for a first input"),
    "function": ({"model": torch.relu_}, TypeError, "model is builtin_function_or_method, expected one of scratchcuda"),
    "device": ({"model": nn.Linear(6, 3, device="meta"), "inputs": X.to("meta")}, ValueError, "model is on meta, exp"),
    "our model": ({"model": Model([InputLayer(6), Dense(3)]), "inputs": {"x": X}}, TypeError, "inputs is dict, expect"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_anything_is_measured(name, monkeypatch):
    given, error, message = REFUSED[name]
    given = {"model": NET, "inputs": X, "targets": Y} | given
    if name.startswith("script"):
        given["model"] = given["model"]()
    monkeypatch.setattr(ceilings, "of", lambda clock: pytest.fail("measured"))
    before = NET.weight.detach().clone()
    with pytest.raises(error, match=message):
        profile(**given)
    same(NET.weight.detach(), before)
    assert NET.weight.grad is None


INPUTS = {
    "dict": ({"x": X, "mask": Y}, lambda layer, x, mask: layer(x) * mask),
    "mapping": (UserDict(x=X), lambda layer, x: layer(x)),
    "ordered": (OrderedDict(x=X), lambda layer, x: layer(x)),
    "a dict as argument": (({"x": X},), lambda layer, of: layer(of["x"])),
    "no argument": ({}, lambda layer: layer.weight),
    "named tuple": ((Pair(X, Y),), lambda layer, of: layer(of.a) * of.b),
    "sparse": (X.to_sparse(), lambda layer, x: torch.sparse.mm(x, layer.weight.T)),
    "jagged": (torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged), lambda layer, x: layer(x).values()),
    "arguments by name": (Pair(X, Y), lambda layer, a, b: layer(a) * b),
    "dataclass": (Outputs(X, Y), lambda layer, of: layer(of.hidden)),
    "outputs by name": (X, lambda layer, x: OrderedDict(loss=None, logits=layer(x))),
    "a dataclass comes out": (X, lambda layer, x: Outputs(x.argmax(1), layer(x))),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_and_outputs_of_any_shape(name):
    inputs, function = INPUTS[name]
    assert {"loss", "backward", "update"} <= {phase for phase, *_ in recorded(Calls(function), inputs).places}


def test_an_optimizer_of_the_models_own():
    """Its groups and options serve a copy; what was given has not moved, and has a scheduler that patches its step."""
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    net[0].bias.requires_grad_(False)
    groups = [{"params": net[1].parameters()}, {"params": net[0].parameters(), "lr": 0.5, "momentum": 0.9}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    found = ModuleSubject(net, X, Y, MSE, optimizer).run(4)
    losses = []
    for _ in range(4):
        losses.append(MSE(net(X), Y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert found == torch.stack(losses).tolist()
    assert found[-1] < 0.99 * found[0]


#: Who is raced, and whether with layers of ours.
WHO = {
    "torch's": (lambda: nn.Sequential(nn.Linear(6, 3), nn.Tanh()), {"this": False, "converted": True}),
    "none of ours": (lambda: nn.Bilinear(6, 6, 3), {"this": False}),
    "ours": (lambda: scratchcuda.nn.Linear(6, 3), {"torch eager": False, "this": True}),
}


def has_ours(net):
    return any(type(module) in TORCHS for module in net.modules())


@pytest.mark.parametrize("name", WHO)
def test_who_is_raced(name, monkeypatch):
    make, who = WHO[name]
    net, real, raced = make(), race.race, {}
    monkeypatch.setattr(
        race, "race", lambda subjects, *rest, **how: raced.update(subjects) or real(subjects, *rest, **how)
    )
    kwargs = {"input2": X} if name == "none of ours" else None
    found = profiled(net, X, Y, kwargs=kwargs, loss=MSE, optimizer=torch.optim.SGD)
    assert {name: has_ours(subject.module) for name, subject in raced.items()} == who
    assert list(found.steps) == list(who)
    assert all(step.ratio for step in found.steps.values())
    assert has_ours(net) == who["this"]


def test_an_empty_tensor_among_others():
    assert profiled(Calls(lambda layer, x, empty: layer(x)), (X, X[:0])).rows


def test_a_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
    net = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=1, **sizes))
    ids = torch.randint(50, (2, 7))
    batch = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    found = profiled(net, batch, torch.tensor([0, 2]), loss=lambda out, y: nn.functional.cross_entropy(out.logits, y))
    batch["labels"] = torch.tensor([0, 2])
    labelled = recorded(net, batch, loss=lambda out, targets: out.loss)
    for layers in ({row.layer for row in found.rows}, {layer for _, layer, _ in labelled.places}):
        assert "bert.encoder.layer.0.attention.self BertSelfAttention" in layers
    assert found.notices == []


def test_what_is_given_stays_as_it_was():
    """Data that the module writes into, that is part of more, and that gets gradients."""
    more = torch.randn(100, 6)
    x = more[:4].requires_grad_()
    before = more.detach().clone()
    subject = ModuleSubject(Calls(lambda layer, of: layer(of["x"].mul_(2))), ({"x": more[4:8]},), x[:, :3], MSE, SGD)
    subject.show(Ranges())
    same(more.detach(), before)
    assert x.grad is None
    assert subject.inputs[0]["x"].untyped_storage().nbytes() == 4 * 6 * 4


@pytest.mark.parametrize("within", [False, True])
def test_compiled_modules_are_shown_eager(within):
    net = nn.Sequential(nn.Linear(6, 3))
    if within:
        net[0] = torch.compile(net[0])
    else:
        net.compile()
    found = profiled(net, X)
    assert {row.layer for row in found.rows if row.phase == "forward"} == {"0 Linear"}
    assert "The model is compiled" in found.notices[0]


def test_copies_take_no_more_than_they_must():
    gc.disable()
    try:
        made = weakref.ref(copied([X])[0])
        assert made() is None  # at once
    finally:
        gc.enable()
    net = nn.Linear(6, 3)
    subject = ModuleSubject(net, X, None, None, SGD)
    assert [start.data_ptr() for _, start in subject.start] == [p.data_ptr() for p in net.parameters()]
    assert not any(call.op.is_view for call in recorded(net, X).calls.values())


def test_torchs_profiler_writes_nothing():
    code = "import os, torch; from scratchcuda.profiler.kernels import trace; trace(print, torch.device('cpu'))"
    code += "; assert 'KINETO_LOG_LEVEL' not in os.environ"
    kept = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, check=False)
    assert (done.returncode, done.stderr) == (0, "")
