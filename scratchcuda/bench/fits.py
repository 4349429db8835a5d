"""Rows of whole fits and of steps: torch.nn and its peers on one workload, in turns."""

import contextlib
import functools
import gc
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from scratchcuda.bench.agreement import Judge
from scratchcuda.bench.memory import Peak
from scratchcuda.bench.other_peers import OTHERS
from scratchcuda.bench.peers import COMPILED, OF_TORCH, OURS, SCRATCH, TORCH, Losses, Peer, Runner
from scratchcuda.compare import Arrays, Pair, Workload
from scratchcuda.profiler.clocks import quartiles
from scratchcuda.profiler.turns import fastest, ratio, take_turns

PEERS: dict[str, Peer] = {TORCH: OF_TORCH[TORCH], SCRATCH: OURS[SCRATCH], **OF_TORCH, **OURS, **OTHERS}
#: Their names as --peers takes them, without spaces and commas.
KEYS = {re.sub(r"[^a-z.]+", "-", name.lower()): name for name in PEERS}

#: Seconds after which no further round of a row begins, if so many are done.
ROW_SECONDS, LEAST_ROUNDS = 10.0, 5


def resized(work: Workload, rows: int, valid: int, **changes: Any) -> Workload:
    """The workload on so many rows, its own repeated."""

    def data(seed: int) -> Arrays:
        sizes = rows, rows, valid, valid
        x, y, x_valid, y_valid = (
            np.resize(a, (size, *a.shape[1:])) for a, size in zip(work.data(seed), sizes, strict=True)
        )
        return x, y, x_valid, y_valid

    return replace(work, data=data, **changes)


def measure(
    work: Workload,
    dtype: str,
    device: torch.device,
    peers: Sequence[str],
    *,
    kind: str = "fit",
    validate: bool = False,
    rounds: int = 15,
    known: Mapping[str, Peer] = PEERS,
) -> dict[str, Any]:
    """Train with all peers in turns, and compare what they come to before there is a ratio.

    Args:
        work: the workload.
        dtype: "float64", "float32" or "bfloat16".
        device: of the tensors.
        peers: names; torch.nn is the first.
        kind: "fit", or "step" for times divided by the number of steps.
        validate: after each epoch.
        rounds: measurements of each, if they take no longer than :data:`ROW_SECONDS`.
        known: the peers by name.

    Returns:
        a row: what was measured by peer (times in seconds), and notes on those that take no part.

    Raises:
        ValueError: if the training moves the loss too little to compare.
        Exception: whatever torch.nn or scratchcuda raise; others get a note.
    """
    torch._dynamo.reset()  # what earlier rows have compiled
    gc.collect()  # and what they have left
    work = replace(work, data=functools.cache(work.data))
    pairs = {peer: Pair(work, device, getattr(torch, dtype), seed=0) for peer in peers}
    first = next(iter(pairs.values()))
    judge = Judge(work, first.start, first.x, first.y, dtype)
    runners: dict[str, Runner] = {}
    rows: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    errors: dict[str, str] = {}
    for peer, pair in pairs.items():
        try:
            runners[peer], rows[peer] = _first_use(known[peer], pair, work, validate)
        except NotImplementedError as error:
            notes[peer] = str(error)
        except Exception as error:
            if peer in (TORCH, SCRATCH):  # without which nothing is compared
                raise
            notes[peer] = f"{type(error).__name__}: {error}".splitlines()[0]
            errors[peer] = traceback.format_exc()
    losses: dict[str, Losses] = {}
    busy = dict.fromkeys(runners, 0.0)

    def call(peer: str) -> None:
        start = time.process_time()
        losses[peer] = runners[peer].run()
        busy[peer] += time.process_time() - start

    times = take_turns(
        {peer: functools.partial(call, peer) for peer in runners},
        rounds,
        seconds=ROW_SECONDS,
        least=LEAST_ROUNDS,
        before=lambda peer: _begin(pairs[peer]),
        after=lambda: _wait(device),
    )
    steps = work.epochs * -(-len(first.y) // work.batch_size)
    judge.witness(losses[TORCH], runners[TORCH].parameters())
    for peer, runner in runners.items():
        samples = [seconds / (steps if kind == "step" else 1) for seconds in times[peer]]
        difference = judge.difference(losses[peer], runner.parameters())
        row = rows[peer]
        row["cores"] = busy[peer] / sum(times[peer])  # one, if threads are held to one as they should be
        row |= {"seconds": quartiles(samples), "samples": samples, "difference": difference} | runner.path()
        row["agrees"] = judge.agrees(difference)
        if row["agrees"]:
            row["ratio"] = ratio(times[TORCH], times[peer])
    agreeing = {peer: times[peer] for peer, row in rows.items() if row["agrees"]}
    return {
        "kind": kind,
        "title": work.title,
        "dtype": dtype,
        "validation": validate,
        "epochs": work.epochs,
        "batch size": work.batch_size,
        "steps": steps,
        "loss": [judge.before, judge.after],
        "spread": "quartiles",
        "peers": rows,
        "fastest": fastest(agreeing, TORCH, "quartiles"),
        "notes": notes,
        "errors": errors,
    }


def _begin(pair: Pair) -> None:
    pair.reset()
    _wait(pair.x.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _first_use(peer: Peer, pair: Pair, work: Workload, validate: bool) -> tuple[Runner, dict[str, Any]]:
    """The peer ready to run, and what it took from nothing to the end of its first fit."""
    _begin(pair)
    with _nothing_compiled(peer), Peak(pair.x.device) as peak:
        start = time.perf_counter()
        runner = peer(pair, work, validate)
        runner.run()
        _wait(pair.x.device)
        seconds = time.perf_counter() - start
    return runner, {"first use": seconds, "peak bytes": peak.bytes}


@contextlib.contextmanager
def _nothing_compiled(peer: Peer) -> Iterator[None]:
    """For a peer that compiles: without what inductor keeps on disk, and with room for all that a row compiles."""
    if peer not in COMPILED.values():
        yield
        return
    from torch._inductor.utils import fresh_cache

    # Code is shared by the modes, each batch size compiles it anew, and past the limit it would silently run eagerly.
    with fresh_cache(), torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
