"""The statistics of a run: medians, quartiles, ratios between neighbours in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


def divided(value: float, by: float) -> float:
    """0 where the divisor is 0: a sample too small for the clock says nothing."""
    return value / by if by else 0.0


@dataclass(slots=True)
class Measure:
    """One quantity of several contenders, sample by sample.

    Beside every sample stands what the reference showed next to it, so that a ratio is between two
    samples that the machine's other work slowed alike.
    """

    name: str
    unit: str
    reference: str
    more_is_better: bool = True
    bare: bool = False  # a count whose ratio nobody needs to see
    samples: dict[str, list[float]] = field(default_factory=dict)
    beside: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float, reference: float) -> None:
        self.samples.setdefault(name, []).append(value)
        self.beside.setdefault(name, []).append(reference)

    def add_round(self, values: Mapping[str, float]) -> None:
        """One sample of everybody, the reference among them."""
        for name, value in values.items():
            self.add(name, value, values[self.reference])

    def value(self, name: str) -> Spread:
        return Spread.of(self.samples[name])

    def ratio(self, name: str, over: str | None = None) -> Spread:
        """As a multiple of the reference, or of another contender."""
        mine = list(map(divided, self.samples[name], self.beside[name]))
        if over is None or over == self.reference:
            return Spread.of(mine)
        theirs = map(divided, self.samples[over], self.beside[over])
        return Spread.of([divided(a, b) for a, b in zip(mine, theirs, strict=True)])

    def best(self, names: Sequence[str]) -> str | None:
        """Which of those that were measured has the best median; None if none was."""
        found = [name for name in names if name in self.samples]
        if not found:
            return None
        pick = max if self.more_is_better else min
        return pick(found, key=lambda name: median(self.samples[name]))
