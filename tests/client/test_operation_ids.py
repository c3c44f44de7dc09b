"""Operation ids: what was applied once is answered again, and never applied again."""

from __future__ import annotations

from typing import Any

import pytest

from meterd import OpConflict
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make


def used(meter: AnyMeter, subject: Any = "ana") -> dict[str, int]:
    return {state.name: state.used for state in meter.usage(subject) if state.kind != "flag"}


@pytest.mark.parametrize("verb", ["consume", "report", "refund"])
def test_the_same_operation_is_charged_once(meter: AnyMeter, clock: ManualClock, verb: str) -> None:
    meter.consume("ana", "tokens", 50)
    call = getattr(meter, verb)
    first = call("ana", {"tokens": 5, "image": 1}, op="op-1")
    assert (first.op, first.replayed) == ("op-1", False)
    before = used(meter)
    clock.advance(hours=23, minutes=59)
    again = call("ana", {"image": 1, "tokens": 5}, op="op-1")  # in any order
    assert (again.op, again.replayed) == ("op-1", True)
    assert again.limits == first.limits
    assert used(meter) == before
    for costs in ({"tokens": 5}, {"tokens": 6, "image": 1}, {"tokens": 5, "image": 1, "api": 0}):
        with pytest.raises(OpConflict, match="'op-1' was already used"):
            call("ana", costs, op="op-1")
    with pytest.raises(OpConflict):
        call("ana/phone", {"tokens": 5, "image": 1}, op="op-1")
    others = {"consume", "report", "refund"} - {verb}
    for other in others:
        with pytest.raises(OpConflict):
            getattr(meter, other)("ana", {"tokens": 5, "image": 1}, op="op-1")
    assert used(meter) == before
    # Ids belong to a root, and are kept for op_retention.
    if verb != "refund":
        assert not call("bob", {"tokens": 5, "image": 1}, op="op-1").replayed
    clock.advance(minutes=2)
    assert not call("ana", {"tokens": 5, "image": 1}, op="op-1").replayed
    assert used(meter) != before


def test_op_retention(make: Make, clock: ManualClock) -> None:
    meter = make(op_retention="10s")
    meter.consume("ana", "tokens", op="x")
    clock.advance(milliseconds=9_999)
    assert meter.consume("ana", "tokens", op="x").replayed
    clock.advance(milliseconds=1)
    assert not meter.consume("ana", "tokens", op="x").replayed
    assert used(meter)["credits"] == 2


def test_generated_ids_differ(meter: AnyMeter) -> None:
    made = [meter.consume("ana", "tokens", op=True) for _ in range(3)]
    assert len({decision.op for decision in made}) == 3
    assert all(decision.op and not decision.replayed for decision in made)
    assert meter.consume("ana", "tokens", op=made[0].op).replayed
    assert meter.consume("ana", "tokens", op=False).op is None
    assert used(meter)["credits"] == 4


def test_a_refusal_is_not_sticky(meter: AnyMeter) -> None:
    assert not meter.consume("ana", "tokens", 101, op="x")
    meter.subscribe("ana", "pro")
    decision = meter.consume("ana", "tokens", 101, op="x")
    assert (decision.allowed, decision.replayed) == (True, False)
    assert meter.consume("ana", "tokens", 101, op="x").replayed


@pytest.mark.parametrize("op", ["x" * 128, "é" * 64, " ", "a/b{c}*", "\x00"], ids=ascii)
def test_ids_are_any_text(meter: AnyMeter, op: str) -> None:
    assert not meter.consume("ana", "tokens", op=op).replayed
    assert meter.consume("ana", "tokens", op=op).replayed
    assert used(meter)["credits"] == 1


def test_the_same_operation_everywhere(make: Make) -> None:
    """What one process applied, another process replays."""
    one, two = make(), make()
    one.consume("ana", "tokens", 5, op="x")
    assert two.consume("ana", "tokens", 5, op="x").replayed
