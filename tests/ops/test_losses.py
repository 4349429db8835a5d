"""The losses, each with its gradient, and as a training step takes them."""

import math

import numpy as np
import pytest
import torch
from cases import DTYPES, Case, Cost, M, N, Refused, rand
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
    of_kernels,
)
from oracle import TRUTH, added, same, shown
from torch.nn import functional

from scratchcuda import ops


def mean(terms, count):
    return added(terms.ravel())[0] / terms.dtype.type(count)


def one_hot(targets, scores):
    """Class indices as rows."""
    return np.equal(targets[:, None], np.arange(scores.shape[1])).astype(scores.dtype) if targets.ndim == 1 else targets


def mse(m, y_pred, y_true):
    difference = y_pred - y_true
    return mean(difference**2, difference.size), 2 * difference / difference.size


def cross_entropy(m, scores, y_true):
    targets = one_hot(y_true, scores)
    shifted = scores - scores.max(1, keepdims=True, initial=-np.inf)
    log_p = shifted - m.log(added(m.exp(shifted)))
    terms = np.where((targets == 0) & (y_true.ndim == 1), 0, -targets * log_p)
    return mean(terms, len(scores)), (m.exp(log_p) * added(targets) - targets) / len(scores)


def cross_entropy_magnitudes(scores, y_true):
    scores, targets = abs(scores), one_hot(abs(y_true), scores)
    spread = targets * (scores + np.log(np.exp(scores).sum(1, keepdims=True)))
    return spread.sum() / len(scores), (targets.sum(1, keepdims=True) + targets) / len(scores)


def theirs(function):
    def with_gradient(y_pred, y_true):
        leaf = y_pred.clone().requires_grad_()
        loss = function(leaf, y_true)
        loss.backward()
        return loss.detach(), leaf.grad

    return with_gradient


def step_of(with_gradient):
    def step(y_pred, y_true, losses, number):
        loss, gradient = with_gradient(y_pred, y_true)
        return gradient, torch.cat([losses[:number], loss[None], losses[number + 1 :]]), number + 1

    return step


def of_a_step(case, costs, refused):
    """The case of a loss in a training step."""
    return Case(
        arguments=lambda m: (*case.arguments(m), rand(5), torch.tensor(2)),
        theirs=step_of(case.theirs),
        written=(2, 3),
        costs=costs,
        refused=refused,
    )


