"""Refusals from memory: what is answered so, for how long, and what makes it forget."""

from __future__ import annotations

import threading
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import pytest

from meterd import Bucket, Meter, OutcomeUnknown, Plan, PolicyError, Pool
from meterd.refusals import SIZE, Refusals, spans
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make, fresh_prefix, look_again, requests_of
from tests.support import proxy as faulty
from tests.support.proxy import FaultProxy
from tests.support.servers import Server

PLAN = Plan(
    "free",
    includes=[
        Pool("credits", 10, "month"),
        Bucket("api", 5, "1m", algorithm="fixed"),
        Bucket("burst", 3, "10s", algorithm="token"),
        Bucket("search", 4, "1m"),
        Bucket("both", 2, "1m", algorithm="fixed", rates={"both": 1}),
        Pool("quota", 5, "month", rates={"both": 1}),
    ],
    default=True,
)


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make([PLAN], refusal_cache={"buckets": "30s", "pools": "10s"})


def full(meter: AnyMeter, *names: str, subject: Any = "ana") -> None:
    for name in names:
        meter.consume(subject, name, meter.check(subject, name).balance)


def asked(meter: AnyMeter, call: Any) -> int:
    """How many requests a call takes."""
    sent = requests_of(meter)
    call()
    return len(sent)


