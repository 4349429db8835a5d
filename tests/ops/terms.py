"""A mathematics for the formulas of activations, which tells how far rounding may lead, and counts operations."""

import numpy as np


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


def tanh(x):
    a = np.tanh(x.value)
    return Term(a, abs(a) + (1 - a * a) * (x.size - abs(x.value)))


class Term:
    """A number, and its size: the same with every term taken as positive, which its rounding is in proportion to.

    A function adds, times its derivative, by how much the size of its argument is above the number.

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
    exp = operation(lambda x: Term(np.exp(x.value), np.exp(x.value) * (1 + x.size - abs(x.value))))
    tanh = operation(tanh)

    @staticmethod
    def where(condition, a, b):
        a, b = term(a), term(b)
        chosen = (np.where(condition, *pair) for pair in ((a.value, b.value), (a.size, b.size)))
        return Term(*chosen, ("where", a.what, b.what))
