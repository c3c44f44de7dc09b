"""Edges of grants: what others gave back of what had gone over, and ends at a period's end."""

from __future__ import annotations

from datetime import timedelta

from meterd import Bucket, Plan, Pool
from meterd.testing import ManualClock
from tests.client.grant_tools import left
from tests.client.hold_tools import reserve
from tests.client.meter_tools import Make

PLANS = [Plan("base", includes=[Pool("credits", 10, overage=5)], default=True)]


def test_what_others_gave_back_of_over_comes_out_of_the_allowance(make: Make) -> None:
    meter = make(PLANS)
    meter.grant("acme", "credits", 3)
    meter.consume("acme", "credits", 10)
    hold = reserve(meter, "acme", "credits", 7)  # 3 of the grant, 4 over
    meter.refund("acme", "credits", 2)
    hold.release()
    shown = meter.usage("acme")["credits"]
    assert (shown.used, shown.drawn, shown.overage, shown.remaining) == (8, 0, 0, 5)


def test_an_operation_is_given_back_the_same_way(make: Make) -> None:
    meter = make(PLANS)
    meter.grant("acme", "credits", 3)
    meter.consume("acme", "credits", 10)
    meter.consume("acme", "credits", 7, op="x")
    meter.refund("acme", "credits", 2)
    meter.refund("acme", of="x")
    shown = meter.usage("acme")["credits"]
    assert (shown.used, shown.drawn, shown.overage, shown.remaining) == (8, 0, 0, 5)


def test_what_a_grant_has_back_already_does_not_come_back_twice(make: Make) -> None:
    meter = make(PLANS)
    meter.grant("acme", "credits", 20, op="g", priority=40)
    meter.consume("acme", "credits", 15, op="x")
    meter.refund("acme", "credits", 9)
    meter.grant("acme", "credits", 2, op="h", priority=30)
    meter.consume("acme", "credits", 1)  # of h
    back = meter.refund("acme", of="x")["credits"]
    assert (back.applied, back.used, back.drawn, back.granted) == (6, 1, 1, 21)
    assert left(meter) == {"g": 20, "h": 1}


def test_a_grant_gets_back_what_is_its_own_where_the_name_is_no_pool_any_more(make: Make) -> None:
    bucket = Plan("bucket", includes=[Bucket("credits", 10, "1m")])
    meter = make([*PLANS, bucket])
    meter.grant("acme", "credits", 20, op="g", priority=40)
    meter.consume("acme", "credits", 15, op="x")
    meter.subscribe("acme", "bucket")
    back = meter.refund("acme", of="x")["credits"]
    assert (back.kind, back.applied) == ("bucket", 0)
    assert left(meter) == {"g": 20}


def test_a_grant_that_ends_with_the_period_is_no_help_after_it(
    make: Make, clock: ManualClock
) -> None:
    meter = make([Plan("base", includes=[Pool("credits", 10, "1h")], default=True)])
    meter.consume("acme", "credits", 10)
    for past, after in ((0, None), (1, 3600.0)):
        ends = clock.now() + timedelta(hours=1, milliseconds=past)
        meter.grant("acme", "credits", 5, expires=ends, starts=clock.now())
        meter.consume("acme", "credits", 5 * past)
        refused = meter.check("acme", "credits", 12)
        assert (refused.allowed, refused.retry_after) == (False, after)


def test_it_is_over_at_the_very_instant(make: Make, clock: ManualClock) -> None:
    meter = make([Plan("p", includes=[Pool("credits", 0)], default=True)])
    meter.grant("acme", "credits", 5, expires="1h")
    clock.advance(milliseconds=3_599_999)
    assert meter.check("acme", "credits", 5)
    assert meter.consume("acme", "credits", 2)
    clock.advance(milliseconds=1)
    state = meter.usage("acme")["credits"]
    assert (state.remaining, state.granted) == (0, 0)
    assert not meter.check("acme", "credits")
    assert not meter.consume("acme", "credits")
