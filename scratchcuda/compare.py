"""Training beside torch.nn, from the same parameters on the same data, and how far the two are apart."""

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scratchcuda.conditions import device_name
from scratchcuda.engine.history import History
from scratchcuda.engine.layers import Dense
from scratchcuda.engine.linear_regression import SimpleLinearRegression
from scratchcuda.engine.losses import KINDS
from scratchcuda.engine.model import Model
from scratchcuda.metrics import accuracy, mape
from scratchcuda.ops._entries import ENTRIES, elementwise

#: Largest relative difference that counts as agreement, in rounding units of the dtype: 1e-12 in float64. The
#: documents show differences of a few units; a fit of some thousand steps adds up a few hundred.
TOLERANCE_UNITS = 4500

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A network, its data, and how the documents (or their readers) train it.

    Attributes:
        data: from a seed, x_train, y_train, x_valid and y_valid.
        modules: the torch.nn modules of the network.
        loss: torch's loss; ours is the one of the same meaning.
        epochs, lr, batch_size: defaults of a fit.
    """

    title: str
    data: Callable[[int], Arrays]
    modules: Callable[[], list[nn.Module]]
    loss: type[nn.Module]
    epochs: int
    lr: float
    batch_size: int


def _synthetic(features: int, targets: int, informative: int, train: int) -> Callable[[int], Arrays]:
    def data(seed: int) -> Arrays:
        x, y = datasets.make_regression(
            n_samples=10_100,
            n_features=features,
            n_targets=targets,
            n_informative=informative,
            bias=np.random.default_rng(seed).random(),
            noise=1,
            random_state=seed,
        )
        y = y.reshape(len(y), targets)
        return x[:train], y[:train], x[train:], y[train:]

    return data


def _real(load: Callable[..., Any], standardise_y: bool = False) -> Callable[[int], Arrays]:
    def data(seed: int) -> Arrays:
        x, y = load(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(x))
        x, y, train = x[order], y[order], len(x) * 4 // 5
        x = StandardScaler().fit(x[:train]).transform(x)
        if standardise_y:
            y = StandardScaler().fit(y[:train, None]).transform(y[:, None])
        return x[:train], y[:train], x[train:], y[train:]

    return data


#: What stands between the products of :func:`network`.
ACTIVATIONS = ("none", *(entry.name for entry in elementwise()))


def network(
    sizes: Sequence[int], activation: str = "relu", batch_size: int = 64, batches: int = 4, epochs: int = 1
) -> Workload:
    """A multilayer perceptron on synthetic data: standard normal inputs, each target one of them, chosen at random.

    Args:
        sizes: features of the input, of each layer in between, and of the output; at least two.
        activation: between the products, one of :data:`ACTIVATIONS`.
        batch_size: samples of a step, and of the validation.
        batches: steps of an epoch.
        epochs: of a fit.

    Raises:
        ValueError: with less than two sizes, one below 1, or another activation.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes is {tuple(sizes)}, expected two or more of at least 1")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    n_in, n_out, train = sizes[0], sizes[-1], batches * batch_size

    def data(seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((train + batch_size, n_in))
        y = x[:, rng.integers(n_in, size=n_out)]
        return x[:train], y[:train], x[train:], y[train:]

    def modules() -> list[nn.Module]:
        found: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for inner, outer in itertools.pairwise(sizes[1:]):
            found += [*([ENTRIES[activation].module()] if activation != "none" else []), nn.Linear(inner, outer)]
        return found

    # The loss is a mean over n_out targets, and x' x / batch_size of normal inputs has eigenvalues up to the square
    # (Marchenko and Pastur); with 1 for 0.05 a single layer would be at the edge of stability.
    lr = 0.05 * n_out / (1 + (n_in / batch_size) ** 0.5) ** 2
    title = f"multilayer perceptron {'-'.join(map(str, sizes))}, {activation}"
    return Workload(title, data, modules, nn.MSELoss, epochs, lr, batch_size)


def _mlp() -> list[nn.Module]:
    hidden = [nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Softmax(1), nn.Linear(32, 32), nn.Sigmoid()]
    return [*hidden, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]


WORKLOADS = {
    "slr": Workload(
        "simple linear regression of the documents",
        _synthetic(1, 1, 1, 100),
        lambda: [nn.Linear(1, 1)],
        nn.MSELoss,
        epochs=16,
        lr=0.01,
        batch_size=33,
    ),
    "mlp": Workload(
        "multilayer perceptron of the documents (6-32-32-32-32-3)",
        _synthetic(6, 3, 5, 1000),
        _mlp,
        nn.MSELoss,
        epochs=32,
        lr=0.01,
        batch_size=333,
    ),
    "digits": Workload(
        "classifier of handwritten digits (64-128-64-10, cross-entropy)",
        _real(datasets.load_digits),
        lambda: [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)],
        nn.CrossEntropyLoss,
        epochs=20,
        lr=0.1,
        batch_size=64,
    ),
    "diabetes": Workload(
        "progression of diabetes (10-32-1, mean squared error)",
        _real(datasets.load_diabetes, standardise_y=True),
        lambda: [nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)],
        nn.MSELoss,
        epochs=40,
        lr=0.05,
        batch_size=32,
    ),
    "breast-cancer": Workload(
        "diagnosis of breast cancer (30-16-2, cross-entropy)",
        _real(datasets.load_breast_cancer),
        lambda: [nn.Linear(30, 16), nn.Sigmoid(), nn.Linear(16, 2)],
        nn.CrossEntropyLoss,
        epochs=30,
        lr=0.5,
        batch_size=32,
    ),
}

