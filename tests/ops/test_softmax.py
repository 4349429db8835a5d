"""Softmax over a dimension, and its backward."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import Case, Cost, M, N, Refused, rand
from kernels import (
    SPECIAL,
    any_leading,
    any_tensor,
    assert_same_bits,
    by_dtype,
    check,
    far,
    kernel,
    laid_out,
    launched,
    not_mergeable,
    of_kernels,
)
from oracle import added, same

from scratchcuda import ops


def formula(m, z):
    powers = m.exp(z - z.max(-1, keepdims=True, initial=-np.inf))
    return (powers / added(powers),)


def magnitudes(delta, a):
    delta, a = abs(delta), abs(a)
    return (a * (delta + (delta * a).sum(-1, keepdims=True)),)


CASES = {
    "softmax": Case(
        arguments=lambda m: (rand(m, 4),),
        theirs=lambda z: z.softmax(-1),
        formula=formula,
        costs=[Cost(lambda t: (t.delta, -1), 0, 5 * M * N, 2 * M * N)],
        refused=[
            Refused(
                lambda t: (t.delta, 2),
                ValueError,
                r"dim is 2, expected one of the 2 of z \(4, 3\)",
                r"dim is 2, expected one of the 2 of \(4, 3\)",
            ),
            *(
                Refused(lambda t, dim=dim: (t.delta, dim), TypeError, f"dim is {dim!r} .*, expected an integer", None)
                for dim in ("C", True, 1.0, None)
            ),
        ],
    ),
    "softmax_backward": Case(
        arguments=lambda m: (rand(m, 4), rand(m, 4).softmax(-1)),
        theirs=lambda delta, a: a * (delta - (delta * a).sum(-1, keepdim=True)),
        formula=lambda m, delta, a: (a * (delta - added(delta * a)),),
        magnitudes=magnitudes,
        costs=[Cost(lambda t: (t.delta, t.a, -1), 0, 4 * M * N, 3 * M * N)],
        refused=[
            Refused(lambda t: (t.delta, t.delta.float()), TypeError, "a has dtype torch.float32", None),
            Refused(
                lambda t: (t.delta, t.delta.bfloat16()),
                TypeError,
                "a has dtype torch.bfloat16, expected torch.float64 as delta",
            ),
            Refused(
                lambda t: (t.delta, t.delta, -3),
                ValueError,
                r"dim is -3, expected one of the 2 of delta",
                r"dim is -3, expected one of the 2 of \(4, 3\)",
            ),
            Refused(lambda t: (t.delta, t.delta, True), TypeError, "dim is True .*, expected an integer", None),
        ],
    ),
}


def test_softmax_as_torch_over_a_dimension():
    x = rand(4, 5)
    torch.testing.assert_close(ops.softmax(x, 0), x.softmax(0))
    torch.testing.assert_close(ops.softmax_backward(x, x, 0), ops.softmax_backward(x.T, x.T).T)


@of_kernels
@by_dtype
@hypothesis.given(st.data())
def test_any_softmax(dtype, data):
    """As of any dense layer."""
    leading, columns = any_leading(data.draw), data.draw(st.integers(1, 40))
    x, delta, scores = (any_tensor(data.draw, *leading, columns, dtype=dtype) for _ in range(3))
    check("softmax", (x,))
    check("softmax_backward", (delta, scores.softmax(-1)))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("columns", [0, 1, 31, 33, 127, 128, 129, 511, 512, 513, 8191, 8192, 8193])
def test_softmax(columns, layout, dtype):
    """Around the sizes at which a row takes more registers, a whole block, and two reads."""
    z = laid_out(4 * rand(3, columns, dtype=dtype), layout)
    check("softmax", (z,))
    check("softmax_backward", (laid_out(rand(3, columns, dtype=dtype), layout), z.softmax(-1)))


@of_kernels
@by_dtype
def test_softmax_over_any_dimension(dtype):
    """Contiguous, as torch's; the same bits as over the last one."""
    for z in (rand(4, 3, 5, dtype=dtype), rand(5, 3, 4, dtype=dtype).mT[:, ::2], rand(dtype=dtype)):
        delta = rand(*z.shape, dtype=dtype)
        for dim in range(-z.dim(), max(1, z.dim())):
            moved = (t.movedim(dim, -1) if z.dim() else t for t in (z, delta))
            a, dz = kernel("softmax", z, dim), kernel("softmax_backward", delta, kernel("softmax", z, dim), dim)
            z_last, delta_last = moved
            a_last = kernel("softmax", z_last)
            dz_last = kernel("softmax_backward", delta_last, a_last)
            for name, result, last in (("softmax", a, a_last), ("softmax_backward", dz, dz_last)):
                assert result.is_contiguous()
                same(result, last.movedim(-1, dim) if z.dim() else last, f"{name} along {dim}")


@of_kernels
@by_dtype
def test_softmax_of_scalars(dtype):
    check("softmax", (rand(dtype=dtype),))
    check("softmax_backward", (rand(dtype=dtype), rand(dtype=dtype)))


@of_kernels
@by_dtype
def test_softmax_special_values(dtype):
    """NaN, infinities, and what saturates an exponential; in each way to take a row."""
    for columns in (3, 200, 1000, 9000):
        rows = torch.zeros(len(SPECIAL) + 1, columns, dtype=dtype)
        rows[:-1, 1] = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
        rows[-1] = -math.inf
        rows[0, 2], rows[3, 0], rows[4, :2] = 1, -math.inf, -math.inf
        check("softmax", (rows,))


@of_kernels
@pytest.mark.backends("emulator")
def test_softmax_of_nothing_launches_nothing():
    assert not launched("softmax_backward", rand(3, 0), rand(3, 0))


@of_kernels
@pytest.mark.backends("emulator")
@by_dtype
def test_softmax_bits_for_any_order_of_threads_and_blocks(dtype):
    calls = [("softmax", (rand(5, columns, dtype=dtype),)) for columns in (100, 1000, 9000)]
    assert_same_bits([*calls, ("softmax_backward", (rand(5, 9000, dtype=dtype), rand(5, 9000, dtype=dtype)))])


@of_kernels
def test_softmax_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("softmax", (x,))
    check("softmax_backward", (x, x))


@of_kernels
def test_softmax_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    check("softmax", (not_mergeable(),))
