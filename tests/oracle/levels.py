"""The records of all levels: as they are now, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tests.oracle import records, telling
from tests.oracle.changes import Waiting
from tests.oracle.limits import PoolSpec
from tests.oracle.plans import Catalog
from tests.oracle.records import Record
from tests.oracle.requests import Path
from tests.oracle.telling import Journal


@dataclass(slots=True)
class View:
    """A level as it is now. `record` may be a stored one (not `changed`) or a copy to be stored."""

    path: Path
    record: Record | None
    changed: bool = False
    fresh: bool = False  # made up for a root that has no record
    joins: bool = False  # the plan that the call asks for is none it has held so far

    @property
    def depth(self) -> int:
        return len(self.path)


class Levels:
    """Root -> path -> record. `expire_first_sight` as in `Oracle`."""

    def __init__(self, catalog: Catalog, expire_first_sight: bool) -> None:
        self.catalog = catalog
        self.expire_first_sight = expire_first_sight
        self.journal = Journal([], [])
        self.records: dict[str, dict[Path, Record]] = {}

    def now(self, path: Path, now: int) -> int:
        """The clock, or the last instant that a record on the path has seen."""
        level = self.records.get(path[0], {})
        for depth in range(1, len(path) + 1):
            record = level.get(path[:depth])
            if record is not None:
                now = max(now, record.seen)
        return now

    def stored(self, path: Path, now: int) -> Record | None:
        """What was last written, unless it has expired."""
        record = self.records.get(path[0], {}).get(path)
        if record is None or not record.first_sight or not self.expire_first_sight:
            return record
        return None if self.settled(path, record, now).as_new(now) else record

    def settled(self, path: Path, record: Record, now: int) -> Record:
        """The record after all that came by itself up to now."""

        def change(before: Record, group: str, at: int) -> Record:
            return self.after_change(path, before, group, at)

        return records.settled(record, now, change)

    def after_change(self, path: Path, record: Record, group: str, at: int) -> Record:
        """The record after the change that waits in a group, by what the catalog says by now."""
        waiting = record.pending.pop(group)
        plans = {other: plan for other, plan in record.plans.items() if other != group}
        own: frozenset[str] = frozenset()
        if waiting.plan is not None:
            plans[group] = waiting.plan
            named = isinstance(waiting.plan, str)
            plan = self.catalog.plan(waiting.plan) if named else waiting.plan
            own = frozenset(limit.name for limit in plan.includes)
        if len(path) == 1:
            plans = self.joined(plans, None)
        return self.converted(
            record,
            plans,
            at,
            own=own,
            anchor_ms=waiting.anchor_ms,
            change=waiting.change,
            group=group,
        )

    def views(self, path: Path, join: str | None, now: int) -> list[View]:
        if join is not None:
            self.catalog.plan(join)
        views = [self.view(path[:1], join, now)]
        for depth in range(2, len(path) + 1):
            views.append(self.view(path[:depth], None, now))
        return views

    def view(self, path: Path, join: str | None, now: int) -> View:
        stored = self.stored(path, now)
        if stored is None:
            plans = self.joined({}, join) if len(path) == 1 else {}
            if not plans:
                return View(path, None)
            base = self.catalog.merged(plans)
            made = records.fresh(plans, base, self.catalog.revision, now)
            made.first_sight = True
            return View(path, made, changed=True, fresh=True)
        record = self.settled(path, stored, now)
        changed = record.pending != stored.pending
        outdated = record.revision != self.catalog.revision
        plans = record.plans
        if len(path) == 1:
            plans = self.joined(plans, join, defaults=outdated)
        if not outdated and plans == record.plans:
            return View(path, record, changed)
        joins = join is not None and self.catalog.plan(join).group not in record.plans
        return View(path, self.converted(record, plans, now), changed=True, joins=joins)

    def joined(
        self, plans: Mapping[str, Any], join: str | None, defaults: bool = True
    ) -> dict[str, Any]:
        """A root's plans by group, with those it joins added."""
        joined = dict(plans)
        if join is not None and self.catalog.plan(join).group not in joined:
            joined[self.catalog.joinable(join).group] = join
        return {**self.catalog.defaults, **joined} if defaults else joined

    def converted(self, record: Record, plans: dict[str, Any], now: int, **options: Any) -> Record:
        """The record under these plans as the catalog defines them now."""
        options.setdefault("overrides", record.overrides)
        return records.converted(
            record,
            plans=plans,
            base=self.catalog.merged(plans),
            revision=self.catalog.revision,
            now=now,
            **options,
        )

    def settable(self, path: Path, now: int) -> tuple[Record, dict[str, Any]]:
        """The level's record, or a new empty one, and the plans that it is going to hold."""
        stored = self.stored(path, now)
        record = None if stored is None else self.settled(path, stored, now)
        plans: dict[str, Any] = {} if record is None else dict(record.plans)
        if len(path) == 1 and (record is None or record.revision != self.catalog.revision):
            plans = self.joined(plans, None)
        if record is None:
            return records.fresh({}, {}, self.catalog.revision, now), plans
        return record, plans

    def wait(self, path: Path, group: str, waiting: Waiting, now: int) -> None:
        """Let a change wait, in the place of the one that did."""
        stored = self.stored(path, now)
        if stored is None:
            plans = self.joined({}, None) if len(path) == 1 else {}
            base = self.catalog.merged(plans)
            record = records.fresh(plans, base, self.catalog.revision, now)
        else:
            record = records.copy_of(self.settled(path, stored, now))
        record.pending[group] = waiting
        self.store(path, record, now, first_sight=False)

    def rewrite(
        self, path: Path, record: Record, plans: dict[str, Any], now: int, **options: Any
    ) -> None:
        """Store the record under these plans. `options` as for `records.converted`."""
        self.store(path, self.converted(record, plans, now, **options), now, first_sight=False)

    def store(
        self, path: Path, record: Record, now: int, *, first_sight: bool | None = None
    ) -> None:
        self.journal.tell(path, record, now)
        record.seen = now
        if first_sight is not None:
            record.first_sight = first_sight
        self.records.setdefault(path[0], {})[path] = record

    def harvest(self, now: int, seen: Collection[Path]) -> None:
        """What is new of every record is told. Changes that are due come to those in `seen` too."""
        for level in list(self.records.values()):
            for path, stored in list(level.items()):
                at = max(now, stored.seen)
                record = self.settled(path, stored, at)
                came = record.pending != stored.pending
                if came:
                    brought = self.view(path, None, at).record
                    assert brought is not None
                    record = brought
                record = records.copy_of(record)
                records.bring_pools(record, at)
                for name, spec in record.specs.items():
                    if isinstance(spec, PoolSpec):
                        telling.harvest(record, spec, record.states[name])
                if record.told or (came and path in seen):
                    self.store(path, record, at)

    def forget(self, path: Path, now: int) -> None:
        below = self.records.get(path[0], {})
        for below_path, record in below.items():
            if below_path[: len(path)] == path:
                telling.last_of(record, max(now, record.seen))
                self.journal.tell(below_path, record, max(now, record.seen))
        self.records[path[0]] = {p: r for p, r in below.items() if p[: len(path)] != path}
