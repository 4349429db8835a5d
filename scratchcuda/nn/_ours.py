"""The names of scratchcuda.nn that are ours."""

from scratchcuda.nn import functional
from scratchcuda.nn.conversion import convert, revert
from scratchcuda.nn.layers import (
    ELEMENTWISE,
    LOSSES,
    CrossEntropyLoss,
    FusedSequential,
    LazyLinear,
    Linear,
    Softmax,
)
from scratchcuda.nn.report import Conversion

__all__ = [
    "Conversion",
    "CrossEntropyLoss",
    "FusedSequential",
    "LazyLinear",
    "Linear",
    "Softmax",
    "convert",
    "functional",
    "revert",
]

_MADE = {kind.__name__: kind for kind in (*ELEMENTWISE, *LOSSES)}
globals().update(_MADE)  # torch.nn's, to type checkers
__all__ += list(_MADE)
