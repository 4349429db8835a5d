"""The tensor plan: a whole fit on the CPU in which every call is bound once to fixed buffers.

What makes it fast, and where it is found below:

- Features first: buffers are (features, columns), a column for each sample, because a softmax over the first
  dimension costs half of one over the last.
- Each buffer has a row of ones below its features, and each layer's weights and bias are one matrix (n_in + 1,
  n_out), so that ``W^T A`` adds the bias, and ``W += alpha A delta^T`` is gradient and update of both at once.
- The scale of the loss's gradient waits for alpha. The target is subtracted inside the last product (beta = -1).
- Columns are padded so that every row starts on a cache line. Deltas of the padding are 0, so it adds nothing.
- Losses are collected in a tensor and read once an epoch.
- Inference mode, ``out=`` everywhere: a step allocates nothing.

A plan serves while every object runs the methods it was written with (:mod:`scratchcuda._patching`); it packs the
parameters when it is made and writes them back when it finishes, so that ``layer.w`` stays an ordinary tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scratchcuda._patching import original
from scratchcuda.activations import Activation, Layer, Softmax
from scratchcuda.layers import Dense
from scratchcuda.losses import MSE, CrossEntropy, Losses
from scratchcuda.training import HeldInterrupt

aten = torch.ops.aten
Call = Callable[[], object]

CACHE_LINE = 64
#: Bytes of one validation buffer. Measured: smaller ones pay for more calls, larger ones fall out of the cache.
CHUNK_BYTES = 512 * 1024


@dataclass
class Product:
    """A layer's weights (n_in, n_out) and bias (n_out,), views of the parameters to train."""

    w: Tensor
    b: Tensor


#: A network in elementary stages: products, and the names of activations between them.
Stage = Product | str


@dataclass
class Network:
    """What a plan trains.

    Attributes:
        stages: products and activations, without identities.
        loss: "mse" or "cross_entropy" (of scores: a last softmax belongs to it and is no stage).
        owners: each layer with the indices of the values before and after it; value i is the input of stage i.
    """

    stages: list[Stage]
    loss: str
    owners: list[tuple[Layer, int, int]]


def network_of(layers: list[Layer], loss_f: Losses) -> Network | str:
    """The network that a plan can train in place of these layers, or the reason why there is none."""
    stages: list[Stage] = []
    owners: list[tuple[Layer, int, int]] = []
    for i, layer in enumerate(layers):
        before = len(stages)
        activation: Layer = layer
        if isinstance(layer, Dense):
            if original(layer) is not Dense:
                return f"layers[{i}] {layer!r} has methods of its own"
            stages.append(Product(layer.w, layer.b))
            activation = layer.act_f
        kind = original(activation)
        if kind is None or not issubclass(kind, Activation):
            return f"layers[{i}] {layer!r} has methods of its own"
        if kind is Softmax:
            stages.append("softmax")
        elif kind.op != "none":
            stages.append(str(kind.op))
        owners.append((layer, before, len(stages)))
    loss = {MSE: "mse", CrossEntropy: "cross_entropy"}.get(original(loss_f))  # type: ignore[arg-type]
    if loss is None:
        return f"loss_f {loss_f!r} has methods of its own"
    if isinstance(loss_f, CrossEntropy) and loss_f.probabilities:
        if stages[-1:] != ["softmax"]:
            return "cross-entropy of probabilities that are not made by a last Softmax"
        del stages[-1]
    return unfit(stages) or Network(stages, loss, owners)


def unfit(stages: list[Stage]) -> str:
    """The reason why no plan can train these stages; empty if one can."""
    products = [stage for stage in stages if isinstance(stage, Product)]
    tensors = [t for product in products for t in (product.w, product.b)]
    if not tensors:
        return "no Dense layer to train"
    kinds = {(t.device.type, t.dtype) for t in tensors}
    if len(kinds) > 1 or not kinds <= {("cpu", torch.float32), ("cpu", torch.float64)}:
        return "parameters are not all float32 or all float64 on the CPU"
    if len({t.untyped_storage().data_ptr() for t in tensors}) < len(tensors):
        return "parameters share memory"
    widths = [product.w.shape for product in products]
    chained = all(left[1] == right[0] for left, right in zip(widths, widths[1:], strict=False))
    if not chained or any(product.b.shape != product.w.shape[1:] for product in products):
        return "parameters of sizes that do not follow on one another"
    return ""


