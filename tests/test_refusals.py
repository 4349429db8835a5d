"""Bad input raises an error that names the argument, what it got and what it expects, and changes nothing."""

import copy
import math

import numpy as np
import pytest
import torch
from oracle import same
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, SequentialLR, StepLR
from trajectories import mlp

import scratchcuda as sc
from scratchcuda import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dense,
    Dropout,
    Flatten,
    Huber,
    InputLayer,
    Model,
    SimpleLinearRegression,
    Tanh,
)

X, Y = torch.randn(8, 5), torch.randn(8, 3)
CLASSES = torch.arange(8) % 3


def fit(model, x=None, y=None, epochs=1, lr=0.1, batch_size=4, *valid, **options):
    x, y = (X if x is None else x), (Y if y is None else y)
    return model.fit(x, y, epochs, lr, batch_size, *valid, verbose=False, **options)


def fitted(units, frozen=()):
    """A 5-units-3 model that momentum has trained, but for some layers."""
    model = mlp([5, units, 3], Tanh, dtype=torch.float32).to(torch.get_default_device())
    for i in frozen:
        model.layers[i].is_trainable = False
    fit(model, batch_size=8 if frozen else 4, momentum=0.9)
    return model


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
    "complex": (lambda m: fit(m, X.cfloat()), TypeError, "x_train has dtype torch.complex64, expected a real dtype"),
    "complex targets": (lambda m: fit(m, X, Y.cfloat()), TypeError, "y_train has dtype torch.complex64"),
    "masked": (lambda m: fit(m, np.ma.array(X.numpy(force=True))), TypeError, "x_train is MaskedArray, .*it is masked"),
    "text": (lambda m: fit(m, X, list("abcabcab")), TypeError, r"y_train is list, .*it holds 'a': np.unique\("),
    "text array": (lambda m: fit(m, X, np.array(list("ab" * 4))), TypeError, "y_train is ndarray, .*it holds 'a'"),
    "text objects": (lambda m: fit(m, X, np.array(list("ab" * 4), object)), TypeError, "y_train .*it holds 'a'"),
    "objects": (lambda m: fit(m, X, np.array([None] * 8)), TypeError, "y_train is ndarray, expected a tensor"),
    "sample weights": (
        lambda m: fit(m, sample_weight=[1] * 8),
        TypeError,
        "sample_weight is given, but MSE.loss has no such argument",
    ),
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
    "lr class": (lambda m: fit(m, lr=StepLR), TypeError, "lr is the class StepLR, expected a number, a function of"),
    "lr of an epoch": (lambda m: fit(m, lr=lambda epoch: epoch - 1), ValueError, "lr of epoch 0 is -1.0, expected a"),
    "lr no number": (lambda m: fit(m, lr=lambda epoch: None), TypeError, r"lr of epoch 0 is None \(NoneType\)"),
    "lr of a scheduler": (
        lambda m: fit(m, lr=LambdaLR(torch.optim.SGD([X.clone()], 0.1), lambda epoch: -1)),
        ValueError,
        "lr of epoch 0 is -0.1",
    ),
    "lr and momentum": (
        lambda m: fit(m, lr=SequentialLR(sgd := torch.optim.SGD([X.clone()], 0.1, 0.9), [OneCycleLR(sgd, 1, 9)], [])),
        ValueError,
        "lr is OneCycleLR that cycles momentum, expected cycle_momentum=False",
    ),
    "lr of groups": (
        lambda m: fit(m, lr=StepLR(torch.optim.SGD([{"params": [X.clone()]}, {"params": [Y.clone()]}], 0.1), 1)),
        ValueError,
        "lr is StepLR of 2 parameter groups, expected one",
    ),
    "optimizer": (lambda m: fit(m, optimizer="lion"), ValueError, "optimizer is 'lion', expected one of sgd, adam, ad"),
    "torch's optimizer": (
        lambda m: fit(m, optimizer=torch.optim.SGD([X.clone()], 0.1)),
        TypeError,
        "(?s)optimizer is SGD .*expected one of 'sgd', 'adam', 'adamw', or the Optimizer of a fit before",
    ),
    "momentum": (lambda m: fit(m, momentum=-1), ValueError, "momentum is -1.*, expected a finite number of at least 0"),
    "dampening": (lambda m: fit(m, dampening=math.inf), ValueError, "dampening is inf, expected a finite number"),
    "nesterov": (lambda m: fit(m, nesterov=True), ValueError, "nesterov needs momentum and no dampening, got mom.* 0"),
    "nesterov 1": (lambda m: fit(m, nesterov=1), TypeError, r"nesterov is 1 \(int\), expected True or False"),
    "betas": (
        lambda m: fit(m, optimizer="adam", betas=(0.9, 1)),
        ValueError,
        r"betas\[1\] is 1.0, expected a number of",
    ),
    "eps": (lambda m: fit(m, optimizer="adam", eps=math.nan), ValueError, "eps is nan, expected a finite number of"),
    "momentum of adam": (
        lambda m: fit(m, optimizer="adam", momentum=0.9),
        ValueError,
        "momentum is 0.9, but optimizer 'adam' has no such option",
    ),
    "amsgrad of sgd": (lambda m: fit(m, amsgrad=True), ValueError, "amsgrad is True, but optimizer 'sgd' has no such"),
    "another option": (
        lambda m: fit(m, optimizer=m.optimizer, momentum=0.5),
        ValueError,
        "momentum is 0.5, but that of the optimizer given is 0.9",
    ),
    "another's option": (
        lambda m: fit(m, optimizer=m.optimizer, eps=0.1),
        ValueError,
        "eps is 0.1, but that of the optimizer given is 1e-08",
    ),
    "an optimizer of others": (
        lambda m: fit(m, optimizer=fitted(6).optimizer),
        ValueError,
        r"optimizer.state\['layers.0.w'\]\['momentum_buffer'\] has shape \(5, 6\), expected \(5, 8\)",
    ),
    "an optimizer of fewer": (
        lambda m: fit(m, optimizer=fitted(8, [1]).optimizer),
        ValueError,
        "optimizer has no state of layers.1.w, which its 1 steps did not train; expected one that begins anew",
    ),
    "batch 0": (lambda m: fit(m, batch_size=0), ValueError, "batch_size is 0, expected a positive integer"),
    "batch half": (lambda m: fit(m, batch_size=2.5), TypeError, "batch_size is 2.5 .*expected a positive integer"),
    "epochs": (lambda m: fit(m, epochs=-1), ValueError, "epochs is -1, expected a positive integer"),
    "epochs bool": (lambda m: fit(m, epochs=True), ValueError, "epochs is True"),
    "epochs none": (lambda m: fit(m, epochs=None), TypeError, "epochs is None"),
    "update shape": (lambda m: m.update(m.__forward__(X), Y[:4], 0.1), ValueError, r"y_true has shape \(4, 3\)"),
    "another model's": (
        lambda m: m.copy_parameters(copy.deepcopy(m).parameters),
        TypeError,
        r"parameters is a method of a Model, .* expected one of a torch module; load_state_dict\(other.state_dict",
    ),
    "bias": (
        lambda m: Model([InputLayer(5), Dense(8, bias=False)]).layers[0].set_params(X, X[0]),
        TypeError,
        "b is Tensor, expected None, as Dense.* has no bias",
    ),
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
    model = fitted(8)
    before, history, optimizer = copy.deepcopy(model.state_dict()), model.history, model.optimizer
    state = copy.deepcopy(optimizer.state)
    with pytest.raises(exception, match=message):
        call(model)
    same(model.state_dict(), before)
    assert model.history is history
    assert (model.optimizer, optimizer.steps) == (optimizer, 2)
    same(optimizer.state, state)


