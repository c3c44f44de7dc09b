"""The model's grants as they are kept: made once, voided, and out of the books again."""

from __future__ import annotations

import pytest

from meterd.policy import Bucket, Flag, Pool
from tests.oracle import OpConflict, OpNotFound, Oracle, PolicyError
from tests.unit.model_tools import DAY, MINUTE, T0, books, figures, give, oracle, plan, pool

# -- void ----------------------------------------------------------------------------------------


def test_void_takes_what_nobody_took() -> None:
    model = oracle(Pool("m", 0))
    give(model, 9, "g")
    give(model, 4, "future", starts=MINUTE, expires=2 * MINUTE)
    model.consume("a", "m", 2)
    model.reserve("a", "m", 3, ttl_ms=MINUTE, hold_id="h")
    assert model.void("a", "g") == 4
    assert model.void("a", "g") == 0
    assert books(model)["g"] == (0, 3, 2, 4)
    model.release("a", "h")
    assert books(model)["g"] == (0, 0, 2, 7)
    assert model.void("a", "future") == 4
    assert pool(model, MINUTE).remaining == 0
    for subject, grant_id in (("a", "unknown"), ("a/t", "g"), ("b", "g")):
        with pytest.raises(OpNotFound):
            model.void(subject, grant_id)
    assert model.void("a", "future", now_ms=T0 + MINUTE) == 0
    with pytest.raises(OpNotFound):
        model.void("a", "future", now_ms=T0 + 2 * MINUTE)


# -- pools that only grants make -----------------------------------------------------------------


def test_a_grant_makes_a_pool_that_no_plan_includes() -> None:
    model = oracle(Pool("m", 10))
    assert model.consume("a", "x").code == "NOT_INCLUDED"
    give(model, 3, "g", "x", expires=DAY)
    give(model, 3, "h", "w")
    assert [limit.name for limit in model.usage("a").limits] == ["m", "w", "x"]
    assert model.usage("a").plans == [{"base": "p"}], "the default plan is joined"
    shown = model.consume("a", "x", 2).limits[0]
    assert (shown.kind, shown.limit, shown.used, shown.drawn) == ("pool", 0, 2, 2)
    assert (shown.remaining, shown.resets_at_ms) == (1, None)
    assert model.consume("a", "x", 2).retry_after_ms is None
    model.report("a", "x", 2)
    assert figures(model, name="x") == (4, 3, 1, -1, 0)
    # At its end the pool goes, and whatever it knew.
    assert model.consume("a", "x", now_ms=T0 + DAY).code == "NOT_INCLUDED"
    give(model, 3, "i", "x", at=DAY)
    assert figures(model, DAY, "x") == (0, 0, 0, 3, 3)


def test_a_level_that_has_grants_alone() -> None:
    model = Oracle(start_ms=T0)
    assert model.consume("a/t", "x").code == "NO_PLAN"
    give(model, 3, "g", "x", to="a/t", expires=10)
    assert model.usage("a/t").plans == [None, {}]
    assert model.consume("a/t", "x", 2).allowed
    assert model.consume("a/t", "y", 2).code == "NOT_INCLUDED"
    assert model.consume("a", "x").code == "NO_PLAN"
    assert model.consume("a/t", "x", now_ms=T0 + 10).code == "NO_PLAN"
    assert model.usage("a/t", now_ms=T0 + 10).plans == [None, {}]


def test_grants_outlive_every_change_of_plan() -> None:
    plans = [plan(Pool("m", 10)), plan(Flag("f"), name="q"), plan(Flag("m"), name="r")]
    model = Oracle(plans, start_ms=T0)
    give(model, 5, "g")
    model.consume("a", "m", 12)
    model.subscribe("a", "q")
    assert figures(model) == (0, 0, 0, 3, 3)  # the pool is another one
    assert pool(model).limit == 0
    model.subscribe("a", "r")  # the name is something else here: the grant sleeps
    assert [(x.name, x.kind) for x in model.usage("a").limits] == [("m", "flag")]
    assert model.consume("a", "m", 99).allowed
    assert books(model) == {"g": (3, 0, 2, 0)}
    with pytest.raises(PolicyError):
        give(model, 1, "h")
    model.subscribe("a", "p")
    assert figures(model) == (0, 0, 0, 13, 3)


