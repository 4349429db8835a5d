"""Train a classifier of digits on several processes, whole on each (DDP), or shared out to them (FSDP2).

    torchrun --standalone --nproc-per-node 2 examples/distributed.py
    torchrun --standalone --nproc-per-node 2 examples/distributed.py --shard

Every process takes its share of each batch; torch's engine averages or shares out the gradients, and our layers and
optimizer train on what it hands them. So any number of processes arrives where one does with the whole batches.
"""

import argparse
import gc
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from scratchcuda import nn, optim

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shard", action="store_true", help="share out the parameters, by FSDP2, instead of copying them")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch", type=int, default=64, help="of all processes together")
parser.add_argument("--save", metavar="FILE", help="write the trained parameters there, as a state_dict")
args = parser.parse_args()
if "RANK" not in os.environ:
    parser.error("torchrun starts its processes: torchrun --standalone --nproc-per-node 2 examples/distributed.py")

if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
else:
    device = torch.device("cpu")
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
rank, processes = dist.get_rank(), dist.get_world_size()


def train() -> None:
    features, classes = load_digits(return_X_y=True)
    x, y = torch.from_numpy(features / 16).to(device), torch.from_numpy(classes).to(device)

    torch.manual_seed(0)  # the same parameters and batches everywhere
    model = nn.Sequential(nn.Linear(64, 32, activation="tanh"), nn.Linear(32, 10)).to(device, torch.float64)
    if args.shard:
        mesh = dist.init_device_mesh(device.type, (processes,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        model = fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
    loss_f = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    for step in range(args.steps):
        share = torch.randint(len(x), (args.batch,)).to(device).chunk(processes)[rank]
        optimizer.zero_grad()
        loss = loss_f(model(x[share]), y[share])
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            dist.all_reduce(total := loss.detach().clone())
            if rank == 0:
                print(f"step {step}, loss {total.item() / processes:.4f}")

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if args.save and rank == 0:
        torch.save(state, args.save)


train()
gc.collect()  # parameters that are shared out hold the group, and its threads may not outlive the interpreter
dist.barrier()
dist.destroy_process_group()
