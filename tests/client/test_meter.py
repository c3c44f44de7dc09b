"""The verbs that charge, through either meter: what each argument does and what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from meterd import Bucket, Code, Meter, NotIncluded, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make, requests_of
from tests.support.servers import Server


def used(meter: AnyMeter, subject: Any = "ana") -> dict[str, int]:
    return {state.name: state.used for state in meter.usage(subject) if state.kind != "flag"}


# --- consume and check


def test_consume_charges_every_limit_that_a_cost_reaches(meter: AnyMeter) -> None:
    decision = meter.consume("ana", {"tokens": 5, "image": 2, "api": 1, "export": 99})
    assert decision.code is Code.OK
    assert {state.name: state.applied for state in decision.limits} == {
        "credits": 25,
        "api": 1,
        "export": 0,
    }
    assert decision["credits"].used == 25  # 5 tokens and 2 images at 10
    assert decision.balance == 75
    assert meter.consume("ana", "image").balance == 6  # in images
    assert meter.consume("ana", "tokens", 5)["credits"].used == 40
    assert meter.consume("ana", "tokens")["credits"].used == 41
    assert meter.consume("ana", "export").balance is None
    assert used(meter) == {"credits": 41, "api": 1}


def test_all_or_nothing(meter: AnyMeter) -> None:
    for _ in range(5):
        assert meter.consume("ana", {"tokens": 1, "api": 1})
    decision = meter.consume("ana", {"tokens": 1, "api": 1})
    assert not decision
    assert decision.code is Code.RATE_LIMITED
    assert [state.name for state in decision.refused] == ["api"]
    assert decision["credits"].applied == decision["api"].applied == 0
    assert decision.retry_after == 60
    assert decision["api"].retry_after == 60
    assert used(meter) == {"credits": 5, "api": 5}
    # Several names that reach one limit add up: neither alone would be refused.
    assert not meter.consume("ana", {"tokens": 50, "image": 5})
    assert used(meter) == {"credits": 5, "api": 5}


def test_codes_by_rank(meter: AnyMeter) -> None:
    assert meter.consume("ana", {"tokens": 101, "api": 6, "video": 1}).code is Code.NOT_INCLUDED
    assert meter.consume("ana", {"tokens": 101, "api": 6}).code is Code.USAGE_EXCEEDED
    assert meter.consume("ana", {"tokens": 1, "api": 6}).code is Code.RATE_LIMITED
    assert meter.consume("ana", {"tokens": 1, "sso": 1}).code is Code.NOT_INCLUDED
    assert used(meter) == {"credits": 0, "api": 0}


def test_zero_fits_everywhere_and_opens_nothing(meter: AnyMeter) -> None:
    meter.consume("ana", {"tokens": 100, "api": 5})
    assert meter.consume("ana", {"tokens": 0, "api": 0})
    decision = meter.consume("bob", {"tokens": 0, "api": 0})
    assert decision
    assert decision["api"].resets_at is None
    with pytest.raises(PolicyError, match="amount"):
        meter.consume("bob", "tokens", -0.0)


def test_check_is_the_same_answer_and_writes_nothing(meter: AnyMeter, clock: ManualClock) -> None:
    for costs in ({"tokens": 5, "api": 1}, {"tokens": 101}, {"api": 6}, {"video": 1}):
        checked = meter.check("ana", costs)
        assert meter.subjects() == []
        assert checked.op is None
        decision = meter.consume("bob", costs)
        assert (checked.allowed, checked.code) == (decision.allowed, decision.code)
        assert checked.retry_after == decision.retry_after
        meter.forget("bob")
    meter.consume("ana", {"tokens": 5, "api": 1})
    first = meter.check("ana", {"tokens": 6, "api": 1})
    clock.advance(seconds=1)
    assert meter.check("ana", {"tokens": 6, "api": 1}) == first
    assert first["credits"].used == 5
    assert used(meter) == {"credits": 5, "api": 1}


def test_paths_charge_every_level(meter: AnyMeter) -> None:
    meter.subscribe("acme/ana", limits=[Pool("credits", 10, rates={"tokens": 1})])
    decision = meter.consume("acme/ana/laptop", "tokens", 4)
    assert [(s.subject, s.used, s.limit) for s in decision.limits] == [
        ("acme", 4, 100),
        ("acme/ana", 4, 10),
    ]
    refused = meter.consume("acme/ana", "tokens", 7)
    assert [state.subject for state in refused.refused] == ["acme/ana"]
    assert refused.balance == 6
    assert meter.consume("acme/bob", "tokens", 7).limits[0].used == 11
    assert used(meter, "acme/ana")["credits"] == 4
    assert sorted(meter.subjects()) == ["acme", "acme/ana"]


@pytest.mark.parametrize(
    "subject",
    [
        ("acme", "a/b"),
        ("a/b",),
        ("{x}", "}", "%2F", "*?[]\\"),
        ("é" * 64, "\x00\r\n", " ", "日本"),
        ["acme", "list"],
    ],
    ids=range(5),
)
def test_segments_are_taken_verbatim(meter: AnyMeter, subject: Any) -> None:
    meter.subscribe(subject, limits=[Bucket("mine", 5, "1m")])
    decision = meter.consume(subject, "mine", 2)
    shown = decision["mine"].subject
    parts = tuple(shown.split("/")) if isinstance(shown, str) else shown
    assert parts == tuple(subject)
    assert shown in meter.subjects()
    assert meter.consume(shown, "mine").balance == 2
    if len(subject) > 1:
        assert used(meter, subject[:-1]).get("mine") is None
    assert meter.forget(subject) > 0


def test_prefixes_are_apart(make: Make) -> None:
    one, two = make(prefix="t-one"), make(prefix="t-two")
    try:
        one.consume("ana", "tokens", 7)
        assert used(two) == {"credits": 0, "api": 0}
        assert two.subjects() == []
    finally:
        for meter in (one, two):
            meter.forget("ana")


# --- join


def test_join(meter: AnyMeter) -> None:
    assert meter.check("ana", "sso").code is Code.NOT_INCLUDED
    assert meter.check("ana", "sso", join="pro")
    assert meter.usage("ana", join="pro").plans == {"base": "pro"}
    assert meter.usage("ana").plans == {"base": "free"}
    assert meter.subjects() == []
    assert meter.consume("ana", "tokens", 500, join="pro")["credits"].limit == 1000
    assert meter.usage("ana").plans == {"base": "pro"}
    # It is for those who have no plan in the group yet.
    assert meter.consume("ana", "tokens", join="free")["credits"].limit == 1000
    assert meter.usage("ana").plans == {"base": "pro"}
    # One of another group adds to what is held.
    assert meter.report("ana", "tokens", join="pack")["credits"].limit == 1500
    assert meter.usage("ana").plans == {"addon": "pack", "base": "pro"}


def test_join_of_another_group_keeps_the_default(meter: AnyMeter) -> None:
    assert meter.consume("ana", "tokens", join="pack")["credits"].limit == 600
    assert meter.usage("ana").plans == {"addon": "pack", "base": "free"}


# --- report and refund


def test_report_is_always_applied(meter: AnyMeter) -> None:
    meter.consume("ana", {"tokens": 90, "api": 3})
    decision = meter.report("ana", {"tokens": 30, "api": 9})
    assert decision
    credits, api = decision["credits"], decision["api"]
    assert (credits.used, credits.overage, credits.remaining, credits.applied) == (120, 20, -20, 30)
    assert not credits.allowed  # it would not have fitted
    assert (api.used, api.remaining, api.applied) == (5, 0, 2)
    assert decision.balance == 0
    assert meter.report("bob", "export")
    # What is reached is recorded; only where nothing is, that is an error.
    assert meter.report("ana", {"tokens": 1, "video": 1})["credits"].applied == 1
    with pytest.raises(NotIncluded, match="nothing was recorded: NOT_INCLUDED") as caught:
        meter.report("ana", "video")
    assert caught.value.decision.code is Code.NOT_INCLUDED


def test_refund(meter: AnyMeter) -> None:
    meter.report("ana", {"tokens": 120, "api": 4})
    decision = meter.refund("ana", {"tokens": 30, "api": 1})
    assert decision
    credits = decision["credits"]
    assert (credits.used, credits.overage, credits.applied, credits.remaining) == (90, 0, 30, 10)
    assert decision["api"].used == 3
    decision = meter.refund("ana", {"image": 100, "api": 100})
    assert (decision["credits"].applied, decision["api"].applied) == (90, 3)
    assert used(meter) == {"credits": 0, "api": 0}
    assert meter.refund("ana", "tokens")["credits"].applied == 0
    assert meter.refund("nobody", "tokens")["credits"].applied == 0
    assert meter.refund("ana", "video").code is Code.NOT_INCLUDED
    assert meter.subjects() == ["ana"]


# --- usage


def test_usage_of_the_unseen_and_of_every_level(meter: AnyMeter) -> None:
    usage = meter.usage("acme/ana")
    assert [(level.subject, dict(level.plans), level.stored) for level in usage.levels] == [
        ("acme", {"base": "free"}, False)
    ]
    assert usage["credits"].remaining == 100
    meter.subscribe("acme/ana", "pro")
    meter.consume("acme/ana", "tokens", 100)
    usage = meter.usage("acme/ana")
    assert [(level.subject, dict(level.plans), level.stored) for level in usage.levels] == [
        ("acme", {"base": "free"}, True),
        ("acme/ana", {"base": "pro"}, True),
    ]
    assert usage.plans == {"base": "pro"}
    assert [(s.subject, s.name, s.used) for s in usage if s.kind == "pool"] == [
        ("acme", "credits", 100),
        ("acme/ana", "credits", 100),
    ]
    assert usage["credits"].subject == "acme"  # where nothing is left
    assert not usage["credits"].allowed


def test_lazy_reset_in_every_verb_that_looks(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", {"tokens": 100, "api": 5})
    clock.advance(days=31 * 12 * 3)
    assert used(meter) == {"credits": 0, "api": 0}
    assert meter.check("ana", "tokens").balance == 100
    assert meter.refund("ana", "tokens")["credits"].applied == 0
    decision = meter.consume("ana", {"tokens": 1, "api": 1})
    assert (decision["credits"].used, decision["api"].used) == (1, 1)


def test_time_never_goes_back_for_a_record(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", "api", 5)
    clock.advance(seconds=-30)
    decision = meter.check("ana", "api")
    assert decision.retry_after == 60
    assert meter.check("bob", "api")


# --- wait


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> list[float]:
    """Sleeping moves the clock, and nothing else."""
    slept: list[float] = []
    real = asyncio.sleep

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds=seconds)

    async def sleep_async(seconds: float, result: Any = None) -> Any:
        if seconds:
            sleep(seconds)
        return await real(0, result)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(asyncio, "sleep", sleep_async)
    return slept


def test_wait_sleeps_exactly_until_it_fits(
    meter: AnyMeter, clock: ManualClock, naps: list[float]
) -> None:
    assert meter.consume("ana", "api", 5, wait=90)
    clock.advance(milliseconds=12_345)
    decision = meter.consume("ana", "api", 2, wait=90, op="x")
    assert decision
    assert naps == [47.655]
    assert (decision["api"].used, decision.op, decision.replayed) == (2, "x", False)
    assert meter.consume("ana", "api", 3, wait="2m")
    assert meter.consume("ana", "api", 3, wait="2m")
    assert naps == [47.655, 60]


def test_wait_gives_up_at_once_where_it_cannot_help(meter: AnyMeter, naps: list[float]) -> None:
    meter.consume("ana", {"api": 5, "tokens": 50})
    for costs, wait in (({"api": 1}, 59.9), ({"api": 6}, 1000), ({"tokens": 101}, 10**8)):
        assert not meter.consume("ana", costs, wait=wait)
    assert not meter.consume("ana", "video", wait=60)
    assert not meter.consume("ana", "api")
    assert naps == []


def test_wait_is_for_all_attempts_together(
    make: Make,
    server: Server,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    naps: list[float],
) -> None:
    """Somebody else takes the freed place each time: after `wait` seconds it is over."""
    plans = [Plan("p", includes=[Bucket("api", 1, "10s", algorithm="fixed")], default=True)]
    meter = make(plans)
    meter.open()
    really = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: really() + sum(naps))
    with Meter(server.url, prefix=meter.raw._keys.prefix, clock=clock, timeout=5) as rival:
        steal_before_every_request(meter, lambda: rival.consume("ana", "api"))
        assert not meter.consume("ana", "api", wait=35)
    assert naps == [10, 10, 10]


def steal_before_every_request(meter: AnyMeter, steal: Callable[[], object]) -> None:
    transport = meter.raw._transport
    send = transport.send

    def before(request: Any, timeout: float) -> Any:
        steal()
        return send(request, timeout)  # a reply, or what has to be awaited for it

    transport.send = before


# --- observer


def test_an_observer_that_fails_hides_no_answer(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("metrics are down")

    meter = make(observer=failing)
    assert meter.consume("ana", "tokens").allowed
    with pytest.raises(PolicyError):
        meter.consume("ana", "tokens", -1)
    assert "metrics are down" in caplog.text


def test_observer(make: Make) -> None:
    calls: list[tuple[str, Any, str, float]] = []
    meter = make(observer=lambda *call: calls.append(call))
    login = meter.limiter("login", Bucket("ip", 1, "1m"))
    meter.consume("ana", "tokens")
    meter.check(("a", "b/c"), "tokens", 101)
    meter.report("ana", "tokens")
    meter.refund("ana", "tokens")
    meter.usage("ana")
    meter.subscribe("ana", "pro")
    meter.unsubscribe("ana", "pro")
    meter.override("ana", "credits", limit=5)
    meter.adjust("ana", "credits", used=5)
    meter.set_meta("ana", {"x": 1})
    meter.meta("ana")
    meter.forget("ana")
    login.consume("1.2.3.4")
    login.consume("1.2.3.4")
    with pytest.raises(NotIncluded):
        meter.report("ana", "video")
    with pytest.raises(PolicyError):
        meter.consume("ana", "tokens", -1)
    assert [call[:3] for call in calls] == [
        ("consume", "ana", "OK"),
        ("check", ("a", "b/c"), "USAGE_EXCEEDED"),
        ("report", "ana", "OK"),
        ("refund", "ana", "OK"),
        ("usage", "ana", "OK"),
        ("subscribe", "ana", "OK"),
        ("unsubscribe", "ana", "OK"),
        ("override", "ana", "OK"),
        ("adjust", "ana", "OK"),
        ("set_meta", "ana", "OK"),
        ("meta", "ana", "OK"),
        ("forget", "ana", "OK"),
        ("consume", "1.2.3.4", "OK"),
        ("consume", "1.2.3.4", "RATE_LIMITED"),
        ("report", "ana", "NotIncluded"),
        ("consume", "ana", "PolicyError"),
    ]
    assert all(isinstance(call[3], float) and call[3] >= 0 for call in calls)


# --- one round trip


def test_every_hot_verb_is_one_request(meter: AnyMeter) -> None:
    meter.consume("ana", "tokens")
    sent = requests_of(meter)
    for count, call in enumerate((meter.consume, meter.check, meter.report, meter.refund), 1):
        call("ana", {"tokens": 1, "api": 0})
        assert len(sent) == count
    meter.consume("ana", "tokens", op="x")
    meter.consume("ana", "tokens", op="x")
    meter.usage("ana")
    assert len(sent) == 7
