"""What a training step of small layers costs on the CPU: scratchcuda.nn and scratchcuda.optim beside torch.nn, eager.

A step is zero_grad, forward, loss, backward and update of Linear, activation, Linear and MSELoss, all of one width. The
peers start from the same parameters, take turns every few steps, so that a change of the machine's speed meets all of
them, and get no ratio unless their losses are torch.nn's.

    python benchmarks/drop_in.py [--rounds 1000] [--json FILE] [--write docs/drop-in.md]
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fit import versions

import scratchcuda
from scratchcuda.compare import device_name

WIDTHS, BATCHES, ACTIVATIONS = (16, 64, 256), (1, 32, 512), ("ReLU", "Tanh")
BEGIN, END = "<!-- steps: begin -->", "<!-- steps: end -->"
PEERS = ("torch.nn", "converted", "converted, fused")


def step_of(peer: str, net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], torch.Tensor]:
    module, optim = (torch.nn, torch.optim) if peer == "torch.nn" else (scratchcuda.nn, scratchcuda.optim)
    if peer != "torch.nn":
        scratchcuda.nn.convert(net, fuse=peer == "converted, fused")
    loss_f, optimizer = module.MSELoss(), optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_f(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(width: int, batch: int, activation: str, rounds: int, seconds: float = 5e-4) -> dict:
    """For each peer, the quartiles of a step's seconds, and how many times faster it is."""
    torch.manual_seed(0)
    linears = (torch.nn.Linear(width, width) for _ in range(2))
    net = torch.nn.Sequential(next(linears), getattr(torch.nn, activation)(), next(linears))
    x, y = torch.randn(2, batch, width)
    steps = {peer: step_of(peer, copy.deepcopy(net), x, y) for peer in PEERS}
    losses = {peer: [step().item() for _ in range(20)] for peer, step in steps.items()}
    start = time.perf_counter()
    steps["torch.nn"]()
    count = 1 + int(seconds / (time.perf_counter() - start))
    times: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for i in range(rounds):
        for peer in PEERS[i % 3 :] + PEERS[: i % 3]:  # each comes after each
            start = time.perf_counter()
            for _ in range(count):
                steps[peer]()
            times[peer].append((time.perf_counter() - start) / count)
    found: dict = {"width": width, "batch": batch, "activation": activation, "peers": {}}
    for peer in PEERS:
        # Roundings of twenty steps in float32.
        agrees = torch.allclose(*(torch.tensor(losses[p]) for p in (peer, "torch.nn")), rtol=1e-5, atol=0)
        row = found["peers"][peer] = {"seconds": statistics.quantiles(times[peer], n=4), "agrees": agrees}
        if agrees:
            row["ratio"] = median_of([a / b for a, b in zip(times["torch.nn"], times[peer], strict=True)])
    return found


def median_of(ratios: list[float]) -> tuple[float, float, float]:
    """The median, between the ends of its 95 % confidence interval, which holds for any distribution.

    Of n values that many lie below the median as heads in n throws of a coin: n / 2, give or take 1.96 sqrt(n) / 2.
    """
    ratios, n = sorted(ratios), len(ratios)
    reach = math.ceil(0.98 * math.sqrt(n))
    return ratios[max(0, n // 2 - reach)], statistics.median(ratios), ratios[min(n - 1, n // 2 + reach)]


def table(rows: list[dict]) -> str:
    """In Markdown."""
    lines = [f"| width | batch | activation | torch.nn, µs | {' | '.join(PEERS[1:])} |", "|--:|--:|---|--:|---|---|"]
    for row in rows:
        texts = [f"{1e6 * row['peers']['torch.nn']['seconds'][1]:.0f}"]
        for peer in PEERS[1:]:
            low, median, high = row["peers"][peer].get("ratio", (0, 0, 0))
            text = f"{'a tie' if low <= 1 <= high else f'{median:.2f}'}, {low:.2f} to {high:.2f}"
            texts.append(text if median else "other losses")
        lines.append(f"| {row['width']} | {row['batch']} | {row['activation']} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="measurements of each peer (default: 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything into this file")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between its marks in this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"device": device_name(torch.device("cpu")), "threads": 1, "dtype": "float32", "versions": versions()}
    sizes = [(width, batch, activation) for activation in ACTIVATIONS for width in WIDTHS for batch in BATCHES]
    result["steps"] = [measure(*size, arguments.rounds) for size in sizes]
    versions_used = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = f"{result['device']}, one thread, float32, {versions_used}:\n\n{table(result['steps'])}"
    print(
        "How many times faster than torch.nn a step is (median and its 95 % interval; a tie where that encloses 1)",
        text,
        sep="\n\n",
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.write is not None:
        before, _, rest = arguments.write.read_text().partition(BEGIN)
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
