"""Who trains the same network: torch.nn in several ways, and scratchcuda in several ways."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import scratchcuda
from scratchcuda.compare import Pair, Workload, fit_torch
from scratchcuda.profiler.clocks import capture

#: Training and validation loss by epoch; both empty where a peer does not report torch's mean of the batches' losses.
Losses = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Runner:
    """A peer that is ready to train.

    Attributes:
        run: a whole fit from the present parameters of its Pair. This alone is timed.
        parameters: what it has come to, in the order and shapes of ``net.parameters()``.
        path: which of scratchcuda's paths served the last run, and why, if it was the general one.
    """

    run: Callable[[], Losses]
    parameters: Callable[[], list[Tensor]]
    path: Callable[[], dict[str, str]] = dict


#: Makes a peer ready to train the workload on the pair's data, with validation after each epoch or without.
Peer = Callable[[Pair, Workload, bool], Runner]


def batches(pair: Pair, work: Workload) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pair.x.split(work.batch_size), pair.y.split(work.batch_size), strict=True))


def of_net(pair: Pair, run: Callable[[], Losses]) -> Runner:
    return Runner(run, lambda: list(pair.net.parameters()))


def eager(
    pair: Pair,
    work: Workload,
    validate: bool,
    sgd: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    loss: nn.Module | None = None,
) -> Runner:
    """torch.nn, one call after another, or what has its interface."""
    valid = (pair.x_valid, pair.y_valid) if validate else None

    def run() -> Losses:
        options = work.epochs, work.lr, work.batch_size, valid, sgd
        losses = fit_torch(pair.net, loss or pair.loss_f, pair.x, pair.y, *options)
        return losses.train, losses.valid

    return of_net(pair, run)


def converted(pair: Pair, work: Workload, validate: bool) -> Runner:
    """torch.nn's network with its layers, loss and optimizer made ours."""
    scratchcuda.nn.convert(pair.net, fuse=True)
    loss = getattr(scratchcuda.nn, work.loss.__name__)()
    return eager(pair, work, validate, scratchcuda.optim.SGD, loss)


def scratch(pair: Pair, work: Workload, validate: bool) -> Runner:
    """The scratch engine's own fit."""
    model = pair.scratch

    def parameters() -> list[Tensor]:
        if isinstance(model, scratchcuda.SimpleLinearRegression):
            return [model.w.reshape(1, 1), model.b.reshape(1)]
        return [parameter.t() for parameter in model.parameters()]

    def run() -> Losses:
        history = pair.fit_scratch(work.epochs, work.lr, work.batch_size, validate)
        return history.loss, history.valid_loss

    def path() -> dict[str, str]:
        assert model.history is not None  # it has run
        return {"path": model.history.path, "reason": model.history.reason}

    return Runner(run, parameters, path)


def fit_by_fit(pair: Pair, work: Workload, validate: bool) -> Runner:
    """A loop of one's own, as torch.nn wants it: a fit of one step for each batch."""
    usual, model = scratch(pair, work, validate), pair.scratch
    by_vector = isinstance(model, scratchcuda.SimpleLinearRegression)
    data = [(x.squeeze(-1), y.squeeze(-1)) if by_vector else (x, y) for x, y in batches(pair, work)]
    valid = [t.squeeze(-1) if by_vector else t for t in (pair.x_valid, pair.y_valid)]

    def run() -> Losses:
        train, valid_losses = [], []
        for _ in range(work.epochs):
            losses = [model.fit(x, y, 1, work.lr, len(y), verbose=False).loss[0] for x, y in data]
            train.append(sum(losses) / len(losses))
            valid_losses += [model.evaluate(*valid)] * validate
        return train, valid_losses

    return Runner(run, usual.parameters, usual.path)


def overlapping(pair: Pair, work: Workload, validate: bool) -> Runner:
    """Ours, with launches that may begin while the one before them ends."""
    if not pair.x.is_cuda or torch.cuda.get_device_capability() < (9, 0):
        raise NotImplementedError("needs a GPU of compute capability 9.0")
    from scratchcuda import _C  # type: ignore[attr-defined]

    usual = scratch(pair, work, validate)

    def run() -> Losses:
        _C.set_overlap(True)  # read when a launch is captured
        try:
            return usual.run()
        finally:
            _C.set_overlap(False)

    return Runner(run, usual.parameters, usual.path)


