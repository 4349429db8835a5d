"""Our layers and optimizer under torch's own engines: DDP, FSDP2, DTensors. Processes of gloo, on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from drop_in import DENSE, ops_run
from oracle import same
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import scratchcuda
from scratchcuda import nn, optim

pytestmark = pytest.mark.backends("tensor", "emulator")
EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Parameters after five whole batches in one process, on torch's own operations."""
    return trained(tmp_path_factory.mktemp("joined"), 1, "tensor")


def trained(folder, processes, backend, *options):
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", EXAMPLE]
    environment = os.environ | {"SCRATCHCUDA_BACKEND": backend, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["--steps=5", "--batch=32", f"--save={folder / 'state.pt'}", *options]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert "step 4, loss" in done.stdout, done.stderr
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.backends("emulator")
@pytest.mark.parametrize("options", [[], ["--shard"]], ids=["DDP", "FSDP2"])
def test_two_processes_train_as_one(options, joined, backend, tmp_path):
    state = trained(tmp_path, 2, backend, *options)
    assert list(state) == list(joined)
    for name, expected in joined.items():
        # Roundings of five steps, of a mean in two halves.
        torch.testing.assert_close(state[name], expected, rtol=1e-13, atol=1e-14)


@pytest.mark.backends("tensor")
def test_it_says_how_to_start_it():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torchrun --standalone --nproc-per-node 2 examples/distributed.py" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_kernels_serve_sharded_layers(mesh, backend):
    net = nn.Sequential(nn.Linear(5, 4, activation="tanh"), nn.Linear(4, 3)).double()
    plain = nn.Sequential(nn.Linear(5, 4, activation="tanh"), nn.Linear(4, 3)).double()
    plain.load_state_dict(net.state_dict())
    net = fully_shard(net, mesh=mesh)
    x = torch.randn(6, 5, dtype=torch.float64)

    def train(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]

    ours, served = ops_run(lambda: train(net, optim.SGD(net.parameters(), 0.01, momentum=0.9)))
    theirs = train(plain, torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9))
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)  # roundings of three steps
    assert served == (set() if backend == "tensor" else {*DENSE, "tanh_backward", "sgd_update_"})


@pytest.mark.parametrize(("name", "op"), [("SGD", "sgd_update_"), ("Adam", "adam_update_")])
@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=repr)
def test_an_update_bumps_the_version_of_a_dtensor(placement, name, op, mesh, backend):
    p = torch.nn.Parameter(distribute_tensor(torch.randn(4, 3), mesh, [placement]))
    optimizer = getattr(optim, name)([p], 0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    for _ in range(2):
        loss = (p * p).sum()
        p.grad = torch.ones_like(p)
        version, before = p._version, p.full_tensor().clone()
        _, served = ops_run(optimizer.step)
        assert p._version > version
        assert served == (set() if backend == "tensor" else {op})
        assert (before - p.full_tensor()).min() > 0.09
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    state = {key: value for key, value in optimizer.state[p].items() if key != "step"}
    assert state
    assert all(isinstance(value, DTensor) for value in state.values())


def test_dtensors_that_lie_apart_are_torchs(mesh):
    p = torch.nn.Parameter(distribute_tensor(torch.zeros(4, 3), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(4, 3), mesh, [Replicate()])
    with scratchcuda.use_backend("emulator"):
        _, served = ops_run(optim.SGD([p], 0.5).step)
    assert served == set()
    same(p.full_tensor(), torch.full((4, 3), -0.5))
