"""Models of transformers, of random weights: what is converted and fused, that all numbers stay, and the way back."""

import copy
import functools
import pickle
from collections import Counter
from types import FunctionType

import pytest
import torch
from drop_in import ops_run
from oracle import same
from torch import nn

import scratchcuda
from scratchcuda.nn import convert, revert

transformers = pytest.importorskip("transformers")
activations = pytest.importorskip("transformers.activations")

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
TEXT = {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
GPT2 = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "n_embd": 16, "n_inner": 24, "n_layer": 1, "n_head": 2}
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)

#: How to make each, its inputs, its MLP, what computes an activation there, and why other layers do not.
MODELS = {
    "ViT": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, **STILL, image_size=8, patch_size=4)),
        PIXELS,
        "layers.0.mlp",
        {"layers.0.mlp.fc1": "gelu", "pooler.dense": "tanh"},
        {"Linear": 5},
    ),
    "BERT": (
        lambda: transformers.BertModel(transformers.BertConfig(**SIZES, **STILL, **TEXT)),
        TOKENS,
        "encoder.layer.0.intermediate",
        {"encoder.layer.0.intermediate.dense": "gelu", "pooler.dense": "tanh"},
        {"Linear": 5},
    ),
    "GPT-2": (
        lambda: transformers.GPT2Model(transformers.GPT2Config(**GPT2, **TEXT)),
        TOKENS,
        "h.0.mlp",
        {"h.0.mlp.c_fc": "gelu_tanh"},
        {"Conv1D": 3},
    ),
    "Llama": (
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZES, **TEXT)),
        TOKENS,
        "layers.0.mlp",
        {"layers.0.mlp.gate_proj": "silu"},
        {"Linear": 6},
    ),
}


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    make, x, *others = MODELS[name]
    device = torch.get_default_device()
    with torch.device("cpu"):  # where the default device is a GPU, transformers asks for another package
        return make().to(device, dtype), x.to(device, dtype if x.is_floating_point() else None), *others


def widened(x):
    return x.double() if x.is_floating_point() else x


def assert_as_near(ours, theirs, truth, dtype):
    """By norm, to twice what torch.nn's own rounding does; in 16 bits that is more, between two modules."""
    floor = 4 * torch.finfo(dtype).eps * truth.norm()
    assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + floor


def numbers(model, x):
    """Outputs and gradients, as two vectors."""
    outputs = model(x)
    y = torch.cat([outputs[name].flatten() for name in ("last_hidden_state", "pooler_output") if name in outputs])
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device)
    grads = torch.autograd.grad((y * weights).sum(), [*model.parameters()], allow_unused=True)
    return y, torch.cat([grad.flatten() for grad in grads if grad is not None])


@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_fused_and_back(name, dtype, backend):
    model, x, _, fused, left = made(name, dtype)
    original, kinds = copy.deepcopy(model), [type(module) for module in model.modules()]
    state, text = copy.deepcopy(model.state_dict()), repr(model)
    done = convert(model, fuse=True, inputs=x)
    assert done.fused == fused
    assert Counter(done.kinds[layer] for layer in done.left if done.left[layer].startswith("not fused")) == left
    assert all(isinstance(module, kind) for module, kind in zip(model.modules(), kinds, strict=True))
    assert repr(model) == text
    same([*model.state_dict().values()], [*state.values()])

    ours, ran = ops_run(lambda: numbers(model, x))
    theirs = numbers(original, x)
    truth = numbers(copy.deepcopy(original).double(), widened(x))
    for found, wanted, right in zip(ours, theirs, truth, strict=True):
        assert_as_near(found, wanted, right, dtype)
    if backend != "tensor":
        ops = {"dense", "dense_backward_input", "dense_backward_weights"}
        assert ops | {f"{activation}_backward" for activation in fused.values()} <= ran

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        same(numbers(twin, x)[0], ours[0])
    assert revert(model).left == {}
    assert [type(module) for module in model.modules()] == kinds
    same([numbers(model, x)[0], *model.state_dict().values()], [theirs[0], *state.values()])


def losses(model, optimizer, x, steps=6):
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x).last_hidden_state.double()  # or the loss alone rounds by as much as it moves
        loss = (y - torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype, device=y.device)).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.backends("emulator", "kernels")
@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_trains_as_the_original(name, dtype):
    model, x, *_ = made(name, dtype)
    original, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    convert(model, fuse=True, inputs=x)
    ours = losses(model, scratchcuda.optim.SGD(model.parameters(), 0.05, 0.9), x)
    theirs = losses(original, torch.optim.SGD(original.parameters(), 0.05, 0.9), x)
    truth = losses(exact, torch.optim.SGD(exact.parameters(), 0.05, 0.9), widened(x))
    assert_as_near(ours, theirs, truth, dtype)
    assert truth[-1] < 0.9 * truth[0]


