"""What must hold of a level at any moment, whatever happened before."""

from __future__ import annotations

from typing import Any

from tests.oracle.buckets import FixedSpec, SlidingSpec, TokenSpec
from tests.oracle.granting import MAX_EMPTY, MAX_GRANTS
from tests.oracle.holds import Part
from tests.oracle.limits import PoolSpec
from tests.oracle.model import Oracle
from tests.oracle.records import Record
from tests.oracle.slots import SlotsSpec


def check(model: Oracle, now: int, *, charged_only: bool = False) -> None:
    """Of every stored level. `charged_only`: nothing was refunded, adjusted or redefined."""
    for level in model.levels.records.values():
        for path, record in level.items():
            then = max(now, record.seen)
            settled = model.levels.settled(path, record, then)
            check_record(settled, then)
            if charged_only:
                check_shares(settled, then)


def check_record(record: Record, now: int) -> None:
    for hold_id, hold in record.holds.items():
        assert hold.expires > now, hold_id
        assert hold.parts, hold_id
        assert hold.held.keys() == hold.tallied.keys()
        assert all(0 <= hold.tallied[cost] <= held for cost, held in hold.held.items())
        for part in hold.parts.values():
            assert part.charged == part.of(hold.held) > 0
            assert 0 <= part.over <= part.charged
            if part.of_spec is PoolSpec:
                assert all(units > 0 for _, units in part.shares)
                assert part.over + sum(units for _, units in part.shares) == part.charged
                assert len(dict(part.shares)) == len(part.shares), "each source once"
            else:
                assert not part.shares
    check_grants(record, now)
    assert all(waiting.at > now for waiting in record.pending.values())
    for name, share in record.shares.items():
        assert share.end == record.state(name, now).end > now
        assert share.differs
        assert all(share.differs.values())
    for name, spec in record.specs.items():
        state = record.state(name, now)
        assert spec.figures(state, now).used >= 0
        if isinstance(spec, PoolSpec):
            assert min(state.used, state.drawn, state.over) >= 0
            assert not record.states[name].grants, "they are kept apart"
        if isinstance(spec, SlotsSpec):
            assert state == sum(part.charged for part in parts(record, name)), "slots are held"


def check_grants(record: Record, now: int) -> None:
    """Nothing of a grant is lost, and nothing is there twice."""
    shares = [s for hold in record.holds.values() for p in hold.parts.values() for s in p.shares]
    for key, grant in record.grants.items():
        assert key == grant.id
        assert grant.amount == grant.consumed + grant.left + grant.held + grant.expired, grant
        assert min(grant.consumed, grant.left, grant.held, grant.expired) >= 0, grant
        assert grant.held == sum(units for source, units in shares if source == key), grant
        if grant.dead(now) or grant.void:
            assert grant.left == 0, grant
        else:
            assert grant.expired == 0, grant
        assert grant.held or not grant.dead(now), "it is out of the books"
    assert {source for source, _ in shares} - {None} <= record.grants.keys()
    ages = [grant.age for grant in record.grants.values()]
    assert ages == sorted(ages), "oldest first"
    assert all(age <= now for age in ages)
    lasting = [grant for grant in record.grants.values() if not grant.dead(now)]
    assert len(lasting) <= MAX_GRANTS + MAX_EMPTY
    names = {grant.name for grant in record.grants.values()}
    assert record.specs.keys() == record.base.keys() | names
    assert not (record.grants and record.first_sight)


def check_shares(record: Record, now: int) -> None:
    """What the open holds took of a limit is part of what it shows as used."""
    for name, spec in record.specs.items():
        state = record.state(name, now)
        mine = parts(record, name)
        if isinstance(spec, PoolSpec):
            running = [part for part in mine if state.open and part.mark == state.start]
            own = [units for p in running for source, units in p.shares if source is None]
            drawn = [units for p in running for source, units in p.shares if source is not None]
            assert sum(own) <= state.used
            assert sum(drawn) <= state.drawn
            assert sum(part.over for part in running) <= state.over
        elif isinstance(spec, FixedSpec):
            assert held_at(mine, None if state.start is None else spec.ms(state.start)) <= (
                state.taken
            )
        elif isinstance(spec, SlidingSpec):
            assert held_at(mine, state.window) <= state.cur
            assert held_at(mine, state.window - 1) <= state.prev
        elif isinstance(spec, TokenSpec):
            assert sum(unrefilled(spec, part, now) for part in mine) <= state.spent


def parts(record: Record, name: str) -> list[Part]:
    """Those of open holds that belong to the limit's present state."""
    found = [hold.parts[name] for hold in record.holds.values() if name in hold.parts]
    return [part for part in found if part.incarnation == record.incarnation(name)]


def held_at(mine: list[Part], mark: int | None) -> int:
    return sum(part.charged for part in mine if part.mark == mark)


def unrefilled(spec: TokenSpec, part: Part, now: int) -> Any:
    """What of a part a token bucket has not got back by refilling, at least."""
    elapsed = spec.tick(now) - spec.tick(part.mark)
    return max(0, part.charged - -(-elapsed * spec.limit // spec.ticks))
