"""What the graph plan captures: fixed memory, and the CUDA Graphs of the launches that work on it."""

import os
from collections.abc import Callable, Hashable
from itertools import chain

import torch
from torch import Tensor

from scratchcuda.engine.network import Task


class Captured:
    """Fixed memory, and the graphs of the launches that work on it: what may outlive a fit.

    Attributes:
        order: numbers of the samples in the order of this epoch (samples,).
        step: the number of the step within the epoch ().
        losses: of each step, then of the validation (steps + 1,).
        hits: the same of what is right.
        x, y, weights: the batch, and the weights of its samples.
        states: for each kind of the optimizer's state a list, of that of each trained parameter.
        rates: what an update of all parameters at once takes from the device, by step.
    """

    def __init__(self, key: Hashable, task: Task, trained: list[Tensor], updates_at_once: bool):
        self.key, x, y, batch_size = key, task.x, task.y, task.batch_size
        with torch.inference_mode(False):  # or they could not be written in another fit
            self.order = torch.empty(task.samples, dtype=torch.int64, device=x.device)
            self.step = torch.zeros((), dtype=torch.int64, device=x.device)
            self.losses = torch.empty(-(-task.samples // batch_size) + 1, dtype=x.dtype, device=x.device)
            self.hits = torch.zeros(len(self.losses) if task.accuracy else 0, dtype=torch.int64, device=x.device)
            weights = x.new_empty(0) if task.sample_weights is None else task.sample_weights
            self.x, self.y, self.weights = (
                data.new_empty(min(batch_size, len(data)), *data.shape[1:]) for data in (x, y, weights)
            )
            self.states = [[torch.zeros_like(p, requires_grad=False) for p in trained] for _ in task.optimizer.kinds]
            steps = len(self.losses) - 1
            self.rates = task.optimizer.rates(0.0, steps).to(x.device) if updates_at_once else x.new_empty(0)
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
        tensors = self.order, self.step, self.losses, self.hits, self.x, self.y, self.weights, self.rates
        fixed = sum(tensor.nbytes for tensor in (*tensors, *chain.from_iterable(self.states)))
        if self.pool is None:
            return fixed
        segments = torch.cuda.memory_snapshot(self.pool, include_traces=False)
        return fixed + sum(segment["total_size"] for segment in segments)
