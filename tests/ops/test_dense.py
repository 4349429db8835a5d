"""The dense layer, its gradients, and its update."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import DTYPES, ELEMENTWISE, Case, Cost, K, M, N, Refused, cases, others, rand
from kernels import (
    LAYOUTS,
    SPECIAL,
    TILES,
    any_leading,
    any_tensor,
    assert_same_bits,
    by_dtype,
    check,
    dense_args,
    far,
    kernel,
    laid_out,
    launched,
    not_mergeable,
    of_kernels,
)
from oracle import TRUTH, added, same

from scratchcuda import ops
from scratchcuda.ops import _emulator
from scratchcuda.ops._entries import ENTRIES, Chosen

OF_INPUT = [name for name in ELEMENTWISE if ENTRIES[name].of_input]


def as_rows(values):
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def product(left, right):
    total = np.zeros((len(left), right.shape[1]), left.dtype)
    for k in range(len(right)):
        total += left[:, k, None] * right[k]
    return total


def dense(m, x, w, b, activation, parameters=()):
    z = (product(as_rows(x), w) + b).reshape(*x.shape[:-1], w.shape[1])
    if activation == "none":
        return (z,)
    # A softmax is a kernel of its own, and what may be stored beside the output is rounded in any case.
    stored = activation == "softmax" or ENTRIES[activation].of_input
    return cases()[activation].formula(m, m.stored(z) if stored else z, *parameters)


def dense_and_z(m, x, w, b, activation, parameters=()):
    (z,) = dense(m, x, w, b, "none")
    z = m.stored(z)
    return cases()[activation].formula(m, z, *parameters)[0], z


def torchs_and_z(x, w, b, activation, parameters=()):
    z = x @ w + b
    return Chosen(activation, parameters).module()(z), z


def backward_input(m, delta, w):
    return (product(as_rows(delta), w.T).reshape(*delta.shape[:-1], len(w)),)


def backward_weights(m, delta, x):
    rows = as_rows(delta)
    return product(as_rows(x).T, rows), added(rows.T)[:, 0]


def update(m, delta, x, w, b, *options):
    lr, weight_decay = map(m.number, options)
    dw, db = backward_weights(m, delta, x)
    return w - lr * (dw + weight_decay * w), b - lr * db


def torchs(x, w, b, activation, parameters=()):
    return Chosen(activation, parameters).module()(x @ w + b)


def torchs_backward_weights(delta, x):
    w, b = (torch.zeros(shape).to(x).requires_grad_() for shape in ((x.shape[1], delta.shape[1]), delta.shape[1]))
    return torch.autograd.grad(x @ w + b, (w, b), delta)


def torchs_update(delta, x, w, b, lr, weight_decay):
    dw, db = torchs_backward_weights(delta, x)
    return w - lr * (dw + weight_decay * w), b - lr * db


def one_of(names):
    """The message that names all of these, in any order."""
    return "expected one of " + "".join(rf"(?=.*\b{name}\b)" for name in names)


CASES = {
    "dense": Case(
        arguments=lambda m: (rand(m, 5), rand(5, 3), rand(3), "tanh"),
        theirs=torchs,
        formula=dense,
        magnitudes=lambda x, w, b, *rest: dense(TRUTH, abs(x), abs(w), abs(b), "none"),
        costs=[
            Cost(lambda t: (t.x, t.w, None, "none"), 2 * M * K * N, 0, M * K + K * N + M * N),
            Cost(lambda t: (t.x, t.w, t.b, "sigmoid"), *(2 * M * K * N, M * N + 4 * M * N, M * K + K * N + N + M * N)),
            Cost(lambda t: (rand(2, M, K), t.w, None, "none"), *(4 * M * K * N, 0, 2 * M * (K + N) + K * N)),
        ],
        refused=[
            Refused(lambda t: ([1.0], t.w, t.b, "none"), TypeError, "x is list, expected a torch.Tensor", None),
            Refused(
                lambda t: (t.x.long(), t.w, t.b, "none"),
                TypeError,
                "x has dtype torch.int64, expected a floating-point dtype",
                "x has dtype torch.int64, expected torch.float64, torch.float32, torch.float16",
            ),
            Refused(
                lambda t: (t.x, t.w.float(), t.b, "none"),
                TypeError,
                "w has dtype torch.float32, expected torch.float64 as x",
            ),
            Refused(
                lambda t: (t.x, t.w, t.b.to("meta"), "none"),
                ValueError,
                "b is on device meta, expected (cpu|cuda:0) as x",
            ),
            Refused(
                lambda t: (t.x[:, :4], t.w, t.b, "none"),
                ValueError,
                r"x has shape \(4, 4\), expected 5 features as its last dimension",
            ),
            Refused(lambda t: (t.x, t.w[0], t.b, "none"), ValueError, r"w has shape \(3,\), expected \(n_in, n_out\)"),
            Refused(lambda t: (t.x, t.w, t.b[:2], "none"), ValueError, r"b has shape \(2,\), expected \(3,\)"),
            Refused(
                lambda t: (t.x, t.w, t.b, "swish"),
                ValueError,
                f"activation is 'swish', {one_of(ops.ACTIVATIONS)}",
            ),
            Refused(
                lambda t: (t.x, t.w, t.b, "relu", [0.5]),
                ValueError,
                "activation_parameters has 1 numbers, expected 0 for relu",
            ),
            Refused(lambda t: (t.x, t.w, t.b, None), TypeError, "activation is None, expected one of none, ", None),
        ],
    ),
    "dense_with_preactivation": Case(
        arguments=lambda m: (rand(m, 5), rand(5, 3), rand(3), "silu"),
        theirs=torchs_and_z,
        formula=dense_and_z,
        magnitudes=lambda x, w, b, *rest: 2 * dense(TRUTH, abs(x), abs(w), abs(b), "none"),
        results=("a", "z"),
        costs=[
            Cost(lambda t: (t.x, t.w, t.b, "silu"), *(2 * M * K * N, 5 * M * N, M * K + K * N + N + 2 * M * N)),
            Cost(lambda t: (t.x, t.w, None, "gelu"), *(2 * M * K * N, 4 * M * N, M * K + K * N + 2 * M * N)),
        ],
        refused=[
            Refused(lambda t: (t.x, t.w[0], t.b, "silu"), ValueError, r"w has shape \(3,\), expected \(n_in, n_out\)"),
            Refused(
                lambda t: (t.x, t.w, t.b, "relu"), ValueError, f"activation is 'relu', {one_of(OF_INPUT)}(?!.*tanh,)"
            ),
            Refused(
                lambda t: (t.x, t.w, t.b, "elu", []), None, "activation_parameters has 0 numbers, expected 1 for elu"
            ),
        ],
    ),
    "dense_backward_input": Case(
        arguments=lambda m: (rand(m, 3), rand(5, 3), rand(m, 5).tanh(), "tanh"),
        theirs=lambda delta, w, a, activation: (delta @ w.T) * (1 - a * a),
        formula=backward_input,
        magnitudes=lambda delta, w: backward_input(TRUTH, abs(delta), abs(w)),
        costs=[
            Cost(lambda t: (rand(2, M, N), t.w), 4 * M * K * N, 0, 2 * M * (K + N) + K * N),
            Cost(lambda t: (t.delta, t.w), 2 * M * K * N, 0, M * N + K * N + M * K),
            Cost(lambda t: (t.delta, t.w, t.x, "tanh"), 2 * M * K * N, 3 * M * K, M * N + K * N + 2 * M * K),
        ],
        refused=[
            Refused(lambda t: (t.delta[:, :2], t.w), ValueError, r"delta has shape \(4, 2\), expected 3 features"),
            Refused(lambda t: (t.delta, t.b), ValueError, r"w has shape \(3,\), expected \(n_in, n_out\)"),
            Refused(
                lambda t: (t.delta, t.w, t.x, "softmax"),
                ValueError,
                f"activation is 'softmax', {one_of(['none', *ELEMENTWISE])}",
            ),
            Refused(lambda t: (t.delta, t.w, None, "relu"), ValueError, "a is None, expected the outputs of relu"),
            Refused(lambda t: (t.delta, t.w, t.delta, "relu"), ValueError, r"a has shape \(4, 3\), expected \(4, 5\)"),
        ],
    ),
    "dense_backward_weights": Case(
        arguments=lambda m: (rand(m, 3), rand(m, 5)),
        theirs=torchs_backward_weights,
        formula=backward_weights,
        magnitudes=lambda delta, x: backward_weights(TRUTH, abs(delta), abs(x)),
        results=("dw", "db"),
        costs=[Cost(lambda t: (t.delta, t.x), 2 * M * K * N, M * N, M * N + M * K + K * N + N)],
        refused=[
            Refused(
                lambda t: (t.delta[:3], t.x),
                ValueError,
                r"delta .* \(3, 3\), expected \(4, 'n_out'\)",
                r"delta has shape \(3, 3\), expected \(..., n_out\) as x \(4, 5\)",
            )
        ],
    ),
    "dense_update_": Case(
        arguments=lambda m: (rand(m, 3), rand(m, 5), rand(5, 3), rand(3), 0.1, 0.01),
        theirs=torchs_update,
        formula=update,
        # What is subtracted is positive, too.
        magnitudes=lambda delta, x, w, b, *options: update(TRUTH, -abs(delta), abs(x), abs(w), abs(b), *options),
        results=("w", "b"),
        written=(2, 3),
        costs=[
            Cost(
                lambda t: (t.delta, t.x, t.w, t.b, 0.1, 0.0),
                *(2 * M * K * N, M * N + 2 * (K * N + N), M * N + M * K + 2 * (K * N + N)),
            ),
            Cost(
                lambda t: (t.delta, t.x, t.w, t.b, 0.1, 0.5),
                *(2 * M * K * N, M * N + 4 * K * N + 2 * N, M * N + M * K + 2 * (K * N + N)),
            ),
            Cost(lambda t: (t.delta, t.x, t.w, None, 0.1, 0.0), 2 * M * K * N, 2 * K * N, M * N + M * K + 2 * K * N),
        ],
        refused=[
            Refused(
                lambda t: (t.delta, t.x, t.w.T, t.b, 0.1, 0.0), ValueError, r"w has shape \(3, 5\), expected \(5, 3\)"
            ),
            Refused(
                lambda t: (t.delta, t.x, t.w[:1].expand(5, 3), t.b, 0.1, 0.0),
                ValueError,
                r"w is expanded \(strides \(0, 1\)\)",
            ),
            Refused(
                lambda t: (t.delta, t.x, t.w, t.b, -1.0, 0.0),
                ValueError,
                "lr is -1.0, expected a finite number of at least 0",
                "lr is -1, expected a finite number of at least 0",
            ),
            Refused(
                lambda t: (t.delta, t.x, t.w, t.b, 0.1, math.nan), ValueError, "weight_decay is nan, expected a finite"
            ),
            Refused(
                lambda t: (t.delta, t.x, t.w, t.w[0], 0.1, 0.0),
                ValueError,
                "b shares memory with w|w shares memory with b",
                None,
            ),
            Refused(
                lambda t: (t.delta, t.x, t.x.view(-1)[:15].view(5, 3), None, 0.1, 0.0),
                ValueError,
                "w shares memory with x|x shares memory with w",
            ),
            Refused(
                lambda t: (t.x.view(-1)[:12].view(4, 3), t.x, t.w, t.x.view(-1)[9:12], 0.1, 0.0),
                ValueError,
                "b shares memory with|x shares memory with b",
                "b shares memory with x",
            ),
        ],
    ),
}


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_dense_activations_as_torch(activation):
    args = rand(7, 5), rand(5, 3), rand(3), activation, others(activation)
    torch.testing.assert_close(ops.dense(*args), torchs(*args))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e4, -1e4, 5e-324])
def test_dense_special_values_as_torch(value):
    x = torch.tensor([[value, 1.0], [0.5, value]], dtype=torch.float64)
    w, b = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    # Two libraries' exp and tanh, of two units each, or a product that is rounded with the sum it belongs to.
    close = {"rtol": 4 * torch.finfo(x.dtype).eps, "atol": 0, "equal_nan": True}
    for activation in ops.ACTIVATIONS:
        args = x, w, b, activation, ENTRIES[activation].values()
        torch.testing.assert_close(ops.dense(*args), torchs(*args), **close)


@pytest.mark.parametrize("activation", ["none", *ELEMENTWISE])
def test_dense_backward_input_with_the_activation_below(activation):
    """The same bits as by two ops, in any dtype; without one, a has no part in it."""
    parameters = others(activation)
    for dtype in DTYPES:
        delta, w, a = rand(2, 7, 3, dtype=dtype), rand(5, 3, dtype=dtype), rand(2, 7, 5, dtype=dtype).tanh()
        dx = ops.dense_backward_input(delta, w)
        expected = dx if activation == "none" else getattr(ops, f"{activation}_backward")(dx, a, *parameters)
        same(ops.dense_backward_input(delta, w, a, activation, parameters), expected)


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


def test_dense_without_a_bias_as_torch():
    x, w = rand(4, 5), rand(5, 3)
    torch.testing.assert_close(ops.dense(x, w, activation="tanh"), (x @ w).tanh())


@of_kernels
@by_dtype
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_dense_activations(activation, dtype):
    check("dense", (*dense_args(9, 20, 7, dtype, activation=activation)["dense"], others(activation)))


@of_kernels
@by_dtype
@hypothesis.given(st.data())
def test_any_dense_activations_softmax(dtype, data):
    """Leading dimensions in any order and number, some expanded, each operand in a layout of its own."""
    draw = data.draw
    leading, n_in, n_out = any_leading(draw), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    x, delta, b = (any_tensor(draw, *shape, dtype=dtype) for shape in ((*leading, n_in), (*leading, n_out), (n_out,)))
    w = laid_out(rand(n_in, n_out, dtype=dtype), draw(st.sampled_from(LAYOUTS)))
    tile = draw(st.sampled_from(list(_emulator.TILES)))
    activation = draw(st.sampled_from(ops.ACTIVATIONS))
    check("dense", (x, w, b, activation, others(activation)), tile=tile)
    check("dense_backward_input", (delta, w), tile=tile)
    check("dense_backward_weights", (delta, x), tile=tile)
    check("dense_update_", (delta, x, w, b, 0.1, 0.01), tile=tile)


@of_kernels
@by_dtype
def test_dense_activations_special_values(dtype):
    for value in torch.tensor(SPECIAL, dtype=torch.float64).to(dtype):
        x, w = torch.ones(5, 4, dtype=dtype), torch.ones(4, 3, dtype=dtype)
        x[1, 2] = w[0, 1] = value
        for tile in TILES:
            for activation in ("none", *ELEMENTWISE):
                check("dense", (x, w, w[0], activation, others(activation)), tile=tile)
            check("dense_backward_input", (x, w.T.contiguous()), tile=tile)
            check("dense_backward_weights", (x, x), tile=tile)


@of_kernels
def test_dense_update_of_an_infinite_parameter():
    w, b = torch.tensor([[math.inf, 1.0]]), torch.tensor([-math.inf, 1.0])
    kernel("dense_update_", torch.zeros(3, 2), torch.zeros(3, 1), w, b, 0.1, 0.0)
    same([w, b], [torch.tensor([[math.inf, 1.0]]), torch.tensor([-math.inf, 1.0])], "dense_update_")


@of_kernels
@by_dtype
@pytest.mark.parametrize("m", [0, 33, 1100])  # of the last the rows are shared out to several blocks
def test_dense_update_without_bias(m, dtype):
    """The same bits of the weights as beside a bias."""
    delta, x, w, b, *options = dense_args(m, 19, 35, dtype)["dense_update_"]
    for tile in _emulator.TILES:
        alone, beside = w.clone(), w.clone()
        kernel("dense_update_", delta, x, alone, None, *options, tile=tile)
        kernel("dense_update_", delta, x, beside, b.clone(), *options, tile=tile)
        same(alone, beside, f"dense_update_ in tiles {tile}")


@of_kernels
@pytest.mark.backends("emulator")
@by_dtype
def test_dense_bits_for_any_order_of_threads_and_blocks(dtype):
    assert_same_bits(call for size in (40, 1100) for call in dense_args(size, 35, 33, dtype).items())


@of_kernels
@pytest.mark.backends("emulator")
def test_dense_softmax_of_nothing_launches_nothing():
    assert not launched("dense", rand(0, 3), rand(3, 4), rand(4), "softmax")


@of_kernels
def test_dense_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    assert x.storage_offset() + 2 * x.stride(0) >= 2**31
    w, b = rand(8, 4, dtype=torch.float16), rand(4, dtype=torch.float16)
    check("dense", (x, w, b, "none"))
    check("dense_backward_input", (x[:, :4], w))
    check("dense_backward_weights", (x, x))


@of_kernels
def test_dense_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    x = not_mergeable()
    check("dense_backward_input", (x, rand(3, 2, dtype=torch.float32)))
    check("dense_backward_weights", (x, x))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_dense_backward_input_of_the_activation_below(activation, layout, dtype):
    """The bits of two kernels, one after the other."""
    parameters = others(activation)
    for m, n_in, n_out in ((40, 24, 16), (33, 19, 35)):
        delta, w = dense_args(m, n_in, n_out, dtype, layout)["dense_backward_input"]
        a = laid_out(rand(m, n_in, dtype=dtype), layout)
        expected = kernel(f"{activation}_backward", kernel("dense_backward_input", delta, w), a, *parameters)
        found = kernel("dense_backward_input", delta, w, a, activation, parameters)
        same(found, expected, f"dense_backward_input of {activation}")


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", OF_INPUT)
def test_dense_with_preactivation_of_two_kernels(activation, layout, dtype):
    """Their bits, whether or not what is between them is kept, with a bias and without."""
    parameters = others(activation)
    for m, n_in, n_out in ((40, 24, 16), (33, 19, 35)):
        x, w, b, _ = dense_args(m, n_in, n_out, dtype, layout)["dense"]
        for bias in (b, None):
            z = kernel("dense", x, w, bias, "none")
            a = kernel(activation, z, *parameters)
            found = kernel("dense_with_preactivation", x, w, bias, activation, parameters)
            same(found, (a, z), f"dense_with_preactivation of {activation}")
            same(kernel("dense", x, w, bias, activation, parameters), a, f"dense with {activation}")


@of_kernels
@by_dtype
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_dense_without_bias(activation, dtype):
    """The same bits as with one of zeros."""
    x, w = rand(7, 5, dtype=dtype), rand(5, 3, dtype=dtype)
    chosen = activation, others(activation)
    expected = kernel("dense", x, w, torch.zeros(3, dtype=dtype), *chosen)
    same(kernel("dense", x, w, None, *chosen), expected, f"dense with {activation}")


@of_kernels
@by_dtype
def test_dense_gradients_lie_as_torchs_weights(dtype):
    """So that autograd takes them without a copy; whether or not the rows are shared out."""
    for m in (7, 1100):
        dw, _ = kernel("dense_backward_weights", rand(m, 3, dtype=dtype), rand(m, 5, dtype=dtype))
        assert (dw.shape, dw.mT.is_contiguous()) == ((5, 3), True)
