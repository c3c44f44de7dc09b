"""The verbs that set something: plans of a subject, private plans, overrides, corrections, meta."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Bucket, Code, Flag, OpConflict, Plan, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import PRO, AnyMeter, Make


def pool(meter: AnyMeter, subject: Any = "ana") -> tuple[Any, int, Any]:
    state = meter.usage(subject)["credits"]
    return state.limit, state.used, state.resets_at


def day(month: int, of: int = 1, hour: int = 0, year: int = 2025) -> datetime:
    return datetime(year, month, of, hour, tzinfo=UTC)


# --- subscribe and unsubscribe


def test_an_upgrade_keeps_use_and_period(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", {"tokens": 60, "api": 5})
    clock.advance(days=10)
    assert meter.subscribe("ana", "pro") is None
    assert pool(meter) == (1000, 60, day(2))
    assert meter.usage("ana").plans == {"base": "pro"}
    assert meter.consume("ana", {"tokens": 989, "sso": 1})  # 1000 and 50 beyond, less 60
    assert meter.check("ana", "tokens", 2).code is Code.USAGE_EXCEEDED
    clock.set(day(2))
    assert pool(meter) == (1000, 0, day(3))


def test_a_new_subject_starts_now(meter: AnyMeter, clock: ManualClock) -> None:
    clock.set(day(1, 31, 5))
    meter.subscribe("ana", "pro")
    assert pool(meter) == (1000, 0, day(2, 28, 5))
    clock.set(day(2, 28, 5))
    assert pool(meter)[2] == day(3, 31, 5)


def test_change_reset_starts_over(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", {"tokens": 60, "api": 5})
    clock.set(day(1, 11))
    meter.subscribe("ana", "pro", change="reset")
    assert pool(meter) == (1000, 0, day(2, 11))
    meter.subscribe("ana", "pro", change="keep")
    assert pool(meter) == (1000, 0, day(2, 11))
    clock.set(day(1, 20))
    meter.consume("ana", "tokens", 5)
    meter.subscribe("ana", "free")
    assert pool(meter) == (100, 5, day(2, 11))


def test_buckets_stay_when_pools_start_over(meter: AnyMeter) -> None:
    meter.consume("ana", {"tokens": 60, "api": 5})
    meter.subscribe("ana", "pro", change="reset")
    usage = meter.usage("ana")
    assert (usage["credits"].used, usage["api"].used, usage["api"].limit) == (0, 5, 60)


@pytest.mark.parametrize(
    ("anchor", "ends"),
    [
        (day(12, 15, 12, 2024), day(1, 15, 12)),
        (day(12, 31, 0, 2024), day(1, 31)),
        (timedelta(0), day(2, 10)),
        ("0s", day(2, 10)),
    ],
    ids=["an instant", "a month's end", "timedelta", "duration"],
)
def test_anchor(meter: AnyMeter, clock: ManualClock, anchor: Any, ends: datetime) -> None:
    clock.set(day(1, 10))
    meter.subscribe("new", "pro", anchor=anchor)
    assert pool(meter, "new")[2] == ends
    meter.consume("ana", "tokens", 7)
    meter.subscribe("ana", "pro", anchor=anchor)
    assert pool(meter) == (1000, 7, ends)
    meter.subscribe("ana", "pro", change="reset", anchor=anchor)
    assert pool(meter) == (1000, 0, ends)


def test_subscribing_is_per_group(meter: AnyMeter) -> None:
    meter.consume("ana", "tokens", 60)
    meter.subscribe("ana", "pack")
    assert pool(meter)[:2] == (600, 60)
    assert meter.usage("ana").plans == {"addon": "pack", "base": "free"}
    assert meter.consume("ana", {"support": 1, "export": 1})
    meter.subscribe("ana", "pro")
    assert pool(meter)[:2] == (1500, 60)
    assert meter.usage("ana").plans == {"addon": "pack", "base": "pro"}
    meter.unsubscribe("ana", "pack")
    assert pool(meter)[:2] == (1000, 60)
    assert meter.usage("ana").plans == {"base": "pro"}


def test_a_root_subscribed_to_an_addon_joins_the_default_too(meter: AnyMeter) -> None:
    meter.subscribe("ana", "pack")
    assert meter.usage("ana").plans == {"addon": "pack", "base": "free"}
    meter.subscribe("acme/ana", "pack")
    assert [dict(level.plans) for level in meter.usage("acme/ana").levels][-1] == {"addon": "pack"}


def test_several_groups_add_up(make: Make) -> None:
    def plan(group: str, *limits: Any) -> Plan:
        return Plan(group, includes=limits, group=group)

    meter = make(
        [
            plan("a", Pool("p", 100, overage=5), Bucket("b", 10, "1m", algorithm="token")),
            plan("b", Pool("p", 50, overage=1), Bucket("b", 5, "1m", algorithm="token", burst=20)),
            plan("c", Pool("p", None), Flag("x")),
        ]
    )
    for name in "ab":
        meter.subscribe("ana", name)
    usage = meter.usage("ana")
    assert (usage["p"].limit, usage["b"].limit, usage["b"].remaining) == (150, 15, 30)
    assert meter.check("ana", "p", 156)
    assert not meter.check("ana", "p", 157)
    meter.subscribe("ana", "c")
    assert meter.usage("ana")["p"].limit is None
    assert meter.consume("ana", {"p": 10**12, "x": 1}).balance is None
    for name in "abc":
        meter.unsubscribe("ana", name)
    assert meter.consume("ana", "p").code is Code.NO_PLAN


def test_unsubscribe_falls_back_to_the_default(meter: AnyMeter) -> None:
    meter.subscribe("ana", "pro")
    meter.consume("ana", "tokens", 60)
    assert meter.unsubscribe("ana", "pro") is None
    assert meter.usage("ana").plans == {"base": "free"}
    assert pool(meter)[:2] == (100, 60)
    # What is not held needs no taking away: a repeated call is as good as the first.
    meter.unsubscribe("ana", "pro")
    meter.unsubscribe("nobody", "pro")
    assert meter.usage("ana").plans == {"base": "free"}
    assert meter.subjects() == ["ana"]
    # Below a root there is nothing to fall back to.
    meter.subscribe("acme/ana", "pro")
    meter.unsubscribe("acme/ana", "pro")
    assert [s.subject for s in meter.consume("acme/ana", "tokens").limits] == ["acme"]


@pytest.mark.parametrize("how", [{}, {"limits": [Flag("x")]}], ids=["catalog", "private"])
def test_subscribe_once(meter: AnyMeter, clock: ManualClock, how: dict[str, Any]) -> None:
    name = None if how else "pro"
    meter.subscribe("ana", name, op="order-1", change="reset", **how)
    meter.subscribe("ana", "free")
    clock.advance(hours=1)
    # Delivered again: it has happened, and what came later stays.
    meter.subscribe("ana", name, op="order-1", change="reset", **how)
    assert meter.usage("ana").plans == {"base": "free"}
    others: list[dict[str, Any]] = [
        {"plan": "pack"},
        {"plan": name, "change": "keep", **how},
        {"plan": name, "change": "reset", "anchor": "1d", **how},
        {"limits": [Flag("y")], "change": "reset"},
    ]
    for other in others:
        with pytest.raises(OpConflict, match="'order-1' was already used"):
            meter.subscribe("ana", op="order-1", **other)
    with pytest.raises(OpConflict):
        meter.consume("ana", "tokens", op="order-1")
    meter.subscribe("ana", name, op="order-2", change="reset", **how)
    assert meter.usage("ana").plans == {"base": name or "private"}


def test_an_equally_named_private_limit_is_another_request(meter: AnyMeter) -> None:
    meter.subscribe("ana", limits=[Pool("credits", 5)], op="x")
    with pytest.raises(OpConflict):
        meter.subscribe("ana", limits=[Pool("credits", 6)], op="x")


@pytest.mark.parametrize("anchor", ["1d", timedelta(days=1), day(1, 2)], ids=repr)
def test_a_repeated_subscribe_is_the_same_request_later(
    meter: AnyMeter, clock: ManualClock, anchor: Any
) -> None:
    meter.subscribe("ana", "pro", anchor=anchor, op="x")
    before = pool(meter)
    clock.advance(minutes=5)
    meter.subscribe("ana", "pro", anchor=anchor, op="x")
    assert pool(meter) == before


# --- Private plans


def test_private_plans(make: Make, clock: ManualClock) -> None:
    meter = make()
    meter.consume("ana", "tokens", 60)
    own = [Pool("credits", 70, "month", rates={"tokens": 1}), Flag("beta")]
    meter.subscribe("ana", limits=own)
    assert meter.usage("ana").plans == {"base": "private"}
    assert pool(meter)[:2] == (70, 60)
    assert meter.consume("ana", {"tokens": 10, "beta": 1})
    assert meter.consume("ana", "api").code is Code.NOT_INCLUDED
    assert "private" not in meter.plans()
    # The catalog never replaces it, not even by a plan of that name.
    meter.apply([Plan("private", includes=[Flag("z")])])
    assert meter.consume("ana", "z").code is Code.NOT_INCLUDED
    assert pool(meter)[:2] == (70, 70)
    assert make(None).check("ana", "beta")
    meter.subscribe("ana", "custom", limits=[Pool("credits", 200, "month")])
    assert meter.usage("ana").plans == {"base": "custom"}
    assert pool(meter)[:2] == (200, 70)
    meter.unsubscribe("ana", "custom")
    assert meter.usage("ana").plans == {"base": "free"}
    assert pool(meter)[:2] == (100, 70)
    # On a deeper level it stands alone.
    meter.subscribe("acme/ana", "own", limits=[Bucket("mine", 1, "1h")])
    assert meter.consume("acme/ana", {"mine": 1, "tokens": 1})
    assert not meter.consume("acme/ana", {"mine": 1, "tokens": 1})


def test_subscribing_to_what_is_held_is_idempotent(meter: AnyMeter) -> None:
    meter.subscribe("ana", "pro")
    meter.consume("ana", {"tokens": 5, "api": 2})
    before = meter.usage("ana")
    meter.subscribe("ana", "pro")
    assert meter.usage("ana") == before
    assert before.plans == {PRO.group: PRO.id}