def compiled(pair: Pair, work: Workload, validate: bool, mode: str = "default") -> Runner:
    """Forward with loss, and the optimizer's step, compiled as torch's tutorials do."""
    net, loss_f = pair.net, pair.loss_f
    optimizer = torch.optim.SGD(net.parameters(), lr=work.lr)
    loss_of = torch.compile(lambda x, y: loss_f(net(x), y), dynamic=False, mode=mode)
    evaluate = torch.compile(lambda x, y: loss_f(net(x), y), dynamic=False, mode=mode)
    update = torch.compile(optimizer.step, mode=mode)
    data = batches(pair, work)

    def run() -> Losses:
        train, valid = [], []
        for _ in range(work.epochs):
            steps = []
            for x, y in data:
                torch.compiler.cudagraph_mark_step_begin()
                loss = loss_of(x, y)
                optimizer.zero_grad()
                loss.backward()
                update()
                steps.append(loss.detach().clone())  # a CUDA graph writes the next loss in the same place
            found = torch.stack(steps).tolist()
            train.append(sum(found) / len(found))
            if validate:
                with torch.no_grad():
                    valid.append(evaluate(pair.x_valid, pair.y_valid).item())
        return train, valid

    return of_net(pair, run)


def graphed(pair: Pair, work: Workload, validate: bool) -> Runner:
    """torch.nn with the whole step captured by hand, a CUDA graph for each size of batch, and one for validation."""
    if not pair.x.is_cuda:
        raise NotImplementedError("needs a GPU")
    net, loss_f = pair.net, pair.loss_f
    optimizer = torch.optim.SGD(net.parameters(), lr=work.lr, fused=True)
    stream = torch.cuda.Stream()  # one for all, or autograd would wait for another, which a capture cannot
    losses = torch.zeros(2, dtype=torch.float64, device=pair.x.device)  # sum of the epoch's steps, and validation
    data = batches(pair, work)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()  # to None, so that a capture makes them in its graph's memory
        loss = loss_f(net(x), y)
        loss.backward()
        optimizer.step()
        losses[0].add_(loss.detach())

    def evaluate() -> None:
        with torch.no_grad():
            losses[1].copy_(loss_f(net(pair.x_valid), pair.y_valid))

    steps = {}
    for x, y in data:
        if len(x) not in steps:
            inputs = x.clone(), y.clone()
            steps[len(x)] = *inputs, capture(partial(step, *inputs), stream)
    validation = capture(evaluate, stream) if validate else None
    pair.reset()  # the warm-up has trained

    def run() -> Losses:
        train, valid = [], []
        for _ in range(work.epochs):
            losses.zero_()
            for x, y in data:
                x_input, y_input, graph = steps[len(x)]
                x_input.copy_(x)
                y_input.copy_(y)
                graph.replay()
            if validation is not None:
                validation.replay()
            total, valid_loss = losses.tolist()  # once an epoch
            train.append(total / len(data))
            valid += [valid_loss] * validate
        return train, valid

    return of_net(pair, run)


TORCH, SCRATCH, GRAPH = "torch.nn", "scratchcuda", "torch.nn, CUDA Graph"
COMPILED: dict[str, Peer] = {
    "torch.compile": compiled,
    "torch.compile, reduce-overhead": partial(compiled, mode="reduce-overhead"),
    "torch.compile, max-autotune": partial(compiled, mode="max-autotune"),
}
OF_TORCH: dict[str, Peer] = {
    TORCH: eager,
    "torch.nn, foreach SGD": partial(eager, sgd=partial(torch.optim.SGD, foreach=True)),
    "torch.nn, fused SGD": partial(eager, sgd=partial(torch.optim.SGD, fused=True)),
    **COMPILED,
    GRAPH: graphed,
}
OURS: dict[str, Peer] = {
    SCRATCH: scratch,
    "scratchcuda, fit by fit": fit_by_fit,
    "scratchcuda, overlapping launches": overlapping,
    "scratchcuda.nn, converted": converted,
}
