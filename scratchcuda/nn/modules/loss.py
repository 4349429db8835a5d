# ruff: noqa: I001
from scratchcuda.nn.layers import CrossEntropyLoss as CrossEntropyLoss
from torch.nn.modules.loss import *  # type: ignore[assignment]
from scratchcuda.nn.layers import CrossEntropyLoss as CrossEntropyLoss