@pytest.mark.backends("emulator", "kernels")
@pytest.mark.parametrize("name", MODELS)
def test_a_fused_block_is_one_graph(name):
    model, x, block, *_ = made(name)
    convert(model, fuse=True, inputs=x)
    block, h = model.get_submodule(block), torch.randn(2, 5, 16)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    ours, theirs = ([y, *torch.autograd.grad(y.sum(), [*block.parameters()])] for y in (compiled(h), block(h)))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        compiled(h)
        assert ops_run(lambda: compiled(h))[1] == {"dense"}


class Named(activations.GELUActivation):
    """Somebody's own."""


def holding(function):
    act = activations.GELUActivation()
    act.act = function
    return act


class Of(nn.Module):
    """The same words about other things."""

    forward = FunctionType(activations.SiLUActivation.forward.__code__, {"nn": scratchcuda.nn})


#: Activations, and what a Linear before each computes.
ACTIVATIONS = {
    "gelu": (activations.GELUActivation, "gelu"),
    "gelu in words": (lambda: activations.GELUActivation(True), None),
    "gelu, derived": (Named, None),
    "gelu_tanh": (activations.GELUTanh, "gelu_tanh"),
    "gelu_tanh in words": (lambda: activations.GELUTanh(True), None),
    "new": (activations.NewGELUActivation, "gelu_tanh"),
    "fast": (activations.FastGELUActivation, None),  # whose constants are of ten digits
    "quick": (activations.QuickGELUActivation, None),
    "silu": (activations.SiLUActivation, "silu"),
    "of another nn": (Of, None),
    "another function": (lambda: holding(torch.cos), None),
    "another argument": (lambda: holding(functools.partial(nn.functional.gelu, approximate="none")), None),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, backend):
    make, computed = ACTIVATIONS[name]
    net, x = nn.Sequential(nn.Linear(4, 4), make()).double(), torch.randn(3, 4, dtype=torch.float64)
    twin, kind = copy.deepcopy(net), type(net[1])
    assert convert(net, fuse=True).fused.get("0") == computed
    assert (type(net[1]) is kind) == (computed is None)
    for one, other, ops in ((net, twin, {"dense"}), (net[1], twin[1], {computed})):  # the activation by itself too
        with torch.no_grad():
            found, ran = ops_run(functools.partial(one, x))
        torch.testing.assert_close(found, other(x))
        if backend != "tensor" and computed:
            assert ran == ops
    revert(net)
    assert type(net[1]) is kind


def test_reasons():
    net = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), act()) for act in (Named, activations.QuickGELUActivation)])
    net += [nn.TransformerEncoderLayer(4, 2, 4)]
    left = convert(net, fuse=True).left
    assert left["0.0"] == "not fused: its Named is not converted"
    assert left["0.1"] == "is a Named, not exactly a GELUActivation"
    assert left["1.0"] == "not fused: QuickGELUActivation is no activation of ours"
    reason = convert(net[2], fuse=True, inputs=torch.randn(3, 2, 4)).left["linear1"]
    assert reason == "not fused: no activation module is given what it returns"  # a method other than forward calls it


class MLP(nn.Sequential):
    """As torchvision's."""


def test_what_derives_from_a_sequential_fuses_where_a_call_shows_it(monkeypatch):
    net, x = nn.Sequential(MLP(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0), nn.Linear(4, 4))), torch.randn(3, 4)
    expected = net(x)
    assert convert(net, fuse=True).fused == {}
    done = convert(net, fuse=True, inputs=x)
    assert (done.fused, "0" in done.left) == ({"0.0": "gelu"}, False)
    same(pickle.loads(pickle.dumps(net))(x), net(x))
    torch.testing.assert_close(net(x), expected)
    net[0][1] = nn.Identity()
    torch.testing.assert_close(net(x), net[0][3](net[0][0](x)))
    monkeypatch.setattr(MLP, "forward", lambda self, x: self[0](x))
    same(net(x), net[0][0](x))
    assert revert(net).left == {}
    assert type(net[0]) is MLP


def test_what_is_changed_afterwards_is_followed():
    net, x = nn.Sequential(nn.Linear(4, 4), activations.GELUActivation()), torch.randn(3, 4)
    convert(net, fuse=True)
    net[1].act = torch.cos
    torch.testing.assert_close(net(x), torch.cos(net[0](x)))
    assert convert(net, fuse=True).left == {"0": "not fused: the kernels do not take GELUActivation()"}


def test_a_patched_class_is_left(monkeypatch):
    convert(activations.NewGELUActivation())  # whose class is then known
    monkeypatch.setattr(activations.NewGELUActivation, "forward", lambda self, x: x)
    net = nn.Sequential(nn.Linear(4, 4), activations.NewGELUActivation())
    assert convert(net, fuse=True).left["1"] == "no layer of ours"
    assert type(pickle.loads(pickle.dumps(net[1]))) is activations.NewGELUActivation
