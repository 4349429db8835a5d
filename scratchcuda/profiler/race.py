"""Whole steps beside torch's: all from the same start, in turns, and no ratio without the same losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from scratchcuda.profiler.clocks import nothing, quartiles
from scratchcuda.profiler.subjects import Subject
from scratchcuda.profiler.turns import ratio, take_turns

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
    losses, calls, counts = {}, {}, {}
    wait = torch.cuda.synchronize if next(iter(subjects.values())).device.type == "cuda" else nothing
    for name, subject in subjects.items():
        subject.run(STEPS)  # compiles, captures, loads
        subject.reset()
        losses[name] = torch.tensor(subject.run(STEPS), dtype=torch.float64)
        subject.reset()
        (seconds,) = take_turns({name: partial(subject.run, STEPS)}, 1, after=wait)[name]
        counts[name] = min(200, max(STEPS, int(least * STEPS / seconds)))
        calls[name] = partial(subject.run, counts[name])
        calls[name]()  # captures anew: the number of steps decides on addresses

    def start(name: str) -> None:
        subjects[name].reset()
        wait()

    found = take_turns(calls, samples, before=start, after=wait)
    found = {name: [seconds / counts[name] for seconds in times] for name, times in found.items()}
    first = next(iter(subjects))
    steps = {}
    for name, subject in subjects.items():
        differences = ((losses[name] - losses[first]) / losses[first]).abs()
        difference = differences.max().item() if differences.isfinite().all() else float("inf")
        agrees = difference <= AGREEMENT[dtype]
        quotient = ratio(found[first], found[name])["quartiles"] if agrees else None
        steps[name] = Step(subject.path, quartiles(found[name]), difference, quotient)
    return steps
