"""The model's plan changes: what the README says of them, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.policy import Flag, Plan, Pool
from tests.oracle import Oracle, PolicyError
from tests.oracle.calendar import to_ms
from tests.oracle.changes import OPending
from tests.oracle.invariants import check

HOUR, DAY = 3_600_000, 86_400_000


def at(month: int, day: int = 1) -> int:
    return to_ms(datetime(2025, month, day, tzinfo=UTC))


APRIL, MAY, JUNE = at(4), at(5), at(6)


def plan(name: str, limit: int | None, *more: Any, **fields: Any) -> Plan:
    pool = Pool("m", limit, "month", **fields)
    return Plan(name, includes=[pool, *more], default=name == "small")


SMALL, BIG = plan("small", 1_000), plan("big", 10_000)


def oracle(*plans: Plan) -> Oracle:
    model = Oracle(plans or (SMALL, BIG), start_ms=APRIL)
    model.consume("a", "m", 1)
    return model


def figures(model: Oracle, now: int, name: str = "m") -> tuple[int | None, int, int | None]:
    (limit,) = (x for x in model.usage("a", now_ms=now).limits if x.name == name)
    return limit.limit, limit.used, limit.resets_at_ms


def test_half_of_the_month_moves_half_of_the_way() -> None:
    model = oracle()
    model.subscribe("a", "big", change="prorate", now_ms=at(4, 16))
    assert figures(model, at(4, 16)) == (5_500, 1, MAY)
    assert figures(model, MAY - 1) == (5_500, 1, MAY)
    assert figures(model, MAY) == (10_000, 0, JUNE)
    model.subscribe("a", "small", change="prorate", now_ms=at(5, 1) + 31 * DAY // 4)
    assert figures(model, JUNE - 1)[0] == 10_000 - 9_000 * 3 // 4
    with pytest.raises(PolicyError):
        model.subscribe("a", "small", change="half")


def test_it_adds_up_over_time_and_never_twice() -> None:
    model = oracle()
    for _ in range(2):
        model.subscribe("a", "big", change="prorate", now_ms=at(4, 16))
    for _ in range(2):
        model.subscribe("a", "small", change="prorate", now_ms=at(4, 16) + 15 * DAY // 2)
    assert figures(model, MAY - 1)[0] == 3_250
    check(model, MAY - 1)


def test_pools_without_an_end_and_new_ones_move_at_once() -> None:
    own = [Pool("never", 5), Pool("closed", 5, "5h", anchor="first_use"), Flag("x")]
    more = [Pool("never", 9), Pool("closed", 9, "5h", anchor="first_use"), Pool("new", 9, "day")]
    model = oracle(plan("small", None, *own), plan("big", 10, *more))
    model.subscribe("a", "big", change="prorate", now_ms=at(4, 16))
    assert {x.name: x.limit for x in model.usage("a", now_ms=at(4, 16)).limits} == {
        "m": 10, "never": 9, "closed": 9, "new": 9,
    }  # fmt: skip


def test_keep_gives_the_limit_in_full_and_leaves_what_was_beyond() -> None:
    up, down = oracle(), oracle()
    up.subscribe("a", "big", change="prorate", now_ms=at(4, 16))
    up.subscribe("a", "small", now_ms=at(4, 17))
    assert figures(up, at(4, 17))[0] == 1_000
    down.subscribe("a", "big")
    down.subscribe("a", "small", change="prorate", now_ms=at(4, 16))
    down.subscribe("a", "big", now_ms=at(4, 17))
    assert figures(down, at(4, 17))[0] == 14_500


def test_a_lower_definition_takes_what_is_held_back_first() -> None:
    model = oracle()
    model.subscribe("a", "big", change="prorate", now_ms=at(4, 28))
    assert figures(model, at(4, 28))[0] == 1_900
    for limit, expected in ((8_000, 1_900), (1_900, 1_900), (1_500, 1_500), (1_600, 1_600)):
        model.apply([plan("big", limit)])
        model.consume("a", "m", 0, now_ms=at(4, 29))
        assert figures(model, at(4, 29))[0] == expected


def test_the_end_of_the_period() -> None:
    model = oracle()
    model.subscribe("a", "big", when="period_end", now_ms=at(4, 20))
    waiting = [OPending("base", "big", MAY, "keep")]
    assert model.usage("a", now_ms=MAY - 1).pending == [waiting]
    assert figures(model, MAY - 1) == (1_000, 1, MAY)
    assert figures(model, MAY) == (10_000, 0, JUNE)
    assert model.usage("a", now_ms=MAY).pending == [[]]
    assert model.usage("a", now_ms=MAY).plans == [{"base": "big"}]


def test_a_reset_at_the_end_closes_one_period() -> None:
    model = oracle(plan("small", 100, rollover=30), plan("big", 1_000, rollover=30))
    model.consume("a", "m", 99)
    model.subscribe("a", "big", when="period_end", change="reset", now_ms=at(4, 20))
    (limit,) = model.usage("a", now_ms=MAY).limits
    assert limit.remaining == 1_000


def test_one_waits_for_each_group() -> None:
    pack = Plan("pack", includes=[Pool("n", 1)], group="addon")
    model = oracle(SMALL, BIG, pack)
    model.subscribe("a", "big", when=MAY, now_ms=APRIL)
    model.subscribe("a", "pack", when=MAY - DAY, now_ms=APRIL)
    model.unsubscribe("a", "small", when=JUNE, now_ms=APRIL)
    assert [(p.group, p.plan) for p in model.usage("a").pending[0]] == [
        ("addon", "pack"),
        ("base", None),
    ]
    model.subscribe("a", "small", now_ms=APRIL)
    assert [p.group for p in model.usage("a").pending[0]] == ["addon"]
    assert model.usage("a", now_ms=JUNE).plans == [{"base": "small", "addon": "pack"}]


changes = st.sampled_from(["prorate", "prorate", "keep", "reset"])
moves = st.lists(
    st.tuples(st.sampled_from(["small", "mid", "big"]), st.integers(0, 9 * DAY), changes),
    min_size=1,
    max_size=6,
)


@given(moves)
@settings(deadline=None)
def test_proration_is_an_average_over_time(moved: list[tuple[str, int, str]]) -> None:
    """Within a period, as long as nothing else comes between; up to what rounding leaves."""
    limits = {"small": 1_000, "mid": 4_321, "big": 10_000}
    model = oracle(*(plan(name, limit) for name, limit in limits.items()))
    now, held, average = APRIL, "small", Fraction(1_000)
    for name, gap, _ in moved:
        now += gap
        if now >= MAY:
            break
        left = Fraction(MAY - now, MAY - APRIL)
        average += (limits[name] - limits[held]) * left
        model.subscribe("a", name, change="prorate", now_ms=now)
        held = name
        limit, _, _ = figures(model, now)
        assert limit is not None
        assert abs(limit - average) <= 2 * len(moved)
        assert figures(model, MAY)[0] == limits[held]


@given(moves, st.lists(st.integers(0, 40 * DAY), max_size=4))
@settings(deadline=None)
def test_who_looks_in_between_changes_nothing(
    moved: list[tuple[str, int, str]], looks: list[int]
) -> None:
    """Changes that wait come as if somebody had made them at their instants."""
    limits = {"small": 1_000, "mid": 4_321, "big": 10_000}
    plans = [plan(name, limit, rollover=700) for name, limit in limits.items()]
    late, prompt, watched = oracle(*plans), oracle(*plans), oracle(*plans)
    now = APRIL
    for name, gap, change in moved:
        then = now + gap
        for model in (late, watched):
            model.subscribe("a", name, when=then, change=change, now_ms=now)
        for look in sorted(looks):
            if look < gap:
                watched.usage("a", now_ms=now + look)
                watched.consume("a", "m", 0, now_ms=now + look)
        prompt.subscribe("a", name, change=change, now_ms=then)
        now = then
        expected = prompt.usage("a", now_ms=now).limits
        assert late.usage("a", now_ms=now).limits == expected
        assert watched.usage("a", now_ms=now).limits == expected
    for later in (now + DAY, now + 45 * DAY):
        expected = prompt.usage("a", now_ms=later).limits
        assert late.usage("a", now_ms=later).limits == expected
        assert watched.usage("a", now_ms=later).limits == expected
