"""Code as users write it, whose types mypy checks (`make lint`), and which a test of the drop-in runs."""

from typing import assert_type

import torch
from torch import Tensor

import scratchcuda.nn.functional as functional
import scratchcuda.nn.init
import scratchcuda.nn.modules.linear
import scratchcuda.nn.utils.rnn as rnn
from scratchcuda import nn, optim
from scratchcuda.nn.modules import Linear as Linear2
from scratchcuda.nn.modules.batchnorm import BatchNorm2d
from scratchcuda.nn.parallel import DistributedDataParallel
from scratchcuda.nn.utils import clip_grad_norm_
from scratchcuda.optim.adam import Adam
from scratchcuda.optim.adamw import AdamW
from scratchcuda.optim.lr_scheduler import StepLR
from scratchcuda.optim.sgd import SGD


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.activation = nn.Linear(1, 2, activation="tanh"), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.layer(x))
        return y


def unknown() -> None:
    nn.Conv9d  # type: ignore[attr-defined]  # noqa: B018
    optim.Adan  # type: ignore[attr-defined]  # noqa: B018


def of_torch(layer: torch.nn.Linear) -> torch.nn.Conv2d:
    return nn.Conv2d(1, 2, 3)


of_torch(nn.Linear(1, 2))
assert_type(nn.Linear(1, 2).activation, str)
assert_type(nn.modules.linear.Linear(1, 2), nn.Linear)
assert_type(scratchcuda.nn.modules.linear.Linear(1, 2), nn.Linear)
assert_type(Linear2(1, 2), nn.Linear)
assert_type(BatchNorm2d(1), torch.nn.BatchNorm2d)
assert_type(nn.Parameter(torch.ones(1)), torch.nn.Parameter)
assert_type(DistributedDataParallel.__name__, str)

net = Net()
optimizer = optim.Adam(net.parameters(), lr=0.1)
assert_type(optimizer, Adam)
assert_type(optim.AdamW(net.parameters()), AdamW)
assert_type(optim.SGD(net.parameters()), SGD)
assert_type(StepLR(optimizer, 1), torch.optim.lr_scheduler.StepLR)
assert_type(optim.lr_scheduler.StepLR(optimizer, 1), StepLR)
assert_type(clip_grad_norm_(net.parameters(), 1.0), Tensor)
assert_type(nn.utils.clip_grad_norm_(net.parameters(), 1.0), Tensor)
assert_type(nn.init.zeros_(net.layer.weight), Tensor)
assert_type(scratchcuda.nn.init.zeros_(net.layer.bias), Tensor)
assert_type(rnn.pad_sequence([torch.ones(1)]), Tensor)
assert_type(functional.linear(torch.ones(2, 1), net.layer.weight, activation="tanh"), Tensor)
assert_type(nn.functional.mish(torch.ones(1)), Tensor)
assert_type(nn.convert(net), nn.Conversion)
