"""Two profiles side by side: the same phases, layers, ops and whole steps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scratchcuda.profiler.profile import Profile

Times = dict[tuple[str, ...], list[float]]


@dataclass
class Sides:
    """Seconds in each of two profiles, as first quartile, median and third quartile; None where one lacks it."""

    first: list[float] | None
    second: list[float] | None

    @property
    def ratio(self) -> list[float] | None:
        """The first one's time divided by the second's, between the farthest values that their quartiles allow."""
        if self.first is None or self.second is None:
            return None
        return [a / b for a, b in zip(self.first, reversed(self.second), strict=True)]


@dataclass
class Comparison:
    """What :meth:`Profile.compare` gives."""

    first: "Profile"
    second: "Profile"

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """What besides the times is not the same, by name, with both values; None where there is none."""
        facts, others = (_facts(profile) for profile in (self.first, self.second))
        found = {name: (facts.get(name), others.get(name)) for name in facts | others}
        return {name: values for name, values in found.items() if values[0] != values[1]}

    @property
    def steps(self) -> dict[tuple[str, ...], Sides]:
        """Whole steps by who takes them."""
        first, second = (profile.steps.items() for profile in (self.first, self.second))
        return _matched({(who,): step.seconds for who, step in first}, {(who,): step.seconds for who, step in second})

    def ops(self, *names: str) -> dict[tuple[str, ...], Sides]:
        """Warm times in a step, summed over ops that have these in common: of "layer", "phase" and "op"."""
        return _matched(_sums(self.first, names), _sums(self.second, names))

    def show(self, top: int = 15) -> None:
        """Print its tables, of layers and ops the ``top`` most expensive ones; needs what Profile.show does."""
        from scratchcuda.profiler import report

        report.show_comparison(self, top)


def _matched(first: Times, second: Times) -> dict[tuple[str, ...], Sides]:
    return {key: Sides(first.get(key), second.get(key)) for key in first | second}


def _sums(profile: "Profile", names: Iterable[str]) -> Times:
    found: Times = {}
    for row in profile.rows:
        key = tuple(getattr(row, name) for name in names)
        found[key] = [before + row.calls * q for before, q in zip(found.get(key, [0.0] * 3), row.warm, strict=True)]
    return found


def _facts(profile: "Profile") -> dict[str, Any]:
    """All that times depend on, but for what no two runs have in common."""
    found = {"title": profile.title, "dtype": profile.dtype, "path": profile.path} | profile.conditions
    found |= found.pop("versions") | found.pop("settings")
    found["tensors of the first op"] = profile.rows[0].shapes
    return {name: value for name, value in found.items() if name not in ("date", "clocks")}
