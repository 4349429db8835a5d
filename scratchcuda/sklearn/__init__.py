"""scikit-learn's multi-layer perceptrons, trained by :meth:`scratchcuda.Model.fit`. Needs the extra ``sklearn``."""

try:
    import sklearn as _sklearn  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "sklearn":
        raise
    message = "scratchcuda.sklearn needs scikit-learn. Install scratchcuda with its extra: pip install '.[sklearn]'"
    raise ModuleNotFoundError(message, name="sklearn") from None

from scratchcuda.sklearn.estimators import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
