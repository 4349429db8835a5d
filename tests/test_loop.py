"""What happens around epochs: validation, early stopping, callbacks, accuracy, and what a fit says."""

import copy
import math
import pickle
import sys

import pytest
import torch
from oracle import same
from torch.utils.data import DataLoader, TensorDataset
from trajectories import TOLERANCE, TorchTwin, batches, error, mlp

import scratchcuda as sc
from scratchcuda import BinaryCrossEntropy, CrossEntropy, Linear, Sigmoid, SimpleLinearRegression, Softmax, Tanh
from scratchcuda.engine.diagnosis import cause_of_nan

TOLERANCE = TOLERANCE[torch.float64]


def fit(model, x, y, path, epochs=3, lr=0.1, batch_size=7, **options):
    history = model.fit(x, y, epochs, lr, batch_size, **{"verbose": False, "plan": path != "general"} | options)
    assert history.path == path, history.reason
    return history


def pair(samples=23, outputs=3):
    return torch.randn(samples, 5, dtype=torch.float64), torch.randn(samples, outputs, dtype=torch.float64)


def parameters(model):
    return [p.clone() for p in model.state_dict().values()]


@pytest.mark.parametrize("epochs", [60, 4], ids=["stops", "ends"])
def test_early_stopping_is_a_loop_that_keeps_the_best(path, epochs):
    torch.manual_seed(5)
    (x, y), (x_valid, y_valid) = pair(9), pair(30)
    model = mlp([5, 16, 3], Tanh)
    model.fit(x_valid, y_valid, 25, 0.3, 30, verbose=False)  # to begin near a least loss
    twin, best, losses, kept = TorchTwin(model, 0.3), math.inf, [], None
    for epoch in range(epochs):
        for batch in batches([x, y], 4, 1):
            twin.step(*batch)
        losses.append(twin.loss(x_valid, y_valid).item())
        if losses[-1] < best:
            best, best_epoch, kept = losses[-1], epoch, copy.deepcopy(twin.parameters())
        elif epoch - best_epoch >= 3:
            break
    seen = []
    valid = {"x_valid": x_valid, "y_valid": y_valid, "early_stopping": 3}
    history = fit(model, x, y, path, epochs, 0.3, 4, callbacks=lambda _: seen.append(parameters(model)), **valid)
    assert history.valid_loss == pytest.approx(losses, rel=TOLERANCE)
    assert (history.best_epoch, len(losses) < epochs) == (best_epoch, epochs == 60)
    assert best_epoch < len(losses) - 1
    assert (f"epoch {best_epoch}" in history.stopped) == bool(history.stopped) == (epochs == 60)
    same(parameters(model), seen[best_epoch])
    for ours, theirs in zip(parameters(model), kept, strict=True):
        assert error(ours, theirs) <= TOLERANCE
    assert error(seen[-1][0], seen[best_epoch][0]) > 1e-3


def test_early_stopping_restores_what_is_frozen_and_a_regression(path):
    x, nan = torch.rand(8, dtype=torch.float64), torch.full((4,), math.nan, dtype=torch.float64)
    model = SimpleLinearRegression(dtype=torch.float64)
    history = fit(model, x, 2 * x, path, 9, x_valid=x[:4], y_valid=nan, early_stopping=2)
    assert (len(history.loss), history.best_epoch) == (2, None)  # NaN is never better, so nothing is restored
    assert "inf" in history.stopped
    model, (x, y) = mlp([5, 8, 3], Tanh), pair()
    model.layers[0].is_trainable, before = False, parameters(model)
    fit(model, x, y, path, 2, 30.0, validation_split=0.5, early_stopping=1)
    same(parameters(model)[:2], before[:2])


@pytest.mark.parametrize(("samples", "shuffle"), [(23, False), (23, True), (13, True), (14, False)])
def test_drop_last_is_a_data_loaders(path, shuffle, samples):
    (x, y), model = pair(samples), mlp([5, 8, 3], Tanh)
    twin, generator = TorchTwin(model, 0.1), torch.Generator().manual_seed(3)
    losses = []
    for _ in range(3):
        order = torch.randperm(samples, generator=generator, device="cpu") if shuffle else torch.arange(samples)
        for batch in DataLoader(TensorDataset(x, y), 7, sampler=order.tolist(), drop_last=True):
            losses.append(twin.step(*batch))
    generator.manual_seed(3)
    history = fit(model, x, y, path, shuffle=shuffle, generator=generator, drop_last=True)
    assert history.step_loss == pytest.approx(losses, rel=TOLERANCE)
    for ours, theirs in zip(parameters(model), twin.parameters(), strict=True):
        assert error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("split", [0.2, 1 / 3])
