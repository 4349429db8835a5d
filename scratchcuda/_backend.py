"""Which backend serves the ops: by default the pure-tensor twins; the emulator by choice."""

import os
from types import TracebackType

BACKENDS = ("tensor", "emulator")


def _checked(source: str, name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


#: The backend in use. One module attribute, which torch.compile guards.
current = _checked("SCRATCHCUDA_BACKEND", os.environ.get("SCRATCHCUDA_BACKEND") or "tensor")


class use_backend:  # noqa: N801  (a function to its users, as torch.no_grad)
    """Choose the backend that serves the ops from here on, or, in a ``with`` statement, within its block.

    Args:
        name: "tensor" (torch's tensor operations, on any device) or "emulator" (the CUDA kernels' sources compiled
            for the CPU; CPU tensors only, much slower, and stricter than a GPU).

    The environment variable ``SCRATCHCUDA_BACKEND`` names the one to begin with, read once, at import.
    """

    def __init__(self, name: str):
        global current
        self._previous = current
        current = _checked("name", name)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global current
        current = self._previous
