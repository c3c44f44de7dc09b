"""The very instant at which a period ends, by every way a charge can take through the script."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from meterd import Bucket, Decision, Flag, Meter, Plan, Pool
from meterd.testing import ManualClock
from tests.engine.conftest import Make

START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z: a boundary of every grid here
MINUTE_MS = 60_000

# Charges of one name, of several, and of what cannot be refused go different ways through
# the script. Each with what it charges.
WAYS: dict[str, tuple[Callable[[Meter], Decision], int]] = {
    "consume": (lambda meter: meter.consume("a", "x"), 1),
    "consume with an id": (lambda meter: meter.consume("a", "x", op=True), 1),
    "consume beside 0": (lambda meter: meter.consume("a", {"x": 1, "none": 0}), 1),
    "consume beside a flag": (lambda meter: meter.consume("a", {"x": 1, "none": 1}), 1),
    "consume two names": (lambda meter: meter.consume("a", {"x": 2, "twice": 1}), 3),
    "consume one of two": (lambda meter: meter.consume("a", {"x": 0, "twice": 1}), 1),
    "consume below": (lambda meter: meter.consume("a/team", "x"), 1),
    "report": (lambda meter: meter.report("a", "x"), 1),
    "check": (lambda meter: meter.check("a", "x"), 0),
}
LIMITS: dict[str, tuple[Any, int]] = {
    "hours": (Pool("l", 10, "hour", anchor="calendar"), 60 * MINUTE_MS),
    "days": (Pool("l", 10, "day"), 1440 * MINUTE_MS),
    "months": (Pool("l", 10, "month", anchor=1), 31 * 1440 * MINUTE_MS),
    "ms": (Pool("l", 10, "90s"), 90_000),
    "first use": (Pool("l", 10, "1h", anchor="first_use"), 60 * MINUTE_MS),
    "fixed": (Bucket("l", 10, "1m", algorithm="fixed"), MINUTE_MS),
    "fixed, of coarse ticks": (Bucket("l", 10**12, "366d", algorithm="fixed"), 0),
}


@pytest.fixture(params=[False, True], ids=["plain", "overridden"])
def overridden(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LIMITS)
def test_a_period_ends_at_its_instant_and_not_before(
    make: Make, name: str, way: str, overridden: bool
) -> None:
    limit, length = LIMITS[name]
    limit = dataclasses.replace(limit, rates={"x": 1, "twice": 1})
    clock = ManualClock(START_MS)
    plan = Plan("p", includes=[limit, Flag("none")], default=True)
    meter = make([plan], clock=clock)
    if overridden:
        meter.override("a", "l", limit=20 if limit.limit == 10 else 10**12 - 1)
    charge, units = WAYS[way]
    opened = meter.consume("a", "x", 3)["l"].resets_at_ms
    assert opened is not None
    assert not length or opened == START_MS + length
    clock.now_ms = opened - 1
    last = charge(meter)["l"]
    assert (last.used, last.applied, last.resets_at_ms) == (3 + units, units, opened)
    assert last.limit == (
        limit.limit if not overridden else 20 if limit.limit == 10 else 10**12 - 1
    )
    assert last.remaining == last.limit - last.used
    clock.now_ms = opened
    first = charge(meter)["l"]
    assert first.used == first.applied == units
    assert first.resets_at_ms is None or first.resets_at_ms > opened
    assert meter.usage("a")["l"].used == first.used


@pytest.mark.parametrize("way", WAYS)
def test_sliding_and_token_come_back_unit_by_unit(make: Make, way: str) -> None:
    clock = ManualClock(START_MS)
    sliding = Bucket("sliding", 10, "1m", rates={"x": 1, "twice": 1})
    token = Bucket("token", 10, "1m", algorithm="token", rates={"x": 1, "twice": 1})
    meter = make([Plan("p", includes=[sliding, token, Flag("none")], default=True)], clock=clock)
    meter.consume("a", "x", 10)
    for at, units in ((6000, 1), (11_999, 1), (12_000, 2), (59_999, 9), (60_000, 10)):
        clock.now_ms = START_MS + at
        assert meter.check("a", "x", units)["token"].allowed
        assert not meter.check("a", "x", units + 1)["token"].allowed
    # The whole window weighs until it is over, then by the part that is still covered.
    for at, units in ((59_999, 0), (60_000, 0), (65_999, 0), (66_000, 1), (71_999, 1), (72_000, 2)):
        clock.now_ms = START_MS + at
        assert meter.check("a", "x", units)["sliding"].allowed
        assert not meter.check("a", "x", units + 1)["sliding"].allowed
    charge, units = WAYS[way]
    if units < 3:  # no more than 2 have come back
        decision = charge(meter)
        assert (decision["sliding"].used, decision["sliding"].remaining) == (8 + units, 2 - units)
        assert (decision["token"].used, decision["token"].remaining) == (units, 10 - units)
