"""Layers and losses, in every dtype, and networks of them, as torch's own modules."""

import copy
import io
import pickle

import pytest
import torch
from drop_in import (
    CLASSES,
    CROSS_ENTROPY,
    DENSE,
    ROWS,
    X,
    as_torch,
    assert_as_torch,
    gradients,
    loss_and_gradients,
    network,
    outcome,
    rand,
)
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import checkpoint

import scratchcuda

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYERS = {
    "linear": (lambda nn: nn.Linear(5, 3), X, DENSE),
    "linear of leading dimensions": (lambda nn: nn.Linear(5, 3), rand(2, 3, 4, 5), DENSE),
    "linear of one row": (lambda nn: nn.Linear(5, 3), X[0], DENSE),
    "linear of no rows": (lambda nn: nn.Linear(5, 3), X[:0], DENSE),
    "linear without bias": (lambda nn: nn.Linear(5, 3, bias=False), X, DENSE),
    "linear of strides": (lambda nn: nn.Linear(5, 3), rand(5, 12).T[::2], DENSE),
    "linear of an expanded input": (lambda nn: nn.Linear(5, 3), X[:1].expand(6, 5), DENSE),
    "relu": (lambda nn: nn.ReLU(), X, {"relu", "relu_backward"}),
    "relu in place": (lambda nn: nn.ReLU(inplace=True), X, set()),
    "sigmoid": (lambda nn: nn.Sigmoid(), X, {"sigmoid", "sigmoid_backward"}),
    "tanh": (lambda nn: nn.Tanh(), X.T, {"tanh", "tanh_backward"}),
    "softmax": (lambda nn: nn.Softmax(-1), X, {"softmax", "softmax_backward"}),
    "softmax over another dimension": (lambda nn: nn.Softmax(1), rand(2, 5, 3), {"softmax", "softmax_backward"}),
    "softmax over the first": (lambda nn: nn.Softmax(dim=0), X, {"softmax", "softmax_backward"}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, dtype, backend):
    """The output and its layout, gradients, state and text."""
    make, x, kernels = LAYERS[name]

    def behaviour(nn, sgd):
        module = make(nn).to(dtype)
        leaf = x.to(X.device, dtype, copy=True).requires_grad_()
        y = module(leaf.clone())
        names = [name for name, _ in module.named_parameters()]
        parts = [repr(module), sorted(vars(module)), module.state_dict(), names, y, y.stride()]
        return [*parts, gradients(y, leaf, *module.parameters())]

    assert_as_torch(behaviour, kernels, backend)


SOME = torch.tensor([0, -100, 1, 4, -100, 0])
MSE = {"mse_value", "mse_backward"}
W = rand(5).abs() + 0.5
#: Module, options, input, target, and the loss of which the kernels have to run value and gradient, if any.
LOSSES = {
    **{
        f"{op}, {reduction}": (module, {"reduction": reduction, **options}, x, ROWS, op)
        for module, options, x, op in (
            ("MSELoss", {}, X, "mse"),
            ("L1Loss", {}, X, "l1"),
            ("HuberLoss", {"delta": 0.75}, X, "huber"),
            ("SmoothL1Loss", {"beta": 0.75}, X, "smooth_l1"),
            ("BCELoss", {"weight": W}, X.sigmoid(), "binary_cross_entropy"),
            ("BCEWithLogitsLoss", {"weight": W, "pos_weight": W.flip(0)}, X, "binary_cross_entropy_with_logits"),
        )
        for reduction in ("mean", "sum", "none")
    },
    "mse of a scalar": ("MSELoss", {}, rand(), rand(), "mse"),
    "l1 of a scalar": ("L1Loss", {"reduction": "none"}, rand(), rand(), "l1"),
    "mse of strides": ("MSELoss", {}, X, rand(5, 6).T, "mse"),
    "huber of strides": ("HuberLoss", {"reduction": "none"}, rand(5, 6).T, X, "huber"),
    "mse of nothing": ("MSELoss", {}, X[:0], X[:0], "mse"),
    "l1 of nothing": ("L1Loss", {"reduction": "sum"}, X[:0], X[:0], "l1"),
    "l1 at its kink": ("L1Loss", {"reduction": "none"}, X, X, "l1"),
    "huber, whole": ("HuberLoss", {"delta": 1}, X, ROWS, "huber"),
    "smooth l1 of no beta": ("SmoothL1Loss", {"beta": 0.0, "reduction": "sum"}, X, ROWS, "smooth_l1"),
    "probability": ("BCELoss", {}, ROWS, ROWS.flip(0), "binary_cross_entropy"),
    "probability, weights by row": ("BCELoss", {"weight": W[:1].expand(6, 1)}, ROWS, ROWS, "binary_cross_entropy"),
    "scores": ("BCEWithLogitsLoss", {}, 40 * X, (X > 0).double(), "binary_cross_entropy_with_logits"),
    "scores, weights": ("BCEWithLogitsLoss", {"weight": W}, X, ROWS, "binary_cross_entropy_with_logits"),
    "scores, positive": ("BCEWithLogitsLoss", {"pos_weight": W}, X, ROWS, "binary_cross_entropy_with_logits"),
    "scores, wrong weights": ("BCEWithLogitsLoss", {"pos_weight": W[:4]}, X, ROWS, None),
    "huber of no delta": ("HuberLoss", {"delta": 0.0}, X, ROWS, None),
    "no reduction": ("L1Loss", {"reduction": "max"}, X, ROWS, None),
    "classes": ("CrossEntropyLoss", {}, X, CLASSES, "cross_entropy"),
    "classes, some ignored": ("CrossEntropyLoss", {}, X, SOME, "cross_entropy"),
    "classes, one ignored": ("CrossEntropyLoss", {"ignore_index": 0}, X, CLASSES, "cross_entropy"),
    "classes, all ignored": ("CrossEntropyLoss", {"ignore_index": 0}, X, 0 * CLASSES, "cross_entropy"),
    "no classes": ("CrossEntropyLoss", {}, X[:0], CLASSES[:0], "cross_entropy"),
    "probabilities": ("CrossEntropyLoss", {}, X, ROWS, "cross_entropy"),
    "probabilities of no class": ("CrossEntropyLoss", {}, X[:, :0], ROWS[:, :0], None),
    **{
        f"{what}, {reduction}, {options}": ("CrossEntropyLoss", {"reduction": reduction} | given, x, y, "cross_entropy")
        for reduction, options, given in (
            ("sum", "plain", {}),
            ("none", "plain", {}),
            ("mean", "weights", {"weight": W.abs()}),
            ("mean", "smoothed", {"label_smoothing": 0.1}),
            ("none", "smoothed, weights", {"label_smoothing": 0.1, "weight": W.abs()}),
            ("sum", "smoothed whole", {"label_smoothing": 1}),
        )
        for what, x, y in (
            ("classes", X, SOME),
            ("class of one row", X[0], CLASSES[0]),
            ("classes of pixels", rand(2, 5, 3), SOME.view(2, 3)),
            ("probabilities", X, ROWS),
            ("probabilities of pixels", rand(2, 5, 3, 2), rand(2, 5, 3, 2).softmax(1)),
        )
    },
    "classes, wrong weights": ("CrossEntropyLoss", {"weight": W[:4]}, X, CLASSES, None),
    "classes, smoothed too much": ("CrossEntropyLoss", {"label_smoothing": 1.5}, X, CLASSES, None),
    "probabilities, ignored": ("CrossEntropyLoss", {"ignore_index": 1}, X, ROWS, None),
    "classes of uint8": ("CrossEntropyLoss", {}, X, CLASSES.byte(), None),
    "classes of int32": ("CrossEntropyLoss", {}, X, CLASSES.int(), None),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, dtype, backend):
    module, options, x, target, op = LOSSES[name]
    y = target.to(X.device, dtype if target.is_floating_point() else target.dtype)
    options = {key: v.to(y.device, dtype) if isinstance(v, torch.Tensor) else v for key, v in options.items()}

    def behaviour(nn, sgd):
        leaf = x.to(X.device, dtype, copy=True).requires_grad_()
        loss = getattr(nn, module)(**options)
        value = loss(leaf, y)
        return [repr(loss), value, torch.autograd.grad(3 * value.sum(), leaf)]

    kernels = {f"{op}_value", f"{op}_backward"} if op else set()
    assert_as_torch(lambda *sides: outcome(lambda: behaviour(*sides)), kernels, backend)


@as_torch(*DENSE, "tanh", "tanh_backward")
def test_a_network(nn, sgd):
    return loss_and_gradients(network(nn), X)


@as_torch("dense", "tanh")
def test_no_gradients(nn, sgd):
    net = network(nn)
    with torch.no_grad():
        first = net(X)
    with torch.inference_mode():
        return [first, first.requires_grad, net(X).is_inference(), net(X).clone()]


@as_torch(*DENSE, "tanh", "tanh_backward", "relu", "relu_backward")
def test_only_the_gradients_that_are_needed(nn, sgd):
    results = []
    for frozen in (["0.weight"], ["0.weight", "0.bias"], ["2.weight"], ["0.bias", "2.bias"], ["0.weight", "2.weight"]):
        net = network(nn)
        for name in frozen:
            net.get_parameter(name).requires_grad_(False)
        results.append(loss_and_gradients(net, X))
    leaf = X.clone().requires_grad_()
    frozen = network(nn, "ReLU").requires_grad_(False)
    return [*results, torch.autograd.grad(frozen(leaf).sum(), leaf)]


@as_torch(*DENSE, "relu", "relu_backward", "softmax", "softmax_backward", *MSE, *CROSS_ENTROPY)
def test_autocast(nn, sgd):
    results = []
    for dtype in (torch.bfloat16, torch.float16):
        for x in (X.float(), X.to(dtype), X):
            net = network(nn, "ReLU").to(x.dtype if x is X else torch.float32)
            with torch.autocast(X.device.type, dtype):
                scores = net(x)
                probabilities = nn.Softmax(-1)(scores)
                losses = [nn.MSELoss()(scores, x[:, :3]), nn.CrossEntropyLoss()(scores, CLASSES % 3)]
                losses.append(nn.CrossEntropyLoss()(scores, probabilities.detach()))
            results += [scores, probabilities, *losses]
            results.append(torch.autograd.grad(sum(losses) + probabilities[0, 0], list(net.parameters())))
    return results


@as_torch(*DENSE, "tanh", "tanh_backward")
def test_checkpointed(nn, sgd):
    net, results = network(nn), []
    for reentrant in (False, True):
        leaf = X.clone().requires_grad_()
        loss = checkpoint.checkpoint(net, leaf, use_reentrant=reentrant).square().sum()
        results.append(loss)
        loss.backward()
        results.append([leaf.grad, *(p.grad for p in net.parameters())])
    return results


@as_torch()
def test_factory_keywords(nn, sgd):
    """Positional and by name, and what passes them on."""
    made = [
        nn.Linear(5, 3, False, "meta", torch.float16),
        nn.Linear(in_features=5, out_features=3, bias=True, device="meta", dtype=torch.bfloat16),
        torch.nn.utils.skip_init(nn.Linear, 5, 3, dtype=torch.float64),
    ]
    return [[(name, p.shape, p.dtype, p.device) for name, p in layer.named_parameters()] for layer in made]


@as_torch(*DENSE, "tanh", "tanh_backward")
def test_copies(nn, sgd):
    net = network(nn)
    pickled = pickle.loads(pickle.dumps(net))
    torch.save(net.state_dict(), file := io.BytesIO())
    file.seek(0)
    loaded = network(nn)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    empty = network(nn).to("meta").to_empty(device=X.device)
    empty.load_state_dict(net.state_dict(), assign=True)
    return [loss_and_gradients(one, X) for one in (copy.deepcopy(net), pickled, loaded, empty)]


@as_torch("dense", "dense_backward_weights")
def test_parametrized(nn, sgd):
    results = []
    symmetric = type("Symmetric", (torch.nn.Module,), {"forward": lambda self, w: w.triu() + w.triu(1).mT})
    for change in (
        lambda layer: parametrize.register_parametrization(layer, "weight", symmetric()),
        lambda layer: parametrize.register_parametrization(layer, "bias", torch.nn.Softplus()),
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
        lambda layer: prune.remove(prune.l1_unstructured(layer, "weight", 0.3), "weight"),
    ):
        module = change(nn.Linear(5, 5).double())
        results += [loss_and_gradients(module, X), list(module.state_dict()), isinstance(module, torch.nn.Linear)]
    return results


@as_torch(*DENSE, "tanh", "tanh_backward")
def test_hooks(nn, sgd):
    net, seen = network(nn), []
    for name, module in net.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, "pre", args)))
        module.register_forward_hook(lambda m, args, out, name=name: seen.append((name, out)))
        module.register_full_backward_hook(lambda m, g_in, g_out, name=name: seen.append((name, "back", g_out)))
    leaf = X.clone().requires_grad_()
    net(leaf).sum().backward()
    return seen


@as_torch(*DENSE)
def test_saved_tensors(nn, sgd):
    """What a layer keeps for its backward, by its hooks, and that they may move it."""
    module, sizes = nn.Linear(5, 3).double(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t.clone(), lambda t: t):
        y = module(X.clone().requires_grad_())
    return [sorted(sizes), gradients(y, *module.parameters())]


@pytest.mark.backends("emulator", "kernels")
def test_a_loss_keeps_its_arguments_alone():
    kept, leaf, y = [], X.clone().requires_grad_(), ROWS.to(X.device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        scratchcuda.nn.CrossEntropyLoss(label_smoothing=0.1)(leaf, y).backward()
    assert kept == [leaf.data_ptr(), y.data_ptr()]


@as_torch(*DENSE, *MSE, *CROSS_ENTROPY, "sigmoid", "sigmoid_backward")
def test_expanded_gradients(nn, sgd):
    net = network(nn, "Sigmoid")
    loss = net(X).sum() + nn.MSELoss()(net(X), rand(6, 3)).expand(3).sum()
    return torch.autograd.grad(loss + nn.CrossEntropyLoss()(net(X), CLASSES % 3), list(net.parameters()))
