"""Plans that change in proportion to what is left of the period."""

from __future__ import annotations

from datetime import timedelta

import pytest

from meterd import Bucket, Plan, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make
from tests.client.plan_tools import BIG, MS, PLANS, day, month, ms, pool


@pytest.fixture
def meter(make: Make, clock: ManualClock) -> AnyMeter:
    """On PLANS, at the beginning of April 2025: a month of 30 days."""
    clock.set(day(4))
    return make(PLANS)


def test_an_upgrade_in_the_middle_of_the_month(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "credits", 400)
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    assert pool(meter) == (5_500, 400, day(5))  # half of 9,000 more
    assert meter.usage("ana").plans == {"base": "big"}
    assert meter.consume("ana", "credits", 5_100)
    refused = meter.consume("ana", "credits", 10_000)
    assert refused.retry_after == 15 * 86_400  # when the whole of the plan counts
    clock.set(day(5) - MS)
    assert pool(meter) == (5_500, 5_500, day(5))
    clock.set(day(5))
    assert pool(meter) == (10_000, 0, day(6))
    assert meter.consume("ana", "credits", 10_000)


def test_a_downgrade_in_the_middle_of_the_month(meter: AnyMeter, clock: ManualClock) -> None:
    meter.subscribe("ana", "big")
    meter.consume("ana", "credits", 7_000)
    clock.set(day(4, 16))
    meter.subscribe("ana", "small", change="prorate")
    assert pool(meter) == (5_500, 7_000, day(5))
    assert meter.usage("ana")["credits"].remaining == 0
    clock.set(day(5))
    assert pool(meter) == (1_000, 0, day(6))


