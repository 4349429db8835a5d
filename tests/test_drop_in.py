"""What users expect of torch.nn and torch.optim.SGD, run for theirs and for ours side by side.

A behaviour is a function of the modules (torch.nn or scratchcuda.nn) and of the optimizer's class. Whatever it returns,
and the class of what it raises, has to be the same; each names the ops of ours that have to run on the kernels.
"""

import copy
import importlib.util
import io
import itertools
import math
import pickle
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.fx
from oracle import same
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import checkpoint

import scratchcuda

#: Ours.
DENSE = {"dense", "dense_backward_input", "dense_backward_weights"}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def rand(*shape, **options):
    return torch.randn(shape, **{"dtype": torch.float64} | options)


def ops_run(function):
    """What a function returns, and the names of our registered ops that it has run, on all threads."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function()
    names = (event.key.split("::") for event in profile.key_averages())
    return result, {name[-1] for name in names if name[0].startswith("scratchcuda") and len(name) == 2}


def run(behaviour, nn, sgd):
    torch.manual_seed(0)
    torch.compiler.reset()
    try:
        return behaviour(nn, sgd)
    except Exception as error:
        return type(error)


def assert_same(ours, theirs, dtype=torch.float64):
    """Numbers agree but for a few roundings, of this dtype or coarser, of short sums of about 1; all else is equal."""
    if isinstance(theirs, torch.Tensor):
        assert (ours.dtype, ours.requires_grad) == (theirs.dtype, theirs.requires_grad)
        inexact = ours.is_floating_point() or ours.is_complex()
        unit = 16 * max(torch.finfo(d).eps for d in (dtype, ours.dtype)) if inexact else 0
        torch.testing.assert_close(ours, theirs, rtol=unit, atol=unit, equal_nan=True)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()), dtype)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, dtype)
    else:
        assert ours == theirs


def gradients(outputs, *tensors):
    """By a gradient that is neither contiguous nor the same everywhere."""
    seed = rand(*outputs.shape[::-1], dtype=outputs.dtype).permute(*reversed(range(outputs.dim())))
    return torch.autograd.grad(outputs, tensors, seed, allow_unused=True)


def layer(make, x, dtype=torch.float64):
    """The layer's output and its layout, gradients, state and text."""

    def behaviour(nn, sgd):
        module = make(nn).to(dtype)
        leaf = x.to(X.device, dtype, copy=True).requires_grad_()
        y = module(leaf.clone())
        parts = [
            repr(module),
            sorted(vars(module)),
            module.state_dict(),
            [name for name, _ in module.named_parameters()],
            y,
            y.stride(),
        ]
        return [*parts, gradients(y, leaf, *module.parameters())]

    return behaviour


X = rand(6, 5)
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
    make, x, kernels = LAYERS[name]
    theirs = run(layer(make, x, dtype), torch.nn, None)
    ours, served = ops_run(lambda: run(layer(make, x, dtype), scratchcuda.nn, None))
    assert isinstance(theirs, list)
    assert_same(ours, theirs)
    assert served == (set() if backend == "tensor" else kernels)


