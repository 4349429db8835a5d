"""Dropout with the noise given."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from cases import Case, Cost, M, N, Refused, rand
from kernels import SPECIAL, any_leading, any_tensor, by_dtype, check, far, kernel, launched, not_mergeable, of_kernels
from oracle import same
from torch.nn import functional

from scratchcuda import ops


def noise_of(*shape, dtype=torch.float64, p=0.25):
    return functional.dropout(torch.ones(shape, dtype=dtype), p)


CASES = {
    "dropout": Case(
        arguments=lambda m: (rand(m, 4), noise_of(m, 4)),
        theirs=lambda x, noise: x * noise,
        formula=lambda m, x, noise: (x * noise,),
        costs=[Cost(lambda t: (t.delta, t.a), 0, M * N, 3 * M * N)],
        refused=[
            Refused(
                lambda t: (t.x.long(), t.x),
                TypeError,
                "x has dtype torch.int64, expected a floating-point dtype",
                "x has dtype torch.int64, expected torch.float64, torch.float32",
            ),
            Refused(
                lambda t: (t.x, t.x.float()), TypeError, "noise has dtype torch.float32, expected torch.float64 as"
            ),
            Refused(lambda t: (t.x, t.x.to("meta")), ValueError, "noise is on device meta, expected (cpu|cuda:0) as x"),
            Refused(lambda t: (t.x, t.x[0]), ValueError, r"noise has shape \(5,\), expected \(4, 5\)"),
        ],
    )
}


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_as_torch(p):
    x = rand(5, 7).requires_grad_()
    torch.manual_seed(3)
    expected = functional.dropout(x, p)
    expected.sum().backward()
    torch.manual_seed(3)
    noise = functional.dropout(torch.ones_like(x), p)
    same(ops.dropout(x.detach(), noise), expected.detach())
    same(ops.dropout(torch.ones_like(noise), noise), x.grad)


@of_kernels
@by_dtype
@hypothesis.given(st.data())
def test_any_dropout(dtype, data):
    """Leading dimensions in any order and number, some expanded, each operand in a layout of its own."""
    shape = *any_leading(data.draw), data.draw(st.integers(0, 40))
    check("dropout", tuple(any_tensor(data.draw, *shape, dtype=dtype) for _ in range(2)))


@of_kernels
@by_dtype
@pytest.mark.parametrize("n", [7, 2047, 2049])  # less than an access, and around a block of 16 bytes a thread
def test_dropout_sizes(n, dtype):
    x, noise = rand(n, dtype=dtype), noise_of(n, dtype=dtype)
    same(kernel("dropout", x, noise), x * noise, "dropout")


@of_kernels
@by_dtype
def test_dropout_special_values(dtype):
    """What is dropped is 0 times it, as in torch."""
    x = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    for factor in (0.0, 4 / 3, math.inf):
        noise = torch.full_like(x, factor)
        same(kernel("dropout", x, noise), x * noise, "dropout", equal_nan=True)


@of_kernels
def test_dropout_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("dropout", (x, noise_of(3, 8, dtype=x.dtype)))


@of_kernels
def test_dropout_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    check("dropout", (not_mergeable(), not_mergeable()))


@of_kernels
@pytest.mark.backends("emulator")
def test_dropout_of_nothing_launches_nothing():
    assert not launched("dropout", rand(3, 0), rand(3, 0))
