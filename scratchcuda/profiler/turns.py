"""Times of several who take turns, and what follows from them: quartiles, ratios, ties."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from scratchcuda.profiler.clocks import quartiles

#: What decides between a tie and a difference: the quartiles of the ratios, or the 95 % interval of their median.
SPREADS = ("quartiles", "interval")


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    seconds: float = math.inf,
    least: int = 1,
    before: Callable[[str], object] = lambda who: None,
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time each in every round, in an order that rotates, so that a change of the machine's speed meets all of them.

    Args:
        calls: by name.
        rounds: measurements of each.
        seconds: no round begins after these, but for the ``least`` ones.
        before: told before each measurement whose it is; untimed.
        after: ends each measurement, as by waiting for a device; timed.

    Returns:
        seconds by name and round.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for i in range(rounds):
        if i >= least and time.perf_counter() - begun > seconds:
            break
        for name in rotated(names, i):
            before(name)
            start = time.perf_counter()
            calls[name]()
            after()
            times[name].append(time.perf_counter() - start)
    return times


def rotated(names: Sequence[str], i: int) -> list[str]:
    """The order of round i: each comes after each."""
    shift = i % len(names)
    return [*names[shift:], *names[:shift]]


def median_interval(values: Sequence[float]) -> list[float]:
    """The median, between the ends of its 95 % confidence interval, which holds for any distribution.

    Of n values that many lie below the median as heads in n throws of a coin: n / 2, give or take 1.96 sqrt(n) / 2.
    """
    ordered, n = sorted(values), len(values)
    reach = math.ceil(0.98 * math.sqrt(n))
    return [ordered[max(0, n // 2 - reach)], statistics.median(ordered), ordered[min(n - 1, n // 2 + reach)]]


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, list[float]]:
    """How many times faster ours are, paired by round: lower end, median and upper end of both :data:`SPREADS`."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"quartiles": quartiles(found), "interval": median_interval(found)}


def is_tie(ratio: Sequence[float]) -> bool:
    """Whether the spread of a ratio encloses 1."""
    return ratio[0] <= 1 <= ratio[2]


def fastest(samples: Mapping[str, Sequence[float]], reference: str, spread: str) -> list[str]:
    """Who is the most times faster than the reference, and whoever ties with it."""
    best = max(samples, key=lambda who: ratio(samples[reference], samples[who])[spread][1])
    return [best, *(who for who in samples if who != best and is_tie(ratio(samples[who], samples[best])[spread]))]
