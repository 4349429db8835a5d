"""The operations: a checked, public function for each.

A reader follows one chain, each link in a file of the family's name: schema, public function, and its twin in tensor
operations in ``scratchcuda/ops``; what checks and launches in ``csrc/ops``; the kernel in ``csrc/kernels``. What serves
the tensors at hand is decided in :mod:`scratchcuda.ops._backend`: the twin, called with no dispatcher in between, or
the registered op, for CUDA tensors and on the emulator.

All tensors of a call share one floating-point dtype and one device; any strides will do. A wrong type or dtype raises
TypeError, everything else that does not fit raises ValueError, before anything is written.
"""

from scratchcuda.ops import _emulator, _entries, _registry
from scratchcuda.ops.activations import *
from scratchcuda.ops.adam import *
from scratchcuda.ops.batch import *
from scratchcuda.ops.cross_entropy import *
from scratchcuda.ops.dense import *  # the function has the name of its file, which from-imports find all the same
from scratchcuda.ops.dropout import *
from scratchcuda.ops.losses import *
from scratchcuda.ops.sgd import *
from scratchcuda.ops.softmax import *

#: Names of the activations that a dense layer computes along.
ACTIVATIONS = tuple(_entries.ENTRIES)

for _name in _registry.OPS:
    _registry.define("scratchcuda").impl(_name, getattr(_registry.twins, _name), "CompositeExplicitAutograd")
_emulator.define()
