"""One changed import: what asks whether a layer is an nn.Linear goes on finding all that it has found."""

import abc
import copy
import pickle
import runpy
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from oracle import same

import scratchcuda
from scratchcuda import nn, optim

KINDS = [
    "Linear",
    "LazyLinear",
    "ReLU",
    "Sigmoid",
    "Tanh",
    "Softmax",
    "MSELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
]

pytestmark = pytest.mark.backends("tensor", "kernels")


@pytest.mark.parametrize("name", KINDS)
def test_instances_and_subclasses_are_those_of_torch_nn(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert ours.__module__.startswith("scratchcuda.nn")
    derived, by_user = type("Derived", (theirs,), {}), type("ByUser", (ours,), {})
    arguments = {"Linear": (2, 2), "LazyLinear": (2,)}.get(name, ())
    made = {kind: kind(*arguments) for kind in (ours, theirs, derived, by_user)}
    other = torch.nn.Dropout()
    for _ in range(2):  # an answer may be kept
        assert all(isinstance(module, ours) for module in made.values())
        assert all(isinstance(weakref.proxy(module), ours) for module in made.values())
        assert all(issubclass(kind, ours) for kind in made)
        assert not isinstance(other, ours)
        assert not issubclass(torch.nn.Module, ours)
        # what users derive is a class as any other
        assert [isinstance(module, by_user) for module in made.values()] == [False, False, False, True]
        assert [issubclass(kind, by_user) for kind in made] == [False, False, False, True]
    assert not isinstance(3, ours)
    for twin in (copy.deepcopy(made[ours]), pickle.loads(pickle.dumps(made[ours]))):
        assert type(twin) is ours


def layers_of_torch():
    lazy = torch.nn.LazyLinear(4)
    lazy(torch.randn(1, 3))
    return torch.nn.ModuleList([lazy, torch.nn.TransformerEncoderLayer(4, 2, 8), torch.nn.MultiheadAttention(4, 2)])


def test_initialisation_and_weight_decay_reach_the_layers_that_torch_makes():
    net = layers_of_torch()

    def init(module):
        match module:
            case nn.Linear():
                nn.init.zeros_(module.weight)

    net.apply(init)
    linears = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 5  # the lazy one, three of the encoder's, and the attention's
    same([linear.weight.detach() for linear in linears], [torch.zeros_like(linear.weight) for linear in linears])


def test_a_lazy_layer_becomes_ours():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), torch.nn.LazyLinear(2))
    assert nn.convert(net).swapped == ["2"]
    assert [type(module) for module in copy.deepcopy(net)] == [nn.LazyLinear, nn.ReLU, nn.LazyLinear]
    net(torch.randn(1, 3))
    assert [type(module) for module in net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert net[0].weight.shape == (4, 3)
    lazy = nn.LazyLinear(4)
    assert nn.revert(lazy).swapped == [""]
    lazy(torch.randn(1, 3))
    assert type(lazy) is torch.nn.Linear


def test_optimizers():
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    assert isinstance(theirs, optim.SGD)
    params = theirs.param_groups[0]["params"]
    assert not isinstance(torch.optim.Adam(params), optim.SGD)
    assert isinstance(torch.optim.AdamW(params), optim.AdamW)
    assert isinstance(optim.AdamW(params), optim.Adam)
    assert isinstance(optim.AdamW(params), torch.optim.Adam)
    assert not isinstance(optim.Adam(params), optim.AdamW)


class Mixin(abc.ABC):
    @abc.abstractmethod
    def name(self):
        """Of the layer."""


class Named(nn.Linear, Mixin):
    def name(self):
        return "named"


def test_classes_that_derive_from_ours():
    assert Named(2, 2).name() == "named"
    assert isinstance(Named(2, 2), nn.Linear)
    assert not isinstance(nn.Linear(2, 2), Named)
    with pytest.raises(TypeError, match="abstract"):
        type("Nameless", (nn.Linear, Mixin), {})(2, 2)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert isinstance(layer, nn.Linear)
    assert not isinstance(nn.Linear(2, 2), type(layer))
    # as FSDP makes its classes
    sharded = type("FSDPLinear", (type("FSDPModule", (), {}), nn.Linear), {})
    assert not isinstance(nn.Linear(2, 2), sharded)
    assert not isinstance(torch.nn.Linear(2, 2), sharded)


def test_a_compiler_takes_the_question():
    layer, lazy = nn.Linear(3, 4), layers_of_torch()[0]

    @torch.compile(fullgraph=True, backend="eager")
    def run(x):
        for module in (lazy, layer):
            if isinstance(module, nn.Linear) and not isinstance(module, nn.ReLU):
                x = x + module(x).sum()
        return x

    x = torch.randn(2, 3)
    torch.testing.assert_close(run(x), x + lazy(x).sum() + layer(x + lazy(x).sum()).sum())


def test_a_patch_of_a_compiled_sequential_is_noticed():
    net, x = nn.FusedSequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    for layer in (net[1], net[0]):
        layer.forward = torch.zeros_like
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("hooked", [False, True])
def test_a_compiled_sequential(hooked):
    """Where a hook makes two of a pair. One that is registered later is overlooked in torch.nn's networks as well."""
    torch._dynamo.reset()  # for the same reason
    net, x = nn.FusedSequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    if hooked:
        net[1].register_forward_hook(lambda module, args, output: output + 1)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net[2](net[0](x).relu() + hooked))
    torch._dynamo.reset()
    unfused = torch.compile(lambda: nn.layers.unfused(net[0], net[1], 2), fullgraph=True, backend="eager")
    assert bool(unfused()) == hooked


