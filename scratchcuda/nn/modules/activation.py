# ruff: noqa: I001
from scratchcuda.nn.layers import ReLU as ReLU
from scratchcuda.nn.layers import Sigmoid as Sigmoid
from scratchcuda.nn.layers import Softmax as Softmax
from scratchcuda.nn.layers import Tanh as Tanh
from torch.nn.modules.activation import *  # type: ignore[assignment]
from scratchcuda.nn.layers import ReLU as ReLU
from scratchcuda.nn.layers import Sigmoid as Sigmoid
from scratchcuda.nn.layers import Softmax as Softmax
from scratchcuda.nn.layers import Tanh as Tanh
