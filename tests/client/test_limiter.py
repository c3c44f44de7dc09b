"""Plain rate limiting: buckets over any text, without plans and without a catalog."""

from __future__ import annotations

from typing import Any

import pytest

from meterd import Bucket, Code, OpConflict
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make


def test_it_charges_one_of_each_of_its_limits(make: Make, clock: ManualClock) -> None:
    meter = make(None)
    login = meter.limiter(
        "login",
        Bucket("burst", 3, "10s", algorithm="fixed"),
        Bucket("hourly", 5, "1h", algorithm="fixed"),
    )
    for left in (2, 1, 0):
        decision = login.consume("ip:1.2.3.4")
        assert decision.balance == left
    refused = login.consume("ip:1.2.3.4")
    assert (refused.code, refused.retry_after) == (Code.RATE_LIMITED, 10)
    assert [state.name for state in refused.refused] == ["burst"]
    assert refused["hourly"].used == 3
    assert refused["burst"].subject == "ip:1.2.3.4"
    assert login.check("ip:1.2.3.5").balance == 3
    clock.advance(seconds=10)
    assert login.consume("ip:1.2.3.4", 2)
    assert login.consume("ip:1.2.3.4").retry_after == 3590
    assert login.refund("ip:1.2.3.4", 1)["hourly"].used == 4
    assert login.check("ip:1.2.3.4")
    login.reset("ip:1.2.3.4")
    assert login.check("ip:1.2.3.4").balance == 3
    assert meter.subjects() == []
    assert meter.plans() == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", ("a", "b")), ("a", "A"), ("a%2Fb", "a/b"), (("a/b", "c"), ("a", "b/c"))],
    ids=range(4),
)
def test_a_text_is_one_segment_whatever_it_contains(meter: AnyMeter, one: Any, other: Any) -> None:
    login = meter.limiter("login", Bucket("ip", 1, "1m"))
    assert login.consume(one)
    assert not login.consume(one)
    assert login.consume(other)
    assert login.check(one)["ip"].subject == one


def test_limiters_of_other_names_and_plans_are_apart(meter: AnyMeter) -> None:
    one = meter.limiter("one", Bucket("api", 1, "1m"))
    two = meter.limiter("two", Bucket("api", 1, "1m"))
    assert one.consume("ana")
    assert two.consume("ana")
    assert meter.consume("ana", "api").balance == 4
    assert not one.consume("ana")


def test_operation_ids(meter: AnyMeter) -> None:
    login = meter.limiter("login", Bucket("ip", 5, "1m"))
    assert login.consume("x", 2, op="op-1").op == "op-1"
    assert login.consume("x", 2, op="op-1").replayed
    assert login.consume("x").balance == 2
    with pytest.raises(OpConflict):
        login.consume("x", 3, op="op-1")
    assert not login.consume("y", 2, op="op-1").replayed
    assert login.refund("x", 1, op="op-2")["ip"].used == 2
    assert login.refund("x", 1, op="op-2").replayed
    # A subject of a plan has ids of its own.
    assert not meter.consume("x", "tokens", 2, op="op-1").replayed


def test_a_changed_limiter_follows_at_once(meter: AnyMeter) -> None:
    assert meter.limiter("login", Bucket("ip", 5, "1m", algorithm="fixed")).consume("x", 4)
    wider = meter.limiter(
        "login", Bucket("ip", 50, "1m", algorithm="fixed"), Bucket("day", 90, "1d")
    )
    decision = wider.consume("x", 5)
    assert (decision["ip"].used, decision["ip"].limit, decision["day"].used) == (9, 50, 5)
    assert not meter.limiter("login", Bucket("ip", 5, "1m", algorithm="fixed")).check("x")


def test_rates_are_for_plans(meter: AnyMeter) -> None:
    login = meter.limiter("login", Bucket("ip", 5, "1m", rates={"other": 3}))
    assert login.consume("x").balance == 4


@pytest.mark.parametrize(
    ("on_error", "allowed"), [("allow", True), ("deny", False)], ids=["allow", "deny"]
)
def test_a_limiter_without_a_server(make: Make, on_error: str, allowed: bool) -> None:
    meter = make(None, url="redis://127.0.0.1:1/0", timeout=0.2)
    login = meter.limiter("login", Bucket("ip", 5, "1m", on_error=on_error))
    decision = login.consume("x")
    assert (decision.allowed, decision.degraded) == (allowed, True)
    assert decision.code is (Code.OK if allowed else Code.RATE_LIMITED)
    assert decision.limits == ()
