"""What both estimators share: scikit-learn's parameters, data and attributes around a Model."""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from scratchcuda.engine.activations import Linear, ReLU, Sigmoid, Softmax, Tanh
from scratchcuda.engine.layers import Dense, InputLayer
from scratchcuda.engine.losses import MSE, BinaryCrossEntropy, CrossEntropy
from scratchcuda.engine.model import Model
from scratchcuda.ops import _checks
from scratchcuda.sklearn.epochs import Epochs

ACTIVATIONS = {"identity": Linear, "logistic": Sigmoid, "tanh": Tanh, "relu": ReLU, "softmax": Softmax}
#: By the activation of the outputs.
LOSSES = {"identity": MSE, "logistic": BinaryCrossEntropy, "softmax": CrossEntropy}


class MLP(BaseEstimator):
    """Base class of both.

    Attributes:
        model_: the :class:`scratchcuda.Model`, which may be used by itself, as ``model_.to_torch()``.
    """

    model_: Model
    out_activation_: str
    n_outputs_: int
    n_iter_: int
    _rate: float
    _best: dict[str, Tensor]
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions({"identity", "logistic", "tanh", "relu"})],
        "solver": [StrOptions({"sgd", "adam"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "device": [str, torch.device, None],
    }

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        device: torch.device | str | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.device = device

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights of each layer (n_in, n_out): those of the model itself on a CPU, copies from a GPU."""
        return [w.numpy(force=True) for w in [*self.model_.parameters()][::2]]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases of each layer (n_out,), as :attr:`coefs_`."""
        return [b.numpy(force=True) for b in [*self.model_.parameters()][1::2]]

    @property
    def n_layers_(self) -> int:
        """How many layers there are, that of the inputs and that of the outputs among them."""
        return len(self.model_.layers) + 1

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train anew, or with ``warm_start`` go on from the parameters of the fit before.

        Args:
            X: inputs (samples, features), an array, a table or a sparse matrix.
            y: labels or numbers (samples,), or (samples, outputs).
        """
        return self._train(X, y, incremental=False)

    def _targets(self, y: Any, learn: bool) -> np.ndarray:
        """Targets as the loss takes them, of y as it was given; ``learn`` from it which labels there are."""
        raise NotImplementedError

    def _outputs_of(self, targets: np.ndarray) -> tuple[str, int]:
        """The activation of the outputs for these targets, and how many outputs there are."""
        raise NotImplementedError

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions as y has them, from outputs of the network."""
        raise NotImplementedError

    def _score(self, y: np.ndarray, predicted: np.ndarray) -> float:
        raise NotImplementedError

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        """What the parts of a split have in the same proportions."""
        return None

    def _train(self, X: Any, y: Any, incremental: bool) -> Self:  # noqa: N803
        if incremental and self.early_stopping:
            raise ValueError("early_stopping is True, expected False: partial_fit trains for a single epoch")
        begins = not hasattr(self, "model_") or not (self.warm_start or incremental)
        x, y = validate_data(
            self,
            X,
            y,
            accept_sparse=("csr", "csc"),
            multi_output=True,
            y_numeric=isinstance(self, RegressorMixin),
            dtype=(np.float64, np.float32),
            reset=begins,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        targets = self._targets(y, begins and not incremental)
        x, random = _dense(x), check_random_state(self.random_state)
        if begins:
            self._begin(x, targets, random)
        elif self.early_stopping != (self.best_loss_ is None):
            Epochs.begin_comparing(self)
        score = None
        if self.early_stopping:
            x, x_valid, _, y_valid, targets, _ = train_test_split(
                x, y, targets, test_size=self.validation_fraction, stratify=self._strata(y), random_state=random
            )
            if len(x_valid) < 2:
                raise ValueError(
                    f"validation_fraction is {self.validation_fraction}, which leaves {len(x_valid)} samples "
                    "to validate with, expected at least 2"
                )

            def score() -> float:
                predicted = self._labels(self._outputs(x_valid))
                finite = predicted.dtype.kind != "f" or np.isfinite(predicted).all()
                return self._score(y_valid, predicted) if finite else math.nan

        self._run(x, targets, random, score, incremental)
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "the training has made parameters that are not finite; X may hold large values, which need scaling, "
                f"or learning_rate_init, which is {self.learning_rate_init}, may be too large"
            )
        return self

    def _begin(self, x: np.ndarray, targets: np.ndarray, random: np.random.RandomState) -> None:
        """Make the model, with the initial values that scikit-learn draws, and forget all of fits before."""
        hidden: Any = self.hidden_layer_sizes
        hidden = list(hidden) if np.ndim(hidden) else [hidden]
        units = [_checks.positive_int(f"hidden_layer_sizes[{i}]", size) for i, size in enumerate(hidden)]
        self.out_activation_, self.n_outputs_ = self._outputs_of(targets)
        sizes = [x.shape[1], *units, self.n_outputs_]
        layers = [*map(Dense, units), Dense(self.n_outputs_, ACTIVATIONS[self.out_activation_]())]
        # The numbers that it draws are from a source of its own, since all are replaced.
        options: dict[str, Any] = {"device": "cpu", "generator": torch.Generator("cpu")}
        loss_f, dtype = LOSSES[self.out_activation_](), getattr(torch, x.dtype.name)
        model = Model([InputLayer(sizes[0]), *layers], loss_f, dtype=dtype, **options)
        for layer, (n_in, n_out) in zip(layers, pairwise(sizes), strict=True):
            bound = math.sqrt((2 if self.activation == "logistic" else 6) / (n_in + n_out))
            w, b = (random.uniform(-bound, bound, shape) for shape in ((n_in, n_out), (n_out,)))
            layer.set_params(torch.from_numpy(w.T), torch.from_numpy(b))
        self.model_ = model.to(torch.get_default_device() if self.device is None else self.device)
        Epochs.begin(self)

    def _run(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        random: np.random.RandomState,
        score: Callable[[], float] | None,
        incremental: bool,
    ) -> None:
        """Train the model; ``score`` is that of the samples held out."""
        model, samples = self.model_, len(x)
        hidden: Any = model.layers[:-1]
        for layer in hidden:
            layer.act_f = ACTIVATIONS[self.activation]()
        batch_size = min(200, samples) if isinstance(self.batch_size, str) else self.batch_size
        if batch_size > samples:
            warnings.warn(f"batch_size is {batch_size}, of {samples} samples: it is taken as {samples}", stacklevel=5)
            batch_size = samples
        # How many times scikit-learn's gradient, and the loss that it tells, are the model's, a mean over outputs too.
        of_gradient, of_loss = {
            "identity": (self.n_outputs_ / 2, 1 / 2),
            "logistic": (self.n_outputs_, self.n_outputs_),
            "softmax": (1, 1),
        }[self.out_activation_]
        decay = self.alpha / batch_size / of_gradient
        factor = 1 if self.solver == "adam" else of_gradient  # Adam's steps are as large, however large the gradient
        if incremental and model.optimizer is not None and model.optimizer.name == self.solver:  # another begins anew
            model.optimizer.weight_decay = decay
            options: dict[str, Any] = {"optimizer": model.optimizer}
        else:
            self._rate = self.learning_rate_init
            options = {"optimizer": self.solver, "weight_decay": decay}
            if self.solver == "adam":
                options |= {"betas": (self.beta_1, self.beta_2), "eps": self.epsilon / of_gradient}
            else:
                options |= {"momentum": self.momentum, "nesterov": bool(self.nesterovs_momentum and self.momentum)}
        epochs = Epochs(self, samples, batch_size, of_loss, factor, score)
        seed = random.randint(np.iinfo(np.int32).max)
        self.n_iter_ = 0
        try:
            history = model.fit(
                x,
                targets,
                1 if incremental else self.max_iter,
                epochs.lr,
                batch_size,
                shuffle=self.shuffle,
                generator=torch.Generator(model.device).manual_seed(seed),
                verbose=False,
                callbacks=[epochs],
                **options,
            )
        except KeyboardInterrupt:
            warnings.warn("the training was interrupted, and ends with its last step", stacklevel=5)
        else:
            if not (incremental or history.stopped):
                message = f"max_iter is {self.max_iter}, after which the training has not converged yet"
                warnings.warn(message, ConvergenceWarning, stacklevel=5)
        if score is not None:
            model.load_state_dict(self._best)

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        """Of the network (samples, outputs), probabilities in a classifier."""
        return self.model_.predict(x).numpy(force=True)

    def _outputs_for(self, X: Any) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        x = validate_data(self, X, accept_sparse=("csr", "csc"), dtype=(np.float64, np.float32), reset=False)
        return self._outputs(_dense(x))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Predictions (samples,) or (samples, outputs), as y of the fit had them, for X (samples, features)."""
        return self._labels(self._outputs_for(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _dense(x: Any) -> np.ndarray:
    return x.toarray() if issparse(x) else x
