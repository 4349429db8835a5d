"""The elementwise activations: all that is tested of one follows from its entry."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import ELEMENTWISE, Case, Cost, M, N, Refused, others, rand
from kernels import (
    LAYOUTS,
    SPECIAL,
    any_leading,
    any_tensor,
    by_dtype,
    check,
    far,
    kernel,
    laid_out,
    launched,
    not_mergeable,
    of_kernels,
)
from oracle import assert_right, formula, narrowed, same
from terms import Term, term
from torch.nn import functional

from scratchcuda import ops
from scratchcuda.ops._entries import Chosen, elementwise
from scratchcuda.ops._registry import twins


def places(rows):
    """Values of z (rows, 4), the same each time: torch's autograd starts from z where ours starts from the output."""
    return torch.linspace(-2.9, 2.9, 4 * rows, dtype=torch.float64).view(rows, 4)  # no exact 0, a kink


def torchs(entry, z, *parameters):
    return getattr(functional, entry.variants[0].name)(z, **Chosen(entry.name, parameters).arguments)


def torchs_backward(entry, delta, value, *parameters):
    z = (value if entry.of_input else places(len(value))).clone().requires_grad_()
    return torch.autograd.grad(torchs(entry, z, *parameters), z, delta)[0]


def value_at(entry, z, *parameters):
    """What the derivative at z is in terms of."""
    return z if entry.of_input else entry.forward(z, *parameters)


def formula_of(entry, function):
    """One of its two as oracle.py takes it, the parameters with their defaults."""
    tensors = 1 if function is entry.formula else 2
    return lambda m, *args: (function(m, *args[:tensors], *entry.values(args[tensors:])),)


def magnitudes_of(entry, function):
    """By how much the sizes of its terms are above the value."""

    def above(*args):
        terms = (term(arg) if isinstance(arg, np.ndarray) else arg for arg in args)
        (result,) = formula_of(entry, function)(Term, *terms)
        return (result.size - abs(result.value),)

    return above


def flops(function, tensors, parameters):
    Term.operations.clear()
    function(Term, *(Term(0.5, 0.5, f"tensor {i}") for i in range(tensors)), *parameters)
    return len(Term.operations)


def cases_of(entry):
    """Of both its ops."""
    parameters, value = others(entry.name), "z" if entry.of_input else "a"
    wrong = [
        Refused(lambda t, given=given: (t.x, *given), ValueError, f"{name} is {given[i]}, expected a finite", None)
        for i, (name, parameter) in enumerate(entry.parameters.items())
        for given in [(*parameters[:i], refused, *parameters[i + 1 :]) for refused in (math.nan, parameter.least - 1.0)]
    ]

    def arguments(m):
        z = places(m)
        a = value_at(entry, z, *parameters)
        return rand(m, 4), torch.where(a == 0, z, a), *parameters  # for a 0, a kink, what has the same derivative

    forward = Case(
        arguments=lambda m: (places(m), *parameters),
        theirs=functools.partial(torchs, entry),
        formula=formula_of(entry, entry.formula),
        magnitudes=magnitudes_of(entry, entry.formula),
        costs=[Cost(lambda t: (t.delta, *parameters), 0, flops(entry.formula, 1, parameters) * M * N, 2 * M * N)],
        refused=[
            Refused(lambda t: (t.x.long(), *parameters), TypeError, "z has dtype torch.int64"),
            Refused(lambda t: (t.x.to(torch.complex64), *parameters), TypeError, "z has dtype torch.complex64"),
            *wrong,
        ],
    )
    backward = Case(
        arguments=arguments,
        theirs=functools.partial(torchs_backward, entry),
        formula=formula_of(entry, entry.derivative),
        magnitudes=magnitudes_of(entry, entry.derivative),
        costs=[
            Cost(
                lambda t: (t.delta, t.a, *parameters),
                *(0, flops(entry.derivative, 2, parameters) * M * N, 3 * M * N),
            )
        ],
        refused=[
            Refused(
                lambda t: (t.delta, t.x, *parameters), ValueError, rf"{value} has shape \(4, 5\), expected \(4, 3\)"
            ),
        ],
    )
    return {entry.name: forward, f"{entry.name}_backward": backward}


