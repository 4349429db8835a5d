"""Cross-entropy with its gradient, as a training step takes it, and the two by themselves."""

import itertools
import math

import pytest
import torch
from cases import DTYPES, Case, Cost, M, N, Refused, rand
from cross_entropy_formulas import (
    backward,
    backward_sizes,
    both,
    both_sizes,
    torchs,
    torchs_backward,
    torchs_both,
    value,
    value_sizes,
)
from kernels import (
    LAYOUTS,
    SPECIAL,
    assert_same_bits,
    by_dtype,
    check,
    far,
    is_nan,
    kernel,
    laid_out,
    launched,
    not_mergeable,
    of_kernels,
)
from losses import step_of
from oracle import same, shown
from torch.nn import functional

from scratchcuda import ops


def weights(count, dtype=torch.float64):
    return rand(count).abs().add(0.5).to(dtype)


def pixels(m):
    return rand(m, 4, 2), rand(m, 4, 2).softmax(1)


REFUSED = [
    Refused(lambda t: (t.delta, t.delta, 1), ValueError, "ignore_index is 1, expected None with probabilities"),
    Refused(lambda t: (t.delta, t.order[:3]), ValueError, r"y_true has shape \(3,\), expected \(4,\)"),
    Refused(lambda t: (t.delta, t.x), ValueError, r"y_true has shape \(4, 5\), expected \(4, 3\)"),
    Refused(lambda t: (t.delta, t.order.int()), None, "", "y_true has dtype torch.int32, expected torch.int64"),
    Refused(lambda t: (t.delta, t.delta[:, 0]), TypeError, "y_true has dtype torch.float64, expected integer", None),
    Refused(lambda t: (t.delta, t.order, True), TypeError, "ignore_index is True", None),
    Refused(lambda t: (t.delta, t.delta, None, t.x[0]), ValueError, r"class_weights has shape \(5,\), expected \(3,\)"),
    Refused(
        lambda t: (t.delta, t.delta, None, t.b.float()),
        TypeError,
        "class_weights has dtype torch.float32, expected torch.float64 as scores",
    ),
]
ENTROPY = Case(
    arguments=lambda m: (rand(m, 4), rand(m, 4).softmax(-1), None, weights(4), weights(m), 0.1),
    theirs=torchs_both,
    formula=both,
    magnitudes=both_sizes,
    results=("loss", "gradient"),
    costs=[
        Cost(lambda t: (t.delta, t.order % N), 0, 8 * M * N, 2 * M * N + 1, 8 * M),
        Cost(lambda t: (t.delta, t.a), 0, 10 * M * N, 3 * M * N + 1),
        Cost(lambda t: (t.delta, t.order % N, None, t.b, t.x[:, 0]), 0, 8 * M * N, 2 * M * N + 1 + N + M, 8 * M),
        Cost(lambda t: (t.delta, t.order % N, None, t.b, None, 0.1), 0, 11 * M * N, 2 * M * N + 1 + N, 8 * M),
        Cost(lambda t: (t.delta, t.a, None, t.b, None, 0.1), 0, 13 * M * N, 3 * M * N + 1 + N),
    ],
    refused=[
        *REFUSED,
        Refused(lambda t: (t.b, t.b), ValueError, r"scores has shape \(3,\), expected \(m, classes\)"),
        Refused(lambda t: (t.delta[:, :0],) * 2, ValueError, r"scores has shape \(4, 0\), expected at least", None),
        Refused(
            lambda t: (t.delta, t.delta, None, None, t.b),
            ValueError,
            r"sample_weights has shape \(3,\), expected \(4,\)",
        ),
        Refused(
            lambda t: (t.delta, t.delta, None, None, None, 1.5), ValueError, "label_smoothing is 1.5, expected a nu"
        ),
        Refused(
            lambda t: (t.delta, t.delta, None, None, None, math.nan),
            ValueError,
            "label_smoothing is nan, expected a nu",
        ),
    ],
)
CASES = {
    "cross_entropy": ENTROPY,
    "cross_entropy_step_": Case(
        arguments=lambda m: (*ENTROPY.arguments(m)[:2], rand(5), torch.tensor(2), *ENTROPY.arguments(m)[3:]),
        theirs=step_of(lambda scores, y_true, *options: torchs_both(scores, y_true, None, *options)),
        written=(2, 3),
        costs=[
            Cost(lambda t: (t.delta, t.order % N, t.b, t.step), 0, 8 * M * N, 2 * M * N + 1, 8 * M + 2 * 8),
            Cost(lambda t: (t.delta, t.a, t.b, t.step, t.a[0]), 0, 11 * M * N, 3 * M * N + 1 + N, 2 * 8),
        ],
        refused=[
            Refused(
                lambda t: (t.delta, t.delta, t.b, t.step.int()),
                TypeError,
                "step has dtype torch.int32, expected torch.int64",
            ),
            Refused(lambda t: (t.delta, t.delta, t.b, t.order), ValueError, r"step has shape \(4,\), expected \(\)"),
        ],
    ),
    "cross_entropy_value": Case(
        arguments=lambda m: (*pixels(m), None, weights(4), 0.1, "mean"),
        theirs=torchs,
        formula=value,
        magnitudes=value_sizes,
        results=("loss",),
        costs=[
            Cost(lambda t: (t.delta, t.order % N), 0, 4 * M * N, M * N + 1, 8 * M),
            Cost(lambda t: (t.delta, t.order % N, None, t.b, 0.0, "none"), 0, 4 * M * N, M * N + M + N, 8 * M),
            Cost(lambda t: (t.delta, t.order % N, None, None, 0.1), 0, 7 * M * N, M * N + 1, 8 * M),
            Cost(lambda t: (t.delta, t.a, None, t.b), 0, 8 * M * N, 2 * M * N + 1 + N),
        ],
        refused=[
            *REFUSED,
            Refused(lambda t: (t.b[0], t.b), ValueError, r"scores has shape \(\), expected \(m, classes\), \(n, cla"),
            Refused(lambda t: (t.b, t.step.double()), TypeError, "y_true has dtype torch.float64, expected int", None),
            Refused(
                lambda t: (t.delta, t.delta, None, None, 0.0, "median"),
                ValueError,
                "reduction is 'median', expected one of none, mean, sum",
            ),
        ],
    ),
    "cross_entropy_backward": Case(
        arguments=lambda m: (rand(m, 2), *pixels(m), None, weights(4), 0.1, "none"),
        theirs=torchs_backward,
        formula=backward,
        magnitudes=backward_sizes,
        results=("gradient",),
        costs=[
            Cost(lambda t: (t.b[0], t.delta, t.order % N), 0, 8 * M * N, 2 * M * N + 1, 8 * M),
            Cost(lambda t: (t.x[:, 0], t.delta, t.a, None, None, 0.0, "none"), 0, 10 * M * N, 3 * M * N + M),
        ],
        refused=[
            Refused(lambda t: (t.b, t.delta, t.delta), ValueError, r"grad has shape \(3,\), expected \(\)"),
            Refused(
                lambda t: (t.b[0], t.delta, t.delta, None, None, 0.0, "none"),
                ValueError,
                r"grad has shape \(\), expected \(4,\)",
            ),
            Refused(
                lambda t: (t.b[0].float(), t.delta, t.delta),
                TypeError,
                "grad has dtype torch.float32, expected torch.flo",
            ),
        ],
    ),
}

