"""Elementwise losses: from an entry what is right, and the cases of its ops."""

import functools
import math

import numpy as np
import torch
from cases import Case, Cost, M, N, Refused, rand
from losses import mean, of_a_step, theirs
from terms import Term, term
from torch.nn import functional


def predictions(entry, *shape, dtype=torch.float64):
    return (rand(*shape).sigmoid() if entry.of_probabilities else rand(*shape)).to(dtype)


def weights_of(entry, shape, dtype=torch.float64):
    return tuple(rand(*shape).abs().add(0.5).to(dtype) for _ in entry.weights)


def options_of(entry, reduction="mean", weights=(), parameters=None):
    """What the ops take after y_pred and y_true, with another parameter than the default."""
    if parameters is None:
        parameters = [parameter.default + 0.25 for parameter in entry.parameters.values()]
    return *(weights or [None] * len(entry.weights)), *parameters, reduction


def applied(entry, function, m, p, t, *options):
    """One of the two formulas by element, and the weight of each, if there is one."""
    *given, reduction = options + entry.defaults[len(options) :]
    weight, *operands = given if entry.weights else (1, *given)
    return function(m, p, t, *(o for o in operands if o is not None)), 1 if weight is None else weight, reduction


def value(entry, m, p, t, *options):
    terms, weight, reduction = applied(entry, entry.formula, m, p, t, *options)
    terms = terms * weight
    return (terms if reduction == "none" else mean(terms, terms.size if reduction == "mean" else 1),)


def backward(entry, m, grad, p, t, *options):
    derivative, weight, reduction = applied(entry, entry.derivative, m, p, t, *options)
    return (derivative * weight * grad * entry.factor / (p.size if reduction == "mean" else 1),)


def size_of(entry, function, p, t, *options):
    """Of its terms, with the weight."""
    terms = (term(option) if isinstance(option, np.ndarray) else option for option in options)
    result, weight, reduction = applied(entry, function, Term, term(p), term(t), *terms)
    return result * weight, reduction


def value_magnitudes(entry, p, t, *options):
    result, reduction = size_of(entry, entry.formula, p, t, *options)
    if reduction == "none":
        return (result.size - abs(result.value),)
    return (mean(result.size, result.size.size if reduction == "mean" else 1),)


def backward_magnitudes(entry, grad, p, t, *options):
    result, reduction = size_of(entry, entry.derivative, p, t, *options)
    return ((result.size - abs(result.value)) * abs(grad) * entry.factor / (p.size if reduction == "mean" else 1),)


def both(entry, m, p, t, *parameters):
    options = options_of(entry, parameters=parameters)
    return *value(entry, m, p, t, *options), *backward(entry, m, p.dtype.type(1), p, t, *options)


def both_magnitudes(entry, p, t, *parameters):
    options = options_of(entry, parameters=parameters)
    return *value_magnitudes(entry, p, t, *options), *backward_magnitudes(entry, 1, p, t, *options)


def torchs(entry, p, t, *options):
    *given, reduction = options + entry.defaults[len(options) :]
    named = dict(zip((*entry.weights, *entry.parameters), given, strict=True))
    return getattr(functional, entry.function)(p, t, reduction=reduction, **named)


def torchs_backward(entry, grad, p, t, *options):
    leaf = p.clone().requires_grad_()
    return torch.autograd.grad(torchs(entry, leaf, t, *options), leaf, grad)[0]


def flops(entry):
    """Of an element: the formula, the derivative, both."""
    counts = []
    for functions in ((entry.formula,), (entry.derivative,), (entry.formula, entry.derivative)):
        Term.operations.clear()
        for function in functions:
            function(
                Term, *(Term(0.5, 0.5, f"tensor {i}") for i in range(2)), *options_of(entry)[len(entry.weights) : -1]
            )
        counts.append(len(Term.operations))
    return tuple(counts)