CASES = {name: case for entry in elementwise() for name, case in cases_of(entry).items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e4, -1e4, 5e-324])
def test_special_values_as_torch(value):
    for entry in elementwise():
        leaf = torch.tensor([[value, 1.0], [0.5, value]], dtype=torch.float64, requires_grad=True)
        delta, a = torch.ones_like(leaf), torchs(entry, leaf, *entry.values())
        (expected,) = torch.autograd.grad(a, leaf, delta)
        at = (leaf if entry.of_input else a).detach()
        # Two libraries' exp and tanh, of two units each.
        close = {"rtol": 4 * torch.finfo(a.dtype).eps, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(getattr(ops, f"{entry.name}_backward")(delta, at), expected, **close)


@pytest.mark.backends("tensor")
@by_dtype
def test_twins_are_right(dtype):
    """As the kernels are."""
    for entry in elementwise():
        z, delta, parameters = rand(7, 5, dtype=dtype), rand(7, 5, dtype=dtype), others(entry.name)
        backward = delta, value_at(entry, z, *parameters), *parameters
        for name, args in ((entry.name, (z, *parameters)), (f"{entry.name}_backward", backward)):
            assert_right(name, args, [getattr(twins, name)(*args)])


@of_kernels
@by_dtype
@hypothesis.given(st.data())
def test_any_activations(dtype, data):
    """As of any dense layer."""
    leading, features = any_leading(data.draw), data.draw(st.integers(1, 40))
    x, a = (any_tensor(data.draw, *leading, features, dtype=dtype) for _ in range(2))
    for name in ELEMENTWISE:
        check(name, (x,))
        check(f"{name}_backward", (x, a))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 2047, 2048, 2049])
def test_activations(size, layout, dtype):
    """Sizes around those of an access of 16 bytes and of a block; activations, which are taken alike, in turn."""
    turn = (size + LAYOUTS.index(layout)) % 3
    for shape in ((size,), (3, size)):
        z, delta = laid_out(rand(*shape, dtype=dtype), layout), laid_out(rand(*shape, dtype=dtype), layout)
        for entry in elementwise()[turn::3]:
            for parameters in {(), others(entry.name)}:
                check(entry.name, (z, *parameters))
                check(f"{entry.name}_backward", (delta, value_at(entry, z, *entry.values(parameters)), *parameters))


@of_kernels
@by_dtype
def test_activations_of_scalars(dtype):
    for name in ELEMENTWISE:
        check(name, (rand(dtype=dtype),))
        check(f"{name}_backward", (rand(dtype=dtype), rand(dtype=dtype)))


@of_kernels
@by_dtype
def test_activations_special_values(dtype):
    """NaN, infinities, signed zeros, subnormals, what saturates an exponential, and what 1 + erf(z) cancels at."""
    z = torch.tensor([*SPECIAL, -4.0, -1e-3], dtype=torch.float64).to(dtype)
    delta = torch.linspace(-2, 2, len(z)).to(dtype)
    for name in ELEMENTWISE:
        for op, args in ((name, (z,)), (f"{name}_backward", (delta, z))):
            for element in range(len(z)):  # each by itself: a norm would hide the small ones
                check(op, [arg[element] for arg in args])
            (truth,) = formula(op, args)
            ours, right = kernel(op, *args), narrowed(truth, dtype)
            known = ~right.isnan() & ((right != 0) | torch.from_numpy(truth == 0))  # the parts of a sum underflow apart
            same(ours[known].signbit(), right[known].signbit(), f"{op}, signs")


@of_kernels
@by_dtype
def test_softplus_beyond_its_threshold(dtype):
    """One that random numbers, and a mix-up with beta, lead to both sides of."""
    z, delta = rand(40, dtype=dtype), rand(40, dtype=dtype)
    check("softplus", (z, 2.0, 0.25))
    check("softplus_backward", (delta, z, 2.0, 0.25))


@of_kernels
@pytest.mark.backends("emulator")
def test_activations_of_nothing_launch_nothing():
    assert not any(launched(name, rand(0)) for name in ELEMENTWISE)


@of_kernels
def test_activations_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("tanh", (x,))
    check("tanh_backward", (x, x))


@of_kernels
def test_activations_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    x = not_mergeable()
    check("tanh", (x,))
    check("tanh_backward", (x, x.clone(memory_format=torch.contiguous_format)))
