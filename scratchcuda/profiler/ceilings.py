"""What a device can do at most, as torch does it: measured once on this very device, then kept in the user's cache."""

import json
import statistics
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch

from scratchcuda._build import library
from scratchcuda.profiler.clocks import Clock
from scratchcuda.profiler.findings import Ceilings

DTYPES = ("float64", "float32", "bfloat16", "float16")


def measure(clock: Clock, copied: int | None = None, n: int | None = None) -> Ceilings:
    """Measure the ceilings of the clock's device.

    Args:
        clock: of that device.
        copied: bytes of the large copy; 1 GiB on a GPU, 256 MiB on a CPU if None.
        n: rows and columns of the large products; 4096 on a GPU, 1024 on a CPU if None.
    """
    is_gpu = clock.device.type == "cuda"
    copied = copied or (1 << 30 if is_gpu else 256 << 20)
    n = n or (4096 if is_gpu else 1024)
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=clock.device)
    target, one = torch.empty_like(source), torch.zeros(1, device=clock.device)
    # Out of a cache a copy would be faster than memory is.
    copy = statistics.median((clock.warm if is_gpu else clock.cold)(partial(target.copy_, source)))
    flops = {}
    for dtype in DTYPES:
        a, b = (torch.randn(n, n, device=clock.device, dtype=getattr(torch, dtype)) for _ in range(2))
        flops[dtype] = 2 * n**3 / min(clock.warm(partial(torch.mm, a, b)))
    launch = statistics.median(clock.warm(partial(one.add_, 1)))
    return Ceilings(clock.name, _conditions(clock), 2 * copied / copy, flops, launch)


def of(clock: Clock) -> Ceilings:
    """The ceilings of the clock's device, from the cache if they were measured under the same conditions."""
    key = repr((clock.name, sorted(_conditions(clock).items())))
    file = library.cache() / f"ceilings-{sha256(key.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):  # none there, or not whole
        return Ceilings(**json.loads(file.read_text()))
    found = measure(clock)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{file}.part")
    part.write_text(json.dumps(asdict(found), indent=1) + "\n")
    part.replace(file)  # whole, or not at all
    return found


def _conditions(clock: Clock) -> dict[str, str]:
    if clock.device.type == "cuda":
        return {"torch": torch.__version__, "float32 products": torch.get_float32_matmul_precision()}
    return {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
