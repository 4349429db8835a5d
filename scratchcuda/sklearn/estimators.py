"""The classifier and the regressor: what labels and numbers are to the network."""

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels

from scratchcuda.sklearn.base import MLP


class MLPClassifier(ClassifierMixin, MLP):
    """scikit-learn's MLPClassifier, trained by :meth:`scratchcuda.Model.fit`.

    Parameters, methods and attributes are those of :class:`sklearn.neural_network.MLPClassifier`, and a
    ``random_state`` draws the same initial values. What differs:

    - ``device`` is where the network is trained, as "cuda"; torch's default device if None.
    - ``solver`` is "sgd" or "adam". There are no sample weights.
    - The penalty's gradient is ``alpha / batch_size`` times the weights in each step, in a smaller last batch too, and
      ``loss_``, ``loss_curve_`` and ``best_loss_`` are without it.
    - Momentum is torch's: a new learning rate scales all of the velocity, not the gradients to come alone. Adam's
      ``epsilon`` is torch's too, added after the correction of the second moment, not before it.
    - Orders of the samples are torch's, of another sequence from the same ``random_state``.
    - The split of ``early_stopping`` is stratified for several classes too, as it is said to be.
    - Sparse X is made dense, as a whole.

    float32 data are trained in float32, all others in float64.

    Attributes:
        model_: the :class:`scratchcuda.Model`, which serves by itself, as ``model_.to_torch()`` does.
        coefs_, intercepts_: the model's own parameters on a CPU, copies from a GPU.
    """

    classes_: np.ndarray
    _label_binarizer: LabelBinarizer

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:  # noqa: N803
        """Train for one epoch, from where the last call has ended, with its optimizer unless ``solver`` is another now.

        Args:
            X: inputs (samples, features).
            y: labels (samples,), or of several each 0 or 1 (samples, labels).
            classes: all labels that will come (classes,), in the first call; they may be left out after it.
        """
        if _check_partial_fit_first_call(self, classes):
            labels = y if type_of_target(y).startswith("multilabel") else classes
            self._label_binarizer = LabelBinarizer().fit(labels)
        return self._train(X, y, incremental=True)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities (samples, classes), in the order of ``classes_``; of several labels that each is there."""
        outputs = self._outputs_for(X)
        return np.hstack([1 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Logarithms of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))

    def _targets(self, y: Any, learn: bool) -> np.ndarray:
        if learn:
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        elif (unknown := np.setdiff1d(unique_labels(y), self.classes_)).size:
            raise ValueError(
                f"y holds {unknown.tolist()[0]!r}, expected one of the labels so far, {self.classes_.tolist()}"
            )
        if self._label_binarizer.y_type_ == "multiclass":
            return np.searchsorted(self.classes_, y)
        return self._label_binarizer.transform(y)

    def _outputs_of(self, targets: np.ndarray) -> tuple[str, int]:
        if self._label_binarizer.y_type_ == "multiclass":
            return "softmax", len(self.classes_)
        return "logistic", targets.shape[1]

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        return self._label_binarizer.inverse_transform(outputs.ravel() if self.n_outputs_ == 1 else outputs)

    def _score(self, y: np.ndarray, predicted: np.ndarray) -> float:
        return float(accuracy_score(y, predicted))

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        return y if y.ndim == 1 else None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, MLP):
    """scikit-learn's MLPRegressor, trained by :meth:`scratchcuda.Model.fit`.

    Parameters, methods and attributes are those of :class:`sklearn.neural_network.MLPRegressor`, and a
    ``random_state`` draws the same initial values. It differs as :class:`MLPClassifier` does, and its ``loss`` is the
    squared error, halved.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train for one epoch, from where the last call has ended, with its optimizer unless ``solver`` is another now.

        Args:
            X: inputs (samples, features).
            y: numbers (samples,) or (samples, outputs).
        """
        return self._train(X, y, incremental=True)

    def _targets(self, y: Any, learn: bool) -> np.ndarray:
        return y

    def _outputs_of(self, targets: np.ndarray) -> tuple[str, int]:
        return "identity", 1 if targets.ndim == 1 else targets.shape[1]

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.ravel() if self.n_outputs_ == 1 else outputs

    def _score(self, y: np.ndarray, predicted: np.ndarray) -> float:
        return float(r2_score(y, predicted))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
