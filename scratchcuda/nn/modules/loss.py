# ruff: noqa: I001
from scratchcuda.nn.layers import CrossEntropyLoss as CrossEntropyLoss
from scratchcuda.nn.layers import MSELoss as MSELoss
from torch.nn.modules.loss import *  # type: ignore[assignment]
from scratchcuda.nn.layers import CrossEntropyLoss as CrossEntropyLoss
from scratchcuda.nn.layers import MSELoss as MSELoss