@pytest.mark.parametrize(
    ("y", "exception", "message"),
    [
        (CLASSES + 1, ValueError, "y_train holds class index 3, expected 0 to 2"),
        (CLASSES - 1, ValueError, "y_train holds class index -1, expected 0 to 2"),
        (CLASSES - 0.5, ValueError, r"y_train holds -0.5, expected class indices \(8,\) or rows of probabilities"),
        (CLASSES.cfloat(), TypeError, "y_train has dtype torch.complex64, expected a real dtype"),
        (CLASSES[:5], ValueError, "y_train .* expected 8 samples as x_train"),
        (Y[:, :2], ValueError, r"y_train has shape \(8, 2\), expected \(8, 3\)"),
        (CLASSES[:, None, None], ValueError, r"y_train has shape \(8, 1, 1\), expected \(8, 3\)"),
    ],
)
def test_cross_entropy_refuses(y, exception, message):
    model = mlp([5, 8, 3], Tanh, loss_f=CrossEntropy(), dtype=torch.float32)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(exception, match=message):
        fit(model, X, y.to(X.device))
    same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (2 * (CLASSES == 0) - 1, r"y_train holds -1, expected 0 to 1; write \(y \+ 1\) / 2 for labels of -1 and 1"),
        ((CLASSES == 0).float().neg(), "y_train holds -1.0, expected 0 to 1$"),
        (CLASSES / CLASSES, "y_train holds nan, expected 0 to 1$"),
        (Y, r"y_train has shape \(8, 3\), expected \(8, 1\)"),
    ],
)
def test_binary_cross_entropy_refuses(y, message):
    model = mlp([5, 8, 1], Tanh, loss_f=BinaryCrossEntropy(), dtype=torch.float32)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(model, X, y.to(X.device))
    same(model.state_dict(), before)


