"""A bar over the epochs of a fit, in terminals and notebooks."""

from typing import Any


def bar_class() -> Any:
    """tqdm's, as it suits a terminal or a notebook."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress is True, which needs tqdm: pip install 'scratchcuda[progress]'") from error
    return tqdm
