"""scratchcuda.sklearn beside scikit-learn's own estimators, whose conventions scikit-learn's checks test."""

import importlib
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from scratchcuda import sklearn as ours
from scratchcuda.sklearn import MLPClassifier, MLPRegressor

pytestmark = [
    pytest.mark.backends("tensor"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:the loss is NaN:RuntimeWarning"),
]
DIGITS, DIGIT = load_digits(return_X_y=True)
#: Of no feature that is mostly 0, whose gradients are so small that Adam makes steps of their roundings.
X = np.random.default_rng(0).standard_normal((230, 16))
SCORE = np.tanh(X[:, :3] @ [1.0, -1.0, 2.0]) + X[:, 3] * X[:, 4]
#: By name the estimator and its y for X.
TASKS = {
    "classes": ("MLPClassifier", np.array(["low", "middle", "high"])[np.digitize(SCORE, [-0.5, 0.5])]),
    "binary": ("MLPClassifier", SCORE > 0),
    "labels": ("MLPClassifier", np.stack([SCORE > 0, X[:, 5] > 0, X[:, 6] > 1], axis=1).astype(int)),
    "number": ("MLPRegressor", SCORE),
    "numbers": ("MLPRegressor", np.stack([SCORE, X[:, 7]], axis=1)),
}
#: The last batch of an epoch is smaller.
USUAL = {"hidden_layer_sizes": (12, 8), "activation": "tanh", "random_state": 3, "batch_size": 50, "alpha": 0.0}
USUAL |= {"shuffle": False, "learning_rate_init": 0.05, "tol": 0.0, "n_iter_no_change": 1000, "max_iter": 8}


@parametrize_with_checks(
    [MLPClassifier(10, max_iter=10, learning_rate_init=0.1), MLPRegressor(10, max_iter=10, learning_rate_init=0.1)]
)
def test_conventions(estimator, check):
    check(estimator)


def both(task="classes", **options):
    """Ours and theirs, and y."""
    name, y = TASKS[task]
    return *(getattr(module, name)(**USUAL | options) for module in (ours, theirs)), y


def assert_alike(mine, other):
    """Parameters, losses and scores. Some hundred steps add up roundings of 1e-16; Adam divides by the size of
    gradients, small ones too, which are known to fewer digits."""
    atol = 1e-6 if mine.solver == "adam" else 1e-10
    for name in ("coefs_", "intercepts_"):
        for got, expected in zip(getattr(mine, name), getattr(other, name), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=0, atol=atol)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(mine, name) == getattr(other, name), name
    for name in ("loss_", "best_loss_", "validation_scores_", "best_validation_score_"):
        assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=atol), name


SOLVERS = {
    "sgd": {"solver": "sgd", "momentum": 0.0},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False},
    "nesterov": {"solver": "sgd"},
    "adam": {"solver": "adam", "epsilon": 1e-14},  # so small that its place, after a correction or before, is nothing
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_training_is_theirs(task, solver):
    mine, other, y = both(task, **SOLVERS[solver])
    start = clone(mine).set_params(max_iter=1, learning_rate_init=1e-30).fit(X, y).coefs_[0]
    assert_alike(mine.fit(X, y), other.fit(X, y))
    assert np.abs(mine.coefs_[0] - start).max() > 1e-2
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(other, method):
            got, expected = getattr(mine, method)(X), getattr(other, method)(X)
            assert got.shape == expected.shape
            if got.dtype.kind == "f":
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
            else:
                np.testing.assert_array_equal(got, expected)
    assert mine.score(X, y) == pytest.approx(other.score(X, y), abs=1e-6)


