"""The ops against a float64 oracle, their gradients, their registration, and their refusals."""

import functools
import math

import pytest
import torch
from oracle import first, same
from raw_refusals import REFUSALS, refuses
from torch.nn import functional

from scratchcuda import ops
from scratchcuda.ops import _emulator
from scratchcuda.ops._registry import OPS, twins

aten = torch.ops.aten


def rand(*shape, dtype=torch.float64, **kwargs):
    return torch.randn(*shape, dtype=dtype, **kwargs)


def softmax_rows(*shape):
    return rand(*shape).softmax(-1)


#: For each op, arguments in float64 from a batch size.
ARGUMENTS = {
    "dense": lambda m: (rand(m, 5), rand(5, 3), rand(3), "tanh"),
    "dense_backward_input": lambda m: (rand(m, 3), rand(5, 3), rand(m, 5).tanh(), "tanh"),
    "dense_backward_weights": lambda m: (rand(m, 3), rand(m, 5)),
    "dense_update_": lambda m: (rand(m, 3), rand(m, 5), rand(5, 3), rand(3), 0.1, 0.01),
    "relu": lambda m: (rand(m, 4),),  # no exact 0, the kink that gradcheck cannot pass
    "sigmoid": lambda m: (rand(m, 4),),
    "tanh": lambda m: (rand(m, 4),),
    "softmax": lambda m: (rand(m, 4),),
    "relu_backward": lambda m: (rand(m, 4), rand(m, 4)),
    "sigmoid_backward": lambda m: (rand(m, 4), rand(m, 4).sigmoid()),
    "tanh_backward": lambda m: (rand(m, 4), rand(m, 4).tanh()),
    "softmax_backward": lambda m: (rand(m, 4), softmax_rows(m, 4)),
    "mse": lambda m: (rand(m, 3), rand(m, 3)),
    "cross_entropy": lambda m: (rand(m, 4), softmax_rows(m, 4)),
    "mse_step_": lambda m: (rand(m, 3), rand(m, 3), rand(5), torch.tensor(2)),
    "cross_entropy_step_": lambda m: (rand(m, 4), softmax_rows(m, 4), rand(5), torch.tensor(2)),
    "take_batch_": lambda m: (
        *(rand(m + 7, 4), rand(m + 7, 3), torch.randperm(m + 7), torch.tensor(2), 3, rand(m, 4), rand(m, 3)),
    ),
    "sgd_update_": lambda m: (*([rand(m, 3), rand(3)] for _ in range(3)), 0.1, 0.01, 0.9, 0.5, False, True, False),
}
#: Of ops in place, the arguments that they write.
WRITTEN = {"dense_update_": (2, 3), "sgd_update_": (0, 2), "take_batch_": (5, 6)}
WRITTEN |= dict.fromkeys(["mse_step_", "cross_entropy_step_"], (2, 3))
SGD_OPTIONS = ("momentum", "dampening", "nesterov", "maximize", "is_first_step")


def call(name, *args):
    """The public function, with the arguments of the raw op."""
    if name != "sgd_update_":
        return getattr(ops, name)(*args)
    params, grads, buffers, lr, weight_decay, *options = args
    named = dict(zip(SGD_OPTIONS, options, strict=True))
    return ops.sgd_update_(params, grads, lr, weight_decay, momentum_buffers=buffers, **named)


