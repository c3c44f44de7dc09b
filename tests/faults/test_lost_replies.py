"""Replies that are lost, late, cut or doubled: what was charged, and what the caller is told.

The proxy decides what happens to each request, a second meter without a proxy looks at the balance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meterd import Bucket, Meter, OpNotFound, OutcomeUnknown, Plan, Pool, Unavailable
from tests.faults.fault_tools import (
    CREDITS,
    EVERY_WAY,
    LOSING,
    PLENTY,
    Workshop,
    allowing,
    certain,
    patience,
    used,
)
from tests.support import proxy as faulty
from tests.support.proxy import Fault, FaultProxy
from tests.support.servers import Server

HARMLESS = (faulty.DUPLICATE, faulty.TRICKLE, faulty.delay(5))


# --- One fault at a time


@EVERY_WAY
@pytest.mark.parametrize("fault", [*LOSING, *HARMLESS], ids=lambda fault: fault.kind)
def test_one_fault(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    waiting = fault in (faulty.DROP, faulty.STALL)  # for what never comes
    meter = either(proxy.url, prefix=prefix, timeout=patience(fault))
    verbs = {"consume": 107} if waiting else {"consume": 107, "report": 107, "refund": 93}
    for verb in verbs:
        getattr(meter, verb)("acme", "credits")  # from here on each is one request
    for verb, after in verbs.items():
        direct.adjust(verb, "credits", used=100)
        call = getattr(meter, verb)
        proxy.next(fault)
        first = certain(verb, lambda v=verb, c=call: c(v, "credits", 7, op=v))
        assert (first["credits"].used, first["credits"].applied) == (after, 7)
        assert first.replayed == (fault in LOSING and fault != faulty.CUT_BEFORE)
        again = certain(verb, lambda v=verb, c=call: c(v, "credits", 7, op=v))
        assert again.replayed
        assert again.limits == first.limits
        assert used(direct, verb) == after

        direct.adjust(verb, "credits", used=100)
        proxy.next(fault)
        if fault in HARMLESS:
            assert call(verb, "credits", 7)["credits"].applied == 7
        else:
            with pytest.raises(OutcomeUnknown) as caught:
                call(verb, "credits", 7)
            assert caught.value.op is None
        assert used(direct, verb) == (100 if fault == faulty.CUT_BEFORE else after)

    for ask in (meter.usage, lambda subject: meter.check(subject, "credits")):
        ask("seen")
        proxy.next(fault)
        assert ask("seen")["credits"].used == 0
    assert proxy.stats[fault.kind] == 2 * len(verbs) + 2


@EVERY_WAY
@pytest.mark.parametrize("fault", [*LOSING, *HARMLESS], ids=lambda fault: fault.kind)
def test_an_operation_is_given_back_once(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    """Whatever is lost, with an id of its own or without."""
    meter = either(proxy.url, prefix=prefix, timeout=patience(fault))
    meter.consume("acme", "credits", 100, op="seen")
    meter.refund("acme", of="seen")  # from here on each is one request
    meter.operation("acme", "seen")
    meter.consume("acme", "credits", 100)
    for op, own in (("a", None), ("b", "back")):
        direct.consume("acme", "credits", 7, op=op)
        proxy.next(fault)
        first = certain(op, lambda o=op, w=own: meter.refund("acme", of=o, op=w))
        assert (first["credits"].used, first["credits"].applied) == (100, 7)
        assert first.replayed == (fault in LOSING and fault != faulty.CUT_BEFORE)
        assert certain(op, lambda o=op: meter.refund("acme", of=o)).replayed
        assert used(direct, "acme") == 100
        proxy.next(fault)
        assert meter.operation("acme", op).refunded
    assert proxy.stats[fault.kind] == 4


@EVERY_WAY
@pytest.mark.parametrize("fault", [faulty.CUT_BEFORE, faulty.CUT_AFTER], ids=lambda f: f.kind)
def test_an_unknown_outcome_is_looked_up(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=1)
    meter.consume("acme", "credits", 5)
    sent: list[int] = []

    def losing(index: int) -> Fault:
        sent.append(index)
        return fault if len(sent) == 1 else faulty.CUT_BEFORE

    proxy.faults = losing
    with pytest.raises(OutcomeUnknown) as caught:
        meter.consume("acme", "credits", 7, op="lost")
    with pytest.raises(Unavailable):
        meter.operation("acme", "lost")
    proxy.calm()
    assert caught.value.op == "lost"
    if fault == faulty.CUT_BEFORE:
        with pytest.raises(OpNotFound):
            meter.operation("acme", "lost")
        assert used(direct, "acme") == 5
    else:
        assert meter.operation("acme", "lost").decision["credits"].applied == 7
        assert used(direct, "acme") == 12


@EVERY_WAY
def test_a_refund_that_nobody_answers(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=1)
    for op in ("seen", "x"):
        meter.consume("acme", "credits", 7, op=op)
    meter.refund("acme", of="seen")  # so that the server has the script
    proxy.faults = lambda index: faulty.CUT_AFTER
    with pytest.raises(OutcomeUnknown, match="giving 'x' back again is safe"):
        meter.refund("acme", of="x")
    proxy.calm()
    assert meter.refund("acme", of="x").replayed
    assert used(direct, "acme") == 0


@EVERY_WAY
def test_nothing_comes_back_at_all(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=1.5)
    meter.open()
    meter.consume("acme", "credits", 5)
    proxy.faults = lambda index: faulty.CUT_AFTER
    for ask in (meter.usage, lambda subject: meter.check(subject, "credits")):
        with pytest.raises(Unavailable):
            ask("acme")
    with pytest.raises(OutcomeUnknown) as caught:
        meter.consume("acme", "credits", 7, op="lost")
    assert caught.value.op == "lost"
    proxy.calm()
    first = meter.consume("acme", "credits", 7, op="lost")
    assert first.replayed
    assert first["credits"].used == 12
    assert used(direct, "acme") == 12


# --- What is set


ROLLING = Plan("rolling", includes=[Pool("credits", 100, reset="month", rollover=10_000)])


@EVERY_WAY
@pytest.mark.parametrize("fault", [faulty.CUT_BEFORE, faulty.CUT_AFTER], ids=lambda f: f.kind)
def test_a_period_is_closed_once(
    proxy: FaultProxy, matrix_server: Server, either: Workshop, prefix: str, fault: Fault
) -> None:
    """Every reset brings the unused hundred along, so the remainder counts them."""
    meter = either(proxy.url, prefix=prefix, plans=[ROLLING], timeout=2)
    meter.subscribe("acme", "rolling")

    def remaining() -> int:
        return int(meter.usage("acme")["credits"].remaining)

    proxy.next(fault)
    meter.subscribe("acme", "rolling", change="reset", op="one")
    assert remaining() == 200
    proxy.next(faulty.PASS, fault)  # the first script says what record it found
    with pytest.raises(OutcomeUnknown):
        meter.subscribe("acme", "rolling", change="reset")
    assert remaining() == (200 if fault == faulty.CUT_BEFORE else 300)


@EVERY_WAY
@pytest.mark.parametrize("fault", [faulty.CUT_BEFORE, faulty.CUT_AFTER], ids=lambda f: f.kind)
def test_what_is_set_is_set_whatever_is_lost(
    proxy: FaultProxy, either: Workshop, prefix: str, fault: Fault
) -> None:
    add_on = Plan("add-on", group="extra", includes=[allowing("fixed", 5)])
    meter = either(proxy.url, prefix=prefix, plans=[CREDITS, add_on], timeout=2)
    meter.consume("acme", "credits", 3)

    def losing(call: Callable[[], Any]) -> None:
        """The call with a fault at each of its first requests in turn."""
        for at in range(5):
            proxy.stats.clear()
            proxy.next(*[faulty.PASS] * at, fault)
            call()
            assert at or proxy.stats[fault.kind]
            proxy.calm()

    losing(lambda: meter.adjust("acme", "credits", used=50))
    assert used(meter, "acme") == 50
    losing(lambda: meter.override("acme", "credits", limit=60))
    assert meter.usage("acme")["credits"].remaining == 10
    losing(lambda: meter.set_meta("acme", {"a": 1}))
    assert meter.meta("acme") == {"a": 1}
    meter.subscribe("acme", "add-on")
    losing(lambda: meter.unsubscribe("acme", "add-on"))
    assert not [limit for limit in meter.usage("acme").limits if limit.name == "calls"]
    losing(lambda: meter.override("acme", "credits", clear=True))
    assert meter.usage("acme")["credits"].limit == PLENTY
    losing(lambda: meter.forget("acme"))
    assert used(meter, "acme") == 0
    assert meter.meta("acme") == {}


@EVERY_WAY
def test_a_private_plan_is_taken_away_whatever_is_lost(
    proxy: FaultProxy, either: Workshop, prefix: str
) -> None:
    meter = either(proxy.url, prefix=prefix, plans=[CREDITS], timeout=2)
    for at in range(4):
        subject = f"acme-{at}"
        meter.subscribe(subject, limits=[allowing("fixed", 5)])
        proxy.next(*[faulty.PASS] * at, faulty.CUT_AFTER)
        meter.unsubscribe(subject, "private")
        proxy.calm()
        assert "calls" not in [limit.name for limit in meter.usage(subject).limits]


@EVERY_WAY
def test_a_limiter_counts_once(proxy: FaultProxy, either: Workshop, prefix: str) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=2)
    login = meter.meter.limiter("login", Bucket("ip", 1000, "366d", algorithm="fixed"))
    proxy.random(7, {faulty.CUT_BEFORE: 0.1, faulty.CUT_AFTER: 0.2, faulty.CUT_MID_REPLY: 0.1})
    for index in range(100):
        pending = certain(
            f"op-{index}",
            lambda i=index: meter.awaited(login.consume("1.2.3.4", op=f"op-{i}")),
        )
        assert pending["ip"].used == index + 1
    assert proxy.stats["cut_after"] > 5