MEAN_SQUARED_ERROR = Case(
    arguments=lambda m: (rand(m, 3), rand(m, 3)),
    theirs=theirs(functional.mse_loss),
    formula=mse,
    magnitudes=lambda y_pred, y_true: mse(TRUTH, abs(y_pred), -abs(y_true)),
    results=("loss", "gradient"),
    costs=[Cost(lambda t: (t.delta, t.a), 0, 4 * M * N, 3 * M * N + 1)],
    refused=[Refused(lambda t: (t.delta, t.delta[:, :1]), ValueError, r"y_true has shape \(4, 1\), expected \(4, 3\)")],
)
CROSS_ENTROPY = Case(
    arguments=lambda m: (rand(m, 4), rand(m, 4).softmax(-1)),
    theirs=theirs(functional.cross_entropy),
    formula=cross_entropy,
    magnitudes=cross_entropy_magnitudes,
    results=("loss", "gradient"),
    costs=[
        Cost(lambda t: (t.delta, t.order % N, None), 0, 8 * M * N, 2 * M * N + 1, 8 * M),
        Cost(lambda t: (t.delta, t.a, None), 0, 10 * M * N, 3 * M * N + 1),
    ],
    refused=[
        Refused(lambda t: (t.delta, t.delta, 1), ValueError, "ignore_index is 1, expected None with probabilities"),
        Refused(lambda t: (t.b, t.b), ValueError, r"scores has shape \(3,\), expected \(m, classes\)"),
        Refused(
            lambda t: (t.delta, t.order[:3]),
            ValueError,
            "y_true .* expected 4 samples",
            r"y_true has shape \(3,\), expected \(4,\)",
        ),
        Refused(lambda t: (t.delta, t.x), ValueError, r"y_true has shape \(4, 5\), expected \(4, 3\)"),
        Refused(lambda t: (t.delta, t.order.int()), None, "", "y_true has dtype torch.int32, expected torch.int64"),
        Refused(
            lambda t: (t.delta, t.delta[:, 0]), TypeError, "y_true has dtype torch.float64, expected integer", None
        ),
        Refused(lambda t: (t.delta, t.order, True), TypeError, "ignore_index is True", None),
    ],
)
CASES = {
    "mse": MEAN_SQUARED_ERROR,
    "cross_entropy": CROSS_ENTROPY,
    "mse_step_": of_a_step(
        MEAN_SQUARED_ERROR,
        [Cost(lambda t: (t.delta, t.a, t.b, t.step), 0, 4 * M * N, 3 * M * N + 1, 2 * 8)],
        [
            Refused(
                lambda t: (t.delta, t.delta, t.b.float(), t.step),
                TypeError,
                "losses has dtype torch.float32, expected torch.float64 as y_pred",
            ),
            Refused(
                lambda t: (t.delta, t.delta, t.w, t.step), ValueError, r"losses has shape \(5, 3\), expected \(steps,\)"
            ),
            Refused(lambda t: (t.delta, t.delta, t.b[:1].expand(3), t.step), ValueError, "losses is expanded"),
            Refused(
                lambda t: (t.delta, t.delta, t.b, t.step.int()),
                TypeError,
                "step has dtype torch.int32, expected torch.int64",
            ),
        ],
    ),
    "cross_entropy_step_": of_a_step(
        CROSS_ENTROPY,
        [Cost(lambda t: (t.delta, t.order % N, t.b, t.step), 0, 8 * M * N, 2 * M * N + 1, 8 * M + 2 * 8)],
        [
            Refused(
                lambda t: (t.delta, t.delta, t.b, t.step.int()),
                TypeError,
                "step has dtype torch.int32, expected torch.int64",
            ),
            Refused(lambda t: (t.delta, t.delta, t.b, t.order), ValueError, r"step has shape \(4,\), expected \(\)"),
        ],
    ),
}


@pytest.mark.parametrize("step_", [ops.mse_step_, ops.cross_entropy_step_])
def test_a_step_beyond_the_losses_is_counted_alone(step_):
    losses, step = rand(3), torch.tensor(3)
    before = losses.clone()
    step_(rand(4, 3), rand(4, 3).softmax(-1), losses, step)
    same(losses, before)
    assert step == 4
    step_(rand(4, 3), rand(4, 3).softmax(-1), losses.view(3, 1).expand(3, 2)[:, 0], step.fill_(1))
    assert (losses == before).tolist() == [True, False, True]


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


def test_masked_classes_leave_the_loss_finite():
    scores = torch.tensor([[0.0, -math.inf, 1.0]], dtype=torch.float64)
    loss, gradient = ops.cross_entropy(scores, torch.tensor([2]))
    torch.testing.assert_close(loss, functional.cross_entropy(scores, torch.tensor([2])))
    assert gradient.isfinite().all()


def test_cross_entropy_of_class_indices_is_differentiable():
    classes = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: ops.cross_entropy(s, classes), rand(3, 4, requires_grad=True))
    for dtype in DTYPES:
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


@pytest.mark.backends("tensor", "emulator")  # to look at them is to wait for a GPU
@pytest.mark.parametrize("index", [3, -1])
def test_class_indices_out_of_range_are_refused(index):
    with pytest.raises(ValueError, match=f"class index {index}, expected 0 to 2"):
        ops.cross_entropy(rand(4, 3), torch.tensor([0, 1, index, 2]))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 7, 9, 511, 1023, 1025, 8191, 8192, 8193, 30000])