@pytest.mark.backends("emulator", "kernels")
@pytest.mark.parametrize("task", ["classes", "numbers"])
@pytest.mark.parametrize("solver", ["nesterov", "adam"])
def test_training_on_kernels_is_theirs(task, solver):
    mine, other, y = both(task, **SOLVERS[solver], hidden_layer_sizes=(6,), max_iter=2)
    x = X[:60]
    assert_alike(mine.fit(x, y[:60]), other.fit(x, y[:60]))
    assert mine.model_.history.path == "graph plan"


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"activation": "logistic"},
        {"activation": "identity"},
        {"hidden_layer_sizes": ()},
        {"hidden_layer_sizes": 5},
        {"batch_size": "auto"},
        {"batch_size": 46, "alpha": 0.3},  # without a smaller last batch, whose penalty would be another
        {"learning_rate": "invscaling", "power_t": 0.3, "momentum": 0.0},  # of momentum the next test has a word
        {"learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1, "max_iter": 30, "momentum": 0.0},
        {"tol": 0.05, "n_iter_no_change": 2, "max_iter": 50},
        {"task": "binary", "early_stopping": True, "validation_fraction": 0.2, "tol": 0.05, "n_iter_no_change": 1},
        {"task": "number", "early_stopping": True, "validation_fraction": 0.2},
    ],
    ids=str,
)
def test_parameters_mean_what_they_mean_there(options):
    mine, other, y = both(**{"solver": "sgd"} | options)
    mine.fit(X, y), other.fit(X, y)
    if mine.alpha:
        other.loss_curve_ = mine.loss_curve_  # which are with the penalty, there
        other.loss_, other.best_loss_ = mine.loss_, mine.best_loss_
    assert_alike(mine, other)
    assert (mine.n_iter_ < mine.max_iter) == ("n_iter_no_change" in options)  # or nothing has stopped


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_goes_on_from_the_last(solver):
    """With the optimizer's state in partial_fit, without it in a warm start; after a pickle too."""
    mine, other, y = both(**SOLVERS[solver], learning_rate="invscaling" if solver == "sgd" else "constant")
    for first, last in ((0, 230), (0, 130), (100, 230)):
        for estimator in (mine, other):
            estimator.partial_fit(X[first:last], y[first:last], classes=np.unique(y))
        mine = pickle.loads(pickle.dumps(mine))
    assert_alike(mine, other)
    for estimator in (mine, other):
        estimator.set_params(warm_start=True).fit(X, y)
    assert_alike(mine, other)
    assert len(mine.loss_curve_) == 3 + mine.max_iter


def test_parameters_that_change_between_fits_count():
    mine, other, y = both(solver="sgd", warm_start=True)
    for estimator in (mine, other):
        estimator.fit(X, y).set_params(activation="relu").fit(X, y)
    assert_alike(mine, other)
    mine.set_params(early_stopping=True).fit(X, y)  # where theirs ends in an AttributeError
    assert mine.best_validation_score_ == max(mine.validation_scores_)
    assert len(mine.validation_scores_) == mine.max_iter
    mine.set_params(early_stopping=False, solver="adam").partial_fit(X, y)
    assert mine.best_loss_ == mine.loss_
    assert mine.model_.optimizer.name == "adam"
    assert mine.predict(X.astype(np.longdouble)).shape == y.shape  # which fit takes, too