@pytest.mark.parametrize("name", ["api", "burst", "search"])
def test_a_refusal_is_remembered_until_it_fits(
    meter: AnyMeter, clock: ManualClock, name: str
) -> None:
    full(meter, name)
    first = meter.consume("ana", name)
    sent = requests_of(meter)
    waits = min(round(first.retry_after * 1000), 30_000)
    for _ in range(3):
        clock.advance(milliseconds=waits // 4)
        for again in (meter.consume("ana", name), meter.check("ana", name)):
            assert not again
            assert again.code == first.code
            assert again.retry_after == pytest.approx(
                first.retry_after - (clock.now_ms - ManualClock().now_ms) / 1000
            )
            assert [one.name for one in again.refused] == [name]
            assert again.refused[0].retry_after == again.retry_after
    assert sent == []
    clock.advance(milliseconds=round(again.retry_after * 1000) - 1)
    assert not meter.consume("ana", name)
    clock.advance(milliseconds=1)
    assert meter.consume("ana", name)


def test_no_longer_than_the_given_time(meter: AnyMeter, clock: ManualClock) -> None:
    full(meter, "api", "credits")
    for name, seconds in (("api", 30), ("credits", 10)):
        assert not meter.consume("ana", name)
        clock.advance(milliseconds=seconds * 1000 - 1)
        assert asked(meter, lambda name=name: meter.consume("ana", name)) == 0
        clock.advance(milliseconds=1)
        assert asked(meter, lambda name=name: meter.consume("ana", name)) >= 1


def test_off_unless_asked_for(make: Make) -> None:
    for given, buckets, pools in (
        (None, 1, 1),
        ("30s", 0, 1),
        (timedelta(seconds=3), 0, 1),
        ({"buckets": "30s"}, 0, 1),
        ({"pools": "30s"}, 1, 0),
    ):
        meter = make([PLAN], refusal_cache=given, prefix=fresh_prefix())
        full(meter, "api", "credits")
        for name, requests in (("api", buckets), ("credits", pools)):
            assert not meter.consume("ana", name)
            assert asked(meter, lambda name=name: meter.consume("ana", name)) == requests, given  # noqa: B023


WRONG: list[Any] = ["", "soon", "0s", 1, 1.5, True, {}, {"bucket": "1s"}, {"pools": 1}, ["1s"]]


@pytest.mark.parametrize("given", WRONG, ids=repr)
def test_settings(make: Make, given: Any) -> None:
    with pytest.raises(PolicyError, match="refusal_cache"):
        make([PLAN], refusal_cache=given)


def test_larger_amounts(meter: AnyMeter) -> None:
    meter.consume("ana", "api", 3)
    assert not meter.consume("ana", "api", 3)
    assert asked(meter, lambda: meter.consume("ana", "api", 4)) == 0
    assert asked(meter, lambda: meter.consume("ana", {"api": 3})) == 1  # written otherwise
    assert asked(meter, lambda: meter.consume("ana", {"api": 9})) == 0
    # A pool that is reached as well might refuse a larger amount, which is another code.
    meter.consume("ana", "both", 2)
    assert meter.consume("ana", "both", 1).code == "RATE_LIMITED"
    assert meter.consume("ana", "both", 4).code == "USAGE_EXCEEDED"
    # Less may fit.
    assert meter.consume("ana", "api", 2)


def test_what_is_no_amount_or_subject_is_refused_as_ever(meter: AnyMeter) -> None:
    full(meter, "api")
    for _ in range(2):
        assert not meter.consume("ana", "api")
        assert not meter.consume("ana", {"api": 1})
    for amount in (True, 1.0, "1", None, -1, 10**15 + 1):
        with pytest.raises(PolicyError):
            meter.consume("ana", "api", amount)
        with pytest.raises(PolicyError):
            meter.consume("ana", {"api": amount})
    with pytest.raises(PolicyError):
        meter.consume("ana", {"api": 1}, 2)
    for subject in (["ana", ["x"]], {"ana"}, None, 5):
        with pytest.raises(PolicyError):
            meter.consume(subject, "api")
    with pytest.raises(PolicyError):
        meter.consume("ana", "api", join=["free"])
    with pytest.raises(PolicyError):
        meter.consume("ana", ["api"])
    meter.close()
    with pytest.raises(PolicyError, match="closed"):
        meter.consume("ana", "api")


def test_calls_with_an_id_or_a_wait_ask_the_server(meter: AnyMeter, clock: ManualClock) -> None:
    first = meter.consume("ana", "api", 5, op="x")
    assert first
    assert not meter.consume("ana", "api", 5)
    assert not meter.consume("ana", "api", 5)
    assert meter.consume("ana", "api", 5, op="x").replayed
    assert asked(meter, lambda: meter.consume("ana", "api", wait="1ms")) == 1


CHANGES: dict[str, Any] = {
    "refund": lambda m: m.refund("ana", "api", 1),
    "refund by id": lambda m: m.refund("ana", "api", 1, op="y"),
    "override": lambda m: m.override("ana", "api", limit=50),
    "adjust": lambda m: m.adjust("ana", "api", used=0),
    "subscribe": lambda m: m.subscribe("ana", limits=[Bucket("api", 50, "1m", algorithm="fixed")]),
    "forget": lambda m: m.forget("ana"),
    "apply": lambda m: m.apply(
        [Plan("free", includes=[Bucket("api", 50, "1m", algorithm="fixed")], default=True)]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("subject", ["ana", ("ana", "phone")], ids=["root", "below"])
def test_what_this_process_changes_is_forgotten(meter: AnyMeter, change: str, subject: Any) -> None:
    full(meter, "api", subject=subject)
    for _ in range(2):
        assert not meter.consume(subject, "api")
    CHANGES[change](meter)
    assert meter.consume(subject, "api")


def test_a_grant_that_is_void_is_shown_no_more(meter: AnyMeter) -> None:
    given = meter.grant("ana", "quota", 5)
    full(meter, "both")
    assert meter.consume("ana", "both")["quota"].granted == 5
    meter.void("ana", given.id)
    assert meter.consume("ana", "both")["quota"].granted == 0


def test_a_refund_in_a_batch(server: Server) -> None:
    with Meter(server.url, plans=[PLAN], prefix=fresh_prefix(), refusal_cache="30s") as meter:
        assert meter.consume("ana", "api", 5)
        assert not [meter.consume("ana", "api") for _ in range(3)][-1]
        with meter.pipeline() as p:
            p.refund("ana", "api", 2)
        assert meter.consume("ana", "api")
        assert [bool(one) for one in meter.consume_many([("ana", "api")] * 2)] == [True, False]


def test_a_charge_forgets_what_it_touches_and_no_more(meter: AnyMeter) -> None:
    full(meter, "api")
    meter.consume("ana", "burst", 1)
    assert not meter.consume("ana", "api")
    assert not meter.consume("ana", "burst", 3)
    assert meter.consume("ana", "credits")
    assert asked(meter, lambda: meter.consume("ana", "api")) == 0
    assert asked(meter, lambda: meter.consume("ana", "burst", 3)) == 0
    assert meter.consume("ana", "burst", 1)
    assert asked(meter, lambda: meter.consume("ana", "burst", 3)) == 1
    assert meter.consume("ana", "burst", 3)["burst"].remaining == 1


def test_another_plan_by_first_sight(make: Make) -> None:
    pro = Plan("pro", includes=[Bucket("api", 50, "1m", algorithm="fixed")])
    meter = make([PLAN, pro], refusal_cache="30s")
    assert not meter.consume("new", "api", 6)
    assert not meter.consume("new", "api", 6)
    assert meter.consume("new", "api", 6, join="pro")
    assert meter.consume("new", "api", 6)


def test_limiters_remember_too(meter: AnyMeter) -> None:
    one = meter.limiter("login", Bucket("ip", 2, "1m", algorithm="fixed"))
    two = meter.limiter("other", Bucket("ip", 5, "1m", algorithm="fixed"))
    assert one.consume("x", 2)
    assert two.consume("x", 2)
    assert not one.consume("x")
    assert asked(meter, lambda: one.consume("x")) == 0
    assert two.consume("x")
    assert meter.consume("x", "api")
    one.refund("x")
    assert one.consume("x")
    assert not one.consume("x")
    one.reset("x")
    assert one.consume("x")
    assert not one.consume("x", 2)
    again = meter.limiter("login", Bucket("ip", 2, "1m", algorithm="fixed"))
    again.refund("x")
    assert one.consume("x", 2)


def test_another_process_that_gives_back_is_seen_after_the_given_time(
    make: Make, clock: ManualClock
) -> None:
    meter, other = make([PLAN], refusal_cache="1s"), make(None)
    full(meter, "api")
    assert not meter.consume("ana", "api")
    other.refund("ana", "api", 3)
    clock.advance(milliseconds=999)
    assert not meter.consume("ana", "api")
    clock.advance(milliseconds=1)
    assert meter.consume("ana", "api")


def test_a_catalog_that_is_seen_to_have_changed(make: Make) -> None:
    meter, other = make([PLAN], refusal_cache="30s"), make(None)
    full(meter, "api")
    assert not meter.consume("ana", "api")
    other.apply([Plan("free", includes=[Bucket("api", 50, "1m", algorithm="fixed")], default=True)])
    look_again(meter)
    meter.check("bob", "api")
    assert meter.consume("ana", "api")


def test_a_test_clock_that_goes_back(meter: AnyMeter, clock: ManualClock) -> None:
    full(meter, "api")
    assert not meter.consume("ana", "api")
    clock.advance(seconds=-5)
    assert asked(meter, lambda: meter.consume("ana", "api")) == 1
    clock.advance(seconds=5)
    assert asked(meter, lambda: meter.consume("ana", "api")) == 0


def test_the_observer_hears_of_it(make: Make) -> None:
    seen: list[Any] = []
    meter = make(
        [PLAN], refusal_cache="30s", observer=lambda *call: seen.append((*call[:3], call[3] >= 0))
    )
    full(meter, "api")
    seen.clear()
    for _ in range(3):
        meter.consume("ana", "api")
    assert seen == [("consume", "ana", "RATE_LIMITED", True)] * 3


def test_real_time(server: Server) -> None:
    """On the server's clock: never refused from memory once the server would allow."""
    plan = Plan("free", includes=[Bucket("api", 20, "1s", algorithm="token")], default=True)
    with Meter(server.url, plans=[plan], prefix=fresh_prefix(), refusal_cache="10s") as meter:
        before = monotonic()
        decision = meter.consume("ana", "api", 20)
        after = asked = monotonic()
        allowed = refused = 0
        while asked < after + 1.5 or decision:
            asked = monotonic()
            decision = meter.consume("ana", "api")
            if decision:
                allowed += 1
            else:
                refused += 1
                assert 0 < (decision.retry_after or 0) <= 0.051
                if refused % 5 == 0:
                    sleep(decision.retry_after or 0)
        # One comes every 50 ms, and as long is a refusal remembered.
        assert 20 * (asked - after) - 3 <= allowed <= 20 * (monotonic() - before)


def test_a_refund_whose_outcome_is_unknown(server: Server) -> None:
    with (
        FaultProxy(server) as proxy,
        Meter(
            proxy.url, plans=[PLAN], prefix=fresh_prefix(), refusal_cache="30s", timeout=0.5
        ) as meter,
    ):
        meter.consume("ana", "api", 5)
        assert not meter.consume("ana", "api")
        assert not meter.consume("ana", "api")
        proxy.next(faulty.CUT_AFTER)
        with pytest.raises(OutcomeUnknown):
            meter.refund("ana", "api", 2)
        assert meter.consume("ana", "api")


def test_refunds_and_refusals_of_many_threads(server: Server) -> None:
    """Whoever gave back is never told by memory that nothing is there."""
    plan = Plan("free", includes=[Bucket("api", 1, "1h", algorithm="fixed")], default=True)
    with Meter(
        server.url, plans=[plan], prefix=fresh_prefix(), refusal_cache="1h", timeout=30
    ) as meter:
        wrong: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                for number in range(4):
                    meter.check(f"s{number}", "api")

        def take_and_give(subject: str) -> None:
            for _ in range(150):
                if not meter.consume(subject, "api"):
                    wrong.append(subject)
                meter.refund(subject, "api")

        asking = [threading.Thread(target=ask) for _ in range(4)]
        giving = [threading.Thread(target=take_and_give, args=(f"s{n}",)) for n in range(4)]
        for thread in (*asking, *giving):
            thread.start()
        for thread in giving:
            thread.join()
        stop.set()
        for thread in asking:
            thread.join()
        assert wrong == []


def test_it_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterd.refusals.SIZE", 50)
    meter = make([PLAN], refusal_cache="30s")
    assert SIZE == 16_384
    most = 0
    for number in range(120):
        assert not meter.consume(f"s{number}", "api", 6)
        most = max(most, len(meter.raw._refusals))
    assert 40 <= most <= 50


def test_spans() -> None:
    assert spans(None) is None
    assert spans("2s") == (2000, 0)
    assert spans({"pools": "200ms"}) == (0, 200)
    assert Refusals.__doc__
