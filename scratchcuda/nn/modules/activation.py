# ruff: noqa: I001
from torch.nn.modules.activation import *
from scratchcuda.nn.layers import Softmax as Softmax
