"""The graph plan: a training step on the kernels, captured in a CUDA Graph, one replay for each batch.

A step is the shortest sequence of launches that the ops allow, on fixed memory:

- ``take_batch_`` copies the batch whose turn it is, by a number of the step that is kept on the device; and again, if
  the samples have weights.
- ``dense`` makes a product, with bias and activation, in one launch; its output is all that is kept for backward. Where
  the derivative is in terms of the input, ``dense_with_preactivation`` keeps this beside the output, from one launch.
- The loss's op, ``mse_step_`` say, gives the gradient, puts the loss into its place, and counts the step.
- ``dropout`` multiplies by noise that torch draws, whose generator a CUDA Graph knows: replays draw anew.
- ``dense_backward_input`` brings in the derivative of the activation below, and ``dense_update_`` takes the step of
  gradient descent, with no gradient in memory.
- Momentum, Adam, and a learning rate that varies take ``dense_backward_weights`` instead, and one update of all
  parameters, two if some decay and some do not. Its numbers of each step stand in a table on the device, which the host
  fills before each epoch.

So the host has nothing to do between two replays, and waits once an epoch, for the losses. Each kind of launches (a
step of each batch size, the validation) runs eagerly the first time, which loads its kernels, and is captured the
second. The emulator, which has no graphs, runs all of them eagerly.

What was captured knows addresses and numbers, and holds no parameter and no data. It is kept while the model lives, and
serves the next fit as well if all of these are the same.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, compress
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scratchcuda import ops
from scratchcuda._ranges import bound, named
from scratchcuda.engine.interrupt import HeldInterrupt
from scratchcuda.engine.layers import Dense, descend, gradients_of, noise_like
from scratchcuda.engine.network import Network, Noise, Product, Task
from scratchcuda.engine.plans.capture import Captured
from scratchcuda.engine.training import FitPath
from scratchcuda.ops import _backend
from scratchcuda.ops._entries import Chosen


class _Unit(NamedTuple):
    """What one forward call computes: a product, an activation, or both; or a product with noise."""

    product: Product | None
    activation: Chosen  # "none" if there is none
    after: int  # the network's index of its value
    noise: Noise | None = None


class GraphPlan(FitPath):
    """One fit of a network; ``model`` is whose it is."""

    name = "graph plan"

    def __init__(self, model: object, network: Network, task: Task):
        self.network, self.task = network, task
        self.units = _units(network)
        units = [(unit[1:], unit.product and unit.product.trained) for unit in self.units]
        data = task.x, task.y, *(task.valid or ()), network.loss.class_weights, task.sample_weights
        tensors = [tensor if tensor is None else _identity(tensor) for tensor in (*network.parameters, *data)]
        loss = network.loss.name, *network.loss.parameters.items()
        optimizer = task.optimizer
        self.updates_at_once = bool(optimizer.kinds) or task.varies
        lr = None if self.updates_at_once else task.lr
        options = task.batch_size, task.drop_last, task.accuracy, lr, optimizer.options
        key = (_backend.current, loss, *units, *tensors, *options)
        self.trained = dict(compress(zip(network.names, network.parameters, strict=True), network.are_trained))
        at_once = [*self.trained.values()], self.updates_at_once
        self.model, captured = model, _kept.pop(model, None)  # until the fit has ended: another within it has its own
        self.captured = captured if captured and captured.key == key else Captured(key, task, *at_once)
        self.adopt()
        self.last: tuple[int, list[Tensor]] | None = None

    @contextmanager
    def mode(self) -> Iterator[None]:
        # Within a capture torch makes tensors of its own, which others could not write if they were of inference.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(self.task.x):
            yield

    def _states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the optimizer's state is here, and where it is in the optimizer."""
        pairs = zip(self.captured.states, self.task.optimizer.states([*self.trained]), strict=True)
        for state, own in chain.from_iterable(zip(*of_kind, strict=True) for of_kind in pairs):
            yield state, own.view_as(state)

    @property
    def held(self) -> list[Tensor]:
        return [*self.trained.values()]

    def load(self, order: Tensor | None) -> None:
        if order is None:
            torch.arange(self.task.samples, out=self.captured.order)
        else:
            self.captured.order.copy_(order)

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        done, optimizer = 0, self.task.optimizer
        self.captured.step.zero_()
        if self.updates_at_once:
            self.captured.rates.copy_(optimizer.rates(self.task.lr, len(self.captured.rates)))
        try:
            for start in range(0, self.task.samples, self.task.batch_size):
                m = min(self.task.batch_size, self.task.samples - start)
                self.last = None  # whose memory this step can have
                launches = bound("step", "", partial(self._train, m))
                # With dampening the first step is another, and eager.
                is_another = bool(optimizer.kinds and optimizer.dampening and not optimizer.steps)
                self.last = m, launches() if is_another else self.captured.run(m, launches)
                done += 1
                optimizer.steps += bool(optimizer.kinds)
                if stop.pending:
                    stop.check()
            if self.task.valid is not None:
                self.captured.run("validation", self._validate)
        finally:
            found = self.captured.losses.tolist()
            losses += found[:done]
            self.valid_loss = found[-1]
        if self.task.accuracy:
            *hits, valid_hits = self.captured.hits.tolist()
            width = 1 if self.network.loss.name == "cross_entropy" else self.network.sizes[1]
            self.accuracy = sum(hits) / (self.task.samples * width)
            if self.task.valid is not None:
                self.valid_accuracy = valid_hits / (len(self.task.valid[1]) * width)

    def validate(self) -> float:
        return self.valid_loss

    def publish(self) -> None:
        # Replays write behind autograd's back: a graph that saved a parameter must raise, not lie.
        torch.autograd.graph.increment_version(self.held)
        for state, own in self._states():
            own.copy_(state)

    def adopt(self) -> None:
        for state, own in self._states():
            state.copy_(own)

    def finish(self) -> None:
        self.publish()
        _kept[self.model] = self.captured
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
        gradients: dict[str, Tensor] = {}
        is_done = False  # the derivative of this unit's activation, with the product above
        for u in reversed(range(first, len(self.units))):
            product, (name, parameters), after, noise = self.units[u]
            layer = self.network.layer_names[after - 1]
            with named("backward", layer):
                if noise:
                    delta = ops.dropout(delta, values[u])
                elif name != "none" and not is_done:
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
                if self.updates_at_once:
                    found = gradients_of(product.trained, above, inputs[u])
                    gradients |= {product.prefix + name: gradient for name, gradient in found.items()}
                else:
                    decay = task.optimizer.weight_decay
                    descend(product.trained, above, inputs[u], product.w, product.b, task.lr, decay)
        if gradients:
            with named("update"):
                self._update(gradients)
        return outputs

    def _update(self, gradients: Mapping[str, Tensor]) -> None:
        """All parameters at once, by the numbers of this step, which the loss's op has counted."""
        optimizer, captured = self.task.optimizer, self.captured
        kinds = [dict(zip(self.trained, states, strict=True)) for states in captured.states]
        for decays in (True, False):
            names = [name for name in self.trained if optimizer.decays(name.rpartition(".")[2]) == decays]
            if names:
                params, grads, *states = (
                    [of_name[name] for name in names] for of_name in (self.trained, gradients, *kinds)
                )
                optimizer.update(params, grads, states, self.task.lr, decays, captured.rates, captured.step)

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
        y_pred, _ = deque(self._forward(x, None), maxlen=1).pop()
        self._loss(y_pred, y)  # counted as one more step
        return []

    def _forward(self, x: Tensor, first: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Each unit's output, and what the derivative of its activation is in terms of, from the unit ``first`` on.

        Of noise that is the noise. None is no training step: nothing is kept, and there is no noise.
        """
        for u, (product, activation, after, noise) in enumerate(self.units):
            name, parameters = activation
            of_input = activation.entry.of_input
            with named("forward", self.network.layer_names[after - 1]):
                if noise:
                    a = value = x
                    if first is not None:
                        value = noise_like(x, noise.p)
                        a = ops.dropout(x, value)
                elif product is None:
                    a = getattr(ops, name)(x, *parameters)
                    value = x if of_input else a
                elif of_input and first is not None and u >= first:
                    a, value = ops.dense_with_preactivation(x, product.w, product.b, name, parameters)
                else:
                    a = value = ops.dense(x, product.w, product.b, name, parameters)
            yield a, value
            x = a

    def _loss(self, y_pred: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        loss = self.network.loss
        op = getattr(ops, f"{loss.name}_step_")
        with named("loss"):
            if self.task.accuracy:
                hits = loss.hits(y_pred, loss.labels(y)).sum()
                self.captured.hits.index_copy_(0, self.captured.step.view(1), hits.view(1))  # before the step counts
            return op(y_pred, y, self.captured.losses, self.captured.step, **loss.arguments(weights))


def _units(network: Network) -> list[_Unit]:
    """A product takes the activation after it along, unless a layer shows what is between."""
    units: list[_Unit] = []
    none = Chosen("none")
    for i, stage in enumerate(network.stages):
        if isinstance(stage, Product):
            units.append(_Unit(stage, none, i + 1))
        elif isinstance(stage, Noise):
            units.append(_Unit(None, none, i + 1, stage))
        elif units and units[-1].product and units[-1].activation == none and i not in network.shown:
            units[-1] = _Unit(units[-1].product, stage, i + 1)
        else:
            units.append(_Unit(None, stage, i + 1))
    return units


def _identity(tensor: Tensor) -> Hashable:
    """All that a launch knows of a tensor."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg()


#: By model, what its last fit has captured.
_kept: "WeakKeyDictionary[object, Captured]" = WeakKeyDictionary()
