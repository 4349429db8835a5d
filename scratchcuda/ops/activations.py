"""The elementwise activations: a = f(z), and backward, from delta = dL/da: dL/dz = delta f'(z).

Each is an entry and its two functions here, two formulas in ``csrc/kernels/activations.cuh``, and a layer in
:mod:`scratchcuda.engine.activations`. All else follows from the entry.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._entries import Elementwise, Entry, Parameter

__all__ = [
    "elu",
    "elu_backward",
    "gelu",
    "gelu_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
]

aten = torch.ops.aten

Entry(
    name="none",
    module=nn.Identity,
    forward=lambda z: z,
    in_place=lambda z: z,
    into=torch.clone,
    flops=(0, 0),
)

Elementwise(
    name="relu",
    module=nn.ReLU,
    formula=lambda m, z: m.where(z < 0, 0, z),
    derivative=lambda m, delta, a: m.where(a <= 0, 0, delta),
    forward=torch.relu,
    in_place=torch.relu_,
    into=partial(torch.clamp_min, min=0),
    gradient=aten.threshold_backward,
    arguments=lambda a: (a, 0),
    flops=(1, 1),
)


def relu(z: Tensor) -> Tensor:
    """``max(z, 0)``, any shape."""
    _checks.floating("z", z)
    return _backend.serving("relu", z)(z)


def relu_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta`` where ``a > 0``, else 0, with ``a = relu(z)``; both of one shape."""
    _checks.outputs(delta, a)
    return _backend.serving("relu_backward", delta, a)(delta, a)


Elementwise(
    name="sigmoid",
    module=nn.Sigmoid,
    formula=lambda m, z: 1 / (1 + m.exp(-z)),
    derivative=lambda m, delta, a: delta * a * (1 - a),
    forward=torch.sigmoid,
    in_place=torch.sigmoid_,
    into=torch.sigmoid,
    gradient=aten.sigmoid_backward,
    flops=(4, 3),
)


def sigmoid(z: Tensor) -> Tensor:
    """``1 / (1 + exp(-z))``, any shape."""
    _checks.floating("z", z)
    return _backend.serving("sigmoid", z)(z)


def sigmoid_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta a (1 - a)``, with ``a = sigmoid(z)``; both of one shape."""
    _checks.outputs(delta, a)
    return _backend.serving("sigmoid_backward", delta, a)(delta, a)


Elementwise(
    name="tanh",
    module=nn.Tanh,
    formula=lambda m, z: m.tanh(z),
    derivative=lambda m, delta, a: delta * (1 - a * a),
    forward=torch.tanh,
    in_place=torch.tanh_,
    into=torch.tanh,
    gradient=aten.tanh_backward,
    flops=(1, 3),
)


def tanh(z: Tensor) -> Tensor:
    """``tanh(z)``, any shape."""
    _checks.floating("z", z)
    return _backend.serving("tanh", z)(z)


def tanh_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta (1 - a^2)``, with ``a = tanh(z)``; both of one shape."""
    _checks.outputs(delta, a)
    return _backend.serving("tanh_backward", delta, a)(delta, a)


Elementwise(
    name="leaky_relu",
    module=nn.LeakyReLU,
    parameters={"negative_slope": Parameter(0.01, least=0)},  # below 0 the output does not tell the sign of the input
    formula=lambda m, z, slope: m.where(z > 0, z, slope * z),
    derivative=lambda m, delta, a, slope: m.where(a > 0, delta, slope * delta),
    forward=functional.leaky_relu,
    in_place=functional.leaky_relu_,
    into=torch._C._nn.leaky_relu,
    gradient=aten.leaky_relu_backward,
    arguments=lambda a, slope: (a, slope, True),
    flops=(2, 2),
)


