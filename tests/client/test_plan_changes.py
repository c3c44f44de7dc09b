"""Plans that change at a period's end, or at an instant to come."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from meterd import Flag, OpConflict, Plan, PlanChange, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make, look_again, requests_of
from tests.client.plan_tools import MS, PLANS, day, month, ms, pending, pool, rolling


@pytest.fixture
def meter(make: Make, clock: ManualClock) -> AnyMeter:
    """On PLANS, at the beginning of April 2025: a month of 30 days."""
    clock.set(day(4))
    return make(PLANS)


# --- At the end of the period


def test_a_downgrade_at_the_end_of_the_period(meter: AnyMeter, clock: ManualClock) -> None:
    meter.subscribe("ana", "big")
    meter.consume("ana", "credits", 7_000)
    clock.set(day(4, 16))
    assert meter.subscribe("ana", "small", when="period_end") is None
    assert pool(meter) == (10_000, 7_000, day(5))
    assert meter.usage("ana").plans == {"base": "big"}
    (change,) = pending(meter)
    assert change == PlanChange("base", "small", ms(day(5)), "keep")
    assert change.at == day(5)
    assert meter.usage("ana").as_dict()["levels"][0]["pending"] == [
        {"group": "base", "plan": "small", "at": "2025-05-01T00:00:00+00:00", "change": "keep"}
    ]
    clock.set(day(5) - MS)
    assert meter.consume("ana", "credits", 3_000)
    assert meter.usage("ana").plans == {"base": "big"}
    clock.set(day(5))
    assert meter.usage("ana").plans == {"base": "small"}
    assert pending(meter) == ()
    assert pool(meter) == (1_000, 0, day(6))
    assert meter.consume("ana", "credits", 1_000)
    assert not meter.consume("ana", "credits")


@pytest.mark.parametrize("verb", ["check", "consume", "report", "refund", "usage", "reserve"])
def test_whoever_looks_next_sees_it(meter: AnyMeter, clock: ManualClock, verb: str) -> None:
    meter.subscribe("ana", "big")
    meter.subscribe("ana", "small", when="period_end")
    clock.set(day(7, 9))
    if verb == "usage":
        found = meter.usage("ana")["credits"]
    else:
        answer = getattr(meter, verb)("ana", "credits", 10)
        found = (answer.decision if verb == "reserve" else answer)["credits"]
    assert (found.limit, found.resets_at) == (1_000, day(8))


def test_the_boundary_is_that_of_the_longest_interval(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    own = [Pool("a", 5, "week"), Pool("b", 5, "month"), Pool("c", 5, "30d"), Pool("d", 5)]
    meter = make(
        [Plan("own", includes=own, default=True), Plan("none", includes=[Flag("x")], group="other")]
    )
    meter.consume("ana", "a")
    meter.subscribe("ana", limits=[Flag("x")], when="period_end")
    assert [change.at for change in pending(meter)] == [day(5)]
    # Nothing of the plan that is left ever ends, and of an empty group nothing is left: now.
    meter.subscribe("ana", "none", when="period_end")
    assert meter.usage("ana").plans == {"base": "own", "other": "none"}
    meter.unsubscribe("ana", "none", when="period_end")
    assert meter.usage("ana").plans == {"base": "own"}
    # An unseen subject leaves nothing either.
    meter.subscribe("bob", limits=[Flag("x")], when="period_end")
    assert meter.usage("bob").plans == {"base": "private"}


def test_the_instant_is_fixed_when_it_is_asked_for(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "credits", 5)
    meter.subscribe("ana", "big", when="period_end")
    meter.subscribe(
        "ana", "more", limits=[month(3)]
    )  # another change of the group: it takes its place
    assert pending(meter) == ()
    meter.subscribe("ana", "small", anchor=day(4, 11))
    meter.subscribe("ana", "big", when="period_end")
    assert [change.at for change in pending(meter)] == [day(4, 11)]


def test_from_the_31st(make: Make, clock: ManualClock) -> None:
    clock.set(day(1, 31))
    meter = make(PLANS)
    meter.subscribe("ana", "big")
    clock.set(day(2, 14))
    meter.subscribe("ana", "small", change="prorate", when="period_end")
    assert [change.at for change in pending(meter)] == [day(2, 28)]
    meter.consume("ana", "credits", 9_000)
    clock.set(day(2, 28) - MS)
    assert pool(meter) == (10_000, 9_000, day(2, 28))
    clock.set(day(3, 1))
    assert pool(meter) == (1_000, 0, day(3, 31))  # at its very instant, all of the period was left
    meter.subscribe("ana", "big", when="period_end", change="reset")
    clock.set(day(4, 2))
    assert pool(meter) == (10_000, 0, day(4, 30))


def test_a_reset_at_the_end_closes_one_period_not_two(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    meter = make(rolling(300))
    meter.subscribe("ana", "small")
    meter.consume("ana", "credits", 1_000)
    meter.subscribe("ana", "big", when="period_end", change="reset")
    clock.set(day(5))
    assert meter.usage("ana")["credits"].remaining == 10_000  # nothing was left to carry over


# --- At an instant


@pytest.mark.parametrize("when", [day(4, 11), "10d", timedelta(days=10)], ids=repr)
def test_an_upgrade_at_an_instant(meter: AnyMeter, clock: ManualClock, when: Any) -> None:
    meter.consume("ana", "credits", 400)
    meter.subscribe("ana", "big", when=when, change="prorate")
    clock.set(day(4, 11) - MS)
    assert pool(meter) == (1_000, 400, day(5))
    clock.set(day(4, 20))  # nobody looked when it came
    assert pool(meter) == (1_000 + 9_000 * 6_666 // 10_000, 400, day(5))
    assert meter.consume("ana", "credits", 6_000)
    clock.set(day(5))
    assert pool(meter) == (10_000, 0, day(6))


@pytest.mark.parametrize("when", [day(3, 1), "0s", day(4)], ids=repr)
def test_what_is_past_is_now(meter: AnyMeter, when: Any) -> None:
    meter.subscribe("ana", "big", when=when)
    assert (meter.usage("ana").plans, pending(meter)) == ({"base": "big"}, ())
    meter.unsubscribe("ana", "big", when=when)
    assert (meter.usage("ana").plans, pending(meter)) == ({"base": "small"}, ())


def test_an_unseen_subject_is_on_the_default_until_then(
    meter: AnyMeter, clock: ManualClock
) -> None:
    meter.subscribe("ana", "big", when="10d")
    meter.subscribe("acme/bob", "big", when="10d")
    assert meter.usage("ana").plans == {"base": "small"}
    assert meter.usage("acme/bob").levels[-1].plans == {}
    assert pending(meter, "acme/bob") == pending(meter)
    clock.advance(days=11)
    assert pool(meter) == (10_000, 0, day(5))  # the pool had entered in April
    assert meter.usage("acme/bob").limits[-1].resets_at == day(5, 11)  # here it came with the plan


def test_a_plan_that_goes(meter: AnyMeter, clock: ManualClock) -> None:
    meter.subscribe("ana", "big")
    meter.subscribe("acme/bob", "big")
    for who in ("ana", "acme/bob"):
        assert meter.unsubscribe(who, "big", when="period_end") is None
        assert pending(meter, who) == (PlanChange("base", None, ms(day(5)), "keep"),)
    clock.set(day(5))
    assert meter.usage("ana").plans == {"base": "small"}
    assert meter.usage("acme/bob").levels[-1].plans == {}
    assert meter.usage("acme/bob").levels[-1].stored
    # What is not held need not go; what nobody knows is a mistake.
    meter.unsubscribe("ana", "big", when="period_end")
    assert pending(meter) == ()
    with pytest.raises(PolicyError, match="does not hold"):
        meter.unsubscribe("ana", "nonsense", when="5d")


# --- One waits for each group


def test_a_later_change_takes_the_place_of_the_one_that_waits(
    make: Make, clock: ManualClock
) -> None:
    clock.set(day(4))
    pack = Plan("pack", includes=[month(50, "extra")], group="addon")
    meter = make([*PLANS, pack])
    meter.subscribe("ana", "big", when="10d")
    meter.subscribe("ana", "pack", when="5d")
    assert [(p.group, p.plan) for p in pending(meter)] == [("addon", "pack"), ("base", "big")]
    meter.subscribe("ana", limits=[month(5)], when="20d")
    assert [(p.group, p.plan) for p in pending(meter)] == [("addon", "pack"), ("base", "private")]
    meter.subscribe("ana", "small")  # what it has: so nothing changes, and nothing waits
    assert [p.group for p in pending(meter)] == ["addon"]
    meter.subscribe("ana", "big", when="period_end")
    meter.unsubscribe("ana", "small", when="20d")
    assert [(p.group, p.plan) for p in pending(meter)] == [("addon", "pack"), ("base", None)]
    meter.unsubscribe("ana", "small")
    assert [p.group for p in pending(meter)] == ["addon"]
    clock.advance(days=60)
    assert meter.usage("ana").plans == {"base": "small", "addon": "pack"}


def test_several_that_are_due_come_in_the_order_of_time(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    first = Plan("first", includes=[month(500, rollover=0)], group="addon")
    meter = make([*PLANS, first])
    meter.consume("ana", "credits", 100)
    meter.subscribe("ana", "big", when=day(4, 21), change="prorate")
    meter.subscribe("ana", "first", when=day(4, 16), change="prorate")
    clock.set(day(4, 29))
    expected = 1_000 + 250 + 9_000 * 3_333 // 10_000
    sent = requests_of(meter)
    assert pool(meter) == (expected, 100, day(5))
    # One round trip to hear of both, one to do them; one more if the server met no such policy.
    assert len(sent) in (2, 3)
    assert meter.consume("ana", "credits")
    before = len(sent)
    assert meter.consume("ana", "credits")
    assert len(sent) == before + 1


def test_pending_private_plans_and_retired_ones(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    meter = make(PLANS)
    meter.subscribe("ana", "own", limits=[month(77), Flag("beta")], when="10d")
    meter.subscribe("bob", "big", when="10d")
    meter.apply([], remove=["big"])
    meter.apply([Plan("own", includes=[Flag("z")], group="other")])
    clock.advance(days=10)
    for one in (make(None), meter):  # another process has to find what it means
        assert one.usage("ana").plans == {"base": "own"}
        assert pool(one)[0] == 77
        assert one.check("ana", "beta")
        assert one.usage("bob").plans == {"base": "big"}
    # A plan that is retired may be held on to: what waited for its end does not any more.
    meter.unsubscribe("bob", "big", when="period_end")
    meter.subscribe("bob", "big")
    assert pending(meter, "bob") == ()
    for who in ("ana", "new"):
        with pytest.raises(PolicyError, match="plan 'big' is retired"):
            meter.subscribe(who, "big", when="5d")
        with pytest.raises(PolicyError, match="plan 'big' is retired"):
            meter.subscribe(who, "big")


def test_the_definition_that_counts_is_the_newest(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    meter, other = make(PLANS), make(PLANS)
    other.consume("ana", "credits")
    meter.subscribe("ana", "big", when="10d")
    meter.apply([Plan("big", includes=[month(20_000), Flag("sso")])])
    clock.advance(days=12)
    assert pool(meter)[0] == 20_000
    assert other.check("ana", "credits", 9_999)  # it does not know of the apply yet
    look_again(other)
    assert other.consume("ana", {"credits": 19_999, "sso": 1})
    assert pool(other)[:2] == (20_000, 20_000)


def test_a_change_to_a_plan_that_this_process_never_heard_of(
    make: Make, clock: ManualClock
) -> None:
    clock.set(day(4))
    meter, others = make(PLANS), {"ana": make(PLANS), "bob": make(PLANS)}
    for who, other in others.items():
        other.consume(who, "credits")
    meter.apply([Plan("later", includes=[month(4)])])
    meter.consume("bob", "credits")  # brings the record to a catalog that the other does not know
    for who in ("ana", "bob"):
        meter.subscribe(who, "later", when="10d")
    clock.advance(days=10)
    assert [pool(other, subject=who)[0] for who, other in others.items()] == [4, 4]


# --- Beside everything else


def test_overrides_holds_and_changes_come_in_the_order_of_time(
    make: Make, clock: ManualClock
) -> None:
    clock.set(day(4))
    meter = make(PLANS)
    meter.subscribe("ana", "big")
    meter.override("ana", "credits", limit=300, expires=day(4, 13))
    meter.reserve("ana", "credits", 200, ttl="9d")
    meter.subscribe("ana", "small", when=day(4, 11))
    clock.set(day(4, 12))
    assert pool(meter) == (300, 0, day(5))
    assert meter.usage("ana").plans == {"base": "small"}
    clock.set(day(4, 13))
    assert pool(meter) == (1_000, 0, day(5))


def test_it_is_written_once_and_then_it_is_over(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "credits", 5)
    meter.subscribe("ana", "big", when="10d")
    clock.set(day(4, 12))
    meter.check("ana", "credits")
    assert not meter.consume("ana", {"credits": 1, "nothing": 1})  # nor does this refusal
    clock.set(day(4, 11) - MS)  # the clock was ahead; nothing has happened yet
    assert meter.usage("ana").plans == {"base": "small"}
    clock.set(day(4, 12))
    assert meter.consume("ana", "credits", 9_995)
    clock.set(day(4, 11) - MS)
    assert meter.usage("ana").plans == {"base": "big"}
    assert pool(meter)[1] == 10_000


def test_a_refusal_that_is_told_of_writes_it_too(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "credits", 5)
    meter.subscribe("ana", "big", when="10d")
    clock.set(day(4, 12))
    assert not meter.consume("ana", "credits", 10_000)  # the pool says that it is exhausted
    clock.set(day(4, 11) - MS)
    assert meter.usage("ana").plans == {"base": "big"}
    assert pool(meter)[1] == 5


def test_a_clock_that_falls_back_after_a_change_was_written(make: Make, clock: ManualClock) -> None:
    """Also where the record was written for nothing but the change."""
    clock.set(day(4))
    meter = make([*PLANS, Plan("flags", includes=[Flag("x")], group="other", default=True)])
    meter.consume("ana", "credits", 5)
    meter.subscribe("ana", "big", when=day(4, 11))
    clock.set(day(5) + MS)
    assert meter.consume("ana", "x")  # charges nothing
    clock.set(day(4, 12))
    assert pool(meter) == (10_000, 0, day(6))


def test_an_operation_id_covers_the_instant(meter: AnyMeter, clock: ManualClock) -> None:
    meter.subscribe("ana", "big", when="10d", op="x")
    clock.advance(hours=1)
    meter.subscribe("ana", "small")
    for _ in range(2):
        meter.subscribe("ana", "big", when="10d", op="x")  # delivered again
    assert pending(meter) == ()
    for when in ("now", "11d", "period_end", day(4, 11)):
        with pytest.raises(OpConflict):
            meter.subscribe("ana", "big", when=when, op="x")
    with pytest.raises(OpConflict):
        meter.subscribe("ana", "big", when="10d", change="prorate", op="x")


def test_a_stored_answer_counts_before_a_change_that_is_due(
    meter: AnyMeter, clock: ManualClock
) -> None:
    meter.consume("ana", "credits", 5, op="x")
    meter.subscribe("ana", limits=[Flag("y")], when="1h")
    clock.advance(hours=2)
    again = meter.consume("ana", "credits", 5, op="x")
    assert again.replayed
    assert again["credits"].used == 5


def test_join_counts_after_a_change_that_is_due(make: Make, clock: ManualClock) -> None:
    clock.set(day(4))
    meter = make([Plan("one", includes=[month(1)]), Plan("two", includes=[month(2)])])
    meter.subscribe("ana", "one")
    meter.unsubscribe("ana", "one", when="5d")
    clock.advance(days=6)
    assert meter.consume("ana", "credits", join="two")["credits"].limit == 2
    assert meter.usage("ana").plans == {"base": "two"}


def test_a_change_beside_one_that_is_due(meter: AnyMeter, clock: ManualClock) -> None:
    """What sets something is told of what came first, too."""
    meter.subscribe("ana", "big", when="5d")
    clock.advance(days=6)
    meter.unsubscribe("ana", "small")  # not held any more
    assert meter.usage("ana").plans == {"base": "big"}
    meter.subscribe("ana", "small", when="5d", change="prorate")
    clock.advance(days=6)
    meter.override("ana", "credits", overage=3)
    clock.set(day(4, 13))
    meter.adjust("ana", "credits", used=40)
    assert pool(meter) == (10_000 - 9_000 * 6_333 // 10_000, 40, day(5))
