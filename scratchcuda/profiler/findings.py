"""What a profile holds, as data: all that was measured, and the same as JSON and back."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

#: What :meth:`Profile.save` writes.
FILES = ("profile.json", "trace.json", "roofline.png", "step.png", "report.html")


@dataclass(frozen=True)
class Ceilings:
    """The limits that a call is compared with.

    Attributes:
        device: the processor or card.
        conditions: what else they depend on: torch's version, threads, TF32.
        bandwidth: of a large copy, bytes read and written a second.
        flops: of a large matrix product by torch (on a GPU: cuBLAS), FLOPs a second by dtype.
        launch: seconds of the smallest call: on a GPU of a kernel among others in a CUDA graph, on a CPU of a function
            of torch on one element.
    """

    device: str
    conditions: dict[str, str]
    bandwidth: float
    flops: dict[str, float]
    launch: float

    def floor(self, moved: int, flops: int, dtype: str, launches: int = 1) -> tuple[float, str]:
        """The least seconds for so much work, and what sets them: "memory", "arithmetic" or "launch latency"."""
        seconds = {
            "memory": moved / self.bandwidth,
            "arithmetic": flops / self.flops.get(dtype, self.flops["float32"]),
            "launch latency": launches * self.launch,
        }
        limit = max(seconds, key=lambda name: seconds[name])
        return seconds[limit], limit


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        name: of the kernel.
        grid, block: their sizes.
        registers: of a thread; None of the emulator's, and of what is no kernel, such as a copy.
        shared_bytes: of a block.
        occupancy: share of a multiprocessor's threads that can run together, from the binary of our kernels; None of
            others.
    """

    name: str
    grid: list[int]
    block: list[int]
    registers: int | None
    shared_bytes: int
    occupancy: float | None


@dataclass
class Row:
    """One op of a layer in a phase. Times are seconds of a call, as first quartile, median and third quartile.

    Attributes:
        phase, layer, op, calls: as of the recorded call; calls in a step.
        shapes: of its tensors.
        dtype: that it computes in.
        warm: its data may be in a cache.
        cold: nothing is in the caches.
        host: that the host takes to enqueue it; None on a CPU, where that is part of the time.
        flops, bytes: the least that it has to do.
        kernels: that it launches.
        floor: the least seconds by the measured ceilings.
        limit: what sets the floor: "memory", "arithmetic" or "launch latency".
        error: ||result - oracle|| / ||oracle||, in float64; None where torch's float64 is its own oracle, or where it
            draws random numbers.
        eager, compiled: the time of torch's functions for the same work, eager and compiled, divided by this one, warm;
            None where this is torch's function, and where the error says that the results differ.
    """

    phase: str
    layer: str
    op: str
    calls: int
    shapes: list[list[int]]
    dtype: str
    warm: list[float]
    cold: list[float]
    host: list[float] | None
    flops: int
    bytes: int
    kernels: list[Kernel]
    floor: float
    limit: str
    error: float | None
    eager: list[float] | None
    compiled: list[float] | None

    @property
    def seconds(self) -> float:
        """Of all its calls in a step, warm."""
        return self.calls * self.warm[1]

    @property
    def bandwidth(self) -> float:
        """Bytes a second that it has moved at least. Of the cold time: in a cache it would not be memory's."""
        return self.bytes / self.cold[1]

    @property
    def rate(self) -> float:
        """FLOPs a second, of the cold time."""
        return self.flops / self.cold[1]

    @property
    def of_floor(self) -> float:
        """The floor as a share of the cold time."""
        return self.floor / self.cold[1]


@dataclass
class Step:
    """One training step, as who makes it takes it.

    Attributes:
        path: what served it.
        seconds: quartiles of its time, until the device has finished.
        difference: of its losses to those of the first, the largest of some steps, relative to the largest loss; None
            if they are not finite.
        ratio: quartiles of the first one's time divided by this one; None where the losses differ.
    """

    path: str
    seconds: list[float]
    difference: float | None
    ratio: list[float] | None


@dataclass
class Findings:
    """What :func:`profile` found. Times are seconds.

    Attributes:
        title: of what was profiled.
        dtype: of its parameters.
        path: what served the step: a path of Model.fit, or "eager".
        conditions: the device, versions and settings.
        ceilings: what the device can do at most.
        rows: one for each op of each layer in each phase, in order of time.
        steps: whole steps of this and its peers, by name.
        trace: a step in Chrome's trace format.
        notices: what is missing, and why.
    """

    title: str
    dtype: str
    path: str
    conditions: dict[str, Any]
    ceilings: Ceilings
    rows: list[Row]
    steps: dict[str, Step]
    trace: dict[str, Any]
    notices: list[str]

    @property
    def in_ops(self) -> float:
        """Seconds of a step within its ops, warm; what remains of the step is overhead between them."""
        return sum(row.seconds for row in self.rows)

    def shares(self, row: Row) -> tuple[float, float | None]:
        """A row's bandwidth as a share of a copy's, and its rate of a large product's, if there is one in its dtype."""
        most = self.ceilings.flops.get(row.dtype)
        return row.bandwidth / self.ceilings.bandwidth, most and row.rate / most

    def as_dict(self) -> dict[str, Any]:
        """All but the trace, for JSON, with rates and shares."""
        found = asdict(replace(self, trace={}))
        del found["trace"]
        for row, of in zip(self.rows, found["rows"], strict=True):
            of |= {"bytes a second": row.bandwidth, "FLOPs a second": row.rate, "of floor": row.of_floor}
            of["of copy"], of["of products"] = self.shares(row)
        return found | {"seconds in ops": self.in_ops}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """What :meth:`as_dict` has made; the trace is not in it."""
        rows = [
            Row(
                **{name: of[name] for name in Row.__dataclass_fields__ if name != "kernels"},
                kernels=[Kernel(**kernel) for kernel in of["kernels"]],
            )
            for of in found["rows"]
        ]
        steps = {name: Step(**step) for name, step in found["steps"].items()}
        names = ("title", "dtype", "path", "conditions", "notices")
        limits = Ceilings(**found["ceilings"])
        return cls(**{name: found[name] for name in names}, ceilings=limits, rows=rows, steps=steps, trace={})