CLASSES = torch.tensor([0, 2, 1, 4, 2, 0])
SOME = torch.tensor([0, -100, 1, 4, -100, 0])
ROWS = rand(6, 5).softmax(-1)
LOSSES = {
    "mse": ("MSELoss", {}, X, rand(6, 5), "mse"),
    "mse, sum": ("MSELoss", {"reduction": "sum"}, X, rand(6, 5), None),
    "mse, none": ("MSELoss", {"reduction": "none"}, X, rand(6, 5), None),
    "mse of a scalar": ("MSELoss", {}, rand(), rand(), "mse"),
    "mse of strides": ("MSELoss", {}, X, rand(5, 6).T, "mse"),
    "classes": ("CrossEntropyLoss", {}, X, CLASSES, "cross_entropy"),
    "classes, some ignored": ("CrossEntropyLoss", {}, X, SOME, "cross_entropy"),
    "classes, one ignored": ("CrossEntropyLoss", {"ignore_index": 0}, X, CLASSES, "cross_entropy"),
    "classes, all ignored": ("CrossEntropyLoss", {"ignore_index": 0}, X, 0 * CLASSES, "cross_entropy"),
    "no classes": ("CrossEntropyLoss", {}, X[:0], CLASSES[:0], "cross_entropy"),
    "probabilities": ("CrossEntropyLoss", {}, X, ROWS, "cross_entropy"),
    "probabilities of no class": ("CrossEntropyLoss", {}, X[:, :0], ROWS[:, :0], None),
    "classes, weights": ("CrossEntropyLoss", {"weight": rand(5).abs()}, X, CLASSES, None),
    "classes, smoothed": ("CrossEntropyLoss", {"label_smoothing": 0.1}, X, CLASSES, None),
    "classes, sum": ("CrossEntropyLoss", {"reduction": "sum"}, X, CLASSES, None),
    "class of one row": ("CrossEntropyLoss", {}, X[0], CLASSES[0], None),
    "classes of pixels": ("CrossEntropyLoss", {}, rand(2, 5, 3), CLASSES.view(2, 3), None),
    "classes of int32": ("CrossEntropyLoss", {}, X, CLASSES.int(), None),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, dtype, backend):
    module, options, x, target, op = LOSSES[name]
    y = target.to(X.device, dtype if target.is_floating_point() else target.dtype)
    options = {key: value.to(y.device, dtype) if key == "weight" else value for key, value in options.items()}

    def behaviour(nn, sgd):
        leaf = x.to(X.device, dtype, copy=True).requires_grad_()
        loss = getattr(nn, module)(**options)
        value = loss(leaf, y)
        return [repr(loss), value, torch.autograd.grad(3 * value.sum(), leaf)]

    theirs = run(behaviour, torch.nn, None)
    ours, served = ops_run(lambda: run(behaviour, scratchcuda.nn, None))
    assert_same(ours, theirs)
    assert served == (set() if backend == "tensor" or op is None else {op})


BEHAVIOURS = {}


def behaviour(*kernels):
    """Adds a function to the table, with the names of the ops that kernels have to run in it."""

    def add(function):
        BEHAVIOURS[function.__name__] = function, set(kernels)
        return function

    return add


def network(nn, activation="Tanh"):
    return nn.Sequential(nn.Linear(5, 4), getattr(nn, activation)(), nn.Linear(4, 3)).double()


def loss_and_gradients(net, x, y=None):
    loss = net(x).square().mean() if y is None else torch.nn.functional.cross_entropy(net(x), y)
    return [loss, torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])]


@behaviour(*DENSE, "tanh", "tanh_backward")
def a_network(nn, sgd):
    return loss_and_gradients(network(nn), X)


@behaviour("dense", "tanh")
def no_gradients(nn, sgd):
    net = network(nn)
    with torch.no_grad():
        first = net(X)
    with torch.inference_mode():
        return [first, first.requires_grad, net(X).is_inference(), net(X).clone()]


@behaviour(*DENSE, "tanh", "tanh_backward", "relu", "relu_backward")
def only_the_gradients_that_are_needed(nn, sgd):
    results = []
    for frozen in (["0.weight"], ["0.weight", "0.bias"], ["2.weight"], ["0.bias", "2.bias"], ["0.weight", "2.weight"]):
        net = network(nn)
        for name in frozen:
            net.get_parameter(name).requires_grad_(False)
        results.append(loss_and_gradients(net, X))
    leaf = X.clone().requires_grad_()
    frozen = network(nn, "ReLU").requires_grad_(False)
    return [*results, torch.autograd.grad(frozen(leaf).sum(), leaf)]


@behaviour(*DENSE, "mse", "cross_entropy", "sigmoid", "sigmoid_backward")
def expanded_gradients(nn, sgd):
    net = network(nn, "Sigmoid")
    loss = net(X).sum() + nn.MSELoss()(net(X), rand(6, 3)).expand(3).sum()
    return torch.autograd.grad(loss + nn.CrossEntropyLoss()(net(X), CLASSES % 3), list(net.parameters()))


ACTIVATIONS = ("relu", "sigmoid", "tanh", "softmax")


