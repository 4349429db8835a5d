"""Drop-in layers: torch.nn's, with the same parameters and behaviour, on the kernels of this package.

Each class is a subclass of torch.nn's of the same name. :func:`convert` makes the layers of an existing model ours,
:func:`revert` makes them torch.nn's again. ``scratchcuda.Linear`` is an activation, as in the documents that this
package grew from; ``scratchcuda.nn.Linear`` is the layer. Names that are not ours are torch.nn's, so that ``from
scratchcuda import nn`` takes the place of ``from torch import nn``.
"""

import torch

from scratchcuda._fallback import fallback
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


__getattr__, __dir__ = fallback(globals(), torch.nn)
