"""What reservations take and refuse as arguments, in either client."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from meterd import PolicyError
from meterd.holds import ttl_ms
from meterd.testing import ManualClock
from tests.client.hold_tools import PLANS, known, reserve, used
from tests.client.meter_tools import AnyMeter, Make


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


@pytest.mark.parametrize(
    "ttl",
    [0, -1, 0.0001, 366 * 86_400 + 1, float("nan"), float("inf"), True, None, "1", "0s", "367d"],
)
def test_a_ttl_that_is_none(meter: AnyMeter, ttl: Any) -> None:
    with pytest.raises(PolicyError, match=r"^ttl: "):
        reserve(meter, "acme", "jobs", ttl=ttl)
    hold = reserve(meter, "acme", "jobs")
    with pytest.raises(PolicyError, match=r"^ttl: "):
        hold.renew(ttl)


@pytest.mark.parametrize(
    ("ttl", "ms"), [(1, 1000), (0.0015, 2), ("500ms", 500), (timedelta(days=366), 366 * 86_400_000)]
)
def test_ttls(meter: AnyMeter, clock: ManualClock, ttl: Any, ms: int) -> None:
    reserve(meter, "acme", "jobs", ttl=ttl)
    assert meter.usage("acme").levels[0].holds[0].expires_ms == clock.now_ms + ms


@pytest.mark.parametrize("actual", [-1, 1.0, True, "tokens", {"tokens": -1}, {"a b": 1}, 10**16])
def test_an_actual_that_is_none(meter: AnyMeter, actual: Any) -> None:
    hold = reserve(meter, "acme", "tokens", 5)
    with pytest.raises(PolicyError):
        hold.commit(actual)
    assert used(meter) == (0, 5)


def test_an_amount_needs_one_cost_name(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 5})
    with pytest.raises(PolicyError, match="the hold is of jobs, tokens; allowed: a mapping"):
        hold.commit(3)
    with pytest.raises(PolicyError, match="this process did not reserve"):
        known(meter, "acme", hold.id).commit(3)


def test_tallies(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", "tokens", 5)
    for wrong in ({"tokens": -1}, {}, "a b", {"tokens": True}):
        with pytest.raises(PolicyError):
            hold.spend(wrong)
    hold.spend("tokens", 10**15)
    with pytest.raises(PolicyError, match="sum of 'tokens'"):
        hold.spend({"image": 1, "tokens": 1})
    assert hold.spent == {"tokens": 10**15}
    hold.release()
    with pytest.raises(PolicyError, match="was finished already"):
        hold.spend("tokens")


@pytest.mark.parametrize("hold_id", ["", "x" * 129, "\ud800", None, 5, b"x"])
def test_an_id_that_is_none(meter: AnyMeter, hold_id: Any) -> None:
    with pytest.raises(PolicyError, match=r"^hold_id: "):
        meter.hold("acme", hold_id)
    with pytest.raises(PolicyError, match="subject"):
        meter.hold("", "x")


def test_a_hold_of_elsewhere_has_no_decision(meter: AnyMeter) -> None:
    hold = known(meter, "acme", "x" * 128)
    assert hold
    with pytest.raises(PolicyError, match="whoever reserved"):
        hold.decision  # noqa: B018


@pytest.mark.parametrize("ttl", [0, -1, 31_622_401, float("nan"), float("inf"), True, None])
def test_a_wrong_time_to_live_is_answered_in_its_own_unit(ttl: Any) -> None:
    with pytest.raises(PolicyError, match=r"ttl: .*allowed: seconds .* from 0\.001 to 31622400, "):
        ttl_ms(ttl)
