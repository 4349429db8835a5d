"""The elementwise activations: a = f(z), and backward, from delta = dL/da: dL/dz = delta f'(z).

Each is an entry and its two functions here, two formulas in ``csrc/kernels/activations.cuh``, and a layer in
:mod:`scratchcuda.engine.activations`. All else follows from the entry.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._entries import Elementwise, Entry, Parameter

__all__ = [
    "leaky_relu",
    "leaky_relu_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
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
