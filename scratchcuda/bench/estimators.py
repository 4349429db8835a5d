"""Rows of scratchcuda.sklearn's estimators beside scikit-learn's own: whole fits of the digits, by solver.

The network and the batches are those of the workload "digits", all else is scikit-learn's usual. Whether both train the
same is found from the same initial values in the order of the data, over the first epochs: later ones show roundings,
which Adam grows from. What is timed shuffles.
"""

import gc
import warnings
from typing import Any

import torch
from torch import nn

from scratchcuda.bench.agreement import LEAST_MOVE
from scratchcuda.compare import WORKLOADS
from scratchcuda.profiler.clocks import quartiles
from scratchcuda.profiler.turns import fastest, ratio, take_turns

THEIRS, OURS = "scikit-learn", "scratchcuda.sklearn"
SOLVERS = ("sgd", "adam")

#: Of the fits that are compared: without the penalty, which in a smaller last batch is another, and with so small an
#: epsilon of Adam that its place, before a correction or after it, is nothing.
COMPARED: dict[str, Any] = {"max_iter": 3, "shuffle": False, "alpha": 0.0, "epsilon": 1e-14}
#: Largest relative difference of the loss after them: roundings of float32, magnified by Adam's divisions, 2e-7 here.
TOLERANCE = 1e-5


def measure(solver: str, dtype: str, epochs: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """A row: of both the seconds of a fit of MLPClassifier.

    Args:
        solver: "sgd" or "adam".
        dtype: of the data, "float64" or "float32".
        epochs: of a fit.
        device: of ours; scikit-learn's is the CPU.
        rounds: measurements of each.

    Raises:
        ValueError: if the training moves the loss too little to compare.
    """
    from sklearn import neural_network
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import log_loss
    from threadpoolctl import threadpool_limits

    from scratchcuda import sklearn as ours

    work = WORKLOADS["digits"]
    threadpool_limits(torch.get_num_threads())
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(dtype)
    sizes = [module.out_features for module in work.modules() if isinstance(module, nn.Linear)][:-1]
    usual: dict[str, Any] = {
        "hidden_layer_sizes": sizes,
        "batch_size": work.batch_size,
        "solver": solver,
        "random_state": 0,
    }
    usual |= {"tol": 0.0, "n_iter_no_change": epochs, "max_iter": epochs}
    makes = {
        THEIRS: lambda **options: neural_network.MLPClassifier(**usual | options),
        OURS: lambda **options: ours.MLPClassifier(**usual | options, device=device),
    }

    def loss(peer: str, **options: Any) -> float:
        return float(log_loss(y, makes[peer](**options).fit(x, y).predict_proba(x)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs are asked for
        losses = {peer: loss(peer, **COMPARED) for peer in makes}
        before = loss(THEIRS, max_iter=1, learning_rate_init=1e-30)
        if not abs(losses[THEIRS] - before) > LEAST_MOVE * TOLERANCE * before:
            raise ValueError(f"the training moves the loss from {before:.3g} to {losses[THEIRS]:.3g} only")
        calls = {peer: lambda make=make: make().fit(x, y) for peer, make in makes.items()}
        times = take_turns(calls, rounds, before=lambda peer: gc.collect())
    peers: dict[str, dict[str, Any]] = {}
    for peer in makes:
        difference = abs(losses[peer] / losses[THEIRS] - 1)
        peers[peer] = {"seconds": quartiles(times[peer]), "samples": times[peer], "difference": difference}
        peers[peer]["agrees"] = difference <= TOLERANCE
        if peers[peer]["agrees"]:
            peers[peer]["ratio"] = ratio(times[THEIRS], times[peer])
    agreeing = {peer: times[peer] for peer in makes if peers[peer]["agrees"]}
    return {
        "kind": "estimator",
        "title": f"MLPClassifier(solver={solver!r}) on the handwritten digits",
        "dtype": dtype,
        "epochs": epochs,
        "loss": [before, losses[THEIRS]],
        "spread": "quartiles",
        "peers": peers,
        "fastest": fastest(agreeing, THEIRS, "quartiles"),
        "notes": {},
    }
