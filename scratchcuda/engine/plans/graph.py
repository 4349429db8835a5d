"""The graph plan: a training step on the kernels, captured in a CUDA Graph, one replay for each batch.

A step is the shortest sequence of launches that the ops allow, on fixed memory:

- ``take_batch_`` copies the batch whose turn it is, by a number of the step that is kept on the device; and again, if
  the samples have weights.
- ``dense`` makes a product, with bias and activation, in one launch; its output is all that is kept for backward. Where
  the derivative is in terms of the input, ``dense_with_preactivation`` keeps this beside the output, from one launch.
- The loss's op, ``mse_step_`` say, gives the gradient, puts the loss into its place, and counts the step.
- ``dense_backward_input`` brings in the derivative of the activation below, and ``dense_update_`` takes the step of
  gradient descent, with no gradient in memory.

So the host has nothing to do between two replays, and waits once an epoch, for the losses. Each kind of launches (a
step of each batch size, the validation) runs eagerly the first time, which loads its kernels, and is captured the
second. The emulator, which has no graphs, runs all of them eagerly.

What was captured knows addresses and numbers, and holds no parameter and no data. It is kept while the model lives, and
serves the next fit as well if all of these are the same.
"""

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import compress
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scratchcuda import ops
from scratchcuda._ranges import bound, named
from scratchcuda.engine.layers import Dense, descend
from scratchcuda.engine.network import Network, Product, Task
from scratchcuda.engine.training import FitPath, HeldInterrupt
from scratchcuda.ops import _backend
from scratchcuda.ops._entries import Chosen


class _Unit(NamedTuple):
    """What one forward call computes: a product, an activation, or both."""

    product: Product | None
    activation: Chosen  # "none" if there is none
    after: int  # the network's index of its value


