"""What is kept per subject level, and how it moves to another set of definitions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.oracle.buckets import SlidingSpec
from tests.oracle.changes import Share, Waiting, share_after, shared
from tests.oracle.grants import Grant
from tests.oracle.holds import Hold, given_back, kept
from tests.oracle.limits import PoolSpec, PoolState
from tests.oracle.plans import Specs, made_by_grants, overridden
from tests.oracle.requests import Amounts


@dataclass(frozen=True)
class Override:
    fields: Mapping[str, int | None]
    expires: int | None


@dataclass(slots=True)
class Record:
    """One level. `specs` is `base` (the merged plans) with the overrides on top, by limit name,
    and then, ordered by name, a pool for every other name of which there are grants.

    `plans` maps a group to a plan's id, or to the private plan itself. `states` may lie behind
    (nothing was written since), never ahead. `first_sight`: nobody ever set anything here.
    `holds`: the open ones, by id. `incarnations`: how often a limit's state began anew. `grants`:
    those in the books, by id, the oldest first. `pending`: changes that wait, by group. `shares`:
    what pools' limits differ from their plans', by name.
    `books`, `told`: see `telling`.
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
    grants: dict[str, Grant] = field(default_factory=dict)
    pending: dict[str, Waiting] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    books: dict[str, Any] = field(default_factory=dict)
    told: list[tuple[Any, ...]] = field(default_factory=list)

    def state(self, name: str, now: int) -> Any:
        """The limit's state, brought to now. A pool's has its grants."""
        state = self.own_state(name, now)
        return self.endowed(name, state) if isinstance(self.specs[name], PoolSpec) else state

    def endowed(self, name: str, state: PoolState) -> PoolState:
        """A pool's state with the grants that it has here."""
        mine = tuple(grant for grant in self.grants.values() if grant.name == name)
        return state._replace(grants=mine)

    def own_state(self, name: str, now: int) -> Any:
        """The same without grants, which are kept apart: they outlive the limit."""
        return self.specs[name].bring(self.states[name], now)

    def put(self, name: str, state: Any) -> None:
        """What `state` told, after a change."""
        if isinstance(self.specs[name], PoolSpec):
            self.grants.update((grant.id, grant) for grant in state.grants)
            state = state._replace(grants=())
        self.states[name] = state

    def incarnation(self, name: str) -> int:
        return self.incarnations.get(name, 0)

    def first_end(self) -> int | None:
        """When the first of the open holds expires."""
        return min((hold.expires for hold in self.holds.values()), default=None)

    def as_new(self, now: int) -> bool:
        """Whether nothing is left at `now` of a record that first sight made, of buckets only.

        The record has been settled to `now`.
        """
        if not self.first_sight or self.holds or self.grants:
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


def specs_of(
    base: Specs,
    overrides: Mapping[str, Override],
    grants: Mapping[str, Grant],
    shares: Mapping[str, Share],
) -> Specs:
    """The effective specs: plans, shares, overrides on top, and the pools that only grants make."""
    specs = dict(base)
    for name, share in shares.items():
        if "limit" not in (overrides[name].fields if name in overrides else ()):
            specs[name] = shared(base[name], share)
    for name, override in overrides.items():
        if name in base:
            specs[name] = overridden(specs[name], override.fields)
    for name in sorted({grant.name for grant in grants.values()} - base.keys()):
        specs[name] = made_by_grants(name)
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
        grants=dict(record.grants),
        pending=dict(record.pending),
        shares=dict(record.shares),
        books=dict(record.books),
        told=list(record.told),
    )


def settled(record: Record, now: int, change: Callable[[Record, str, int], Record]) -> Record:
    """The record after all that came by itself, each at its own instant.

    In the order of time; at one instant overrides end first, then shares, then changes of plans
    come by the names of their groups, then grants end, then grants begin, then holds end by the
    bytes of their ids.
    `change(record, group, at)`: the record after the change that waits in that group.
    """
    copied, last, begun = False, record.seen, record.seen
    while (nearest := next_event(record, begun)) is not None and nearest[0] <= now:
        record, copied = record if copied else copy_of(record), True
        at, kind, _, key = nearest
        last = at = max(at, last)  # a grant that was dead may have had something with a hold
        if kind == 0:
            end_override(record, key, at)
        elif kind == 1:
            end_share(record, key, at)
        elif kind == 2:
            record = change(record, key, at)
        elif kind == 3:
            end_grants(record, at)
        elif kind == 4:
            begin_grants(record, at)
            begun = at
        else:
            end_hold(record, key, record.holds[key].tallied, at)
    return record


