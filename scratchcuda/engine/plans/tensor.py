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
from scratchcuda.engine.layers import Dense
from scratchcuda.engine.network import Network, Product, Task
from scratchcuda.engine.parameters import Parameters
from scratchcuda.engine.plans.tensor_steps import CACHE_LINE, Evaluation, Step, Targets
from scratchcuda.engine.training import FitPath, HeldInterrupt

#: Bytes of one validation buffer. Measured: smaller ones pay for more calls, larger ones fall out of the cache.
CHUNK_BYTES = 512 * 1024

#: Of how many batch sizes steps are kept: those of two fits, each with a smaller last batch.
KEPT_SIZES = 4

T = TypeVar("T", bound=Evaluation)

#: A batch: its evaluation or step, inputs, targets, and the place for its loss.
Block = tuple[Evaluation, Tensor, Targets, Tensor]


class TensorPlan(FitPath):
    """Fits of a network, one after another.

    Attributes:
        weights: of each product (n_in + 1, n_out); the bias is the last row.
        witness: of what was bound, see :func:`_witness`.
    """

    name = "tensor plan"

    def __init__(self, model: Parameters, network: Network, task: Task):
        self.witness = _witness(network, task)
        with torch.inference_mode():
            self.weights = [torch.cat([product.w, product.b.unsqueeze(0)]) for product in network.products]
            self.places = [place for w in self.weights for place in (w[:-1], w[-1])]  # as network.parameters
        self.steps: dict[int, Step] = {}  # by batch size
        self.evaluations: dict[int, Evaluation] = {}
        self.losses = task.x.new_empty(0)
        self.begin(model, network, task)

    def begin(self, model: Parameters, network: Network, task: Task) -> None:
        """Get ready for a fit of the same network; ``model`` is whose it is."""
        self.model, self.network, self.task = model, network, task
        self.batches: list[Block] = []
        self.chunks: list[Block] = []
        self.targets, self.counts = task.y, task.sample_weights
        self.last: Block | None = None

    def mode(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    def load(self, order: Tensor | None) -> None:
        if not self.batches:
            self._bind()
        x, y, counts, size = self.task.x, self.targets, self.counts, self.task.batch_size
        if order is not None:
            x, y, counts = x[order], y[order], None if counts is None else counts[order]
        y, factors = _balanced(y, counts, size)
        if len(self.losses) > 1:
            self.batches = _blocks(x, y, factors, size, self.steps, self.losses)
        else:
            step = self.steps[size]
            x, y = step.take(x, y)
            self.batches = [(step, x, y if factors is None else (y, factors), self.first_loss)]

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
        torch._foreach_copy_(self.places, network.parameters)
        samples, size = task.y.shape[0], task.batch_size
        self.targets, self.counts = self._weighted(task.y, task.sample_weights)
        for m in _sizes(samples, size):
            step = _made_once(self.steps, m, lambda m: Step(network, self.weights, m, task.weight_decay))
            step.descend_by(task.lr)
        if len(self.losses) != -(-samples // size):
            self.losses = task.x.new_empty(-(-samples // size))
            self.first_loss = self.losses[0]
        if task.valid is not None:
            x, y = task.valid
            y, factors = _balanced(*self._weighted(y, None), len(y))
            widest = max(max(w.shape) for w in self.weights)
            size = max(CACHE_LINE, CHUNK_BYTES // (widest * x.element_size()))
            for m in _sizes(len(y), size):
                _made_once(self.evaluations, m, lambda m: Evaluation(network, self.weights, m))
            self.valid_losses = x.new_empty(-(-len(y) // size))
            self.chunks = _blocks(x, y, factors, size, self.evaluations, self.valid_losses)

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        finished, run = 0, _ranges.bound("step", "", Step.run)
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

    def validate(self) -> float:
        for evaluation, x, y, loss in self.chunks:
            evaluation.run(x, y, loss)
        return sum(self.valid_losses.tolist()) / sum(evaluation.terms for evaluation, _, _, _ in self.chunks)

    def finish(self) -> None:
        if self.last is not None:
            both = self.network.parameters, self.places
            own, packed = ([*compress(tensors, self.network.are_trained)] for tensors in both)
            if own:
                torch._foreach_copy_(own, packed)
            step, x, _, _ = self.last
            if len(self.batches) > 1:
                x = x.clone()  # or it would keep the others
            for layer, before, after in self.network.owners:
                layer.show(partial(step.value, x), a=after, **({"input": before} if isinstance(layer, Dense) else {}))
        self.model._plan = self
        # What is kept holds no tensor of the user's.
        del self.model, self.network, self.task, self.targets, self.counts, self.batches, self.chunks


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
    return stages, tensors, loss, network.shown, task.weight_decay, _ranges.listener


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
