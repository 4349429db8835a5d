"""Functions and their derivatives, and what is left to torch's own, by result or by error."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from drop_in import CLASSES, CROSS_ENTROPY, DENSE, ROWS, X, as_torch, assert_as_torch, gradients, network, outcome, rand

import scratchcuda
from scratchcuda.ops import _losses
from scratchcuda.ops._entries import elementwise

LOSSES = [f"{entry.name}_{of}" for entry in _losses.LOSSES.values() for of in ("value", "backward")]
ACTIVATIONS = (*(entry.name for entry in elementwise()), "softmax")


@pytest.mark.parametrize("entry", elementwise(), ids=lambda entry: entry.name)
def test_elementwise_activations(entry, backend):
    """As function and module, alone and after a Linear; with other parameters, in place, and as kernels refuse it."""
    name, kind, options = entry.variants[0].name, entry.module.__name__, [{}]
    options += [{each: parameter.default + 0.25} for each, parameter in entry.parameters.items()]
    options += [{each: least - 0.5} for each, (_, least) in entry.parameters.items() if least > -math.inf]
    options += [{"inplace": True}] * ("inplace" in entry.others)

    def found(nn, given):
        module, net = (getattr(nn, kind)(**given) for _ in range(2))
        net = nn.Sequential(nn.Linear(5, 4).double(), net)
        scratchcuda.nn.convert(net, fuse=True)
        leaves = [X.clone().requires_grad_() for _ in range(3)]
        by_position = [given[each] for each in entry.parameters if each in given]
        by_keyword = {each: value for each, value in given.items() if not by_position}
        outputs = [module(leaves[0] * 1), getattr(nn.functional, name)(leaves[1] * 1, *by_position, **by_keyword)]
        outputs.append(net(leaves[2]))
        return [repr(module), outputs, [gradients(y, x) for y, x in zip(outputs, leaves, strict=True)]]

    def behaviour(nn, sgd):
        return [outcome(lambda given=option | entry.variant: found(nn, given)) for option in options]

    kernels = {*DENSE, entry.name, f"{entry.name}_backward"}
    if entry.of_input:
        kernels = kernels - {"dense"} | {"dense_with_preactivation"}
    assert_as_torch(behaviour, kernels, backend)


@as_torch(*DENSE, *(name + end for name in ACTIVATIONS for end in ("", "_backward")), *LOSSES, *CROSS_ENTROPY)
def test_first_and_second_derivatives(nn, sgd):
    w, b = rand(3, 5, requires_grad=True), rand(3, requires_grad=True)
    x, f, targets = X[:3].clone().requires_grad_(), nn.functional, rand(3, 5).sigmoid()
    weights = rand(5).abs()
    functions = {
        "linear": (lambda x, w, b: f.linear(x, w, b), (x, w, b)),
        "softmax": (lambda x: f.softmax(x, 0), (x,)),
        **{
            f"{name}, {reduction}": (lambda x, of=of, name=name: getattr(f, name)(x.sigmoid(), targets, **of), (x,))
            for reduction in ("none", "mean")
            for name, of in (
                ("mse_loss", {"reduction": reduction}),
                ("l1_loss", {"reduction": reduction}),
                ("huber_loss", {"reduction": reduction, "delta": 0.3}),
                ("smooth_l1_loss", {"reduction": reduction, "beta": 0.3}),
                ("binary_cross_entropy", {"reduction": reduction, "weight": weights}),
                (
                    "binary_cross_entropy_with_logits",
                    {"reduction": reduction, "weight": weights, "pos_weight": weights[:1]},
                ),
            )
        },
        "classes": (lambda x: f.cross_entropy(x, CLASSES[:3]), (x,)),
        "ignored": (lambda x: f.cross_entropy(x, CLASSES[:3], ignore_index=2), (x,)),
        "rows": (lambda x: f.cross_entropy(x, ROWS[:3]), (x,)),
        **{
            f"pixels, {how}, {len(y.shape)}": (
                lambda x, how=how, y=y: f.cross_entropy(x.view(3, 5, 1), y, weights, label_smoothing=0.1, **how),
                (x,),
            )
            for how in ({"reduction": "none"}, {"reduction": "mean"})
            for y in (CLASSES[:3, None], ROWS[:3, :, None])
        },
    }
    for entry in elementwise():
        functions[entry.name] = partial(getattr(f, entry.variants[0].name), **entry.variant), (x[:1],)
    checks = (torch.autograd.gradcheck, torch.autograd.gradgradcheck)
    return {name: [check(function, args) for check in checks] for name, (function, args) in functions.items()}


@as_torch("binary_cross_entropy_with_logits_value", "smooth_l1_value")
def test_second_derivatives_at_zero(nn, sgd):
    """Of scores, as those of a layer of zeros, where |x| has a kink and the loss has none; and of a beta of 0."""
    f, results = nn.functional, []
    for of in (f.binary_cross_entropy_with_logits, lambda x, t: f.smooth_l1_loss(x, t, beta=0.0)):
        x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(of(x, torch.tensor([0.0, 0.25, 1.0]).double()), x, create_graph=True)
        results += [gradient, torch.autograd.grad(gradient.sum(), x)]
    return results


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_second_derivatives_of_an_activation_computed_along(activation):
    """In terms of the output, and of the input, which is saved from within."""
    tensors = [rand(2, 3, requires_grad=True), rand(2, 3, requires_grad=True), rand(2, requires_grad=True)]
    assert torch.autograd.gradgradcheck(lambda *args: scratchcuda.nn.functional.linear(*args, activation), tensors)


@as_torch()
def test_transforms(nn, sgd):
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


@as_torch(*CROSS_ENTROPY)
def test_a_loss_that_is_scaled(nn, sgd):
    """Gradients of float16 that underflow unless the scale of the loss reaches them first."""
    scores = rand(400, 2000).half().requires_grad_()
    loss = nn.CrossEntropyLoss()(scores, torch.arange(400)) * 16384
    (gradient,) = torch.autograd.grad(loss, scores)
    return [(gradient == 0).double().mean() < 0.01, gradient]


@as_torch()
def test_gradients_of_targets(nn, sgd):
    leaves = [X.clone().requires_grad_(), ROWS.clone().requires_grad_()]
    losses = nn.MSELoss()(*leaves), nn.CrossEntropyLoss()(*leaves)
    return [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]


@as_torch("dense", "tanh", "mse_value")
def test_an_undefined_gradient(nn, sgd):
    """As of a function that has none: it stays none, for an optimizer that would decay."""

    class Nothing(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, delta: None)

    net, f = network(nn), nn.functional
    for function in (lambda x: net[0](x), lambda x: f.tanh(x), lambda x: f.mse_loss(x, X)):
        Nothing.apply(function(X.clone().requires_grad_())).sum().backward()
    return [p.grad for p in net.parameters()]


@as_torch("softmax", "softmax_backward")
def test_softmax_in_another_dtype(nn, sgd):
    leaf = X.half().requires_grad_()
    y = nn.functional.softmax(leaf, 0, dtype=torch.float32)
    return [y, gradients(y, leaf), nn.functional.softmax(CLASSES, 0, dtype=torch.float64)]


@as_torch("softmax")
def test_where_warnings_point(nn, sgd):
    """At the code that called, which here leaves out the dimension."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.functional.softmax(X)
        nn.Softmax()(X)
        nn.functional.softmax(X, -1)
    # Under a default device, within torch for both, though not at the same place.
    return [warning.filename == __file__ and warning.lineno for warning in caught]