def next_event(record: Record, begun: int) -> tuple[int, int, bytes, str] | None:
    """What comes by itself next: when, the kind, and what of that kind.

    `begun`: grants that started by then have.
    """
    events = [
        (override.expires, 0, name.encode(), name)
        for name, override in record.overrides.items()
        if override.expires is not None
    ]
    events += [(share.end, 1, name.encode(), name) for name, share in record.shares.items()]
    events += [(waiting.at, 2, group.encode(), group) for group, waiting in record.pending.items()]
    events += [
        (grant.expires, 3, b"", "")
        for grant in record.grants.values()
        if grant.expires is not None and (grant.left or not grant.held)
    ]
    events += [
        (grant.starts, 4, b"", "")
        for grant in record.grants.values()
        if grant.starts > begun and not grant.void
    ]
    events += [
        (hold.expires, 5, hold_id.encode(), hold_id) for hold_id, hold in record.holds.items()
    ]
    return min(events, default=None)


def end_share(record: Record, name: str, at: int) -> None:
    """The period is over for which the limit differed from the plan's."""
    bring_pools(record, at)
    del record.shares[name]
    record.specs = specs_of(record.base, record.overrides, record.grants, record.shares)


def end_grants(record: Record, at: int) -> None:
    """Those that are dead by then lose what is left; without open holds they leave the books.

    With the last grant of its name the pool goes that only grants made.
    """
    bring_pools(record, at)
    for grant in list(record.grants.values()):
        if grant.dead(at):
            record.grants[grant.id] = grant.ended()
            if not grant.held:
                drop_grant(record, grant.id, at)


def drop_grant(record: Record, grant_id: str, now: int) -> None:
    name = record.grants.pop(grant_id).name
    if name not in record.base and all(grant.name != name for grant in record.grants.values()):
        telling.bring(record, name, now)
        telling.close(record, record.specs[name], record.states[name], now)
        del record.specs[name], record.states[name]
        record.incarnations[name] = record.incarnation(name) + 1


def add_grant(record: Record, grant: Grant, now: int) -> None:
    """Its pool is there from now on, if it was not before."""
    record.grants[grant.id] = grant
    if grant.name not in record.specs:
        record.specs = specs_of(record.base, record.overrides, record.grants, record.shares)
        record.states[grant.name] = record.specs[grant.name].fresh(now, now)


def begin_grants(record: Record, at: int) -> None:
    """There is more to spend from that instant on."""
    bring_pools(record, at)
    for grant in list(record.grants.values()):
        if grant.starts == at and not grant.void:
            rearm(record, grant.name, at)


def rearm(record: Record, name: str, now: int) -> None:
    """A grant of the name has become live."""
    spec = record.specs[name]
    if isinstance(spec, PoolSpec):
        record.put(name, spec.rearmed(record.state(name, now), now))


def bring_pools(record: Record, at: int) -> None:
    """The record is laid out anew: every pool is stored as it is then."""
    for name, spec in record.specs.items():
        if isinstance(spec, PoolSpec):
            telling.bring(record, name, at)


def end_override(record: Record, name: str, at: int) -> None:
    """Takes the override off at that instant."""
    del record.overrides[name]
    bring_pools(record, at)
    if name in record.base:
        old = record.specs[name]
        new = specs_of(record.base, record.overrides, record.grants, record.shares)[name]
        record.states[name] = new.convert(old, record.own_state(name, at), at)
        if isinstance(new, PoolSpec):
            record.put(name, new.marked(old, record.endowed(name, record.states[name]), at))
        record.specs[name] = new
        if restarts(old, new):
            record.incarnations[name] = record.incarnation(name) + 1