def leaky_relu(z: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``z`` where ``z > 0``, else ``negative_slope z``, any shape; the slope is at least 0."""
    _checks.floating("z", z)
    slope = _checks.non_negative("negative_slope", negative_slope)
    return _backend.serving("leaky_relu", z)(z, slope)


def leaky_relu_backward(delta: Tensor, a: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``delta`` where ``a > 0``, else ``negative_slope delta``, with ``a = leaky_relu(z)``; both of one shape."""
    _checks.outputs(delta, a)
    slope = _checks.non_negative("negative_slope", negative_slope)
    return _backend.serving("leaky_relu_backward", delta, a)(delta, a, slope)


Elementwise(
    name="elu",
    module=nn.ELU,
    parameters={"alpha": Parameter(1.0)},
    formula=lambda m, z, alpha: m.where(z > 0, z, alpha * m.expm1(z)),
    derivative=lambda m, delta, z, alpha: m.where(z <= 0, delta * alpha * m.exp(z), delta),
    forward=functional.elu,
    in_place=torch._C._nn.elu_,
    into=torch._C._nn.elu,
    gradient=aten.elu_backward,
    arguments=lambda z, alpha: (alpha, 1, 1, False, z),
    of_input=True,  # the output would do, for alpha >= 0, but a fifth such costs the epilogues of the others registers
    flops=(3, 4),
)


def elu(z: Tensor, alpha: float = 1.0) -> Tensor:
    """``z`` where ``z > 0``, else ``alpha (exp(z) - 1)``, any shape."""
    _checks.floating("z", z)
    alpha = _checks.finite("alpha", alpha)
    return _backend.serving("elu", z)(z, alpha)


def elu_backward(delta: Tensor, z: Tensor, alpha: float = 1.0) -> Tensor:
    """``delta`` where ``z > 0``, else ``delta alpha exp(z)``; both of one shape."""
    _checks.outputs(delta, z, "z")
    alpha = _checks.finite("alpha", alpha)
    return _backend.serving("elu_backward", delta, z)(delta, z, alpha)


Elementwise(
    name="softplus",
    module=nn.Softplus,
    parameters={"beta": Parameter(1.0), "threshold": Parameter(20.0)},
    formula=lambda m, z, beta, threshold: m.where(beta * z > threshold, z, m.log1p(m.exp(beta * z)) / beta),
    derivative=lambda m, delta, z, beta, threshold: m.where(
        beta * z > threshold, delta, delta / (1 + m.exp(-(beta * z)))
    ),
    forward=functional.softplus,
    in_place=functional.softplus,
    into=torch._C._nn.softplus,
    gradient=aten.softplus_backward,
    arguments=lambda z, beta, threshold: (z, beta, threshold),
    of_input=True,  # beyond the threshold, the output does not tell on which side the input was
    flops=(5, 6),
)


def softplus(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``z`` where ``beta z > threshold``, else ``log(1 + exp(beta z)) / beta``, any shape."""
    _checks.floating("z", z)
    beta, threshold = _checks.finite("beta", beta), _checks.finite("threshold", threshold)
    return _backend.serving("softplus", z)(z, beta, threshold)


def softplus_backward(delta: Tensor, z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``delta`` where ``beta z > threshold``, else ``delta / (1 + exp(-beta z))``; both of one shape."""
    _checks.outputs(delta, z, "z")
    beta, threshold = _checks.finite("beta", beta), _checks.finite("threshold", threshold)
    return _backend.serving("softplus_backward", delta, z)(delta, z, beta, threshold)


def _silu_derivative(m, delta, z):  # type: ignore[no-untyped-def]
    s = 1 / (1 + m.exp(-z))
    return delta * s * (1 + z * (1 - s))


Elementwise(
    name="silu",
    module=nn.SiLU,
    formula=lambda m, z: z / (1 + m.exp(-z)),
    derivative=_silu_derivative,
    forward=functional.silu,
    in_place=torch._C._nn.silu_,
    into=torch._C._nn.silu,
    gradient=aten.silu_backward,
    is_last=True,
    of_input=True,
    flops=(4, 9),
)


def silu(z: Tensor) -> Tensor:
    """``z / (1 + exp(-z))``, any shape."""
    _checks.floating("z", z)
    return _backend.serving("silu", z)(z)


def silu_backward(delta: Tensor, z: Tensor) -> Tensor:
    """``delta s (1 + z (1 - s))`` with ``s = sigmoid(z)``; both of one shape."""
    _checks.outputs(delta, z, "z")
    return _backend.serving("silu_backward", delta, z)(delta, z)


def _gelu_derivative(m, delta, z):  # type: ignore[no-untyped-def]
    density = math.sqrt(0.5 / math.pi) * m.exp(-0.5 * z * z)
    return delta * (0.5 * m.erfc(-math.sqrt(0.5) * z) + z * density)


Elementwise(
    name="gelu",
    module=nn.GELU,
    variant={"approximate": "none"},
    formula=lambda m, z: 0.5 * z * m.erfc(-math.sqrt(0.5) * z),
    derivative=_gelu_derivative,
    forward=functional.gelu,
    in_place=aten.gelu_,
    into=torch._C._nn.gelu,
    gradient=aten.gelu_backward,
    of_input=True,
    flops=(4, 10),
)


def gelu(z: Tensor) -> Tensor:
    """``z P(X <= z)`` of a standard normal X, which is ``z erfc(-z / sqrt(2)) / 2``, any shape."""
    _checks.floating("z", z)
    return _backend.serving("gelu", z)(z)


def gelu_backward(delta: Tensor, z: Tensor) -> Tensor:
    """``delta (P(X <= z) + z exp(-z^2 / 2) / sqrt(2 pi))``; both of one shape."""
    _checks.outputs(delta, z, "z")
    return _backend.serving("gelu_backward", delta, z)(delta, z)


_SLOPE, _CUBIC = math.sqrt(8 / math.pi), 0.044715  # of 2 u


def _gelu_tanh_derivative(m, delta, z):  # type: ignore[no-untyped-def]
    square = z * z
    s = 1 / (1 + m.exp(-_SLOPE * z * (1 + _CUBIC * square)))
    return delta * s * (1 + _SLOPE * z * (1 - s) * (1 + 3 * _CUBIC * square))


Elementwise(
    name="gelu_tanh",
    module=nn.GELU,
    variant={"approximate": "tanh"},
    formula=lambda m, z: z / (1 + m.exp(-_SLOPE * z * (1 + _CUBIC * z * z))),
    derivative=_gelu_tanh_derivative,
    forward=partial(functional.gelu, approximate="tanh"),
    in_place=partial(aten.gelu_, approximate="tanh"),
    into=partial(torch._C._nn.gelu, approximate="tanh"),
    gradient=aten.gelu_backward,
    of_input=True,
    flops=(8, 17),
)


def gelu_tanh(z: Tensor) -> Tensor:
    """``z (1 + tanh(u)) / 2`` with ``u = sqrt(2 / pi) (z + 0.044715 z^3)``, any shape."""
    _checks.floating("z", z)
    return _backend.serving("gelu_tanh", z)(z)


def gelu_tanh_backward(delta: Tensor, z: Tensor) -> Tensor:
    """``delta s (1 + 2 z (1 - s) u')`` with ``s = (1 + tanh(u)) / 2``; both of one shape."""
    _checks.outputs(delta, z, "z")
    return _backend.serving("gelu_tanh_backward", delta, z)(delta, z)
