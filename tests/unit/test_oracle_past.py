"""The model's operations by their ids: one example per rule."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.policy import Bucket, Pool
from tests.oracle import OpNotFound, PolicyError
from tests.unit.model_tools import DAY, MINUTE, SECOND, T0, books, figures, give, oracle, used


def applied(decision: Any) -> dict[str, int]:
    return {limit.name: limit.applied for limit in decision.limits}


def test_all_that_it_charged_comes_back_once() -> None:
    limits = (Pool("m", 5, overage=5), Bucket("b", 9, "1m", algorithm="fixed", rates={"m": 1}))
    model = oracle(*limits)
    model.consume("a", "m", 2)
    model.report("a", "m", 6, op="x")
    first = model.refund_of("a", "x")
    assert (applied(first), first.replayed) == ({"m": 6, "b": 6}, False)
    assert (used(model, 0, "m"), used(model, 0, "b")) == (2, 2)
    again = model.refund_of("a", "x", op="y")
    assert (again.limits, again.replayed, again.op) == (first.limits, True, "y")
    assert used(model, 0, "m") == 2


def test_to_the_grants_it_came_from_and_not_twice() -> None:
    model = oracle(Pool("m", 10))
    give(model, 5, "g", priority=40)
    give(model, 5, "ends", priority=30, expires=SECOND)
    model.consume("a", "m", 12, op="x")
    model.consume("a", "m", 3, op="y")
    assert figures(model) == (15, 10, 0, 5, 0)
    model.refund("a", "m", 1)  # to g, which burnt last
    assert books(model, SECOND - 1) == {"ends": (0, 0, 5, 0), "g": (1, 0, 4, 0)}
    assert applied(model.refund_of("a", "x", now_ms=T0 + SECOND)) == {"m": 11}  # 5 are lost, 1 was
    assert books(model, SECOND) == {"g": (5, 0, 0, 0)}
    assert figures(model, SECOND) == (3, 0, 0, 12, 5)


def test_of_a_period_that_is_over_only_grants_get_something() -> None:
    model = oracle(Pool("m", 10, "1m"))
    give(model, 5, "g")
    model.consume("a", "m", 12, op="x")
    assert applied(model.refund_of("a", "x", now_ms=T0 + MINUTE)) == {"m": 2}
    assert books(model, MINUTE) == {"g": (5, 0, 0, 0)}
    assert figures(model, MINUTE) == (0, 0, 0, 15, 5)


def test_what_a_commit_kept() -> None:
    model = oracle(Pool("m", 10, overage=9))
    give(model, 3, "g", priority=60)
    model.reserve("a", "m", 15, ttl_ms=DAY, hold_id="h")  # 10, 3 of the grant, 2 over
    with pytest.raises(OpNotFound):
        model.refund_of("a", "h")
    model.commit("a", "h", {"m": 12})
    assert books(model) == {"g": (1, 0, 2, 0)}
    assert applied(model.refund_of("a", "h")) == {"m": 12}
    assert figures(model) == (0, 0, 0, 13, 3)


def test_only_what_charges_and_on_its_own_path() -> None:
    model = oracle(Pool("m", 10))
    model.consume("a", "m", 2, op="x")
    model.refund("a", "m", 1, op="back")
    give(model, 3, "g")
    model.subscribe("a", "p", op="plan")
    for op in ("back", "g", "plan"):
        with pytest.raises(PolicyError):
            model.refund_of("a", op)
    with pytest.raises(PolicyError):
        model.refund_of("a/b", "x")
    with pytest.raises(OpNotFound):
        model.refund_of("b", "x")


def test_what_became_of_it_while_it_is_kept() -> None:
    model = oracle(Pool("m", 10), op_retention_ms=MINUTE)
    decision = model.consume("a/b", {"m": 2}, op="x")
    found = model.operation("a", "x", now_ms=T0 + MINUTE - 1)
    assert (found.verb, found.subject, found.costs) == ("consume", ("a", "b"), {"m": 2})
    assert (found.at_ms, found.expires_ms, found.refund) == (T0, T0 + MINUTE, None)
    assert found.decision is not None
    assert (found.decision.replayed, found.decision.limits) == (True, decision.limits)
    model.refund_of("a/b", "x")
    assert model.operation("a", "x").refund is not None
    with pytest.raises(OpNotFound):
        model.operation("a", "x", now_ms=T0 + MINUTE)
    give(model, 3, "g")
    assert model.operation("a", "g", now_ms=T0 + MINUTE).verb == "grant"
