"""Neural networks trained from scratch, step by step as torch.nn trains them."""

from scratchcuda._build import toolchain
from scratchcuda._build.library import BuildError

try:
    toolchain.torch()
except BuildError as error:
    raise ImportError(f"scratchcuda cannot be imported: {error}") from None

from scratchcuda import metrics as metrics
from scratchcuda import nn as nn
from scratchcuda import ops as ops
from scratchcuda import optim as optim
from scratchcuda._backend import use_backend
from scratchcuda.activations import Activation, Layer, Linear, ReLU, RelU, Sigmoid, Softmax, Tanh
from scratchcuda.layers import Dense, InputLayer
from scratchcuda.linear_regression import SimpleLinearRegression
from scratchcuda.losses import MSE, CrossEntropy, Losses
from scratchcuda.model import Model
from scratchcuda.training import History

__version__ = "0.1.0"

# No modules: "import *" must leave a user's own nn and optim as they are.
__all__ = [
    "MSE",
    "Activation",
    "CrossEntropy",
    "Dense",
    "History",
    "InputLayer",
    "Layer",
    "Linear",
    "Losses",
    "Model",
    "ReLU",
    "RelU",
    "Sigmoid",
    "SimpleLinearRegression",
    "Softmax",
    "Tanh",
    "use_backend",
]
