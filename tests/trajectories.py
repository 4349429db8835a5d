"""Training beside torch.nn, compared step by step."""

from functools import partial

import pytest
import torch
from oracle import same
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scratchcuda import Dense, InputLayer, Linear, Model, SimpleLinearRegression
from scratchcuda.engine.exchange import training_of

#: Relative, by norm. Both sides sum the same terms, in another order: a step differs by some rounding units (2e-16
#: and 1e-7), and the few dozen steps of a test add up a few hundred.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5}
#: Parameters must have moved by this much, relative, for their agreement to mean anything.
MOVED = 1e-3


def mlp(sizes, activation, last=Linear, loss_f=None, dtype=torch.float64):
    """A model with initial values under which no unit saturates or dies."""
    init = {"weight_init": nn.init.xavier_normal_, "bias_init": partial(nn.init.normal_, std=0.1)}
    hidden = [Dense(size, activation(), **init) for size in sizes[1:-1]]
    return Model([InputLayer(sizes[0]), *hidden, Dense(sizes[-1], last(), **init)], loss_f, dtype=dtype)


def documents_backward(self, delta, lr):
    """The documents' Dense.backward."""
    delta = self.act_f.backward(delta, self.a)
    self.b -= lr * delta.sum(0)
    w_der, dx = self.input.T @ delta, delta @ self.w.T
    self.w -= lr * w_der
    return dx


def error(ours, theirs):
    """Relative difference by norm."""
    return ((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(theirs.dtype).tiny)).item()


class TorchTwin:
    """torch.nn's network with a model's parameters, trained by an optimizer of torch.optim, decaying weights only.

    ``schedule`` makes a scheduler of an optimizer; ``end_epoch`` tells it the loss.
    """

    def __init__(self, model, lr, weight_decay=None, optimizer="sgd", schedule=None, **options):
        if isinstance(model, SimpleLinearRegression):
            self.loss_f = nn.MSELoss()
            linear = nn.Linear(1, 1, dtype=model.dtype)
            linear.load_state_dict({"weight": model.w.unsqueeze(0), "bias": model.b})
            self.net = nn.Sequential(nn.Unflatten(0, (-1, 1)), linear, nn.Flatten(0))
        else:
            self.net, self.loss_f = training_of(model.to_torch(), model.loss_f)
            self.loss_f.to(model.device, model.dtype)
        weights, biases = ([p for p in self.net.parameters() if p.dim() == d] for d in (2, 1))
        weight_decay = (0.01 if optimizer == "adamw" else 0.0) if weight_decay is None else weight_decay
        groups = [{"params": weights, "weight_decay": weight_decay}]
        groups += [{"params": biases, "weight_decay": 0.0}] if biases else []
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
        self.optimizer = kind(groups, lr=lr, **options)
        self.scheduler = schedule and schedule(self.optimizer)

    @property
    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    def end_epoch(self, loss):
        if self.scheduler is not None:
            self.scheduler.step(*[loss] * isinstance(self.scheduler, ReduceLROnPlateau))

    def loss(self, x, y, sample_weight=None):
        if sample_weight is None:
            return self.loss_f(self.net(x), y)
        weight, smoothing = self.loss_f.weight, self.loss_f.label_smoothing
        losses = nn.functional.cross_entropy(self.net(x), y, weight, reduction="none", label_smoothing=smoothing)
        # Of rows of probabilities torch's mean is over all rows, whatever the weights of their classes.
        counts = sample_weight if weight is None or y.dim() == 2 else sample_weight * weight[y]
        return (losses * sample_weight).sum() / counts.sum()

    def step(self, *batch):
        self.optimizer.zero_grad()
        loss = self.loss(*batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def parameters(self):
        """In the order and layout of our state_dict, tied ones again and again."""
        layers = [module for module in self.net if isinstance(module, nn.Linear)]
        return [p.detach().t() for layer in layers for p in (layer.weight, layer.bias) if p is not None]


def batches(data, batch_size, epochs, generator=None):
    m = len(data[0])
    for _ in range(epochs):
        order = torch.arange(m) if generator is None else torch.randperm(m, generator=generator, device="cpu")
        yield from zip(*(part[order].split(batch_size) for part in data), strict=True)


def assert_same_trajectory(
    model,
    x,
    y,
    path,
    *,
    epochs=4,
    lr=0.1,
    batch_size=7,
    weight_decay=None,
    optimizer=None,
    schedule=None,
    shuffle=False,
    sample_weight=None,
    tolerance=None,
    alive=True,
    moved=MOVED,
):
    """Every step's loss and all parameters against torch.nn, in fits of one step each and in one whole fit.

    Fits of one step go on with the optimizer of the one before. ``optimizer`` has its name and options, as fit takes
    them; ``schedule`` makes a scheduler of an optimizer of torch. Frozen parameters keep their bits. ``alive`` asserts
    that every other has a gradient at every step, and that it moved. Returns torch's side.
    """
    tolerance = tolerance or TOLERANCE[model.dtype]
    options = {"plan": path != "general", "verbose": False}
    optimizer = (optimizer or {}) | ({} if weight_decay is None else {"weight_decay": weight_decay})
    start = {name: p.clone() for name, p in model.state_dict().items()}
    frozen = {slot.name for slot in model._slots() if slot.attribute not in getattr(slot.owner, "trained", "wb")}
    twin = TorchTwin(model, lr, schedule=schedule, **optimizer)
    steps, rates = -(-len(x) // batch_size), []

    torch.manual_seed(5)  # of what a Dropout draws, on both sides

    def order():
        return torch.Generator("cpu").manual_seed(3) if shuffle else None

    theirs, ours = [], []
    for batch in batches([x, y] if sample_weight is None else [x, y, sample_weight], batch_size, epochs, order()):
        before = {name: p.clone() for name, p in model.state_dict().items()}
        with torch.random.fork_rng():
            theirs.append(twin.step(*batch))
        x_batch, y_batch, *weights = batch
        of_batch = options | ({"optimizer": model.optimizer} if ours else optimizer)
        of_batch |= {"sample_weight": weights[0]} if weights else {}
        history = model.fit(x_batch, y_batch, 1, twin.lr, len(y_batch), **of_batch)
        assert history.path == path, history.reason
        ours += history.step_loss
        for (name, p), q in zip(model.state_dict().items(), twin.parameters(), strict=True):
            assert error(p, q) <= tolerance, name
            assert not alive or torch.equal(p, before[name]) == (name in frozen), (
                f"{name} has no gradient, or is frozen"
            )
        if len(ours) % steps == 0:
            rates.append(twin.lr)
            twin.end_epoch(sum(theirs[-steps:]) / steps)
    # A loss near 0 is made of differences of near values, each rounded in proportion to the values.
    losses = pytest.approx(theirs, rel=tolerance, abs=tolerance * max(theirs))
    assert ours == losses

    model.load_state_dict(start)
    lr = schedule(torch.optim.SGD([torch.zeros(1)], lr)) if schedule else lr
    torch.manual_seed(5)
    options |= optimizer | {"shuffle": shuffle, "generator": order()}
    options |= {} if sample_weight is None else {"sample_weight": sample_weight}
    history = model.fit(x, y, epochs, lr, batch_size, **options)
    assert history.path == path, history.reason
    assert history.step_loss == losses
    assert history.lr == pytest.approx(rates, rel=TOLERANCE[torch.float64])
    for (name, p), q in zip(model.state_dict().items(), twin.parameters(), strict=True):
        assert error(p, q) <= tolerance, name
        if name in frozen:
            same(p, start[name])
        else:
            assert not alive or error(p, start[name]) > moved, f"{name} did not move"
    return twin
