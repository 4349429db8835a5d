"""The calls of the tensor plan: of an evaluation, and of a training step, bound once to fixed buffers."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchcuda._ranges import bound
from scratchcuda.engine.layers import noise_like
from scratchcuda.engine.network import Network, Noise, Product
from scratchcuda.engine.plans.tensor_update import Update
from scratchcuda.ops._entries import ENTRIES
from scratchcuda.ops._losses import LOSSES, Loss

aten = torch.ops.aten
Call = Callable[[], object]

#: Of a batch: (n_out, m), or class indices (m,), or these with factors of log p (m,).
Targets = Tensor | tuple[Tensor, Tensor]

CACHE_LINE = 64


class Counted(NamedTuple):
    """Targets, what predictions are to hit, (m,) or (n_out, m), and the place () for how many do."""

    targets: Any
    labels: Tensor
    place: Tensor


class Evaluation:
    """The calls from a batch of m samples to its loss, all bound but for the batch.

    Attributes:
        values: value i is the input of stage i, (features + 1, columns), a row of ones last; value 0 is the batch.
        delta: the gradient of the loss with respect to the last value (n_out, columns), up to a factor.
        terms: what the sum in ``loss`` is to be divided by.
    """

    #: Whether each value keeps a buffer of its own. An evaluation forgets them, to stay in cache.
    keeps_values = False

    def __init__(self, network: Network, weights: Sequence[Tensor], m: int, counts_hits: bool = False):
        self.weights, self.m = weights, m
        self.stages, self.activation = len(network.stages), network.loss.activation
        w = self.weights[0]
        lanes = CACHE_LINE // w.element_size()
        # A single product reads the batch only, where padding would gain nothing.
        self.columns = -(-m // lanes) * lanes if m > lanes and self.stages > 1 else m
        self.shared: dict[tuple[int, int], Tensor] = {}
        outputs = self.weights[-1].shape[1]
        self.delta = w.new_zeros(outputs, self.columns)  # the padding's stays 0
        # Subtracting the target inside the last product leaves no prediction, which a Dense shows as ``a``.
        self.fuses_target = network.loss.name == "mse" and isinstance(network.stages[-1], Product)
        self.fuses_target &= not (self.keeps_values and network.shown)
        self.first: Callable[[Tensor], object] | None = None
        self.calls: list[Call] = []
        self.values: list[Tensor | None] = [None]
        self.noises: dict[int, Tensor] = {}  # by stage, what a training step multiplies by
        self._bind_forward(network)
        entry = LOSSES.get(network.loss.name)
        compare: Callable[[Tensor, Any, Tensor], object]
        if entry is None:
            self.terms = m
            compare = self._cross_entropy()
        else:
            self.terms = m * outputs
            parameters = network.loss.parameters.values()
            compare = self._mse_with_product() if self.fuses_target else self._elementwise(entry, parameters)
        self.compare = bound("loss", "", self._counting(network, compare) if counts_hits else compare)

    def run(self, x: Tensor, y: Targets | Counted, loss: Tensor) -> None:
        """x (features + 1, columns), y, the loss () to write."""
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

    def _bind_forward(self, network: Network) -> None:
        weights = iter(self.weights)
        stages, shown = network.stages, network.shown
        if self.fuses_target:
            stages = stages[:-1]
        rows = len(self.weights[0]) - 1
        for i, stage in enumerate(stages):
            value = self.values[-1]
            if isinstance(stage, Noise) and not self.keeps_values:
                self.values.append(value)
                continue
            if isinstance(stage, Product):
                rows = stage.w.shape[1]
                output = self._buffer(rows) if self.keeps_values else self._shared_buffer(rows, value)
                call: Callable[..., object] = partial(torch.mm, next(weights).mT, out=output[:-1])
            elif isinstance(stage, Noise):
                output = self._buffer(rows)
                call = self._noise(i, stage.p, output[:-1])
            else:
                entry, is_needed = stage.entry, self.keeps_values and (i in shown or stage.entry.of_input)
                if value is not None and isinstance(stages[i - 1], Product) and not is_needed:
                    output = value  # in place: nobody needs the product alone
                else:
                    output = self._buffer(rows) if self.keeps_values else self._shared_buffer(rows, value)
                parameters = zip(entry.parameters, stage.parameters, strict=True)
                call = partial(entry.into, out=output[:-1], **dict(parameters))
            reads_ones = isinstance(stage, Product)
            layer = network.layer_names[i]
            if value is not None:
                self.calls.append(bound("forward", layer, partial(call, value if reads_ones else value[:-1])))
            else:
                self.first = bound("forward", layer, call if reads_ones else lambda x, call=call: call(x[:-1]))
            self.values.append(output)

    def _noise(self, i: int, p: float, out: Tensor) -> Callable[[Tensor], object]:
        """The call that multiplies by noise of stage i, drawn as for samples (m, features); 0 in the padding."""
        noise = self.noises[i] = torch.zeros_like(out)
        of_samples, like = noise[:, : self.m], out.new_empty(self.m, len(out))

        def drop(value: Tensor) -> None:
            of_samples.copy_(noise_like(like, p).mT)
            torch.mul(value, noise, out=out)

        return drop

    def _elementwise(self, entry: Loss, parameters: Iterable[float]) -> Callable[[Tensor, Tensor, Tensor], object]:
        assert entry.compare is not None
        call = entry.compare(self._value(-1)[:-1, : self.m], self.delta, *parameters)
        return lambda x, y, loss: call(y, loss)

    def _counting(
        self, network: Network, compare: Callable[[Tensor, Any, Tensor], object]
    ) -> Callable[[Tensor, Counted, Tensor], None]:
        """As Objective.hits, of scores that lie features first."""
        scores = self._value(-1)[:-1, : self.m]
        of_classes = network.loss.name == "cross_entropy"
        chosen = scores.argmax(0) if of_classes else scores >= 0
        right = torch.empty_like(chosen, dtype=torch.bool)
        choose = (
            partial(torch.argmax, scores, 0, out=chosen) if of_classes else partial(torch.ge, scores, 0, out=chosen)
        )

        def counting(x: Tensor, y: Counted, loss: Tensor) -> None:
            compare(x, y.targets, loss)
            choose()
            torch.eq(chosen, y.labels, out=right)
            torch.sum(right.view(-1), 0, dtype=torch.int64, out=y.place)

        return counting

    def _mse_with_product(self) -> Callable[[Tensor, Tensor, Tensor], object]:
        delta, flat, w = self.delta[:, : self.m], self.delta.view(-1), self.weights[-1].mT
        value = None if self.values[-1] is None else self.values[-1][:, : self.m]

        def compare(x: Tensor, y: Tensor, loss: Tensor) -> None:
            torch.addmm(y, w, x if value is None else value, beta=-1, out=delta)
            torch.dot(flat, flat, out=loss)

        return compare

    def _cross_entropy(self) -> Callable[[Tensor, Targets, Tensor], object]:
        # -y, with which the loss is one product and torch's backward of log_softmax starts; 0 in the padding.
        self.negative = torch.zeros_like(self.delta)
        self.log_p = torch.empty_like(self.delta)
        scores, negative = self._value(-1)[:-1], self.negative[:, : self.m]
        flat, flat_p = self.negative.view(-1), self.log_p.view(-1)
        log_p, picked = self.log_p[:, : self.m], self.log_p.new_empty(1, self.m)
        minus_one = picked.new_full((self.m,), -1)
        row_of_it = minus_one.unsqueeze(0)

        def compare(x: Tensor, y: Targets, loss: Tensor) -> None:
            torch._log_softmax(scores, 0, False, out=self.log_p)
            y, factors, row = (*y, y[1].unsqueeze(0)) if isinstance(y, tuple) else (y, minus_one, row_of_it)
            if y.dim() == 2:
                torch.neg(y, out=negative)
                torch.dot(flat, flat_p, out=loss)
                return
            # Picked, not multiplied: a score of -inf in another class would make the loss NaN.
            index = y.unsqueeze(0)
            negative.zero_().scatter_(0, index, row)
            torch.gather(log_p, 0, index, out=picked)
            torch.dot(factors, picked[0], out=loss)

        return compare

    def value(self, x: Tensor, index: int) -> Tensor:
        """Value ``index`` of the last run, on the batch x, as an ordinary tensor (m, features)."""
        value = (x if index == 0 else self._value(min(index, self.stages)))[:-1, : self.m]
        if index > self.stages:  # the activation that belongs to the loss
            ENTRIES[self.activation].into(value, out=(value := torch.empty_like(value)))
        return value.T.clone(memory_format=torch.contiguous_format)

    def _value(self, index: int) -> Tensor:
        value = self.values[index]
        assert value is not None  # value 0, the batch, is asked for by name
        return value


class Step(Evaluation):
    """A training step: the evaluation, then backward with the updates, or with gradients for one update of all."""

    keeps_values = True

    def __init__(
        self,
        network: Network,
        weights: Sequence[Tensor],
        m: int,
        weight_decay: float,
        update: Update | None = None,
        counts_hits: bool = False,
    ):
        super().__init__(network, weights, m, counts_hits)
        #: What the updates multiply delta by: see :meth:`descend_by`.
        self.alpha = 0.0
        self.batch = self._buffer(network.sizes[0])
        self.samples = self.batch[:-1, :m]
        self.backward: list[Call] = []
        self.update_first: Callable[[Tensor], object] | None = None
        entry = LOSSES.get(network.loss.name)
        self.gradient_scale = (entry.factor if entry else 1) / self.terms
        if entry is None:
            function = partial(aten._log_softmax_backward_data.out, self.negative, self.log_p)
            self.backward.append(bound("loss", "", partial(function, 0, self.delta.dtype, out=self.delta)))
        first = network.first_trained
        remaining = list(weights)
        gradients: list[Tensor | None] = [None] * len(weights) if update is None else [*update.gradients]
        #: Of all parameters at once, by their gradients.
        self.update, self.update_all = update, update and bound("update", "", update)
        delta, busy = self.delta, self.delta
        for i in reversed(range(first, self.stages)):
            stage, layer = network.stages[i], network.layer_names[i]
            if isinstance(stage, Noise):
                self.backward.append(bound("backward", layer, partial(torch.mul, delta, self.noises[i], out=delta)))
                continue
            if not isinstance(stage, Product):
                value = self._value(i if stage.entry.of_input else i + 1)[:-1]
                call = stage.entry.backward_in_place(delta, value, *stage.parameters)
                self.backward.append(bound("backward", layer, call))
                continue
            w, gradient, above = remaining.pop(), gradients.pop(), delta
            if i > first:
                busy = self._shared_buffer(len(w) - 1, busy)
                delta = busy[:-1]
                self.backward.append(bound("backward", layer, partial(torch.mm, w[:-1], above, out=delta)))
            if not stage.trained:
                continue
            # Of weights and bias those rows that are trained, which the same rows of the values belong to.
            rows = slice(0 if "w" in stage.trained else len(w) - 1, len(w) if "b" in stage.trained else len(w) - 1)
            if gradient is None:
                descend = self._update(w[rows], above.mT, weight_decay, len(w) - 1 - rows.start)
            else:
                descend = partial(self._gradient, gradient[rows], above.mT)
            descend = bound("update", layer, descend)
            if i > 0:
                self.backward.append(partial(descend, self._value(i)[rows]))
            else:
                takes_all = rows == slice(0, len(w))
                self.update_first = descend if takes_all else lambda x, call=descend, rows=rows: call(x[rows])

    def take(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch x (m, features), y (m, n_out) or (m,) as ``run`` takes it, in memory of its own."""
        self.samples.copy_(x.mT)
        return self.batch, y.mT.clone(memory_format=torch.contiguous_format) if y.dim() == 2 else y

    def descend_by(self, lr: float) -> None:
        """Take this learning rate from here on."""
        self.alpha = -lr * self.gradient_scale
        if self.update is not None:
            self.update.lr = lr

    def _gradient(self, gradient: Tensor, delta: Tensor, values: Tensor) -> None:
        """From a layer's values (rows, columns) and delta (columns, n_out), into gradient (rows, n_out)."""
        gradient.addmm_(values, delta, beta=0, alpha=self.gradient_scale)

    def _update(self, w: Tensor, delta: Tensor, weight_decay: float, decaying: int) -> Callable[[Tensor], object]:
        """The call that updates w (rows, n_out) from a layer's values (rows, columns) and delta (columns, n_out).

        So many of the rows, the first ones, decay.
        """
        if not weight_decay:
            return lambda values: w.addmm_(values, delta, alpha=self.alpha)
        gradient = torch.empty_like(w)
        decayed, weights, weight_decay = gradient[:decaying], w[:decaying], weight_decay / self.gradient_scale

        def update(values: Tensor) -> None:
            # The decay joins the gradient, as in torch.optim.SGD: by itself it can be less than half a rounding unit.
            torch.mm(values, delta, out=gradient)
            decayed.add_(weights, alpha=weight_decay)
            w.add_(gradient, alpha=self.alpha)

        return update

    def run(self, x: Tensor, y: Targets | Counted, loss: Tensor) -> None:
        super().run(x, y, loss)
        for call in self.backward:
            call()
        if self.update_first is not None:
            self.update_first(x)
        if self.update_all is not None:
            self.update_all()
