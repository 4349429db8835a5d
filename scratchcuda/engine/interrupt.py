"""Ctrl-C within a fit."""

import _signal  # type: ignore[import-not-found]  # whose functions signal wraps, to look for enums first, at 3 µs each
import signal
import threading
from types import FrameType
from typing import Self


class HeldInterrupt:
    """Holds Ctrl-C back until check(), so that a step always finishes. A second Ctrl-C comes through at once."""

    def __enter__(self) -> Self:
        self.pending = False
        self.previous = _signal.getsignal(signal.SIGINT)
        # Python delivers signals to the main thread only; an ignored signal and a handler set from C stay as they are.
        self.holds = threading.current_thread() is threading.main_thread() and callable(self.previous)
        if self.holds:
            _signal.signal(signal.SIGINT, self._hold)
        return self

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self.frame = frame
        if self.pending:
            self.check()
        self.pending = True

    def check(self) -> None:
        """Pass a signal that was held back on to its handler; Python's own raises KeyboardInterrupt."""
        if self.pending and callable(self.previous):
            self.pending = False
            self.previous(signal.SIGINT, self.frame)

    def __exit__(self, *exception: object) -> None:
        if self.holds:
            _signal.signal(signal.SIGINT, self.previous)
            self.check()
