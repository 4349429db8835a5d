"""Bad input raises an error that names the argument, what it got and what it expects, and changes nothing."""

import math

import numpy as np
import pytest
import torch
from oracle import same
from torch import nn
from trajectories import mlp

import scratchcuda as sc
from scratchcuda import CrossEntropy, Dense, InputLayer, Model, SimpleLinearRegression, Tanh

X, Y = torch.randn(8, 5), torch.randn(8, 3)
CLASSES = torch.arange(8) % 3


def fit(model, x=None, y=None, epochs=1, lr=0.1, batch_size=4, *valid, **options):
    x, y = (X if x is None else x), (Y if y is None else y)
    return model.fit(x, y, epochs, lr, batch_size, *valid, verbose=False, **options)


#: (call on a 5-8-3 model with MSE, exception, what its message says)
MODEL = {
    "features": (lambda m: fit(m, X[:, :4]), ValueError, r"x_train has shape \(8, 4\), expected 5 features"),
    "features of valid": (lambda m: fit(m, X, Y, 1, 0.1, 4, X[:, 1:], Y), ValueError, "x_valid .* expected 5 features"),
    "features of predict": (lambda m: m.predict(X.T), ValueError, r"x has shape \(5, 8\), expected 5 features"),
    "lengths": (lambda m: fit(m, X[:7]), ValueError, r"y_train has shape \(8, 3\), expected 7 samples as x_train"),
    "lengths of valid": (lambda m: fit(m, X, Y, 1, 0.1, 4, X, Y[:2]), ValueError, "y_valid .* expected 8 samples"),
    "outputs": (lambda m: fit(m, X, Y[:, :1]), ValueError, r"y_train has shape \(8, 1\), expected \(8, 3\)"),
    "no outputs": (lambda m: fit(m, X, Y[:, 0]), ValueError, r"y_train has shape \(8,\), expected \(8, 3\)"),
    "3-D": (lambda m: fit(m, X[None], Y[None]), ValueError, r"x_train has shape \(1, 8, 5\), expected \(samples, 5\)"),
    "1-D": (lambda m: fit(m, X[0], Y[0]), ValueError, r"x_train has shape \(5,\), expected \(samples, 5\)"),
    "parameters themselves": (lambda m: m.copy_parameters([X]), TypeError, "parameters is list, expected a method"),
    "half of valid": (lambda m: fit(m, X, Y, 1, 0.1, 4, X), TypeError, "y_valid is NoneType, expected a tensor"),
    "empty": (lambda m: fit(m, X[:0], Y[:0]), ValueError, r"x_train is empty \(shape \(0, 5\)\)"),
    "empty valid": (lambda m: fit(m, X, Y, 1, 0.1, 4, X[:0], Y[:0]), ValueError, "x_valid is empty"),
    "empty evaluate": (lambda m: m.evaluate(X[:0], Y[:0]), ValueError, "x is empty"),
    "integers": (lambda m: fit(m, X.long()), TypeError, "x_train has dtype torch.int64, expected a floating-point"),
    "integer array": (lambda m: fit(m, X.long().numpy(force=True)), TypeError, "x_train has dtype torch.int64"),
    "integer targets": (lambda m: fit(m, X, Y.int()), TypeError, "y_train has dtype torch.int32, expected a floating"),
    "complex": (lambda m: fit(m, X.cfloat()), TypeError, "x_train has dtype torch.complex64"),
    "dtype": (lambda m: fit(m, X.double()), TypeError, "x_train has dtype torch.float64, expected torch.float32"),
    "strings": (lambda m: fit(m, [["a"] * 5] * 8), TypeError, "x_train is list, expected a tensor, a NumPy array or"),
    "ragged": (lambda m: m.predict([[1.0] * 5, [1.0]]), TypeError, "x is list, expected a tensor"),
    "none": (lambda m: m.predict(None), TypeError, "x is NoneType, expected a tensor"),
    "device": (lambda m: fit(m, X.to("meta")), ValueError, "x_train is on device meta, expected (cpu|cuda:0)"),
    "device of y": (lambda m: fit(m, X, Y.to("meta")), ValueError, "y_train is on device meta, expected (cpu|cuda:0)"),
    "lr nan": (lambda m: fit(m, lr=math.nan), ValueError, "lr is nan, expected a finite number of at least 0"),
    "lr inf": (lambda m: fit(m, lr=math.inf), ValueError, "lr is inf"),
    "lr negative": (lambda m: fit(m, lr=-0.1), ValueError, "lr is -0.1"),
    "lr text": (lambda m: fit(m, lr="fast"), TypeError, "lr is 'fast'"),
    "lr quoted": (lambda m: fit(m, lr="0.1"), TypeError, "lr is '0.1'"),
    "lr of update": (lambda m: m.update(m.__forward__(X), Y, -1), ValueError, "lr is -1"),
    "decay": (lambda m: fit(m, weight_decay=-1), ValueError, "weight_decay is -1"),
    "decay of a layer": (
        lambda m: (m.__forward__(X), m.layers[1].backward(Y, 0.1, math.nan)),
        ValueError,
        "weight_decay is nan",
    ),
    "batch 0": (lambda m: fit(m, batch_size=0), ValueError, "batch_size is 0, expected a positive integer"),
    "batch half": (lambda m: fit(m, batch_size=2.5), TypeError, "batch_size is 2.5 .*expected a positive integer"),
    "epochs": (lambda m: fit(m, epochs=-1), ValueError, "epochs is -1, expected a positive integer"),
    "epochs bool": (lambda m: fit(m, epochs=True), ValueError, "epochs is True"),
    "epochs none": (lambda m: fit(m, epochs=None), TypeError, "epochs is None"),
    "update shape": (lambda m: m.update(m.__forward__(X), Y[:4], 0.1), ValueError, r"y_true has shape \(4, 3\)"),
    "too few": (
        lambda m: m.copy_parameters(nn.Linear(5, 8).parameters),
        ValueError,
        "parameters gives 2 tensors, expected 4",
    ),
    "shapes": (
        lambda m: m.copy_parameters(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4)).parameters),
        ValueError,
        r"w has shape \(4, 8\), expected \(3, 8\)",
    ),
    "set_params": (lambda m: m.layers[0].set_params(X, Y[0]), ValueError, r"w has shape \(8, 5\)|b has shape \(3,\)"),
    "state keys": (lambda m: m.load_state_dict({"w": X}), ValueError, r"unexpected \['w'\]"),
    "state shapes": (
        lambda m: m.load_state_dict({**m.state_dict(), "layers.1.b": X}),
        ValueError,
        r"state_dict\['layers.1.b'\] has shape \(8, 5\), expected \(3,\)",
    ),
    "state on meta": (
        lambda m: m.load_state_dict({**m.state_dict(), "layers.1.b": m.state_dict()["layers.1.b"].to("meta")}),
        NotImplementedError,
        "meta",
    ),
    "to integers": (lambda m: m.to(torch.int64), TypeError, "dtype is torch.int64, expected a floating-point dtype"),
}