#: Bound by their products, see :func:`workloads`.
LARGE = ("mlp-1024", "mlp-4096")


def workloads(device: torch.device) -> dict[str, Workload]:
    """All that a command trains by name: :data:`WORKLOADS`, and two networks bound by their products.

    On a CPU these have few steps of small batches. Their learning rates, found by trial, move the loss by some per cent
    in so few steps, and lie below those at which it oscillates.
    """
    shapes = [(512, 16, 4)] * 2 if device.type == "cuda" else [(64, 4, 2), (32, 2, 2)]
    first, second = network((1024, 2048, 2048, 10), "relu", *shapes[0]), network((4096,) * 4, "relu", *shapes[1])
    return WORKLOADS | dict(zip(LARGE, (replace(first, lr=0.2), replace(second, lr=10.0)), strict=True))


@dataclass
class Trajectory:
    """Training and validation loss by epoch, and of a classifier the accuracy on the validation data."""

    train: list[float]
    valid: list[float]
    accuracy: list[float] = field(default_factory=list)


@dataclass
class Comparison:
    """What :func:`compare` found. Differences are relative; times are seconds of whole fits, with validation."""

    title: str
    device: str
    dtype: str
    epochs: int
    lr: float
    batch_size: int
    seed: int
    threads: int
    versions: dict[str, str]
    path: str
    scratch: Trajectory
    torch: Trajectory
    mape_before: float
    mape_after: float
    layers: list[dict[str, float]]
    scratch_seconds: list[float]
    torch_seconds: list[float]
    tolerance: float

    @property
    def differences(self) -> list[float]:
        """By epoch, the larger relative difference of the two losses."""
        ours, theirs = self.scratch, self.torch
        columns = zip(ours.train, theirs.train, ours.valid, theirs.valid, strict=True)
        return [max(mape(t, s), mape(tv, sv)) for s, t, sv, tv in columns]

    @property
    def worst(self) -> float:
        """The largest of all: each epoch's difference, and the mean ones (MAPE) of predictions, weights, biases."""
        parameters = [value for layer in self.layers for value in layer.values()]
        return float(np.max([*self.differences, self.mape_before, self.mape_after, *parameters]))

    @property
    def agrees(self) -> bool:
        return self.worst <= self.tolerance

    @property
    def ratio(self) -> float:
        """torch.nn's time divided by ours, median of the interleaved pairs."""
        pairs = zip(self.torch_seconds, self.scratch_seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def as_dict(self) -> dict[str, Any]:
        found = {"differences": self.differences, "worst": self.worst, "agrees": self.agrees, "ratio": self.ratio}
        return asdict(self) | found


def fit_torch(
    net: nn.Module,
    loss_f: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    lr: float,
    batch_size: int,
    valid: tuple[Tensor, Tensor] | None,
    sgd: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
) -> Trajectory:
    """The documents' training loop: torch.nn, eager, with torch.optim.SGD or another optimizer of its arguments."""
    optimizer = sgd(net.parameters(), lr=lr)
    losses = Trajectory([], [])
    for _ in range(epochs):
        steps = []
        for start in range(0, len(y), batch_size):
            batch = slice(start, start + batch_size)
            optimizer.zero_grad()
            loss = loss_f(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            steps.append(loss.detach())
        found = torch.stack(steps).tolist()  # once an epoch: to read a loss is to wait for its device
        losses.train.append(sum(found) / len(found))
        if valid is not None:
            with torch.no_grad():
                losses.valid.append(loss_f(net(valid[0]), valid[1]).item())
    return losses


class Pair:
    """A network of torch.nn and ours with the same parameters, which both can be trained again from the start."""

    def __init__(self, workload: Workload, device: torch.device | str, dtype: torch.dtype, seed: int):
        torch.manual_seed(seed)
        with torch.device("cpu"):  # the same initial values on every device
            self.net = nn.Sequential(*workload.modules()).to(device, dtype)
        self.start = [p.detach().clone() for p in self.net.parameters()]
        self.loss_f = workload.loss()
        self.classifies = KINDS[workload.loss].takes_classes
        arrays = (torch.as_tensor(array, device=device) for array in workload.data(seed))
        tensors = [array.to(dtype) if array.is_floating_point() else array for array in arrays]
        self.x, self.y, self.x_valid, self.y_valid = tensors
        self.scratch: Model | SimpleLinearRegression
        if len(self.start) == 2 and self.start[0].numel() == 1:  # one weight and one bias
            self.scratch = SimpleLinearRegression(device, dtype)
        else:
            self.scratch = Model.from_torch(self.net, KINDS[workload.loss]())
        self.reset()

    def reset(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.net.parameters(), self.start, strict=True):
                parameter.copy_(value)
        if isinstance(self.scratch, Model):
            self.scratch.copy_parameters(self.net.parameters)
        else:
            self.scratch.copy_params(self.net[0])  # type: ignore[arg-type]

    def fit_torch(self, epochs: int, lr: float, batch_size: int, validate: bool = True) -> Trajectory:
        valid = (self.x_valid, self.y_valid) if validate else None
        return fit_torch(self.net, self.loss_f, self.x, self.y, epochs, lr, batch_size, valid)

    def fit_scratch(self, epochs: int, lr: float, batch_size: int, validate: bool = True) -> History:
        data = [self.x, self.y, *([self.x_valid, self.y_valid] if validate else [None, None])]
        if isinstance(self.scratch, SimpleLinearRegression):
            data = [t if t is None else t.squeeze(-1) for t in data]
        x, y, *valid = data
        return self.scratch.fit(x, y, epochs, lr, batch_size, *valid, verbose=False)

    def accuracies(self, epochs: int, lr: float, batch_size: int) -> tuple[list[float], list[float]]:
        """Of torch.nn's classifier and ours on the validation data, after each epoch of a fit from the start."""
        theirs: list[float] = []
        ours: list[float] = []
        self.reset()
        for _ in range(epochs):
            self.fit_torch(1, lr, batch_size, validate=False)
            self.fit_scratch(1, lr, batch_size, validate=False)
            for predict, found in ((self.net, theirs), (self.scratch.predict, ours)):
                found.append(accuracy(self.y_valid, predict(self.x_valid)))
        return theirs, ours

    def prediction_mape(self) -> float:
        with torch.no_grad():
            theirs = self.net(self.x_valid)
        if isinstance(self.scratch, SimpleLinearRegression):
            return mape(theirs.squeeze(-1), self.scratch.predict(self.x_valid.squeeze(-1)))
        return mape(theirs, self.scratch.predict(self.x_valid))

    def layer_mapes(self) -> list[dict[str, float]]:
        linears = [module for module in self.net if isinstance(module, nn.Linear)]
        if isinstance(self.scratch, SimpleLinearRegression):
            ours = [(self.scratch.w.unsqueeze(-1), self.scratch.b)]
        else:
            layers = [layer for layer in self.scratch.layers if isinstance(layer, Dense)]
            ours = [(layer.w, layer.b) for layer in layers if layer.b is not None]
        pairs = zip(linears, ours, strict=True)
        return [{"w": mape(linear.weight.T, w), "b": mape(linear.bias, b)} for linear, (w, b) in pairs]


def compare(
    work: Workload,
    *,
    device: str = "cpu",
    dtype: str = "float64",
    epochs: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda stage: None,
) -> Comparison:
    """Train a workload with both, in turns, from the same parameters.

    Args:
        work: what to train, one of :func:`workloads` or a :func:`network`.
        device: a torch device.
        dtype: "float64" or "float32".
        epochs, lr: the workload's own if None.
        seed: of the data and the initial values.
        repeats: how often each fit is timed, after one warm-up each on few epochs.
        progress: told before each fit, ``2 * repeats`` times, what comes.
    """
    epochs = work.epochs if epochs is None else epochs
    lr = work.lr if lr is None else lr
    batch_size = work.batch_size
    pair = Pair(work, device, getattr(torch, dtype), seed)
    before = pair.prediction_mape()
    fits: tuple[Callable[..., Any], ...] = (pair.fit_torch, pair.fit_scratch)
    for fit in fits:
        fit(min(2, epochs), lr, batch_size)
    of_torch, of_scratch = pair.accuracies(epochs, lr, batch_size) if pair.classifies else ([], [])
    seconds: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = []
    for repeat in range(repeats):
        pair.reset()
        results = []
        for name, fit, times in zip(("torch.nn", "scratch"), fits, seconds, strict=True):
            progress(f"{name}, fit {repeat + 1} of {repeats}")
            start = time.perf_counter()
            results.append(fit(epochs, lr, batch_size))
            times.append(time.perf_counter() - start)
    theirs, ours = results
    return Comparison(
        title=work.title,
        device=device_name(torch.device(device)),
        dtype=dtype,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        path=ours.path,
        scratch=Trajectory(ours.loss, ours.valid_loss, of_scratch),
        torch=replace(theirs, accuracy=of_torch),
        mape_before=before,
        mape_after=pair.prediction_mape(),
        layers=pair.layer_mapes(),
        scratch_seconds=seconds[1],
        torch_seconds=seconds[0],
        tolerance=TOLERANCE_UNITS * torch.finfo(getattr(torch, dtype)).eps,
    )
