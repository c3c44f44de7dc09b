"""What pools tell of themselves: events, once per period, and what is billed, as it changes.

A record collects what it has to tell in `told`; it is told when the record is stored. Billed is the
use of a period (all of it, or what went over) but for what open holds have of it; harvesting says
how that has changed, and the end of a period says the last word. What a hold keeps of a period that
was over before it ended is said by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tests.oracle.holds import Part
from tests.oracle.limits import PoolSpec, PoolState
from tests.oracle.records import Record

Path = tuple[str, ...]


class Event(NamedTuple):
    type: str
    subject: Path
    name: str
    plan: str
    limit: int | None
    used: int
    remaining: int | None
    start: int
    end: int | None
    at: int
    threshold: str | None = None


class Entry(NamedTuple):
    """A change of what is billed of a period. `how`: "use" or "overage"."""

    subject: Path
    pool: str
    delta: int
    sequence: int
    start: int
    end: int | None
    at: int
    how: str


@dataclass
class Journal:
    """Everything that was told, in no particular order."""

    events: list[Event]
    entries: list[Entry]

    def tell(self, path: Path, record: Record, now: int) -> None:
        for kind, *rest in record.told:
            if kind == "entry":
                name, delta, sequence, start, end, how = rest
                self.entries.append(Entry(path, name, delta, sequence, start, end, now, how))
            else:
                name, plan, limit, used, remaining, start, end, *threshold = rest
                self.events.append(
                    Event(
                        kind, path, name, plan, limit, used, remaining, start, end, now, *threshold
                    )
                )
        record.told = []


def plan_of(record: Record) -> str:
    """The plan that events name: that of the group "base", else of the first group."""
    if not record.plans:
        return ""
    named = record.plans.get("base") or record.plans[min(record.plans)]
    return named if isinstance(named, str) else str(named.id)


@dataclass(frozen=True)
class Book:
    """Of one pool: what was harvested of the running period, and how many entries were made.

    `base`: use of the running period from before the pool was billed as it is.
    """

    harvested: int = 0
    sequence: int = 0
    base: int = 0


class Held(NamedTuple):
    """What open holds have of a pool's period."""

    units: int = 0
    over: int = 0


# Periods ------------------------------------------------------------------------------------------


def bring(record: Record, name: str, now: int) -> None:
    """The state of a limit is stored as it is now; a period that is over is told of."""
    spec, state = record.specs[name], record.states[name]
    if isinstance(spec, PoolSpec) and spec.ended(state, now):
        close(record, spec, state, state.end)
    record.states[name] = spec.bring(state, now)


def close(record: Record, spec: PoolSpec, state: PoolState, end: int | None) -> None:
    """A period is over, or cut short, at `end`. What its grants have left is not the period's."""
    if not state.open:
        return
    figures = spec.figures(state, 0)
    if figures.used > 0:
        shown = (plan_of(record), spec.limit, figures.used, figures.remaining, state.start, end)
        record.told.append(("closed", spec.name, *shown))
    last_word(record, spec, state, held(record, spec.name, state))


def last_word(record: Record, spec: PoolSpec, state: PoolState, taken: Held) -> None:
    if spec.bill is None:
        return
    book = record.books.get(spec.name, Book())
    delta = max(0, billed(spec, state, taken) - book.base) - book.harvested
    if delta:
        enter(record, spec.name, delta, state.start, state.end, spec.bill)
    if spec.name in record.books:
        book = record.books[spec.name]
        record.books[spec.name] = replace(book, harvested=0, base=0)


def switch(record: Record, old: PoolSpec, new: PoolSpec, state: PoolState) -> None:
    """The running period goes on, billed in another way: what came before stays as it was."""
    taken = held(record, new.name, state)
    last_word(record, old, state, taken)
    base = billed(new, state, taken) if new.bill is not None else 0
    if base:
        record.books[new.name] = replace(record.books.get(new.name, Book()), base=base)


def harvest(record: Record, spec: PoolSpec, state: PoolState) -> None:
    if spec.bill is None:
        return
    book = record.books.get(spec.name, Book())
    units = max(0, billed(spec, state, held(record, spec.name, state)) - book.base)
    if units > book.harvested:
        delta = units - book.harvested
        enter(record, spec.name, delta, state.start, state.end, spec.bill)
        book = record.books[spec.name]
        record.books[spec.name] = replace(book, harvested=units)


