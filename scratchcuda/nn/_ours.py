"""The names of scratchcuda.nn that are ours."""

from scratchcuda.nn import functional
from scratchcuda.nn.conversion import convert, revert
from scratchcuda.nn.layers import (
    ELEMENTWISE,
    CrossEntropyLoss,
    FusedSequential,
    LazyLinear,
    Linear,
    MSELoss,
    Softmax,
)
from scratchcuda.nn.report import Conversion

__all__ = [
    "Conversion",
    "CrossEntropyLoss",
    "FusedSequential",
    "LazyLinear",
    "Linear",
    "MSELoss",
    "Softmax",
    "convert",
    "functional",
    "revert",
]

globals().update({kind.__name__: kind for kind in ELEMENTWISE})  # torch.nn's, to type checkers
__all__ += [kind.__name__ for kind in ELEMENTWISE]
