"""Where the time of a training step goes: for each op its times, its least work, what limits it, and torch's time."""

from scratchcuda.profiler.profile import Profile, profile

__all__ = ["Profile", "profile"]
