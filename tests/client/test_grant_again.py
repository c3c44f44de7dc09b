"""A grant that is asked for again, as payment providers do: made once, whatever became of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from meterd import OpConflict, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import Make

PLANS = [Plan("base", includes=[Pool("credits", 10)], default=True)]


def test_long_after_it_has_ended_it_is_answered_as_it_was(make: Make, clock: ManualClock) -> None:
    meter = make(PLANS)
    ends = clock.now() + timedelta(hours=1)
    first = meter.grant("acme", "credits", 5, expires=ends, op="pay_1")
    for_a_while = meter.grant("acme", "credits", 5, expires="1h", starts="1m", op="pay_2")
    clock.advance(days=29)
    assert meter.grant("acme", "credits", 5, expires=ends, op="pay_1") == first
    again = meter.grant("acme", "credits", 5, expires="1h", starts="1m", op="pay_2")
    assert again == for_a_while
    with pytest.raises(OpConflict):
        meter.grant("acme", "credits", 6, expires=ends, op="pay_1")
    for op in ("pay_3", None):
        with pytest.raises(PolicyError, match="expires"):
            meter.grant("acme", "credits", 5, expires=ends, op=op)
    assert meter.usage("acme")["credits"].granted == 0