#: Targets by index or not, weights of classes, smoothing, a class to ignore, reduction: all that there are.
OPTIONS = [
    (by_index, weighted, smoothing, ignores, reduction)
    for by_index, weighted, smoothing, ignores, reduction in itertools.product(
        (True, False), (True, False), (0.0, 0.1, 1.0), (False, True), ("none", "mean", "sum")
    )
    if by_index or not ignores
]


def arguments(option, *shape, dtype=torch.float64):
    """Of the value, and the gradient of what it returns."""
    by_index, weighted, smoothing, ignores, reduction = option
    dim = min(1, len(shape) - 1)
    rows = shape[:dim] + shape[dim + 1 :]
    scores, classes = (4 * rand(*shape)).to(dtype), shape[dim]
    y_true = torch.randint(classes, rows) if by_index else rand(*shape).softmax(dim).to(dtype)
    ignored = int(y_true.flatten()[-1]) if ignores else None
    given = scores, y_true, ignored, weights(classes, dtype) if weighted else None, smoothing, reduction
    return given, rand(*rows if reduction == "none" else (), dtype=dtype)


@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 4, 3), (2, 3, 3, 2)], ids=str)
def test_as_torch(shape):
    for option in OPTIONS:
        args, grad = arguments(option, *shape)
        torch.testing.assert_close(ops.cross_entropy_value(*args), torchs(*args), equal_nan=True)
        if args[2] is None or (args[1] != args[2]).any():  # else torch's own is NaN by some ways
            found, expected = ops.cross_entropy_backward(grad, *args), torchs_backward(grad, *args)
            torch.testing.assert_close(found, expected)
        if len(shape) == 2 and option[-1] == "mean":
            weighted = *args[:4], weights(shape[0]), args[4]
            torch.testing.assert_close(ops.cross_entropy(*weighted), torchs_both(*weighted))


