"""CONTRIBUTING.md's steps, walked: what they say is enough."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.backends("emulator"), pytest.mark.slow]  # it compiles all kernels anew
ROOT = Path(__file__).parent.parent

TRAIN = """
import copy
import torch, scratchcuda
from scratchcuda import nn, ops

assert scratchcuda.__file__.startswith({copy!r}), scratchcuda.__file__
torch.manual_seed(0)
x, y = torch.randn(40, 6).double(), torch.randn(40, 3).double()

def same(ours, theirs):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)  # some hundred roundings of sums of about 1

for backend in ("tensor", "emulator"):
    scratchcuda.use_backend(backend)
    layers = torch.nn.Linear(6, 9), torch.nn.Mish(), torch.nn.Linear(9, 3), torch.nn.Mish()
    theirs = torch.nn.Sequential(*layers).double()
    start = copy.deepcopy(theirs)
    converted, model, by_layers = copy.deepcopy(start), *(scratchcuda.Model.from_torch(start) for _ in range(2))
    assert nn.convert(converted, fuse=True).fused == {{"0": "mish", "2": "mish"}}
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (theirs, converted)]
    for epoch in range(4):
        for a, b in zip(x.split(16), y.split(16)):
            for net, optimizer in zip((theirs, converted), optimizers):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(net(a), b).backward()
                optimizer.step()
    path = model.fit(x, y, 4, 0.1, 16, verbose=False).path
    assert path == {{"tensor": "tensor plan", "emulator": "graph plan"}}[backend], path
    by_layers.fit(x, y, 4, 0.1, 16, plan=False, verbose=False)
    for net in (converted, model.to_torch(), by_layers.to_torch()):
        assert type(net[1]).__name__ == "Mish"
        same(net.parameters(), theirs.parameters())
    assert (theirs[0].weight - start[0].weight).norm() > 1e-3 * start[0].weight.norm()
assert type(nn.Mish()).__module__ == "scratchcuda.nn.layers" and "mish" in ops.ACTIVATIONS
"""


def test_an_activation_is_added_in_the_documented_places_alone(tmp_path):
    guide = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add an activation")[2].partition("\n## ")[0]
    entry, struct, layer = re.findall(r"```(?:python|cpp)\n(.*?)```", guide, re.DOTALL)
    for folder in ("scratchcuda", "csrc", "tests", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "_C.*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    name = re.search(r"struct (\w+)", struct)[1]
    for path, old, new in (
        ("scratchcuda/ops/activations.py", r"\Z", f"\n\n{entry}"),
        ("csrc/kernels/activations.cuh", r"(?=using Activations = List<)", f"{struct}\n"),
        ("csrc/kernels/activations.cuh", r"(?<=using Activations = List<)", f"{name}, "),
        ("scratchcuda/engine/activations.py", r"(?=@replaceable\nclass Softmax)", f"{layer}\n\n"),
    ):
        text, count = re.subn(old, lambda _, new=new: new, (tmp_path / path).read_text())
        assert count == 1, path
        (tmp_path / path).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SCRATCHCUDA_CACHE": str(tmp_path / "cache")}
    environment["SCRATCHCUDA_EMULATOR"] = "debug"  # which is compiled soonest
    proofs = ["tests/ops", "tests/nn/test_functional.py", "tests/test_exchange.py"]
    options = ["-q", "-p", "no:cacheprovider", "--backend", "tensor,emulator", "-k", name.lower()]
    for command in (["-c", TRAIN.format(copy=str(tmp_path))], ["-m", "pytest", *options, *proofs]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