def test_a_split_validates_on_the_last_samples(path, split):
    x, classes, weights = pair()[0], torch.arange(23) % 3, torch.rand(23) + 0.5
    models = [mlp([5, 8, 3], Tanh, loss_f=CrossEntropy()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first = math.floor(23 * (1 - split))
    fit(models[0], x, classes, path, validation_split=split, sample_weight=weights)
    of_hand = {"x_valid": x[first:], "y_valid": classes[first:], "sample_weight": weights[:first]}
    fit(models[1], x[:first], classes[:first], path, **of_hand)
    assert models[0].history == models[1].history
    same(parameters(models[0]), parameters(models[1]))


#: Last activation, loss, outputs, and targets of so many samples.
CLASSIFIERS = {
    "classes": (Linear, CrossEntropy(), 3, lambda m: torch.randint(3, (m,))),
    "rows": (Softmax, CrossEntropy(class_weights=[9, 1, 1], label_smoothing=0.1), 3, lambda m: torch.rand(m, 3)),
    "binary": (Sigmoid, BinaryCrossEntropy(), 1, lambda m: torch.randint(2, (m, 1))),
    "several": (Linear, BinaryCrossEntropy(), 4, lambda m: torch.rand(m, 4)),
}


@pytest.mark.parametrize(("kind", "batch_size"), [*zip(CLASSIFIERS, (7, 23, 7, 7), strict=True)])
def test_accuracy_of_each_epoch(kind, batch_size, path, monkeypatch):
    monkeypatch.setattr("scratchcuda.engine.plans.tensor.CHUNK_BYTES", 4096)  # validation in chunks of 64 samples
    last, loss_f, outputs, targets = CLASSIFIERS[kind]
    x, x_valid, y, y_valid = pair()[0], pair(70)[0], targets(23), targets(70)
    model = mlp([5, 8, outputs], Tanh, last, loss_f)
    y, y_valid = (t if t.dim() == 1 else t.double() for t in (y, y_valid))
    twin, generator = TorchTwin(model, 0.5), torch.Generator().manual_seed(3)

    def hits(scores, y):
        if isinstance(loss_f, BinaryCrossEntropy):
            return ((torch.sigmoid(scores) >= 0.5) == (y >= 0.5)).sum().item()
        return (scores.argmax(1) == (y if y.dim() == 1 else y.argmax(1))).sum().item()

    found = {"accuracy": [], "valid_accuracy": []}
    for _ in range(4):
        total = 0
        for x_batch, y_batch in batches([x, y], batch_size, 1, generator):
            total += hits(twin.net(x_batch), y_batch)
            twin.step(x_batch, y_batch)
        width = outputs if isinstance(loss_f, BinaryCrossEntropy) else 1
        found["accuracy"].append(total / (23 * width))
        found["valid_accuracy"].append(hits(twin.net(x_valid), y_valid) / (70 * width))
    generator.manual_seed(3)
    options = {"shuffle": True, "generator": generator, "x_valid": x_valid, "y_valid": y_valid, "accuracy": True}
    history = fit(model, x, y, path, 4, 0.5, batch_size, **options)
    assert {name: getattr(history, name) for name in found} == found
    assert len({*history.accuracy, *history.valid_accuracy}) > 2
    if kind != "several":
        assert sc.metrics.accuracy(y_valid, model.predict(x_valid)) == pytest.approx(found["valid_accuracy"][-1])
    history = fit(model, x, y, path, 1, 0.0, batch_size)
    assert (history.accuracy, history.valid_accuracy) == ([], [])


def test_ties_are_hits_of_the_first_class_and_of_one(path):
    x = torch.zeros(4, 5, dtype=torch.float64)
    for last in (Linear, Sigmoid):
        model = mlp([5, 1], Tanh, last, BinaryCrossEntropy())
        model.layers[0].b.zero_()
        assert fit(model, x, [1, 1, 1, 0], path, 1, 0.0, accuracy=True).accuracy == [0.75]
    model = mlp([5, 3], Tanh, Softmax, CrossEntropy())
    model.layers[0].b.zero_()
    assert fit(model, x, [0, 0, 1, 2], path, 1, 0.0, accuracy=True).accuracy == [0.5]


def test_probabilities_without_scores_are_counted_from_one_half():
    model, (x, _) = mlp([5, 1], Tanh, Sigmoid, BinaryCrossEntropy()), pair()
    model.layers[0].act_f.__class__ = type("Own", (Sigmoid,), {"__call__": lambda self, z: 1 / (1 + torch.exp(-z))})
    y = (model.predict(x) >= 0.5).double()
    assert fit(model, x, y, "general", 1, 0.0, accuracy=True).accuracy == [1.0]


def test_hits_of_ones_own_take_effect(monkeypatch):
    monkeypatch.setattr(CrossEntropy, "hits", lambda self, y_pred, y_true: torch.arange(len(y_true)) > 0)
    model, (x, _) = mlp([5, 3], Tanh, loss_f=CrossEntropy()), pair(8)
    history = model.fit(x, torch.arange(8) % 3, 1, 0.1, 4, verbose=False, accuracy=True)
    assert (history.path, history.accuracy) == ("general", [0.75])


def test_callbacks_see_and_change_the_parameters(path):
    (x, y), model, seen = pair(), mlp([5, 8, 3], Tanh), []
    twin = copy.deepcopy(model)

    def look(history):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        seen.append(model.evaluate(x, y))

    def halve(history):
        with torch.no_grad():
            model.layers[0].w.mul_(0.5)
        if len(history.loss) == 3:
            history.stop("enough")
            history.stop("more than enough")

    history = fit(model, x, y, path, 9, x_valid=x, y_valid=y, callbacks=[look, halve])
    assert history.valid_loss == pytest.approx(seen, rel=TOLERANCE)
    assert (len(history.loss), history.stopped) == (3, "enough")
    for _ in range(3):
        fit(twin, x, y, path, 1)
        twin.layers[0].w.mul_(0.5)
    for ours, theirs in zip(parameters(model), parameters(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    with torch.no_grad():
        fit(model, x, y, path, 1, callbacks=lambda history: seen.append(torch.is_grad_enabled()))
    assert seen[-1] is False


def test_an_error_of_a_callback_leaves_the_last_step(path):
    (x, y), model = pair(), mlp([5, 8, 3], Tanh)
    twin = copy.deepcopy(model)
    with pytest.raises(ZeroDivisionError):
        fit(model, x, y, path, callbacks=lambda history: 1 / (2 - len(history.loss)))
    fit(twin, x, y, path, 2)
    assert len(model.history.loss) == 2
    same(parameters(model), parameters(twin))


@pytest.mark.parametrize("change", ["w", "is_trainable"])
def test_what_a_plan_does_not_see_is_an_error(change, path):
    (x, y), model = pair(), mlp([5, 8, 3], Tanh)
    twin, first = copy.deepcopy(model), model.layers[0]

    def reassign(history):
        setattr(first, change, first.w.clone() if change == "w" else False)

    if path == "general":
        fit(model, x, y, path, 9, 0.0, callbacks=reassign, validation_split=0.5, early_stopping=2)
        assert model.history.best_epoch == 0
        same(parameters(model), parameters(twin))
        return
    with pytest.raises(RuntimeError, match=rf"layers.0.w was .* by a callback, which a {path} does not see"):
        fit(model, x, y, path, callbacks=reassign)
    fit(twin, x, y, path, 1)
    same(parameters(model), parameters(twin))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_fit_within_a_callback(optimizer, path):
    """It has its own order, and the outer goes on with its parameters, and both with one optimizer's state."""
    (x, y), model = pair(), mlp([5, 8, 3], Tanh)
    twin = copy.deepcopy(model)

    def inner(history):
        fit(model, x, y, path, 1, optimizer=model.optimizer, shuffle=True)

    torch.manual_seed(1)
    fit(model, x, y, path, optimizer=optimizer, callbacks=inner)
    torch.manual_seed(1)
    for _ in range(3):
        fit(twin, x, y, path, 1, optimizer=twin.optimizer or optimizer)
        fit(twin, x, y, path, 1, optimizer=twin.optimizer, shuffle=True)
    for ours, theirs in zip(parameters(model), parameters(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def spoiled(index, value):
    def spoil(model, x, y):
        (x, y)[index][5, 1] = value
        return {}

    return spoil


def in_16_bits(model, x, y):
    model.to(torch.float16)
    return {"x": x.half(), "y": y.half()}


#: What is done before the fit, and options of it; the epoch, the step, and the cause.
CAUSES = {
    "x": (spoiled(0, math.nan), 0, 1, r"x_train holds nan \(sample 5\)"),
    "y": (spoiled(1, -math.inf), 0, 2, r"y_train holds -inf \(sample 5\)"),
    "parameters": (
        lambda model, x, y: [model.layers[0].w.fill_(math.nan), {}][-1],
        0,
        0,
        "it was nan before any update, and the data are finite: parameters held NaN or inf",
    ),
    "a bias": (
        lambda model, x, y: [model.layers[1].b.fill_(math.inf), {}][-1],
        0,
        1,
        "it was inf before any update, and the data are finite: parameters held NaN or inf",
    ),
    "lr": (
        lambda _, x, y: {"lr": 1e30},
        1,
        7,
        r"lr is 1e\+30, too large: the loss had grown from \S+ \(step 0\) to inf",
    ),
    "16 bits": (
        lambda model, x, y: in_16_bits(model, x, y.fill_(200)) | {"lr": 20.0},
        0,
        2,
        "lr is 20, too large: .* to inf; torch.float16 holds nothing beyond 65504",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_why_the_loss_is_nan(cause, path):
    (x, y), model = pair(20), mlp([5, 8, 3], Tanh)
    change, epoch, step, message = CAUSES[cause]
    options = {"x": x, "y": y, "batch_size": 4, "path": path} | change(model, x, y)
    if options["x"].dtype == torch.float16 and path == "tensor plan":
        options["path"] = "general"
    with pytest.warns(RuntimeWarning, match=f"NaN from epoch {epoch}, step {step} on .*: {message}") as caught:
        fit(model, **options)
    assert [w.filename for w in caught] == [__file__], "once, and of the line that asked for the fit"


def test_a_loss_that_did_not_grow_says_what_is_known():
    cause = cause_of_nan([("x", torch.ones(3, 2))], [2.0, 1.5], 0.1, torch.float32)
    assert cause == "the data are finite, and the loss before it was 1.5; a smaller lr than 0.1 may help"


def test_a_finished_fit_says_why_and_what(tmp_path):
    history = sc.History("general", loss=[3.0, 2.0], valid_loss=[4.0], accuracy=[0.5, 0.6], step_loss=[1.0])
    assert history.to_dict() == {"loss": [3.0], "valid_loss": [4.0], "accuracy": [0.5]}
    old = copy.copy(history)
    for name in ("accuracy", "valid_accuracy", "stopped", "best_epoch"):
        del vars(old)[name]
    text = pickle.dumps(old, 0).replace(b"scratchcuda.history", b"scratchcuda.training")
    assert pickle.loads(text) == sc.History("general", loss=[3.0, 2.0], valid_loss=[4.0], step_loss=[1.0])
    for reason in ("", None):
        with pytest.raises(ValueError, match="reason is"):
            history.stop(reason)


@pytest.mark.backends("tensor")
def test_a_plot_of_the_losses(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    history = sc.History("general", loss=[3, 2, 1], valid_loss=[3, 2, 4], accuracy=[0.1, 0.2, 0.3], best_epoch=1)
    figure = history.plot().figure
    drawn = [[list(line.get_ydata()) for line in axes.lines] for axes in figure.axes]
    assert drawn == [[[3, 2, 1], [3, 2, 4], [0, 1]], [[0.1, 0.2, 0.3], [0, 1]]]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    pyplot.close(figure)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'scratchcuda\[cli\]'"):
        history.plot()


@pytest.mark.parametrize("ends", [True, False])
def test_a_bar_instead_of_lines(ends, path, capsys):
    (x, y), model = pair(), mlp([5, 8, 3], Tanh)

    def fails(history):
        assert ends or len(history.loss) < 2

    try:
        fit(model, x, y, path, x_valid=x, y_valid=y, progress=True, verbose=True, callbacks=fails)
    except AssertionError:
        assert not ends
    out, bar = capsys.readouterr()
    assert out == ""
    assert bar.endswith("\n")
    last = bar.strip().split("\r")[-1]
    assert f"{3 if ends else 2}/3" in last
    assert f"L: {model.history.loss[-1]:.4f} - L_v {model.history.valid_loss[-1]:.4f}" in last


def test_lines_tell_the_accuracy(path, capsys):
    model, (x, _) = mlp([5, 3], Tanh, loss_f=CrossEntropy()), pair()
    h = fit(model, x, torch.arange(23) % 3, path, 1, validation_split=0.3, accuracy=True, verbose=True)
    losses, hits = (h.loss[0], h.valid_loss[0]), (h.accuracy[0], h.valid_accuracy[0])
    expected = "Epoch: 0 - L: {:.4f} - L_v {:.4f} - A: {:.4f} - A_v {:.4f}\n".format(*losses, *hits)
    assert capsys.readouterr().out == expected


REFUSED = [
    ({"generator": 3, "shuffle": True}, TypeError, "generator is 3, expected a torch.Generator"),
    ({"callbacks": 3}, TypeError, "callbacks is 3, expected a callable or a sequence of them"),
    ({"callbacks": [print, 3]}, TypeError, r"callbacks\[1\] is 3, expected a callable"),
    ({"early_stopping": 0, "validation_split": 0.5}, ValueError, "early_stopping is 0, expected a positive integer"),
    ({"early_stopping": 2}, ValueError, "early_stopping is 2 .* expected x_valid and y_valid, or validation_split"),
    ({"drop_last": True}, ValueError, "batch_size is 30 with drop_last, expected at most the 23 samples"),
    ({"drop_last": 1}, TypeError, r"drop_last is 1 \(int\), expected True or False"),
    ({"validation_split": 1.0}, ValueError, "validation_split is 1.0"),
    ({"validation_split": -0.1}, ValueError, "validation_split is -0.1"),
    ({"validation_split": 0.99}, ValueError, "validation_split is 0.99, which of 23 samples trains on 0"),
    ({"validation_split": 0.5, "x_valid": [[1.0] * 5]}, ValueError, "validation_split is 0.5 beside x_valid"),
    ({"accuracy": True}, ValueError, r"accuracy is True, but the loss is MSE\(\), expected CrossEntropy or Binary"),
]


@pytest.mark.parametrize(("options", "exception", "message"), REFUSED)
def test_refusals(options, exception, message):
    (x, y), model = pair(), mlp([5, 8, 3], Tanh)
    regression, before = SimpleLinearRegression(dtype=torch.float64), parameters(model)
    if "x_valid" not in options:
        with pytest.raises(exception, match=message):
            regression.fit(x[:, 0], y[:, 0], 1, 0.1, 30, **options)
    with pytest.raises(exception, match=message):
        model.fit(x, y, 1, 0.1, 30, **options)
    assert model.history is regression.history is None
    same(parameters(model), before)


def test_what_no_fit_knows_and_what_is_not_installed(monkeypatch):
    regression, x = SimpleLinearRegression(), torch.rand(4)
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'sample_weight'"):
        regression.fit(x, x, 1, 0.1, 2, sample_weight=x)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"pip install 'scratchcuda\[progress\]'"):
        regression.fit(x, x, 1, 0.1, 2, progress=True)


def test_metrics_accuracy():
    rows = torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, 0.0]])
    assert sc.metrics.accuracy([1, 1], rows) == sc.metrics.accuracy(torch.eye(3)[[1, 1]], rows) == 0.5
    assert sc.metrics.accuracy([[1], [0]], rows) == 1.0
    assert sc.metrics.accuracy([1, 0, 0], [[0.5], [0.4], [0.9]]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"y_true has shape \(3,\), expected classes \(2,\) or rows \(2, 3\)"):
        sc.metrics.accuracy([1, 2, 0], rows)
    with pytest.raises(ValueError, match="y_true is empty"):
        sc.metrics.accuracy([], [])