def oracle(name, *args):
    """What torch's autograd makes of the forward formula."""
    if name == "dense":
        x, w, b, activation = args
        return {"none": lambda z: z, "softmax": lambda z: z.softmax(-1)}.get(
            activation, lambda z: getattr(z, activation)()
        )(x @ w + b)
    if name == "dense_backward_input":
        delta, w, a, activation = args
        return oracle(f"{activation}_backward", delta @ w.T, a)
    if name in ("dense_backward_weights", "dense_update_"):
        delta, x, *rest = args
        leaves = [torch.zeros(x.shape[1], delta.shape[1]).to(x).requires_grad_(), delta.new_zeros(delta.shape[1])]
        (x @ leaves[0] + leaves[1].requires_grad_()).backward(delta)
        dw, db = (leaf.grad for leaf in leaves)
        if name == "dense_backward_weights":
            return dw, db
        w, b, lr, weight_decay = rest
        return w - lr * (dw + weight_decay * w), b - lr * db
    if name in ("relu", "sigmoid", "tanh"):
        return getattr(args[0], name)()
    if name == "softmax":
        return args[0].softmax(-1)
    if name in ("mse", "cross_entropy"):
        leaf = args[0].clone().requires_grad_()
        loss = {"mse": functional.mse_loss, "cross_entropy": functional.cross_entropy}[name](leaf, args[1])
        loss.backward()
        return loss.detach(), leaf.grad
    if name in ("mse_step_", "cross_entropy_step_"):
        *pair, losses, step = args
        loss, gradient = oracle(name.removesuffix("_step_"), *pair)
        return gradient, torch.cat([losses[:step], loss[None], losses[step + 1 :]]), step + 1
    if name == "take_batch_":
        x, y, order, step, batch_size, *batch = args
        rows = order[step * batch_size :][: len(batch[0])]
        return x[rows], y[rows]
    if name == "sgd_update_":
        optimizer = optimizer_of(*args)
        optimizer.step()
        return (*args[0], *(optimizer.state[p]["momentum_buffer"] for p in args[0]))
    delta, a = args
    return {
        "relu_backward": lambda: delta * (a > 0),
        "sigmoid_backward": lambda: delta * a * (1 - a),
        "tanh_backward": lambda: delta * (1 - a * a),
        "softmax_backward": lambda: a * (delta - (delta * a).sum(-1, keepdim=True)),
    }[name]()


def optimizer_of(params, grads, buffers, lr, weight_decay, *options):
    """torch.optim.SGD with these arguments of the raw op."""
    named = dict(zip(SGD_OPTIONS[:4], options, strict=False))
    optimizer = torch.optim.SGD(params, lr, weight_decay=weight_decay, **named)
    for p, g, m in zip(params, grads, buffers, strict=True):
        p.grad, optimizer.state[p]["momentum_buffer"] = g, m
    return optimizer