@behaviour(*DENSE, *ACTIVATIONS, *(f"{name}_backward" for name in ACTIVATIONS), "mse", "cross_entropy")
def first_and_second_derivatives(nn, sgd):
    w, b = rand(3, 5, requires_grad=True), rand(3, requires_grad=True)
    x, f, targets = X[:3].clone().requires_grad_(), nn.functional, rand(3, 5)
    functions = {
        "linear": (lambda x, w, b: f.linear(x, w, b), (x, w, b)),
        "relu": (f.relu, (x,)),
        "sigmoid": (f.sigmoid, (x,)),
        "tanh": (f.tanh, (x,)),
        "softmax": (lambda x: f.softmax(x, 0), (x,)),
        "mse": (lambda x: f.mse_loss(x, targets), (x,)),
        "classes": (lambda x: f.cross_entropy(x, CLASSES[:3]), (x,)),
        "ignored": (lambda x: f.cross_entropy(x, CLASSES[:3], ignore_index=2), (x,)),
        "rows": (lambda x: f.cross_entropy(x, ROWS[:3]), (x,)),
    }
    checks = (torch.autograd.gradcheck, torch.autograd.gradgradcheck)
    return {name: [check(function, args) for check in checks] for name, (function, args) in functions.items()}


@behaviour()
def transforms(nn, sgd):
    net = network(nn)
    parameters, rows = dict(net.named_parameters()), X.unsqueeze(1)

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, rows)
    jacobians = [torch.func.jacrev(net)(X[0]), torch.func.jacfwd(net)(X[0]), torch.func.hessian(lambda x: net(x).sum())]
    with torch.autograd.forward_ad.dual_level():
        dual = net(torch.autograd.forward_ad.make_dual(X, X.flip(0)))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    return [each, jacobians[:2], jacobians[2](X[0]), tangent.clone()]


@behaviour(*DENSE, "tanh", "tanh_backward", "mse")
def compiled(nn, sgd):
    net, loss_f, y = network(nn), nn.MSELoss(), rand(6, 3)
    step = torch.compile(lambda x: loss_f(net(x), y), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        first = step(X)
    return [first, torch.autograd.grad(step(X), list(net.parameters()))]


@behaviour(*DENSE, "tanh", "tanh_backward", "cross_entropy", "sgd_update_")
def compiled_by_inductor(nn, sgd):
    net, loss_f, losses = network(nn), nn.CrossEntropyLoss(), []
    optimizer, loss_of = (
        sgd(net.parameters(), 0.1, 0.9),
        torch.compile(lambda: loss_f(net(X), CLASSES % 3), fullgraph=True),
    )
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss_of())
        losses[-1].backward()
        optimizer.step()
    return losses


@behaviour(*DENSE, "tanh", "tanh_backward")
def compiled_with_autocast_and_sizes(nn, sgd):
    net = network(nn).float()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    with torch.autocast(X.device.type, torch.bfloat16):
        for m in (2, 5, 6):
            results.append(loss_and_gradients(compiled, X[:m].float()))
    return results


@behaviour()
def compiled_optimizer(nn, sgd):
    net = network(nn)
    optimizer = sgd(net.parameters(), 0.1, momentum=0.9)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(3):
        for p in net.parameters():
            p.grad = p.detach().clone()
        step()
    return net.state_dict()


@behaviour()
def exported(nn, sgd):
    """A program of torch's own operations, whatever the backend."""
    net, results = network(nn), []
    for strict in (False, True):
        program = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("m")},), strict=strict)
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        results += [program.module()(X[:3]), [target.split(".")[0] for target in targets if "aten" not in target]]
    return results


@behaviour("dense", "tanh")
def onnx_exported(nn, sgd):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net = network(nn).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of itself
        program = torch.onnx.export(net, (X.float(),), dynamo=True, verbose=False, input_names=["x"])
    y = reference.ReferenceEvaluator(program.model_proto).run(None, {"x": X.float().cpu().numpy()})[0]
    return [torch.from_numpy(y).to(X.device), net(X.float()).detach()]


@behaviour(*DENSE, "relu", "relu_backward", "softmax", "softmax_backward", "mse", "cross_entropy")
def autocast(nn, sgd):
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


