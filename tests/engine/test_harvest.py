"""What is billed reaches the outbox, all of it, once, whatever happens between two harvests."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import redis

from meterd import Bucket, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.told import deltas, due, entries, events, rows

DAY_MS = 86_400_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def plan(limit: int | None = 100, name: str = "p", **fields: Any) -> Plan:
    fields = {"bill": "use", "warn_at": (), **fields}
    return Plan(name, includes=[Pool("credits", limit, "day", **fields)], default=name == "p")


def test_what_is_new_is_harvested_once(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 5)
    assert [meter.harvest(), meter.harvest()] == [1, 0]
    meter.consume("acme", "credits", 2)
    meter.report("acme", "credits", 1)
    assert [meter.harvest(), meter.harvest()] == [1, 0]
    start = clock.now_ms
    assert entries(client, meter) == [("credits", 5, 1, start), ("credits", 3, 2, start)]
    first, second = rows(client, meter, 1)
    assert first[4] == ""
    key = meter._keys.shared(meter._keys.path("acme")).outbox
    assert second[4] == client.xrange(key)[0][0].decode()
    assert second[6:] == [start + DAY_MS, start, "use"]


def test_only_what_went_over_is_billed_of_overage(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(10, bill="overage", overage=None)], clock=clock)
    meter.consume("acme", "credits", 9)
    assert meter.harvest() == 0
    meter.consume("acme", "credits", 4)
    assert meter.harvest() == 1
    assert rows(client, meter, 1)[0][2:] == [3, 1, "", *rows(client, meter, 1)[0][5:8], "overage"]


def test_less_waits_and_is_netted_in_its_period(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 10)
    meter.harvest()
    meter.refund("acme", "credits", 4)
    assert meter.harvest() == 0
    meter.consume("acme", "credits", 3)
    assert meter.harvest() == 0
    meter.consume("acme", "credits", 3)
    assert meter.harvest() == 1
    meter.refund("acme", "credits", 7)
    clock.advance(days=1)
    assert meter.harvest() == 1
    assert deltas(client, meter) == [10, 2, -7]
    assert sum(deltas(client, meter)) == 5
    assert events(client, meter) == ["closed"]


def test_a_charge_after_the_end_says_the_last_word(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    start = clock.now_ms
    meter.consume("acme", "credits", 10)
    meter.harvest()
    meter.consume("acme", "credits", 2)
    clock.advance(days=3)
    meter.consume("acme", "credits", 4)
    assert entries(client, meter) == [("credits", 10, 1, start), ("credits", 2, 2, start)]
    meter.harvest()
    assert entries(client, meter)[2:] == [("credits", 4, 3, start + 3 * DAY_MS)]


@pytest.mark.parametrize("way", ["reset", "drop", "forget"])
def test_nothing_is_lost_when_a_period_is_cut_short(
    make: Make, client: redis.Redis, clock: ManualClock, way: str
) -> None:
    meter = make([plan(), Plan("other", includes=[Bucket("api", 5, "1m")])], clock=clock)
    meter.subscribe("acme/team", "p")
    for subject in ("acme", "acme/team"):
        meter.consume(subject, "credits", 10)
    meter.harvest()
    meter.consume("acme/team", "credits", 7)
    clock.advance(hours=1)
    if way == "forget":
        meter.forget("acme")
        assert list(meter.subjects()) == []
    else:
        for subject in ("acme", "acme/team"):
            plan_id, change = ("p", "reset") if way == "reset" else ("other", "keep")
            meter.subscribe(subject, plan_id, change=change)
    found = rows(client, meter, 1)
    for subject, used in (("acme", 27), ("acme/team", 17)):
        assert sum(row[2] for row in found if row[0] == subject) == used
    assert meter.harvest() == 0
    assert {row[6] for row in found} == {clock.now_ms - 3_600_000 + DAY_MS}


def test_a_forgotten_subject_is_born_anew(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    for _ in range(2):
        meter.consume("acme", "credits", 1)
        meter.harvest()
        meter.consume("acme", "credits", 1)
        meter.forget("acme")
    births = [row[4] for row in rows(client, meter, 1)]
    assert births[0] == births[2] == ""
    assert births[1] != births[3]
    assert due(client, meter) == {}


# Holds --------------------------------------------------------------------------------------------


def test_open_holds_are_left_out_until_they_end(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 1)
    kept = meter.reserve("acme", "credits", 10)
    released = meter.reserve("acme", "credits", 20)
    meter.reserve("acme", "credits", 30)
    assert meter.harvest() == 1
    kept.commit({"credits": 4})
    released.release()
    assert meter.harvest() == 1
    clock.advance(seconds=61)  # the third has expired, and nobody comes
    assert meter.harvest() == 0
    assert deltas(client, meter) == [1, 4]


def test_a_hold_that_outlives_its_period_is_billed_there(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    start = clock.now_ms
    holds = [meter.reserve("acme", "credits", 10, ttl="3d") for _ in range(3)]
    meter.consume("acme", "credits", 5)
    clock.advance(days=1)
    assert meter.harvest() == 1
    holds[0].commit({"credits": 7})
    holds[1].release()
    holds[2].commit({"credits": 12})  # two more than were held are of today
    assert entries(client, meter) == [
        ("credits", 5, 1, start), ("credits", 7, 2, start), ("credits", 10, 3, start),
    ]  # fmt: skip
    meter.harvest()
    assert entries(client, meter)[3:] == [("credits", 2, 4, start + DAY_MS)]
    assert rows(client, meter, 0)[0][5] == 35  # closed: what was used counts what was held


@pytest.mark.parametrize("ends", ["commit", "commit of less"])
@pytest.mark.parametrize("over", [True, False])
def test_a_hold_is_billed_that_changes_nothing_else_of_its_record(
    make: Make, client: redis.Redis, clock: ManualClock, over: bool, ends: str
) -> None:
    """Another one ends before it and stays open, so `due` is as before, and all of it is kept."""
    meter = make([plan()], clock=clock)
    hold = meter.reserve("acme", "credits", 10, ttl="30d")
    if over:
        clock.advance(days=1)
        meter.consume("acme", "credits", 1)
        meter.harvest()
    meter.reserve("acme", "credits", 5, ttl="3d")
    hold.commit(None if ends == "commit" else {"credits": 4})
    meter.harvest()
    kept = 10 if ends == "commit" else 4
    assert deltas(client, meter) == ([1, kept] if over else [kept])


@pytest.mark.parametrize("other", ["1d", "2d", "3d"])
@pytest.mark.parametrize("kept", [20, 14])
def test_one_of_two_holds_that_outlive_their_period_is_billed_there(
    make: Make, client: redis.Redis, clock: ManualClock, other: str, kept: int
) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 5)
    holds = [meter.reserve("acme", "credits", 20, ttl="2d")]
    holds.append(meter.reserve("acme", "credits", 10, ttl=other))
    clock.advance(hours=24 - 1)
    meter.subscribe("acme", "p", change="reset")
    assert deltas(client, meter) == [5]
    holds[0].commit(kept)  # nothing of the record changes, and the other hold is still to end
    assert deltas(client, meter) == [5, kept]
    holds[1].commit()
    assert deltas(client, meter) == [5, kept, 10]


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
@pytest.mark.parametrize("bill", ["use", "overage"])
def test_one_of_several_that_is_kept_whole_after_its_period_is_billed(
    make: Make, client: redis.Redis, clock: ManualClock, bill: str, functions: bool
) -> None:
    """Nothing else of the record changes then."""
    limit = 100 if bill == "use" else 0
    meter = make([plan(limit, bill=bill, overage=None)], clock=clock, functions=functions)
    start = clock.now_ms
    one, two, three = (meter.reserve("acme", "credits", n, ttl="5d") for n in (1, 2, 4))
    clock.advance(days=1)
    meter.consume("acme", "credits", 50)
    two.commit()
    assert entries(client, meter) == [("credits", 2, 1, start)]
    three.commit(4)
    one.commit()
    meter.harvest()
    assert entries(client, meter)[1:] == [
        ("credits", 4, 2, start), ("credits", 1, 3, start), ("credits", 50, 4, clock.now_ms),
    ]  # fmt: skip


def test_what_a_dropped_pool_held_is_still_billed(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(), Plan("other", includes=[Bucket("api", 5, "1m")])], clock=clock)
    hold = meter.reserve("acme", "credits", 10, ttl="3d")
    meter.subscribe("acme", "other")
    assert deltas(client, meter) == []
    hold.commit({"credits": 6})
    assert deltas(client, meter) == [6]


def test_what_was_tallied_is_billed_when_the_hold_expires_and_nobody_comes(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    hold = meter.reserve("acme", "credits", 10)
    path, four = meter._keys.path("acme"), "credits"
    from meterd import wire

    meter._run(meter._holds.tally(path, hold.id, wire.encode_costs(four, 4), None))
    assert meter.harvest() == 0
    assert due(client, meter) == {"acme": clock.now_ms + 60_000}
    clock.advance(minutes=1)
    assert meter.harvest() == 1
    assert deltas(client, meter) == [4]


# Another definition -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "billed"),
    [
        (None, "use", [("use", 5)]),
        ("use", None, [("use", 20)]),
        ("use", "overage", [("use", 20), ("overage", 2)]),
        ("overage", "use", [("overage", 10), ("use", 5)]),
    ],
)
def test_only_what_comes_is_billed_as_the_new_plan_says(
    make: Make, client: redis.Redis, clock: ManualClock, before: Any, after: Any, billed: Any
) -> None:
    limit = 10 if before == "overage" else 23
    plans = [plan(limit, bill=before, overage=None), plan(23, "q", bill=after, overage=None)]
    meter = make(plans, clock=clock)
    meter.consume("acme", "credits", 20)
    meter.subscribe("acme", "q")
    meter.consume("acme", "credits", 5)
    clock.advance(days=1)
    meter.harvest()
    found = rows(client, meter, 1)
    assert [(row[8], row[2]) for row in found] == billed
    assert [row[3] for row in found] == list(range(1, len(found) + 1))


# The index ----------------------------------------------------------------------------------------


def test_the_index_says_when_to_look(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    start = clock.now_ms
    limits = [Pool("credits", 100, "week", warn_at=()), Pool("daily", 50, "day", warn_at=())]
    never = Plan("never", includes=[Pool("credits", 100), Bucket("api", 9, "1m")])
    meter = make([Plan("p", includes=limits, default=True), never, plan(100, "q")], clock=clock)
    meter.subscribe("acme/never", "never")
    meter.consume("acme/never", "credits", 1)  # also of acme
    assert due(client, meter) == {"acme": start + DAY_MS}
    clock.advance(days=1)
    meter.harvest()
    assert due(client, meter) == {"acme": start + 7 * DAY_MS}
    meter.consume("acme", "daily", 1)
    assert due(client, meter) == {"acme": start + 2 * DAY_MS}
    clock.advance(days=9)
    meter.harvest()
    assert due(client, meter) == {}
    assert events(client, meter) == ["closed", "closed"]
    meter.subscribe("acme/billed", "q")
    meter.consume("acme/billed", "credits", 3)
    assert due(client, meter)["acme/billed"] == clock.now_ms
    meter.harvest()
    assert due(client, meter)["acme/billed"] == clock.now_ms + DAY_MS


def test_a_first_use_period_is_looked_for_when_it_opens(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    limits = [
        Pool("credits", 100, "month", warn_at=()),
        Pool("burst", 50, "1h", anchor="first_use", warn_at=()),
    ]
    meter = make([Plan("p", includes=limits, default=True)], clock=clock)
    meter.consume("acme", "credits")
    clock.advance(days=1)
    meter.consume("acme", "burst")
    assert due(client, meter) == {"acme": clock.now_ms + 3_600_000}


def test_a_walk_takes_all_pages_of_a_partition(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(10**6)], clock=clock)
    meter.subscribe("acme", "p")
    for number in range(300):
        meter.subscribe(f"acme/{number}", "p")
        meter.consume(f"acme/{number}", "credits", 1)
    assert meter.harvest(limit=10) == 10
    assert meter.harvest() == 291  # and acme itself
    assert meter.harvest() == 0
    assert sum(deltas(client, meter)) == 600


def test_a_record_that_cannot_be_read_holds_up_nobody(
    make: Make, client: redis.Redis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    meter = make([plan()], clock=clock)
    for subject in ("acme", "acme/a", "acme/b", "acme/c"):
        meter.subscribe(subject, "p")
        meter.consume(subject, "credits", 1)
    key = meter._keys.path("acme/b").keys[1]
    client.setrange(key, 0, b"\x09")
    with caplog.at_level(logging.WARNING, "meterd"):
        assert meter.harvest() == 3
    assert "'acme/b' cannot be harvested" in caplog.text
    assert due(client, meter)["acme/b"] == clock.now_ms
    caplog.clear()
    with caplog.at_level(logging.WARNING, "meterd"):
        meter.forget("acme")
    assert "cannot be read" in caplog.text
    assert list(meter.subjects()) == []


def test_a_subject_that_is_gone_leaves_the_index(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 1)
    client.delete(meter._keys.path("acme").keys[0])
    assert meter.harvest() == 0
    assert due(client, meter) == {}


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "5"])
def test_a_limit_is_a_positive_integer(make: Make, limit: Any) -> None:
    with pytest.raises(PolicyError, match="limit"):
        make([plan()]).harvest(limit=limit)


def test_the_server_says_what_is_due(make: Make, client: redis.Redis) -> None:
    """Without a test clock."""
    meter = make([plan()])
    meter.consume("acme", "credits", 5)
    assert meter.harvest() == 1
    assert deltas(client, meter) == [5]
