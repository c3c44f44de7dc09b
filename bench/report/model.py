"""What a run found out, as plain values: what JSON keeps, and what tables and chart are from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.registry import Finding
from ..core.stats import Measure


@dataclass(frozen=True, slots=True)
class Row:
    """A contender: its median between quartiles, and the same of its ratio to the reference."""

    name: str
    value: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, slots=True)
class Table:
    """A measure, the best first."""

    name: str
    unit: str
    reference: str
    more_is_better: bool
    bare: bool  # without ratios
    samples: int
    rows: list[Row]

    @classmethod
    def of(cls, measure: Measure) -> Table:
        rows = []
        for name in measure.samples:
            value, ratio = measure.value(name), measure.ratio(name)
            figures = (value.median, value.low, value.high, ratio.median, ratio.low, ratio.high)
            rows.append(Row(name, *(rounded(figure) for figure in figures)))
        return cls(
            name=measure.name,
            unit=measure.unit,
            reference=measure.reference,
            more_is_better=measure.more_is_better,
            bare=measure.bare,
            samples=max(map(len, measure.samples.values())),
            rows=rows,
        )

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


@dataclass(frozen=True, slots=True)
class Section:
    """One finding: tables over the same contenders."""

    key: str
    title: str
    note: str
    tables: list[Table]
    absent: dict[str, str]

    @classmethod
    def of(cls, finding: Finding) -> Section:
        tables = [Table.of(measure) for measure in finding.measures]
        return cls(finding.key, finding.title, finding.note, tables, finding.absent)


@dataclass(frozen=True, slots=True)
class GoalRow:
    """A goal and what came of it; `measured` is None where nothing was measured.

    Without a limit it is a figure that belongs beside the goals.
    """

    title: str
    limit: float | None
    at_least: bool
    unit: str
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    against: str = ""  # who was the best peer

    @property
    def met(self) -> bool | None:
        if self.measured is None or self.limit is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    @property
    def word(self) -> str:
        if self.measured is None:
            return "not measured"
        return {True: "met", False: "missed", None: ""}[self.met]


@dataclass(slots=True)
class Report:
    """`about`: versions, commit, machine, effort, when."""

    about: dict[str, Any]
    goals: list[GoalRow] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def section(self, key: str) -> Section | None:
        return next((section for section in self.sections if section.key == key), None)

    def as_dict(self) -> dict[str, Any]:
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        return {
            "about": self.about,
            "goals": goals,
            "sections": [asdict(section) for section in self.sections],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The report that `as_dict` was of."""
        return cls(data["about"], list(_goals(data["goals"])), list(_sections(data["sections"])))


def _goals(found: Iterable[dict[str, Any]]) -> Iterable[GoalRow]:
    for each in found:
        yield GoalRow(**{name: value for name, value in each.items() if name != "met"})


def _sections(found: Iterable[dict[str, Any]]) -> Iterable[Section]:
    for each in found:
        tables = [
            Table(**(table | {"rows": [Row(**row) for row in table["rows"]]}))
            for table in each["tables"]
        ]
        yield Section(**(each | {"tables": tables}))


def rounded(value: float) -> float:
    """To four significant digits: more are noise."""
    return float(f"{value:.4g}")