class GraphPlan(FitPath):
    """One fit of a network; ``model`` is whose it is."""

    name = "graph plan"

    def __init__(self, model: object, network: Network, task: Task):
        self.network, self.task = network, task
        self.units = _units(network)
        units = [(unit.activation, unit.after, unit.product and unit.product.trained) for unit in self.units]
        data = task.x, task.y, *(task.valid or ()), network.loss.class_weights, task.sample_weights
        tensors = [tensor if tensor is None else _identity(tensor) for tensor in (*network.parameters, *data)]
        loss = network.loss.name, *network.loss.parameters.items()
        key = (_backend.current, loss, *units, *tensors, task.batch_size, task.lr, task.weight_decay)
        captured = _kept.pop(model, None)
        self.captured = captured if captured and captured.key == key else _Captured(key, task)
        _kept[model] = self.captured
        self.last: tuple[int, list[Tensor]] | None = None

    @contextmanager
    def mode(self) -> Iterator[None]:
        # Within a capture torch makes tensors of its own, which others could not write if they were of inference.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(self.task.x):
            yield

    def load(self, order: Tensor | None) -> None:
        if order is None:
            torch.arange(len(self.task.y), out=self.captured.order)
        else:
            self.captured.order.copy_(order)

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        done = 0
        self.captured.step.zero_()
        try:
            for start in range(0, len(self.task.y), self.task.batch_size):
                m = min(self.task.batch_size, len(self.task.y) - start)
                self.last = None  # whose memory this step can have
                self.last = m, self.captured.run(m, bound("step", "", partial(self._train, m)))
                done += 1
                if stop.pending:
                    stop.check()
            if self.task.valid is not None:
                self.captured.run("validation", self._validate)
        finally:
            found = self.captured.losses.tolist()
            losses += found[:done]
            self.valid_loss = found[-1]

    def validate(self) -> float:
        return self.valid_loss

    def finish(self) -> None:
        # Replays write behind autograd's back: a graph that saved a parameter must raise, not lie.
        torch.autograd.graph.increment_version(compress(self.network.parameters, self.network.are_trained))
        self.graph_bytes = self.captured.bytes()
        if self.last is None:
            return
        m, outputs = self.last
        values = dict(zip((unit.after for unit in self.units), outputs, strict=True)) | {0: self.captured.x[:m]}
        for layer, before, after in self.network.owners:
            if after not in values:  # the activation that belongs to the loss
                values[after] = getattr(ops, self.network.loss.activation)(values[len(self.network.stages)])
            layer.a = values[after].clone()  # type: ignore[attr-defined]
            if isinstance(layer, Dense):
                layer.input = values[before].clone()

    def _train(self, m: int) -> list[Tensor]:
        """The launches of a step on m samples; returns each unit's output."""
        task = self.task
        with named("batch"):
            x, y, weights = self._take(m)
        first = next((u for u, unit in enumerate(self.units) if unit.product and unit.product.trained), len(self.units))
        inputs, values = [x], []  # of each unit, and what the derivative of its activation is in terms of
        for output, value in self._forward(x, first):
            inputs.append(output)
            values.append(value)
        outputs = inputs[1:]
        delta = self._loss(outputs[-1], y, weights)
        is_done = False  # the derivative of this unit's activation, with the product above
        for u in reversed(range(first, len(self.units))):
            product, (name, parameters), after = self.units[u]
            layer = self.network.layer_names[after - 1]
            with named("backward", layer):
                if name != "none" and not is_done:
                    delta = getattr(ops, f"{name}_backward")(delta, values[u], *parameters)
                is_done = False
                if product is None:
                    continue
                above = delta
                if u > first:
                    below = self.units[u - 1].activation
                    is_done = below.name != "softmax"
                    delta = ops.dense_backward_input(above, product.w, *((values[u - 1], *below) if is_done else ()))
            with named("update", layer):
                descend(product.trained, above, inputs[u], product.w, product.b, task.lr, task.weight_decay)
        return outputs

    def _take(self, m: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch whose turn it is, and the weights of its samples."""
        task, captured = self.task, self.captured
        x, y, turn = captured.x[:m], captured.y[:m], (captured.order, captured.step, task.batch_size)
        ops.take_batch_(task.x, task.y, *turn, x, y)
        if task.sample_weights is None:
            return x, y, None
        ops.take_batch_(task.sample_weights, task.y, *turn, captured.weights[:m], y)
        return x, y, captured.weights[:m]

    def _validate(self) -> list[Tensor]:
        assert self.task.valid is not None
        x, y = self.task.valid
        # Each output is forgotten once the next is there.
        y_pred, _ = deque(self._forward(x, len(self.units)), maxlen=1).pop()
        self._loss(y_pred, y)  # counted as one more step
        return []

    def _forward(self, x: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each unit's output, and what the derivative of its activation is in terms of, from the unit ``first`` on."""
        for u, (product, activation, after) in enumerate(self.units):
            name, parameters = activation
            of_input = activation.entry.of_input
            with named("forward", self.network.layer_names[after - 1]):
                if product is None:
                    a = getattr(ops, name)(x, *parameters)
                    value = x if of_input else a
                elif of_input and u >= first:
                    a, value = ops.dense_with_preactivation(x, product.w, product.b, name, parameters)
                else:
                    a = value = ops.dense(x, product.w, product.b, name, parameters)
            yield a, value
            x = a

    def _loss(self, y_pred: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        loss = self.network.loss
        op = getattr(ops, f"{loss.name}_step_")
        with named("loss"):
            return op(y_pred, y, self.captured.losses, self.captured.step, **loss.arguments(weights))


def _units(network: Network) -> list[_Unit]:
    """A product takes the activation after it along, unless a layer shows what is between."""
    units: list[_Unit] = []
    none = Chosen("none")
    for i, stage in enumerate(network.stages):
        if isinstance(stage, Product):
            units.append(_Unit(stage, none, i + 1))
        elif units and units[-1].product and units[-1].activation == none and i not in network.shown:
            units[-1] = _Unit(units[-1].product, stage, i + 1)
        else:
            units.append(_Unit(None, stage, i + 1))
    return units


def _identity(tensor: Tensor) -> Hashable:
    """All that a launch knows of a tensor."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg()


class _Captured:
    """Fixed memory, and the graphs of the launches that work on it: what may outlive a fit.

    Attributes:
        order: numbers of the samples in the order of this epoch (samples,).
        step: the number of the step within the epoch ().
        losses: of each step, then of the validation (steps + 1,).
        x, y, weights: the batch, and the weights of its samples.
    """

    def __init__(self, key: Hashable, task: Task):
        self.key, x, y, batch_size = key, task.x, task.y, task.batch_size
        with torch.inference_mode(False):  # or they could not be written in another fit
            self.order = torch.empty(len(y), dtype=torch.int64, device=x.device)
            self.step = torch.zeros((), dtype=torch.int64, device=x.device)
            self.losses = torch.empty(-(-len(y) // batch_size) + 1, dtype=x.dtype, device=x.device)
            weights = x.new_empty(0) if task.sample_weights is None else task.sample_weights
            self.x, self.y, self.weights = (
                data.new_empty(min(batch_size, len(data)), *data.shape[1:]) for data in (x, y, weights)
            )
        # Without torch's allocator, as under a sanitizer, no memory can be captured.
        captures = x.is_cuda and "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ
        self.pool = torch.cuda.graph_pool_handle() if captures else None
        self.stream = torch.cuda.Stream(x.device) if captures else None  # torch's own is that of its first device
        self.warm: set[Hashable] = set()
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}

    def run(self, kind: Hashable, launches: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Launches of one kind: eagerly the first time, then captured, then replayed. Returns their outputs."""
        if self.pool is None or kind not in self.warm:
            self.warm.add(kind)
            return launches()
        if kind not in self.graphs:
            graph, mode = torch.cuda.CUDAGraph(), "thread_local"
            try:
                # The outer context leaves the stream even where the end of a failed capture raises.
                with torch.cuda.stream(self.stream), torch.cuda.graph(graph, self.pool, self.stream, mode):
                    outputs = launches()
            except BaseException:
                self.key = None  # serves no other fit: its pool may be lost
                raise
            self.graphs[kind] = graph, outputs
        graph, outputs = self.graphs[kind]
        graph.replay()
        return outputs

    def bytes(self) -> int:
        """Of all the memory here, that of the graphs included."""
        fixed = sum(tensor.nbytes for tensor in (self.order, self.step, self.losses, self.x, self.y, self.weights))
        if self.pool is None:
            return fixed
        segments = torch.cuda.memory_snapshot(self.pool, include_traces=False)
        return fixed + sum(segment["total_size"] for segment in segments)


#: By model, what its last fit has captured.
_kept: "WeakKeyDictionary[object, _Captured]" = WeakKeyDictionary()
