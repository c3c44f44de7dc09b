"""What comes by itself is told and billed in time, whatever else a call has to do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import redis

from meterd import Bucket, Hold, Meter, Plan, Pool, wire
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.told import deltas, due, events, rows


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
@pytest.mark.parametrize("reset", [None, "month"])
@pytest.mark.parametrize("way", ["subscribe", "wait", "apply"])
def test_a_new_end_is_looked_for_when_what_was_harvested_has_come_back(
    make: Make,
    client: redis.Redis,
    clock: ManualClock,
    way: str,
    reset: Any,
    functions: bool,
) -> None:
    """Nothing of the period is used any more, but less than nothing is still to be said of it."""
    pools = [Pool("credits", 100, each, bill="use", warn_at=()) for each in (reset, "day")]
    named = zip(("q", "daily"), pools, strict=True)
    plans = [Plan(name, includes=[pool, Bucket("api", 9, "1m")]) for name, pool in named]
    meter = make(plans, clock=clock, functions=functions)
    meter.subscribe("acme", "q")
    meter.consume("acme", "credits", 5)
    assert [meter.harvest(), meter.harvest()] == [1, 0]
    meter.refund("acme", "credits", 5)
    assert meter.harvest() == 0
    if way == "apply":
        meter.apply([Plan("q", includes=plans[1].includes)])
        meter.consume("acme", "api")
    else:
        meter.subscribe("acme", "daily", when="1h" if way == "wait" else "now")
    assert meter.harvest() == 0
    clock.advance(days=1, hours=1)
    assert [meter.harvest(), meter.harvest()] == [1, 0]
    assert deltas(client, meter) == [5, -5]
    assert due(client, meter) == {}


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
@pytest.mark.parametrize("way", ["renew", "tally"])
def test_what_another_hold_ends_with_is_told_where_one_stays_open(
    make: Make, client: redis.Redis, clock: ManualClock, way: str, functions: bool
) -> None:
    """It expired before the call, after its period; the call changes only the one that stays."""
    pool = Pool("credits", 100, "day", bill="use", warn_at=())
    plan = Plan("p", includes=[pool], default=True)
    meter = make([plan], clock=clock, functions=functions)
    stays = meter.reserve("acme", "credits", 10, ttl="30d")
    path = meter._keys.path("acme")
    four = wire.encode_costs("credits", 4)
    gone = meter.reserve("acme", "credits", 20, ttl="2d")
    meter._run(meter._holds.tally(path, gone.id, four, None))
    clock.advance(days=3)
    if way == "renew":
        stays.renew("60d")
    else:
        meter._run(meter._holds.tally(path, stays.id, four, None))
    assert events(client, meter) == ["closed"]
    assert deltas(client, meter) == [4]
    stays.commit()
    assert deltas(client, meter) == [4, 10]


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
def test_a_grant_that_makes_room_may_have_been_what_kept_a_pool(
    make: Make, client: redis.Redis, clock: ManualClock, functions: bool
) -> None:
    """Of grants that are spent the last 32 are kept; with an older one goes what had no end."""
    plan = Plan("p", includes=[Pool("credits", 0, warn_at=())], default=True)
    meter = make([plan], clock=clock, functions=functions)
    meter.grant("acme", "extra", 5)
    meter.consume("acme", "extra", 5)
    meter.grant("acme", "extra", 1, expires="10d")
    assert meter.harvest() == 0
    for _ in range(40):
        meter.grant("acme", "credits", 1)
        meter.consume("acme", "credits", 1)
    clock.advance(days=11)
    meter.harvest()
    assert events(client, meter).count("closed") == 1


def plan(bill: Any) -> Plan:
    pool = Pool("credits", 100, "day", bill=bill, warn_at=())
    return Plan("p", includes=[pool, Bucket("api", 9, "1m")], default=True)


def tally(meter: Meter, hold: Hold, amount: int) -> None:
    """What is known to be spent of its credits by now."""
    path = meter._keys.path(hold.subject)
    meter._run(meter._holds.tally(path, hold.id, wire.encode_costs("credits", amount), None))


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
@pytest.mark.parametrize("ends", ["commit", "less", "expiry", "forget"])
@pytest.mark.parametrize(
    ("before", "after", "billed"),
    [
        ("use", "use", {"use": [24, 14]}),
        ("use", "overage", {"use": [24, 14]}),
        ("use", None, {"use": [24, 14]}),
        (None, "use", {"use": [4, 4]}),
    ],
)
def test_a_hold_ends_the_same_whether_or_not_its_period_was_closed_before(
    make: Make,
    client: redis.Redis,
    clock: ManualClock,
    before: Any,
    after: Any,
    billed: Any,
    ends: str,
    functions: bool,
) -> None:
    """A period is over with its time, not with the next write."""

    meter = make([plan(before)], clock=clock, functions=functions)
    holds = {}
    for subject in ("written", "untouched"):
        holds[subject] = meter.reserve(subject, "credits", 20, ttl="3d")
        tally(meter, holds[subject], 10)
        if before:
            meter.consume(subject, "credits", 4)
    meter.apply([plan(after)])
    for subject in holds:
        meter.consume(subject, "api")
        if not before:
            meter.consume(subject, "credits", 4)
    clock.advance(days=1)
    meter.override("written", "api", limit=8)
    if ends == "expiry":
        clock.advance(days=3)
    for subject, hold in holds.items():
        if ends == "forget":
            meter.forget(subject)
        elif ends != "expiry":
            hold.commit(None if ends == "commit" else {"credits": 10})
    meter.harvest()
    found: dict[str, Counter[str]] = {subject: Counter() for subject in holds}
    for subject in holds:
        for row in rows(client, meter, 1, subject):
            found[subject][row[8]] += row[2] if row[0] == subject else 0
    kept = 0 if ends == "commit" else 1
    expected = {how: both[kept] for how, both in billed.items()}
    assert found == {"written": expected, "untouched": expected}


@pytest.mark.parametrize("before", ["use", None])
def test_a_hold_that_goes_with_its_subject_bills_what_was_tallied(
    make: Make, client: redis.Redis, clock: ManualClock, before: Any
) -> None:
    """In its running period, by what is billed of that, whatever it was when the hold was made."""
    meter = make([plan(before)], clock=clock)
    hold = meter.reserve("acme", "credits", 20)
    tally(meter, hold, 10)
    meter.apply([plan("use")])
    meter.consume("acme", "credits", 4)
    meter.forget("acme")
    assert deltas(client, meter) == [14]