@behaviour(*DENSE, "tanh", "tanh_backward")
def checkpointed(nn, sgd):
    net, results = network(nn), []
    for reentrant in (False, True):
        leaf = X.clone().requires_grad_()
        loss = checkpoint.checkpoint(net, leaf, use_reentrant=reentrant).square().sum()
        results.append(loss)
        loss.backward()
        results.append([leaf.grad, *(p.grad for p in net.parameters())])
    return results


@behaviour()
def factory_keywords(nn, sgd):
    """Positional and by name, and what passes them on."""
    made = [
        nn.Linear(5, 3, False, "meta", torch.float16),
        nn.Linear(in_features=5, out_features=3, bias=True, device="meta", dtype=torch.bfloat16),
        torch.nn.utils.skip_init(nn.Linear, 5, 3, dtype=torch.float64),
    ]
    return [[(name, p.shape, p.dtype, p.device) for name, p in layer.named_parameters()] for layer in made]


@behaviour(*DENSE, "tanh", "tanh_backward")
def copies(nn, sgd):
    net = network(nn)
    pickled = pickle.loads(pickle.dumps(net))
    torch.save(net.state_dict(), file := io.BytesIO())
    file.seek(0)
    loaded = network(nn)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    empty = network(nn).to("meta").to_empty(device=X.device)
    empty.load_state_dict(net.state_dict(), assign=True)
    return [loss_and_gradients(one, X) for one in (copy.deepcopy(net), pickled, loaded, empty)]


@behaviour("dense", "dense_backward_weights")
def parametrized(nn, sgd):
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
        module = change(nn.Linear(5, 5).double()) or module  # noqa: F821
        results += [loss_and_gradients(module, X), list(module.state_dict()), isinstance(module, torch.nn.Linear)]
    return results


@behaviour(*DENSE, "tanh", "tanh_backward")
def hooks(nn, sgd):
    net, seen = network(nn), []
    for name, module in net.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, "pre", args)))
        module.register_forward_hook(lambda m, args, out, name=name: seen.append((name, out)))
        module.register_full_backward_hook(lambda m, g_in, g_out, name=name: seen.append((name, "back", g_out)))
    leaf = X.clone().requires_grad_()
    net(leaf).sum().backward()
    return seen


@behaviour(*DENSE)
def saved_tensors(nn, sgd):
    """What a layer keeps for its backward, by its hooks, and that they may move it."""
    module, sizes = nn.Linear(5, 3).double(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t.clone(), lambda t: t):
        y = module(X.clone().requires_grad_())
    return [sorted(sizes), gradients(y, *module.parameters())]


@behaviour("cross_entropy")
def a_loss_that_is_scaled(nn, sgd):
    """Gradients of float16 that underflow unless the scale of the loss reaches them first."""
    scores = rand(400, 2000).half().requires_grad_()
    loss = nn.CrossEntropyLoss()(scores, torch.arange(400)) * 16384
    (gradient,) = torch.autograd.grad(loss, scores)
    return [(gradient == 0).double().mean() < 0.01, gradient]


@behaviour()
def gradients_of_targets(nn, sgd):
    leaves = [X.clone().requires_grad_(), ROWS.clone().requires_grad_()]
    losses = nn.MSELoss()(*leaves), nn.CrossEntropyLoss()(*leaves)
    return [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]


@behaviour("dense", "tanh", "mse")
def an_undefined_gradient(nn, sgd):
    """As of a function that has none: it stays none, for an optimizer that would decay."""

    class Nothing(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, delta: None)

    net, f = network(nn), nn.functional
    for function in (lambda x: net[0](x), lambda x: f.tanh(x), lambda x: f.mse_loss(x, X)):
        Nothing.apply(function(X.clone().requires_grad_())).sum().backward()
    return [p.grad for p in net.parameters()]


@behaviour("dense", "tanh")
def traced_by_jit(nn, sgd):
    """Of torch's operations; beside it torch runs the network as it is, to compare."""
    traced = torch.jit.trace(network(nn), (X,))
    return [traced(X[:2]), "::dense" in str(traced.inlined_graph)]


@behaviour("dense", "tanh")
def forward_derivatives_of_what_is_compiled(nn, sgd):
    net = torch.compile(network(nn).requires_grad_(False), backend="eager")
    with torch.autograd.forward_ad.dual_level():
        dual = net(torch.autograd.forward_ad.make_dual(X.clone(), X.flip(0)))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent.clone()
    return [tangent, net(X)]


