"""Whole steps beside torch's: all from the same start, in turns, and no ratio without the same losses."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from scratchcuda.profiler.clocks import quartiles
from scratchcuda.profiler.subjects import Subject

#: Steps that are compared before any is timed, and the largest relative difference of a loss that counts as the same.
#: So few steps add up some dozen roundings of sums of a thousand terms; of 16 bits each loss has three digits or fewer.
STEPS = 5
AGREEMENT = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}


@dataclass
class Step:
    """One training step, as who makes it takes it.

    Attributes:
        path: what served it.
        seconds: quartiles of its time, until the device has finished.
        difference: of its losses to those of torch eager, relative, the largest of the first steps.
        ratio: quartiles of torch eager's time divided by this one; None where the losses differ.
    """

    path: str
    seconds: list[float]
    difference: float
    ratio: list[float] | None


def race(subjects: Mapping[str, Subject], dtype: str, samples: int, least: float) -> dict[str, Step]:
    """Time steps of these subjects in turns; the first is what the others are compared with.

    Args:
        subjects: by name.
        dtype: that they compute in.
        samples: measurements of each.
        least: seconds that a measurement takes at least.
    """
    losses, counts = {}, {}
    for name, subject in subjects.items():
        subject.run(STEPS)  # compiles, captures, loads
        subject.reset()
        losses[name] = torch.tensor(subject.run(STEPS), dtype=torch.float64)
        subject.reset()
        seconds = _time(subject, STEPS)
        counts[name] = min(200, max(STEPS, int(least / seconds)))
        subject.reset()
        subject.run(counts[name])  # captures anew where the number of steps decides on addresses
    found: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for i in range(samples):
        for name in names[i % len(names) :] + names[: i % len(names)]:  # each comes after each
            subjects[name].reset()
            found[name].append(_time(subjects[name], counts[name]))
    first = names[0]
    steps = {}
    for name, subject in subjects.items():
        differences = ((losses[name] - losses[first]) / losses[first]).abs()
        difference = differences.max().item() if differences.isfinite().all() else float("inf")
        ratios = quartiles([a / b for a, b in zip(found[first], found[name], strict=True)])
        agrees = difference <= AGREEMENT[dtype]
        steps[name] = Step(subject.path, quartiles(found[name]), difference, ratios if agrees else None)
    return steps


def _time(subject: Subject, count: int) -> float:
    """Seconds of a step."""
    synchronize = torch.cuda.synchronize if subject.device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    subject.run(count)
    synchronize()
    return (time.perf_counter() - start) / count
