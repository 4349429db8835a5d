"""Neural networks trained from scratch, step by step as torch.nn trains them."""

import sys as _sys

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
from scratchcuda.engine import activations as activations
from scratchcuda.engine import exchange as exchange
from scratchcuda.engine import history as history
from scratchcuda.engine import layers as layers
from scratchcuda.engine import linear_regression as linear_regression
from scratchcuda.engine import losses as losses
from scratchcuda.engine import model as model
from scratchcuda.engine import network as network
from scratchcuda.engine import parameters as parameters
from scratchcuda.engine import training as training
from scratchcuda.engine.activations import *
from scratchcuda.engine.history import History
from scratchcuda.engine.layers import Dense, Dropout, Flatten, InputLayer
from scratchcuda.engine.linear_regression import SimpleLinearRegression
from scratchcuda.engine.losses import *
from scratchcuda.engine.model import Model
from scratchcuda.engine.optimizers import Optimizer
from scratchcuda.ops._backend import use_backend

__version__ = "0.1.0"

# The engine's files and classes have the names of before, by which pickles, messages, and imports of users, know them.
for _file in (activations, exchange, history, layers, linear_regression, losses, model, network, parameters, training):
    _name = _file.__name__.replace("engine.", "")
    _sys.modules[_name] = _file
    for _kind in vars(_file).values():
        if isinstance(_kind, type) and _kind.__module__ == _file.__name__:
            _kind.__module__ = _name

# No modules: "import *" must leave a user's own nn and optim as they are.
__all__ = [
    "Dense",
    "Dropout",
    "Flatten",
    "History",
    "InputLayer",
    "Model",
    "Optimizer",
    "SimpleLinearRegression",
    "use_backend",
]
__all__ += [*activations.__all__, *losses.__all__]