def cast(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return [cast(v, dtype) for v in value] if isinstance(value, list) else value


def as_tuple(value):
    return value if isinstance(value, tuple) else () if value is None else (value,)


def outputs(name, result, args):
    """What the op has returned, and what became of the arguments that it writes."""
    written = [args[i] for i in WRITTEN.get(name, ())]
    return [*as_tuple(result), *(t for arg in written for t in (arg if isinstance(arg, list) else [arg]))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m", [1, 2, 33])
@pytest.mark.parametrize("name", OPS)
def test_against_oracle(name, m, dtype):
    args = [cast(arg, dtype) for arg in ARGUMENTS[name](m)]
    expected = as_tuple(oracle(name, *(cast(arg, torch.float64) for arg in args)))
    for ours, exact in zip(outputs(name, call(name, *args), args), expected, strict=True):
        assert ours.dtype == (dtype if exact.is_floating_point() else exact.dtype)
        off = (ours.double() - exact).abs().nan_to_num(math.inf)
        # A few roundings on each of at most 33 summed terms of like size.
        limit = 8 * torch.finfo(dtype).eps * exact.double().norm()
        assert off.norm() <= limit, f"{name} in {dtype}: {first(off == off.max(), ours, exact)}"


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_dense_activations(activation):
    x, w, b, _ = ARGUMENTS["dense"](7)
    torch.testing.assert_close(ops.dense(x, w, b, activation), oracle("dense", x, w, b, activation))


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_")])
def test_any_strides(name):
    args = ARGUMENTS[name](6)
    strided = [torch.stack([a, a], -1).mT.contiguous().mT[..., 0] if isinstance(a, torch.Tensor) else a for a in args]
    assert not strided[0].is_contiguous()
    expected = as_tuple(getattr(ops, name)(*args))
    for ours, exact in zip(as_tuple(getattr(ops, name)(*strided)), expected, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS[:-1])
def test_dense_backward_input_with_the_activation_below(activation):
    """The same bits as by two ops, in any dtype; without one, a has no part in it."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        delta, w, a = rand(2, 7, 3, dtype=dtype), rand(5, 3, dtype=dtype), rand(2, 7, 5, dtype=dtype).tanh()
        dx = ops.dense_backward_input(delta, w)
        expected = dx if activation == "none" else getattr(ops, f"{activation}_backward")(dx, a)
        same(ops.dense_backward_input(delta, w, a, activation), expected)


@pytest.mark.parametrize("step_", [ops.mse_step_, ops.cross_entropy_step_])
def test_a_step_beyond_the_losses_is_counted_alone(step_):
    losses, step = rand(3), torch.tensor(3)
    before = losses.clone()
    step_(rand(4, 3), softmax_rows(4, 3), losses, step)
    same(losses, before)
    assert step == 4
    step_(rand(4, 3), softmax_rows(4, 3), losses.view(3, 1).expand(3, 2)[:, 0], step.fill_(1))
    assert (losses == before).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("by_class", [True, False])
def test_take_batch_one_after_another(dtype, by_class):
    """Data of any strides, and a last batch that is smaller."""
    x = rand(3, 23, dtype=dtype).T
    y = torch.arange(46)[::2] if by_class else rand(23, 2, dtype=dtype)
    order, step = torch.randperm(23), torch.tensor(0)
    x_batch, y_batch = x.new_empty(10, 3), y.new_empty(10, *y.shape[1:])
    for rows in order.split(10):
        m = len(rows)
        ops.take_batch_(x, y, order, step, 10, x_batch[:m], y_batch[:m])
        same(x_batch[:m], x[rows])
        same(y_batch[:m], y[rows])
        step += 1


def test_dense_takes_leading_dimensions_and_empty_batches():
    w, b = rand(5, 3), rand(3)
    x = rand(2, 4, 5)
    dx, (dw, db) = ops.dense_backward_input(rand(2, 4, 3), w), ops.dense_backward_weights(rand(2, 4, 3), x)
    assert ops.dense(x, w, b).shape == (2, 4, 3)
    assert (dx.shape, dw.shape, db.shape) == ((2, 4, 5), (5, 3), (3,))
    assert ops.dense(rand(5), w, b).shape == (3,)
    assert ops.dense_backward_input(rand(0, 3), w).shape == (0, 5)
    dw, db = ops.dense_backward_weights(rand(0, 3), rand(0, 5))
    assert not dw.any()
    assert not db.any()


def test_class_indices_are_one_hot_rows():
    scores, classes = rand(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    one_hot = functional.one_hot(classes, 4).double()
    for by_class, by_row in zip(ops.cross_entropy(scores, classes), ops.cross_entropy(scores, one_hot), strict=True):
        torch.testing.assert_close(by_class, by_row)
    torch.testing.assert_close(ops.cross_entropy(scores, classes)[0], functional.cross_entropy(scores, classes))


def test_a_class_index_to_ignore():
    scores, classes = rand(6, 4), torch.tensor([0, 9, 1, 9, 2, 0])
    loss, gradient = ops.cross_entropy(scores, classes, 9)
    leaf = scores.clone().requires_grad_()
    exact = functional.cross_entropy(leaf, classes, ignore_index=9)
    exact.backward()
    torch.testing.assert_close((loss, gradient), (exact.detach(), leaf.grad))


def test_dense_without_a_bias_and_softmax_over_a_dimension():
    x, w = rand(4, 5), rand(5, 3)
    torch.testing.assert_close(ops.dense(x, w, activation="tanh"), (x @ w).tanh())
    torch.testing.assert_close(ops.softmax(x, 0), x.softmax(0))
    torch.testing.assert_close(ops.softmax_backward(x, x, 0), ops.softmax_backward(x.T, x.T).T)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e4, -1e4, 5e-324])
def test_special_values_as_torch(value):
    x = torch.tensor([[value, 1.0], [0.5, value]], dtype=torch.float64)
    w, b = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    # Two libraries' exp and tanh, of two units each, or a product that is rounded with the sum it belongs to.
    close = functools.partial(torch.testing.assert_close, rtol=4 * torch.finfo(x.dtype).eps, atol=0, equal_nan=True)
    for activation in ops.ACTIVATIONS:
        close(ops.dense(x, w, b, activation), oracle("dense", x, w, b, activation))
    leaf = x.clone().requires_grad_()
    delta = torch.ones_like(x)
    for activation in ("relu", "sigmoid", "tanh"):
        a = getattr(leaf, activation)()
        (expected,) = torch.autograd.grad(a, leaf, delta)
        close(getattr(ops, f"{activation}_backward")(delta, a.detach()), expected)


def test_masked_classes_leave_the_loss_finite():
    scores = torch.tensor([[0.0, -math.inf, 1.0]], dtype=torch.float64)
    loss, gradient = ops.cross_entropy(scores, torch.tensor([2]))
    torch.testing.assert_close(loss, functional.cross_entropy(scores, torch.tensor([2])))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_")])
def test_public_functions_are_differentiable(name):
    args = ARGUMENTS[name](3)
    options = [a for a in args if not isinstance(a, torch.Tensor)]
    inputs = tuple(a.requires_grad_() for a in args if isinstance(a, torch.Tensor))
    function = getattr(ops, name)
    assert torch.autograd.gradcheck(lambda *tensors: function(*tensors, *options), inputs)


def test_cross_entropy_of_class_indices_is_differentiable():
    classes = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: ops.cross_entropy(s, classes), rand(3, 4, requires_grad=True))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        scores = rand(3, 4, dtype=dtype)
        loss, gradient = ops.cross_entropy(scores, classes)
        leaf = scores.double().requires_grad_()
        exact = functional.cross_entropy(leaf, classes)
        exact.backward()
        tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps}
        torch.testing.assert_close(loss.double(), exact.detach(), **tolerance)
        torch.testing.assert_close(gradient.double(), leaf.grad, **tolerance)


@pytest.mark.parametrize("by_class", [True, False])
def test_losses_of_empty_batches_as_torch(by_class):
    targets = torch.zeros(0, dtype=torch.long) if by_class else torch.zeros(0, 4)
    loss, gradient = ops.cross_entropy(torch.zeros(0, 4), targets)
    assert loss.isnan()
    assert functional.cross_entropy(torch.zeros(0, 4), targets).isnan()
    assert gradient.shape == (0, 4)
    assert ops.mse(torch.zeros(0, 4), torch.zeros(0, 4))[0].isnan()


@pytest.fixture
def raw(backend):
    """The registered ops of this backend."""
    return _emulator.current().ops if backend == "emulator" else torch.ops.scratchcuda


@pytest.mark.parametrize("name", OPS)
def test_registration(name, raw):
    results = torch.library.opcheck(getattr(raw, name), ARGUMENTS[name](4))
    assert set(results.values()) == {"SUCCESS"}
    assert getattr(raw, name).default._schema.__str__().partition("::")[2] == name + OPS[name].schema
    assert callable(getattr(twins, name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options",
    [(0.0, 0.0, False, False), (0.9, 0.0, True, False), (0.9, 0.5, False, True), (0.5, -0.5, False, False)],
    ids=["plain", "nesterov", "maximize", "negative dampening"],
)
def test_sgd_update_as_torch_optim(options, dtype):
    """Three steps, the first of which finds no momentum yet, on tensors of two dtypes."""
    shapes = [(3, 5), (7,), (), (0, 2)]
    ours = [rand(shape, dtype=dtype) for shape in shapes] + [rand(4)]
    theirs = [p.clone() for p in ours]
    optimizer = torch.optim.SGD(theirs, 0.1, 0.0, weight_decay=0.01, foreach=False)
    optimizer.param_groups[0].update(zip(SGD_OPTIONS, options, strict=False))
    buffers = [torch.full_like(p, math.nan) for p in ours]
    for step in range(3):
        grads = [torch.randn_like(p) for p in ours]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        call("sgd_update_", ours, grads, buffers, 0.1, 0.01, *options, step == 0)
    for p, expected in zip(ours, theirs, strict=True):
        # A few roundings a step of terms of about 1.
        unit = 16 * torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, expected, rtol=unit, atol=unit)


def test_sgd_update_of_views_that_lie_between_one_another():
    """Columns of one matrix share a range of memory, but no element."""
    both = rand(5, 6)
    expected = both - 0.1
    ops.sgd_update_([both[:, :2], both[:, 2:]], [torch.ones(5, 2).double(), torch.ones(5, 4).double()], 0.1)
    torch.testing.assert_close(both, expected)


def test_sgd_update_leaves_buffers_alone_that_it_does_not_use():
    w, unused = rand(3), rand(3)
    version = unused._version
    ops.sgd_update_([w], [rand(3)], 0.1, momentum_buffers=[unused])
    ops.sgd_update_([w], [rand(3)], 0.1, momentum_buffers=[None])
    assert unused._version == version
    ops.sgd_update_([], [], 0.1)


@pytest.mark.parametrize("name", OPS)
def test_public_functions_compile_whole(name):
    args = ARGUMENTS[name](4)
    others = [[v.clone() for v in a] if isinstance(a, list) else a.clone() if hasattr(a, "clone") else a for a in args]
    torch._dynamo.reset()
    result = torch.compile(lambda *args: call(name, *args), fullgraph=True, backend="aot_eager")(*others)
    expected = call(name, *args)
    written = [[a for a in arguments if not isinstance(a, str)] for arguments in (others, args)]
    torch.testing.assert_close([result, written[0]], [expected, written[1]])


X, W, B, DELTA, G, X2 = rand(4, 5), rand(5, 3), rand(3), rand(4, 3), rand(5, 3), rand(2, 5)
ORDER, STEP = torch.arange(4), torch.tensor(0)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda: ops.dense([1.0], W, B), TypeError, "x is list, expected a torch.Tensor"),
        (lambda: ops.dense(X.long(), W, B), TypeError, "x has dtype torch.int64, expected a floating-point dtype"),
        (lambda: ops.dense(X, W.float(), B), TypeError, "w has dtype torch.float32, expected torch.float64 as x"),
        (lambda: ops.dense(X, W, B.to("meta")), ValueError, "b is on device meta, expected (cpu|cuda:0) as x"),
        (lambda: ops.dense(X[:, :4], W, B), ValueError, r"x has shape \(4, 4\), expected 5 features"),
        (lambda: ops.dense(X, W[0], B), ValueError, r"w has shape \(3,\), expected \(n_in, n_out\)"),
        (lambda: ops.dense(X, W, B[:2]), ValueError, r"b has shape \(2,\), expected \(3,\)"),
        (lambda: ops.dense(X, W, B, "swish"), ValueError, "activation is 'swish', expected one of none, relu"),
        (
            lambda: ops.dense_backward_input(DELTA[:, :2], W),
            ValueError,
            r"delta has shape \(4, 2\), expected 3 features",
        ),
        (lambda: ops.dense_backward_input(DELTA, W, X, "softmax"), ValueError, "activation is 'softmax', expected one"),
        (
            lambda: ops.dense_backward_input(DELTA, W, None, "relu"),
            ValueError,
            "a is None, expected the outputs of relu",
        ),
        (
            lambda: ops.dense_backward_input(DELTA, W, DELTA, "relu"),
            ValueError,
            r"a has shape \(4, 3\), expected \(4, 5\)",
        ),
        (lambda: ops.mse_step_(DELTA, DELTA, B.float(), STEP), TypeError, "losses has dtype torch.float32, expected"),
        (lambda: ops.mse_step_(DELTA, DELTA, W, STEP), ValueError, r"losses has shape \(5, 3\), expected \(steps,\)"),
        (lambda: ops.mse_step_(DELTA, DELTA, B[:1].expand(3), STEP), ValueError, "losses is expanded"),
        (
            lambda: ops.mse_step_(DELTA, DELTA, B, STEP.int()),
            TypeError,
            "step has dtype torch.int32, expected torch.int64",
        ),
        (lambda: ops.cross_entropy_step_(DELTA, DELTA, B, ORDER), ValueError, r"step has shape \(4,\), expected \(\)"),
        (lambda: ops.take_batch_(X, DELTA, ORDER, STEP, 2, X[:2], DELTA[:2]), ValueError, "shares memory with"),
        (
            lambda: ops.take_batch_(X, DELTA, ORDER, STEP, 2, X2, X2),
            ValueError,
            r"y_batch has shape \(2, 5\), expected",
        ),
        (
            lambda: ops.take_batch_(X, X, ORDER, STEP, 2, X2, X2.clone()[:1]),
            ValueError,
            "y_batch .* expected 2 samples",
        ),
        (lambda: ops.take_batch_(X, X, ORDER, STEP, 0, X2, X2.clone()), ValueError, "batch_size is 0, expected"),
        (lambda: ops.take_batch_(X, X, ORDER[None], STEP, 2, X2, X2.clone()), ValueError, r"order has shape \(1, 4\)"),
        (lambda: ops.take_batch_(X.long(), X, ORDER, STEP, 2, X2, X2), TypeError, "x has dtype torch.int64"),
        (lambda: ops.take_batch_(ORDER, X, ORDER, STEP, 2, ORDER[:2], X2), TypeError, "x has dtype torch.int64"),
        (lambda: ops.take_batch_(X, X.long(), ORDER, STEP, 2, X2, X2.long()), TypeError, "y has dtype torch.int64"),
        (lambda: ops.take_batch_(X, ORDER.clone(), ORDER, STEP, 2, X2, ORDER[:2]), ValueError, "shares memory with"),
        (lambda: ops.take_batch_(X, X[None], ORDER, STEP, 2, X2, X2), ValueError, "y_batch|y has shape"),
        (lambda: ops.take_batch_(X, X, ORDER, STEP, 2, X2.T.contiguous().T, X2), ValueError, "x_batch has strides"),
        (lambda: ops.dense_backward_weights(DELTA[:3], X), ValueError, r"delta .* \(3, 3\), expected \(4, 'n_out'\)"),
        (lambda: ops.dense_update_(DELTA, X, W.T, B, 0.1), ValueError, r"w has shape \(3, 5\), expected \(5, 3\)"),
        (lambda: ops.dense_update_(DELTA, X, W, B, -1), ValueError, "lr is -1.0, expected"),
        (
            lambda: ops.dense_update_(DELTA, X, W[:1].expand(5, 3), B, 0.1),
            ValueError,
            r"w is expanded \(strides \(0, 1\)\)",
        ),
        (lambda: ops.tanh(X.long()), TypeError, "z has dtype torch.int64"),
        (lambda: ops.tanh_backward(DELTA, X), ValueError, r"a has shape \(4, 5\), expected \(4, 3\)"),
        (lambda: ops.softmax_backward(DELTA, DELTA.float()), TypeError, "a has dtype torch.float32"),
        (lambda: ops.softmax(DELTA, 2), ValueError, r"dim is 2, expected one of the 2 of z \(4, 3\)"),
        (lambda: ops.softmax_backward(DELTA, DELTA, -3), ValueError, r"dim is -3, expected one of the 2 of delta"),
        (lambda: ops.cross_entropy(DELTA, DELTA, 1), ValueError, "ignore_index is 1, expected None with probabilities"),
        (lambda: ops.mse(DELTA, DELTA[:, :1]), ValueError, r"y_true has shape \(4, 1\), expected \(4, 3\)"),
        (
            lambda: ops.cross_entropy(DELTA[0], DELTA[0]),
            ValueError,
            r"scores has shape \(3,\), expected \(m, classes\)",
        ),
        (lambda: ops.cross_entropy(DELTA, torch.tensor([0, 1, 2])), ValueError, "y_true .* expected 4 samples"),
        (lambda: ops.cross_entropy(DELTA, DELTA[:, 0]), TypeError, "y_true has dtype torch.float64, expected integer"),
        (lambda: ops.sgd_update_([W], [], 0.1), ValueError, "grads has 0 tensors, expected 1 as params"),
        (lambda: ops.sgd_update_([W], [B], 0.1), ValueError, r"grads\[0\] has shape \(3,\), expected \(5, 3\)"),
        (
            lambda: ops.sgd_update_([W, B.float()], [W, B], 0.1),
            TypeError,
            r"grads\[1\] has dtype torch.float64, expected",
        ),
        (lambda: ops.sgd_update_([W, B.to("meta")], [W, B], 0.1), ValueError, r"params\[1\] is on device meta, exp"),
        (lambda: ops.sgd_update_([W, X.long()], [W, X], 0.1), TypeError, r"params\[1\] has dtype torch.int64"),
        (
            lambda: ops.sgd_update_([W, B, W], [G, G[0], G], 0.1),
            ValueError,
            r"params\[2\] shares memory with params\[0\]",
        ),
        (lambda: ops.sgd_update_([W, W.view(3, 5)], [G, G.view(3, 5)], 0.1), ValueError, "shares memory with"),
        (
            lambda: ops.sgd_update_([W.view(-1)[:9]], [W.view(-1)[4:13]], 0.1),
            ValueError,
            "grads shares memory with params",
        ),
        (
            lambda: ops.sgd_update_([W], [G], 0.1, momentum=0.9, momentum_buffers=[G]),
            ValueError,
            "shares memory with",
        ),
        (
            lambda: ops.dense_update_(DELTA, X, W, W[0], 0.1),
            ValueError,
            "b shares memory with w|w shares memory with b",
        ),
        (lambda: ops.sgd_update_([B[:1].expand(3)], [B], 0.1), ValueError, r"params\[0\] is expanded"),
        (
            lambda: ops.sgd_update_([W], [W], 0.1, momentum=0.9),
            ValueError,
            "momentum_buffers has 0 tensors, expected 1",
        ),
        (
            lambda: ops.sgd_update_([B], [B], 0.1, momentum=0.9, momentum_buffers=[B[:1].expand(3)]),
            ValueError,
            r"momentum_buffers\[0\] is expanded",
        ),
        (lambda: ops.sgd_update_([W], [W], 0.1, nesterov=True), ValueError, "nesterov needs momentum and no dampening"),
        (lambda: ops.sgd_update_([W], [W], 0.1, momentum=-1), ValueError, "momentum is -1.0, expected"),
        (lambda: ops.sgd_update_([W], [W], 0.1, dampening=math.inf), ValueError, "dampening is inf, expected a finite"),
        (lambda: ops.sgd_update_([W], [W], 0.1, dampening="0"), TypeError, "dampening is '0'"),
        (lambda: ops.sgd_update_([W], [W], math.nan), ValueError, "lr is nan, expected a finite number"),
        (lambda: ops.sgd_update_([W], [W], 0.1, -1), ValueError, "weight_decay is -1.0, expected"),
        (
            lambda: ops.sgd_update_([W], [W], torch.ones(2)),
            TypeError,
            r"lr is tensor\(\[1., 1.\].*Tensor\), expected",
        ),
        (lambda: ops.sgd_update_(None, [W], 0.1), TypeError, "params is NoneType, expected a sequence of tensors"),
        *(
            (lambda name=name: ops.sgd_update_([W], [W], 0.1, **{name: "True"}), TypeError, f"{name} is 'True'")
            for name in ("nesterov", "maximize", "is_first_step")
        ),
        *(
            (lambda dim=dim: ops.softmax(DELTA, dim), TypeError, f"dim is {dim!r} .*, expected an integer")
            for dim in ("C", True, 1.0, None)
        ),
        (lambda: ops.softmax_backward(DELTA, DELTA, True), TypeError, "dim is True .*, expected an integer"),
        (lambda: ops.cross_entropy(DELTA, torch.arange(4), True), TypeError, "ignore_index is True"),
        (lambda: ops.dense(X, W, B, None), TypeError, "activation is None, expected one of none, relu"),
    ],
)
def test_refusals(call, exception, message):
    before = [t.clone() for t in (X, W, B, DELTA)]
    with pytest.raises(exception, match=message):
        call()
    same([X, W, B, DELTA], before)


@pytest.mark.backends("tensor", "emulator")  # to look at them is to wait for a GPU
@pytest.mark.parametrize("index", [3, -1])
def test_class_indices_out_of_range_are_refused(index):
    with pytest.raises(ValueError, match=f"class index {index}, expected 0 to 2"):
        ops.cross_entropy(DELTA, torch.tensor([0, 1, index, 2]))


@pytest.mark.backends("emulator")
@pytest.mark.parametrize(("name", "args", "message"), REFUSALS)
def test_raw_ops_refuse(name, args, message, raw):
    refuses(raw, "CPU", name, args, message)
