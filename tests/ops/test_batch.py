"""The batch of a training step."""

import pytest
import torch
from cases import Case, Cost, K, N, Refused, rand
from kernels import LAYOUTS, by_dtype, far, kernel, laid_out, of_kernels
from oracle import same

from scratchcuda import ops


def arguments(m):
    samples, numbers = (rand(m + 7, 4), rand(m + 7, 3)), (torch.randperm(m + 7), torch.tensor(2), 3)
    return *samples, *numbers, rand(m, 4), rand(m, 3)


def theirs(x, y, order, step, batch_size, *batch):
    rows = order[step * batch_size :][: len(batch[0])]
    return x[rows], y[rows]


CASES = {
    "take_batch_": Case(
        arguments=arguments,
        theirs=theirs,
        written=(5, 6),
        costs=[Cost(lambda t: (t.x, t.delta, t.order, t.step, 2, t.x2, t.delta2), 0, 0, 4 * (K + N), 3 * 8)],
        refused=[
            Refused(
                lambda t: (t.x, t.delta, t.order, t.step, 2, t.x[:2], t.delta2),
                ValueError,
                "x_batch shares memory with x|x shares memory with x_batch",
            ),
            Refused(
                lambda t: (t.x, t.delta, t.order, t.step, 2, t.x2, t.x2),
                ValueError,
                r"y_batch has shape \(2, 5\), expected \(2, 3\)",
            ),
            Refused(
                lambda t: (t.x, t.x, t.order, t.step, 2, t.x2, t.x2.clone()[:1]),
                ValueError,
                "y_batch .* expected 2 samples",
                "y_batch has 1 rows, expected 2 as x_batch",
            ),
            Refused(
                lambda t: (t.x, t.x, t.order, t.step, 0, t.x2, t.x2.clone()),
                ValueError,
                "batch_size is 0, expected a positive integer",
            ),
            Refused(
                lambda t: (t.x, t.x, t.order[None], t.step, 2, t.x2, t.x2.clone()),
                ValueError,
                r"order has shape \(1, 4\), expected \(samples,\)",
            ),
            Refused(
                lambda t: (t.x.long(), t.x, t.order, t.step, 2, t.x2.long(), t.x2), TypeError, "x has dtype torch.int64"
            ),
            Refused(
                lambda t: (t.order, t.x, t.order, t.step, 2, t.order[:2], t.x2), TypeError, "x has dtype torch.int64"
            ),
            Refused(
                lambda t: (t.x, t.x.long(), t.order, t.step, 2, t.x2, t.x2.long()), TypeError, "y has dtype torch.int64"
            ),
            Refused(
                lambda t: (t.x, t.order.clone(), t.order, t.step, 2, t.x2, t.order[:2]),
                ValueError,
                "shares memory with",
            ),
            Refused(
                lambda t: (t.x, t.x[None], t.order, t.step, 2, t.x2, t.x2),
                ValueError,
                "y_batch|y has shape",
                r"y has shape \(1, 4, 5\), expected one or two dimensions",
            ),
            Refused(
                lambda t: (t.x, t.x, t.order, t.step, 2, t.x2.T.contiguous().T, t.x2),
                ValueError,
                "x_batch has strides .*, expected contiguous memory",
            ),
        ],
    ),
}


@by_dtype
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


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [0, 1, 3, 8, 255, 1500])
def test_batch(columns, layout, dtype):
    """Rows are taken wherever they lie; with classes, and with rows of another width beside them."""
    x = laid_out(rand(40, columns, dtype=dtype), layout)
    order = torch.randperm(40).repeat_interleave(2)[::2]
    for y in (torch.randint(9, (80,))[::2], laid_out(rand(40, 300, dtype=dtype), layout)):
        for step, m in ((0, 1), (2, 17), (1, 0)):
            batch = [torch.cat([data[:m].clone(), data.new_zeros(1, *data.shape[1:])])[:m] for data in (x, y)]
            kernel("take_batch_", x, y, order, torch.tensor(step), 11, *batch)
            rows = order[11 * step :][:m]
            same(batch[0], x[rows], "take_batch_, x")
            same(batch[1], y[rows], "take_batch_, y")


@of_kernels
def test_batch_reads_no_sample_that_is_none():
    x, y = rand(5, 3), torch.arange(5)
    order = torch.tensor([4, -1, 5, 0, 2**40])
    for step, expected in ((0, [4, 9, 9, 0]), (1, [9] * 4), (2**40, [9] * 4), (-1, [9] * 4)):
        x_batch, y_batch = torch.full((4, 3), 9.0, dtype=torch.float64), torch.full((4,), 9)
        kernel("take_batch_", x, y, order, torch.tensor(step), 4, x_batch, y_batch)
        same(y_batch, torch.tensor(expected), "take_batch_, y")
        rows = [x[i] if i < 5 else torch.full((3,), 9.0, dtype=torch.float64) for i in expected]
        same(x_batch, torch.stack(rows), "take_batch_, x")


@of_kernels
def test_batch_offsets_beyond_32_bits():
    x, order = far(3, 8).copy_(rand(3, 8)), torch.tensor([2, 0])
    x_batch, y_batch = torch.empty(2, 8, dtype=x.dtype), torch.empty(2, dtype=torch.int64)
    kernel("take_batch_", x, torch.arange(3), order, torch.tensor(0), 2, x_batch, y_batch)
    same(x_batch, x[order], "take_batch_, x")
