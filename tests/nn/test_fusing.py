"""Layers that a module's forward calls one after another: which a conversion fuses, and that nobody can tell."""

import contextlib
import copy
import linecache
import pickle

import pytest
import torch
from oracle import same
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import scratchcuda
from scratchcuda.nn import convert, revert


class Net(nn.Module):
    """A model whose classes have other forwards below."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.act, self.soft, self.mish, self.norm = nn.Tanh(), nn.Softmax(-1), nn.Mish(), nn.BatchNorm1d(6)
        self.layers = nn.ModuleList([self.first, self.second])
        self.which = self.count = 0
        self.nothing = None

    def forward(self, x):
        h = self.first(x)
        h = self.act(h)
        return self.third(self.act(self.norm(self.second(h))))

    def route(self, x):
        self.which = 1
        return x

    @property
    def next(self):
        self.count += 1
        return (self.second, self.act, self.first)[self.count - 1]

    def fails(self, h):
        raise ArithmeticError

    def reads(self, h):
        self.later, later = None, self.later
        return h + next(later)


class Private(Net):
    def __init__(self):
        super().__init__()
        self.__act, self.scale = self.act, 2

    def forward(self, x, *, scale=1):
        """Its own names, its base's forward, and an argument by name."""
        return super().forward(self.__act(self.third(x))) * scale * self.scale


def nested(self, x):
    return self.norm(self.second(self.norm(self.act(self.first(x))))) + 0 * torch.rand(())


def in_statements(self, x):
    z = self.first(x)
    a = self.act(z)
    return functional.softmax(self.soft(self.second(a)), dim=0)


def by_functions(self, x):
    x = functional.relu(self.first(x))
    x = self.second(x)
    x = torch.tanh(x)
    x = self.third(x)
    return scratchcuda.nn.functional.sigmoid(x)


def in_a_loop(self, x):
    for layer in self.layers:
        if self.training:
            x = layer(x)
            x = self.act(x)
    return x


def twice(self, x):
    order = iter([self.norm, self.third])
    x = next(order)(next(order)(x))
    return self.act(self.first(self.mish(self.first(x)))) + self.mish(self.second(x))


def on_a_route(self, x):
    self.which = 0
    x = self.route(x)
    x = self.layers[self.which](x)
    return self.act(x)


def by_a_property(self, x):
    self.count = 0
    x = self.next(x)
    x = self.next(x)
    return self.next(x)


def added_to(self, x):
    self.which = 0
    h = self.route(x)
    self.which += torch.sum(h)
    return self.act(self.first(x)) + self.which


def read_after_a_suppressed_error(self, x):
    h = x
    with contextlib.suppress(ArithmeticError):
        h = self.first(x)
        h = self.fails(h)
    return self.act(self.second(h))


def read_by_a_generator(self, x):
    self.later = (h for _ in "a")  # noqa: F821
    h = self.first(x)
    return self.reads(h)


def asks_for_its_class(self, x):
    return self.act(self.first(x)) * len(type(self).__mro__)


def named_twice(self, x):
    h = z = self.first(x)
    h = self.act(h)
    return h + z


def read_after(self, x):
    h = self.first(x)
    a = self.act(h)
    return a + h


def read_in_the_same(self, x):
    h = self.first(x)
    return self.act(h) + h


def read_between(self, x):
    h = self.first(x)
    y = h.sum()
    h = self.act(h)
    return h + y


def read_by_a_function(self, x):
    later = lambda: h  # noqa: E731
    h = self.first(x)
    h = self.act(h + 0 * later())
    return h


def read_by_name(self, x):
    h = self.first(x)
    a = self.act(h)
    return a + locals()["h"]


def read_after_an_error(self, x):
    try:
        h = self.first(x)
        h = self.act(h)
        return h + h.nothing
    except AttributeError:
        return h


def named_within(self, x):
    return self.act(h := self.first(x)) + h


def by_keyword(self, x):
    return self.act(input=self.first(x))


def read_by_the_call(self, x):
    h = self.first(x)
    h = (self.act, self.mish)[h.dim() - 2 if self.training else h.ndim](h)
    h = self.second(h)
    return (self.mish, self.act)[h.ndim - 1](h)


#: Of each the Linears that it lets compute an activation.
FORWARDS = {
    Net.forward: {"first": "tanh"},
    Private.forward: {"third": "tanh"},
    nested: {"first": "tanh"},
    in_statements: {"first": "tanh", "second": "softmax"},
    by_functions: {"first": "relu", "second": "tanh", "third": "sigmoid"},
    in_a_loop: {"first": "tanh", "second": "tanh"},
    twice: {"first": "tanh"},
    on_a_route: {"second": "tanh"},
    by_a_property: {"second": "tanh"},
    added_to: {"first": "tanh"},
    read_after_a_suppressed_error: {"second": "tanh"},
    read_by_a_generator: {},
    asks_for_its_class: {},
    named_twice: {},
    read_after: {},
    read_in_the_same: {},
    read_between: {},
    read_by_a_function: {},
    read_by_name: {},
    read_after_an_error: {},
    named_within: {},
    by_keyword: {},
    read_by_the_call: {},
}
CLASSES = [Net, Private, *(type(f"_{each.__name__}", (Net,), {"forward": each}) for each in [*FORWARDS][2:])]
globals().update({kind.__name__: kind for kind in CLASSES})  # where pickle looks
READ_AFTER = next(kind for kind in CLASSES if kind.forward is read_after)
X = torch.randn(4, 6, dtype=torch.float64)


