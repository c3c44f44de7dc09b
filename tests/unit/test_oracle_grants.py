"""What a charge takes of grants and what comes back: one example per rule, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meterd.policy import Bucket, Pool
from tests.oracle import PolicyError
from tests.oracle.grants import Grant, OGrant, shares_of
from tests.oracle.limits import PoolSpec, PoolState
from tests.unit.model_tools import (
    DAY,
    MINUTE,
    SECOND,
    T0,
    books,
    figures,
    give,
    oracle,
    pool,
)

# -- burning -------------------------------------------------------------------------------------


def test_a_grant_adds_to_what_a_pool_has() -> None:
    model = oracle(Pool("m", 10, "1m"), Bucket("b", 5, "1m"))
    answer = give(model, 5, "g", source="stripe")
    assert answer == OGrant("g", "m", 5, 5, 0, 0, 0, T0, None, 50, "stripe")
    assert figures(model) == (0, 0, 0, 15, 5)
    # 12: the 10 of the period, then 2 of the grant.
    decision = model.consume("a", {"m": 12, "b": 1})
    shown, bucket = decision.limits
    assert (shown.used, shown.drawn, shown.remaining, shown.granted) == (12, 2, 3, 3)
    assert (shown.applied, shown.overage, bucket.drawn, bucket.granted) == (12, 0, 0, 0)
    assert decision.balance == 3
    assert books(model) == {"g": (3, 0, 2, 0)}
    refused = model.consume("a", "m", 4)
    assert (refused.code, refused.balance) == ("USAGE_EXCEEDED", 3)
    assert model.consume("a", "m", 3).allowed
    assert figures(model) == (15, 5, 0, 0, 0)


def test_the_burn_order_by_priority_expiry_and_age() -> None:
    model = oracle(Pool("m", 10, "1m"))  # the period ends at 60 s
    give(model, 1, "late", priority=60, expires=SECOND)
    give(model, 1, "never")
    give(model, 1, "after the period", expires=61_000)
    give(model, 1, "with the period", expires=60_000)
    give(model, 1, "before the period", expires=59_999)
    give(model, 1, "younger", expires=59_999)
    give(model, 1, "early", priority=40)
    assert list(books(model)) == [
        "early",
        "before the period",
        "younger",
        "with the period",
        "after the period",
        "never",
        "late",
    ]
    burned = []
    for _ in range(17):
        before = {**books(model), "allowance": (10 - pool(model).used + pool(model).drawn,)}
        assert model.consume("a", "m").allowed
        after = {**books(model), "allowance": (10 - pool(model).used + pool(model).drawn,)}
        burned += [name for name in before if before[name][0] != after[name][0]]
    assert burned == [
        "early",
        "before the period",
        "younger",
        *["allowance"] * 10,
        "with the period",
        "after the period",
        "never",
        "late",
    ]


def test_an_allowance_that_never_ends_is_first_among_those() -> None:
    model = oracle(Pool("m", 2))
    give(model, 1, "never")
    give(model, 1, "ends", expires=DAY)
    model.consume("a", "m", 2)
    assert books(model) == {"ends": (0, 0, 1, 0), "never": (1, 0, 0, 0)}


def test_the_period_that_a_first_use_would_open() -> None:
    for expires, first in ((MINUTE - 1, True), (MINUTE, False)):
        model = oracle(Pool("m", 5, "1m", anchor="first_use"))
        give(model, 5, "g", expires=SECOND + expires)
        model.consume("a", "m", 1, now_ms=T0 + SECOND)
        assert books(model, SECOND)["g"] == ((4, 0, 1, 0) if first else (5, 0, 0, 0))
        assert pool(model, SECOND).resets_at_ms == T0 + SECOND + MINUTE, "it is open all the same"


def test_an_unlimited_pool_takes_all_that_reaches_it() -> None:
    model = oracle(Pool("m", None))
    give(model, 3, "first", priority=40)
    give(model, 3, "never needed")
    model.consume("a", "m", 5)
    assert books(model) == {"first": (0, 0, 3, 0), "never needed": (3, 0, 0, 0)}
    assert figures(model) == (5, 3, 0, None, 3)


def test_rollover_is_allowance_and_debt_is_owed_by_all() -> None:
    model = oracle(Pool("m", 10, "1m", rollover=5, carry_debt=True, overage=9))
    model.consume("a", "m", 1)
    give(model, 4, "g", at=MINUTE)
    model.consume("a", "m", 16, now_ms=T0 + MINUTE)  # 15 of the period, one of the grant
    assert figures(model, MINUTE) == (16, 1, 0, 3, 3)
    model.consume("a", "m", 10, now_ms=T0 + MINUTE)
    assert figures(model, MINUTE) == (26, 4, 7, -7, 0)
    # 7 are owed: of the 10, 3 can be spent, and 2 that are granted.
    give(model, 2, "h", at=2 * MINUTE)
    assert figures(model, 2 * MINUTE) == (0, 0, 0, 5, 2)
    assert model.consume("a", "m", 5, now_ms=T0 + 2 * MINUTE).allowed
    assert books(model, 2 * MINUTE)["h"] == (2, 0, 0, 0), "there was room for all of it"


def test_a_period_that_ends_takes_no_grant_along() -> None:
    model = oracle(Pool("m", 10, "1m", rollover=3))
    give(model, 5, "g", priority=40)
    model.consume("a", "m", 7)  # 5 of the grant, 2 of the period: 8 unspent, 3 carried
    assert figures(model) == (7, 5, 0, 8, 0)
    assert figures(model, MINUTE) == (0, 0, 0, 13, 0)
    model.refund("a", "m", 7, now_ms=T0 + MINUTE)
    assert books(model, MINUTE)["g"] == (0, 0, 5, 0), "nothing was drawn in this period"


def test_the_instants_at_which_a_grant_begins_and_ends() -> None:
    model = oracle(Pool("m", 0))
    give(model, 5, "g", starts=10, expires=20)
    assert [pool(model, at).remaining for at in (9, 10, 19, 20)] == [0, 5, 5, 0]
    assert books(model, 9) == {"g": (5, 0, 0, 0)}
    assert books(model, 20) == {}
    assert give(model, 5, "past", starts=-5).starts_ms == T0
    for wrong in ({"expires": 0}, {"expires": -1}, {"starts": 10, "expires": 10}):
        with pytest.raises(PolicyError):
            give(model, 5, "wrong", **wrong)
    assert give(model, 1, "short", starts=-5, expires=1).expires_ms == T0 + 1


def test_a_report_goes_over_when_no_source_is_left() -> None:
    model = oracle(Pool("m", 10))
    give(model, 5, "g")
    model.report("a", "m", 18)
    assert figures(model) == (18, 5, 3, -3, 0)
    give(model, 5, "h")
    assert figures(model) == (18, 5, 3, 2, 5)


@given(
    st.lists(st.tuples(st.sampled_from([40, 50, 60]), st.integers(0, 4), st.integers(1, 4))),
    st.none() | st.integers(0, 6),
    st.none() | st.integers(1, 5),
    st.integers(0, 20),
)
def test_shares_are_those_of_unit_after_unit(
    made: list[tuple[int, int, int]], room: int | None, end: int | None, amount: int
) -> None:
    grants = tuple(
        Grant(str(n), "m", left, priority, 0, expires or None, "", n, left)
        for n, (priority, expires, left) in enumerate(made)
    )
    order: list[tuple[Any, ...]] = [
        (g.priority, g.expires is None, g.expires, 1, g.age, g.id, g.left) for g in grants
    ]
    order.append((50, end is None, end, 0, 0, None, amount if room is None else room))
    units = [source[5] for source in sorted(order) for _ in range(source[6])][:amount]
    shares, over = shares_of(amount, room, end, grants, 0)
    assert [name for name, taken in shares for _ in range(taken)] == units
    assert over == amount - len(units)


# -- giving back ---------------------------------------------------------------------------------


def test_a_refund_goes_to_over_then_to_grants_backwards_then_to_used() -> None:
    model = oracle(Pool("m", 10))
    give(model, 3, "first", priority=40)
    give(model, 4, "last", priority=60)
    model.report("a", "m", 19)  # 3, 10, 4, and 2 over
    assert figures(model) == (19, 7, 2, -2, 0)
    for back, (used, drawn, over), first, last in (
        (1, (18, 7, 1), 0, 0),
        (3, (15, 5, 0), 0, 2),
        (3, (12, 2, 0), 1, 4),
        (3, (9, 0, 0), 3, 4),
        (99, (0, 0, 0), 3, 4),
    ):
        applied = model.refund("a", "m", back).limits[0].applied
        assert applied == min(back, 9)
        assert figures(model)[:3] == (used, drawn, over)
        assert [grant[0] for grant in books(model).values()] == [first, last]


def test_a_refund_returns_nothing_to_a_dead_grant() -> None:
    model = oracle(Pool("m", 10))
    give(model, 3, "dead", priority=40, expires=10)
    give(model, 3, "void", priority=40)
    give(model, 3, "future", priority=40, starts=20)
    model.consume("a", "m", 8)
    assert model.void("a", "void") == 0
    model.refund("a", "m", 4, now_ms=T0 + 10)
    assert books(model, 10) == {"void": (0, 0, 3, 0), "future": (3, 0, 0, 0)}
    assert figures(model, 10) == (6, 6, 0, 10, 0), "the two that the period gave"


def test_a_refund_returns_no_more_than_was_drawn_in_this_period() -> None:
    model = oracle(Pool("m", 0, "1m"))
    give(model, 9, "g")
    model.consume("a", "m", 5)
    model.consume("a", "m", 2, now_ms=T0 + MINUTE)
    assert model.refund("a", "m", 4, now_ms=T0 + MINUTE).limits[0].applied == 2
    assert books(model, MINUTE) == {"g": (4, 0, 5, 0)}


def test_a_hold_returns_to_each_source_what_was_taken_last() -> None:
    # 2 of "first", 10 of the period, 3 of "last", 1 over.
    for actual, first, (used, drawn, over), last in (
        (16, (0, 0, 2), (16, 5, 1), (0, 0, 3)),
        (15, (0, 0, 2), (15, 5, 0), (0, 0, 3)),
        (14, (0, 0, 2), (14, 4, 0), (1, 0, 2)),
        (12, (0, 0, 2), (12, 2, 0), (3, 0, 0)),
        (7, (0, 0, 2), (7, 2, 0), (3, 0, 0)),
        (1, (1, 0, 1), (1, 1, 0), (3, 0, 0)),
        (0, (2, 0, 0), (0, 0, 0), (3, 0, 0)),
    ):
        model = oracle(Pool("m", 10, overage=1))
        give(model, 2, "first", priority=40)
        give(model, 3, "last")
        assert model.reserve("a", "m", 16, ttl_ms=MINUTE, hold_id="h").allowed
        assert books(model) == {"first": (0, 2, 0, 0), "last": (0, 3, 0, 0)}
        assert figures(model) == (16, 5, 1, -1, 0)
        model.commit("a", "h", {"m": actual})
        assert books(model) == {"first": (*first, 0), "last": (*last, 0)}
        assert figures(model)[:3] == (used, drawn, over)


def test_what_others_gave_back_of_over_comes_out_of_the_allowance() -> None:
    model = oracle(Pool("m", 10, overage=5))
    give(model, 3, "g")
    model.consume("a", "m", 10)
    model.reserve("a", "m", 7, ttl_ms=MINUTE, hold_id="h")  # 3 of the grant, 4 over
    model.refund("a", "m", 2)
    assert figures(model) == (15, 3, 2, -2, 0)
    model.release("a", "h")  # 2 over, 3 of the grant, and 2 that others took of the period
    assert figures(model) == (8, 0, 0, 5, 3)


def test_a_hold_of_a_closed_period_returns_to_grants_alone() -> None:
    model = oracle(Pool("m", 2, "1m", overage=5))
    give(model, 2, "g")
    model.reserve("a", "m", 6, ttl_ms=2 * MINUTE, hold_id="h")  # 2, 2 of the grant, 2 over
    model.consume("a", "m", 1, now_ms=T0 + MINUTE)
    assert figures(model, MINUTE) == (1, 0, 0, 1, 0)
    model.release("a", "h", now_ms=T0 + MINUTE)
    assert figures(model, MINUTE) == (1, 0, 0, 3, 2)
    assert books(model, MINUTE) == {"g": (2, 0, 0, 0)}


def test_drawn_of_a_new_period_is_not_the_old_ones() -> None:
    model = oracle(Pool("m", 0, "1m"))
    give(model, 9, "g")
    model.reserve("a", "m", 5, ttl_ms=DAY, hold_id="h")
    model.consume("a", "m", 3, now_ms=T0 + MINUTE)
    model.release("a", "h", now_ms=T0 + MINUTE)
    assert figures(model, MINUTE) == (3, 3, 0, 6, 6)


def test_what_a_dead_grant_gets_back_is_lost() -> None:
    model = oracle(Pool("m", 2))
    give(model, 5, "g", expires=10)
    model.reserve("a", "m", 5, ttl_ms=20, hold_id="h")  # 5 of the grant, which ends first
    model.reserve("a", "m", 2, ttl_ms=DAY, hold_id="i")
    assert books(model, 9) == {"g": (0, 5, 0, 0)}
    assert books(model, 19) == {"g": (0, 5, 0, 0)}, "it lives in the books while it is held"
    model.tally("a", "h", {"m": 1}, now_ms=T0 + 19)
    assert figures(model, 19) == (7, 5, 0, 0, 0)
    assert books(model, 20) == {}
    assert figures(model, 20) == (3, 1, 0, 0, 0)


def test_a_hold_that_ends_with_its_grant_or_just_before() -> None:
    for ttl, left in ((9, 3), (10, 0)):
        model = oracle(Pool("m", 0))
        give(model, 3, "g", expires=10)
        model.reserve("a", "m", 3, ttl_ms=ttl, hold_id="h")
        assert pool(model, 9).remaining == (left if ttl == 9 else 0)
        assert books(model, 10) == {}
        assert figures(model, 10) == (0, 0, 0, 0, 0)


def test_a_refund_leaves_alone_what_is_held() -> None:
    model = oracle(Pool("m", 0))
    give(model, 5, "g")
    model.consume("a", "m", 2)
    model.reserve("a", "m", 3, ttl_ms=MINUTE, hold_id="h")
    assert model.refund("a", "m", 4).limits[0].applied == 2
    assert books(model) == {"g": (2, 3, 0, 0)}
    model.release("a", "h")
    assert books(model) == {"g": (5, 0, 0, 0)}
    assert figures(model) == (0, 0, 0, 5, 5)


def test_adjust_leaves_grants_alone() -> None:
    model = oracle(Pool("m", 10))
    give(model, 5, "g")
    model.consume("a", "m", 13)
    shown = model.adjust("a", "m", used=12)
    assert (shown.used, shown.drawn, shown.overage, shown.remaining) == (12, 0, 2, 0)
    assert books(model) == {"g": (2, 0, 3, 0)}


# -- when a refused amount fits -------------------------------------------------------------------


def test_retry_after_counts_the_grants_that_stay() -> None:
    model = oracle(Pool("m", 10, "1m", rollover=100))
    give(model, 4, "short", expires=2 * MINUTE)
    give(model, 3, "long")
    model.consume("a", "m", 10)
    # After one minute 10 + 4 + 3, after two 20 + 3, after three 30 + 3.
    for amount, minutes in ((8, 1), (17, 1), (18, 2), (23, 2), (24, 3), (33, 3), (34, 4)):
        assert model.check("a", "m", amount).retry_after_ms == minutes * MINUTE
    assert model.check("a", "m", 113).retry_after_ms == 11 * MINUTE
    assert model.check("a", "m", 114).retry_after_ms is None


states = st.builds(
    lambda used, over, carried: PoolState(0, 0, 10, used=used, over=over, carried=carried),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(-12, 12),
)


@given(
    states,
    st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(6, 60), st.integers(0, 9))),
    st.integers(0, 8),
    st.integers(0, 30),
    st.booleans(),
    st.integers(1, 60),
)
@settings(max_examples=500)
def test_retry_after_is_the_first_boundary_that_does(
    state: PoolState,
    made: list[tuple[int, int | None, int]],
    limit: int,
    rollover: int,
    debt: bool,
    amount: int,
) -> None:
    now = 5
    grants = tuple(
        Grant(str(n), "m", left, 50, starts, expires, "", n, left)
        for n, (left, expires, starts) in enumerate(made)
    )
    state = state._replace(grants=grants)
    spec = PoolSpec("m", limit, 10, "subscription", "UTC", rollover, 0, debt, (("m", 1),))
    assume(not spec.fits(state, amount, now))
    found = None
    for boundary in range(10, 1000, 10):
        through = tuple(g for g in grants if g.live(now) and g.live(boundary))
        later = spec.bring(state, boundary)._replace(grants=through)
        if spec.fits(later, amount, boundary):
            found = boundary - now
            break
    assert spec.retry_after(state, amount, now) == found
