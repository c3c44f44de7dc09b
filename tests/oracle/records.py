"""What is kept per subject level, and how it moves to another set of definitions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.oracle.buckets import SlidingSpec
from tests.oracle.holds import Hold, given_back, kept
from tests.oracle.limits import PoolSpec
from tests.oracle.plans import Specs, overridden
from tests.oracle.requests import Amounts


@dataclass(frozen=True)
class Override:
    fields: Mapping[str, int | None]
    expires: int | None


@dataclass(slots=True)
class Record:
    """One level. `specs` is `base` (the merged plans) with the overrides on top, by limit name.

    `plans` maps a group to a plan's id, or to the private plan itself. `states` may lie behind
    (nothing was written since), never ahead. `first_sight`: nobody ever set anything here.
    `holds`: the open ones, by id. `incarnations`: how often a limit's state began anew.
    """

    revision: int
    plans: dict[str, Any]
    base: Specs
    specs: Specs
    states: dict[str, Any]
    seen: int
    overrides: dict[str, Override] = field(default_factory=dict)
    first_sight: bool = False
    holds: dict[str, Hold] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)

    def state(self, name: str, now: int) -> Any:
        """The limit's state, brought to now."""
        return self.specs[name].bring(self.states[name], now)

    def incarnation(self, name: str) -> int:
        return self.incarnations.get(name, 0)

    def first_end(self) -> int | None:
        """When the first of the open holds expires."""
        return min((hold.expires for hold in self.holds.values()), default=None)

    def as_new(self, now: int) -> bool:
        """Whether nothing is left at `now` of a record that first sight made, of buckets only.

        The record has been settled to `now`.
        """
        if not self.first_sight or self.holds:
            return False
        for name, spec in self.specs.items():
            if spec.kind in ("pool", "slots"):
                return False
            if spec.kind == "bucket" and spec.full_at(self.state(name, now), now) != now:
                return False
        return True


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


def copy_of(record: Record) -> Record:
    """One that can be changed without the other."""
    return replace(
        record,
        specs=dict(record.specs),
        states=dict(record.states),
        overrides=dict(record.overrides),
        holds=dict(record.holds),
        incarnations=dict(record.incarnations),
    )


def settled(record: Record, now: int) -> Record:
    """The record after the overrides and holds that have ended, each at its own instant.

    They end in the order of time; at one instant overrides first, then holds by the bytes of
    their ids.
    """
    ends: list[tuple[int, int, bytes, str]] = []
    for name, override in record.overrides.items():
        if override.expires is not None and override.expires <= now:
            ends.append((override.expires, 0, name.encode(), name))
    for hold_id, hold in record.holds.items():
        if hold.expires <= now:
            ends.append((hold.expires, 1, hold_id.encode(), hold_id))
    if not ends:
        return record
    record = copy_of(record)
    for at, is_hold, _, key in sorted(ends):
        if is_hold:
            end_hold(record, key, record.holds[key].tallied, at)
        else:
            end_override(record, key, at)
    return record


def end_override(record: Record, name: str, at: int) -> None:
    """Takes the override off at that instant."""
    del record.overrides[name]
    if name in record.specs:
        old, new = record.specs[name], record.base[name]
        record.states[name] = new.convert(old, record.state(name, at), at)
        record.specs[name] = new
        if restarts(old, new):
            record.incarnations[name] = record.incarnation(name) + 1


def end_hold(record: Record, hold_id: str, used: Amounts, at: int) -> None:
    """Gives back at that instant what the hold has beyond `used`, to where it came from."""
    hold = record.holds.pop(hold_id)
    for name, part in hold.parts.items():
        if name in record.specs and part.incarnation == record.incarnation(name):
            spec = record.specs[name]
            keep = kept(spec, part, used)
            record.states[name] = given_back(spec, record.state(name, at), part, keep, at)


def restarts(old: Any, new: Any) -> bool:
    """Whether a limit's state begins anew when its definition goes from one to the other."""
    if type(old) is not type(new):
        return True
    if isinstance(new, SlidingSpec):
        return (old.per_ms, old.tick_ms) != (new.per_ms, new.tick_ms)
    return False


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
    incarnations = dict(record.incarnations)
    for name, old in record.specs.items():
        spec = specs.get(name)
        closed = reset and name in own and isinstance(spec, PoolSpec)
        if spec is None or closed or restarts(old, spec):
            incarnations[name] = record.incarnation(name) + 1
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
    return Record(
        revision,
        plans,
        base,
        specs,
        states,
        record.seen,
        overrides,
        record.first_sight,
        dict(record.holds),
        incarnations,
    )