def test_cross_entropy_of_one_output_names_the_loss_of_two_classes():
    model = mlp([5, 8, 1], Tanh, loss_f=CrossEntropy(), dtype=torch.float32)
    with pytest.raises(
        ValueError, match="y_train holds class index 1, expected 0 alone; BinaryCrossEntropy takes 0 and 1"
    ):
        fit(model, X, (CLASSES == 0).long().to(X.device))


def changed(loss_f, **parameters):
    vars(loss_f).update(parameters)
    return loss_f


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (
            lambda m: fit(m, X, CLASSES, sample_weight=[1] * 7),
            ValueError,
            r"sample_weight has shape \(7,\), expected 8",
        ),
        (
            lambda m: fit(m, X, CLASSES, sample_weight=[-1] * 8),
            ValueError,
            "sample_weight holds -1, expected finite numb",
        ),
        (
            lambda m: fit(m, X, CLASSES, sample_weight=Y),
            ValueError,
            r"sample_weight has shape \(8, 3\), expected one dim",
        ),
        (lambda m: m.evaluate(X, CLASSES, [math.nan] * 8), ValueError, "sample_weight holds nan"),
        (lambda m: m.evaluate(X, CLASSES, np.ones(7, np.uint16)), ValueError, r"sample_weight has shape \(7,\)"),
        (lambda m: setattr(m, "loss_f", CrossEntropy(class_weights=[1, -2])), ValueError, "class_weights holds -2"),
        (lambda m: setattr(m, "loss_f", CrossEntropy(class_weights="ab")), TypeError, "class_weights is str"),
        (
            lambda m: setattr(m, "loss_f", CrossEntropy(label_smoothing=2)),
            ValueError,
            "label_smoothing is 2.0, expected",
        ),
        (lambda m: setattr(m, "loss_f", Huber(0)), ValueError, "delta is 0"),
        (lambda m: [changed(m.loss_f, label_smoothing=2), fit(m, X, CLASSES)], ValueError, "label_smoothing is 2"),
        (lambda m: [setattr(m, "loss_f", changed(Huber(), delta=0)), fit(m, X, Y)], ValueError, "delta is 0"),
        (
            lambda m: [setattr(m, "loss_f", CrossEntropy(class_weights=[1, 2])), fit(m, X, CLASSES)],
            ValueError,
            r"class_weights has shape \(2,\), expected \(3,\)",
        ),
    ],
)
def test_weights_refuse(call, exception, message):
    model = mlp([5, 8, 3], Tanh, loss_f=CrossEntropy(), dtype=torch.float32)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(exception, match=message):
        call(model)
    same(model.state_dict(), before)


