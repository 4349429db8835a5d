"""Two profiles side by side: the same phases, layers, ops and whole steps, and their tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scratchcuda.ops import _checks
from scratchcuda.profiler.findings import Findings
from scratchcuda.profiler.tables import Text, ratio, spread

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

    first: Findings
    second: Findings

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

        _checks.positive_int("top", top)
        report.show_comparison(self.differences, compared(self, top))


def _matched(first: Times, second: Times) -> dict[tuple[str, ...], Sides]:
    return {key: Sides(first.get(key), second.get(key)) for key in first | second}


def _sums(profile: Findings, names: Iterable[str]) -> Times:
    found: Times = {}
    for row in profile.rows:
        key = tuple(getattr(row, name) for name in names)
        found[key] = [before + row.calls * q for before, q in zip(found.get(key, [0.0] * 3), row.warm, strict=True)]
    return found


def _facts(profile: Findings) -> dict[str, Any]:
    """All that times depend on, but for what no two runs have in common."""
    found = {"title": profile.title, "dtype": profile.dtype, "path": profile.path} | profile.conditions
    found |= found.pop("versions") | found.pop("settings")
    found["tensors of the first op"] = profile.rows[0].shapes
    return {name: value for name, value in found.items() if name not in ("date", "clocks")}


def compared(comparison: Comparison, top: int) -> list[Text]:
    """Steps, phases, and the most expensive layers and ops of two profiles."""
    found = [_compared("Steps", [""], comparison.steps), _compared("Phases", ["phase"], comparison.ops("phase"))]
    for title, names in {"Layers": ["layer", "phase"], "Ops": ["layer", "phase", "op"]}.items():
        sides = comparison.ops(*names)
        longest = sorted(sides, key=lambda key: -max(of[1] for of in (sides[key].first, sides[key].second) if of))
        found.append(_compared(title, names, {key: sides[key] for key in sides if key in longest[:top]}))
    note = "Of a step; of phases, layers and ops the sums of warm times, of layers and ops of those that take longest. "
    note += "Ratio: the first one's time divided by the second's; a tie where the quartiles overlap."
    found[-1].note = note
    return found


def _compared(title: str, names: Sequence[str], sides: Mapping[tuple[str, ...], Sides]) -> Text:
    numbered = len(names) > 1
    rows = []
    for i, (key, both) in enumerate(sides.items(), 1):
        times = [["", ""] if of is None else spread(of, 1e6) for of in (both.first, both.second)]
        rows.append([*[str(i)] * numbered, *key, *times[0], *times[1], ratio(both.ratio)])
    header = [*[""] * numbered, *names, "first, µs", "first quartiles", "second, µs", "second quartiles", "ratio"]
    return Text(title, header, rows, "", tuple(names))
