"""The model's reservations from beginning to end: one example per rule."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.policy import Bucket, Flag, Pool
from tests.oracle import (
    NoPlan,
    NotIncluded,
    OHold,
    OpConflict,
    OpNotFound,
    Oracle,
    PolicyError,
)
from tests.unit.model_tools import MINUTE, SECOND, T0, Slots, held, oracle, plan, used

DAY = 86_400_000


def model_of_three() -> Oracle:
    return oracle(Pool("m", 10), Pool("n", 20, rates={"n": 2}), Slots("jobs", 3), Flag("sso"))


def test_a_reservation_answers_as_consume_does() -> None:
    limits = (Pool("m", 5, "1m", overage=1), Bucket("b", 4, "10s", rates={"m": 1}), Flag("sso"))
    one, two = oracle(*limits), oracle(*limits)
    calls: list[tuple[Any, int]] = [
        ("m", 2),
        ({"sso": 1, "m": 2}, 1),
        ("m", 1),
        ("m", 9),
        ({"m": 1, "nothing": 1}, 1),
        ("sso", 7),
        ("m", 0),
    ]
    for number, (costs, amount) in enumerate(calls):
        made = one.reserve("a", costs, amount, ttl_ms=MINUTE, hold_id=f"h{number}")
        assert made == two.consume("a", costs, amount)
        assert one.usage("a").limits == two.usage("a").limits
    assert held(one, 0) == [["h0", "h1"]]
    empty = Oracle(start_ms=T0)
    assert empty.reserve("a", "m", ttl_ms=1, hold_id="h").code == "NO_PLAN"
    for wrong in (0, -1, 366 * DAY + 1):
        with pytest.raises(PolicyError):
            one.reserve("a", "m", ttl_ms=wrong, hold_id="h")


def test_what_reaches_no_figure_leaves_no_hold() -> None:
    model = model_of_three()
    for costs in ("sso", {"m": 0, "n": 0, "jobs": 0}):
        assert model.reserve("a", costs, ttl_ms=MINUTE, hold_id="h").allowed
        assert held(model, 0) == [[]]
    assert ("a",) in model.levels.records["a"], "it is an allowed call, so first sight is written"
    with pytest.raises(OpNotFound):
        model.commit("a", "h")


def test_usage_shows_the_open_holds_soonest_first() -> None:
    model = model_of_three()
    for hold, ttl in (("b", 20), ("c", 10), ("a", 20)):
        model.reserve("a", {"m": 1, "sso": 1}, ttl_ms=ttl, hold_id=hold)
    assert held(model, 9) == [["c", "a", "b"]]
    assert held(model, 10) == [["a", "b"]]
    model.tally("a", "a", {"m": 1}, now_ms=T0 + 10)
    assert model.usage("a", now_ms=T0 + 10).holds[0][0] == OHold(
        "a", T0 + 20, {"m": 1, "sso": 1}, {"m": 1, "sso": 0}
    )


def test_a_commit_settles_in_place() -> None:
    model = model_of_three()
    model.reserve("a", {"n": 3, "m": 4, "jobs": 2, "sso": 1}, ttl_ms=MINUTE, hold_id="h")
    decision = model.commit("a", "h", {"m": 1})
    assert (decision.allowed, decision.code, decision.refused) == (True, "OK", [])
    # n as held. The answer shows what the names reach; its balance is that of the first held one.
    assert [(x.name, x.used, x.applied) for x in decision.limits] == [
        ("m", 1, 1),
        ("n", 6, 6),
        ("jobs", 0, 2),  # used while the hold was open
        ("sso", 0, 0),
    ]
    assert decision.balance == 14 // 2
    assert held(model, 0) == [[]]


def test_a_commit_charges_what_goes_beyond_as_a_report_does() -> None:
    model = oracle(
        Pool("m", 10), Bucket("b", 5, "10s", algorithm="fixed", rates={"m": 1}), Flag("sso")
    )
    model.reserve("a", "m", 3, ttl_ms=MINUTE, hold_id="h")
    decision = model.commit("a", "h", {"m": 12, "sso": 4, "nothing": 9})
    pool, bucket, flag = decision.limits
    # 9 more: the pool goes 2 beyond, the bucket is charged the 2 that it has left.
    assert (pool.used, pool.overage, pool.applied, pool.allowed) == (12, 2, 12, False)
    assert (bucket.used, bucket.applied, bucket.allowed) == (5, 5, False)
    assert (flag.applied, flag.allowed) == (0, True)
    assert (decision.code, decision.retry_after_ms, decision.balance) == ("OK", None, 0)


def test_a_commit_names_further_costs() -> None:
    model = model_of_three()
    model.reserve("a", "m", 3, ttl_ms=MINUTE, hold_id="h")
    decision = model.commit("a", "h", {"n": 2, "jobs": 2})
    assert [(x.name, x.used, x.applied, x.allowed) for x in decision.limits] == [
        ("m", 3, 3, True),
        ("n", 4, 4, True),
        ("jobs", 0, 0, True),
    ]
    assert decision.balance == 7


def test_a_closed_period_is_charged_once() -> None:
    model = oracle(Pool("m", 10, "1m"), Bucket("b", 5, "10s", rates={"m": 1}))
    model.reserve("a", "m", 4, ttl_ms=DAY, hold_id="h")
    decision = model.commit("a", "h", {"m": 6}, now_ms=T0 + 65 * SECOND)
    assert [(x.used, x.applied) for x in decision.limits] == [(2, 6), (2, 6)]


def test_a_hold_that_is_dead_or_unknown() -> None:
    model = model_of_three()
    with pytest.raises(OpNotFound):
        model.commit("a", "h")
    with pytest.raises(OpNotFound):
        model.renew("a", "h", 1)
    with pytest.raises(OpNotFound):
        model.tally("a", "h", {"m": 1})
    model.release("a", "h")
    assert model.levels.records == {}
    model.reserve("a", "m", 4, ttl_ms=10, hold_id="h")
    with pytest.raises(OpNotFound):
        model.commit("a", "h", now_ms=T0 + 10)
    with pytest.raises(OpNotFound):
        model.renew("a", "h", 1, now_ms=T0 + 10)
    model.release("a", "h", now_ms=T0 + 10)
    decision = model.commit("a", "h", {"m": 3, "nothing": 1}, now_ms=T0 + 10)
    assert [(x.name, x.used, x.applied) for x in decision.limits] == [("m", 3, 3)]
    assert model.commit("a", "h", {"nothing": 1, "m": 3}).replayed
    known = model.commit("a", "known", known={"m": 2, "n": 1}, now_ms=T0 + 10)
    assert [(x.name, x.applied) for x in known.limits] == [("m", 2), ("n", 2)]
    assert model.commit("a", "known").replayed
    model.refund("a", {"m": 2, "n": 1})
    with pytest.raises(NotIncluded):
        model.commit("a", "h2", {"nothing": 1})
    with pytest.raises(NoPlan):
        Oracle(start_ms=T0).commit("a", "h", {"m": 1})
    for costs in ({"jobs": 2}, {"sso": 1}):
        decision = model.commit("a", f"of {sorted(costs)}", costs)
        assert [(x.used, x.applied) for x in decision.limits] == [(0, 0)]
    for wrong in ({}, {"m": -1}, {"m": 1.0}):
        with pytest.raises(PolicyError):
            model.commit("a", "h3", wrong)  # type: ignore[arg-type]


def test_an_end_is_final() -> None:
    model = model_of_three()
    for hold in ("h1", "h2", "h3"):
        model.reserve("a", "m", 2, ttl_ms=MINUTE, hold_id=hold)
    first = model.commit("a", "h1", {"m": 1, "n": 1})
    again = model.commit("a", "h1", {"n": 1, "m": 1}, now_ms=T0 + DAY - 1)
    assert again.replayed
    assert again.limits == first.limits
    for other in (None, {"m": 1}, {"m": 1, "n": 2}):
        with pytest.raises(OpConflict):
            model.commit("a", "h1", other)
    with pytest.raises(OpConflict):
        model.release("a", "h1")
    model.release("a", "h2")
    model.release("a", "h2")
    for actual in (None, {"m": 2}):
        with pytest.raises(OpConflict):
            model.commit("a", "h2", actual)
    model.commit("a", "h3")
    assert model.commit("a", "h3").replayed
    assert model.commit("a", "h3", {"m": 2}).replayed  # as held
    with pytest.raises(OpConflict):
        model.commit("a", "h3", {"m": 1})
    assert used(model, 0, "m") == 3
    # Ends are remembered as long as operations are.
    assert not model.commit("a", "h1", {"m": 1}, now_ms=T0 + DAY).replayed
    model.forget("a")
    assert not model.commit("a", "h1", {"m": 1}).replayed


def test_a_renewed_hold_lives_on() -> None:
    model = model_of_three()
    model.reserve("a", {"m": 4, "jobs": 1}, ttl_ms=10, hold_id="h")
    model.renew("a", "h", 15, now_ms=T0 + 9)
    assert [used(model, at, "m") for at in (10, 23, 24)] == [4, 4, 0]
    model.renew("a", "h", 1, now_ms=T0 + 20)
    assert [used(model, at, "m") for at in (20, 21)] == [4, 0]
    for wrong in (0, 366 * DAY + 1):
        with pytest.raises(PolicyError):
            model.renew("a", "h", wrong)


def test_what_was_tallied_stays_when_a_hold_expires() -> None:
    model = model_of_three()
    model.reserve("a", {"m": 4, "n": 5, "jobs": 2}, ttl_ms=10, hold_id="h")
    model.tally("a", "h", {"m": 3, "jobs": 2})
    model.tally("a", "h", {"m": 1, "n": 2}, ttl_ms=20)
    for wrong in ({"m": 5}, {"sso": 1}, {"nothing": 0}):
        with pytest.raises(PolicyError):
            model.tally("a", "h", wrong)
    names = ("m", "n", "jobs")
    assert [used(model, 19, name) for name in names] == [4, 10, 2]
    assert [used(model, 20, name) for name in names] == [3, 4, 0]
    # A commit says itself what was used.
    model.reserve("a", "m", 4, ttl_ms=10, hold_id="i", now_ms=T0 + 20)
    model.tally("a", "i", {"m": 4}, now_ms=T0 + 20)
    model.commit("a", "i", {"m": 1}, now_ms=T0 + 20)
    assert used(model, 20, "m") == 4


def test_every_level_has_its_share() -> None:
    model = model_of_three()
    model.subscribe("a/t", limits=[Pool("m", 5), Slots("jobs", 1)])
    model.subscribe("a/t/u", limits=[Pool("other", 5)])
    path = "a/t/u"
    assert model.reserve(path, {"m": 4, "jobs": 1}, ttl_ms=10, hold_id="h").allowed
    assert held(model, 0, path) == [["h"], ["h"], []]
    refused = model.reserve(path, "jobs", ttl_ms=10, hold_id="i")
    assert [x.subject for x in refused.refused] == [("a", "t")]
    model.commit(path, "h", {"m": 1})
    assert [used(model, 0, "m", level) for level in ("a", "a/t")] == [1, 1]
    model.reserve(path, "m", 4, ttl_ms=10, hold_id="i")
    model.forget("a/t")
    assert held(model, 0, path) == [["i"], [], []]
    decision = model.commit(path, "i", {"m": 2})
    assert [(x.subject, x.used) for x in decision.limits] == [(("a",), 3)]


def test_plans_may_change_while_a_hold_is_open() -> None:
    model = Oracle([plan(Pool("m", 10)), plan(Pool("n", 5), name="q")], start_ms=T0)
    model.reserve("a", "m", 4, ttl_ms=MINUTE, hold_id="h")
    model.subscribe("a", "q")
    decision = model.commit("a", "h", {"m": 9, "n": 2})
    assert [(x.name, x.used, x.applied) for x in decision.limits] == [("n", 2, 2)]
    assert decision.balance == 0, "the first name reaches nothing any more"


def test_operation_ids_are_hold_ids() -> None:
    model = model_of_three()
    first = model.reserve("a", "m", 2, ttl_ms=MINUTE, op="x")
    assert first.op == "x"
    assert held(model, 0) == [["x"]]
    again = model.reserve("a", {"m": 2}, ttl_ms=MINUTE, op="x", join="p")
    assert again.replayed
    assert again.limits == first.limits
    for path, amount, ttl in (("a", 3, MINUTE), ("a", 2, SECOND), ("a/t", 2, MINUTE)):
        with pytest.raises(OpConflict):
            model.reserve(path, "m", amount, ttl_ms=ttl, op="x")
    with pytest.raises(OpConflict):
        model.consume("a", "m", 2, op="x")
    model.release("a", "x")
    assert model.reserve("a", "m", 2, ttl_ms=MINUTE, op="x").replayed
    assert used(model, 0, "m") == 0


def test_an_id_that_is_open_is_not_given_twice() -> None:
    model = model_of_three()
    model.reserve("a/t", "m", 2, ttl_ms=3 * DAY, op="x")
    later = T0 + DAY
    for path, amount in (("a/t", 2), ("a", 1), ("a", 100)):
        with pytest.raises(OpConflict):
            model.reserve(path, "m", amount, ttl_ms=MINUTE, op="x", now_ms=later)
    model.commit("a/t", "x", {"m": 1}, now_ms=later)
    # Free again; and what is known of an earlier hold of that id does not end this one.
    assert model.reserve("a/t", "m", 2, ttl_ms=MINUTE, op="x", now_ms=later).allowed
    assert not model.commit("a/t", "x", {"m": 1}, now_ms=later).replayed
    assert used(model, DAY, "m") == 2
    assert model.commit("a/t", "x", {"m": 1}, now_ms=later).replayed


def test_a_level_has_so_many_holds_at_most() -> None:
    model = oracle(Pool("m", 10), Flag("sso"), Bucket("b", 5, "10s"), max_holds=2)
    model.subscribe("a/t", limits=[Pool("n", 10)])
    for hold in ("h1", "h2"):
        assert model.reserve("a", "m", ttl_ms=20, hold_id=hold).allowed
    before = model.usage("a")
    refused = model.reserve("a", {"m": 3, "b": 1}, ttl_ms=20, hold_id="h3", op=None)
    assert (refused.allowed, refused.code, refused.retry_after_ms) == (False, "RATE_LIMITED", None)
    assert [(x.used, x.applied, x.allowed) for x in refused.limits] == [(2, 0, True), (0, 0, True)]
    assert (refused.refused, refused.balance) == ([], 8)
    assert model.usage("a") == before
    assert model.reserve("a", "m", 9, ttl_ms=20, hold_id="h3").code == "USAGE_EXCEEDED"
    assert model.reserve("a", "b", 6, ttl_ms=20, hold_id="h3").code == "RATE_LIMITED"
    assert model.reserve("a", {"sso": 1, "m": 0}, ttl_ms=20, hold_id="h3").allowed
    assert model.reserve("a/t", "n", ttl_ms=20, hold_id="h3").allowed, "no part at the root"
    assert model.check("a", "m").allowed
    assert model.reserve("a", "m", ttl_ms=20, hold_id="h4", now_ms=T0 + 20).allowed


def test_a_failed_commit_leaves_the_hold_open() -> None:
    model = oracle(Pool("m", None), Pool("n", 5))
    for _ in range(9):
        model.report("a", "m", 10**15)
    model.adjust("a", "n", used=0)
    assert model.reserve("a", "n", 3, ttl_ms=MINUTE, hold_id="h").allowed
    with pytest.raises(PolicyError):
        model.commit("a", "h", {"n": 1, "m": 1})
    assert held(model, 0) == [["h"]]
    assert used(model, 0, "n") == 3


def test_a_record_of_first_sight_waits_for_its_holds() -> None:
    limits = [Bucket("b", 4, "10s", algorithm="fixed")]
    other = plan(Bucket("b", 9, "10s", algorithm="fixed"), name="q")
    for ttl, gone in ((5_000, 10_000), (30_000, 30_000)):
        model = Oracle([plan(*limits), other], start_ms=T0)
        model.consume("a", "b", join="q")
        model.reserve("a", "b", 3, ttl_ms=ttl, hold_id="h")
        shown = [model.usage("a", now_ms=T0 + at).limits[0].limit for at in (gone - 1, gone)]
        assert shown == [9, 4]
    model = Oracle([plan(*limits, Slots("jobs", 1)), other], start_ms=T0)
    model.reserve("a", "jobs", ttl_ms=1, hold_id="h")
    model.usage("a", now_ms=T0 + MINUTE)
    assert model.levels.stored(("a",), T0 + MINUTE) is not None, "slots keep a record"


def test_forgetting_forgets_holds() -> None:
    model = model_of_three()
    model.reserve("a", {"m": 2, "jobs": 1}, ttl_ms=MINUTE, op="x")
    model.forget("a")
    model.release("a", "x")
    with pytest.raises(OpNotFound):
        model.commit("a", "x")
    assert used(model, 0, "jobs") == 0
    assert not model.reserve("a", {"m": 2, "jobs": 1}, ttl_ms=MINUTE, op="x").replayed