@behaviour("softmax")
def where_warnings_point(nn, sgd):
    """At the code that called, which here leaves out the dimension."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.functional.softmax(X)
        nn.Softmax()(X)
        nn.functional.softmax(X, -1)
    # Under a default device, within torch for both, though not at the same place.
    return [warning.filename == __file__ and warning.lineno for warning in caught]


@behaviour()
def arguments_of_old(nn, sgd):
    warnings.simplefilter("ignore")  # that they are deprecated
    f = nn.functional
    calls = [{"reduce": False}, {"size_average": False}, {"reduce": False, "size_average": True}]
    return [[f.mse_loss(X, ROWS, **call), f.cross_entropy(X, CLASSES, **call)] for call in calls]


@behaviour("dense", "tanh", "sgd_update_")
def a_stale_graph_raises(nn, sgd):
    net = network(nn)
    optimizer = sgd(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    loss = net(X.clone().requires_grad_()).sum()
    optimizer.step()
    loss.backward()


@behaviour("softmax", "softmax_backward")
def softmax_in_another_dtype(nn, sgd):
    leaf = X.half().requires_grad_()
    y = nn.functional.softmax(leaf, 0, dtype=torch.float32)
    return [y, gradients(y, leaf), nn.functional.softmax(CLASSES, 0, dtype=torch.float64)]


@behaviour()
def what_kernels_do_not_take(nn, sgd):
    """torch's own results and errors: other dtypes, layouts, kinds of tensors, shapes that do not fit."""
    warnings.simplefilter("ignore")  # of torch's prototypes, and of shapes that broadcast
    f, w, results = nn.functional, rand(3, 5), []
    for call in (
        lambda: f.linear(X.to(torch.complex128), w.to(torch.complex128)),
        lambda: f.linear(X.long(), w.long()),
        lambda: f.linear(X, w.to_sparse_csr()),
        lambda: f.linear(X, w[0]),
        lambda: f.linear(X, w, rand(1)),
        lambda: f.linear(X, w.float()),
        lambda: f.linear(X[:, :4], w),
        lambda: f.linear(X.to("meta"), w.to("meta")).shape,
        lambda: f.linear(torch.tensor(1.0), w),
        lambda: f.relu(CLASSES - 1),
        lambda: f.tanh(CLASSES),
        lambda: f.tanh(X.to(torch.complex128).conj().imag),
        lambda: f.softmax(X, 2),
        lambda: f.softmax(rand(), 0),
        lambda: f.mse_loss(X, rand(6, 5, requires_grad=True)).requires_grad,
        lambda: f.mse_loss(X, rand(6, 5).float()),
        lambda: f.mse_loss(X, rand(4, 5)),
        lambda: f.cross_entropy(X, CLASSES[:4]),
        lambda: f.cross_entropy(X, ROWS, ignore_index=1),
        lambda: f.linear(torch.nested.nested_tensor([X, X[:2]]), w).to_padded_tensor(0),
    ):
        try:
            results.append(call())
        except Exception as error:
            results.append(type(error))
    return results


@behaviour()
def arguments_of_other_types(nn, sgd):
    """torch's own results and errors, by their text."""
    f, w, results = nn.functional, rand(3, 5), []
    calls = [lambda value=value: f.cross_entropy(X, CLASSES, ignore_index=value) for value in (None, True, 1.0, "1")]
    calls += [lambda value=value: f.cross_entropy(X, value) for value in ([0, 2, 1, 4, 2, 0], None, CLASSES > 0)]
    calls += [lambda value=value: f.cross_entropy(X, CLASSES, label_smoothing=value) for value in (None, [], "")]
    calls += [lambda value=value: f.softmax(X, value) for value in ("C", True, 1.0, torch.tensor(1.0))]
    calls += [lambda value=value: f.linear(X, w, value) for value in (True, [1.0, 2.0, 3.0])]
    calls += [lambda: f.softmax(X, 0, dtype="cpu"), lambda: f.linear(X, w.tolist())]
    calls += [lambda: f.mse_loss(X, ROWS.tolist()), lambda: nn.CrossEntropyLoss(ignore_index=None)(X, CLASSES)]
    for call in calls:
        try:
            results.append(call())
        except Exception as error:
            results.append([type(error), str(error)])
    return results


