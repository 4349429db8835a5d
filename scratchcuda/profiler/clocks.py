"""Times of calls, cold and warm: on a GPU by its own events, on the CPU by the host's clock."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from scratchcuda.conditions import device_name

Call = Callable[[], object]


def nothing() -> None:
    pass


class Clock(Protocol):
    """Times calls on one device. All times are seconds; a method returns a sample for each measurement.

    Attributes:
        device: whose calls it times.
        name: of that processor or card.
    """

    device: torch.device
    name: str

    def warm(self, call: Call, before: Call = ...) -> list[float]:
        """Of a call among many, so that what it reads may be in a cache; ``before`` each measurement, untimed."""

    def cold(self, call: Call, other: Call = ...) -> list[float]:
        """Of a call after a write that has displaced all else from the caches.

        ``other`` is the same call on other data: on a CPU it brings back the program, and leaves the data where it is.
        """

    def host(self, call: Call) -> list[float] | None:
        """That the host takes to enqueue a call, apart from the device; None where they are the same."""


def clock_of(device: torch.device | str, samples: int = 15) -> Clock:
    """The clock for calls on this device.

    Args:
        device: "cpu" or a CUDA device.
        samples: measurements of a call.
    """
    device = torch.device(device)
    return DeviceClock(device, samples) if device.type == "cuda" else HostClock(samples)


def quartiles(samples: Sequence[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3


class HostClock:
    """Times calls on the CPU."""

    def __init__(self, samples: int = 15, least: float = 2e-3, flushed: int | None = None):
        """
        Args:
            samples: measurements of a call.
            least: seconds that a measurement of warm calls takes at least, or else it times the clock.
            flushed: bytes to write before a cold call; twice the largest cache if None, at most 512 MiB.
        """
        self.device, self.name = torch.device("cpu"), device_name(torch.device("cpu"))
        self.samples, self.least = samples, least
        if flushed is None:
            flushed = min(512 << 20, 2 * _cache_bytes())
        self.flush = torch.empty(flushed, dtype=torch.uint8)

    def warm(self, call: Call, before: Call = nothing) -> list[float]:
        call()  # which may have something to prepare
        count, seconds = 1, self._time(call, 1)
        while seconds < self.least:
            count = max(2 * count, int(1.2 * count * self.least / max(seconds, 1e-9)))
            seconds = self._time(call, count)
        found = []
        for _ in range(self.samples):
            before()
            found.append(self._time(call, count) / count)
        return found

    def cold(self, call: Call, other: Call = nothing) -> list[float]:
        call()
        found = []
        for _ in range(self.samples):
            self.flush.fill_(1)
            self._time(other, 1)  # brings back the clock as well
            found.append(self._time(call, 1))
        return found

    def host(self, call: Call) -> None:
        return None

    @staticmethod
    def _time(call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - start


def _cache_bytes() -> int:
    """Of the largest cache, as Linux tells; 64 MiB where it does not."""
    sizes = (path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=64 << 20)


class DeviceClock:
    """Times calls on a GPU by its own events."""

    def __init__(self, device: torch.device, samples: int = 15):
        facts = torch.cuda.get_device_properties(device)
        self.device, self.name, self.samples = device, facts.name, samples
        # Larger than the cache, and long enough to write that the host enqueues any call meanwhile.
        size = max(512 << 20, 4 * facts.L2_cache_size) // 4
        self.flush, self.clean = (torch.zeros(size, device=device) for _ in range(2))
        self.stream = torch.cuda.Stream(device)

    def warm(self, call: Call, before: Call = nothing) -> list[float]:
        """Many calls are one CUDA graph, so that the host has no part in it."""
        first = self._spans([call], warm_up=3)[0]
        count = min(100, max(1, int(2e-3 / max(first, 1e-6))))

        def calls() -> None:
            for _ in range(count):
                call()

        graph = capture(calls, self.stream)
        return [span / count for span in self._spans([graph.replay] * self.samples, before=before)]

    def cold(self, call: Call, other: Call = nothing) -> list[float]:
        """Nothing waits between the flush and the call."""

        def flush() -> None:
            self.flush.fill_(1)
            # What was written is in the cache still, and would go to memory at the call's expense: a read displaces it.
            self.clean.sum()

        return self._spans([call] * self.samples, before=flush)

    def host(self, call: Call) -> list[float]:
        found = []
        for _ in range(self.samples):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            for _ in range(20):  # a queue holds about a thousand launches before it makes the host wait
                call()
            found.append((time.perf_counter() - start) / 20)
        return found

    def _spans(self, calls: Sequence[Call], warm_up: int = 1, before: Call = nothing) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
        for _ in range(warm_up):
            calls[0]()
        for call, (begin, end) in zip(calls, events, strict=True):
            before()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def capture(call: Call, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """What a call launches as a CUDA graph, after a warm-up on the stream that it is captured from.

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
