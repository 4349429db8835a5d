"""What the kernels have to give: their formulas, how far off a result may be, and words for one that is further off.

The formula in extended precision alone says what is right, where NaN and inf belong too: torch's CPU library errs, and
differs from processor to processor.
"""

import math

import numpy as np
import torch

#: Of ops that have several.
RESULTS = dict.fromkeys(("mse", "cross_entropy"), ("loss", "gradient"))
RESULTS |= {"dense_backward_weights": ("dw", "db"), "dense_update_": ("w", "b")}
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


def formula(name, args, number=np.longdouble):
    """What an op gives by its definition, in numbers of this type, its sums added up one term after another.

    As a longdouble, which has 11 bits more than float64, it is the truth; in the type of sums it is a plain loop.
    """
    first, *rest = (wide(arg, number) for arg in args)
    if name == "dense":
        w, b, activation = rest
        z = (product(as_rows(first), w) + b).reshape(*first.shape[:-1], w.shape[1])
        if activation == "softmax" and number is not np.longdouble:
            z = wide(narrowed(z, args[0].dtype), number)  # by way of memory: softmax is a kernel of its own
        return (z,) if activation == "none" else formula(activation, [z], number)
    if name == "dense_backward_input":
        (w,) = rest
        return (product(as_rows(first), w.T).reshape(*first.shape[:-1], len(w)),)
    if name.startswith("dense"):
        delta, x = as_rows(first), as_rows(rest[0])
        dw, db = product(x.T, delta), added(delta.T)[:, 0]
        if name == "dense_backward_weights":
            return dw, db
        w, b, *options = rest[1:]
        lr, weight_decay = map(number, options)
        return w - lr * (dw + weight_decay * w), b - lr * db
    if name == "mse":
        difference = first - rest[0]
        return mean(difference**2, difference.size), 2 * difference / difference.size
    if name == "cross_entropy":
        targets = one_hot(rest[0], first)
        shifted = first - first.max(1, keepdims=True, initial=-np.inf)
        log_p = shifted - rounded(np.log, added(rounded(np.exp, shifted)))
        terms = np.where((targets == 0) & (rest[0].ndim == 1), 0, -targets * log_p)
        gradient = (rounded(np.exp, log_p) * added(targets) - targets) / len(first)
        return mean(terms, len(first)), gradient
    if name == "softmax":
        powers = rounded(np.exp, first - first.max(-1, keepdims=True, initial=-np.inf))
        return (powers / added(powers),)
    return (
        {
            "relu": lambda z: np.where(z < 0, 0, z),
            "sigmoid": lambda z: 1 / (1 + rounded(np.exp, -z)),
            "tanh": lambda z: rounded(np.tanh, z),
            "relu_backward": lambda delta, a: np.where(a <= 0, 0, delta),
            "sigmoid_backward": lambda delta, a: delta * a * (1 - a),
            "tanh_backward": lambda delta, a: delta * (1 - a * a),
            "softmax_backward": lambda delta, a: a * (delta - added(delta * a)),
        }[name](first, *rest),
    )


def as_rows(values):
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def one_hot(targets, scores):
    """Class indices as rows."""
    return np.equal(targets[:, None], np.arange(scores.shape[1])).astype(scores.dtype) if targets.ndim == 1 else targets


def product(left, right):
    total = np.zeros((len(left), right.shape[1]), left.dtype)
    for k in range(len(right)):
        total += left[:, k, None] * right[k]
    return total


def added(values):
    """(..., n) -> (..., 1), one after another: NumPy's own sums go in pairs. A scalar is its own sum."""
    if not values.ndim:
        return values
    zero = np.zeros((*values.shape[:-1], 1), values.dtype)
    return np.concatenate([zero, values], -1).cumsum(-1)[..., -1:]


def mean(terms, count):
    return added(terms.ravel())[0] / terms.dtype.type(count)


def rounded(function, values):
    """Its value rounded once: in float32 and float64, what NumPy's own functions give depends on the processor."""
    return function(values.astype(np.longdouble)).astype(values.dtype)


def magnitudes(name, args):
    """The formula with every term taken as positive: what a sum's rounding is in proportion to, cancel as it may."""
    args = [arg.abs() if isinstance(arg, torch.Tensor) else "none" if isinstance(arg, str) else arg for arg in args]
    if name == "dense_update_":
        args[0] = -args[0]  # it is subtracted
    if name.startswith("dense"):
        return formula(name, args)
    if name == "mse":
        args[1] = -args[1]
        return formula(name, args)
    if name == "cross_entropy":
        scores, targets = wide(args[0]), one_hot(wide(args[1]), wide(args[0]))
        spread = targets * (scores + np.log(np.exp(scores).sum(1, keepdims=True)))
        return spread.sum() / len(scores), (targets.sum(1, keepdims=True) + targets) / len(scores)
    if not name.endswith("_backward"):
        return (0,)
    delta, a = map(wide, args)
    return {
        "relu_backward": lambda: (delta,),
        "sigmoid_backward": lambda: (delta * a * (1 + a),),
        "tanh_backward": lambda: (delta * (1 + a * a),),
        "softmax_backward": lambda: (a * (delta + (delta * a).sum(-1, keepdims=True)),),
    }[name]()


def narrowed(truth, dtype):
    """The truth as a tensor of this dtype."""
    return torch.from_numpy(np.asarray(truth, np.float64)).to(dtype)


def assert_right(name, args, found):
    """Each result errs by at most twice what a plain loop errs, and a rounding; NaN and inf are where they belong.

    Errors are norms of differences from the formula in extended precision. A rounding is that of the result in its
    dtype, where that is subnormal too, and in the type of sums that of the sum and of the functions that led to it.
    """
    __tracebackhide__ = True  # the message says it all
    dtype, norm = args[0].dtype, np.linalg.norm
    unit, sum_unit = torch.finfo(dtype).eps, np.finfo(sum_type(dtype)).eps
    with np.errstate(all="ignore"):
        results = formula(name, args), formula(name, args, sum_type(dtype)), magnitudes(name, args)
        call = f"{name}({', '.join(map(shown, args))}) in {shown(dtype)}"
        for result, ours, truth, loop, summed in zip(RESULTS.get(name, [""]), found, *results, strict=True):
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
