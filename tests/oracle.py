"""What the kernels have to give: their formulas, how far off a result may be, and words for one that is further off.

The formula in extended precision alone says what is right, where NaN and inf belong too: torch's CPU library errs, and
differs from processor to processor.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from cases import cases

#: Units in the last place by which exp, log and tanh may err: those of CUDA and of glibc, by their manuals.
FUNCTION_UNITS = 2


def same(found, expected, what="", rtol=0, **options):
    """As torch.equal, of sequences too, but a failure says in a line what differs, of tensors the first element."""
    __tracebackhide__ = True
    if isinstance(found, (tuple, list)) and len(found) == len(expected):
        for i, pair in enumerate(zip(found, expected, strict=True)):
            same(*pair, f"{what}[{i}]", rtol, **options)
        return

    def words(text):
        text = " ".join(text.split())
        if isinstance(found, torch.Tensor) and found.shape == expected.shape and found.device == expected.device:
            equal_nan = options.get("equal_nan", False)
            wrong = ~torch.isclose(found, expected.to(found.dtype), rtol=rtol, atol=0, equal_nan=equal_nan)
            if wrong.any():
                text = f"{first(wrong, found, expected)}; {wrong.sum()} of {wrong.numel()} differ"
            text = f"{shown(found)} in {shown(found.dtype)}: {text}"
        return f"{what} {text}".lstrip()

    torch.testing.assert_close(found, expected, rtol=rtol, atol=0, msg=words, **options)


def assert_within(limit, ours, truth, what):
    """No element is further off than its limit."""
    __tracebackhide__ = True
    wrong = torch.as_tensor(~(abs(wide(ours) - truth) <= limit))
    assert not wrong.any(), f"{what} {shown(ours)} in {shown(ours.dtype)}: {first(wrong, ours, truth)}"


def sum_type(dtype):
    """The type that the kernels sum in."""
    return np.float64 if dtype == torch.float64 else np.float32


def wide(values, number=np.longdouble):
    return values.double().numpy().astype(number) if isinstance(values, torch.Tensor) else values


def rounded(function):
    """Its value rounded once: in float32 and float64, what NumPy's own functions give depends on the processor."""
    return staticmethod(lambda values: function(values.astype(np.longdouble)).astype(values.dtype))


def erfc(x):
    """Of longdouble, which NumPy lacks: below 1.5 by erf's series of positive terms, then by a continued fraction."""
    size = np.atleast_1d(abs(x))
    above, square, pi = size.copy(), size * size, 4 * np.arctan(np.longdouble(1))
    small = size < 1.5
    near, far = size[small], size[~small]
    term = total = near
    for n in range(1, 40):
        term = term * square[small] / (n + 0.5)
        total = total + term
    fraction = far
    for n in range(200, 0, -1):
        fraction = far + n / 2 / fraction
    above[small] = 1 - 2 * total * np.exp(-square[small]) / np.sqrt(pi)
    above[~small] = np.exp(-square[~small]) / fraction / np.sqrt(pi)
    return np.where(x < 0, 2 - above, above).reshape(np.shape(x))


class Mathematics(NamedTuple):
    """NumPy's for the formulas, in numbers of this type; results of kernels that another one reads are of this dtype.

    In longdouble, which has 11 bits more than float64, a formula gives the truth, and stores nothing in between; in the
    type of sums it is a plain loop.
    """

    number: type
    dtype: torch.dtype | None = None

    where = staticmethod(np.where)
    exp, log, tanh, expm1, log1p, erfc = map(rounded, (np.exp, np.log, np.tanh, np.expm1, np.log1p, erfc))

    def stored(self, values):
        return values if self.dtype is None else wide(narrowed(values, self.dtype), self.number)


TRUTH = Mathematics(np.longdouble)


@np.errstate(all="ignore")
def formula(name, args, m=TRUTH):
    """What an op gives by its definition, its sums added up one term after another."""
    return cases()[name].formula(m, *(wide(arg, m.number) for arg in args))


def added(values):
    """(..., n) -> (..., 1), one after another: NumPy's own sums go in pairs. A scalar is its own sum."""
    if not values.ndim:
        return values
    zero = np.zeros((*values.shape[:-1], 1), values.dtype)
    return np.concatenate([zero, values], -1).cumsum(-1)[..., -1:]


def narrowed(truth, dtype):
    """The truth as a tensor of this dtype."""
    return torch.from_numpy(np.asarray(truth, np.float64)).to(dtype)


def assert_right(name, args, found):
    """Each result errs by at most twice what a plain loop errs, and a rounding; NaN and inf are where they belong.

    Errors are norms of differences from the formula in extended precision. A rounding is that of the result in its
    dtype, where that is subnormal too, and in the type of sums that of the sum and of the functions that led to it.
    """
    __tracebackhide__ = True  # the message says it all
    case, dtype, norm = cases()[name], args[0].dtype, np.linalg.norm
    unit, sum_unit = torch.finfo(dtype).eps, np.finfo(sum_type(dtype)).eps
    with np.errstate(all="ignore"):
        results = (
            formula(name, args),
            formula(name, args, Mathematics(sum_type(dtype), dtype)),
            case.magnitudes(*map(wide, args)),
        )
        call = f"{name}({', '.join(map(shown, args))}) in {shown(dtype)}"
        for result, ours, truth, loop, summed in zip(case.results, found, *results, strict=True):
            what = f"{call}, {result}" if result else call
            right = narrowed(truth, dtype)
            assert (ours.dtype, ours.shape) == (dtype, right.shape), f"{what}: {ours.dtype}, {tuple(ours.shape)}"
            finite = right.isfinite()
            misplaced = (ours.isfinite() != finite) | ~(finite | torch.isclose(ours, right, equal_nan=True))
            assert not misplaced.any(), f"{what}: {first(misplaced, ours, truth)}"
            ours_off, loop_off = (wide(result) - truth for result in (ours, narrowed(loop, dtype)))
            kept = (np.where(finite, values, 0) for values in (ours_off, loop_off, truth, summed))
            off, loop_off, sizes, sums = (np.nan_to_num(values, posinf=0) for values in kept)
            limit = 2 * norm(loop_off) + unit * norm(sizes) + sum_unit * (norm(sums) + FUNCTION_UNITS * norm(sizes))
            limit += math.sqrt(sizes.size) * torch.finfo(dtype).smallest_normal * unit
            worst = torch.as_tensor(abs(off) == np.max(abs(off), initial=0))
            assert norm(off) <= limit, (
                f"{what}: worst {first(worst, ours, truth)}; by norm {norm(off):.2g} off, expected {limit:.2g} at most"
            )


def shown(value):
    """An argument, of a tensor the shape."""
    return str(tuple(value.shape) if isinstance(value, torch.Tensor) else value).removeprefix("torch.")


def first(wrong, ours, truth):
    """The first of the elements that are wrong: what it is, and what it should be."""
    where = tuple(wrong.nonzero()[0].tolist())
    got, expected = float(ours[where]), float(truth[where])
    return f"element {list(where)} is {got:.9g}, expected {expected:.9g}, {abs(got - expected):.1e} off"
