"""Whole steps beside torch's: all from the same start, in turns, and no ratio without the same losses."""

from collections.abc import Mapping
from functools import partial
from math import isfinite

import torch

from scratchcuda.profiler.clocks import nothing, quartiles
from scratchcuda.profiler.findings import Step
from scratchcuda.profiler.subjects import Subject
from scratchcuda.profiler.turns import ratio, take_turns

#: Steps that are compared before any is timed, and the largest relative difference of a loss, or of an op's result,
#: that counts as the same: so few steps add up some dozen roundings of sums of a thousand terms; of 16 bits each loss
#: has three digits or fewer.
STEPS = 5
AGREEMENT = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}


def race(
    subjects: Mapping[str, Subject], dtype: str, samples: int, least: float
) -> tuple[dict[str, Step], dict[str, str]]:
    """Time steps of these subjects in turns; the first is what the others are compared with.

    Args:
        subjects: by name.
        dtype: that they compute in.
        samples: measurements of each.
        least: seconds that a measurement takes at least.

    Returns:
        steps by name; and of those that cannot run, as where a compiler fails, why.
    """
    losses, calls, counts, failed = {}, {}, {}, {}
    first = next(iter(subjects))
    wait = torch.cuda.synchronize if subjects[first].device.type == "cuda" else nothing
    for name, subject in subjects.items():
        try:
            subject.run(STEPS)  # compiles, captures, loads
        except Exception as error:
            if name == first:
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
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
    steps = {}
    for name, times in found.items():
        difference = ((losses[name] - losses[first]).abs().max() / losses[first].abs().max().clamp_min(1e-300)).item()
        agrees = difference <= AGREEMENT.get(dtype, 0)  # NaN never does
        quotient = ratio(found[first], times)["quartiles"] if agrees else None
        steps[name] = Step(
            subjects[name].path, quartiles(times), difference if isfinite(difference) else None, quotient
        )
    return steps, failed