def enter(record: Record, name: str, delta: int, start: int, end: int | None, how: str) -> None:
    book = record.books.get(name, Book())
    record.books[name] = replace(book, sequence=book.sequence + 1)
    record.told.append(("entry", name, delta, book.sequence + 1, start, end, how))


def billed(spec: PoolSpec, state: PoolState, taken: Held) -> int:
    if spec.bill == "overage":
        return max(0, state.over - taken.over)
    return max(0, state.used + state.drawn + state.over - taken.units)


# Holds --------------------------------------------------------------------------------------------


def held(record: Record, name: str, state: PoolState) -> Held:
    """Of the period of this state."""
    mine = [hold.parts[name] for hold in record.holds.values() if name in hold.parts]
    mine = [part for part in mine if part.of_spec is PoolSpec and part.mark == state.start]
    mine = [part for part in mine if part.incarnation == record.incarnation(name)]
    return Held(sum(part.charged for part in mine), sum(part.over for part in mine))


def stands(record: Record, name: str, part: Part) -> bool:
    """Whether the period that was charged is the one that is stored."""
    spec = record.specs.get(name)
    same = isinstance(spec, PoolSpec) and part.incarnation == record.incarnation(name)
    return same and record.states[name].start == part.mark


def over(record: Record, name: str, now: int) -> bool:
    return bool(record.specs[name].ended(record.states[name], now))


def runs(record: Record, name: str, part: Part, now: int) -> bool:
    """Whether the period that was charged goes on at `now`, be it written since it ended or not."""
    return stands(record, name, part) and not over(record, name, now)


def kept(record: Record, name: str, part: Part, keep: int, now: int) -> None:
    """A hold has ended and keeps that much of a part; of a period that is over, it is said now."""
    if part.bill is None or runs(record, name, part, now):
        return
    units = keep if part.bill == "use" else max(0, part.over - (part.charged - keep))
    if units:
        enter(record, name, units, part.mark, part.end, part.bill)


def last_of(record: Record, now: int) -> None:
    """The record is removed, and its holds with it: what was tallied stays."""
    back: dict[str, list[tuple[int, int]]] = {}
    for hold in record.holds.values():
        for name, part in hold.parts.items():
            keep = part.of(hold.tallied)
            if part.of_spec is PoolSpec and stands(record, name, part):
                given = part.charged
                if not over(record, name, now):
                    given -= keep
                back.setdefault(name, []).append((given, min(given, part.over)))
            if part.bill is not None and not runs(record, name, part, now):
                kept(record, name, part, keep, now)
    for name, spec in record.specs.items():
        if isinstance(spec, PoolSpec) and record.states[name].open:
            rows = back.get(name, [])
            taken = Held(sum(units for units, _ in rows), sum(over for _, over in rows))
            last_word(record, spec, record.states[name], taken)
    record.told = [row for row in record.told if row[0] == "entry"]


# Marks --------------------------------------------------------------------------------------------


def say(record: Record, name: str, state: PoolState, now: int) -> PoolState:
    """After a charge: every mark that has become true is set, and told."""
    spec = record.specs[name]
    for mark in spec.true_marks(state, now):
        if mark not in state.said:
            state = state._replace(said=state.said | {mark})
            tell_mark(record, spec, state, mark, now)
    return state


def exhaust(record: Record, name: str, state: PoolState, now: int) -> PoolState:
    """After a refused charge."""
    state = state._replace(said=state.said | {("exhausted",)})
    tell_mark(record, record.specs[name], state, ("exhausted",), now)
    return state


def tell_mark(record: Record, spec: PoolSpec, state: PoolState, mark: Any, now: int) -> None:
    figures = spec.figures(state, now)
    period: Iterable[Any] = (state.start, state.end)
    shown = (plan_of(record), spec.limit, figures.used, figures.remaining, *period)
    if mark[0] in ("exhausted", "overage"):
        record.told.append((mark[0], spec.name, *shown))
    else:
        threshold = str(mark[1]) if mark[0] == "below" else str(mark[1] / 1_000_000)
        record.told.append(("warn", spec.name, *shown, threshold))