V = torch.randn(8)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda r: fit(r, V, V[:7]), ValueError, r"y has shape \(7,\), expected 8 samples as x"),
        (lambda r: fit(r, V[:, None], V), ValueError, r"x has shape \(8, 1\), expected \(n_samples,\)"),
        (lambda r: fit(r, V[:0], V[:0]), ValueError, "x is empty"),
        (lambda r: fit(r, V.cfloat(), V), TypeError, "x has dtype torch.complex64"),
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


class Mean(sc.Layer):
    def forward(self, x):
        return x.mean(1)


def images(*layers):
    return Model([InputLayer((1, 2, 2)), *layers, Dense(3)])


class Silent(Dense):
    def backward(self, delta, lr, gradients=None):
        return super().backward(delta, lr, gradients={})


SHARED = Tanh()
DROP = Dropout()
DROP.p = -1
ERF = sc.GELU()
ERF.approximate = "erf"


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
        (lambda: Dense(3, "swish"), ValueError, "act_f is 'swish', expected one of linear, none, relu, "),
        (lambda: Dense(3, bias=None), TypeError, r"bias is None \(NoneType\), expected True or False"),
        (lambda: Dense(3, Tanh), TypeError, "act_f is <class .*expected an Activation such as"),
        (lambda: ERF(X), ValueError, r"GELU\(approximate='erf'\) has .*, expected one of \[{'approximate': 'none'}, "),
        (lambda: fit(Model([InputLayer(5), Dense(3, ERF)])), ValueError, "GELU.* has .*'erf'.*, expected one of"),
        (lambda: sc.SiLU().backward(X, X), ValueError, r"a has no attribute z, expected what a call of SiLU\(\) has"),
        (lambda: Dense(0), ValueError, "units is 0, expected a positive integer"),
        (lambda: InputLayer(2.0), TypeError, "n_input_features is 2.0"),
        (lambda: InputLayer((1, 0)), ValueError, "n_input_features is 0, expected a positive integer"),
        (lambda: InputLayer(()), ValueError, "n_input_features is empty, expected a number of features, or the shape"),
        (lambda: Model([InputLayer((2, 3)), Dense(4)]), ValueError, r"layers give \(2, 4\) .* expected \(n_out,\)"),
        (lambda: images(Flatten()).predict(X), ValueError, r"x has shape \(8, 5\), expected \(samples, 1, 2, 2\)"),
        (lambda: images(Flatten()).predict(X[0, :4]), ValueError, r"x has shape \(4,\), expected \(samples, 1, 2, 2\)"),
        (lambda: fit(images(Flatten())), ValueError, r"x_train has shape \(8, 5\), expected \(samples, 1, 2, 2\)"),
        (
            lambda: fit(images(Mean(), Flatten()), X[:, :4], Y),
            ValueError,
            r"x_train has shape \(8, 4\), expected \(samples, 1, 2, 2\)",
        ),
        (lambda: Dropout(1.5), ValueError, "p is 1.5, expected a number from 0 to 1"),
        (lambda: Dropout("half"), TypeError, "p is 'half'"),
        (lambda: fit(Model([InputLayer(5), Dense(3), DROP])), ValueError, r"p is -1.0, expected a number from 0 to 1"),
        (
            lambda: Model.from_torch(nn.Sequential(nn.Linear(2, 3), nn.Mish())),
            TypeError,
            r"module\[1\] is a Mish, expected one of Linear",
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
        (
            lambda: fit(Model([InputLayer(5), Legacy(3)]), optimizer="adam"),
            TypeError,
            "optimizer is Optimizer.*'adam'.*, but Legacy.backward has no argument gradients",
        ),
        (
            lambda: fit(Model([InputLayer(5), Silent(3)]), momentum=0.9),
            ValueError,
            "gradients has none of layers.0.w, expected one of each parameter that is trained",
        ),
        (lambda: sc.Optimizer("sgd", amsgrad=True), ValueError, "amsgrad is True, but optimizer 'sgd' has no such"),
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