@pytest.mark.parametrize("nn", [torch.nn, scratchcuda.nn], ids=["torch", "ours"])
def test_names_of_torch(nn):
    assert nn.modules.batchnorm is torch.nn.modules.batchnorm
    assert nn.Dropout is torch.nn.Dropout
    assert nn.functional.mish is torch.nn.functional.mish
    assert {"Conv2d", "Linear", "functional"} <= set(dir(nn))
    with pytest.raises(AttributeError):
        nn.Conv9d  # noqa: B018


@pytest.mark.parametrize("module", ["nn", "nn.functional", "nn.init", "nn.modules", "nn.modules.linear", "optim"])
def test_star_imports(module):
    ours, theirs = {}, {}
    exec(f"from scratchcuda.{module} import *", ours)
    exec(f"from torch.{module} import *", theirs)
    assert ours.keys() - theirs.keys() <= {"Conversion", "FusedSequential", "convert", "revert"}
    package = {"optim": scratchcuda.optim, "nn.functional": scratchcuda.nn.functional}.get(module, scratchcuda.nn)
    for name, value in theirs.items():
        assert ours[name] is value or ours[name] is getattr(package, name), name


IMPORTS = """
import importlib, importlib.util, inspect, sys, threading
import torch
before = {name: (module, module.__spec__, module.__name__) for name, module in sys.modules.items() if "torch" in name}
import scratchcuda

names = [f"{package}.{name}" for package in ("nn", "optim") for name in dir(sys.modules[f"torch.{package}"])]
names = [name for name in names if f"torch.{name}" in sys.modules and name != "nn.functional"]
names += ["nn.utils.rnn", "nn.utils.prune", "nn.parallel.distributed", "nn.modules.batchnorm", "optim.adagrad"]
assert not [name for name in names if f"scratchcuda.{name}" in sys.modules]  # none before it is asked for
views = {"nn.modules", "nn.modules.linear", "nn.modules.loss", "optim.sgd", "optim.adam", "optim.adamw"}
threads = [threading.Thread(target=importlib.import_module, args=[f"scratchcuda.{name}"]) for name in names * 2]
[thread.start() for thread in threads], [thread.join() for thread in threads]
for name in {*names, *views}:
    ours, theirs = importlib.import_module(f"scratchcuda.{name}"), importlib.import_module(f"torch.{name}")
    assert (ours is theirs) == (name not in views), name
    assert inspect.getsource(ours) == inspect.getsource(theirs)
    assert importlib.util.find_spec(f"scratchcuda.{name}").origin == theirs.__file__
    assert importlib.reload(ours) is ours
assert all(sys.modules[name] is module for name, (module, *_) in before.items())
assert all((m.__name__, m.__spec__.name) == (name, spec.name) for m, spec, name in before.values() if spec)
for name in ("nn.nothing", "nn.utils.nothing", "nn.init.nothing", "optim.nothing"):
    try:
        importlib.import_module(f"scratchcuda.{name}")
    except ModuleNotFoundError as error:
        assert f"'scratchcuda.{name}'" in str(error)
    else:
        raise AssertionError(name)
"""


@pytest.mark.backends("tensor")
def test_imports_of_modules():
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    runpy.run_path(Path(__file__).with_name("typed_drop_in.py"))


def test_everything_leaves_nn_and_optim_to_the_user():
    names = {"nn": torch.nn, "optim": torch.optim}
    exec("from scratchcuda import *", names)
    assert (names["nn"], names["optim"]) == (torch.nn, torch.optim)
    assert names["Dense"] is scratchcuda.Dense
