"""Reservations where grants are live: what they hold goes back to exactly where it came from."""

from __future__ import annotations

from typing import Any

import pytest

from meterd import Plan, Pool
from meterd.testing import ManualClock
from tests.client.grant_tools import PLANS, assert_kept, grants_of, left
from tests.client.hold_tools import AnyHold, known, reserve
from tests.client.meter_tools import AnyMeter, Make


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    """A period of 100 between a grant of 30 that burns first and one of 30 that burns last."""
    made = make(PLANS)
    made.grant("acme", "credits", 30, priority=10, expires="10m", op="first")
    made.grant("acme", "credits", 30, priority=90, op="last")
    return made


def books(meter: AnyMeter, subject: str = "acme") -> dict[str, tuple[int, int, int, int]]:
    """Of each grant: consumed, remaining, held, expired."""
    found = grants_of(meter, subject)
    for grant in found.values():
        assert_kept(grant)
    return {g.id: (g.consumed, g.remaining, g.held, g.expired) for g in found.values()}


def own(meter: AnyMeter, subject: str = "acme") -> tuple[int, int]:
    """What the pool counts from its allowance, and from grants."""
    state = meter.usage(subject)["credits"]
    return state.used - state.drawn - state.overage, state.drawn


def test_what_is_held_of_a_grant(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", "credits", 145)
    assert (hold.decision["credits"].drawn, hold.decision["credits"].granted) == (45, 15)
    assert books(meter) == {"first": (0, 0, 30, 0), "last": (0, 15, 15, 0)}
    hold.release()
    assert books(meter) == {"first": (0, 30, 0, 0), "last": (0, 30, 0, 0)}
    assert own(meter) == (0, 0)


@pytest.mark.parametrize(
    ("used", "first", "last", "period"),
    [
        (None, (30, 0, 0, 0), (15, 15, 0, 0), (100, 45)),
        (145, (30, 0, 0, 0), (15, 15, 0, 0), (100, 45)),
        (140, (30, 0, 0, 0), (10, 20, 0, 0), (100, 40)),
        (130, (30, 0, 0, 0), (0, 30, 0, 0), (100, 30)),
        (70, (30, 0, 0, 0), (0, 30, 0, 0), (40, 30)),
        (12, (12, 18, 0, 0), (0, 30, 0, 0), (0, 12)),
        (0, (0, 30, 0, 0), (0, 30, 0, 0), (0, 0)),
        (150, (30, 0, 0, 0), (20, 10, 0, 0), (100, 50)),
    ],
)
def test_commit(meter: AnyMeter, used: Any, first: Any, last: Any, period: Any) -> None:
    hold = reserve(meter, "acme", "credits", 145)
    decision = hold.commit(used)
    assert books(meter) == {"first": first, "last": last}
    assert own(meter) == period
    assert decision["credits"].drawn == period[1]
    assert decision["credits"].applied == (145 if used is None else used)
    assert hold.commit(used).replayed
    assert books(meter) == {"first": first, "last": last}


def test_a_commit_beyond_what_is_held_and_granted_goes_over(meter: AnyMeter) -> None:
    state = reserve(meter, "acme", "credits", 145).commit(200)["credits"]
    assert (state.used, state.drawn, state.overage, state.remaining) == (200, 60, 40, -40)


def test_an_abandoned_hold_gives_back_where_it_took(meter: AnyMeter, clock: ManualClock) -> None:
    reserve(meter, "acme", "credits", 145, ttl=60)
    clock.advance(seconds=59.999)
    assert books(meter)["first"] == (0, 0, 30, 0)
    clock.advance(milliseconds=1)
    assert books(meter) == {"first": (0, 30, 0, 0), "last": (0, 30, 0, 0)}
    assert own(meter) == (0, 0)
    assert meter.check("acme", "credits", 160)


def test_what_was_tallied_stays(meter: AnyMeter, clock: ManualClock) -> None:
    hold = reserve(meter, "acme", "credits", 145)
    for amount in (20, 15):
        hold.spend("credits", amount)
    with pytest.raises(RuntimeError), hold:
        raise RuntimeError
    assert books(meter) == {"first": (30, 0, 0, 0), "last": (0, 30, 0, 0)}
    assert own(meter) == (5, 30)


def test_a_grant_that_expires_while_it_is_held(meter: AnyMeter, clock: ManualClock) -> None:
    """It lives until its holds end: what they use is used, what they give back is lost."""
    keep = reserve(meter, "acme", "credits", 10, ttl="1h")
    back = reserve(meter, "acme", "credits", 15, ttl="1h")
    clock.advance(minutes=10)
    assert books(meter)["first"] == (0, 0, 25, 5)
    state = meter.check("acme", "credits")["credits"]
    assert (state.drawn, state.granted, state.remaining) == (25, 30, 130)
    keep.commit()
    assert books(meter)["first"] == (10, 0, 15, 5)
    back.commit(6)
    assert "first" not in books(meter)
    assert own(meter) == (0, 16)
    assert meter.usage("acme")["credits"].remaining == 130


def test_a_hold_that_ends_before_the_grant_does_whoever_looks_later(
    meter: AnyMeter, clock: ManualClock
) -> None:
    reserve(meter, "acme", "credits", 30, ttl="9m")
    lasting = reserve(meter, "acme", "credits", 5, ttl="1h")
    clock.advance(minutes=30)
    assert "first" not in books(meter)
    assert own(meter) == (5, 0)
    lasting.release()
    assert meter.usage("acme")["credits"].remaining == 130


def test_a_grant_that_is_void_while_it_is_held(meter: AnyMeter) -> None:
    first, second = (reserve(meter, "acme", "credits", amount) for amount in (10, 15))
    assert meter.void("acme", "first") == 5
    assert books(meter)["first"] == (0, 0, 25, 5)
    first.commit()
    assert books(meter)["first"] == (10, 0, 15, 5)
    second.release()
    assert books(meter)["first"] == (10, 0, 0, 20)
    assert own(meter) == (0, 10)
    assert meter.void("acme", "first") == 0


def test_a_closed_periods_part_lapses_and_the_grants_comes_back(
    meter: AnyMeter, clock: ManualClock
) -> None:
    hold = reserve(meter, "acme", "credits", 145, ttl="60d")
    clock.advance(days=40)
    meter.consume("acme", "credits", 7)
    assert books(meter) == {"first": (0, 0, 30, 0), "last": (0, 15, 15, 0)}
    hold.release()
    assert books(meter) == {"last": (0, 30, 0, 0)}
    assert own(meter) == (7, 0)


def test_committing_after_the_end_is_a_report(meter: AnyMeter, clock: ManualClock) -> None:
    hold = reserve(meter, "acme", "credits", 35, ttl=60)
    clock.advance(seconds=60)
    hold.commit()
    assert books(meter) == {"first": (30, 0, 0, 0), "last": (0, 30, 0, 0)}
    assert own(meter) == (5, 30)


def test_renewing_keeps_what_is_held(meter: AnyMeter, clock: ManualClock) -> None:
    hold = reserve(meter, "acme", "credits", 20, ttl=60)
    hold.renew("30m")
    clock.advance(minutes=20)
    assert books(meter)["first"] == (0, 0, 20, 10)
    known(meter, "acme", hold.id).commit({"credits": 19})
    assert "first" not in books(meter)
    assert own(meter) == (0, 19)


def test_a_refund_leaves_what_is_held(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", "credits", 20)
    meter.consume("acme", "credits", 10)
    meter.refund("acme", "credits", 50)
    assert books(meter)["first"] == (0, 10, 20, 0)
    hold.release()
    assert books(meter)["first"] == (0, 30, 0, 0)
    assert own(meter) == (0, 0)


def test_one_grant_shared_by_many_holds(meter: AnyMeter) -> None:
    holds: list[AnyHold] = [reserve(meter, "acme", "credits", 9) for _ in range(4)]
    assert books(meter)["first"] == (0, 0, 30, 0)
    assert own(meter) == (6, 30)
    holds[3].release()
    assert (books(meter)["first"], own(meter)) == ((0, 3, 27, 0), (0, 27))
    meter.consume("acme", "credits", 3)
    holds[0].commit(4)
    assert books(meter)["first"] == (7, 5, 18, 0)
    for hold in holds[1:3]:
        hold.commit()
    assert books(meter)["first"] == (25, 5, 0, 0)


def test_a_hold_on_a_pool_that_only_grants_made(make: Make, clock: ManualClock) -> None:
    """Until the last hold on it ends there is the pool, and then it goes."""
    meter = make(PLANS)
    meter.grant("acme", "extra", 10, expires="10m", op="only")
    hold = reserve(meter, "acme", "extra", 6, ttl="1h")
    clock.advance(minutes=10)
    refused = meter.check("acme", "extra")
    assert not refused
    assert books(meter)["only"] == (0, 0, 6, 4)
    hold.release()
    assert books(meter) == {}
    assert meter.check("acme", "extra").code == "NOT_INCLUDED"


def test_a_grants_part_survives_another_plan(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", "credits", 145)
    meter.subscribe("acme", "bare")
    assert books(meter) == {"first": (0, 0, 30, 0), "last": (0, 15, 15, 0)}
    hold.commit(20)
    assert books(meter) == {"first": (20, 10, 0, 0), "last": (0, 30, 0, 0)}
    meter.subscribe("acme", "pro")
    assert meter.usage("acme")["credits"].remaining >= 40


def test_overage_and_grants_in_one_hold(make: Make) -> None:
    plan = Plan("p", includes=[Pool("credits", 10, "month", overage=20)], default=True)
    meter = make([plan])
    meter.grant("acme", "credits", 5, op="gift")
    hold = reserve(meter, "acme", "credits", 35)
    state = hold.decision["credits"]
    assert (state.used, state.drawn, state.overage, state.remaining) == (35, 5, 20, -20)
    hold.commit(12)
    assert (left(meter), own(meter)) == ({"gift": 3}, (10, 2))
    assert meter.usage("acme")["credits"].overage == 0


def test_levels_have_grants_of_their_own(make: Make) -> None:
    meter = make(PLANS)
    meter.subscribe("acme/ana", limits=[Pool("credits", 5, "month")])
    meter.grant("acme", "credits", 30, priority=10, op="root")
    meter.grant("acme/ana", "credits", 10, priority=90, op="leaf")
    hold = reserve(meter, "acme/ana", "credits", 12)
    assert {**books(meter, "acme"), **books(meter, "acme/ana")} == {
        "root": (0, 18, 12, 0), "leaf": (0, 3, 7, 0),
    }  # fmt: skip
    hold.commit(4)
    assert {**books(meter, "acme"), **books(meter, "acme/ana")} == {
        "root": (4, 26, 0, 0), "leaf": (0, 10, 0, 0),
    }  # fmt: skip