def test_a_hold_returns_to_its_grant_whatever_became_of_the_pool() -> None:
    for other in ([Flag("m")], [Flag("f")], [Pool("m", 3, "1m")]):
        model = Oracle([plan(Pool("m", 1)), plan(*other, name="q")], start_ms=T0)
        give(model, 5, "g")
        model.reserve("a", "m", 4, ttl_ms=MINUTE, hold_id="h")
        model.subscribe("a", "q", change="reset")
        model.release("a", "h")
        assert books(model) == {"g": (5, 0, 0, 0)}


# -- what is refused, and what is repeated -------------------------------------------------------


def test_arguments_that_are_wrong() -> None:
    model = oracle(Pool("m", 10), Bucket("b", 1, "1m"), Flag("f"))
    for wrong in (
        {"amount": 0},
        {"amount": -1},
        {"amount": 10**15 + 1},
        {"amount": True},
        {"amount": 1.0},
        {"priority": -1},
        {"priority": 101},
        {"priority": 50.0},
        {"source": "x" * 129},
        {"name": ""},
        {"name": "b"},
        {"name": "f"},
        {"op": ""},
    ):
        with pytest.raises(PolicyError):
            model.grant(**{"subject": "a", "name": "m", "amount": 1, "op": "x", **wrong})
    assert model.levels.records == {}
    assert give(model, 10**15, "all", priority=0, source="ü" * 64).remaining == 10**15
    with pytest.raises(PolicyError):
        give(model, 1, "more")
    give(model, 1, "elsewhere", "other")
    model.consume("a", "m", 11)
    give(model, 1, "fits again")


def test_how_many_there_may_be() -> None:
    model = oracle(Pool("m", 0))
    for number in range(64):
        give(model, 1, f"g{number:02}", ("m", "x")[number % 2])
    with pytest.raises(PolicyError):
        give(model, 1, "one more")
    model.reserve("a", "m", 1, ttl_ms=DAY, hold_id="h")
    with pytest.raises(PolicyError):
        give(model, 1, "held counts")
    model.consume("a", "x", 32)
    for number in range(32):
        give(model, 1, f"h{number:02}")
    assert len(books(model)) == 96
    model.consume("a", "m", 2)  # g02 and g04 are empty too: the two oldest leave the books
    give(model, 1, "last")
    gone = {f"g{number:02}" for number in range(64)} - books(model).keys()
    assert gone == {"g01", "g02"}
    with pytest.raises(OpNotFound):
        model.void("a", "g01")


def test_a_grant_is_made_once() -> None:
    model = oracle(Pool("m", 10))
    first = give(model, 5, "pay_1", expires=DAY)
    model.consume("a", "m", 12)
    for at in (1, DAY - 1, 30 * DAY - 1):  # even when it is long dead
        assert give(model, 5, "pay_1", expires=DAY, at=at) == first
    assert books(model) == {"pay_1": (0, 0, 5, 0)}
    for changes in (
        {"amount": 6},
        {"expires": DAY + 1},
        {"starts": 0},
        {"priority": 49},
        {"source": "x"},
        {"to": "a/t"},
        {"name": "x"},
    ):
        with pytest.raises(OpConflict):
            give(**{"model": model, "amount": 5, "op": "pay_1", "expires": DAY, **changes})
    with pytest.raises(OpConflict):
        model.consume("a", "m", op="pay_1")
    give(model, 1, "pay_1", at=30 * DAY)
    # An id that is still in the books is not given twice, even if it is forgotten as an operation.
    with pytest.raises(OpConflict):
        give(model, 1, "pay_1", at=90 * DAY)


def test_a_record_with_a_grant_stays() -> None:
    model = oracle(Bucket("b", 5, "1m"))
    model.consume("a", "b")
    give(model, 1, "g", "x", expires=10)
    assert model.levels.stored(("a",), T0 + DAY) is not None
    model.forget("a")
    assert books(model) == {}
    assert not give(model, 1, "g", "x").consumed