def test_a_seed_repeats_a_fit_and_disturbs_no_other():
    state, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    mine, _, y = both(shuffle=True)
    first, again, other = (clone(mine).set_params(random_state=seed).fit(X, y).coefs_[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(of_numpy, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_a_pipeline_and_a_search(dtype):
    x, y = DIGITS[:600].astype(dtype), DIGIT
    network = MLPClassifier(32, batch_size=50, learning_rate_init=0.01, random_state=0, early_stopping=True)
    network.set_params(max_iter=10)
    search = GridSearchCV(make_pipeline(StandardScaler(), network), {"mlpclassifier__alpha": [1e-4, 0.1]}, cv=2)
    assert (
        search.fit(x[:400], y[:400]).score(x[400:], y[400:600]) > 0.7
    )  # of digits of other writers, of which one in ten is chance
    best = search.best_estimator_[-1]
    assert best.model_.dtype == getattr(torch, dtype)
    assert best.predict_proba(x).dtype == dtype
    assert best.best_validation_score_ == max(best.validation_scores_)
    assert best.model_.history.path == "tensor plan"


def test_the_best_parameters_are_restored():
    fits = []
    for scores in ([0.5, 0.9], [0.5, 0.9, 0.7, 0.9], [0.5, 0.6, 0.7, 0.9]):
        mine, _, y = both(early_stopping=True, max_iter=len(scores))
        given = iter(scores)
        mine._score = lambda y, predicted, given=given: next(given)
        fits.append(mine.fit(X, y))
        assert mine.best_validation_score_ == 0.9
        assert mine.validation_scores_ == scores
    after_two, best_of_four, last_of_four = (fit.coefs_[0] for fit in fits)
    assert np.array_equal(after_two, best_of_four)
    assert not np.array_equal(after_two, last_of_four)


def test_the_split_has_all_classes():
    mine, _, y = both(early_stopping=True, validation_fraction=0.2, max_iter=1)
    held_out = []
    mine._score = lambda y, predicted: held_out.extend(y) or 0.0
    mine.fit(X, y)
    counts = [np.unique(part, return_counts=True)[1] / len(part) for part in (y, held_out)]
    np.testing.assert_allclose(*counts, atol=0.5 / len(held_out) + 1e-9)  # whole samples


def test_what_it_says_and_warns(capsys):
    mine, _, y = both(solver="sgd", learning_rate="adaptive", verbose=True, max_iter=4, tol=10.0, n_iter_no_change=1)
    with pytest.warns(ConvergenceWarning, match="max_iter is 4"):
        mine.fit(X, y)
    assert "Iteration 4, loss = " in (out := capsys.readouterr().out)
    assert "the learning rate becomes 0.01" in out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine.set_params(learning_rate="constant").fit(X, y)
    assert mine.model_.history.stopped in capsys.readouterr().out
    with pytest.warns(UserWarning, match="batch_size is 231, of 230 samples"):
        mine.set_params(batch_size=231).fit(X, y)


def test_an_interrupted_fit_keeps_what_it_has():
    mine, _, y = both()

    def interrupt(*_):
        raise KeyboardInterrupt

    mine._score, mine.early_stopping = interrupt, True
    with pytest.warns(UserWarning, match="interrupted"):
        mine.fit(X, y)
    assert mine.n_iter_ == len(mine.loss_curve_) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"solver": "lbfgs"}, r"'solver' parameter of MLPClassifier must be a str among {'(sgd|adam)', '(sgd|adam)'}"),
        ({"solver": "newton"}, "Got 'newton'"),
        ({"hidden_layer_sizes": (5, 0)}, r"hidden_layer_sizes\[1\] is 0, expected a positive integer"),
        ({"early_stopping": True, "validation_fraction": 0.001}, "validation_fraction|test_size"),
        ({"solver": "sgd", "learning_rate_init": 1e300, "activation": "identity"}, "not finite.*learning_rate_init"),
        ({"device": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_an_error(options, error):
    mine, _, y = both()
    with pytest.raises((ValueError, RuntimeError), match=error):
        mine.set_params(**options).fit(X, y)


def test_partial_fit_has_errors_of_its_own():
    mine, _, y = both()
    with pytest.raises(ValueError, match="classes must be passed"):
        mine.partial_fit(X, y)
    mine.partial_fit(X, y, classes=np.unique(y))
    with pytest.raises(ValueError, match="y holds 'letter', expected one of the labels so far, \\['high'"):
        mine.partial_fit(X[:1], ["letter"])
    with pytest.raises(ValueError, match="early_stopping is True, expected False"):
        mine.set_params(early_stopping=True).partial_fit(X, y)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "scratchcuda.sklearn")
    with pytest.raises(ModuleNotFoundError, match=r"pip install '.\[sklearn\]'"):
        importlib.import_module("scratchcuda.sklearn")
