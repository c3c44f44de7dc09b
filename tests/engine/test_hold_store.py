"""What is stored of holds: ids that come again, counts, and how long Redis keeps it."""

from __future__ import annotations

import pytest
import redis

from meterd import Bucket, Code, Plan, Pool, Slots
from meterd.errors import OpConflict, OpNotFound
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.held import Holder, assert_sound

DAY_MS = 86_400_000
BUCKETS = (Bucket("api", 100, "1m", algorithm="fixed"), Bucket("tok", 50, "1m", algorithm="token"))


def plan(*limits: object, **fields: object) -> Plan:
    return Plan("free", includes=limits, default=True, **fields)  # type: ignore[arg-type]


@pytest.fixture
def holder(make: Make, client: redis.Redis) -> Holder:
    """On a test clock: a pool, buckets and slots; below the root a team with slots of its own."""
    clock = ManualClock()
    held = Holder(
        make([plan(Pool("credits", 100), *BUCKETS, Slots("jobs", 5))], clock=clock), client, clock
    )
    held.meter.subscribe("a/team", limits=[Slots("desks", 3), Pool("credits", 40)])
    return held


# Ids that come again ------------------------------------------------------------------------------


@pytest.mark.parametrize("touched", [False, True])
def test_the_id_of_a_hold_that_expired_can_be_reserved_again(holder: Holder, touched: bool) -> None:
    """Also where the expired one is still in store: what is new must not go with what is old."""
    holder.reserve({"jobs": 2, "credits": 7}, op="job")
    holder.later(DAY_MS)  # the operation id is over, too
    if touched:
        holder.touch()
    holder.reserve({"jobs": 3, "credits": 5}, op="job")
    assert_sound(holder.client, holder.meter)
    assert (holder.used("jobs"), holder.used("credits")) == (3, 5)
    assert holder.commit("job", {"credits": 4}).limits
    assert (holder.used("jobs"), holder.used("credits")) == (0, 4)
    assert assert_sound(holder.client, holder.meter) == 0


@pytest.mark.parametrize("ended", ["commit", "release"])
def test_an_open_hold_is_not_taken_for_one_of_its_id_that_was_ended(
    holder: Holder, ended: str
) -> None:
    """How a hold was ended is kept for longer than the operation id that made it."""
    holder.reserve("jobs", op="job", ttl=40 * 3_600_000)
    holder.later(DAY_MS - 1000)
    getattr(holder, ended)("job")
    holder.later(2000)
    for again in ("commit", "release"):
        holder.reserve("jobs", op="job" if again == "commit" else "job2", ttl=DAY_MS)
        getattr(holder, again)("job" if again == "commit" else "job2")
        assert holder.used("jobs") == 0
    assert assert_sound(holder.client, holder.meter) == 0


def test_what_was_ended_stays_ended(holder: Holder) -> None:
    one, two = holder.reserve({"credits": 9}), holder.reserve({"credits": 9})
    first = holder.commit(one.id, {"credits": 4})
    again = holder.commit(one.id, {"credits": 4})
    assert (again.replayed, again.limits) == (True, first.limits)
    holder.release(two.id)
    holder.release(two.id)
    for wrong in (
        lambda: holder.commit(one.id, {"credits": 5}),
        lambda: holder.commit(one.id),
        lambda: holder.release(one.id),
        lambda: holder.commit(two.id, {"credits": 1}),
        lambda: holder.commit(two.id),
    ):
        with pytest.raises(OpConflict):
            wrong()
    assert holder.used("credits") == 4
    for over in (one, two):
        with pytest.raises(OpNotFound):
            holder.renew(over.id, 5)
        with pytest.raises(OpNotFound):
            holder.tally(over.id, {"credits": 1})


def test_an_open_hold_keeps_its_id(holder: Holder) -> None:
    holder.reserve("jobs", op="job", ttl=3 * DAY_MS)
    holder.later(DAY_MS)
    with pytest.raises(OpConflict):
        holder.reserve("jobs", op="job")
    holder.commit("job")
    holder.reserve("jobs", op="job")


