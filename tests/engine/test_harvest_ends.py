"""What comes by itself is told and billed in time, whatever else a call has to do."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from meterd import Bucket, Plan, Pool
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.told import deltas, due


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.mark.parametrize("functions", [True, False], ids=["FCALL", "EVALSHA"])
@pytest.mark.parametrize("reset", [None, "month"])
@pytest.mark.parametrize("way", ["subscribe", "wait", "apply"])
def test_a_new_end_is_looked_for_when_what_was_harvested_has_come_back(
    make: Make,
    client: redis.Redis,
    clock: ManualClock,
    way: str,
    reset: Any,
    functions: bool,
) -> None:
    """Nothing of the period is used any more, but less than nothing is still to be said of it."""
    pools = [Pool("credits", 100, each, bill="use", warn_at=()) for each in (reset, "day")]
    named = zip(("q", "daily"), pools, strict=True)
    plans = [Plan(name, includes=[pool, Bucket("api", 9, "1m")]) for name, pool in named]
    meter = make(plans, clock=clock, functions=functions)
    meter.subscribe("acme", "q")
    meter.consume("acme", "credits", 5)
    assert [meter.harvest(), meter.harvest()] == [1, 0]
    meter.refund("acme", "credits", 5)
    assert meter.harvest() == 0
    if way == "apply":
        meter.apply([Plan("q", includes=plans[1].includes)])
        meter.consume("acme", "api")
    else:
        meter.subscribe("acme", "daily", when="1h" if way == "wait" else "now")
    assert meter.harvest() == 0
    clock.advance(days=1, hours=1)
    assert [meter.harvest(), meter.harvest()] == [1, 0]
    assert deltas(client, meter) == [5, -5]
    assert due(client, meter) == {}