@pytest.mark.parametrize(
    ("after", "limit"),
    [
        (timedelta(0), 10_000),
        (MS, 1_000 + 9_000 * 9_999 // 10_000),  # the fraction is rounded down
        (timedelta(days=3), 9_100),
        (timedelta(days=10), 1_000 + 9_000 * 6_666 // 10_000),
        (timedelta(days=30) - MS, 1_000),
    ],
    ids=str,
)
def test_the_fraction(meter: AnyMeter, clock: ManualClock, after: timedelta, limit: int) -> None:
    meter.consume("ana", "credits")
    clock.set(day(4) + after)
    meter.subscribe("ana", "big", change="prorate")
    assert pool(meter) == (limit, 1, day(5))


def test_changes_in_proportion_add_up_over_time(meter: AnyMeter, clock: ManualClock) -> None:
    """Half of the month at 1,000, a quarter each at 10,000 and at 1,000 again."""
    meter.consume("ana", "credits")
    clock.set(day(4, 16))
    for _ in range(3):  # the same again is no change
        meter.subscribe("ana", "big", change="prorate")
        assert pool(meter)[0] == 5_500
    clock.set(day(4, 23, 12))
    meter.subscribe("ana", "small", change="prorate")
    assert pool(meter)[0] == 3_250 == (1_000 * 2 + 10_000 + 1_000) // 4
    meter.subscribe("ana", "big", change="prorate")
    meter.subscribe("ana", "small", change="prorate")
    assert pool(meter)[0] == 3_250
    clock.set(day(5))
    assert pool(meter)[0] == 1_000


def test_keep_counts_in_full(meter: AnyMeter, clock: ManualClock) -> None:
    meter.apply([Plan("huge", includes=[month(20_000)]), Plan("tiny", includes=[month(10)])])
    for who in ("ana", "bob", "eve"):
        meter.subscribe(who, "big" if who == "eve" else "small")
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    meter.subscribe("bob", "big", change="prorate")
    meter.subscribe("ana", "big")  # what is held already changes nothing
    assert pool(meter)[0] == 5_500
    meter.subscribe("ana", "huge")
    assert pool(meter)[0] == 20_000
    meter.subscribe("bob", "small")
    assert pool(meter, subject="bob")[0] == 1_000
    # What a downgrade has left beyond the plan's limit is not taken away by an upgrade, or another.
    meter.subscribe("eve", "small", change="prorate")
    assert pool(meter, subject="eve")[0] == 1_000 + 4_500
    meter.subscribe("eve", "tiny")
    assert pool(meter, subject="eve")[0] == 10 + 4_500
    meter.subscribe("eve", "huge")
    assert pool(meter, subject="eve")[0] == 20_000 + 4_500
    clock.set(day(5))
    assert [pool(meter, subject=who)[0] for who in ("ana", "bob", "eve")] == [20_000, 1_000, 20_000]


def test_a_new_definition_moves_the_limit_by_its_difference(
    meter: AnyMeter, clock: ManualClock
) -> None:
    meter.consume("ana", "credits")
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    meter.apply([Plan("big", includes=[month(12_000)])])
    assert pool(meter)[0] == 7_500
    meter.consume("ana", "credits")  # brings the record to it
    meter.apply([Plan("big", includes=[month(9_000)])])
    assert pool(meter)[0] == 7_500  # a shortfall of 4,500 has become one of 1,500
    meter.apply([Plan("big", includes=[month(None)])])
    assert meter.consume("ana", "credits")["credits"].limit is None
    meter.apply([BIG])
    assert pool(meter)[0] == 10_000


def test_reset_ends_it(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "credits", 400)
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    meter.subscribe("ana", "big", change="reset")
    assert pool(meter) == (10_000, 0, day(5, 16))


def test_the_period_that_ends_is_closed_with_the_limit_it_had(
    make: Make, clock: ManualClock
) -> None:
    clock.set(day(4))
    meter = make(
        [Plan(p.id, includes=[month(p.includes[0].limit, rollover=20_000)]) for p in PLANS]
    )
    meter.subscribe("ana", "small")
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    clock.set(day(6))  # May passed unseen
    state = meter.usage("ana")["credits"]
    assert (state.limit, state.remaining) == (10_000, 10_000 + 5_500 + 10_000)


def test_pools_without_an_end_move_at_once(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))

    def plan(name: str, limit: int, unlimited: int | None) -> Plan:
        return Plan(
            name,
            includes=[
                Pool("never", limit),
                Pool("five", limit, "5h", anchor="first_use"),
                Pool("running", limit, "5h", anchor="first_use"),
                month(unlimited, "open"),
                Bucket("api", limit, "1m"),
                *([month(7, "new")] if name == "big" else []),
            ],
            default=name == "small",
        )

    meter = make([plan("small", 100, None), plan("big", 1_000, 50)])
    meter.consume("ana", {"never": 1, "running": 1, "open": 1})
    clock.advance(hours=1)
    meter.subscribe("ana", "big", change="prorate")
    usage = meter.usage("ana")
    assert {s.name: s.limit for s in usage} == {
        "never": 1_000, "five": 1_000, "running": 100 + 720, "open": 50, "api": 1_000, "new": 7,
    }  # fmt: skip
    clock.advance(hours=4)
    assert meter.usage("ana")["running"].limit == 1_000


def test_an_override_wins_while_it_lasts(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "credits", 400)
    meter.override("ana", "credits", limit=77, expires=day(4, 20))
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    assert pool(meter) == (77, 400, day(5))
    clock.set(day(4, 20) - MS)
    assert pool(meter)[0] == 77
    clock.set(day(4, 20))
    assert pool(meter)[0] == 5_500
    meter.override("ana", "credits", overage=500)
    assert meter.consume("ana", "credits", 5_600)
    assert pool(meter)[:2] == (5_500, 6_000)
    clock.set(day(5))
    assert pool(meter)[:2] == (10_000, 0)
    assert meter.check("ana", "credits", 10_500)
    assert not meter.check("ana", "credits", 10_501)


def test_other_groups_and_levels_stay(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    pack = Plan("pack", includes=[month(500), month(10, "more")], group="addon")
    meter = make([*PLANS, pack])
    meter.subscribe("ana", "pack")
    meter.subscribe("ana/bob", limits=[month(30)])
    clock.set(day(4, 16))
    meter.subscribe("ana", "big", change="prorate")
    assert {s.name: s.limit for s in meter.usage("ana")} == {"credits": 6_000, "more": 10}
    assert meter.usage("ana/bob").limits[-1].limit == 30
    meter.unsubscribe("ana", "pack")
    assert pool(meter)[0] == 5_500


def test_exact_at_the_largest_numbers(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    low, high = 3, 10**15 - 7
    meter = make(
        [Plan("a", includes=[month(low)], default=True), Plan("b", includes=[month(high)])]
    )
    meter.consume("ana", "credits")
    clock.set(day(4, 11, 5))
    meter.subscribe("ana", "b", change="prorate")
    left, whole = ms(day(5)) - clock.now_ms, ms(day(5)) - ms(day(4))
    limit = low + (high - low) * (10_000 * left // whole) // 10_000
    assert pool(meter)[0] == limit
    meter.subscribe("ana", "a", change="prorate")
    assert pool(meter)[0] == low
