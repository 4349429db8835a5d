"""What scikit-learn does at the end of each epoch: losses and scores, the learning rate, whether to stop."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from scratchcuda.engine.history import History
from scratchcuda.engine.model import Model

#: The learning rate that "adaptive" does not divide any more.
LEAST_RATE = 1e-6


class Epochs:
    """A callback of Model.fit, and the learning rate of its epochs, for one fit of an estimator.

    What lasts from one call of partial_fit to the next, and with warm_start from fit to fit, is the estimator's.

    Args:
        estimator: what is fitted; gets the attributes that tell of its training.
        samples, batch_size: of an epoch.
        of_loss: how many times the model's loss is the estimator's.
        of_rate: how many times the estimator's learning rate is the model's.
        score: of the samples held out for early stopping; None without.

    Attributes:
        lr: as Model.fit takes it: a number, or a function that gives what the callback has set.
    """

    def __init__(
        self,
        estimator: Any,
        samples: int,
        batch_size: int,
        of_loss: float,
        of_rate: float,
        score: Callable[[], float] | None,
    ):
        self.estimator, self.of_loss, self.score = estimator, of_loss, score
        self.sizes = np.diff([*range(0, samples, batch_size), samples])
        self.schedule = estimator.learning_rate if estimator.solver == "sgd" else "constant"
        self.lr: Any = estimator._rate * of_rate if self.schedule == "constant" else lambda _: estimator._rate * of_rate

    @staticmethod
    def begin(estimator: Any) -> None:
        """Forget all fits before."""
        estimator.t_ = 0
        estimator.loss_curve_ = []
        Epochs.begin_comparing(estimator)

    @staticmethod
    def begin_comparing(estimator: Any) -> None:
        """Forget what was the best, by the training loss or, with early stopping, by the score."""
        estimator._no_improvement_count = 0
        holds_out = estimator.early_stopping
        estimator.best_loss_ = None if holds_out else np.inf
        estimator.validation_scores_ = [] if holds_out else None
        estimator.best_validation_score_ = -np.inf if holds_out else None
        if holds_out:
            estimator._best = _copied(estimator.model_)

    def __call__(self, history: History) -> None:
        of = self.estimator
        of.n_iter_ += 1
        of.t_ += int(self.sizes.sum())
        of.loss_ = self.of_loss * float(self.sizes @ history.step_loss[-len(self.sizes) :]) / int(self.sizes.sum())
        of.loss_curve_.append(of.loss_)
        self._say(f"Iteration {of.n_iter_}, loss = {of.loss_:.8f}")
        improves = self._improves() if self.score is None else self._scores_better(self.score())
        of._no_improvement_count = 0 if improves else of._no_improvement_count + 1
        if self.schedule == "invscaling":
            of._rate = of.learning_rate_init / (of.t_ + 1) ** of.power_t
        if of._no_improvement_count > of.n_iter_no_change:
            what = "training loss" if self.score is None else "validation score"
            self._stop(history, f"the {what} is no better by tol={of.tol} for {of.n_iter_no_change} epochs")

    def _improves(self) -> bool:
        of = self.estimator
        improves = not of.loss_ > of.best_loss_ - of.tol
        if of.loss_ < of.best_loss_:
            of.best_loss_ = of.loss_
        return improves

    def _scores_better(self, score: float) -> bool:
        of = self.estimator
        of.validation_scores_.append(score)
        self._say(f"Validation score: {score:f}")
        improves = not score < of.best_validation_score_ + of.tol
        if score > of.best_validation_score_:
            of.best_validation_score_, of._best = score, _copied(of.model_)
        return improves

    def _stop(self, history: History, reason: str) -> None:
        """Stop, or go on at a smaller learning rate."""
        of = self.estimator
        if self.schedule == "adaptive" and of._rate > LEAST_RATE:
            of._no_improvement_count = 0
            of._rate /= 5
            self._say(f"{reason}: the learning rate becomes {of._rate:g}")
        else:
            history.stop(reason)
            self._say(f"{reason}: stopping")

    def _say(self, line: str) -> None:
        if self.estimator.verbose:
            print(line)


def _copied(model: Model) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in model.state_dict().items()}
