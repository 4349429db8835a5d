"""Each op of scratchcuda.ops under measurement: its least work, torch's way to do the same, and the clocks."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from scratchcuda import ops, tensor_ops
from scratchcuda.compare import device_name

# So large that an update left out would show; MEAN is a reduction of torch's losses.
LR, MOMENTUM, MEAN = 0.5, 0.9, 1

#: Largest relative difference, ||ours - torch's|| / ||torch's||: of some thousand roundings of both signs. In bfloat16
#: torch rounds log-probabilities of about -10 to multiples of 1/16 before it takes their exponentials.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 4e-2}

#: By dimensions: n elements; m rows of c; products of x (m, k) and w (k, n). The last is measured in all dtypes.
SIZES: dict[str, list[tuple[int, ...]]] = {
    "n": [(1 << 12,), (1 << 16,), (1 << 20,), (1 << 24,), (1 << 27,)],
    "mc": [(65536, 10), (8192, 1024), (1024, 32768)],
    "mkn": [(333, 32, 32), (512, 1024, 1024), (65536, 64, 10), (4096, 4096, 4096)],
}
#: Less than 8 elements: of more in bfloat16 torch's fused SGD leaves some out on the CPU (pytorch issue 191763).
DRY_SIZES: dict[str, list[tuple[int, ...]]] = {"n": [(3,), (7,)], "mc": [(6, 10)], "mkn": [(9, 8, 5)]}


@dataclass(frozen=True)
class Kernel:
    """One op, or one use of it. Tensors are named by their dimensions; i is class indices (m,), o an order of all rows
    (m,), p probabilities (m, c).

    Attributes:
        dims: of its shape, a key of :data:`SIZES`.
        arguments: its tensors.
        moved: what it reads and writes at least; "n n" twice as much as "n".
        operations: additions, products and functions by the product of all dims.
        launches: of kernels, by shape, as csrc/kernels decides.
        ours, torchs: functions of the arguments that return what they have made or written; None is the op itself,
            and its twin, which is made of torch's functions.
    """

    dims: str
    arguments: str
    moved: str
    operations: int
    launches: Callable[..., int] = lambda *shape: 1
    ours: Callable | None = None
    torchs: Callable | None = None

    def sizes(self, tensor: str, shape: tuple[int, ...]) -> list[int]:
        of = dict(zip(self.dims, shape, strict=True))
        return [of[dim] for dim in {"i": "m", "o": "m", "p": "mc"}.get(tensor, tensor)]

    def bytes(self, itemsize: int, shape: tuple[int, ...]) -> int:
        tensors = self.moved.split()
        return sum(math.prod(self.sizes(tensor, shape)) * (8 if tensor in "io" else itemsize) for tensor in tensors)

    def make(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
        """Random arguments."""
        made = []
        for tensor in self.arguments.split():
            sizes = self.sizes(tensor, shape)
            if tensor in "io":
                made.append(torch.randint(shape[1], sizes, device=device) if tensor == "i" else torch.randperm(*sizes))
                made[-1] = made[-1].to(device)
                continue
            values = torch.randn(sizes, dtype=dtype, device=device)
            made.append(values.softmax(1) if tensor == "p" else values)
        return made


def torch_mse(p, t):
    loss = functional.mse_loss(p, t)
    return loss, torch.ops.aten.mse_loss_backward(torch.ones_like(loss), p, t, MEAN)


def sgd(p, g, *m):
    ops.sgd_update_([p], [g], LR, momentum_buffers=m, momentum=MOMENTUM if m else 0.0)
    return p, *m


def torch_sgd(p, g, *m):
    options = {"weight_decay": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
    torch._fused_sgd_([p], [g], list(m), lr=LR, momentum=MOMENTUM if m else 0.0, **options)
    return p, *m


def update(delta, x, w, b):
    ops.dense_update_(delta, x, w, b, LR)
    return w, b


def torch_update(delta, x, w, b):
    return w.addmm_(x.mT, delta, alpha=-LR), b.add_(delta.sum(0), alpha=-LR)


def take(x, y, order, x_batch, y_batch):
    ops.take_batch_(x, y, order, first_step(x.device), len(x), x_batch, y_batch)
    return x_batch, y_batch


@functools.cache
def first_step(device):
    return torch.zeros((), dtype=torch.int64, device=device)


def torch_take(x, y, order, x_batch, y_batch):
    return torch.index_select(x, 0, order, out=x_batch), torch.index_select(y, 0, order, out=y_batch)


def dense(activation):
    ways = (partial(way.dense, activation=activation) for way in (ops, tensor_ops))
    return Kernel("mkn", "mk kn n", "mk kn n mn", 2, lambda *shape: 1, *ways)


def mse_launches(n):
    return 1 + (n > 8192)


def cross_entropy_launches(m, c):
    return 1 + (m > (32 if c <= 512 else 1))


def gradient_launches(m, k, n):
    """Two where the rows of a batch are shared out among blocks: if it has enough, and the product few blocks."""
    return 1 + (m >= 1024 and math.ceil(k / 32) * math.ceil(n / 32) <= 64)


input_gradient = (partial(way.dense_backward_input, activation="relu") for way in (ops, tensor_ops))
KERNELS = {
    "dense none": dense("none"),
    "dense relu": dense("relu"),
    "dense_backward_input": Kernel("mkn", "mn kn", "mn kn mk", 2),
    "dense_backward_input relu": Kernel("mkn", "mn kn mk", "mn kn mk mk", 2, lambda *shape: 1, *input_gradient),
    "dense_backward_weights": Kernel("mkn", "mn mk", "mn mk kn n", 2, gradient_launches),
    "dense_update_": Kernel("mkn", "mn mk kn n", "mn mk kn kn n n", 2, gradient_launches, update, torch_update),
    "relu": Kernel("n", "n", "n n", 1),
    "sigmoid": Kernel("n", "n", "n n", 4),
    "tanh": Kernel("n", "n", "n n", 1),
    "relu_backward": Kernel("n", "n n", "n n n", 1),
    "sigmoid_backward": Kernel("n", "n n", "n n n", 3),
    "tanh_backward": Kernel("n", "n n", "n n n", 3),
    "mse": Kernel("n", "n n", "n n n", 4, mse_launches, torchs=torch_mse),
    "sgd_update_": Kernel("n", "n n", "n n n", 2, ours=sgd, torchs=torch_sgd),
    "sgd_update_ momentum": Kernel("n", "n n n", "n n n n n", 4, ours=sgd, torchs=torch_sgd),
    "softmax": Kernel("mc", "mc", "mc mc", 5),
    "softmax_backward": Kernel("mc", "mc mc", "mc mc mc", 4),
    "cross_entropy classes": Kernel("mc", "mc i", "mc i mc", 8, cross_entropy_launches),
    "take_batch_": Kernel("mc", "mc o o mc o", "mc mc o o o", 0, ours=take, torchs=torch_take),
    "cross_entropy rows": Kernel("mc", "mc p", "mc p mc", 10, cross_entropy_launches),
}


class HostClock:
    """Times calls on the CPU, to exercise what measures a GPU."""

    device = "cpu"
    name = device_name(torch.device("cpu"))

    def warm(self, call) -> list[float]:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    cold = warm


class DeviceClock:
    """Times calls on a GPU by its own events."""

    device = "cuda"
    repeats = 15

    def __init__(self):
        facts = torch.cuda.get_device_properties(0)
        self.name = facts.name
        # Larger than the cache, and long enough to write that the host enqueues any call meanwhile.
        self.flush = torch.empty(max(512 << 20, 4 * facts.L2_cache_size), dtype=torch.uint8, device="cuda")
        self.stream = torch.cuda.Stream()

    def warm(self, call) -> list[float]:
        """Seconds of a call among many in one CUDA graph, so that the host has no part in it."""
        (first,) = self._spans([call], warm_up=3)
        count = min(100, max(1, int(2e-3 / max(first, 1e-6))))

        def calls():
            for _ in range(count):
                call()

        graph = capture(calls, self.stream)
        return [span / count for span in self._spans([graph.replay] * self.repeats)]

    def cold(self, call) -> list[float]:
        """Seconds of a call after a write that has displaced all else from the cache; nothing waits between them."""
        return self._spans([call] * self.repeats, before=lambda: self.flush.fill_(1))

    def _spans(self, calls, warm_up=1, before=lambda: None) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
        for _ in range(warm_up):
            calls[0]()
        for call, (begin, end) in zip(calls, events, strict=True):
            before()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def capture(call, stream) -> torch.cuda.CUDAGraph:
    """What `call` launches as a CUDA graph, after a warm-up on the stream that it is captured from.

    Whoever replays it keeps alive what the call reads and writes.
    """
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    # The outer context brings the stream back even where the end of a failed capture raises.
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        # Other threads, such as JAX's, may do as they like meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def quartiles(samples) -> list[float]:
    return statistics.quantiles(samples, n=4, method="inclusive")


def ceilings(clock, dry: bool) -> dict:
    """What the device can do, as torch does it: a copy, counting bytes read and written, products, and launches."""
    size, n = (1 << 10, 16) if dry else (1 << 30, 4096)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=clock.device)
    target, one = torch.empty_like(source), torch.zeros(1, device=clock.device)
    rates = {}
    for dtype in TOLERANCE:
        a, b = (torch.randn(n, n, device=clock.device, dtype=getattr(torch, dtype)) for _ in range(2))
        rates[dtype] = 2 * n**3 / statistics.median(clock.warm(partial(torch.mm, a, b)))
    waits = []
    for _ in range(20):
        start = time.perf_counter()
        one.add_(1).item()
        waits.append(time.perf_counter() - start)
    return {
        "bytes a second of a copy": 2 * size / statistics.median(clock.warm(lambda: target.copy_(source))),
        "operations a second of a product": rates,
        "seconds of a launch": statistics.median(clock.warm(lambda: one.add_(1))),
        "seconds of a launch, cold": statistics.median(clock.cold(lambda: one.add_(1))),
        "seconds of a launch and a wait, by the host": statistics.median(waits),
    }


def measure(name: str, shape: tuple[int, ...], dtype: str, clock, ceiling: dict) -> dict:
    """Compare ours with torch's result, then time both, warm and cold. Without equal results there are no times."""
    kernel, op, kind = KERNELS[name], name.split()[0], getattr(torch, dtype)
    arguments = kernel.make(shape, kind, clock.device)
    ways = {"ours": kernel.ours or getattr(ops, op), "torch": kernel.torchs or getattr(tensor_ops, op)}
    results = [way(*(argument.clone() for argument in arguments)) for way in ways.values()]
    found = zip(*([result] if isinstance(result, torch.Tensor) else result for result in results), strict=True)
    difference = max(((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)).item() for a, b in found)
    moved, operations = kernel.bytes(kind.itemsize, shape), kernel.operations * math.prod(shape)
    row = {"kernel": name, "shape": shape, "dtype": dtype, "difference": difference}
    row |= {"bytes": moved, "operations": operations, "launches": kernel.launches(*shape)}
    if not difference <= TOLERANCE[dtype]:
        return row | {"error": f"differs from torch by {difference:.0e}"}
    del results
    for who, way in ways.items():
        call = partial(way, *arguments)
        row[who] = {"warm": quartiles(clock.warm(call)), "cold": quartiles(clock.cold(call))}
    seconds = row["ours"]["warm"][1]
    row |= {"bytes a second": moved / seconds, "operations a second": operations / seconds}
    row["of copy"] = row["bytes a second"] / ceiling["bytes a second of a copy"]
    return row | {"of cuBLAS": row["operations a second"] / ceiling["operations a second of a product"][dtype]}