@behaviour()
def traced(nn, sgd):
    """By torch.fx, whose proxies are no tensors."""
    net = network(nn)
    return torch.fx.GraphModule(net, torch.fx.Tracer().trace(net))(X)


def trained(optimizer, params, steps=3, closure=None):
    """Parameters of three shapes and two dtypes: the second has its first gradient late, the last has none."""
    torch.manual_seed(1)
    for step in range(steps):
        for i, p in enumerate(params[:-1]):
            if step or i != 1:
                p.grad = torch.randn_like(p)
        optimizer.step(closure)
    return [[p.detach().clone() for p in params], optimizer.state_dict()]


def parameters():
    flat = rand(20)  # as an LSTM's on a GPU: views of one tensor, and one that is no parameter yet
    shapes = [flat[:6].view(2, 3), flat[6:12].view(3, 2).T, flat[12:].float(), rand(), rand(3)]
    return [torch.nn.Parameter(p) for p in shapes]


OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.5, "dampening": 0.3, "maximize": True},
    {"weight_decay": 0.1, "maximize": True},
    {"foreach": True, "momentum": 0.9},
    {"foreach": False},
    {"fused": True, "weight_decay": 0.1},
    {"lr": torch.tensor(0.1, dtype=torch.float64)},
    {"weight_decay": torch.tensor(0.1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_optimizer(options, backend):
    """Also in groups, from a state that the other has saved, and by its text."""
    options = {"lr": 0.1} | options

    def behaviour(nn, sgd):
        params = parameters()
        optimizer = sgd(params[:2], **options)
        optimizer.add_param_group({"params": params[2:], "lr": 0.05})
        results = [repr(optimizer), trained(optimizer, params)]
        for other in (torch.optim.SGD, scratchcuda.optim.SGD):
            loaded = other([{"params": params[:2]}, {"params": params[2:]}], lr=1.0)
            loaded.load_state_dict(optimizer.state_dict())
            results.append(trained(loaded, params, 2))
        return results

    theirs = run(behaviour, torch.nn, torch.optim.SGD)
    ours, served = ops_run(lambda: run(behaviour, scratchcuda.nn, scratchcuda.optim.SGD))
    assert isinstance(theirs, list)
    assert_same(ours, theirs)
    by_tensor = any(isinstance(value, torch.Tensor) for value in options.values())
    torchs = backend == "tensor" or by_tensor or options.get("foreach") or options.get("fused")
    assert served == (set() if torchs else {"sgd_update_"})


@behaviour("sgd_update_")
def schedulers(nn, sgd):
    results = []
    for make in (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    ):
        params = parameters()
        optimizer = sgd(params, 0.1, momentum=0.9)
        scheduler = make(optimizer)
        for _ in range(4):
            results.append(trained(optimizer, params, 1))
            scheduler.step()
    return results


@behaviour(*DENSE, "tanh", "tanh_backward", "mse", "sgd_update_")
def scaled_gradients(nn, sgd):
    """By GradScaler: of float16, with a step that is left out because of an infinite gradient."""
    net, results = network(nn).float(), []
    optimizer, scaler = sgd(net.parameters(), 0.1, momentum=0.9), torch.amp.GradScaler(X.device.type, init_scale=256.0)
    for step in range(4):
        with torch.autocast(X.device.type, torch.float16):
            loss = nn.MSELoss()(net(X.float()), X[:, :3].float())
        optimizer.zero_grad()
        scaler.scale(loss * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        results.append([loss, scaler.get_scale(), {name: p.clone() for name, p in net.state_dict().items()}])
    return results


@behaviour("sgd_update_")
def hooks_of_optimizers(nn, sgd):
    """Each called once a step, also where torch's step runs; a closure's loss is returned."""
    seen, params = [], parameters()
    torch.optim.SGD(parameters())  # whose class has its hooks from now on
    for options in ({}, {"foreach": True}):
        optimizer = sgd(params, 0.1, **options)
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("post"))
        trained(optimizer, params)
        seen.append(optimizer.step(lambda: seen.append(torch.is_grad_enabled()) or torch.tensor(2.0)))
    return seen


@behaviour("sgd_update_")
def gradients_of_other_kinds(nn, sgd):
    params = [torch.nn.Parameter(rand(5, 2)), torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(3).to(torch.cfloat))]
    optimizer = sgd(params, 0.1)
    sparse = torch.nn.functional.embedding(torch.tensor([1, 3, 1]), params[0], sparse=True).sum()
    (sparse + params[1].sum() + params[2].abs().sum()).backward()
    optimizer.step()
    params[1].grad = torch.ones(1, dtype=torch.float64).expand(3)
    optimizer.step()
    return params


@behaviour()
def differentiable_updates(nn, sgd):
    p = rand(3, requires_grad=True)
    q = p.clone()
    optimizer = sgd([q], 0.1, differentiable=True)
    q.grad = 2 * p
    optimizer.step()
    return torch.autograd.grad(q.square().sum(), p)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": -1.0}, {"nesterov": True}, {"fused": 1, "foreach": 1}])
def test_optimizer_refuses(options):
    raised = [
        run(lambda nn, sgd: sgd(parameters(), **options), None, sgd) for sgd in (torch.optim.SGD, scratchcuda.optim.SGD)
    ]
    assert raised[0] is raised[1]
    assert issubclass(raised[0], Exception)


CHANGES = [{"lr": -0.1}, {"momentum": 0.0}, {"dampening": 0.5}, {"weight_decay": -0.1}, {"lr": 0.2}]
CHANGES += [{"nesterov": "True"}, {"maximize": "True"}, {"nesterov": False, "dampening": math.inf}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_options_that_change_later(changes):
    """As schedulers may leave them, Nesterov's without momentum too; or as no kernel takes them."""

    def behaviour(nn, sgd):
        params = parameters()
        optimizer = sgd(params, 0.1, momentum=0.9, nesterov=True)
        trained(optimizer, params, 1)
        optimizer.param_groups[0].update(changes)
        return trained(optimizer, params)

    results = [run(behaviour, None, sgd) for sgd in (scratchcuda.optim.SGD, torch.optim.SGD)]
    assert isinstance(results[1], list)
    assert_same(*results)


#: Parameters of 12 numbers, and what else they share once they have gradients and momentum.
SHARED = {
    "a parameter listed twice": (lambda x: [x, x], None),
    "views": (lambda x: [x, x.view(2, 6)], None),
    "parts": (lambda x: [x[:8], x[4:]], None),
    "parts with gaps": (lambda x: [x.view(3, 4)[:, :3], x.view(3, 4)[:, 2:]], None),
    "views, and another kind between": (lambda x: [x, x.to(torch.cfloat), x.view(2, 6)], None),
    "a gradient": (lambda x: [*x.split(6)], lambda p, q, state: setattr(p, "grad", q.grad)),
    "gradients that are parameters": (lambda x: [*x.split(6)], lambda p, q, state: setattr(p, "grad", q.detach())),
    "momentum": (lambda x: [*x.split(6)], lambda p, q, state: state[p].update(state[q])),
}


@pytest.mark.parametrize("name", SHARED)
def test_optimizer_of_what_shares_memory(name):
    """One after another, as torch on a CPU."""
    views, share = SHARED[name]

    def behaviour(nn, sgd):
        warnings.simplefilter("ignore")  # of duplicates
        made = {}
        params = [made.setdefault(view, torch.nn.Parameter(view)) for view in views(rand(12))]
        optimizer = sgd(params, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=False)
        for step in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            if share and step:
                share(params[0], params[-1], optimizer.state)
            optimizer.step()
        return [params, optimizer.state_dict()]

    ours, theirs = (run(behaviour, None, sgd) for sgd in (scratchcuda.optim.SGD, torch.optim.SGD))
    assert isinstance(theirs, list)
    assert_same(ours, theirs)


def test_gradients_of_a_subclass_are_torchs(backend):
    p = torch.nn.Parameter(rand(3))
    p.grad = rand(3).as_subclass(type("Own", (torch.Tensor,), {}))
    expected = p.detach() - 0.1 * p.grad.as_subclass(torch.Tensor)
    _, served = ops_run(scratchcuda.optim.SGD([p], 0.1).step)
    assert_same(p.detach(), expected)
    assert served == set()


def test_an_update_bumps_versions_of_momentum_too():
    p = torch.nn.Parameter(rand(3))
    optimizer = scratchcuda.optim.SGD([p], 0.1, momentum=0.9)
    versions = []
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        versions.append((p._version, optimizer.state[p]["momentum_buffer"]._version))
    assert all(after > before for i in (0, 1) for before, after in itertools.pairwise(v[i] for v in versions))


def test_hooks_are_called_once_whenever_ours_is_imported():
    """After torch's class has its hooks, too."""
    torch.optim.SGD(parameters())
    spec = importlib.util.spec_from_file_location("imported_later", scratchcuda.optim.__spec__.origin)
    spec.loader.exec_module(later := importlib.util.module_from_spec(spec))
    hooks, _ = BEHAVIOURS["hooks_of_optimizers"]
    assert run(hooks, None, later.SGD) == run(hooks, None, torch.optim.SGD)


@pytest.mark.parametrize("nn", [torch.nn, scratchcuda.nn], ids=["torch", "ours"])
def test_names_of_torch(nn):
    assert nn.modules.batchnorm is torch.nn.modules.batchnorm
    assert nn.functional.gelu is torch.nn.functional.gelu
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
names += ["nn.utils.rnn", "nn.utils.prune", "nn.parallel.distributed", "nn.modules.batchnorm", "optim.adam"]
assert not [name for name in names if f"scratchcuda.{name}" in sys.modules]  # none before it is asked for
views = {"nn.modules", "nn.modules.linear", "nn.modules.loss", "optim.sgd"}
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


@pytest.mark.parametrize(
    "call",
    [
        lambda: scratchcuda.nn.Linear(2, 2, activation="gelu"),
        lambda: scratchcuda.nn.functional.linear(X, rand(3, 5), activation="gelu"),
    ],
)
def test_activations_that_there_are(call):
    with pytest.raises(ValueError, match="activation is 'gelu', expected one of none, relu, sigmoid, tanh, softmax"):
        call()


def test_an_update_that_fails_leaves_everything_as_it_was(backend):
    """An expanded parameter has no memory of its own for each element."""
    params = [torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(1).expand(3))]
    optimizer, before = scratchcuda.optim.SGD(params, 0.1, momentum=0.9), params[0].clone()
    for p in params:
        p.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"single memory location|is expanded"):
        optimizer.step()
    if backend != "tensor":  # torch's own has updated the first
        same(params[0], before)
        assert not any(optimizer.state.values())


