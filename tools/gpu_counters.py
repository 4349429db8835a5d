"""The launches whose counters Nsight Compute reads for make gpu-check.

``python tools/gpu_counters.py [cuda|cpu]``; on a CPU small, on the emulator.
"""

import sys
from functools import partial

import torch

from scratchcuda import ops, use_backend

device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
n, rows, columns = (4096, 1024, 32768) if device == "cuda" else (64, 4, 8200)
rand = partial(torch.randn, device=device)
double = {"dtype": torch.float64}

a = rand(rows, columns).softmax(1)
launches = [
    # the large product in float32
    partial(ops.dense, rand(n, n), rand(n, n), rand(n)),
    # the small gradient in float64, of the documents' MLP, with its update
    partial(ops.dense_update_, *(rand(*shape, **double) for shape in ((333, 32), (333, 32), (32, 32), (32,))), 0.01),
    # the backward of a softmax over long rows
    partial(ops.softmax_backward, rand(rows, columns), a),
]
use_backend("kernels" if device == "cuda" else "emulator")
for launch in launches:
    launch()  # loads its kernel
if device == "cuda":
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
for launch in launches:
    launch()
if device == "cuda":
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
