"""What pools have to tell of what comes by itself: grants that begin and end, changes that wait."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from meterd import Bucket, Plan, Pool
from meterd.testing import ManualClock
from meterd.wire import encode_costs
from tests.engine.conftest import Make
from tests.engine.told import deltas, due, events, rows

DAY_MS = 86_400_000
CLOSED = {"name": 2, "plan": 3, "used": 5, "start": 7, "end": 8, "at": 9}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(int(datetime(2025, 4, 1, tzinfo=UTC).timestamp()) * 1000)


def plan(name: str = "p", limit: int = 10, **fields: Any) -> Plan:
    pool = Pool("credits", limit, "month", warn_at=(), **fields)
    return Plan(name, includes=[pool, Bucket("api", 9, "1d")], default=name == "p")


def closed(row: list[Any]) -> dict[str, Any]:
    assert row[0] == "closed"
    return {name: row[place] for name, place in CLOSED.items()}


def test_a_grant_rearms_when_it_begins(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    meter = make([plan()], clock=clock)
    assert not meter.consume("acme", "credits", 11)  # with 10 left
    meter.grant("acme", "credits", 5, starts="2d")
    assert not meter.consume("acme", "credits", 11)
    assert events(client, meter) == ["exhausted"]
    clock.advance(days=1)
    assert not meter.consume("acme", "credits", 11)
    assert events(client, meter) == ["exhausted"]
    clock.advance(days=1)
    assert not meter.consume("acme", "credits", 16)
    assert events(client, meter) == ["exhausted"] * 2
    assert not meter.consume("acme", "credits", 16)
    meter.grant("acme", "credits", 1)
    assert not meter.consume("acme", "credits", 17)
    assert events(client, meter) == ["exhausted"] * 3


def test_a_grant_that_was_void_before_it_began_rearms_nothing(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    assert not meter.consume("acme", "credits", 11)
    meter.void("acme", meter.grant("acme", "credits", 5, starts="2d").id)
    clock.advance(days=3)
    assert not meter.consume("acme", "credits", 11)
    assert events(client, meter) == ["exhausted"]


def test_live_grants_count_when_a_raised_limit_rearms(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    meter.report("acme", "credits", 20)  # 10 of them over
    meter.grant("acme", "credits", 15)
    assert not meter.consume("acme", "credits", 6)  # 5 are left
    assert events(client, meter) == ["exhausted", "overage", "exhausted"]
    meter.override("acme", "credits", limit=11)
    assert not meter.consume("acme", "credits", 7)
    assert events(client, meter)[3:] == ["exhausted"]


def test_what_is_held_back_of_a_limit_rearms_nothing(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(), plan("big", 110)], clock=clock)
    meter.consume("acme", "credits", 10)
    clock.advance(days=15)
    meter.subscribe("acme", "big", change="prorate")
    assert meter.consume("acme", "credits", 50)["credits"].limit == 60
    assert events(client, meter) == ["exhausted"] * 2
    meter.override("acme", "api", limit=8, expires="1d")  # the record is laid out anew
    assert not meter.consume("acme", "credits")
    clock.advance(days=1)
    assert not meter.consume("acme", "credits")
    assert events(client, meter) == ["exhausted"] * 2


def test_a_reset_rearms_in_the_very_instant_in_which_the_period_began(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(limit=0), plan("other", 0)], clock=clock)
    meter.consume("acme", "api")
    for change, said in (("keep", 1), ("reset", 2)):
        assert not meter.consume("acme", "credits")
        meter.subscribe("acme", "other", change=change)
        assert not meter.consume("acme", "credits")
        assert events(client, meter) == ["exhausted"] * said


@pytest.mark.parametrize("verb", ["consume", "harvest"])
def test_a_pool_that_a_grant_made_ends_with_it(
    make: Make, client: redis.Redis, clock: ManualClock, verb: str
) -> None:
    meter = make([plan()], clock=clock)
    start = clock.now_ms
    meter.grant("acme", "extra", 5, expires="2d")
    meter.grant("acme", "extra", 5, expires="3d", op="last")
    assert meter.consume("acme", "extra", 3)
    assert due(client, meter) == {"acme": start + 3 * DAY_MS}
    clock.advance(days=2, hours=1)
    assert meter.harvest() == 0
    assert due(client, meter) == {"acme": start + 3 * DAY_MS}
    clock.advance(days=2)
    if verb == "consume":
        assert meter.consume("acme", "api")
    meter.harvest()
    assert [closed(row) for row in rows(client, meter, 0)] == [
        {"name": "extra", "plan": "p", "used": 3, "start": start, "end": start + 3 * DAY_MS,
         "at": clock.now_ms}
    ]  # fmt: skip
    assert due(client, meter) == {}


def test_what_is_held_of_a_grant_keeps_its_pool(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    start = clock.now_ms
    meter.grant("acme", "extra", 5, expires="1d")
    assert meter.consume("acme", "extra", 1)
    held = [meter.reserve("acme", "extra", ttl="4d"), meter.reserve("acme", "extra", ttl="3d")]
    clock.advance(days=2)
    assert meter.harvest() == 0
    assert rows(client, meter, 0) == []
    assert due(client, meter) == {"acme": start + 3 * DAY_MS}
    held[0].commit()
    clock.advance(hours=1)
    held[1].release()
    assert due(client, meter) == {"acme": clock.now_ms}
    meter.harvest()
    (row,) = rows(client, meter, 0)
    assert closed(row)["used"] == 2
    assert due(client, meter) == {}


def test_grants_without_an_end_need_no_harvest(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([Plan("free", includes=[Bucket("api", 5, "1d")], default=True)], clock=clock)
    meter.grant("acme", "extra", 5)
    for _ in range(2):
        assert meter.consume("acme", "extra", 1)
    assert due(client, meter) == {}


@pytest.mark.parametrize("bill", [None, "use"])
def test_harvest_comes_when_a_change_of_plans_does(
    make: Make, client: redis.Redis, clock: ManualClock, bill: Any
) -> None:
    free = Plan("free", includes=[Bucket("api", 5, "1d")])
    meter = make([plan(bill=bill), free], clock=clock)
    start = clock.now_ms
    for who in ("acme", "acme/ana"):  # more than one in a script
        meter.subscribe(who, "p")
        meter.consume(who, "credits", 5)
        meter.harvest()
        meter.subscribe(who, "free", when="10d")
    meter.harvest()
    assert due(client, meter) == {"acme": start + 10 * DAY_MS, "acme/ana": start + 10 * DAY_MS}
    meter.report("acme", "credits", 3)
    clock.advance(days=11)
    meter.harvest()
    end = {"name": "credits", "plan": "p", "start": start, "end": start + 10 * DAY_MS}
    assert [closed(row) for row in rows(client, meter, 0) if row[0] == "closed"] == [
        {**end, "used": 13, "at": clock.now_ms},
        {**end, "used": 5, "at": clock.now_ms},
    ]
    assert deltas(client, meter) == ([5, 5, 5, 3] if bill else [])
    assert due(client, meter) == {}


def test_a_change_that_waits_for_a_pool_without_periods(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    """Nothing else would have harvest look at it, whichever of charge and change came first."""
    own = Plan("own", includes=[Pool("credits", 9)])
    free = Plan("free", includes=[Bucket("api", 5, "1d")])
    meter = make([own, free], clock=clock)
    for who in ("acme/a", "acme/b"):
        meter.subscribe(who, "own")
    meter.consume("acme/a", "credits", 2)
    assert due(client, meter) == {}
    for who in ("acme/a", "acme/b"):
        meter.subscribe(who, "free", when="1d")
    meter.consume("acme/b", "credits", 3)
    assert set(due(client, meter)) == {"acme/a", "acme/b"}
    clock.advance(days=2)
    meter.harvest()
    assert [closed(row)["used"] for row in rows(client, meter, 0)] == [2, 3]


@pytest.mark.parametrize("renewed", [False, True])
def test_a_hold_of_a_plan_that_was_billed_is_looked_for_when_it_ends(
    make: Make, client: redis.Redis, clock: ManualClock, renewed: bool
) -> None:
    meter = make([plan(bill="use"), plan("free")], clock=clock)
    start = clock.now_ms
    hold = meter.reserve("acme", "credits", 5, ttl="90d")
    tally = meter._holds.tally(meter._keys.path("acme"), hold.id, encode_costs("credits", 3), None)
    meter._run(tally)
    clock.advance(days=31)
    meter.subscribe("acme", "free")
    assert meter.harvest() == 0
    assert due(client, meter) == {"acme": start + 90 * DAY_MS}
    if renewed:
        hold.renew("1h")
        assert due(client, meter) == {"acme": clock.now_ms + 3_600_000}
        clock.advance(hours=1)
    else:
        clock.advance(days=60)
    assert meter.harvest() == 1
    assert [(row[2], row[5]) for row in rows(client, meter, 1)] == [(3, start)]