@as_torch()
def test_arguments_of_old(nn, sgd):
    warnings.simplefilter("ignore")  # that they are deprecated
    f = nn.functional
    calls = [{"reduce": False}, {"size_average": False}, {"reduce": False, "size_average": True}]
    return [[f.mse_loss(X, ROWS, **call), f.cross_entropy(X, CLASSES, **call)] for call in calls]


@as_torch()
def test_arguments_of_other_types(nn, sgd):
    """torch's own results and errors, by their text."""
    f, w, results = nn.functional, rand(3, 5), []
    calls = [lambda value=value: f.cross_entropy(X, CLASSES, ignore_index=value) for value in (None, True, 1.0, "1")]
    calls += [lambda value=value: f.cross_entropy(X, value) for value in ([0, 2, 1, 4, 2, 0], None, CLASSES > 0)]
    calls += [lambda value=value: f.cross_entropy(X, CLASSES, label_smoothing=value) for value in (None, [], "")]
    calls += [lambda value=value: f.softmax(X, value) for value in ("C", True, 1.0, torch.tensor(1.0))]
    calls += [lambda value=value: f.linear(X, w, value) for value in (True, [1.0, 2.0, 3.0])]
    calls += [lambda: f.softmax(X, 0, dtype="cpu"), lambda: f.linear(X, w.tolist())]
    calls += [
        lambda: f.huber_loss(X, ROWS, size_average=None),
        lambda: f.mse_loss(X, ROWS, None, None, "sum", None, None),
    ]
    calls += [lambda: f.mse_loss(X, ROWS.tolist()), lambda: nn.CrossEntropyLoss(ignore_index=None)(X, CLASSES)]
    for call in calls:
        try:
            results.append(call())
        except Exception as error:
            results.append([type(error), str(error)])
    return results


