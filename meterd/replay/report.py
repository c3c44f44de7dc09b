"""What a replay found, as data: counted row by row here, shown by `render`.

Nothing here knows an engine: `add` takes the subject, the costs and the answer. Counts are rows;
amounts are in the limit's own units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meterd.catalog import merge
from meterd.describe import rule
from meterd.policy import Flag, Plan
from meterd.replay.inputs import Traffic
from meterd.replay.records import Problem
from meterd.timespec import UNIT_MS, format_instant

_STEPS = (
    ("s", (1, 2, 5, 10, 15, 30)), ("m", (1, 2, 5, 10, 15, 30)), ("h", (1, 2, 3, 6, 12)),
    ("d", (1, 2, 7, 14, 28)),
)  # fmt: skip
_STEPS_MS = [count * UNIT_MS[unit] for unit, counts in _STEPS for count in counts]
_MAX_STEPS = 30


@dataclass(slots=True)
class LimitTotals:
    """One limit over the whole replay.

    `allowed` rows charged `allowed_amount`; `refused` rows, asking `refused_amount`, did not fit
    it; `refused_alone` of them fit every other limit.
    """

    name: str
    kind: str
    rule: str
    rates: Mapping[str, int]
    allowed: int = 0
    allowed_amount: int = 0
    refused: int = 0
    refused_amount: int = 0
    refused_alone: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "rule": self.rule,
            "allowed": self.allowed,
            "allowed_amount": self.allowed_amount,
            "refused": self.refused,
            "refused_amount": self.refused_amount,
            "refused_alone": self.refused_alone,
        }


@dataclass(slots=True)
class SubjectTotals:
    """One subject: rows allowed and refused, and the refusing limits by rows."""

    subject: tuple[str, ...]
    allowed: int = 0
    refused: int = 0
    by: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        counts = {"allowed": self.allowed, "refused": self.refused}
        return {"subject": list(self.subject), **counts, "by": dict(self.by.most_common())}


@dataclass(slots=True)
class CostTotals:
    allowed: int = 0
    refused: int = 0


@dataclass(slots=True)
class Report:
    """Totals of one replay. `timeline` maps the start of each `step_ms` to [allowed, refused]."""

    plans: tuple[Plan, ...]
    first_ms: int = 0
    last_ms: int = 0
    step_ms: int = 1000
    allowed: int = 0
    refused: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    limits: dict[str, LimitTotals] = field(default_factory=dict)
    costs: dict[str, CostTotals] = field(default_factory=dict)
    subjects: dict[tuple[str, ...], SubjectTotals] = field(default_factory=dict)
    timeline: dict[int, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    # About the input; filled in by `describe_input`.
    source: str = ""
    format: str = ""
    built_in: bool = False
    unreadable: int = 0
    problems: Sequence[Problem] = ()
    reordered: int = 0
    columns: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, plans: Sequence[Plan], first_ms: int = 0, last_ms: int = 0) -> Report:
        """A report for traffic between two instants, all that `plans` add up to at zero."""
        report = cls(tuple(plans), first_ms, last_ms, _step_ms(first_ms, last_ms))
        for limit in merge(plans):
            if not isinstance(limit, Flag):
                totals = LimitTotals(limit.name, limit.kind, rule(limit), limit.charges)
                report.limits[limit.name] = totals
        return report

    @property
    def rows(self) -> int:
        return self.allowed + self.refused

    def describe_input(self, traffic: Traffic, *, source: str, format: str) -> None:
        self.source, self.format = source, format
        self.unreadable, self.problems = traffic.unreadable, traffic.problems
        self.reordered = traffic.reordered
        self.columns = {
            "time": traffic.time, "subject": list(traffic.subject), "costs": traffic.costs,
        }  # fmt: skip

    def add(
        self,
        time_ms: int,
        subject: tuple[str, ...],
        costs: Mapping[str, int],
        *,
        allowed: bool,
        code: str,
        applied: Iterable[tuple[str, int]] = (),
        refused: Iterable[str] = (),
    ) -> None:
        """Count one row. `applied`: (limit, amount) charged; `refused`: limits that did not fit."""
        self.codes[code] += 1
        who = self.subjects.get(subject)
        if who is None:
            who = self.subjects[subject] = SubjectTotals(subject)
        start = time_ms - time_ms % self.step_ms
        self.timeline.setdefault(start, [0, 0])[0 if allowed else 1] += 1
        if allowed:
            self.allowed += 1
            who.allowed += 1
            for name, amount in applied:
                if name in self.limits:
                    self.limits[name].allowed += 1
                    self.limits[name].allowed_amount += amount
        else:
            self.refused += 1
            who.refused += 1
            names = tuple(refused)
            who.by.update(names or (code,))
            for name in names:
                totals = self.limits[name]
                totals.refused += 1
                totals.refused_amount += sum(
                    amount * totals.rates.get(cost, 0) for cost, amount in costs.items()
                )
                totals.refused_alone += len(names) == 1
        for cost, amount in costs.items():
            both = self.costs.setdefault(cost, CostTotals())
            if allowed:
                both.allowed += amount
            else:
                both.refused += amount

    def refused_most(self, count: int = 10) -> list[SubjectTotals]:
        """Subjects with refusals, most first; ties by name."""
        some = [who for who in self.subjects.values() if who.refused]
        return sorted(some, key=lambda who: (-who.refused, who.subject))[:count]

    def steps(self) -> list[tuple[int, int, int]]:
        """The timeline without gaps: (start in ms, allowed, refused)."""
        if not self.timeline:
            return []
        starts = range(min(self.timeline), max(self.timeline) + 1, self.step_ms)
        return [(at, *self.timeline.get(at, (0, 0))) for at in starts]

    def as_dict(self, *, top: int = 10) -> dict[str, Any]:
        """JSON-ready; `top` subjects are listed, instants are ISO text in UTC."""
        return {
            "source": self.source,
            "format": self.format,
            "columns": self.columns,
            "plan": self.plans[0].id,
            "plans": [plan.id for plan in self.plans],
            "built_in_plan": self.built_in,
            "first": format_instant(self.first_ms) if self.rows else None,
            "last": format_instant(self.last_ms) if self.rows else None,
            "rows": self.rows,
            "allowed": self.allowed,
            "refused": self.refused,
            "codes": dict(self.codes),
            "costs": {
                name: {"allowed": both.allowed, "refused": both.refused}
                for name, both in self.costs.items()
            },
            "limits": [totals.as_dict() for totals in self.limits.values()],
            "subjects": len(self.subjects),
            "subjects_refused": sum(who.refused > 0 for who in self.subjects.values()),
            "refused_most": [who.as_dict() for who in self.refused_most(top)],
            "timeline": {
                "step_ms": self.step_ms,
                "steps": [
                    {"at": format_instant(at), "allowed": allowed, "refused": refused}
                    for at, allowed, refused in self.steps()
                ],
            },
            "out_of_order": self.reordered,
            "unreadable": {
                "count": self.unreadable,
                "first": [{"line": p.line, "reason": p.reason} for p in self.problems],
            },
            "seconds": round(self.seconds, 3),
        }


def _step_ms(first_ms: int, last_ms: int) -> int:
    """The smallest round step that covers the range in at most `_MAX_STEPS` lines."""
    for step in _STEPS_MS:
        if last_ms // step - first_ms // step < _MAX_STEPS:
            return step
    year = 365 * UNIT_MS["d"]
    return year * (1 + (last_ms - first_ms) // (year * _MAX_STEPS))
