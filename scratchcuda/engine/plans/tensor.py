"""The tensor plan: a whole fit on the CPU in which every call is bound once to fixed buffers.

What makes it fast, and where it is found, here or in :mod:`scratchcuda.engine.plans.tensor_steps`:

- Features first: buffers are (features, columns), a column for each sample, so that what follows is made of whole,
  contiguous rows.
- Each buffer has a row of ones below its features, and each layer's weights and bias are one matrix (n_in + 1,
  n_out), so that ``W^T A`` adds the bias, and ``W += alpha A delta^T`` is gradient and update of both at once.
- The scale of the loss's gradient waits for alpha. The target is subtracted inside the last product (beta = -1).
- Columns are padded so that every row starts on a cache line. Deltas of the padding are 0, so it adds nothing.
- The data is copied into this layout once, a block for each batch; a shuffled fit does so once an epoch.
- Losses are collected in a tensor and read once an epoch.
- Inference mode, ``out=`` everywhere: a step allocates nothing.
- What is bound, which holds no parameter and no data, is kept while the model lives, and serves the next fit as well if
  that asks for the same: so a fit of one step takes little more than the step. What layers show of it (``a`` and
  ``input``) is made when it is asked for.

A plan serves while every object runs the methods it was written with (:mod:`scratchcuda.engine._patching`); it packs
the parameters when a fit begins and writes them back when that ends, so that ``layer.w`` stays an ordinary tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import compress, repeat
from typing import TypeVar

import torch
from torch import Tensor

from scratchcuda import _ranges
from scratchcuda.engine.interrupt import HeldInterrupt
from scratchcuda.engine.layers import Dense
from scratchcuda.engine.network import Network, Product, Task
from scratchcuda.engine.parameters import Parameters
from scratchcuda.engine.plans.tensor_steps import CACHE_LINE, Counted, Evaluation, Step, Targets
from scratchcuda.engine.plans.tensor_update import Packing, Update
from scratchcuda.engine.training import FitPath

#: Bytes of one validation buffer. Measured: smaller ones pay for more calls, larger ones fall out of the cache.
CHUNK_BYTES = 512 * 1024

#: Of how many batch sizes steps are kept: those of two fits, each with a smaller last batch.
KEPT_SIZES = 4

T = TypeVar("T", bound=Evaluation)

#: A batch: its evaluation or step, inputs, targets, and the place for its loss.
Block = tuple[Evaluation, Tensor, Targets | Counted, Tensor]


class TensorPlan(FitPath):
    """Fits of a network, one after another.

    Attributes:
        weights: of each product (n_in + 1, n_out); the bias is the last row, zeros where there is none.
        places: what of them network.parameters are.
        update: what updates them by an optimizer with state; None for plain SGD, whose steps do so themselves.
        witness: of what was bound, see :func:`_witness`.
    """

    name = "tensor plan"

    def __init__(self, model: Parameters, network: Network, task: Task):
        self.witness = _witness(network, task)
        with torch.inference_mode():
            like = network.parameters[0]
            packing = Packing(network, CACHE_LINE // like.element_size())
            flat = torch.zeros(packing.size, dtype=like.dtype, device=like.device)
            self.weights, self.places = packing.matrices(flat), packing.places(flat)
            self.update = Update(network, packing, flat, task.optimizer) if task.optimizer.kinds else None
        self.steps: dict[int, Step] = {}  # by batch size
        self.evaluations: dict[int, Evaluation] = {}
        self.losses = task.x.new_empty(0)
        self.hits = torch.empty(0, dtype=torch.int64)
        self.begin(model, network, task)

    def begin(self, model: Parameters, network: Network, task: Task) -> None:
        """Get ready for a fit of the same network; ``model`` is whose it is."""
        self.model, self.network, self.task = model, network, task
        self.batches: list[Block] = []
        self.chunks: list[Block] = []
        self.targets, self.counts = task.y, task.sample_weights
        self.labels: Tensor | None = None
        self.last: Block | None = None

    def mode(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    @property
    def held(self) -> list[Tensor]:
        return [*compress(self.places, self.network.are_trained)]

    def load(self, order: Tensor | None) -> None:
        if not self.batches:
            self._bind()
        size, samples = self.task.batch_size, self.task.samples

        def taken(of: Tensor) -> Tensor:
            if order is None:
                return of if of.shape[0] == samples else of[:samples]
            return of.index_select(0, order)  # of[order] takes six times as long

        x, y, counts = taken(self.task.x), taken(self.targets), None if self.counts is None else taken(self.counts)
        y, factors = _balanced(y, counts, size)
        if len(self.losses) > 1:
            self.batches = _blocks(x, y, factors, size, self.steps, self.losses)
        else:
            step = self.steps[size]
            x, y = step.take(x, y)
            self.batches = [(step, x, y if factors is None else (y, factors), self.first_loss)]
        if self.labels is not None:
            self.batches = _counted(self.batches, taken(self.labels), self.hits)

    def _weighted(self, y: Tensor, sample_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Targets, as rows if smoothed, and what each sample counts in the mean; None if all count the same."""
        loss = self.network.loss
        if loss.name != "cross_entropy" or not loss.arguments(sample_weights):
            return y, None
        of = y, self.weights[-1], sample_weights
        # A class index stays one: as a row, its zeros would make NaN of scores of -inf.
        return y if y.dim() == 1 and not loss.parameters else loss.rows(*of), loss.counts(*of)

    def _bind(self) -> None:
        task, network = self.task, self.network
        if self.update is not None:
            self.update.begin(network, task.optimizer)
        self.adopt()
        samples, size = task.samples, task.batch_size
        self.targets, self.counts = self._weighted(task.y, task.sample_weights)
        for m in _sizes(samples, size):
            _made_once(
                self.steps,
                m,
                lambda m: Step(
                    network, self.weights, m, task.optimizer.weight_decay, self.update, counts_hits=task.accuracy
                ),
            )
        if len(self.losses) != -(-samples // size):
            self.losses = task.x.new_empty(-(-samples // size))
            self.first_loss = self.losses[0]
        if task.accuracy:
            self.labels, self.hits = network.loss.labels(task.y), torch.zeros(len(self.losses), dtype=torch.int64)
        if task.valid is not None:
            x, y = task.valid
            y, factors = _balanced(*self._weighted(y, None), len(y))
            widest = max(max(w.shape) for w in self.weights)
            size = max(CACHE_LINE, CHUNK_BYTES // (widest * x.element_size()))
            for m in _sizes(len(y), size):
                _made_once(self.evaluations, m, lambda m: Evaluation(network, self.weights, m, task.accuracy))
            self.valid_losses = x.new_empty(-(-len(y) // size))
            self.chunks = _blocks(x, y, factors, size, self.evaluations, self.valid_losses)
            if task.accuracy:
                self.valid_hits = torch.zeros(len(self.chunks), dtype=torch.int64)
                self.chunks = _counted(self.chunks, network.loss.labels(task.valid[1]), self.valid_hits)

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        finished, run = 0, _ranges.bound("step", "", Step.run)
        for of_size in self.steps.values():
            of_size.descend_by(self.task.lr)
        try:
            for step, x, y, loss in self.batches:
                run(step, x, y, loss)
                finished += 1
                if stop.pending:
                    stop.check()
        finally:
            self.last = self.batches[finished - 1] if finished else self.last
            sums = zip(self.losses.tolist(), self.batches[:finished], strict=False)
            losses += [loss / step.terms for loss, (step, _, _, _) in sums]
        if self.labels is not None:
            self.accuracy = int(self.hits.sum()) / self.labels[: self.task.samples].numel()

    def validate(self) -> float:
        for evaluation, x, y, loss in self.chunks:
            evaluation.run(x, y, loss)
        if self.labels is not None and self.task.valid is not None:
            self.valid_accuracy = int(self.valid_hits.sum()) / (self.labels[0].numel() * len(self.task.valid[1]))
        return sum(self.valid_losses.tolist()) / sum(evaluation.terms for evaluation, _, _, _ in self.chunks)

    def publish(self) -> None:
        if held := self.held:
            torch._foreach_copy_([*compress(self.network.parameters, self.network.are_trained)], held)
        if self.update is not None:
            self.update.publish()

    def adopt(self) -> None:
        torch._foreach_copy_(self.places, self.network.parameters)
        if self.update is not None:
            self.update.adopt()

    def finish(self) -> None:
        if self.last is not None:
            self.publish()
            step, x, _, _ = self.last
            if len(self.batches) > 1:
                x = x.clone()  # or it would keep the others
            for layer, before, after in self.network.owners:
                layer.show(partial(step.value, x), a=after, **({"input": before} if isinstance(layer, Dense) else {}))
        if self.update is not None:
            self.update.finish()
        self.model._plan = self
        # What is kept holds no tensor of the user's.
        del self.model, self.network, self.task, self.targets, self.counts, self.labels, self.batches, self.chunks


def kept(model: Parameters, network: Network, task: Task) -> TensorPlan | None:
    """The plan of this model's last fit, ready for another, if nothing has changed for it."""
    plan, model._plan = model._plan, None  # until the fit has ended: another within it has one of its own
    if not isinstance(plan, TensorPlan) or plan.witness != _witness(network, task):
        return None
    plan.begin(model, network, task)
    return plan


def _witness(network: Network, task: Task) -> tuple[object, ...]:
    """What must be the same for a plan to serve again: all that it, and Network.unfit, knows of the parameters."""
    stages = [stage.trained if isinstance(stage, Product) else stage for stage in network.stages]
    tensors = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.is_inference()) for t in network.parameters]
    loss = network.loss.name, dict(network.loss.parameters), network.loss.activation
    return stages, tensors, loss, network.shown, task.optimizer.options, task.accuracy, _ranges.listener


def _made_once(made: dict[int, T], m: int, make: Callable[[int], T]) -> T:
    if m not in made:
        if len(made) == KEPT_SIZES:
            del made[next(iter(made))]  # the oldest
        made[m] = make(m)
    return made[m]


def _sizes(samples: int, size: int) -> set[int]:
    """The sizes of the pieces that split(size) makes: the full ones, and a smaller last one."""
    return {min(size, samples), samples % size or size}


def _balanced(y: Tensor, counts: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Targets with which the plain mean over each block is the weighted one: its samples count 1 on average.

    Rows are divided by that; of class indices there are factors of log p besides.
    """
    if counts is None:
        return y, None
    blocks = zip((counts if y.dim() == 1 else y).split(size), counts.split(size), strict=True)
    balanced = torch.cat([terms / of_terms.mean() for terms, of_terms in blocks])
    return (y, -balanced) if y.dim() == 1 else (balanced, None)


def _blocks(
    x: Tensor,
    y: Tensor,
    factors: Tensor | None,
    size: int,
    evaluations: Mapping[int, Evaluation],
    losses: Tensor,
) -> list[Block]:
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
        found: Iterable[Targets] = targets.unbind()
        if factors is not None:
            found = zip(targets.unbind(), factors[start:stop].split(m), strict=True)
        blocks += zip(repeat(evaluation), inputs.unbind(), found, places)
    return blocks


def _counted(blocks: list[Block], labels: Tensor, hits: Tensor) -> list[Block]:
    """The blocks with what their predictions are to hit (samples,) or (samples, n_out), and a place for the hits."""
    parts = labels.split(blocks[0][0].m)
    pairs = zip(blocks, parts, hits.unbind(), strict=True)
    return [
        (step, x, Counted(y, part.T if part.dim() == 2 else part, place), loss)
        for (step, x, y, loss), part, place in pairs
    ]
