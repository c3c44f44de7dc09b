"""Grants through either client: giving, burning, expiring, asking again, taking back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Code, Grant, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.grant_tools import PLANS, burned, grants_of, left
from tests.client.meter_tools import AnyMeter, Make

DAY_MS = 86_400_000


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


# What is given ------------------------------------------------------------------------------------


def test_a_grant_is_answered_as_it_is_kept(meter: AnyMeter, clock: ManualClock) -> None:
    given = meter.grant(
        "acme", "credits", 50, expires="30d", priority=10, source="order 7/ü", op="evt_1"
    )
    assert given == Grant(
        id="evt_1",
        name="credits",
        amount=50,
        remaining=50,
        held=0,
        consumed=0,
        expired=0,
        starts_ms=clock.now_ms,
        expires_ms=clock.now_ms + 30 * DAY_MS,
        priority=10,
        source="order 7/ü",
    )
    assert given.starts == clock.now()
    assert given.expires == clock.now() + timedelta(days=30)
    assert grants_of(meter) == {"evt_1": given}
    meter.consume("acme", "credits", 20)
    (kept,) = grants_of(meter).values()
    assert (kept.remaining, kept.consumed) == (30, 20)
    assert kept.as_dict() == {
        "id": "evt_1", "name": "credits", "amount": 50, "remaining": 30, "held": 0, "consumed": 20,
        "expired": 0, "starts": clock.now().isoformat(),
        "expires": (clock.now() + timedelta(days=30)).isoformat(),
        "priority": 10, "source": "order 7/ü",
    }  # fmt: skip
    with pytest.raises(AttributeError):
        kept.remaining = 100


def test_without_an_end_or_an_id(meter: AnyMeter) -> None:
    first, second = (meter.grant("acme", "credits", 5) for _ in range(2))
    assert (first.expires, first.expires_ms, first.priority, first.source) == (None, None, 50, "")
    assert first.as_dict()["expires"] is None
    assert first.id != second.id
    assert {len(first.id), len(second.id)} <= set(range(8, 129))
    assert list(left(meter)) == [first.id, second.id]
    third = meter.grant("acme", "credits", 5, op=True)
    assert third.id not in (first.id, second.id)


def test_remaining_counts_what_is_granted(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50)
    decision = meter.consume("acme", "credits", 120)
    state = decision["credits"]
    assert decision.balance == 30
    assert (state.limit, state.used, state.remaining, state.applied) == (100, 120, 30, 120)
    assert (state.drawn, state.granted, state.overage) == (20, 30, 0)
    assert meter.check("acme", "credits", 30)
    refused = meter.consume("acme", {"credits": 1, "image": 3})
    assert refused.code is Code.USAGE_EXCEEDED
    assert (refused["credits"].drawn, refused["credits"].granted) == (20, 30)
    assert meter.consume("acme", "image", 3)["credits"].remaining == 0
    usage = meter.usage("acme")
    assert (usage["credits"].drawn, usage["credits"].granted) == (50, 0)
    assert (usage["api"].drawn, usage["api"].granted, usage["export"].drawn) == (0, 0, 0)
    shown = usage["credits"].as_dict()
    assert (shown["drawn"], shown["granted"]) == (50, 0)


def test_an_unlimited_pool_counts_what_it_takes_from_grants(make: Make) -> None:
    meter = make([Plan("p", includes=[Pool("credits", None, "day")], default=True)])
    meter.grant("acme", "credits", 5, priority=10, op="first")
    meter.grant("acme", "credits", 7, op="never")
    state = meter.consume("acme", "credits", 30)["credits"]
    assert (state.limit, state.used, state.remaining, state.drawn) == (None, 30, None, 5)
    assert left(meter) == {"first": 0, "never": 7}


def test_the_first_sight_of_a_subject_joins_its_plans(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50)
    usage = meter.usage("acme")
    assert usage.levels[0].plans == {"base": "base"}
    assert usage.levels[0].stored
    assert usage["credits"].remaining == 150


@pytest.mark.parametrize("amount", [0, -1, 1.5, "5", None, True, 10**15 + 1, float("nan")])
def test_what_is_no_amount(meter: AnyMeter, amount: Any) -> None:
    with pytest.raises(PolicyError):
        meter.grant("acme", "credits", amount)
    assert not meter.usage("acme").levels[0].stored


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 65},
        {"name": None},
        {"priority": -1},
        {"priority": 101},
        {"priority": 5.0},
        {"priority": True},
        {"source": None},
        {"source": "x" * 129},
        {"source": "é" * 65},
        {"source": "\ud800"},
        {"op": ""},
        {"op": "x" * 129},
        {"op": 7},
        {"expires": "0s"},
        {"expires": timedelta(0)},
        {"expires": "tomorrow"},
        {"expires": 5},
        {"expires": datetime(2100, 1, 1)},
        {"expires": datetime(2001, 1, 1, tzinfo=UTC)},
        {"starts": "2d", "expires": "1d"},
        {"starts": "1d", "expires": "1d"},
        {"starts": "soon"},
        {"name": "api"},
        {"name": "export"},
    ],
)
def test_what_cannot_be_granted(meter: AnyMeter, fields: dict[str, Any]) -> None:
    given = {"name": "credits", **fields}
    with pytest.raises(PolicyError):
        meter.grant("acme", given.pop("name"), 5, **given)
    assert not meter.usage("acme").levels[0].stored


def test_any_text_is_a_source_and_an_id(meter: AnyMeter) -> None:
    for text in ("x" * 128, "é" * 64, "a/b%2F*?{}\n\x00", " "):
        assert meter.grant("acme", "credits", 5, source=text, op=text).source == text
        assert grants_of(meter)[text].source == text
    assert meter.grant("acme", "credits", 5, source="").source == ""


# The burn order -----------------------------------------------------------------------------------


def test_low_priority_numbers_go_first(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 2, priority=51, op="after")
    meter.grant("acme", "credits", 2, priority=100, op="last")
    meter.grant("acme", "credits", 2, priority=49, op="before")
    meter.grant("acme", "credits", 2, priority=0, op="first")
    order = [burned(meter, 2) for _ in range(3)] + [burned(meter, 98)]
    order += [burned(meter, 2) for _ in range(2)]
    assert order == ["first", "before", "", "", "after", "last"]
    assert not meter.consume("acme", "credits")


def test_what_expires_soonest_goes_first_and_the_allowance_expires_with_its_period(
    meter: AnyMeter, clock: ManualClock
) -> None:
    clock.set(datetime(2030, 6, 10, tzinfo=UTC))
    end = datetime(2030, 7, 1, tzinfo=UTC)
    meter.grant("acme", "credits", 2, op="never")
    meter.grant("acme", "credits", 2, expires=end + timedelta(milliseconds=1), op="just after")
    meter.grant("acme", "credits", 2, expires=end - timedelta(milliseconds=1), op="just before")
    meter.grant("acme", "credits", 2, expires="5d", op="soon")
    order = [burned(meter, 2) for _ in range(2)] + [burned(meter, 100)]
    order += [burned(meter, 2) for _ in range(2)]
    assert order == ["soon", "just before", "", "just after", "never"]


def test_the_allowance_is_first_in_a_tie(meter: AnyMeter, clock: ManualClock) -> None:
    clock.set(datetime(2030, 6, 10, tzinfo=UTC))
    meter.grant("acme", "credits", 2, expires=datetime(2030, 7, 1, tzinfo=UTC), op="tie")
    assert [burned(meter, 100), burned(meter, 2)] == ["", "tie"]


def test_an_allowance_that_never_ends_ties_with_a_grant_that_never_does(make: Make) -> None:
    meter = make([Plan("p", includes=[Pool("credits", 10)], default=True)])
    meter.grant("acme", "credits", 5, op="never")
    meter.grant("acme", "credits", 5, expires="9000d", op="ends")
    assert [burned(meter, 5), burned(meter, 10), burned(meter, 5)] == ["ends", "", "never"]


def test_the_older_one_first_then_nothing_else(meter: AnyMeter, clock: ManualClock) -> None:
    end = clock.now() + timedelta(days=90)
    for name in ("b", "a", "c"):
        meter.grant("acme", "credits", 2, priority=10, expires=end, op=name)
        clock.advance(seconds=1)
    assert [burned(meter, 2) for _ in range(3)] == ["b", "a", "c"]


def test_of_the_same_instant_the_lower_id_first(meter: AnyMeter, clock: ManualClock) -> None:
    for name in ("b", "aé", "a", "ab", "B"):
        meter.grant("acme", "credits", 2, priority=10, op=name)
    clock.advance(milliseconds=1)
    meter.grant("acme", "credits", 2, priority=10, op="A")
    ordered = ["B", "a", "ab", "aé", "b", "A"]
    assert list(left(meter)) == ordered
    assert [burned(meter, 2) for _ in range(6)] == ordered
    meter.refund("acme", "credits", 4)
    assert [name for name, units in left(meter).items() if units] == ["b", "A"]


def test_without_ids_of_the_same_instant_the_first_one_first(meter: AnyMeter) -> None:
    ordered = [meter.grant("acme", "credits", 2, priority=10, op=op).id for op in (None, True) * 6]
    assert list(left(meter)) == ordered
    assert [burned(meter, 2) for _ in range(12)] == ordered


def test_one_charge_takes_from_several_sources(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 30, priority=10, op="first")
    meter.grant("acme", "credits", 30, priority=90, op="last")
    state = meter.consume("acme", "credits", 145)["credits"]
    assert (state.used, state.drawn, state.granted, state.remaining) == (145, 45, 15, 15)
    assert left(meter) == {"first": 0, "last": 15}


def test_the_books_are_in_burn_order(meter: AnyMeter) -> None:
    for name, pool, priority, expires in (
        ("5", "credits", 50, None), ("2", "credits", 10, None), ("1", "credits", 10, "9d"),
        ("3", "credits", 10, None), ("4", "credits", 50, "20d"), ("0", "beside", 99, None),
    ):  # fmt: skip
        meter.grant("acme", pool, 2, priority=priority, expires=expires, op=name)
    assert list(left(meter)) == ["0", "1", "2", "3", "4", "5"]


# From when on, and until when ---------------------------------------------------------------------


def test_dead_at_the_very_instant(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("acme", "credits", 100)
    meter.grant("acme", "credits", 50, expires="1h", op="hour")
    clock.advance(minutes=60, milliseconds=-1)
    assert meter.consume("acme", "credits", 10)
    assert left(meter) == {"hour": 40}
    clock.advance(milliseconds=1)
    assert left(meter) == {}
    refused = meter.check("acme", "credits")
    assert (refused["credits"].remaining, refused["credits"].granted) == (0, 0)
    assert refused["credits"].used == 110
    assert not meter.consume("acme", "credits")


def test_a_start_in_the_future(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("acme", "credits", 100)
    given = meter.grant("acme", "credits", 50, starts="1h", expires="2h", op="later")
    assert given.starts == clock.now() + timedelta(hours=1)
    assert left(meter) == {"later": 50}
    assert meter.usage("acme")["credits"].granted == 0
    clock.advance(minutes=60, milliseconds=-1)
    assert not meter.consume("acme", "credits")
    clock.advance(milliseconds=1)
    assert meter.check("acme", "credits", 50)
    assert burned(meter, 50) == "later"
    assert grants_of(meter)["later"].consumed == 50
    clock.advance(hours=1)
    assert left(meter) == {}


def test_a_start_in_the_past_is_now(meter: AnyMeter, clock: ManualClock) -> None:
    given = meter.grant("acme", "credits", 5, starts=clock.now() - timedelta(days=3))
    assert given.starts_ms == clock.now_ms


def test_a_grant_that_waits_goes_to_its_place(meter: AnyMeter, clock: ManualClock) -> None:
    meter.grant("acme", "credits", 50, priority=20, op="now")
    meter.grant("acme", "credits", 50, priority=10, starts="1m", op="later")
    order = [burned(meter)]
    clock.advance(seconds=60)
    order.append(burned(meter))
    assert order == ["now", "later"]


def test_a_new_period_leaves_grants_alone(meter: AnyMeter, clock: ManualClock) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="first")
    meter.consume("acme", "credits", 120)
    clock.advance(days=32)
    state = meter.usage("acme")["credits"]
    assert (state.used, state.drawn, state.granted, state.remaining) == (0, 0, 0, 100)
    meter.grant("acme", "credits", 5, op="more")
    clock.advance(days=400)
    assert left(meter) == {"first": 0, "more": 5}
    assert meter.usage("acme")["credits"].remaining == 105