@pytest.mark.backends("tensor")  # once: twins serve where autograd records
@pytest.mark.parametrize("option", OPTIONS[::7], ids=str)
def test_derivatives(option):
    (scores, y_true, *options), grad = arguments(option, 2, 3, 2)
    inputs = scores.requires_grad_(), grad.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, _: ops.cross_entropy_value(s, y_true, *options), inputs)
    assert torch.autograd.gradcheck(lambda s, g: ops.cross_entropy_backward(g, s, y_true, *options), inputs)


def test_class_indices_are_one_hot_rows():
    scores, classes = rand(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    one_hot = functional.one_hot(classes, 4).double()
    for by_class, by_row in zip(ops.cross_entropy(scores, classes), ops.cross_entropy(scores, one_hot), strict=True):
        torch.testing.assert_close(by_class, by_row)
    torch.testing.assert_close(ops.cross_entropy(scores, classes)[0], functional.cross_entropy(scores, classes))


def test_masked_classes_leave_the_loss_finite():
    scores = torch.tensor([[0.0, -math.inf, 1.0]], dtype=torch.float64)
    loss, gradient = ops.cross_entropy(scores, torch.tensor([2]))
    torch.testing.assert_close(loss, functional.cross_entropy(scores, torch.tensor([2])))
    assert gradient.isfinite().all()
    assert ops.cross_entropy(scores, torch.tensor([2]), label_smoothing=0.1)[0].isinf()


def test_cross_entropy_of_class_indices():
    classes = torch.tensor([0, 3, 1])
    for dtype in DTYPES:
        scores = rand(3, 4, dtype=dtype)
        loss, gradient = ops.cross_entropy(scores, classes)
        leaf = scores.double().requires_grad_()
        exact = functional.cross_entropy(leaf, classes)
        exact.backward()
        tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps}
        torch.testing.assert_close(loss.double(), exact.detach(), **tolerance)
        torch.testing.assert_close(gradient.double(), leaf.grad, **tolerance)


@pytest.mark.backends("tensor", "emulator")  # to look at them is to wait for a GPU
@pytest.mark.parametrize("index", [3, -1])
def test_class_indices_out_of_range_are_refused(index):
    with pytest.raises(ValueError, match=f"class index {index}, expected 0 to 2"):
        ops.cross_entropy(rand(4, 3), torch.tensor([0, 1, index, 2]))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("columns", [1, 31, 33, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097])
