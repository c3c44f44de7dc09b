"""What is kept per subject level, and how it moves to another set of definitions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.limits import PoolSpec
from tests.oracle.plans import Specs, overridden


@dataclass(frozen=True)
class Override:
    fields: Mapping[str, int | None]
    expires: int | None


@dataclass(slots=True)
class Record:
    """One level. `specs` is `base` (the merged plans) with the overrides on top, by limit name.

    `plans` maps a group to a plan's id, or to the private plan itself. `states` may lie behind
    (nothing was written since), never ahead. `first_sight`: nobody ever set anything here.
    """

    revision: int
    plans: dict[str, Any]
    base: Specs
    specs: Specs
    states: dict[str, Any]
    seen: int
    overrides: dict[str, Override] = field(default_factory=dict)
    first_sight: bool = False

    def state(self, name: str, now: int) -> Any:
        """The limit's state, brought to now."""
        return self.specs[name].bring(self.states[name], now)

    def full_at(self) -> int | None:
        """When a record that first sight made, of buckets only, is as good as new; None: never."""
        if not self.first_sight:
            return None
        latest = self.seen
        for name, spec in self.specs.items():
            if spec.kind == "pool":
                return None
            if spec.kind == "bucket":
                full = spec.full_at(self.state(name, self.seen), self.seen)
                if full is None:
                    return None
                latest = max(latest, full)
        return latest


def fresh(plans: dict[str, Any], base: Specs, revision: int, now: int) -> Record:
    """A new record whose limits all begin now."""
    states = {name: spec.fresh(now, now) for name, spec in base.items()}
    return Record(revision, plans, base, base, states, now)


def with_overrides(base: Specs, overrides: Mapping[str, Override]) -> Specs:
    specs = base
    for name, override in overrides.items():
        if name in base:
            specs = {**specs, name: overridden(base[name], override.fields)}
    return specs


def without_expired(record: Record, now: int) -> Record:
    """The record after the overrides that have ended, each of them at its own instant."""
    due = {n: o for n, o in record.overrides.items() if o.expires is not None and o.expires <= now}
    if not due:
        return record
    overrides = {name: o for name, o in record.overrides.items() if name not in due}
    specs, states = dict(record.specs), dict(record.states)
    for name, override in due.items():
        if name in specs:
            assert override.expires is not None
            state = record.state(name, override.expires)
            specs[name] = record.base[name]
            states[name] = specs[name].convert(record.specs[name], state, override.expires)
    return Record(
        record.revision,
        record.plans,
        record.base,
        specs,
        states,
        record.seen,
        overrides,
        record.first_sight,
    )


def converted(
    record: Record,
    *,
    plans: dict[str, Any],
    base: Specs,
    revision: int,
    overrides: dict[str, Override],
    now: int,
    own: Collection[str] = (),
    anchor_ms: int | None = None,
    reset: bool = False,
) -> Record:
    """The record under other plans, definitions or overrides, in one step from old to new.

    `own`: names to which an explicit `anchor_ms` and `reset` apply.
    """
    specs = with_overrides(base, overrides)
    states: dict[str, Any] = {}
    for name, spec in specs.items():
        own_anchor_ms = anchor_ms if name in own else None
        anchor = now if own_anchor_ms is None else own_anchor_ms
        old = record.specs.get(name)
        if old is None or old.kind != spec.kind:
            states[name] = spec.fresh(now, anchor)
            continue
        state = record.state(name, now)
        if not isinstance(spec, PoolSpec):
            states[name] = spec.convert(old, state, now)
        elif reset and name in own:
            states[name] = spec.restart(old.close(state), anchor, now)
        else:
            state = spec.convert(old, state, now)
            if own_anchor_ms is not None:
                state = spec.re_anchor(state, own_anchor_ms, now)
            states[name] = state
    return Record(revision, plans, base, specs, states, record.seen, overrides, record.first_sight)
