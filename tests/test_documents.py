"""What the two seed documents show: the same printed lines, and MAPE of the order of the rounding unit."""

import pytest
import torch

from scratchcuda import InputLayer, Model, RelU, SimpleLinearRegression, Softmax, Tanh
from scratchcuda.compare import WORKLOADS, Pair, compare, network
from scratchcuda.metrics import mape

#: The emulator takes ten seconds for each.
OTHER_SEEDS = [pytest.param(seed, marks=pytest.mark.backends("tensor", "kernels")) for seed in (1, 2)]


@pytest.mark.parametrize("seed", [0, *OTHER_SEEDS])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("slr", lambda epoch, train, valid: f"epoch: {epoch} - MSE: {round(train, 4)} - MSE_v: {round(valid, 4)}"),
        ("mlp", "Epoch: {} - L: {:.4f} - L_v {:.4f}".format),
    ],
)
def test_printed_lines_equal_torch(name, line, seed, usual_path, capsys):
    work = WORKLOADS[name]
    pair = Pair(work, torch.get_default_device(), torch.float64, seed)
    if usual_path == "graph plan":  # most of the emulator's time would go to the 9,100 rows of the documents
        pair.x_valid, pair.y_valid = pair.x_valid[:1000], pair.y_valid[:1000]
    assert pair.prediction_mape() <= 1e-12
    options = work.epochs, work.lr, work.batch_size
    theirs = pair.fit_torch(*options)
    data = [pair.x, pair.y, *options, pair.x_valid, pair.y_valid]
    if isinstance(pair.scratch, SimpleLinearRegression):
        data = [d.squeeze(-1) if isinstance(d, torch.Tensor) else d for d in data]
    history = pair.scratch.fit(*data)
    expected = [line(epoch, *losses) for epoch, losses in enumerate(zip(theirs.train, theirs.valid, strict=True))]
    assert capsys.readouterr().out.splitlines() == expected
    assert history.path == usual_path
    # The documents show 1e-16; the design's bound leaves room for other orders of summation.
    assert pair.prediction_mape() <= 1e-12
    assert all(value <= 1e-12 for layer in pair.layer_mapes() for value in layer.values())


def test_lines_without_validation_data(capsys):
    x, y = torch.ones(3), torch.ones(3)
    SimpleLinearRegression().fit(x, y, 1, 0.0, 3)
    Model([InputLayer(1), Tanh(), Softmax()]).fit(x[:, None], y[:, None], 1, 0.0, 3)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch: 0 - MSE: ")
    assert second == "Epoch: 0 - L: 0.0000"


def test_manual_steps_as_in_the_documents():
    """__forward__ and update by hand, with predict and evaluate around them."""
    pair = Pair(WORKLOADS["mlp"], torch.get_default_device(), torch.float64, 0)
    model, x, y = pair.scratch, pair.x[:333], pair.y[:333]
    assert isinstance(model.layers[3].act_f, RelU)
    y_pred = model.__forward__(x)
    assert model.loss_f(y_pred, y) == pytest.approx(model.evaluate(x, y), rel=1e-15)
    model.update(y_pred, y, 0.01)
    pair.x, pair.y = x, y
    pair.fit_torch(1, 0.01, 333)
    assert pair.prediction_mape() <= 1e-12
    regression = SimpleLinearRegression(dtype=torch.float64)
    regression.copy_params(torch.nn.Linear(1, 1))
    assert mape(regression.mse_loss(y[:, 0], regression.predict(x[:, 0])), regression.evaluate(x[:, 0], y[:, 0])) == 0


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_workload_agrees(workload, dtype, usual_path):
    found = compare(WORKLOADS[workload], device=torch.get_default_device().type, dtype=dtype, epochs=3, repeats=1)
    assert found.path == usual_path
    assert found.agrees, found.worst
    assert found.scratch.train[-1] != found.scratch.train[0]


@pytest.mark.parametrize(("sizes", "activation"), [((1, 1), "relu"), ((5, 3), "none"), ((7, 8, 4), "tanh")])
def test_networks_of_any_size_learn_as_torch(sizes, activation):
    work = network(sizes, activation, batch_size=9, epochs=3)
    pair = Pair(work, torch.get_default_device(), torch.float64, 0)
    options = work.epochs, work.lr, work.batch_size
    theirs, ours = pair.fit_torch(*options), pair.fit_scratch(*options)
    assert ours.loss == pytest.approx(theirs.train, rel=1e-12)
    assert theirs.train[-1] < 0.99 * theirs.train[0]


@pytest.mark.parametrize(("sizes", "activation"), [((3,), "relu"), ((3, 0), "relu"), ((3, 3), "mish")])
def test_networks_that_there_are_not(sizes, activation):
    with pytest.raises(ValueError, match="expected"):
        network(sizes, activation)