def end_hold(record: Record, hold_id: str, used: Amounts, at: int) -> None:
    """Gives back at that instant what the hold has beyond `used`, to where it came from."""
    hold = record.holds[hold_id]
    for name, part in hold.parts.items():
        keep = part.of(used)
        for grant in record.grants.values():
            record.grants[grant.id] = part.settled(grant, keep, at)
        if name in record.specs and part.incarnation == record.incarnation(name):
            spec = record.specs[name]
            telling.bring(record, name, at)
            keep = kept(spec, part, used)
            record.states[name] = given_back(spec, record.states[name], part, keep, at)
        telling.kept(record, name, part, keep, at)
    del record.holds[hold_id]


def restarts(old: Any, new: Any) -> bool:
    """Whether a limit's state begins anew when its definition goes from one to the other."""
    if type(old) is not type(new):
        return True
    if isinstance(new, SlidingSpec):
        return (old.per_ms, old.tick_ms) != (new.per_ms, new.tick_ms)
    return False


def goes_on(record: Record, base: Specs, name: str, spec: Any) -> bool:
    """Whether a limit of the record is carried over to `spec`.

    A pool that only grants made is none that plans include, nor the other way round.
    """
    old = record.specs.get(name)
    if old is None or spec is None or old.kind != spec.kind:
        return False
    return (name in record.base) == (name in base)


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
    change: str | None = None,
    group: str = "",
) -> Record:
    """The record under other plans, definitions or overrides, in one step from old to new.

    `change`, `group`: "keep", "reset" or "prorate" by a change of that group's plan. `own`: names
    to which an explicit `anchor_ms` and "reset" apply.
    """
    reset = change == "reset"
    specs = specs_of(base, overrides, record.grants, {})
    shares: dict[str, Share] = {}
    record = copy_of(record)
    bring_pools(record, now)
    for name, old in record.specs.items():
        if isinstance(old, PoolSpec) and not goes_on(record, base, name, specs.get(name)):
            telling.close(record, old, record.states[name], now)
    states: dict[str, Any] = {}
    incarnations = dict(record.incarnations)
    for name, old in record.specs.items():
        spec = specs.get(name)
        closed = reset and name in own and isinstance(spec, PoolSpec)
        if closed or not goes_on(record, base, name, spec) or restarts(old, spec):
            incarnations[name] = record.incarnation(name) + 1
    for name, spec in specs.items():
        own_anchor_ms = anchor_ms if name in own else None
        anchor = now if own_anchor_ms is None else own_anchor_ms
        old = record.specs.get(name)
        if old is None or not goes_on(record, base, name, spec):
            states[name] = spec.fresh(now, anchor)
            continue
        state = record.own_state(name, now)
        if not isinstance(spec, PoolSpec):
            states[name] = spec.convert(old, state, now)
        elif reset and name in own:
            begun = old.just_begun(state, now)
            if not begun:
                telling.close(record, old, state, now)
                state = old.close(state)
            states[name] = spec.restart(state._replace(said=frozenset()), anchor, now)
        else:
            state = spec.convert(old, state, now)
            if own_anchor_ms is not None:
                state = spec.re_anchor(state, own_anchor_ms, now)
            states[name] = state
            before = record.base.get(name)
            if before is not None:  # else only grants made it
                share = share_after(
                    before, base[name], record.shares.get(name), state, now, change, group
                )
                if share is not None:
                    shares[name] = share
    specs = specs_of(base, overrides, record.grants, shares)
    for name, spec in specs.items():
        old = record.specs.get(name)
        if isinstance(spec, PoolSpec) and goes_on(record, base, name, spec):
            assert isinstance(old, PoolSpec)
            state = spec.marked(old, record.endowed(name, states[name]), now)
            states[name] = state._replace(grants=())
            if spec.bill != old.bill:
                telling.switch(record, old, spec, states[name])
    return Record(
        revision,
        plans,
        base,
        specs,
        states,
        record.seen,
        overrides,
        record.first_sight,
        record.holds,
        incarnations,
        record.grants,
        record.pending,
        shares,
        record.books,
        record.told,
    )


from tests.oracle import telling  # noqa: E402  # they know each other
