"""A mathematics for formulas, which tells how far rounding may lead, and counts operations."""

import numpy as np
from oracle import FUNCTION_UNITS, erfc


def operation(function):
    def counted(*operands):
        terms = [term(operand) for operand in operands]
        what = function, *(operand.what for operand in terms)
        Term.operations.add(what)
        result = function(*terms)
        if isinstance(result, Term):
            result.what = what
        return result

    return counted


def term(value):
    what = value if isinstance(value, int | float) else id(value)
    return value if isinstance(value, Term) else Term(value, abs(value), what)


def quotient(a, b):
    return Term(a.value / b.value, a.size / abs(b.value) * (b.size / abs(b.value)))


def function(f, derivative, units=FUNCTION_UNITS):
    """Its argument is off by a rounding of its size, and it may itself err by more units than most."""

    def of(x):
        value = f(x.value)
        return Term(value, abs(value) * (1 + units - FUNCTION_UNITS) + abs(derivative(x.value)) * x.size)

    return operation(of)


class Term:
    """A number, and its size: the same with every term taken as positive, which its rounding is in proportion to.

    A function adds, times its derivative, the size of its argument.

    Attributes:
        what: it is: an operation and those of its operands.
        operations: what has been done so far, anything done twice once. A choice costs nothing but its condition.
    """

    operations = set()  # noqa: RUF012

    def __init__(self, value, size, what=None):
        self.value, self.size, self.what = np.longdouble(value), np.longdouble(size), what

    __add__ = __radd__ = operation(lambda a, b: Term(a.value + b.value, a.size + b.size))
    __sub__ = operation(lambda a, b: Term(a.value - b.value, a.size + b.size))
    __rsub__ = operation(lambda a, b: Term(b.value - a.value, a.size + b.size))
    __mul__ = __rmul__ = operation(lambda a, b: Term(a.value * b.value, a.size * b.size))
    __pow__ = operation(lambda a, b: Term(a.value**b.value, a.size**b.value))
    __truediv__ = operation(quotient)
    __rtruediv__ = operation(lambda a, b: quotient(b, a))
    __neg__ = operation(lambda a: Term(-a.value, a.size))
    __lt__ = operation(lambda a, b: a.value < b.value)
    __le__ = operation(lambda a, b: a.value <= b.value)
    __gt__ = operation(lambda a, b: a.value > b.value)
    __ge__ = operation(lambda a, b: a.value >= b.value)
    exp = function(np.exp, np.exp)
    log = function(np.log, lambda x: 1 / x)
    expm1 = function(np.expm1, np.exp)
    log1p = function(np.log1p, lambda x: 1 / (1 + x))
    erfc = function(erfc, lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x), units=5)  # CUDA's in float64, by its manual
    tanh = function(np.tanh, lambda x: 1 - np.tanh(x) ** 2)
    __abs__ = operation(lambda x: Term(abs(x.value), x.size))

    @staticmethod
    def where(condition, a, b):
        a, b = term(a), term(b)
        chosen = (np.where(condition, *pair) for pair in ((a.value, b.value), (a.size, b.size)))
        return Term(*chosen, ("where", a.what, b.what))