def test_cross_entropy(columns, layout, dtype):
    """Around the sizes at which a row takes more registers, a whole block, and two reads; by rows and by index."""
    for rows in (3, 33) if columns < 1000 else (3,):
        scores = laid_out(4 * rand(rows, columns, dtype=dtype), layout)
        check("cross_entropy", (scores, laid_out(rand(rows, columns).softmax(1).to(dtype), layout)))
        indices = torch.randint(columns, (2 * rows,))[::2]
        check("cross_entropy", (scores, indices))
    check("cross_entropy", (scores, indices, 0, weights(2 * columns, dtype)[::2], weights(2 * rows, dtype)[::2], 0.1))


@of_kernels
@by_dtype
@pytest.mark.parametrize(
    "shape", [(5, 4), (4,), (2, 3, 5), (2, 5, 3), (2, 3, 3, 2), (3, 600), (2, 700, 3), (2, 5000)], ids=str
)
def test_cross_entropy_options(shape, dtype):
    """A quarter of them in each dtype; of rows by a thread, a warp and a block, and of pixels in any memory."""
    for i, option in enumerate(OPTIONS[DTYPES.index(dtype) :: 4]):
        (scores, *args), grad = arguments(option, *shape, dtype=dtype)
        scores, grad = laid_out(scores, LAYOUTS[i % len(LAYOUTS)]), laid_out(grad, "strided")
        check("cross_entropy_value", (scores, *args))
        check("cross_entropy_backward", (grad, scores, *args))