class TensorPlan:
    """One fit of a network.

    Args:
        network: what to train.
        x: (samples, features).
        y: targets (samples, n_out), or class indices (samples,).
        batch_size, lr, weight_decay: as in Model.fit.
        valid: the same pair of tensors for validation, or None.
    """

    def __init__(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        lr: float,
        weight_decay: float,
        valid: tuple[Tensor, Tensor] | None,
    ):
        self.network, self.x, self.y, self.batch_size = network, x, y, batch_size
        self.products = [stage for stage in network.stages if isinstance(stage, Product)]
        samples = len(y)
        with torch.inference_mode():
            # weights (n_in + 1, n_out): the bias is the last row
            self.weights = [torch.cat([product.w, product.b.unsqueeze(0)]) for product in self.products]
            self.steps = {m: _Step(self, m, lr, weight_decay) for m in _sizes(samples, batch_size)}
            self.losses = x.new_zeros(-(-samples // batch_size))
            self.slots = self.losses.unbind()
            self.chunks = [] if valid is None else self._chunks(*valid)
        self.valid_samples = 0 if valid is None else len(valid[1])
        self.last: _Step | None = None

    def _chunks(self, x: Tensor, y: Tensor) -> list[tuple["_Evaluation", Tensor, Tensor]]:
        widest = max(max(w.shape) for w in self.weights)
        size = max(CACHE_LINE, CHUNK_BYTES // (widest * x.element_size()))
        passes = {m: _Evaluation(self, m) for m in _sizes(len(y), size)}
        return [(passes[len(y)], x.mT, y) for x, y in zip(x.split(size), y.split(size), strict=True)]

    def load(self, order: Tensor | None) -> None:
        x, y = (self.x, self.y) if order is None else (self.x[order], self.y[order])
        pairs = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        self.batches = [(self.steps[len(y)], x.mT, y) for x, y in pairs]

    def epoch(self, stop: HeldInterrupt) -> list[float]:
        finished = 0
        with torch.inference_mode():
            for (step, x, y), slot in zip(self.batches, self.slots, strict=True):
                step.run(x, y)
                slot.copy_(step.loss)
                finished += 1
                if stop.pending:
                    break
            self.last = self.batches[finished - 1][0]
            losses = self.losses[:finished].tolist()
        return [loss * step.scale for loss, (step, _, _) in zip(losses, self.batches, strict=False)]

    def validate(self) -> float:
        total = 0.0
        with torch.inference_mode():
            for chunk, x, y in self.chunks:
                chunk.run(x, y)
                total += chunk.loss.item() * chunk.scale * chunk.m
        return total / self.valid_samples

    @torch.no_grad()
    def finish(self) -> None:
        for product, w in zip(self.products, self.weights, strict=True):
            product.w.copy_(w[:-1])
            product.b.copy_(w[-1])
        if self.last is not None:
            for layer, before, after in self.network.owners:
                layer.a = self.last.value(after)  # type: ignore[attr-defined]
                if isinstance(layer, Dense):
                    layer.input = self.last.value(before)


def _sizes(samples: int, size: int) -> set[int]:
    """The sizes of the pieces that split(size) makes: the full ones, and a smaller last one."""
    return {min(size, samples), samples % size or size}


class _Evaluation:
    """The bound calls from a batch of m samples to its loss.

    Attributes:
        values: value i is the input of stage i, (features + 1, columns), the last row all ones.
        delta: the gradient of the loss with respect to the last value (n_out, columns), up to a factor.
        loss: the loss (), to be multiplied by ``scale``.
    """

    #: Whether each value keeps a buffer of its own. An evaluation forgets them, to stay in cache.
    keeps_values = False

    def __init__(self, plan: TensorPlan, m: int):
        network, self.weights, self.m = plan.network, plan.weights, m
        self.stages = network.stages
        w = self.weights[0]
        lanes = CACHE_LINE // w.element_size()
        self.columns = -(-m // lanes) * lanes if m > lanes else m
        self.calls: list[Call] = []
        self.buffers: dict[tuple[int, int], Tensor] = {}
        self.values = [self._buffer(w.shape[0] - 1, None, self.keeps_values)]
        outputs = self.weights[-1].shape[1]
        self.delta = w.new_zeros(outputs, self.columns)
        self.target = w.new_zeros(outputs, m)
        self.loss = w.new_zeros(())
        self.scale = 1 / (m * outputs) if network.loss == "mse" else 1 / m
        self.subtracts_target = network.loss == "mse" and isinstance(self.stages[-1], Product)
        self._bind_forward()
        if network.loss == "mse":
            self._bind_mse()
        else:
            self._bind_cross_entropy()
        self.take_x = self.values[0][:-1, :m].copy_

    def run(self, x: Tensor, y: Tensor) -> None:
        """x (features, m), y (m, n_out) or class indices (m,)."""
        self.take_x(x)
        self.take_y(y)
        for call in self.calls:
            call()

    def _call(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        self.calls.append(partial(function, *args, **kwargs))

    def _buffer(self, rows: int, busy: Tensor | None, own: bool) -> Tensor:
        """(rows + 1, columns), zeros above a row of ones: a new one, or of two that take turns the one not busy."""
        turn = len(self.buffers) + 2 if own else int(busy is not None and busy is self.buffers.get((rows, 0)))
        if (rows, turn) not in self.buffers:
            buffer = self.buffers[rows, turn] = self.weights[0].new_zeros(rows + 1, self.columns)
            buffer[-1] = 1
        return self.buffers[rows, turn]

    def _bind_forward(self) -> None:
        weights = iter(self.weights)
        for i, stage in enumerate(self.stages):
            value = self.values[-1]
            if isinstance(stage, Product):
                w = next(weights)
                if self.subtracts_target and i == len(self.stages) - 1:
                    out = self.delta[:, : self.m]
                    self._call(torch.addmm, self.target, w.mT, value[:, : self.m], beta=-1, out=out)
                    return
                output = self._buffer(w.shape[1], value, self.keeps_values)
                self._call(torch.mm, w.mT, value, out=output[:-1])
            else:
                # In place on a product's output, which nobody needs; backward needs an earlier activation's.
                in_place = i > 0 and isinstance(self.stages[i - 1], Product)
                output = value if in_place else self._buffer(len(value) - 1, value, self.keeps_values)
                self._call(_FORWARD[stage], value[:-1], out=output[:-1])
            self.values.append(output)

    def _bind_mse(self) -> None:
        self.take_y = self.target.mT.copy_
        if not self.subtracts_target:
            self._call(torch.sub, self.values[-1][:-1, : self.m], self.target, out=self.delta[:, : self.m])
        flat = self.delta.view(-1)
        self._call(torch.dot, flat, flat, out=self.loss)

    def _bind_cross_entropy(self) -> None:
        # target holds -y: the loss is its product with log p, and torch's backward of log_softmax starts from it.
        self.take_y = self._take_classes
        self.log_p = torch.empty_like(self.target)
        self._call(torch._log_softmax, self.values[-1][:-1, : self.m], 0, False, out=self.log_p)
        self._call(torch.dot, self.target.view(-1), self.log_p.view(-1), out=self.loss)

    def _take_classes(self, y: Tensor) -> None:
        if y.dim() == 1:
            self.target.zero_().scatter_(0, y.unsqueeze(0), -1)
        else:
            torch.neg(y.mT, out=self.target)


class _Step(_Evaluation):
    """A training step: the evaluation, then backward with the updates."""

    keeps_values = True

    def __init__(self, plan: TensorPlan, m: int, lr: float, weight_decay: float):
        super().__init__(plan, m)
        dtype = self.delta.dtype
        alpha = -lr * self.scale
        if plan.network.loss == "mse":
            alpha *= 2
        else:
            out = self.delta[:, :m]
            self._call(aten._log_softmax_backward_data.out, self.target, self.log_p, 0, dtype, out=out)
        backward = {
            "relu": (aten.threshold_backward.grad_input, 0),
            "sigmoid": (aten.sigmoid_backward.grad_input,),
            "tanh": (aten.tanh_backward.grad_input,),
            "softmax": (torch._softmax_backward_data, 0, dtype),
        }
        first = next(i for i, stage in enumerate(self.stages) if isinstance(stage, Product))
        weights = list(self.weights)
        delta, busy = self.delta, self.delta
        for i in reversed(range(first, len(self.stages))):
            stage = self.stages[i]
            if not isinstance(stage, Product):
                function, *rest = backward[stage]
                self._call(function, delta, self.values[i + 1][:-1], *rest, grad_input=delta)
                continue
            w, above = weights.pop(), delta
            if i > first:
                busy = self._buffer(len(w) - 1, busy, own=False)
                delta = busy[:-1]
                self._call(torch.mm, w[:-1], above, out=delta)
            if weight_decay:
                self._call(w[:-1].mul_, 1 - lr * weight_decay)
            self._call(w.addmm_, self.values[i], above.mT, alpha=alpha)

    def value(self, index: int) -> Tensor:
        """Value ``index`` of the last run as an ordinary tensor (m, features)."""
        if index > len(self.stages):  # the softmax that cross-entropy took over
            value = self.log_p.exp()
        elif index == len(self.values):
            value = self.delta[:, : self.m] + self.target
        else:
            value = self.values[index][:-1, : self.m]
        return value.T.clone(memory_format=torch.contiguous_format)


_FORWARD: dict[str, Callable[..., object]] = {
    "relu": partial(torch.clamp_min, min=0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": partial(torch._softmax, dim=0, half_to_float=False),
}