@as_torch()
def test_what_kernels_do_not_take(nn, sgd):
    """torch's own results and errors: other dtypes, layouts, kinds of tensors, shapes that do not fit."""
    warnings.simplefilter("ignore")  # of torch's prototypes, and of shapes that broadcast
    f, w = nn.functional, rand(3, 5)
    calls = (
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
    )
    return [outcome(call) for call in calls]


@pytest.mark.parametrize(
    "call",
    [
        lambda: scratchcuda.nn.Linear(2, 2, activation="swish"),
        lambda: scratchcuda.nn.functional.linear(X, rand(3, 5), activation="swish"),
    ],
)
def test_activations_that_there_are(call):
    names = ", ".join(scratchcuda.ops.ACTIVATIONS)
    with pytest.raises(ValueError, match=f"activation is 'swish', expected one of {names}$"):
        call()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (0.2, TypeError, "activation_parameters is 0.2, expected a sequence of numbers"),
        (None, TypeError, "activation_parameters is None, expected a sequence of numbers"),
        ("0.2", TypeError, "activation_parameters is '0.2', expected a sequence of numbers"),
        ({0.2}, TypeError, "activation_parameters is {0.2}, expected a sequence of numbers"),
        (["a"], TypeError, "leaky_relu's negative_slope is 'a'"),
        (torch.tensor([0.1, 0.2]), ValueError, "activation_parameters has 2 numbers, expected 1 for leaky_relu"),
        ([-1], ValueError, "leaky_relu's negative_slope is -1.0, expected a finite number of at least 0"),
    ],
)
def test_parameters_of_an_activation_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        scratchcuda.nn.Linear(5, 5, activation="leaky_relu", activation_parameters=given)
    with pytest.raises(error, match=message):
        scratchcuda.nn.functional.linear(X, rand(3, 5), None, "leaky_relu", given)


@as_torch("dense", "leaky_relu")
def test_parameters_of_an_activation_come_as_any_sequence(nn, sgd):
    w = rand(3, 5)
    along = {"activation": "leaky_relu"}
    found = [nn.functional.leaky_relu(nn.functional.linear(X, w), 0.0)]
    if nn is scratchcuda.nn:
        given = ([0.0], (0,), torch.tensor([0.0]), np.array([0.0]))
        return found + [nn.functional.linear(X, w, **along, activation_parameters=each) for each in given]
    return found * 5


@as_torch()
def test_arguments_that_the_kernels_do_not_take(nn, sgd):
    f = nn.functional
    calls = [lambda: f.elu(0 * X, -math.inf)]  # which is 0, and no product with infinity
    calls += [lambda: f.relu(X, True, inplace=False), lambda: f.leaky_relu(X, 0.1, negative_slope=0.2)]
    return [outcome(call) for call in (*calls, lambda: f.tanh(X, inplace=False), lambda: f.relu(X, False, False))]