def test_losses_mse(size, layout, dtype):
    """Sizes around those of an access of 16 bytes, of a round of a block, and of a second block."""
    check("mse", tuple(laid_out(rand(size, dtype=dtype), layout) for _ in range(2)))
    check("mse", (laid_out(rand(3, size // 3 + 1, dtype=dtype), layout), rand(3, size // 3 + 1, dtype=dtype)))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("columns", [1, 31, 33, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097])
def test_losses_cross_entropy(columns, layout, dtype):
    """Around the sizes at which a row takes more registers, a whole block, and two reads; by rows and by index."""
    for rows in (3, 33) if columns < 1000 else (3,):
        scores = laid_out(4 * rand(rows, columns, dtype=dtype), layout)
        check("cross_entropy", (scores, laid_out(rand(rows, columns).softmax(1).to(dtype), layout)))
        check("cross_entropy", (scores, torch.randint(columns, (2 * rows,))[::2]))


@of_kernels
@by_dtype
@pytest.mark.parametrize("columns", [3, 200, 600, 5000])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_losses_cross_entropy_without_some_rows(columns, ignored, dtype):
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
def test_losses_special_values(dtype):
    """NaN and infinities, no loss of nothing, and NaN for an index that is no class."""
    for columns in (3, 200, 1000, 9000):
        scores = torch.zeros(len(SPECIAL) + 1, columns, dtype=dtype)
        scores[:-1, 1] = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
        scores[-1] = -math.inf
        for index in (0, 1):
            for row in scores:
                check("cross_entropy", (row[None], torch.tensor([index])))
        for index in (-100, -1, columns):
            loss, gradient = kernel("cross_entropy", rand(2, columns, dtype=dtype), torch.tensor([0, index]))
            is_nan(loss, "cross_entropy, loss of what is no class")
            is_nan(gradient[1], "cross_entropy, gradient of what is no class")
            assert not gradient[0].isnan().any(), f"cross_entropy in {shown(dtype)}: NaN in the row of a class"
    for value in SPECIAL:
        check("mse", (torch.tensor([1.0, value, 0.5]).to(dtype), torch.tensor([0.0, 0.0, 2.0], dtype=dtype)))
    for name, shape in (("mse", (0,)), ("mse", (3, 0)), ("cross_entropy", (0, 4))):
        loss, gradient = kernel(name, torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
        is_nan(loss, f"{name}, loss of nothing")
        same(gradient, torch.zeros(shape, dtype=dtype), f"{name}, gradient of nothing")
    for index in (True, False):
        targets = torch.zeros(0, dtype=torch.int64) if index else torch.zeros(0, 4, dtype=dtype)
        is_nan(kernel("cross_entropy", torch.zeros(0, 4, dtype=dtype), targets)[0], "cross_entropy, loss of nothing")


@of_kernels
@pytest.mark.backends("emulator")
def test_losses_are_summed_by_as_many_blocks_as_the_shape_says():
    for name, args, blocks in (
        ("mse", (rand(8192), rand(8192)), [1]),
        ("mse", (rand(8193), rand(8193)), [2, 1]),
        ("cross_entropy", (rand(32, 512), rand(32, 512)), [1]),
        ("cross_entropy", (rand(33, 512), rand(33, 512)), [2, 1]),
        ("cross_entropy", (rand(3, 513), rand(3, 513)), [3, 1]),
        ("cross_entropy", (rand(1100, 513), torch.zeros(1100, dtype=torch.int64)), [1024, 1]),
        ("cross_entropy", (rand(33, 512), torch.zeros(33, dtype=torch.int64), 1), [1, 2, 1]),
    ):
        assert [launch.grid for launch in launched(name, *args)] == [(number, 1, 1) for number in blocks]


@of_kernels
@pytest.mark.backends("emulator")
def test_losses_bits_for_any_order_of_threads_and_blocks():
    assert_same_bits((("mse", (rand(9000), rand(9000))), ("cross_entropy", (rand(200, 600), rand(200, 600)))))


@of_kernels
@by_dtype
@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_losses_of_a_step(name, dtype):
    """The same loss and gradient, whether one block sums it or several; written to its place alone."""
    for rows in (30, 3000):
        args = rand(rows, 4, dtype=dtype), rand(rows, 4, dtype=dtype).softmax(1)
        loss, gradient = kernel(name, *args)
        for stride, place in ((1, 0), (3, 2), (3, 5), (1, 7)):
            losses, step = rand(5 * stride, dtype=dtype), torch.tensor(place)
            expected = losses.clone()
            expected[::stride][place : place + 1] = loss
            same(kernel(f"{name}_step_", *args, losses[::stride], step), gradient, f"{name}_step_, gradient")
            same(losses, expected, f"{name}_step_, losses")
            same(step, torch.tensor(place + 1), f"{name}_step_, step")


@of_kernels
def test_losses_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("mse", (x, x.flip(1)))
    check("cross_entropy", (x, x.abs()))