@of_kernels
@by_dtype
@pytest.mark.parametrize("columns", [3, 200, 600, 5000])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_cross_entropy_without_some_rows(columns, ignored, dtype):
    """As of the others alone; of one block and several."""
    for rows in (1, 5, 40):
        scores, classes = rand(rows, columns, dtype=dtype), torch.randint(2, columns, (2 * rows,))[::2]
        classes[rows // 3 :: 2] = ignored
        loss, gradient = kernel("cross_entropy", scores, classes, ignored)
        kept = classes != ignored
        expected, others = kernel("cross_entropy", scores[kept].contiguous(), classes[kept])
        if rows == 1:
            is_nan(expected, "cross_entropy, loss of nothing")
        units = 16 * torch.finfo(dtype).eps  # the order of the sum
        same(loss, expected, "cross_entropy, loss", units, equal_nan=rows == 1)
        same(gradient[kept], others, "cross_entropy, gradient")
        same(gradient[~kept], torch.zeros_like(scores)[~kept], "cross_entropy, gradient of rows without a part")
        wrong = classes.clone()
        wrong[kept] = columns
        is_nan(kernel("cross_entropy", scores, wrong, ignored)[0], "cross_entropy, loss of what is no class")


@of_kernels
@by_dtype
def test_cross_entropy_special_values(dtype):
    """NaN and infinities, no loss of nothing, and NaN for an index that is no class."""
    for columns in (3, 200, 1000, 9000):
        scores = torch.zeros(len(SPECIAL) + 1, columns, dtype=dtype)
        scores[:-1, 1] = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
        scores[-1] = -math.inf
        for index in (0, 1):
            for row in scores:
                check("cross_entropy", (row[None], torch.tensor([index])))
                check("cross_entropy_value", (row, torch.tensor(index), None, None, 0.0, "none"))
        for index, smoothing in ((-100, 0.0), (-1, 0.1), (columns, 1.0)):
            args = rand(2, columns, dtype=dtype), torch.tensor([0, index]), None, weights(columns, dtype)
            loss, gradient = kernel("cross_entropy", *args, None, smoothing)
            is_nan(loss, "cross_entropy, loss of what is no class")
            is_nan(kernel("cross_entropy_value", *args, smoothing)[()], "cross_entropy_value of what is no class")
            is_nan(gradient[1], "cross_entropy, gradient of what is no class")
            assert not gradient[0].isnan().any(), f"cross_entropy in {shown(dtype)}: NaN in the row of a class"
    absent = torch.tensor([1, math.inf, 1], dtype=dtype)  # as of a class that no row has
    check("cross_entropy", (rand(2, 3, dtype=dtype), torch.tensor([0, 2]), None, absent))
    loss, gradient = kernel("cross_entropy", *[torch.zeros(0, 4, dtype=dtype)] * 2)
    is_nan(loss, "cross_entropy, loss of nothing")
    same(gradient, torch.zeros(0, 4, dtype=dtype), "cross_entropy, gradient of nothing")
    nothing = torch.zeros(0, dtype=torch.int64)
    is_nan(kernel("cross_entropy", torch.zeros(0, 4, dtype=dtype), nothing)[0], "cross_entropy, loss of nothing")


@of_kernels
@pytest.mark.backends("emulator")
def test_cross_entropy_are_summed_by_as_many_blocks_as_the_shape_says():
    by_class, rows = torch.zeros(33, dtype=torch.int64), (rand(33, 512), rand(33, 512))
    for name, args, blocks in (
        ("cross_entropy_value", (rows[0], by_class), [2, 1]),
        ("cross_entropy_value", (rows[0], by_class, None, None, 0.0, "none"), [2]),
        ("cross_entropy_backward", (rand(), rows[0], by_class), [2]),
        ("cross_entropy_backward", (rand(), rows[0], by_class, None, rand(512)), [1, 2]),
        ("cross_entropy", (rows[0], by_class, None, rand(512)), [1, 2, 1]),
        ("cross_entropy", (*rows, None, rand(512)), [2, 1]),
        ("cross_entropy", (*rows, None, None, rand(33)), [1, 2, 1]),
        ("cross_entropy", (rand(32, 512), rand(32, 512)), [1]),
        ("cross_entropy", (rand(33, 512), rand(33, 512)), [2, 1]),
        ("cross_entropy", (rand(3, 513), rand(3, 513)), [3, 1]),
        ("cross_entropy", (rand(1100, 513), torch.zeros(1100, dtype=torch.int64)), [1024, 1]),
        ("cross_entropy", (rand(33, 512), torch.zeros(33, dtype=torch.int64), 1), [1, 2, 1]),
        (
            "cross_entropy_value",
            (many := (rand(8193, 3), torch.randint(3, (8193,)), 1, None, 0.0, "mean")),
            [2, 1, 257, 1],
        ),
    ):
        assert [launch.grid for launch in launched(name, *args)] == [(number, 1, 1) for number in blocks]
    check("cross_entropy_value", many)


@of_kernels
@pytest.mark.backends("emulator")
def test_cross_entropy_bits_for_any_order_of_threads_and_blocks():
    weighted = rand(4, 9, 300), torch.randint(9, (4, 300)), 0, weights(9), 0.1, "mean"
    assert_same_bits(
        [
            ("cross_entropy", (rand(200, 600), rand(200, 600))),
            ("cross_entropy_value", weighted),
            ("cross_entropy_backward", (rand(), *weighted)),
        ]
    )


@of_kernels
def test_cross_entropy_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("cross_entropy", (x, x.abs()))
    rows = x.unflatten(1, (4, 2))  # pixels, beside each other in twos
    check("cross_entropy_value", (rows, rows.abs(), None, None, 0.0, "none"))
    check("cross_entropy_backward", (x[:, :2], rows, torch.ones(3, 2, dtype=torch.int64), None, None, 0.0, "none"))


@of_kernels
def test_cross_entropy_gradients_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    grad, y_true = not_mergeable().copy_(rand(*[2] * 17)), torch.ones([2] * 17, dtype=torch.int64)
    check("cross_entropy_backward", (grad, rand(2, 2, *[2] * 16).float(), y_true, None, None, 0.0, "none"))
