# ruff: noqa: I001
"""Drop-in layers: torch.nn's, with the same parameters and behaviour, on the kernels of this package.

Each class is a subclass of torch.nn's of the same name. :func:`convert` makes the layers of an existing model ours,
:func:`revert` makes them torch.nn's again. ``scratchcuda.Linear`` is an activation, as in the documents that this
package grew from; ``scratchcuda.nn.Linear`` is the layer. Names that are not ours are torch.nn's, so that ``from
scratchcuda import nn`` takes the place of ``from torch import nn``.
"""

from typing import TYPE_CHECKING

import torch

from scratchcuda._fallback import fallback
from scratchcuda.nn._ours import *

if TYPE_CHECKING:  # of two imports of a name mypy believes the first, pyright the last
    from scratchcuda.nn import modules as modules
    from torch.nn import *  # type: ignore[assignment, no-redef]
    from scratchcuda.nn._ours import *
    from scratchcuda.nn import modules as modules
else:
    from scratchcuda.nn._ours import __all__

    __getattr__, __dir__, __all__ = fallback(globals(), torch.nn)
