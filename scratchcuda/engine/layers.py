"""The layers that a Model stacks: an InputLayer first, then Dense layers and activations."""

import inspect
import math
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor, nn

from scratchcuda import ops
from scratchcuda._ranges import named
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.engine.activations import Activation, Layer, Linear, fused
from scratchcuda.ops import _checks


class InputLayer(Layer):
    """The first layer: how many features the data has.

    Args:
        n_input_features: number of features of a sample.
    """

    def __init__(self, n_input_features: int):
        self.m = 10  # rows of the batch that construct draws
        self.n = _checks.positive_int("n_input_features", n_input_features)

    def construct(  # type: ignore[override]
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random batch (10, n_input_features), on which the layers find their sizes, device and dtype."""
        return torch.randn(self.m, self.n, device=device, dtype=dtype, generator=generator)

    def __repr__(self) -> str:
        return f"InputLayer({self.n})"


@replaceable
class Dense(Layer):
    """A fully connected layer, ``a = f(x w + b)``.

    Args:
        units: number of outputs.
        act_f: the activation f, :class:`Linear` if None.
        weight_init: a function of torch.nn.init (or any that fills a tensor in place) for the weights, called on
            their (n_out, n_in) transpose, as torch.nn lays them out. If None, the Model's ``init`` says.
        bias_init: the same for the bias (n_out,).

    Attributes:
        w: weights (n_in, n_out), made by construct.
        b: bias (n_out,), made by construct.
        input, a: input and output of the last training step.
    """

    is_trainable = True
    w: Tensor
    b: Tensor
    input: Tensor
    a: Tensor

    def __init__(
        self,
        units: int,
        act_f: Activation | None = None,
        *,
        weight_init: Callable[..., object] | None = None,
        bias_init: Callable[..., object] | None = None,
    ):
        if act_f is not None and not isinstance(act_f, Activation):
            raise TypeError(f"act_f is {act_f!r}, expected an Activation such as Tanh()")
        self.units = _checks.positive_int("units", units)
        self.act_f = Linear() if act_f is None else act_f
        self.weight_init = weight_init
        self.bias_init = bias_init

    def construct(self, x: Tensor, generator: torch.Generator | None = None, init: str = "normal") -> Tensor:
        """Make ``w`` and ``b`` for inputs like x (m, n_in), on its device, in its dtype; return the output.

        Args:
            generator: source of the initial values, torch's default one if None.
            init: the distribution of what has no ``weight_init`` or ``bias_init``: "normal" for N(0, 1), "torch" for
                what torch.nn.Linear draws, U(-1, 1) / sqrt(n_in).
        """
        n_in = x.shape[-1]
        weight_init, bias_init = self.weight_init, self.bias_init
        if init == "torch":
            bound = 1 / math.sqrt(n_in)
            weight_init = weight_init or partial(nn.init.kaiming_uniform_, a=math.sqrt(5))  # as torch.nn rounds it
            bias_init = bias_init or partial(nn.init.uniform_, a=-bound, b=bound)
        if weight_init is None:
            w = torch.randn(n_in, self.units, device=x.device, dtype=x.dtype, generator=generator)
        else:
            w = _filled(weight_init, x.new_empty(self.units, n_in), generator).T.contiguous()
        b = _filled(bias_init or nn.init.normal_, x.new_empty(self.units), generator)
        self.w, self.b = w, b
        return self.forward(x)

    def set_params(self, w: Tensor, b: Tensor) -> None:
        """Copy parameters in torch.nn's layout: w (n_out, n_in), b (n_out,)."""
        _checks.tensor("w", w)
        _checks.tensor("b", b)
        _checks.shape("w", w, tuple(self.w.T.shape))
        _checks.shape("b", b, tuple(self.b.shape))
        with torch.no_grad():
            self.w.copy_(w.T)
            self.b.copy_(b)

    def forward(self, x: Tensor) -> Tensor:
        """x (m, n_in) -> f(x w + b) (m, n_out)."""
        chosen = fused(self.act_f)
        # A forward that somebody's own calls may be one of a training step, whose output carries what backward needs.
        if chosen and (not chosen.entry.of_input or original(self)):
            return ops.dense(x, self.w, self.b, *chosen)
        return self.act_f(ops.dense(x, self.w, self.b))

    def __forward__(self, x: Tensor) -> Tensor:
        """The forward of a training step: keeps ``input`` and ``a`` for backward."""
        self.input = x.clone()
        chosen = fused(self.act_f)
        if chosen and chosen.entry.of_input and original(self):
            self.a, self.a.z = ops.dense_with_preactivation(x, self.w, self.b, *chosen)  # type: ignore[attr-defined]
        else:
            self.a = self.forward(x)
        return self.a

    def backward(self, delta: Tensor, lr: float, weight_decay: float = 0.0) -> Tensor:
        """Update ``w`` and ``b`` by gradient descent, and return the gradient with respect to the input.

        What is frozen stays as it is.

        Args:
            delta: gradient with respect to the output (m, n_out).
            lr: learning rate.
            weight_decay: factor of the L2 penalty on w, not on b.
        """
        delta = self.act_f.backward(delta, self.a)
        dx = ops.dense_backward_input(delta, self.w)
        with named("update"):
            descend(self.trained, delta, self.input, self.w, self.b, lr, weight_decay)
        return dx

    def __repr__(self) -> str:
        return f"Dense({self.units}, {self.act_f!r})"


def descend(
    trained: Collection[str], delta: Tensor, x: Tensor, w: Tensor, b: Tensor, lr: float, weight_decay: float
) -> None:
    """:func:`scratchcuda.ops.dense_update_` of those of "w" and "b" that are trained."""
    if "w" in trained and "b" in trained:
        ops.dense_update_(delta, x, w, b, lr, weight_decay)
    elif "w" in trained:
        ops.sgd_update_([w], [ops.dense_backward_weights(delta, x)[0]], lr, weight_decay)
    elif "b" in trained:
        ops.sgd_update_([b], [ops.dense_backward_weights(delta, x)[1]], lr)


def _filled(init: Callable[..., object], values: Tensor, generator: torch.Generator | None) -> Tensor:
    init(values, **({"generator": generator} if generator is not None and _draws(init) else {}))
    return values.detach()


def _draws(init: Callable[..., object]) -> bool:
    """Whether it takes a generator: not every function of torch.nn.init draws numbers, as zeros_ and constant_."""
    try:
        return "generator" in inspect.signature(init).parameters
    except ValueError:  # of what is written in C, some tell none
        return False