@pytest.mark.backends("kernels")
def test_a_step_in_a_cuda_graph():
    """Captured whole, as torch's documents do, and replayed on other data."""
    nets, found = [network(nn) for nn in (torch.nn, scratchcuda.nn)], []
    nets[1].load_state_dict(nets[0].state_dict())
    sides = zip(nets, (torch.nn, scratchcuda.nn), (torch.optim.SGD, scratchcuda.optim.SGD), strict=True)
    for net, nn, sgd in sides:
        optimizer, loss_f, x, y = (
            sgd(net.parameters(), 0.1, momentum=0.9),
            nn.CrossEntropyLoss(),
            X.clone(),
            CLASSES % 3,
        )

        def step(net=net, optimizer=optimizer, loss_f=loss_f, x=x, y=y):
            optimizer.zero_grad()
            loss = loss_f(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            loss = step()
        for shift in range(3):
            x.copy_(X.roll(shift, 0))
            graph.replay()
            found.append(loss.item())
    assert_same(torch.tensor(found[3:]), torch.tensor(found[:3]))
    assert_same(nets[1].state_dict(), nets[0].state_dict())


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_as_torch(name, backend):
    function, kernels = BEHAVIOURS[name]
    theirs = run(function, torch.nn, torch.optim.SGD)
    ours, served = ops_run(lambda: run(function, scratchcuda.nn, scratchcuda.optim.SGD))
    assert isinstance(theirs, type) == (name == "a_stale_graph_raises")
    assert_same(ours, theirs)
    assert served == (set() if backend == "tensor" else kernels)