@pytest.mark.parametrize("case", MODEL)
def test_model_refuses(case):
    call, exception, message = MODEL[case]
    model = mlp([5, 8, 3], Tanh, dtype=torch.float32).to(torch.get_default_device())
    fit(model)
    before, history = {name: p.clone() for name, p in model.state_dict().items()}, model.history
    with pytest.raises(exception, match=message):
        call(model)
    same(model.state_dict(), before)
    assert model.history is history


@pytest.mark.parametrize(
    ("y", "exception", "message"),
    [
        (CLASSES + 1, ValueError, "y_train holds class index 3, expected 0 to 2"),
        (CLASSES - 1, ValueError, "y_train holds class index -1, expected 0 to 2"),
        (CLASSES.float(), TypeError, "y_train has dtype torch.float32, expected integer class indices"),
        (CLASSES.bool(), TypeError, "y_train has dtype torch.bool, expected integer class indices"),
        (CLASSES[:5], ValueError, "y_train .* expected 8 samples as x_train"),
        (Y[:, :2], ValueError, r"y_train has shape \(8, 2\), expected \(8, 3\)"),
        (CLASSES.unsqueeze(1), ValueError, r"y_train has shape \(8, 1\), expected \(8, 3\)"),
    ],
)
def test_cross_entropy_refuses(y, exception, message):
    model = mlp([5, 8, 3], Tanh, loss_f=CrossEntropy(), dtype=torch.float32)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(exception, match=message):
        fit(model, X, y.to(X.device))
    same(model.state_dict(), before)


V = torch.randn(8)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda r: fit(r, V, V[:7]), ValueError, r"y has shape \(7,\), expected 8 samples as x"),
        (lambda r: fit(r, V[:, None], V), ValueError, r"x has shape \(8, 1\), expected \(n_samples,\)"),
        (lambda r: fit(r, V[:0], V[:0]), ValueError, "x is empty"),
        (lambda r: fit(r, V.long(), V), TypeError, "x has dtype torch.int64"),
        (lambda r: fit(r, V, V, 1, math.nan), ValueError, "lr is nan"),
        (lambda r: fit(r, V, V, 0), ValueError, "epochs is 0"),
        (lambda r: fit(r, V, V, 1, 0.1, "all"), TypeError, "batch_size is 'all'"),
        (lambda r: fit(r, V, V, 1, 0.1, 4, V, V.to("meta")), ValueError, "y_valid is on device meta"),
        (lambda r: r.copy_params(nn.Linear(2, 1)), ValueError, "torch_layer is Linear.* expected a Linear of one"),
        (lambda r: r.copy_params(nn.Linear(1, 1, bias=False)), ValueError, "torch_layer is Linear"),
        (lambda r: r.update(V, V[:3], V, 0.1), ValueError, "y_true .* expected 8 samples"),
        (lambda r: r.update(V, V, V + 1, 0.1, math.nan), ValueError, "weight_decay is nan"),
        (lambda r: r.load_state_dict({}), ValueError, r"state_dict lacks \['b', 'w'\]"),
    ],
)
def test_regression_refuses(call, exception, message):
    regression = SimpleLinearRegression(device=torch.get_default_device())
    before = {name: p.clone() for name, p in regression.state_dict().items()}
    with pytest.raises(exception, match=message):
        call(regression)
    same(regression.state_dict(), before)