def cases_of(entry):
    """Of its ops."""
    name, n, bound = entry.name, M * N, functools.partial
    one, derivative, all_of_both = flops(entry)
    parameters = options_of(entry)[len(entry.weights) : -1]
    mean_of, each_of = (options_of(entry, reduction) for reduction in ("mean", "none"))
    weights = len(entry.weights)

    def fit(values):
        return values.sigmoid() if entry.of_probabilities else values

    def arguments(m):
        return fit(rand(m, 3)), rand(m, 3).sigmoid() if weights else rand(m, 3)

    def weighted(t):
        return options_of(entry, "none", (t.b, t.b + 1)[:weights])

    wrong_pair = [
        Refused(lambda t: (t.delta, t.delta[:, :1]), ValueError, r"y_true has shape \(4, 1\), expected \(4, 3\)"),
        Refused(lambda t: (t.order, t.order), TypeError, "y_pred has dtype torch.int64"),
        Refused(lambda t: (t.delta, t.a.float()), TypeError, "y_true has dtype torch.float32, expected torch.float64"),
    ]
    wrong_parameter = [
        Refused(lambda t, given=given: (t.delta, t.a, *given), ValueError, f"{parameter} is {refused}, expected", None)
        for parameter, known in entry.parameters.items()
        for refused in (math.nan, known.least - 1.0)
        for given in [(*mean_of[:weights], refused)]
    ]
    wrong_option = [
        Refused(lambda t: (t.delta, t.a, *mean_of[:-1], "max"), ValueError, "reduction is 'max', expected one of none"),
        *[
            Refused(
                lambda t, i=i: (t.delta, t.a, *mean_of[:i], t.x, *mean_of[i + 1 :]),
                ValueError,
                rf"{weight} has shape \(4, 5\), expected one that broadcasts to \(4, 3\) as y_pred",
            )
            for i, weight in enumerate(entry.weights)
        ],
    ]
    found = {
        f"{name}_value": Case(
            arguments=lambda m: (*arguments(m), *options_of(entry, "mean", weights_of(entry, (3,)))),
            theirs=bound(torchs, entry),
            formula=bound(value, entry),
            magnitudes=bound(value_magnitudes, entry),
            costs=[
                Cost(lambda t: (fit(t.delta), fit(t.a), *mean_of), 0, (one + 1) * n, 2 * n + 1),
                Cost(lambda t: (fit(t.delta), fit(t.a), *weighted(t)), 0, (one + weights) * n, 3 * n + weights * N),
            ],
            refused=[*wrong_pair, *wrong_parameter, *wrong_option],
        ),
        f"{name}_backward": Case(
            arguments=lambda m: (
                *(rand(m, 3), *arguments(m)),
                *options_of(entry, "none", weights_of(entry, (m, 1))),
            ),
            theirs=bound(torchs_backward, entry),
            formula=bound(backward, entry),
            magnitudes=bound(backward_magnitudes, entry),
            costs=[
                Cost(lambda t: (t.b[0], fit(t.delta), t.a, *mean_of), 0, (derivative + 1) * n, 3 * n + 1),
                Cost(
                    lambda t: (t.a + 1, fit(t.delta), t.a, *weighted(t)),
                    *(0, (derivative + 1 + weights) * n, 4 * n + weights * N),
                ),
            ],
            refused=[
                Refused(
                    lambda t: (t.delta, t.delta, t.a, *mean_of), ValueError, r"grad has shape \(4, 3\), expected \(\)"
                ),
                Refused(
                    lambda t: (t.b[0], t.delta, t.a, *each_of), ValueError, r"grad has shape \(\), expected \(4, 3\)"
                ),
                Refused(lambda t: (t.b[0].float(), t.delta, t.a), TypeError, "grad has dtype torch.float32"),
                *[
                    Refused(lambda t, refused=refused: (t.b[0], *refused.args(t)), *refused[1:])
                    for refused in (*wrong_pair, *wrong_parameter, *wrong_option)
                ],
            ],
        ),
    }
    if entry.compare:
        found[name] = Case(
            arguments=lambda m: (*arguments(m), *parameters),
            theirs=theirs(lambda p, t, *given: torchs(entry, p, t, *options_of(entry, parameters=given))),
            formula=bound(both, entry),
            magnitudes=bound(both_magnitudes, entry),
            results=("loss", "gradient"),
            costs=[Cost(lambda t: (t.delta, t.a), 0, (all_of_both + 2) * n, 3 * n + 1)],
            refused=wrong_pair,
        )
        found[f"{name}_step_"] = of_a_step(
            found[name],
            [Cost(lambda t: (t.delta, t.a, t.b, t.step), 0, (all_of_both + 2) * n, 3 * n + 1, 2 * 8)],
            WRONG_STEP,
        )
    return found


WRONG_STEP = [
    Refused(
        lambda t: (t.delta, t.delta, t.b.float(), t.step),
        TypeError,
        "losses has dtype torch.float32, expected torch.float64 as y_pred",
    ),
    Refused(lambda t: (t.delta, t.delta, t.w, t.step), ValueError, r"losses has shape \(5, 3\), expected \(steps,\)"),
    Refused(lambda t: (t.delta, t.delta, t.b[:1].expand(3), t.step), ValueError, "losses is expanded"),
    Refused(
        lambda t: (t.delta, t.delta, t.b, t.step.int()), TypeError, "step has dtype torch.int32, expected torch.int64"
    ),
]
