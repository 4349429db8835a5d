"""Model.from_torch and to_torch: what is kept, and what is refused because it cannot be."""

import math

import pytest
import torch
from oracle import same
from torch import nn
from torch.nn.utils import parametrizations, prune
from trajectories import assert_same_trajectory

import scratchcuda
from scratchcuda import Dense, InputLayer, Model, Tanh
from scratchcuda.engine.activations import chosen
from scratchcuda.nn import layers
from scratchcuda.ops._entries import ENTRIES


def linear(*sizes, dtype=torch.float64, **options):
    return nn.Linear(*(sizes or (5, 5)), dtype=dtype, **options)


def changed(change):
    net = nn.Sequential(linear(), nn.Tanh(), linear(), nn.Sequential(nn.Tanh(), linear(5, 3)))
    change(net)
    return net


def used_twice():
    layer = linear()
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), linear(5, 3))


def with_activations():
    return nn.Sequential(scratchcuda.nn.Linear(5, 5, dtype=torch.float64, activation="tanh"), linear(5, 3))


def tie(net):
    net[2].weight = net[0].weight


#: Networks, and how many parameters they have, and train.
KEPT = {
    "plain": (lambda: changed(lambda net: None), 6, 6),
    "used twice": (used_twice, 4, 4),
    "tied weights": (lambda: changed(tie), 5, 5),
    "tied biases": (lambda: changed(lambda net: setattr(net[2], "bias", net[0].bias)), 5, 5),
    "frozen": (lambda: changed(lambda net: net[2].requires_grad_(False)), 6, 4),
    "frozen in part": (lambda: changed(lambda net: net[0].weight.requires_grad_(False)), 6, 5),
    "frozen and tied": (lambda: changed(lambda net: (tie(net), net[2].weight.requires_grad_(False))), 5, 4),
    "pruned": (
        lambda: changed(lambda net: prune.remove(prune.random_unstructured(net[0], "weight", 0.5), "weight")),
        6,
        6,
    ),
    "converted": (lambda: changed(scratchcuda.nn.convert), 6, 6),
    "fused": (lambda: changed(lambda net: scratchcuda.nn.convert(net, fuse=True)), 6, 6),
    "with activations": (with_activations, 4, 4),
    "dropout and flatten": (
        lambda: nn.Sequential(nn.Flatten(), linear(), nn.Dropout(0.2), nn.Tanh(), linear(5, 3), nn.Dropout(0.1)).eval(),
        4,
        4,
    ),
    "without bias": (lambda: changed(lambda net: [setattr(net[i], "bias", None) for i in (0, 2)]), 4, 4),
    "weights tied and alone": (lambda: changed(lambda net: (tie(net), setattr(net[0], "bias", None))), 4, 4),
    "another weight": (lambda: changed(lambda net: setattr(net[2], "weight", linear().weight)), 6, 6),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_trains_as_before_and_comes_back(name, path):
    make, parameters, trained = KEPT[name]
    net = make()
    model = Model.from_torch(net)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(model.predict(x), net(x).detach(), rtol=1e-13, atol=1e-14)  # some roundings
    back = model.to_torch()
    for there in (back, Model.from_torch(back).to_torch()):
        found = list(there.parameters())
        assert (len(found), sum(p.requires_grad for p in found)) == (parameters, trained)
    is_tied = parameters < len(model.state_dict())
    assert_same_trajectory(model, x, y, "general" if is_tied else path, weight_decay=0.1)
    if name != "pruned":  # whose weight comes after its bias
        model.copy_parameters(net.parameters)
        same(next(model.parameters()), next(net.parameters()).detach().T)


def shares_memory(net):
    net[2].weight = nn.Parameter(net[0].weight.detach())


def assigns_a_tensor(net):
    weight = net[0].weight.detach()
    del net[0].weight
    net[0].weight = weight


REFUSED = {
    "pruned": (
        lambda net: prune.random_unstructured(net[2], "weight", 0.5),
        TypeError,
        r"module\[2\] is a Linear with a forward_pre hook RandomUnstructured, expected one without",
    ),
    "parametrized": (
        lambda net: parametrizations.weight_norm(net[0]),
        TypeError,
        r"module\[0\] is a ParametrizedLinear, expected one of Linear, ",
    ),
    "a hook": (lambda net: net[2].register_forward_hook(print), TypeError, r"module\[2\] .* forward hook print"),
    "of an activation": (lambda net: net[1].register_forward_pre_hook(print), TypeError, r"module\[1\] is a Tanh with"),
    "of backward": (lambda net: net[0].register_full_backward_hook(print), TypeError, r"\[0\] .* backward hook"),
    "of the network": (
        lambda net: net.register_full_backward_pre_hook(print),
        TypeError,
        "module is a Seq.* backward_pre",
    ),
    "of an inner network": (lambda net: net[3].register_forward_hook(print), TypeError, r"module\[3\] is a Sequential"),
    "a forward": (lambda net: setattr(net[2], "forward", torch.relu), TypeError, r"module\[2\] .* forward of its own"),
    "the network's": (lambda net: setattr(net, "forward", torch.relu), TypeError, "module is a Sequential with"),
    "dtypes": (
        lambda net: net[2].float(),
        TypeError,
        r"module\[2\].weight has dtype torch.float32, expected torch.float64",
    ),
    "of a bias": (lambda net: setattr(net[0], "bias", linear(dtype=None).bias), TypeError, r"\[0\].bias has dtype"),
    "devices": (lambda net: net[3].to("meta"), ValueError, r"module\[3\]\[1\].weight is on device meta, expected"),
    "memory": (shares_memory, TypeError, r"module\[2\].weight shares memory with a parameter of module\[0\], expected"),
    "a tensor": (assigns_a_tensor, TypeError, r"module\[0\].weight is Tensor, expected a Parameter"),
    "another dropout": (
        lambda net: net.append(nn.AlphaDropout()),
        TypeError,
        r"module\[4\] is a AlphaDropout, expected one of Linear, .*Flatten, Dropout",
    ),
    "flatten": (
        lambda net: net.append(nn.Flatten(2)),
        ValueError,
        r"module\[4\] is Flatten\(start_dim=2, end_dim=-1\), expected start_dim=1 and end_dim=-1",
    ),
    "lazy": (lambda net: net.append(nn.LazyLinear(3)), TypeError, r"module\[4\] is a LazyLinear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    change, exception, message = REFUSED[name]
    with pytest.raises(exception, match=message):
        Model.from_torch(changed(change))


def test_a_patched_class_is_refused(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    with pytest.raises(TypeError, match="a forward of its own"):
        Model.from_torch(nn.Sequential(linear()))


def test_a_bias_that_is_no_parameter_is_not_lost():
    model = Model([InputLayer(2), Dense(3, bias=False)])
    model.layers[0].b = torch.ones(3)
    with pytest.raises(TypeError, match=r"layers\[0\] is Dense\(3, Linear\(\), bias=False\) with a b, expected None"):
        model.to_torch()


def test_what_torch_nn_has_no_parameters_for():
    model = Model([InputLayer(5), Dense(4, Tanh()), Dense(5)])
    model.layers[1].w = model.layers[0].w.T
    with pytest.raises(TypeError, match=r"layers.1.w shares memory with layers.0.w in a way that torch.nn has no"):
        model.to_torch()
    memory = torch.randn(50)  # in pieces that have nothing in common
    model.layers[0].w, model.layers[1].w = memory[:20].view(5, 4), memory[20:40].view(4, 5)
    torch.testing.assert_close(model.to_torch()(torch.ones(1, 5)).detach(), model.predict(torch.ones(1, 5)))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_parameters_of_activations_are_kept(entry):
    values = {name: parameter.default + 0.25 for name, parameter in entry.parameters.items()}
    arguments = values | dict(entry.variant)
    known = {name: values[-1] for name, values in entry.known.items()}
    net, x = nn.Sequential(linear(), entry.module(**arguments, **known)), torch.randn(4, 5, dtype=torch.float64)
    model = Model.from_torch(net)
    assert chosen(model.layers[0].act_f) == (entry.name, tuple(values.values()))
    back = model.to_torch()
    assert [*map(repr, back)] == [*map(repr, net)][: 1 if entry.name == "none" else 2]
    same(back(x), net(x))
    torch.testing.assert_close(model.predict(x), net(x).detach(), rtol=1e-12, atol=1e-12)  # some roundings
    least_values = {name: least for name, (_, least) in entry.parameters.items() if math.isfinite(least)}
    for name, least in least_values.items():
        with pytest.raises(ValueError, match=rf"module\[1\].{name} is {least - 1:.1f}, expected a finite number of at"):
            Model.from_torch(nn.Sequential(linear(), entry.module(**{name: least - 1})))


def test_an_argument_that_ours_lacks_is_refused():
    message = r"module\[1\] is GELU\(approximate='erf'\), expected approximate='none' or approximate='tanh'"
    with pytest.raises(ValueError, match=message):
        Model.from_torch(nn.Sequential(linear(), nn.GELU("erf")))
    reason = layers.unfused(scratchcuda.nn.Linear(2, 2), scratchcuda.nn.GELU("erf"))
    assert reason == "the kernels do not take GELU(approximate='erf')"


def test_what_a_linear_of_torchs_has_besides_is_its_own():
    layer = linear(5, 3)
    layer.activation, layer.activation_parameters = "relu", (1, 2)
    assert repr(Model.from_torch(nn.Sequential(layer)).layers) == "[Dense(3, Linear())]"
