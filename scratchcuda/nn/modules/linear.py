# ruff: noqa: I001
from scratchcuda.nn.layers import LazyLinear as LazyLinear
from scratchcuda.nn.layers import Linear as Linear
from torch.nn.modules.linear import *  # type: ignore[assignment]
from scratchcuda.nn.layers import LazyLinear as LazyLinear
from scratchcuda.nn.layers import Linear as Linear
