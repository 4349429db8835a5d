"""The layers that a Model stacks: an InputLayer first, then Dense layers, activations, Dropout and Flatten."""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from scratchcuda import ops
from scratchcuda._ranges import named
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.engine.activations import Activation, Layer, Linear, fused, layer_of
from scratchcuda.ops import _checks
from scratchcuda.ops._entries import ENTRIES


class InputLayer(Layer):
    """The first layer: how many features the data has.

    Args:
        n_input_features: number of features of a sample, or its shape, as (1, 28, 28).
    """

    def __init__(self, n_input_features: int | Sequence[int]):
        self.m = 10  # rows of the batch that construct draws
        sizes = n_input_features if isinstance(n_input_features, tuple | list) else [n_input_features]
        self.shape = tuple(_checks.positive_int("n_input_features", size) for size in sizes)
        if not self.shape:
            raise ValueError("n_input_features is empty, expected a number of features, or the shape of a sample")
        self.n = math.prod(self.shape)

    def construct(  # type: ignore[override]
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random batch (10, ...) of samples, on which the layers find their sizes, device and dtype."""
        return torch.randn(self.m, *self.shape, device=device, dtype=dtype, generator=generator)

    def __repr__(self) -> str:
        return f"InputLayer({self.n if len(self.shape) == 1 else self.shape})"


@replaceable
class Dense(Layer):
    """A fully connected layer, ``a = f(x w + b)``.

    Args:
        units: number of outputs.
        act_f: the activation f, or its name, as "relu": one of ops.ACTIVATIONS, or "linear". :class:`Linear` if None.
        bias: whether there is a b.
        weight_init: a function of torch.nn.init (or any that fills a tensor in place) for the weights, called on
            their (n_out, n_in) transpose, as torch.nn lays them out. If None, the Model's ``init`` says.
        bias_init: the same for the bias (n_out,).

    Attributes:
        w: weights (n_in, n_out), made by construct.
        b: bias (n_out,), made by construct; None without one.
        input, a: input and output of the last training step.
    """

    is_trainable = True
    w: Tensor
    b: Tensor | None
    input: Tensor
    a: Tensor

    def __init__(
        self,
        units: int,
        act_f: Activation | str | None = None,
        *,
        bias: bool = True,
        weight_init: Callable[..., object] | None = None,
        bias_init: Callable[..., object] | None = None,
    ):
        if isinstance(act_f, str):
            _checks.one_of("act_f", act_f, ("linear", *ENTRIES))
            act_f = None if act_f == "linear" else layer_of(ENTRIES[act_f].usual)
        if act_f is not None and not isinstance(act_f, Activation):
            raise TypeError(f"act_f is {act_f!r}, expected an Activation such as Tanh(), or its name")
        _checks.flag("bias", bias)
        if not bias:
            self.parameter_names = tuple(name for name in self.parameter_names if name != "b")
        self.units = _checks.positive_int("units", units)
        self.act_f = Linear() if act_f is None else act_f
        self.weight_init = weight_init
        self.bias_init = bias_init

    def construct(self, x: Tensor, generator: torch.Generator | None = None, init: str = "normal") -> Tensor:
        """Make the parameters for inputs like x (m, n_in), on its device, in its dtype; return the output.

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
        b = None
        if "b" in self.parameter_names:
            b = _filled(bias_init or nn.init.normal_, x.new_empty(self.units), generator)
        self.w, self.b = w, b
        return self.forward(x)

    def set_params(self, w: Tensor, b: Tensor | None = None) -> None:
        """Copy parameters in torch.nn's layout: w (n_out, n_in), and b (n_out,) if there is one."""
        _checks.tensor("w", w)
        _checks.shape("w", w, tuple(self.w.T.shape))
        if self.b is None and b is not None:
            raise TypeError(f"b is {type(b).__name__}, expected None, as {self!r} has no bias")
        if self.b is not None:
            _checks.tensor("b", b)
            _checks.shape("b", b, tuple(self.b.shape))  # type: ignore[arg-type]
        with torch.no_grad():
            self.w.copy_(w.T)
            if self.b is not None:
                self.b.copy_(b)  # type: ignore[arg-type]

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

    def backward(
        self, delta: Tensor, lr: float, weight_decay: float = 0.0, gradients: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Update ``w`` and ``b`` by gradient descent, and return the gradient with respect to the input.

        What is frozen stays as it is.

        Args:
            delta: gradient with respect to the output (m, n_out).
            lr: learning rate.
            weight_decay: factor of the L2 penalty on w, not on b.
            gradients: takes the gradients of what is trained, by name, and nothing is updated: for an optimizer that
                does so once it has those of all layers.
        """
        delta = self.act_f.backward(delta, self.a)
        dx = ops.dense_backward_input(delta, self.w)
        with named("update"):
            if gradients is None:
                descend(self.trained, delta, self.input, self.w, self.b, lr, weight_decay)
            else:
                gradients.update(gradients_of(self.trained, delta, self.input))
        return dx

    def __repr__(self) -> str:
        return f"Dense({self.units}, {self.act_f!r}{'' if 'b' in self.parameter_names else ', bias=False'})"


@replaceable
class Flatten(Layer):
    """Each sample as one row, (m, ...) -> (m, n), as torch.nn.Flatten.

    After the InputLayer it lets a Model take samples of any shape of as many features.

    Attributes:
        a: output of the last training step.
    """

    parameter_names = ()
    a: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (m, ...) -> (m, n)."""
        return x.flatten(1)

    def __forward__(self, x: Tensor) -> Tensor:
        """The forward of a training step: keeps the shape for backward."""
        self._shape = x.shape
        self.a = self.forward(x)
        return self.a

    def backward(self, delta: Tensor, lr: float) -> Tensor:
        """The gradient with respect to the output (m, n), in the shape of the input."""
        return delta.reshape(self._shape)

    def __repr__(self) -> str:
        return "Flatten()"


@replaceable
class Dropout(Layer):
    """In a training step, sets each value to 0 with probability p and divides the others by 1 - p; else the identity.

    What it draws is what torch.nn.Dropout would, by torch's default generator: on the CPU the same from the same
    ``torch.manual_seed``.

    Args:
        p: probability, from 0 to 1.

    Attributes:
        noise: what the last training step on the general path has multiplied by.
        a: output of the last training step.
    """

    parameter_names = ()
    noise: Tensor
    a: Tensor

    def __init__(self, p: float = 0.5):
        self.p = _checks.between("p", p, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x, as it is."""
        return x

    def __forward__(self, x: Tensor) -> Tensor:
        """The forward of a training step: x times noise that is drawn, and kept for backward."""
        self.noise = noise_like(x, self.p)
        self.a = ops.dropout(x, self.noise)
        return self.a

    def backward(self, delta: Tensor, lr: float) -> Tensor:
        """The gradient with respect to the input, from that with respect to the output."""
        return ops.dropout(delta, self.noise)

    def __repr__(self) -> str:
        return f"Dropout({self.p})"


def noise_like(x: Tensor, p: float) -> Tensor:
    """What torch's dropout multiplies x by: 0 with probability p, else 1 / (1 - p). Drawn as for x, by its function."""
    return nn.functional.dropout(torch.ones_like(x), p)


def descend(
    trained: Collection[str], delta: Tensor, x: Tensor, w: Tensor, b: Tensor | None, lr: float, weight_decay: float
) -> None:
    """:func:`scratchcuda.ops.dense_update_` of those of "w" and "b" that are trained."""
    if "w" in trained:
        ops.dense_update_(delta, x, w, b if "b" in trained else None, lr, weight_decay)
    elif b is not None and "b" in trained:
        ops.sgd_update_([b], [ops.dense_backward_weights(delta, x)[1]], lr)


def gradients_of(trained: Collection[str], delta: Tensor, x: Tensor) -> dict[str, Tensor]:
    """:func:`scratchcuda.ops.dense_backward_weights` of those of "w" and "b" that are trained, by name."""
    if not trained:
        return {}
    found = zip(("w", "b"), ops.dense_backward_weights(delta, x), strict=True)
    return {name: gradient for name, gradient in found if name in trained}


def _filled(init: Callable[..., object], values: Tensor, generator: torch.Generator | None) -> Tensor:
    init(values, **({"generator": generator} if generator is not None and _draws(init) else {}))
    return values.detach()


def _draws(init: Callable[..., object]) -> bool:
    """Whether it takes a generator: not every function of torch.nn.init draws numbers, as zeros_ and constant_."""
    try:
        return "generator" in inspect.signature(init).parameters
    except ValueError:  # of what is written in C, some tell none
        return False
