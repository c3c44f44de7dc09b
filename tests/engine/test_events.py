"""What a pool says of itself, once in its period, in the script that makes it true."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from meterd import Bucket, Meter, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.told import events, rows

WARNING = {"warn_at": (0.5, 0.8), "warn_below": (10,)}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def plan(limit: int | None = 100, name: str = "p", **fields: Any) -> Plan:
    return Plan(name, includes=[Pool("credits", limit, "day", **fields)], default=name == "p")


def test_every_threshold_speaks_once_in_a_period(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(**WARNING, overage=20)], clock=clock)
    said: list[list[str]] = []
    for _ in range(60):
        before = len(events(client, meter))
        meter.consume("acme", "credits", 2)
        said.append(events(client, meter)[before:])
    at = {used: names for used, names in zip(range(2, 122, 2), said, strict=True) if names}
    assert at == {
        50: ["warn 0.5"],
        80: ["warn 0.8"],
        90: ["warn 10"],
        100: ["exhausted"],
        102: ["overage"],
    }
    clock.advance(days=1)
    meter.consume("acme", "credits", 50)
    assert events(client, meter)[5:] == ["closed", "warn 0.5"]


def test_one_charge_may_say_everything(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    meter = make([plan(**WARNING)], clock=clock)
    meter.report("acme", "credits", 130)
    assert events(client, meter) == ["warn 0.5", "warn 0.8", "warn 10", "exhausted", "overage"]
    assert rows(client, meter, 0)[0] == [
        "warn", "acme", "credits", "p", 100, 130, -30, clock.now_ms, clock.now_ms + 86_400_000,
        clock.now_ms, "0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fraction", "limit", "least"),
    [
        (0.8, 100, 80),
        (1 / 3, 10, 4),
        (1, 7, 7),
        (0.000001, 10**15, 10**9),
        (0.8, 1, 1),
        (0.5, 3, 2),
    ],
)
def test_a_fraction_is_reached_by_whole_units(
    make: Make, client: redis.Redis, fraction: float, limit: int, least: int
) -> None:
    meter = make([plan(limit, warn_at=(fraction,))], clock=ManualClock())
    if least > 1:
        meter.consume("acme", "credits", least - 1)
    assert events(client, meter) == []
    meter.consume("acme", "credits")
    assert events(client, meter)[0].startswith("warn")


def test_a_refused_charge_says_exhausted_and_writes_nothing_else(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    (key,) = meter._keys.path("acme").keys
    assert not meter.consume("acme", "credits", 101)
    assert client.get(key) is None  # a refused first sight leaves no trace
    meter.consume("acme", "credits", 3)
    before = client.get(key)
    clock.advance(seconds=1)
    assert not meter.consume("acme", "credits", 98)
    assert events(client, meter) == ["exhausted"]
    assert rows(client, meter, 0)[0][4:7] == [100, 3, 97]
    after = client.get(key)
    assert after[:14] + after[20:-2] == before[:14] + before[20:-2]  # but for last seen, and marks
    for _ in range(3):
        assert not meter.consume("acme", "credits", 98)
        assert not meter.reserve("acme", "credits", 98)
    assert client.get(key) == after
    meter.consume("acme", "credits", 97)
    assert events(client, meter) == ["exhausted", "warn 0.8"]


def lower_by_override(meter: Meter, clock: ManualClock) -> None:
    meter.override("acme", "credits", limit=50)


def lower_by_override_that_ends(meter: Meter, clock: ManualClock) -> None:
    clock.advance(hours=2)


def lower_by_catalog(meter: Meter, clock: ManualClock) -> None:
    meter.override("acme", "credits", clear=True)
    meter.apply([plan(50)])


def lower_by_plan(meter: Meter, clock: ManualClock) -> None:
    meter.override("acme", "credits", clear=True)
    meter.subscribe("acme", "small", when="1h")
    clock.advance(hours=1)


@pytest.mark.parametrize(
    "less", [lower_by_override, lower_by_override_that_ends, lower_by_catalog, lower_by_plan]
)
@pytest.mark.parametrize("verb", ["consume", "reserve"])
def test_a_lowered_limit_is_exhausted_at_the_first_refusal(
    make: Make, client: redis.Redis, clock: ManualClock, less: Any, verb: str
) -> None:
    limit = 50 if less is lower_by_override_that_ends else 100
    meter = make([plan(limit, warn_at=()), plan(50, "small", warn_at=())], clock=clock)
    meter.override("acme", "credits", limit=100, expires="2h")
    meter.consume("acme", "credits", 60)
    less(meter, clock)
    assert not meter.check("acme", "credits")
    assert events(client, meter) == []
    for _ in range(3):
        assert not getattr(meter, verb)("acme", "credits")
        assert events(client, meter) == ["exhausted"]
    assert rows(client, meter, 0)[0][3:7] == ["small" if less is lower_by_plan else "p", 50, 60, 0]


def test_a_raised_limit_may_be_refused_anew(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(warn_at=())], clock=clock)
    meter.consume("acme", "credits", 100)
    meter.apply([plan(150, warn_at=())])
    for _ in range(2):
        assert not meter.consume("acme", "credits", 51)
    assert events(client, meter) == ["exhausted", "exhausted"]


def test_a_refusal_joins_no_plan(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    extra = Plan("extra", group="more", includes=[Pool("gems", 5, "day")])
    meter = make([plan(), extra], clock=clock)
    meter.consume("acme", "credits", 3)
    (key,) = meter._keys.path("acme").keys
    before = client.get(key)
    assert not meter.consume("acme", {"gems": 6, "credits": 100}, join="extra")
    assert client.get(key) == before
    assert events(client, meter) == []
    meter.grant("acme/ana", "gems", 5)
    meter.apply([plan(200)])
    assert not meter.consume("acme/ana", "gems", 6, join="extra")  # it is the root that would join
    assert [row[:3] for row in rows(client, meter, 0)] == [["exhausted", "acme/ana", "gems"]]


def test_what_is_not_refused_for_want_of_credits_says_nothing(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    limits = [Pool("credits", 10, "day", anchor="first_use"), Bucket("api", 2, "1h")]
    meter = make([Plan("p", includes=limits, default=True)], clock=clock)
    meter.consume("acme", "api")
    assert not meter.consume("acme", {"credits": 1, "api": 5})
    assert not meter.consume("acme", {"credits": 11, "nothing": 1})
    assert not meter.consume("acme", "credits", 11)  # no period is open
    assert not meter.check("acme", "credits", 11)
    assert events(client, meter) == []


def test_a_reservation_counts_as_use(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    meter = make([plan()], clock=clock)
    hold = meter.reserve("acme", "credits", 85)
    assert events(client, meter) == ["warn 0.8"]
    hold.release()
    meter.reserve("acme", "credits", 90).commit({"credits": 120})
    assert events(client, meter) == ["warn 0.8", "exhausted", "overage"]


def test_a_refund_or_a_correction_rearms_nothing(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 90)
    meter.refund("acme", "credits", 50)
    meter.adjust("acme", "credits", used=0)
    meter.consume("acme", "credits", 90)
    assert events(client, meter) == ["warn 0.8"]


def raise_by_override(meter: Meter) -> None:
    meter.override("acme", "credits", limit=1000)


def raise_by_plan(meter: Meter) -> None:
    meter.subscribe("acme", "large")


def raise_by_catalog(meter: Meter) -> None:
    meter.apply([plan(1000)])


@pytest.mark.parametrize("more", [raise_by_override, raise_by_plan, raise_by_catalog])
def test_a_raised_limit_rearms_what_is_no_longer_true(
    make: Make, client: redis.Redis, clock: ManualClock, more: Any
) -> None:
    meter = make([plan(overage=50, warn_at=(0.1, 0.8)), plan(1000, "large", warn_at=(0.1, 0.8))])
    meter.consume("acme", "credits", 120)
    assert events(client, meter) == ["warn 0.1", "warn 0.8", "exhausted", "overage"]
    more(meter)
    if more is raise_by_catalog:
        meter.apply([plan(1000, warn_at=(0.1, 0.8), overage=50)])
    meter.consume("acme", "credits", 700)
    assert events(client, meter)[4:] == ["warn 0.8"]  # 0.1 and overage have not ceased to be true


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
@pytest.mark.parametrize("way", ["override", "grant", "plan"])
@pytest.mark.parametrize(
    ("total", "charge", "said"),
    [
        (15, 1, []),  # still nothing remains
        (16, 1, ["exhausted"]),
        (20, 4, []),  # still no more than 5 remain
        (21, 1, ["warn 5"]),
        (30, 1, []),  # still half of it
        (31, 1, ["warn 0.5"]),
    ],
)
def test_what_is_still_true_at_its_very_edge_is_not_said_again(
    make: Make,
    client: redis.Redis,
    clock: ManualClock,
    total: int,
    charge: int,
    said: list[str],
    way: str,
    functions: bool,
) -> None:
    fields: dict[str, Any] = {"warn_at": (0.5,), "warn_below": (5,), "overage": None}
    plans = [plan(10, **fields), plan(total, "q", **fields)]
    meter = make(plans, clock=clock, functions=functions)
    meter.report("acme", "credits", 15)
    assert events(client, meter) == ["warn 0.5", "warn 5", "exhausted", "overage"]
    if way == "override":
        meter.override("acme", "credits", limit=total)
    elif way == "grant":
        meter.grant("acme", "credits", total - 10)
    else:
        meter.subscribe("acme", "q")
    meter.report("acme", "credits", charge)
    assert events(client, meter)[4:] == said


def test_thresholds_of_another_plan_keep_the_marks_of_equal_ones(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    plans = [
        plan(warn_at=(0.5, 0.8), warn_below=(60,)),
        plan(100, "q", warn_at=(0.3, 0.8, 0.9), warn_below=(5, 60)),
    ]
    meter = make(plans, clock=clock)
    meter.consume("acme", "credits", 82)
    assert events(client, meter) == ["warn 0.5", "warn 0.8", "warn 60"]
    meter.subscribe("acme", "q")
    meter.consume("acme", "credits", 9)
    assert events(client, meter)[3:] == ["warn 0.3", "warn 0.9"]


def test_what_was_carried_in_counts_for_fractions(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(rollover=100)], clock=clock)
    meter.consume("acme", "credits", 10)
    clock.advance(days=1)
    for _ in range(151):
        meter.consume("acme", "credits")
    assert events(client, meter) == ["closed"]
    meter.consume("acme", "credits")  # 152 of 190
    assert events(client, meter) == ["closed", "warn 0.8"]


def test_an_operation_that_comes_back_brings_all_that_its_costs_reach(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    hourly = Pool("hourly", 100, "hour", rates={"credits": 1})
    meter = make([Plan("p", includes=[Pool("credits", 100), hourly], default=True)], clock=clock)
    meter.consume("acme", "credits", 5, op="x")
    clock.advance(hours=2)
    meter.refund("acme", of="x")
    assert [row[:3] for row in rows(client, meter, 0)] == [["closed", "acme", "hourly"]]


def test_an_unlimited_pool_says_only_that_a_period_is_over(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan(None, warn_below=(5,))], clock=clock)
    meter.consume("acme", "credits", 10**15)
    clock.advance(days=3)
    meter.consume("acme", "credits")
    assert events(client, meter) == ["closed"]
    assert rows(client, meter, 0)[0][4:7] == [-(2**53), 10**15, -(2**53)]


def test_a_period_without_use_is_not_told_of(
    make: Make, client: redis.Redis, clock: ManualClock
) -> None:
    meter = make([plan()], clock=clock)
    meter.consume("acme", "credits", 5)
    meter.refund("acme", "credits", 5)
    clock.advance(days=1)
    meter.consume("acme", "credits", 5)
    clock.advance(days=50)
    assert meter.usage("acme")["credits"].used == 0
    assert meter.check("acme", "credits")
    assert events(client, meter) == []
    meter.harvest()
    assert events(client, meter) == ["closed"]


@pytest.mark.parametrize("way", ["reset", "drop", "unsubscribe"])
def test_a_period_that_is_cut_short_is_told_of(
    make: Make, client: redis.Redis, clock: ManualClock, way: str
) -> None:
    empty = Plan("other", includes=[Bucket("api", 5, "1m")])
    meter = make([plan(), empty], clock=clock)
    meter.subscribe("acme", "p")
    meter.consume("acme", "credits", 5)
    clock.advance(hours=1)
    if way == "unsubscribe":
        meter.subscribe("acme/team", "p")
        meter.consume("acme/team", "credits", 2)
        meter.unsubscribe("acme/team", "p")
    else:
        meter.subscribe("acme", *(["p"] if way == "reset" else ["other"]), change="reset")
    (row,) = rows(client, meter, 0)
    assert row[0] == "closed"
    assert row[3] == "p"
    assert row[5] == (2 if way == "unsubscribe" else 5)
    assert row[8] == row[9] == clock.now_ms


def test_events_are_trimmed(make: Make, client: redis.Redis, clock: ManualClock) -> None:
    meter = make([plan()], clock=clock)
    key = meter._keys.shared(meter._keys.path("acme")).events
    pipeline = client.pipeline(transaction=False)
    for _ in range(100_300):
        pipeline.xadd(key, {"e": b"x"})
    pipeline.execute()
    meter.consume("acme", "credits", 90)
    assert 100_000 <= client.xlen(key) < 100_300


def test_a_pool_has_at_most_fourteen_thresholds() -> None:
    many = [n / 20 for n in range(1, 9)]
    Pool("credits", 10, warn_at=many, warn_below=range(1, 7))
    with pytest.raises(PolicyError, match="at most 14 thresholds"):
        Pool("credits", 10, warn_at=many, warn_below=range(1, 8))
    with pytest.raises(PolicyError, match="at most 14 thresholds"):
        Pool("credits", 10, warn_below=range(1, 17))