def assert_alike(net, twin, call=lambda net: net(X), backend="emulator"):
    """Outputs and gradients; bit for bit where torch computes both, as the kernels sum in another order."""
    ours, theirs = call(net), call(twin)
    found, wanted = (
        torch.autograd.grad(y.square().sum(), [*one.parameters()], allow_unused=True, retain_graph=True)
        for y, one in ((ours, net), (theirs, twin))
    )
    if backend == "tensor":
        same(ours, theirs)
    torch.testing.assert_close([ours, *found], [theirs, *wanted])


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_fused(kind, backend):
    net = kind().double()
    twin, state, text, random = copy.deepcopy(net), copy.deepcopy(net.state_dict()), repr(net), torch.get_rng_state()
    done = convert(net, fuse=True, inputs=X)
    assert done.fused == FORWARDS[kind.forward]
    assert (type(net) is kind) == (not done.fused)
    assert isinstance(net, kind)
    same(net.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), random)
    assert repr(net) == text
    assert not [module for module in net.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert_alike(net, twin, backend=backend)
    for other in (copy.deepcopy(net), *(pickle.loads(pickle.dumps(net, protocol)) for protocol in (1, 2, 5))):
        assert type(other) is type(net)
        assert_alike(other, twin, backend=backend)
    assert revert(net).left == {}
    assert type(net) is kind


def patched(net):
    forward = net.first.forward
    net.first.forward = lambda x: forward(x) + 1


def watched(net):
    net.watched = []
    net.first.register_forward_hook(lambda module, args, y: net.watched.append(y))


#: Edits of what is fused, and what is then called, if not the network.
EDITS = {
    "nothing": lambda net: None,
    "eval": lambda net: [net.eval(), None][-1],
    "a layer alone": lambda net: net.first,
    "both alone": lambda net: lambda x: net.act(x) + net.first(x),
    "another activation": lambda net: setattr(net, "act", nn.ReLU()),
    "another layer": lambda net: setattr(net, "first", copy.deepcopy(net.third)),
    "a hook": lambda net: [watched(net), lambda x: net(x) + net.watched[-1]][-1],
    "a forward": patched,
    "a forward of the network": lambda net: setattr(net, "forward", lambda x: net.act(net.second(x))),
    "a function": lambda net: setattr(net, "act", torch.cos) if net._modules.pop("act") else None,
    "pruned": lambda net: [prune.l1_unstructured(net.first, "weight", 0.5), None][-1],
    "weight norm": lambda net: [nn.utils.parametrizations.weight_norm(net.second), None][-1],
    "reverted in part": lambda net: [revert(net.first), None][-1],
    "autocast": lambda net: torch.autocast(X.device.type, torch.bfloat16, enabled=False)(net.forward),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits(edit, backend):
    net = CLASSES[2]().double()
    twin = copy.deepcopy(net)
    convert(net, fuse=True, inputs=X)
    calls = iter([EDITS[edit](each) or each for each in (net, twin)])
    assert_alike(net, twin, lambda one: next(calls)(X), backend)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_patched_class_is_not_passed_by(compiles, monkeypatch):
    net = Net().double()
    twin = copy.deepcopy(net)
    convert(net, fuse=True, inputs=X)
    call = torch.compile(net, backend="aot_eager", fullgraph=True) if compiles else net
    assert_alike(net, twin, lambda one: call(X) if one is net else one(X))
    for forward in (nested, by_functions):
        monkeypatch.setattr(Net, "forward", forward)
        assert_alike(net, twin, lambda one: call(X) if one is net else one(X))


def test_what_a_filter_refuses_is_left():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU())
    done = convert(net, lambda module, name: name != "2", fuse=True)
    assert done.left == {
        "2": "refused by the filter",
        "1": "not fused: its ReLU is not converted",
    }


def test_what_a_call_does_not_show_is_left():
    net = nn.ModuleDict({"net": Net(), "other": Net(), "seq": nn.Sequential(nn.Linear(6, 6), nn.Mish())})
    net.forward = lambda x, other: net["net"](net["seq"](x))
    done = convert(net, fuse=True, inputs={"x": X.float(), "other": None})
    assert [type(net[name]) is Net for name in ("net", "other")] == [False, True]
    assert done.left["other.first"] == "not fused: not called with these inputs"
    assert done.left["seq.0"] == "not fused: Mish is no activation of ours"
    assert done.left["net.third"] == "not fused: no activation module is given what it returns"
    assert convert(READ_AFTER(), fuse=True, inputs=X.float()).left["first"].startswith("not fused: no forward shows")


def test_a_call_that_fails_leaves_the_model_as_it_was():
    net = Net()
    kinds, state = [type(module) for module in net.modules()], copy.deepcopy(net.state_dict())
    for inputs in (X, (X.float(), 1)):  # of another dtype, after the first layer; more than there are
        with pytest.raises((RuntimeError, TypeError)):
            convert(net, fuse=True, inputs=inputs)
    with pytest.raises(ValueError, match="inputs is a Tensor, expected None without fuse=True"):
        convert(net, inputs=X)
    with pytest.raises(ValueError, match="call it once before"):
        convert(nn.Sequential(nn.LazyLinear(3)), fuse=True, inputs=X)
    assert [type(module) for module in net.modules()] == kinds
    assert not [module for module in net.modules() if module._forward_hooks or module._forward_pre_hooks]
    same(net.state_dict(), state)


def test_a_source_that_is_not_what_runs_is_left(tmp_path):
    file, names = tmp_path / "user.py", {"nn": nn}
    lines = "class User(nn.Sequential):\n    def forward(self, x):\n        return self[1](self[0](x))"
    exec(compile(lines, file, "exec"), names)
    for source, fused in ((None, {}), (lines.replace("(x))", "(x)) + 1"), {}), (lines, {"0": "relu"})):
        if source:
            file.write_text(source)
            linecache.checkcache()
        user = type("User", (names["User"],), {})(nn.Linear(6, 6), nn.ReLU())
        assert convert(user, fuse=True, inputs=X.float()).fused == fused


def nothing_follows(self, x):
    h = self.first(x)
    h = self.nothing(h)
    return self.act(self.second(h))


@pytest.mark.parametrize("forward", [nothing_follows, in_statements])
def test_an_error_comes_from_its_line(forward):
    net = type("Mine", (Net,), {"forward": forward})()
    net.nothing = torch.cos
    twin, places = copy.deepcopy(net), []
    assert "second" in convert(net, fuse=True, inputs=X.float()).fused
    for one in (net, twin):
        one.nothing, one.second = None, nn.Linear(7, 6)
        with pytest.raises((TypeError, RuntimeError)) as caught:
            one(X.float())
        places.append([entry.lineno for entry in caught.traceback if entry.name == forward.__name__])
    assert places[0] == places[1] != []


class Registered(type):
    def __new__(cls, name, bases, names, **options):
        if any(base.__name__ == name for base in bases):
            raise TypeError(f"there is a {name}")
        return super().__new__(cls, name, bases, names)


class Counting(Net):
    counted = 0

    def __init_subclass__(cls, by=1):
        Counting.counted += by

    def __reduce__(self):
        return self.__class__, (), self.__dict__


class Counted(Counting, by=2):
    pass


def test_what_users_do_with_classes():
    registered = Registered("Mine", (Net,), {})()
    assert convert(registered, fuse=True, inputs=X.float()).fused == {}
    counted, before = Counted(), Counting.counted
    assert convert(counted, fuse=True, inputs=X.float()).fused
    assert Counting.counted == before
    twin = pickle.loads(pickle.dumps(counted))
    assert type(twin) is type(counted)
    derived = type(counted)
    counted.__class__ = type("Derived", (derived,), {})
    assert Counting.counted == before + 1
    assert revert(counted).left == {"": "is a Derived, derived from a class that convert made"}
    static = type("Static", (Net,), {"forward": staticmethod(lambda x: torch.tanh(torch.relu(x)))})()
    assert convert(static, fuse=True, inputs=X.float()).fused == {}


class Calls(nn.Module):
    """Calls a part by its forward, and has what a call fills in, is compiled, or is a script."""

    def __init__(self):
        super().__init__()
        self.net, self.compiled = Net(), torch.compile(Net(), backend="eager")
        self.script = torch.jit.script(nn.Linear(6, 6))
        self.register_buffer("filled", None)

    def forward(self, x):
        self.filled = x.sum()
        self.register_buffer("more", x.sum())
        return self.compiled(self.net.forward(self.script(x)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_parts_that_are_called_otherwise():
    net = Calls()
    done = convert(net, fuse=True, inputs=X.float())
    assert done.fused == {"net.first": "tanh", "compiled._orig_mod.first": "tanh"}
    assert type(net.net) is not Net
    assert dict(net.named_buffers(recurse=False)) == {}


def test_a_function_that_is_changed_itself_is_followed(monkeypatch):
    net = Net()
    convert(net, fuse=True, inputs=X.float())
    monkeypatch.setattr(Net.forward, "__code__", by_functions.__code__)  # as what reloads a source does
    same(net(X.float()), by_functions(net, X.float()))


@pytest.mark.backends("tensor")
def test_more_classes_are_compiled_than_torch_keeps_of_one_forward():
    for _ in range(torch._dynamo.config.recompile_limit + 1):
        net = type("Mine", (Net,), {"forward": by_functions})()
        convert(net, fuse=True, inputs=X.float())
        torch.compile(net, backend="eager", fullgraph=True)(X.float())
