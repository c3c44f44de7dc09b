"""What comes back of a reservation, limit by limit: one example per rule, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.policy import Bucket, Pool
from tests.oracle import Oracle, PolicyError
from tests.unit.model_tools import MINUTE, SECOND, T0, Slots, held, oracle, plan, used


def bucket(algorithm: str, limit: int = 10, per: str = "10s", **options: Any) -> Bucket:
    return Bucket("b", limit, per, algorithm=algorithm, **options)


def reserve(model: Oracle, name: str, amount: int, ttl: int, at: int = 0, hold: str = "h") -> None:
    assert model.reserve("a", name, amount, ttl_ms=ttl, hold_id=hold, now_ms=T0 + at).allowed


def test_a_pool_gets_back_first_what_went_over() -> None:
    # 12 of 10: 10 used, 2 over. Of 11, one comes back from there; of 5, both and five used ones.
    for actual, remaining, overage in ((11, -1, 1), (12, -2, 2), (5, 5, 0), (0, 10, 0)):
        model = oracle(Pool("m", 10, overage=5))
        reserve(model, "m", 12, MINUTE)
        decision = model.commit("a", "h", {"m": actual})
        pool = decision.limits[0]
        assert (pool.used, pool.remaining, pool.overage) == (actual, remaining, overage)
        assert pool.applied == actual


def test_a_pool_gives_nothing_back_from_what_others_took_over() -> None:
    model = oracle(Pool("m", 10))
    reserve(model, "m", 8, MINUTE)
    model.report("a", "m", 6)
    model.release("a", "h")
    pool = model.usage("a").limits[0]
    assert (pool.used, pool.overage, pool.remaining) == (6, 4, 4)


def test_a_pool_gives_back_no_more_than_is_there() -> None:
    model = oracle(Pool("m", 10))
    reserve(model, "m", 8, MINUTE)
    model.adjust("a", "m", used=3)
    model.release("a", "h")
    assert used(model, 0, "m") == 0


def test_a_closed_period_keeps_what_it_had() -> None:
    model = oracle(Pool("m", 10, "1m", rollover=100))
    reserve(model, "m", 4, 90 * SECOND)
    model.consume("a", "m", 3, now_ms=T0 + 61 * SECOND)
    assert used(model, 89 * SECOND, "m") == used(model, 91 * SECOND, "m") == 3
    assert held(model, 89 * SECOND) == [["h"]]
    assert held(model, 90 * SECOND) == [[]]
    # 6 carried, 10 new, 3 used: what was held lapsed with its period.
    assert model.usage("a", now_ms=T0 + 91 * SECOND).limits[0].remaining == 13


@pytest.mark.parametrize(("ttl", "carried"), [(59_999, 10), (60_000, 6), (60_001, 6)])
def test_expiry_comes_before_the_boundary_after_it(ttl: int, carried: int) -> None:
    model = oracle(Pool("m", 10, "1m", rollover=100))
    reserve(model, "m", 4, ttl)
    assert model.usage("a", now_ms=T0 + 65 * SECOND).limits[0].remaining == 10 + carried


def test_a_period_that_opens_with_the_first_use() -> None:
    model = oracle(Pool("m", 10, "1m", anchor="first_use"))
    reserve(model, "m", 4, 30 * SECOND, at=SECOND)
    pool = model.usage("a", now_ms=T0 + 31 * SECOND).limits[0]
    assert (pool.used, pool.resets_at_ms) == (0, T0 + 61 * SECOND)
    reserve(model, "m", 4, 90 * SECOND, at=31 * SECOND)
    assert model.usage("a", now_ms=T0 + 62 * SECOND).limits[0].resets_at_ms is None
    model.consume("a", "m", 2, now_ms=T0 + 62 * SECOND)
    model.release("a", "h", now_ms=T0 + 63 * SECOND)
    assert used(model, 63 * SECOND, "m") == 2


def test_a_fixed_window_while_it_is_open() -> None:
    model = oracle(bucket("fixed"), expire_first_sight=False)
    reserve(model, "b", 4, MINUTE)
    model.consume("a", "b", 5)
    model.release("a", "h", now_ms=T0 + 9_999)
    shown = model.usage("a", now_ms=T0 + 9_999).limits[0]
    assert (shown.used, shown.resets_at_ms) == (5, T0 + 10_000)
    reserve(model, "b", 4, 11 * SECOND, at=9_999)
    model.consume("a", "b", now_ms=T0 + 11_000)
    assert used(model, 20_999, "b") == 1
    assert used(model, 21_000, "b") == 0
    reserve(model, "b", 4, SECOND, at=21_000)
    # Emptied, it stays open.
    assert model.usage("a", now_ms=T0 + 22_000).limits[0].resets_at_ms == T0 + 31_000


def test_a_fixed_window_is_found_again_where_its_tick_changes() -> None:
    # With a limit of 10**12 per 366 days a tick is 2 h, with 10 it is 1 ms.
    for back, left in ((False, 0), (True, 4)):
        model = Oracle(
            [plan(bucket("fixed", per="366d")), plan(bucket("fixed", 10**12, "366d"), name="q")],
            start_ms=T0**2,
        )
        assert model.reserve("a", "b", 4, ttl_ms=MINUTE, hold_id="h").allowed
        model.subscribe("a", "q")
        if back:  # the window's start has been rounded down for good
            model.subscribe("a", "p")
        model.release("a", "h")
        assert model.usage("a").limits[0].used == left


def test_a_sliding_window_in_whichever_holds_the_charge() -> None:
    # T0 is where window 100 begins.
    model = oracle(bucket("sliding"))
    reserve(model, "b", 4, MINUTE)
    model.consume("a", "b", 4)
    model.release("a", "h", now_ms=T0 + 5_000)
    assert used(model, 5_000, "b") == 4
    model = oracle(bucket("sliding"))
    reserve(model, "b", 4, 15 * SECOND)
    model.consume("a", "b", 4)
    assert used(model, 14_999, "b") == 5  # ceil(8 * 0.5001)
    assert used(model, 15_000, "b") == 2  # 4 * 0.5
    model = oracle(bucket("sliding"))
    reserve(model, "b", 4, 25 * SECOND)
    model.consume("a", "b", 4, now_ms=T0 + 12_000)
    assert used(model, 24_999, "b") == 3  # ceil(4 * 0.5001): what was held lapsed
    assert used(model, 25_000, "b") == 2


@pytest.mark.parametrize(("keep", "spent"), [(0, 1), (2, 1), (3, 1), (4, 2), (5, 3), (6, 4)])
def test_a_token_bucket_less_what_refilled(keep: int, spent: int) -> None:
    # 2.5 units came back in 2.5 s: 4 of 6 are spent. Of the 6 held, 3 count as refilled.
    model = oracle(bucket("token"))
    reserve(model, "b", 6, MINUTE)
    assert used(model, 2_500, "b") == 4
    decision = model.commit("a", "h", {"b": keep}, now_ms=T0 + 2_500)
    assert decision.limits[0].used == spent
    assert decision.limits[0].applied == keep
    # The half unit that came back beside stays.
    assert used(model, 2_999, "b") == spent
    assert used(model, 3_000, "b") == spent - 1


def test_a_token_bucket_that_is_full_has_no_fraction() -> None:
    model = oracle(bucket("token"))
    reserve(model, "b", 4, 2_500)
    assert used(model, 2_500, "b") == 1  # 2 are spent, of which 4 - 3 come back
    model = oracle(bucket("token"))
    reserve(model, "b", 4, 2_500)
    model.refund("a", "b", now_ms=T0 + 2_400)
    model.consume("a", "b", now_ms=T0 + 2_500)
    assert used(model, 3_499, "b") == 1


def test_slots_come_back_however_the_hold_ends() -> None:
    model = oracle(Slots("jobs", 2), Pool("m", 10, rates={"m": 1, "jobs": 3}))
    for hold, ttl in (("h1", 10), ("h2", 30)):
        assert model.reserve("a", "jobs", ttl_ms=ttl, hold_id=hold).allowed
    refused = model.reserve("a", "jobs", ttl_ms=5, hold_id="h3")
    assert (refused.code, refused.retry_after_ms, refused.balance) == ("RATE_LIMITED", 10, 0)
    slots = refused.refused[0]
    assert (slots.kind, slots.limit, slots.used, slots.remaining) == ("slots", 2, 2, 0)
    assert (slots.overage, slots.resets_at_ms, slots.retry_after_ms) == (0, None, 10)
    again = model.check("a", "jobs")
    assert (again.code, again.retry_after_ms) == ("RATE_LIMITED", 10)
    assert model.check("a", "jobs", 3).retry_after_ms is None
    assert [used(model, at, "jobs") for at in (9, 10, 29, 30)] == [2, 1, 1, 0]
    decision = model.commit("a", "h2", now_ms=T0 + 20)
    assert [(x.name, x.used, x.applied) for x in decision.limits] == [("jobs", 0, 1), ("m", 3, 3)]
    assert model.reserve("a", "jobs", 2, ttl_ms=5, hold_id="h4", now_ms=T0 + 20).balance is not None


def test_a_slot_is_retried_when_any_hold_of_the_record_ends() -> None:
    model = oracle(Slots("jobs", 1), Pool("m", 10))
    reserve(model, "m", 1, 7, hold="other")
    reserve(model, "jobs", 1, 9)
    assert model.check("a", "jobs", now_ms=T0 + 1).retry_after_ms == 6
    assert model.check("a", "jobs", now_ms=T0 + 7).retry_after_ms == 2
    model.override("a", "jobs", limit=0, now_ms=T0 + 9)
    assert model.check("a", "jobs", now_ms=T0 + 9).retry_after_ms is None


def test_only_a_reservation_takes_slots() -> None:
    model = oracle(Slots("jobs", 5), Pool("m", 10, rates={"m": 1, "jobs": 1}))
    assert model.check("a", {"jobs": 2, "m": 1}).allowed
    for verb in (model.consume, model.report, model.refund):
        for costs in ({"jobs": 1}, {"jobs": 0}, {"m": 1, "jobs": 1}, {"jobs": 9, "nothing": 1}):
            with pytest.raises(PolicyError):
                verb("a", costs)
    with pytest.raises(PolicyError):
        model.adjust("a", "jobs", used=1)
    assert model.levels.records == {}


def test_slots_add_up_and_can_be_overridden() -> None:
    more = plan(Slots("jobs", 3), name="more", group="addon")
    model = Oracle([plan(Slots("jobs", 2)), more], start_ms=T0)
    model.subscribe("a", "more")
    reserve(model, "jobs", 5, MINUTE)
    model.override("a", "jobs", limit=4)
    shown = model.usage("a").limits[0]
    assert (shown.limit, shown.used, shown.remaining, shown.allowed) == (4, 5, 0, False)
    for wrong in (None, -1, 10**12 + 1):
        with pytest.raises(PolicyError):
            model.override("a", "jobs", limit=wrong)
    with pytest.raises(PolicyError):
        model.override("a", "jobs", burst=1)
    with pytest.raises(PolicyError):
        model.apply([plan(Slots("jobs", 10**12), name="most", group="addon")])


def test_rates_are_those_of_the_moment_it_was_made() -> None:
    model = oracle(Pool("m", 100, rates={"x": 3, "y": 10}))
    assert model.reserve("a", {"x": 2, "y": 1}, ttl_ms=MINUTE, hold_id="h").limits[0].used == 16
    model.apply([plan(Pool("m", 100, rates={"x": 5}))])
    decision = model.commit("a", "h", {"x": 3, "y": 0})
    # y comes back at 10, the further x costs 5 by now.
    assert (decision.limits[0].used, decision.limits[0].applied) == (11, 11)
    assert decision.balance == 89 // 5


def test_an_override_ends_before_a_hold_of_the_same_instant() -> None:
    model = oracle(bucket("token"))
    model.override("a", "b", limit=20, burst=20, expires_ms=T0 + 5_000)
    reserve(model, "b", 8, 5_000)
    model.consume("a", "b", 12)
    # Refilled twice as fast, 10 of 20 are spent; by the rate from then on, 5 of 8 were refilled.
    assert used(model, 5_000, "b") == 7


VANISHING = {
    "gone": plan(Pool("other", 1), name="q"),
    "another kind": plan(Pool("b", 10), name="q"),
    "another algorithm": plan(bucket("token"), name="q"),
    "sliding over another period": plan(bucket("sliding", per="20s"), name="q"),
}


@pytest.mark.parametrize("other", VANISHING.values(), ids=VANISHING)
def test_what_began_anew_gets_nothing_back(other: Any) -> None:
    model = Oracle([plan(bucket("sliding")), other], start_ms=T0)
    reserve(model, "b", 4, MINUTE)
    model.subscribe("a", "q")
    model.subscribe("a", "p")
    model.consume("a", "b", 3)
    model.release("a", "h")
    assert used(model, 0, "b") == 3


@pytest.mark.parametrize("before", [True, False])
def test_a_restart_by_an_override(before: bool) -> None:
    # With a limit of 10**12 per 366 days a tick is 2 h, so a sliding window begins anew, twice.
    model = oracle(bucket("sliding", per="366d"))
    if before:
        reserve(model, "b", 4, MINUTE)
    model.override("a", "b", limit=10**12, expires_ms=T0 + 10)
    if not before:
        reserve(model, "b", 4, MINUTE)
    model.consume("a", "b", 3, now_ms=T0 + 10)
    assert used(model, MINUTE, "b") == 3


def test_what_ends_ends_in_the_order_of_time() -> None:
    model = oracle(Pool("m", 10, "1m", rollover=100))
    reserve(model, "m", 4, 90 * SECOND, hold="first")
    reserve(model, "m", 3, 30 * SECOND, hold="second")
    # The second's share came back within its period, the first's lapsed with it: 6 are carried.
    assert model.usage("a", now_ms=T0 + 95 * SECOND).limits[0].remaining == 16


def test_a_period_closed_by_a_reset_gets_nothing_back() -> None:
    for change, left in (("keep", 2), ("reset", 2)):
        model = oracle(Pool("m", 10), Slots("jobs", 3))
        model.reserve("a", {"m": 4, "jobs": 1}, ttl_ms=MINUTE, hold_id="h")
        model.subscribe("a", "p", change=change)
        assert used(model, 0, "m") == (4 if change == "keep" else 0)
        model.consume("a", "m", 2)
        model.release("a", "h")
        assert used(model, 0, "m") == left
        assert used(model, 0, "jobs") == 0


def test_what_keeps_its_use_gives_back() -> None:
    changed = [
        Pool("m", 5, "month", anchor="calendar"),
        Bucket("f", 7, "40s", algorithm="fixed"),
        Bucket("s", 99, "10s"),
        Bucket("t", 2, "5s", algorithm="token", burst=50),
        Slots("jobs", 1),
    ]
    model = oracle(
        Pool("m", 10, "1h"),
        Bucket("f", 10, "10s", algorithm="fixed"),
        Bucket("s", 10, "10s"),
        Bucket("t", 10, "10s", algorithm="token"),
        Slots("jobs", 3),
    )
    names = ("m", "f", "s", "t", "jobs")
    assert model.reserve("a", dict.fromkeys(names, 2), ttl_ms=MINUTE, hold_id="h").allowed
    model.apply([plan(*changed)])
    assert [used(model, 0, name) for name in names] == [2] * 5
    model.release("a", "h")
    assert [used(model, 0, name) for name in names] == [0] * 5
