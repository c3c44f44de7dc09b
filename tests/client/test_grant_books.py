"""The books of grants through either client: asking again, taking back, giving use back, bounds."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import pytest

from meterd import OpConflict, OpNotFound, PolicyError
from meterd.testing import ManualClock
from tests.client.grant_tools import PLANS, assert_kept, burned, grants_of, left
from tests.client.meter_tools import AnyMeter, Make


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


# The same grant again -----------------------------------------------------------------------------


def test_the_same_call_again_grants_nothing(meter: AnyMeter, clock: ManualClock) -> None:
    words: dict[str, Any] = {"expires": "40d", "starts": "1h", "source": "s", "op": "evt_1"}
    first = meter.grant("acme", "credits", 50, **words)
    clock.advance(hours=2)
    meter.consume("acme", "credits", 120)
    assert meter.grant("acme", "credits", 50, **words) == first
    assert left(meter) == {"evt_1": 30}


@pytest.mark.parametrize(
    "other",
    [
        {"amount": 51},
        {"name": "beside"},
        {"subject": "acme/ana"},
        {"expires": "41d"},
        {"expires": None},
        {"starts": "1h"},
        {"priority": 51},
        {"source": "t"},
    ],
)
def test_another_grant_of_that_id(meter: AnyMeter, other: dict[str, Any]) -> None:
    words = {"subject": "acme", "name": "credits", "amount": 50, "expires": "40d", "op": "evt_1"}
    meter.grant(**words)
    with pytest.raises(OpConflict):
        meter.grant(**{**words, **other})
    assert left(meter) == {"evt_1": 50}


def test_the_id_of_something_else(meter: AnyMeter) -> None:
    meter.consume("acme", "credits", op="evt_1")
    with pytest.raises(OpConflict):
        meter.grant("acme", "credits", 5, op="evt_1")
    meter.grant("acme", "credits", 5, op="evt_2")
    with pytest.raises(OpConflict):
        meter.consume("acme", "credits", op="evt_2")


def test_an_id_is_remembered_for_thirty_days_at_least(make: Make, clock: ManualClock) -> None:
    meter = make(PLANS, op_retention="1h")
    first = meter.grant("acme", "credits", 50, op="evt_1")
    brief = meter.grant("acme", "credits", 7, expires="1d", op="evt_2")
    meter.consume("acme", "credits", op="charge")
    clock.advance(days=30, milliseconds=-1)
    assert meter.grant("acme", "credits", 50, op="evt_1") == first
    assert meter.grant("acme", "credits", 7, expires="1d", op="evt_2") == brief
    assert left(meter) == {"evt_1": 50}
    assert not meter.consume("acme", "credits", op="charge").replayed


def test_an_id_is_remembered_longer_where_that_is_asked_for(make: Make, clock: ManualClock) -> None:
    meter = make(PLANS, op_retention="60d")
    end = clock.now() + timedelta(days=2)
    first = meter.grant("acme", "credits", 50, expires=end, op="evt_1")
    clock.advance(days=59)
    assert meter.grant("acme", "credits", 50, expires=end, op="evt_1") == first
    assert left(meter) == {}


def test_while_it_is_in_the_books_its_id_is_its_own(meter: AnyMeter, clock: ManualClock) -> None:
    """Also when what is remembered of the call is gone."""
    meter.grant("acme", "credits", 50, op="evt_1")
    clock.advance(days=500)
    for amount in (50, 7):
        with pytest.raises(OpConflict):
            meter.grant("acme", "credits", amount, op="evt_1")
    assert left(meter) == {"evt_1": 50}


# Taking back --------------------------------------------------------------------------------------


def test_void_takes_what_is_left(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="evt_1")
    meter.consume("acme", "credits", 20)
    assert meter.void("acme", "evt_1") == 30
    kept = grants_of(meter)["evt_1"]
    assert (kept.remaining, kept.consumed, kept.expired) == (0, 20, 30)
    assert_kept(kept)
    state = meter.usage("acme")["credits"]
    assert (state.used, state.drawn, state.granted, state.remaining) == (20, 20, 0, 100)
    assert meter.void("acme", "evt_1") == 0


def test_void_of_a_spent_one_and_of_one_that_waits(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 5, priority=10, op="spent")
    meter.grant("acme", "credits", 5, starts="1d", op="later")
    meter.consume("acme", "credits", 5)
    assert meter.void("acme", "spent") == 0
    assert grants_of(meter)["spent"].consumed == 5
    assert meter.void("acme", "later") == 5
    assert meter.usage("acme")["credits"].remaining == 100


def test_void_of_what_is_not_there(meter: AnyMeter, clock: ManualClock) -> None:
    meter.grant("acme", "credits", 5, expires="1h", op="evt_1")
    for subject, name in (("acme", "evt_2"), ("acme/ana", "evt_1"), ("other", "evt_1")):
        with pytest.raises(OpNotFound, match=name):
            meter.void(subject, name)
    clock.advance(hours=1)
    with pytest.raises(OpNotFound, match="evt_1"):
        meter.void("acme", "evt_1")
    for wrong in ("", "x" * 129, None, 5):
        with pytest.raises(PolicyError):
            meter.void("acme", wrong)
    assert meter.subjects() == ["acme"]


# Giving use back ----------------------------------------------------------------------------------


def test_a_refund_goes_back_in_reverse_burn_order(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 30, priority=10, op="first")
    meter.grant("acme", "credits", 30, priority=90, op="last")
    meter.report("acme", "credits", 170)
    assert meter.usage("acme")["credits"].overage == 10
    steps = []
    for amount in (5, 20, 20, 10, 200):
        state = meter.refund("acme", "credits", amount)["credits"]
        steps.append((state.applied, state.used, state.overage, state.drawn, *left(meter).values()))
    assert steps == [
        (5, 165, 5, 60, 0, 0),
        (20, 145, 0, 45, 0, 15),
        (20, 125, 0, 25, 5, 30),
        (10, 115, 0, 15, 15, 30),
        (115, 0, 0, 0, 30, 30),
    ]


def test_a_refund_gives_grants_no_more_than_was_drawn_in_this_period(
    meter: AnyMeter, clock: ManualClock
) -> None:
    meter.grant("acme", "credits", 30, priority=10, op="gift")
    meter.consume("acme", "credits", 20)
    clock.advance(days=32)
    meter.consume("acme", "credits", 4)
    state = meter.refund("acme", "credits", 10)["credits"]
    assert (state.applied, state.used, state.drawn) == (4, 0, 0)
    assert left(meter) == {"gift": 10}


def test_a_refund_gives_a_dead_or_void_grant_nothing(meter: AnyMeter, clock: ManualClock) -> None:
    meter.grant("acme", "credits", 30, priority=10, expires="1h", op="hour")
    meter.grant("acme", "credits", 30, priority=20, op="void")
    meter.consume("acme", "credits", 60)
    meter.void("acme", "void")
    clock.advance(hours=1)
    assert meter.refund("acme", "credits", 60)["credits"].applied == 0
    assert left(meter) == {"void": 0}
    assert meter.usage("acme")["credits"].granted == 0


def test_a_spent_grant_gets_something_back(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 30, priority=10, op="spent")
    meter.consume("acme", "credits", 30)
    meter.refund("acme", "credits", 12)
    assert left(meter) == {"spent": 12}
    assert burned(meter, 12) == "spent"


# How many -----------------------------------------------------------------------------------------


def test_sixty_four_live_ones(meter: AnyMeter, clock: ManualClock) -> None:
    for number in range(64):
        pool = "credits" if number % 2 else "beside"
        meter.grant("acme", pool, 1, priority=10, expires="1h" if number < 2 else None)
    with pytest.raises(PolicyError, match="64"):
        meter.grant("acme", "credits", 1)
    meter.grant("acme/ana", "credits", 1)  # of one level
    assert meter.consume("acme", {"credits": 31, "beside": 31})
    assert len(left(meter)) == 64
    meter.grant("acme", "credits", 1, op="one more")  # those that are spent do not count
    assert left(meter)["one more"] == 1
    clock.advance(hours=1)
    assert len(left(meter)) <= 63
    meter.grant("acme", "beside", 1)


def test_spent_ones_make_room(meter: AnyMeter) -> None:
    """However many come and go, the record stays short; those spent last stay in the books."""
    for number in range(120):
        meter.grant("acme", "credits", 1, priority=10, op=f"{number:03}")
        meter.consume("acme", "credits", 1)
    meter.grant("acme", "credits", 5, op="last")
    kept = left(meter)
    assert kept["last"] == 5
    assert [name for name in kept if name != "last"] == [f"{n:03}" for n in range(88, 120)]
    assert meter.usage("acme")["credits"].drawn == 120


def test_ten_to_the_fifteen_unspent_in_a_pool(meter: AnyMeter) -> None:
    most = 10**15
    meter.grant("acme", "credits", most - 1)
    with pytest.raises(PolicyError, match="10"):
        meter.grant("acme", "credits", 2)
    meter.grant("acme", "credits", 1)
    meter.grant("acme", "beside", most)
    state = meter.consume("acme", "credits", most)["credits"]
    assert (state.used, state.remaining, state.drawn) == (most, 100, most - 100)
    assert meter.usage("acme")["beside"].granted == most
    assert sum(left(meter).values()) == most + 100


def test_counters_end_where_they_would_pass_what_they_hold(meter: AnyMeter) -> None:
    """Not with a wrong number: each charge fits its own bounds, all of them together do not."""
    most = 10**15
    for _ in range(9):
        meter.grant("acme", "credits", most, priority=10)
        meter.consume("acme", "credits", most)
    meter.grant("acme", "credits", most, priority=10, op="beyond")
    with pytest.raises(PolicyError):
        meter.consume("acme", "credits")
    assert meter.usage("acme")["credits"].used == 9 * most
    assert left(meter)["beyond"] == most


def test_ids_are_random(meter: AnyMeter) -> None:
    assert len({meter.grant(secrets.token_hex(4), "credits", 1).id for _ in range(50)}) == 50
