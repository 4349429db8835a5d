"""The tensor plan: a whole fit on the CPU in which every call is bound once to fixed buffers.

What makes it fast, and where it is found below:

- Features first: buffers are (features, columns), a column for each sample, so that what follows is made of whole,
  contiguous rows.
- Each buffer has a row of ones below its features, and each layer's weights and bias are one matrix (n_in + 1,
  n_out), so that ``W^T A`` adds the bias, and ``W += alpha A delta^T`` is gradient and update of both at once.
- The scale of the loss's gradient waits for alpha. The target is subtracted inside the last product (beta = -1).
- Columns are padded so that every row starts on a cache line. Deltas of the padding are 0, so it adds nothing.
- The data is copied into this layout once, a block for each batch; a shuffled fit does so once an epoch.
- Losses are collected in a tensor and read once an epoch.
- Inference mode, ``out=`` everywhere: a step allocates nothing.

A plan serves while every object runs the methods it was written with (:mod:`scratchcuda._patching`); it packs the
parameters when it is made and writes them back when it finishes, so that ``layer.w`` stays an ordinary tensor.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import repeat

import torch
from torch import Tensor

from scratchcuda._ranges import bound
from scratchcuda.layers import Dense
from scratchcuda.network import Network, Product, Task
from scratchcuda.training import FitPath, HeldInterrupt

aten = torch.ops.aten
Call = Callable[[], object]

CACHE_LINE = 64
#: Bytes of one validation buffer. Measured: smaller ones pay for more calls, larger ones fall out of the cache.
CHUNK_BYTES = 512 * 1024


class TensorPlan(FitPath):
    """One fit of a network."""

    name = "tensor plan"

    def __init__(self, network: Network, task: Task):
        self.network, self.task = network, task
        x, y, batch_size, valid = task.x, task.y, task.batch_size, task.valid
        self.products = network.products
        with torch.inference_mode():
            # weights (n_in + 1, n_out): the bias is the last row
            self.weights = [torch.cat([product.w, product.b.unsqueeze(0)]) for product in self.products]
            self.steps = {m: _Step(self, m, task.lr, task.weight_decay) for m in _sizes(len(y), batch_size)}
            self.losses = x.new_zeros(-(-len(y) // batch_size))
            self.chunks: list[Block] = []
            if valid is not None:
                widest = max(max(w.shape) for w in self.weights)
                size = max(CACHE_LINE, CHUNK_BYTES // (widest * x.element_size()))
                evaluations = {m: _Evaluation(self, m) for m in _sizes(len(valid[1]), size)}
                self.valid_losses = x.new_zeros(-(-len(valid[1]) // size))
                self.chunks = _blocks(*valid, size, evaluations, self.valid_losses)
        self.last: Block | None = None

    def mode(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    def load(self, order: Tensor | None) -> None:
        x, y = (self.task.x, self.task.y) if order is None else (self.task.x[order], self.task.y[order])
        self.batches = _blocks(x, y, self.task.batch_size, self.steps, self.losses)

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        finished = 0
        try:
            for step, x, y, loss in self.batches:
                step.run(x, y, loss)
                finished += 1
                if stop.pending:
                    stop.check()
        finally:
            self.last = self.batches[finished - 1] if finished else self.last
            sums = zip(self.losses.tolist(), self.batches[:finished], strict=False)
            losses += [loss * step.scale for loss, (step, _, _, _) in sums]

    def validate(self) -> float:
        for evaluation, x, y, loss in self.chunks:
            evaluation.run(x, y, loss)
        passes = [evaluation for evaluation, _, _, _ in self.chunks]
        total = sum(loss * p.scale * p.m for loss, p in zip(self.valid_losses.tolist(), passes, strict=True))
        return total / sum(p.m for p in passes)

    @torch.no_grad()
    def finish(self) -> None:
        for product, w in zip(self.products, self.weights, strict=True):
            for name, values in (("w", w[:-1]), ("b", w[-1])):
                if name in product.trained:
                    getattr(product, name).copy_(values)
        if self.last is not None:
            step, x, _, _ = self.last
            for layer, before, after in self.network.owners:
                layer.a = step.value(after, x)  # type: ignore[attr-defined]
                if isinstance(layer, Dense):
                    layer.input = step.value(before, x)


def _sizes(samples: int, size: int) -> set[int]:
    """The sizes of the pieces that split(size) makes: the full ones, and a smaller last one."""
    return {min(size, samples), samples % size or size}


def _blocks(x: Tensor, y: Tensor, size: int, evaluations: Mapping[int, "_Evaluation"], losses: Tensor) -> list["Block"]:
    """The data cut into blocks of ``size`` samples in the plan's layout, each with a place for its loss."""
    blocks: list[Block] = []
    places = iter(losses.unbind())
    samples, features = x.shape
    full = samples // size * size
    for start, stop, m in ((0, full, size), (full, samples, samples - full)):
        if start == stop:
            continue
        evaluation = evaluations[m]
        # (blocks, features + 1, columns), a last row of ones; the padding is 1, finite, so that its deltas stay 0
        inputs = x.new_ones((stop - start) // m, features + 1, evaluation.columns)
        inputs[:, :-1, :m] = x[start:stop].reshape(-1, m, features).mT
        targets = y[start:stop].reshape(-1, m, *y.shape[1:])
        if y.dim() == 2:
            # (blocks, n_out, m); not .contiguous(), which leaves the odd strides of a single row, slow in products
            targets = targets.mT.clone(memory_format=torch.contiguous_format)
        blocks += zip(repeat(evaluation), inputs.unbind(), targets.unbind(), places)
    return blocks


class _Evaluation:
    """The calls from a batch of m samples to its loss, all bound but for the batch.

    Attributes:
        values: value i is the input of stage i, (features + 1, columns), a row of ones last; value 0 is the batch.
        delta: the gradient of the loss with respect to the last value (n_out, columns), up to a factor.
        scale: what the sum in ``loss`` is to be multiplied by.
    """

    #: Whether each value keeps a buffer of its own. An evaluation forgets them, to stay in cache.
    keeps_values = False

    def __init__(self, plan: TensorPlan, m: int):
        self.network, self.weights, self.m = plan.network, plan.weights, m
        self.stages = plan.network.stages
        w = self.weights[0]
        lanes = CACHE_LINE // w.element_size()
        # A single product reads the batch only, where padding would gain nothing.
        self.columns = -(-m // lanes) * lanes if m > lanes and len(self.stages) > 1 else m
        self.shared: dict[tuple[int, int], Tensor] = {}
        outputs = self.weights[-1].shape[1]
        self.delta = w.new_zeros(outputs, self.columns)  # the padding's stays 0
        # Subtracting the target inside the last product leaves no prediction, which a Dense shows as ``a``.
        self.fuses_target = self.network.loss == "mse" and isinstance(self.stages[-1], Product)
        self.fuses_target &= not (self.keeps_values and self.network.owners)
        self.first: Callable[[Tensor], object] | None = None
        self.calls: list[Call] = []
        self.values: list[Tensor | None] = [None]
        self._bind_forward()
        if self.network.loss == "mse":
            self.scale = 1 / (m * outputs)
            compare = self._mse()
        else:
            self.scale = 1 / m
            compare = self._cross_entropy()
        self.compare = bound("loss", "", compare)

    def run(self, x: Tensor, y: Tensor, loss: Tensor) -> None:
        """x (features + 1, columns), y (n_out, m) or class indices (m,), the loss () to write."""
        if self.first is not None:
            self.first(x)
        for call in self.calls:
            call()
        self.compare(x, y, loss)

    def _buffer(self, rows: int) -> Tensor:
        """(rows + 1, columns): zeros above a row of ones."""
        buffer = self.weights[0].new_zeros(rows + 1, self.columns)
        buffer[-1] = 1
        return buffer

    def _shared_buffer(self, rows: int, busy: Tensor | None) -> Tensor:
        """Of two buffers of this size, which take turns, the one that is not busy."""
        turn = int(busy is not None and busy is self.shared.get((rows, 0)))
        if (rows, turn) not in self.shared:
            self.shared[rows, turn] = self._buffer(rows)
        return self.shared[rows, turn]

    def _bind_forward(self) -> None:
        weights = iter(self.weights)
        stages = self.stages
        if self.fuses_target:
            stages = stages[:-1]
        rows = len(self.weights[0]) - 1
        for i, stage in enumerate(stages):
            value = self.values[-1]
            if isinstance(stage, Product):
                rows = stage.w.shape[1]
                output = self._buffer(rows) if self.keeps_values else self._shared_buffer(rows, value)
                call: Callable[..., object] = partial(torch.mm, next(weights).mT, out=output[:-1])
            elif value is not None and isinstance(stages[i - 1], Product):
                output = value  # in place: nobody needs the product alone
                call = partial(_FORWARD[stage], out=output[:-1])
            else:
                output = self._buffer(rows) if self.keeps_values else self._shared_buffer(rows, value)
                call = partial(_FORWARD[stage], out=output[:-1])
            reads_ones = isinstance(stage, Product)
            layer = self.network.layer_names[i]
            if value is not None:
                self.calls.append(bound("forward", layer, partial(call, value if reads_ones else value[:-1])))
            else:
                self.first = bound("forward", layer, call if reads_ones else lambda x, call=call: call(x[:-1]))
            self.values.append(output)

    def _mse(self) -> Callable[[Tensor, Tensor, Tensor], object]:
        delta, flat = self.delta[:, : self.m], self.delta.view(-1)
        if not self.fuses_target:
            prediction = self._value(-1)[:-1, : self.m]

            def compare(x: Tensor, y: Tensor, loss: Tensor) -> None:
                torch.sub(prediction, y, out=delta)
                torch.dot(flat, flat, out=loss)

            return compare
        w = self.weights[-1].mT
        value = None if self.values[-1] is None else self.values[-1][:, : self.m]

        def compare_fused(x: Tensor, y: Tensor, loss: Tensor) -> None:
            torch.addmm(y, w, x if value is None else value, beta=-1, out=delta)
            torch.dot(flat, flat, out=loss)

        return compare_fused

    def _cross_entropy(self) -> Callable[[Tensor, Tensor, Tensor], object]:
        # -y, with which the loss is one product and torch's backward of log_softmax starts; 0 in the padding.
        self.negative = torch.zeros_like(self.delta)
        self.log_p = torch.empty_like(self.delta)
        scores, negative = self._value(-1)[:-1], self.negative[:, : self.m]
        flat, flat_p = self.negative.view(-1), self.log_p.view(-1)
        log_p, picked = self.log_p[:, : self.m], self.log_p.new_empty(1, self.m)
        minus_one = picked.new_full((self.m,), -1)

        def compare(x: Tensor, y: Tensor, loss: Tensor) -> None:
            torch._log_softmax(scores, 0, False, out=self.log_p)
            if y.dim() == 2:
                torch.neg(y, out=negative)
                torch.dot(flat, flat_p, out=loss)
                return
            # Picked, not multiplied: a score of -inf in another class would make the loss NaN.
            index = y.unsqueeze(0)
            negative.zero_().scatter_(0, index, -1)
            torch.gather(log_p, 0, index, out=picked)
            torch.dot(minus_one, picked[0], out=loss)

        return compare

    def value(self, index: int, x: Tensor) -> Tensor:
        """Value ``index`` of the last run, on the batch x, as an ordinary tensor (m, features)."""
        if index > len(self.stages):  # the softmax that cross-entropy took over
            value = self.log_p[:, : self.m].exp()
        else:
            value = (x if index == 0 else self._value(index))[:-1, : self.m]
        return value.T.clone(memory_format=torch.contiguous_format)

    def _value(self, index: int) -> Tensor:
        value = self.values[index]
        assert value is not None  # value 0, the batch, is asked for by name
        return value


class _Step(_Evaluation):
    """A training step: the evaluation, then backward with the updates."""

    keeps_values = True

    def __init__(self, plan: TensorPlan, m: int, lr: float, weight_decay: float):
        super().__init__(plan, m)
        self.backward: list[Call] = []
        self.update_first: Callable[[Tensor], object] | None = None
        scale = self.scale  # of the gradient, which alpha brings in
        if self.network.loss == "mse":
            scale *= 2
        else:
            function = partial(aten._log_softmax_backward_data.out, self.negative, self.log_p)
            self.backward.append(bound("loss", "", partial(function, 0, self.delta.dtype, out=self.delta)))
        first = self.network.first_trained
        weights = list(self.weights)
        delta, busy = self.delta, self.delta
        for i in reversed(range(first, len(self.stages))):
            stage, layer = self.stages[i], self.network.layer_names[i]
            if not isinstance(stage, Product):
                self.backward.append(bound("backward", layer, _BACKWARD[stage](delta, self._value(i + 1)[:-1])))
                continue
            w, above = weights.pop(), delta
            if i > first:
                busy = self._shared_buffer(len(w) - 1, busy)
                delta = busy[:-1]
                self.backward.append(bound("backward", layer, partial(torch.mm, w[:-1], above, out=delta)))
            if not stage.trained:
                continue
            # Of weights and bias those rows that are trained, which the same rows of the values belong to.
            rows = slice(0 if "w" in stage.trained else len(w) - 1, len(w) if "b" in stage.trained else len(w) - 1)
            update = _update(w[rows], above.mT, lr * scale, weight_decay / scale, len(w) - 1 - rows.start)
            update = bound("update", layer, update)
            if i > 0:
                self.backward.append(partial(update, self._value(i)[rows]))
            else:
                trains_all = len(stage.trained) == 2
                self.update_first = update if trains_all else lambda x, update=update, rows=rows: update(x[rows])

    def run(self, x: Tensor, y: Tensor, loss: Tensor) -> None:
        super().run(x, y, loss)
        for call in self.backward:
            call()
        if self.update_first is not None:
            self.update_first(x)


def _update(w: Tensor, delta: Tensor, lr: float, weight_decay: float, decaying: int) -> Callable[[Tensor], object]:
    """The call that updates w (rows, n_out) from a layer's values (rows, columns) and delta (columns, n_out).

    lr is in units of delta, weight_decay in units of the gradient; so many of the rows, the first ones, decay.
    """
    if not weight_decay:
        return partial(w.addmm_, mat2=delta, alpha=-lr)
    gradient = torch.empty_like(w)
    decayed, weights = gradient[:decaying], w[:decaying]

    def update(values: Tensor) -> None:
        # The decay joins the gradient, as in torch.optim.SGD: by itself it can be less than half a rounding unit of w.
        torch.mm(values, delta, out=gradient)
        decayed.add_(weights, alpha=weight_decay)
        w.add_(gradient, alpha=-lr)

    return update


#: A batch: its evaluation or step, inputs, targets, and the place for its loss.
Block = tuple[_Evaluation, Tensor, Tensor, Tensor]

_FORWARD: dict[str, Callable[..., object]] = {
    "relu": partial(torch.clamp_min, min=0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": partial(torch._softmax, dim=0, half_to_float=False),
}

#: From delta with respect to an activation's output a, the call that makes it one with respect to its input.
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Call]] = {
    "relu": lambda delta, a: partial(aten.threshold_backward.grad_input, delta, a, 0, grad_input=delta),
    "sigmoid": lambda delta, a: partial(aten.sigmoid_backward.grad_input, delta, a, grad_input=delta),
    "tanh": lambda delta, a: partial(aten.tanh_backward.grad_input, delta, a, grad_input=delta),
    "softmax": lambda delta, a: partial(torch._softmax_backward_data, delta, a, 0, a.dtype, grad_input=delta),
}
