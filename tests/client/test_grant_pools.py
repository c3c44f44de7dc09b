"""Grants beside plans: pools that only grants made, changes of plan, overrides, rollover."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from meterd import Bucket, Code, Flag, NotIncluded, OpConflict, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.grant_tools import PLANS, grants_of, left
from tests.client.hold_tools import reserve
from tests.client.meter_tools import AnyMeter, Make, look_again
from tests.support import servers


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


# Pools that no plan includes ----------------------------------------------------------------------


def test_a_pool_that_no_plan_includes(meter: AnyMeter, clock: ManualClock) -> None:
    assert meter.consume("acme", "extra").code is Code.NOT_INCLUDED
    meter.grant("acme", "extra", 10, expires="1h", op="only")
    state = meter.consume("acme", "extra", 4)["extra"]
    assert (state.kind, state.limit, state.used, state.remaining) == ("pool", 0, 4, 6)
    assert (state.drawn, state.granted, state.resets_at) == (4, 6, None)
    refused = meter.consume("acme", "extra", 7)
    assert (refused.code, refused.retry_after) == (Code.USAGE_EXCEEDED, None)
    both = meter.consume("acme", {"credits": 1, "extra": 1})
    assert [s.name for s in both.limits] == ["credits", "extra"]
    assert meter.refund("acme", "extra", 2)["extra"].remaining == 7
    clock.advance(hours=1)
    assert meter.consume("acme", "extra").code is Code.NOT_INCLUDED
    with pytest.raises(NotIncluded):
        meter.report("acme", "extra")
    with pytest.raises(KeyError):
        meter.usage("acme")["extra"]


def test_one_kind_per_name_on_a_path(meter: AnyMeter) -> None:
    meter.subscribe("acme", limits=[Bucket("api", 5, "1m"), Flag("sso"), Pool("credits", 5)])
    before = meter.usage("acme")
    for name, kind in (("api", "bucket"), ("sso", "flag")):
        for subject in ("acme/ana", "acme/ana/phone"):
            for op in (None, "first"):
                with pytest.raises(
                    PolicyError, match=f"grant: '{name}' is a pool.*a {kind} of 'acme'"
                ):
                    meter.grant(subject, name, 5, op=op)
    assert meter.usage("acme") == before
    assert meter.subjects() == ["acme"]
    made = meter.grant("acme/ana", "credits", 5)
    first = meter.grant("acme/ana", "later", 5, op="first")
    meter.subscribe("acme", limits=[Flag("later")])
    assert meter.grant("acme/ana", "later", 5, op="first") == first  # that was done already
    with pytest.raises(OpConflict):
        meter.grant("acme/ana", "later", 6, op="first")
    with pytest.raises(PolicyError, match=r"'later' is a pool.*a flag of 'acme'"):
        meter.grant("acme/ana", "later", 5, op="second")
    assert set(grants_of(meter, "acme/ana")) == {made.id, first.id}


def test_what_is_reported_beyond_it(meter: AnyMeter) -> None:
    meter.grant("acme", "extra", 10, op="only")
    state = meter.report("acme", "extra", 15)["extra"]
    assert (state.used, state.drawn, state.overage, state.remaining) == (15, 10, 5, -5)
    meter.grant("acme", "extra", 10)
    assert meter.check("acme", "extra", 5)
    assert not meter.check("acme", "extra", 6)


def test_as_long_as_there_is_any_grant_in_the_books(meter: AnyMeter, clock: ManualClock) -> None:
    """Spent or not, until it ends: an exhausted pool is not one that is not included."""
    meter.grant("acme", "extra", 2, op="spent")
    meter.grant("acme", "extra", 2, starts="1h", expires="2h")
    meter.consume("acme", "extra", 2)
    assert meter.consume("acme", "extra").code is Code.USAGE_EXCEEDED
    clock.advance(hours=1)
    assert meter.consume("acme", "extra")
    clock.advance(hours=1)
    assert meter.consume("acme", "extra").code is Code.USAGE_EXCEEDED


def test_several_of_them_beside_every_kind_of_limit(meter: AnyMeter) -> None:
    for name in ("z", "extra", "Api", "m"):
        meter.grant("acme", name, len(name))
    usage = meter.usage("acme")
    names = ["credits", "api", "export", "Api", "extra", "m", "z"]
    assert [s.name for s in usage.limits] == names
    costs = {"z": 1, "extra": 2, "Api": 3, "credits": 4, "api": 5, "export": 6}
    assert meter.consume("acme", costs)
    used = {s.name: s.used for s in meter.usage("acme").limits}
    assert used == {"credits": 4, "api": 5, "export": 0, "Api": 3, "extra": 2, "m": 0, "z": 1}


def test_a_subject_of_buckets_alone_stays_from_now_on(make: Make, server: servers.Server) -> None:
    """Such a record goes by itself when it is full again, but for grants."""
    plan = Plan("b", includes=[Bucket("api", 10, "1s")], default=True)
    meter = make([plan], clock=None, prefix="grants-stay")
    meter.consume("acme", "api")
    key = meter.raw._keys.path("acme").keys[0]
    assert server.binary.pttl(key) > 0
    meter.grant("acme", "extra", 5, op="only")
    assert server.binary.pttl(key) == -1
    meter.consume("acme", {"api": 1, "extra": 1})
    assert server.binary.pttl(key) == -1
    meter.forget("acme")


def test_a_deeper_level_without_a_record_of_its_own(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("acme/team/ana", "credits")
    meter.grant("acme/team/ana", "extra", 5, expires="1h")
    usage = meter.usage("acme/team/ana")
    assert [(x.subject, x.plans, x.stored) for x in usage.levels] == [
        ("acme", {"base": "base"}, True),
        ("acme/team/ana", {}, True),
    ]
    decision = meter.consume("acme/team/ana", {"credits": 1, "extra": 2})
    assert [(s.subject, s.name) for s in decision.limits] == [
        ("acme", "credits"),
        ("acme/team/ana", "extra"),
    ]
    assert meter.consume("acme", "extra").code is Code.NOT_INCLUDED
    assert meter.consume("acme/team/bob", "extra").code is Code.NOT_INCLUDED
    clock.advance(hours=1)
    assert meter.consume("acme/team/ana", "extra").code is Code.NOT_INCLUDED
    assert meter.consume("acme/team/ana", "credits")


def test_a_deeper_levels_own_grant_is_a_limit_too(meter: AnyMeter) -> None:
    """What its level has is what may be spent there; the levels above charge besides."""
    meter.grant("acme/ana", "credits", 5)
    assert meter.consume("acme/ana", "credits", 5)
    assert not meter.consume("acme/ana", "credits")
    assert meter.usage("acme")["credits"].used == 5
    assert meter.consume("acme", "credits", 95)


def test_a_root_without_any_plan(make: Make) -> None:
    meter = make([Plan("p", includes=[Pool("credits", 5)])])
    assert meter.consume("acme", "credits").code is Code.NO_PLAN
    meter.grant("acme", "credits", 7)
    assert meter.usage("acme").levels[0].plans == {}
    assert meter.consume("acme", "credits", 7)
    refused = meter.consume("acme", "credits")
    assert refused.code is Code.USAGE_EXCEEDED
    meter.subscribe("acme", "p")
    assert meter.consume("acme", "credits", 5)


def test_a_name_that_is_something_else(meter: AnyMeter) -> None:
    meter.grant("acme", "sso", 5, op="gift")
    meter.subscribe("acme", limits=[Flag("sso"), Bucket("extra", 3, "1m")])
    assert [(s.name, s.kind) for s in meter.usage("acme").limits] == [
        ("sso", "flag"),
        ("extra", "bucket"),
    ]
    assert meter.consume("acme", "sso", 99)
    assert left(meter) == {"gift": 5}  # it sleeps
    for name in ("sso", "extra"):
        with pytest.raises(PolicyError, match=name):
            meter.grant("acme", name, 5)
    meter.subscribe("acme", "base")
    assert burned_of(meter, "sso", 2) == {"gift": 3}


def burned_of(meter: AnyMeter, name: str, amount: int) -> dict[str, int]:
    assert meter.consume("acme", name, amount)
    return left(meter)


# Changes of plan ----------------------------------------------------------------------------------


def test_no_change_of_plan_touches_a_grant(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="first")
    meter.grant("acme", "credits", 50, op="last")
    meter.consume("acme", "credits", 20)
    before = grants_of(meter)
    meter.subscribe("acme", "pro")
    meter.subscribe("acme", "pro", change="reset")
    meter.subscribe("acme", limits=[Pool("credits", 3, "day"), Bucket("b", 3, "1s")])
    meter.override("acme", "credits", limit=7)
    meter.adjust("acme", "credits", used=2)
    meter.subscribe("acme", "bare")
    meter.unsubscribe("acme", "bare")
    meter.apply([Plan("base", includes=[Pool("credits", 9, "week")], default=True)])
    look_again(meter)
    assert grants_of(meter) == before
    assert meter.consume("acme", "credits", 30)
    assert left(meter) == {"first": 0, "last": 50}


def test_a_plan_that_includes_the_pool_begins_anew(meter: AnyMeter, clock: ManualClock) -> None:
    """Its period counts from when the plan came; what grants gave before is none of it."""
    clock.set(datetime(2030, 1, 1, tzinfo=UTC))
    meter.grant("acme", "seats", 50, op="gift")
    meter.report("acme", "seats", 60)
    clock.set(datetime(2030, 1, 10, tzinfo=UTC))
    meter.grant("acme", "seats", 5, op="more")
    meter.subscribe("acme", limits=[Pool("seats", 20, "month")])
    state = meter.usage("acme")["seats"]
    assert (state.limit, state.used, state.drawn, state.remaining) == (20, 0, 0, 25)
    assert state.resets_at == datetime(2030, 2, 10, tzinfo=UTC)


def test_a_plan_that_leaves_the_pool_out_drops_its_use(meter: AnyMeter, clock: ManualClock) -> None:
    """Whoever comes back to the plan has the whole of it, as if there had been no grant."""
    meter.subscribe("acme", limits=[Pool("credits", 1000, "month")])
    meter.grant("acme", "credits", 5, op="gift")
    meter.consume("acme", "credits", 1000)
    meter.subscribe("acme", "bare")
    assert left(meter) == {"gift": 5}
    state = meter.consume("acme", "credits", 3)["credits"]
    assert (state.limit, state.used, state.drawn, state.remaining) == (0, 3, 3, 2)
    clock.advance(days=100)
    meter.subscribe("acme", limits=[Pool("credits", 1000, "month")])
    state = meter.usage("acme")["credits"]
    assert (state.used, state.drawn, state.remaining) == (0, 0, 1002)
    assert state.resets_at is not None
    assert timedelta(days=27) < state.resets_at - clock.now() < timedelta(days=32)


def test_a_hold_from_before_gives_nothing_to_the_new_pool(meter: AnyMeter) -> None:
    meter.grant("acme", "seats", 5, op="gift")
    hold = reserve(meter, "acme", "seats", 4)
    meter.subscribe("acme", limits=[Pool("seats", 20, "month")])
    meter.consume("acme", "seats", 3)
    hold.release()
    state = meter.usage("acme")["seats"]
    assert (state.used, state.drawn, state.remaining) == (3, 0, 22)
    assert left(meter) == {"gift": 5}


def test_an_upgrade_keeps_what_was_used_and_drawn(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="gift")
    meter.consume("acme", "credits", 70)
    meter.subscribe("acme", "pro")
    state = meter.usage("acme")["credits"]
    assert (state.limit, state.used, state.drawn, state.remaining) == (1000, 70, 50, 980)
    assert meter.refund("acme", "credits", 60)["credits"].applied == 60
    assert left(meter) == {"gift": 50}


# Overrides, adjustments, resets -------------------------------------------------------------------


def test_an_override_and_grants(meter: AnyMeter, clock: ManualClock) -> None:
    meter.grant("acme", "credits", 50, op="gift")
    meter.override("acme", "credits", limit=10, overage=5, expires="1h")
    assert meter.consume("acme", "credits", 65)
    assert left(meter) == {"gift": 0}
    state = meter.usage("acme")["credits"]
    assert (state.limit, state.used, state.drawn, state.overage) == (10, 65, 50, 5)
    clock.advance(hours=1)
    state = meter.usage("acme")["credits"]
    assert (state.limit, state.remaining) == (100, 85)


def test_an_override_of_a_pool_that_only_grants_made_sleeps(meter: AnyMeter) -> None:
    meter.subscribe("acme", "bare")
    meter.grant("acme", "credits", 5)
    meter.override("acme", "credits", limit=200)
    assert meter.usage("acme")["credits"].limit == 0
    assert not meter.consume("acme", "credits", 6)
    meter.subscribe("acme", "base")
    assert meter.usage("acme")["credits"].remaining == 205


def test_adjusting_sets_the_use_and_leaves_grants(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="gift")
    meter.consume("acme", "credits", 70)
    meter.adjust("acme", "credits", used=90)
    state = meter.usage("acme")["credits"]
    assert (state.used, state.drawn, state.overage, state.remaining) == (90, 0, 0, 10)
    assert left(meter) == {"gift": 0}


def test_a_reset_closes_the_period_and_leaves_grants(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="gift")
    meter.consume("acme", "credits", 70)
    meter.subscribe("acme", "base", change="reset")
    state = meter.usage("acme")["credits"]
    assert (state.used, state.drawn, state.remaining) == (0, 0, 100)
    assert left(meter) == {"gift": 0}


def test_forgetting_takes_grants_along(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, op="gift")
    meter.grant("acme/ana", "credits", 5)
    meter.forget("acme/ana")
    assert left(meter) == {"gift": 50}
    meter.forget("acme")
    assert not meter.usage("acme").levels[0].stored
    assert meter.usage("acme")["credits"].granted == 0
    meter.grant("acme", "credits", 7, op="gift")  # the id is free again
    assert left(meter) == {"gift": 7}


# Rollover, debt, waiting --------------------------------------------------------------------------


def test_what_rolls_over_is_the_allowance_alone(make: Make, clock: ManualClock) -> None:
    plan = Plan("p", includes=[Pool("credits", 100, "day", rollover=30)], default=True)
    meter = make([plan])
    meter.grant("acme", "credits", 500, priority=90, op="gift")
    meter.consume("acme", "credits", 90)
    clock.advance(days=1)
    state = meter.usage("acme")["credits"]
    assert (state.used, state.remaining, state.granted) == (0, 610, 500)
    assert meter.consume("acme", "credits", 110)
    assert left(meter) == {"gift": 500}  # what was brought in is part of the allowance
    clock.advance(days=1)
    assert meter.usage("acme")["credits"].remaining == 600


def test_what_grants_cover_is_no_debt(make: Make, clock: ManualClock) -> None:
    plan = Plan("p", includes=[Pool("credits", 100, "day", carry_debt=True)], default=True)
    meter = make([plan])
    meter.grant("acme", "credits", 20, op="gift")
    meter.report("acme", "credits", 150)
    clock.advance(days=1)
    state = meter.usage("acme")["credits"]
    assert (state.used, state.remaining) == (0, 70)
    meter.grant("acme", "credits", 10)
    assert meter.usage("acme")["credits"].remaining == 80


def test_first_use_opens_with_a_charge_that_only_a_grant_pays(
    make: Make, clock: ManualClock
) -> None:
    plan = Plan("p", includes=[Pool("credits", 10, "5h", anchor="first_use")], default=True)
    meter = make([plan])
    meter.grant("acme", "credits", 20, priority=10, op="gift")
    assert meter.usage("acme")["credits"].resets_at is None
    meter.consume("acme", "credits", 5)
    resets = meter.usage("acme")["credits"].resets_at
    assert resets == clock.now() + timedelta(hours=5)


def test_waiting_counts_only_on_grants_that_live_throughout(make: Make, clock: ManualClock) -> None:
    meter = make([Plan("p", includes=[Pool("credits", 100, "day")], default=True)])
    day = 86_400
    meter.consume("acme", "credits", 100)
    assert meter.check("acme", "credits", 101).retry_after is None
    meter.grant("acme", "credits", 10, expires="1d", op="ends with the period")
    assert meter.check("acme", "credits", 11).retry_after == day
    assert meter.check("acme", "credits", 101).retry_after is None
    meter.grant("acme", "credits", 20, expires=timedelta(days=1, milliseconds=1), op="just after")
    assert meter.check("acme", "credits", 120).retry_after == day
    assert meter.check("acme", "credits", 121).retry_after is None
    refused = meter.check("acme", "credits", 110)
    assert refused.retry_after == day
    clock.advance(days=1, milliseconds=-1)
    assert not meter.consume("acme", "credits", 110)
    clock.advance(milliseconds=1)
    assert meter.consume("acme", "credits", 110)
    assert left(meter) == {"just after": 0}  # now it ends before the period does


def test_waiting_with_rollover_may_outlast_a_grant(make: Make) -> None:
    plan = Plan("p", includes=[Pool("credits", 100, "day", rollover=300)], default=True)
    meter = make([plan])
    meter.grant("acme", "credits", 50, expires="36h")
    meter.consume("acme", "credits", 100)
    day = 86_400
    # 100 after a day, 200 after two, when the grant is dead.
    assert [meter.check("acme", "credits", n).retry_after for n in (51, 150, 151, 200, 201)] == [
        day, day, 2 * day, 2 * day, 3 * day,
    ]  # fmt: skip


def test_a_grant_that_is_to_come_is_not_waited_for(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, starts="1m")
    assert meter.check("acme", "credits", 120).retry_after is None
