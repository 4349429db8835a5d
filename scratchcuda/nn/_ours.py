"""The names of scratchcuda.nn that are ours."""

from scratchcuda.nn import functional
from scratchcuda.nn.conversion import Conversion, convert, revert
from scratchcuda.nn.layers import (
    CrossEntropyLoss,
    FusedSequential,
    LazyLinear,
    Linear,
    MSELoss,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)

__all__ = [
    "Conversion",
    "CrossEntropyLoss",
    "FusedSequential",
    "LazyLinear",
    "Linear",
    "MSELoss",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "convert",
    "functional",
    "revert",
]