class Forgetful(sc.Layer):
    pass


class Legacy(Dense):
    def backward(self, delta, lr):
        return super().backward(delta, lr)


SHARED = Tanh()


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda: Model([Dense(3)]), ValueError, "expected a list that starts with an InputLayer"),
        (lambda: Model([]), ValueError, "expected a list that starts with an InputLayer"),
        (lambda: Model([InputLayer(2)]), ValueError, "only an InputLayer, expected at least one layer"),
        (lambda: Model([InputLayer(2), nn.Linear(2, 3)]), TypeError, r"layers\[1\] is Linear.* expected a Dense"),
        (lambda: Model([InputLayer(2), InputLayer(2)]), TypeError, r"layers\[1\] is InputLayer\(2\)"),
        (lambda: Model([InputLayer(2), SHARED, Dense(2), SHARED]), ValueError, r"layers\[3\] .* expected a new object"),
        (lambda: Model([InputLayer(2), Dense(3)], "mse"), TypeError, "loss_f is 'mse', expected a loss such as MSE"),
        (lambda: Model([InputLayer(2), Dense(3)], dtype=torch.int64), TypeError, "dtype is torch.int64"),
        (lambda: SimpleLinearRegression(dtype=torch.bool), TypeError, "dtype is torch.bool"),
        (lambda: Model([InputLayer(2), Forgetful()]), NotImplementedError, "Forgetful defines no forward"),
        (lambda: Dense(3, "swish"), TypeError, "act_f is 'swish', expected an Activation such as"),
        (lambda: Dense(3, Tanh), TypeError, "act_f is <class .*expected an Activation such as"),
        (lambda: Dense(0), ValueError, "units is 0, expected a positive integer"),
        (lambda: InputLayer(2.0), TypeError, "n_input_features is 2.0"),
        (
            lambda: Model.from_torch(nn.Sequential(nn.Linear(2, 3), nn.GELU())),
            TypeError,
            r"module\[1\] is a GELU, expected one of Linear",
        ),
        (
            lambda: Model.from_torch(nn.Sequential(nn.Linear(2, 3, bias=False))),
            ValueError,
            "expected a Linear with bias",
        ),
        (
            lambda: Model.from_torch(nn.Sequential(nn.Linear(2, 3), nn.Softmax(0))),
            ValueError,
            "expected dim=1 or dim=-1",
        ),
        (lambda: Model.from_torch(nn.Sequential(nn.Tanh())), ValueError, "expected at least one Linear"),
        (lambda: Model([InputLayer(2), Legacy(3)]).to_torch(), TypeError, r"layers\[0\] is Dense"),
        (
            lambda: fit(Model([InputLayer(5), Legacy(3)]), weight_decay=0.1),
            TypeError,
            "weight_decay is 0.1, but Legacy.backward has no such argument",
        ),
        (lambda: sc.metrics.mape([1.0], [1.0, 2.0]), ValueError, r"y_pred has shape \(2,\), expected \(1,\)"),
        (lambda: sc.metrics.smape([], []), ValueError, "y_true is empty"),
    ],
)
def test_construction_refuses(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_metrics():
    """As the documents define MAPE: a zero target counts the absolute prediction."""
    assert sc.metrics.mape(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([2.0, -1.0, 0.5])) == pytest.approx(2 / 3)
    assert sc.metrics.smape([1.0, 0.0], np.array([3.0, 0.25])) == pytest.approx((2 / 2 + 0.25) / 2)
    assert sc.metrics.smape([0.0], [0.0]) == sc.metrics.mape(0, 0) == 0
    assert sc.metrics.mape(0.1, 0.1 * (1 + 1e-15)) == pytest.approx(1e-15, rel=0.2), "computed in float64"
    assert math.isnan(sc.metrics.mape([1.0, 1.0], [1.0, math.nan]))
    assert sc.metrics.mape(torch.ones(2, requires_grad=True), torch.ones(2)) == 0.0