def test_two_holds_of_one_id_on_one_path_are_not_mixed_up(holder: Holder) -> None:
    """One is the team's alone, the other the root's alone, and of other cost names."""
    holder.reserve({"desks": 1, "jobs": 0}, op="job", subject="a/team", ttl=3 * DAY_MS)
    holder.later(DAY_MS)
    holder.reserve({"tok": 2}, op="job", ttl=3 * DAY_MS)
    assert assert_sound(holder.client, holder.meter) == 2
    holder.tally("job", {"desks": 1}, subject="a/team")
    holder.renew("job", DAY_MS, subject="a/team")
    assert holder.commit("job", {"desks": 1}, subject="a/team")
    assert holder.stored().entries.keys() == {"job"}
    assert not holder.stored("a/team").entries
    holder.release("job")
    assert assert_sound(holder.client, holder.meter) == 0


# How many there may be ----------------------------------------------------------------------------


def fill(holder: Holder, subject: str, count: int) -> None:
    """Copies of a hold, as many as are missing."""
    hold_id = holder.reserve({"credits": 1, "jobs": 0}, subject=subject, ttl=DAY_MS).id
    _, held, order = holder.keys(subject)
    raw, score = holder.client.hget(held, hold_id), holder.client.zscore(order, hold_id)
    names = [f"n{i}" for i in range(count - holder.client.hlen(held))]
    holder.client.hset(held, mapping=dict.fromkeys(names, raw))
    holder.client.zadd(order, dict.fromkeys(names, score))


def test_ten_thousand_are_open_at_most(holder: Holder) -> None:
    fill(holder, "a", 9_999)
    last = holder.reserve("jobs")
    before = holder.stored()
    refused = holder.try_reserve({"jobs": 1, "credits": 2})
    assert not refused
    decision = refused.decision
    assert (decision.code, decision.retry_after, decision.refused) == (Code.RATE_LIMITED, None, ())
    assert [(s.name, s.applied, s.allowed) for s in decision.limits] == [
        ("credits", 0, True), ("jobs", 0, True),
    ]  # fmt: skip
    assert holder.stored() == before
    worse = holder.try_reserve({"credits": 10**6}).decision
    assert worse.code == Code.USAGE_EXCEEDED
    told = bytearray(before.rec)
    told[20 + 46] |= 1  # the pool has said that it is exhausted
    assert holder.stored() == before._replace(rec=bytes(told))
    # Only what would be one more is refused: nothing is held of an amount of 0 ...
    assert holder.try_reserve({"credits": 0})
    # ... nor at a level where nothing is charged.
    assert holder.try_reserve("desks", subject="a/team")
    assert not holder.try_reserve("credits", subject="a/team")
    holder.commit(last.id)
    assert holder.try_reserve("jobs")
    assert not holder.try_reserve("jobs")
    assert holder.meter.consume("a", "credits")


def test_room_comes_back_as_holds_expire(holder: Holder) -> None:
    fill(holder, "a", 10_000)
    assert not holder.try_reserve("jobs")
    holder.later(DAY_MS)
    assert holder.try_reserve("jobs")
    assert assert_sound(holder.client, holder.meter) == 1


def test_a_level_below_has_a_count_of_its_own(holder: Holder) -> None:
    fill(holder, "a/team", 10_000)
    assert not holder.try_reserve("desks", subject="a/team")
    assert not holder.try_reserve("credits", subject="a/team")
    assert holder.try_reserve("jobs", subject="a/team")
    assert holder.try_reserve("credits")


def test_thousands_expire_in_one_call(holder: Holder) -> None:
    fill(holder, "a", 5_000)
    holder.reserve("jobs", 2, ttl=DAY_MS)
    later = holder.reserve("jobs", 3, ttl=DAY_MS + 1)
    holder.later(DAY_MS)
    assert holder.meter.consume("a", "api")
    assert holder.used("jobs") == 3
    assert holder.used("credits") == 0
    assert holder.stored().entries.keys() == {later.id}
    assert assert_sound(holder.client, holder.meter) == 1


def test_a_level_that_has_no_part_is_left_alone(holder: Holder) -> None:
    """Also where the catalog has changed: it is brought up when something is charged there."""
    meter, client = holder.meter, holder.client
    record, *_ = holder.keys()
    for verb in ("release", "renew", "tally"):
        hold = holder.reserve("desks", subject="a/team")
        meter.apply([plan(Pool("credits", 101 + len(verb)), *BUCKETS, Slots("jobs", 5))])
        before = client.get(record)
        if verb == "release":
            hold.release()
        elif verb == "renew":
            hold.renew(90)
        else:
            holder.tally(hold.id, {"desks": 1}, subject="a/team")
        assert client.get(record) == before
        assert meter.consume("a", "credits")
        assert client.get(record) != before
    assert_sound(client, meter)
