"""What a conversion has done, as data and in words."""

from collections import Counter
from dataclasses import dataclass, field

_FEW = 3  # names that are told one by one


@dataclass
class Conversion:
    """What ``convert`` or ``revert`` has done, by the modules' names in the model.

    Attributes:
        swapped: modules that have changed sides.
        fused: each Linear that computes the activation after it, as things stand, and which.
        left: modules that stay as they are, and each Linear that computes no activation, and why.
        kinds: the classes of all these as they were.
    """

    swapped: list[str] = field(default_factory=list)
    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} swapped: {self._counted(self.swapped)}" if self.swapped else "0 swapped"]
        if self.fused:
            pairs = Counter(f"{self.kinds[name]} with {activation}" for name, activation in self.fused.items())
            lines.append(f"{len(self.fused)} fused: {_counts(pairs)}")
        unfused = any(reason.startswith("not fused") for reason in self.left.values())
        lines.append(f"{len(self.left)} left{' or not fused' if unfused else ''}")
        for reason in dict.fromkeys(self.left.values()):
            names = [name for name in self.left if self.left[name] == reason]
            which = f" ({', '.join(name or 'the model' for name in names)})" if len(names) <= _FEW else ""
            lines.append(f"  {self._counted(names)}: {reason}{which}")
        return "\n".join(lines)

    def _counted(self, names: list[str]) -> str:
        return _counts(Counter(self.kinds[name] for name in names))


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
