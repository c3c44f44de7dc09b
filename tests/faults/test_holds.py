"""Holds under faults: lost replies charge once, and what is abandoned comes back, once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meterd import Bucket, Meter, OutcomeUnknown, Plan, Pool, Slots
from meterd.testing import ManualClock
from tests.faults.fault_tools import EVERY_WAY, LOSING, Driven, Workshop, certain, patience
from tests.support import proxy as faulty
from tests.support.proxy import Fault, FaultProxy
from tests.support.servers import Server

PLANS = [
    Plan(
        "base",
        default=True,
        includes=[
            Slots("jobs", 10_000),
            Pool("credits", 10**9, "month"),
            Bucket("calls", 10**6, "366d", algorithm="fixed"),
        ],
    )
]
COSTS = {"jobs": 1, "credits": 5, "calls": 1}
HARMLESS = (faulty.DUPLICATE, faulty.TRICKLE, faulty.delay(5))


def used(meter: Any, subject: str = "acme") -> tuple[int, int, int]:
    found = meter.usage(subject)
    return found["jobs"].used, found["credits"].used, found["calls"].used


@pytest.fixture
def holds_at(matrix_server: Server, prefix: str) -> Any:
    made = Meter(matrix_server.url, plans=PLANS, prefix=prefix, timeout=20)
    with made:
        yield made


def finish(meter: Driven, hold: Any, way: str, *args: Any) -> Any:
    return meter.awaited(getattr(hold, way)(*args))


@EVERY_WAY
@pytest.mark.parametrize("fault", [*LOSING, *HARMLESS], ids=lambda fault: fault.kind)
def test_one_fault(
    proxy: FaultProxy, holds_at: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=patience(fault))
    for way, *args in (("renew", 60), ("commit",), ("release",)):
        finish(meter, meter.reserve("other", COSTS), way, *args)  # from here on one request each
    finish(meter, meter.reserve("acme", COSTS), "release")  # and its record is in the index

    proxy.next(fault)
    hold = certain("r", lambda: meter.reserve("acme", COSTS, op="r"))
    assert hold.decision.replayed == (fault in LOSING and fault != faulty.CUT_BEFORE)
    assert used(holds_at) == (1, 5, 1)
    proxy.next(fault)
    finish(meter, hold, "renew", 120)
    proxy.next(fault)
    decision = finish(meter, hold, "commit", {"credits": 7})
    assert (decision["credits"].used, decision["credits"].applied) == (7, 7)
    assert decision.replayed == (fault in LOSING and fault != faulty.CUT_BEFORE)
    assert used(holds_at) == (0, 7, 1)

    hold = meter.reserve("acme", COSTS)
    proxy.next(fault)
    finish(meter, hold, "release")
    assert used(holds_at) == (0, 7, 1)

    # Without an operation id it is not repeated, and says where to look.
    proxy.next(fault)
    if fault in HARMLESS:
        finish(meter, meter.reserve("acme", COSTS), "release")
    else:
        with pytest.raises(OutcomeUnknown, match=r"is hold '(.*)', which ends by itself") as caught:
            meter.reserve("acme", COSTS)
        assert caught.value.op is None
        held = 0 if fault == faulty.CUT_BEFORE else 1
        assert used(holds_at)[0] == held
        hold_id = str(caught.value).split("hold '")[1].split("'")[0]
        finish(meter, meter.meter.hold("acme", hold_id), "release")
    assert used(holds_at) == (0, 7, 1)


@EVERY_WAY
def test_everything_at_random(
    proxy: FaultProxy, holds_at: Meter, either: Workshop, prefix: str
) -> None:
    """Whatever gets lost, every hold is charged by what was said of it, once."""
    meter = either(proxy.url, prefix=prefix, timeout=5)
    meter.reserve("other", COSTS)
    choice = random.Random(7)
    rates = {faulty.CUT_AFTER: 0.1, faulty.CUT_BEFORE: 0.1, faulty.CUT_MID_REPLY: 0.1}
    proxy.random(7, rates)
    jobs = credits = calls = 0
    for n in range(120):
        op = f"job-{n}"
        hold = certain(op, lambda op=op: meter.reserve("acme", COSTS, op=op, ttl="1h"))
        way = choice.choice(["commit", "release", "keep"])
        if way == "commit":
            amount = choice.randrange(9)
            certain(op, lambda h=hold, a=amount: finish(meter, h, "commit", {"credits": a}))
            credits, calls = credits + amount, calls + 1
        elif way == "release":
            certain(op, lambda h=hold: finish(meter, h, "release"))
        else:
            jobs, credits, calls = jobs + 1, credits + 5, calls + 1
    proxy.calm()
    assert used(holds_at) == (jobs, credits, calls)
    assert holds_at.usage("acme").levels[0].open_holds == jobs


def test_what_is_abandoned_comes_back_once(server: Server, prefix: str) -> None:
    """A thousand holds, some finished, some not, looked at while they expire one by one."""
    clock = ManualClock()
    choice = random.Random(11)
    with Meter(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=20) as meter:
        start = clock.now_ms
        open_until: list[int] = []
        credits = 0
        for _ in range(1000):
            clock.advance(milliseconds=choice.randrange(3))
            ttl = choice.randrange(10_000, 60_000)
            hold = meter.reserve("acme", COSTS, ttl=ttl / 1000)
            fate = choice.random()
            if fate < 0.2:
                amount = choice.randrange(9)
                hold.commit({"credits": amount})
                credits += amount
            elif fate < 0.4:
                hold.release()
            else:
                open_until.append(clock.now_ms + ttl)
        assert len(open_until) > 500
        for second in range(64):
            at = start + 3000 + second * 1000
            clock.advance(milliseconds=max(0, at - clock.now_ms))
            if choice.random() < 0.5:  # somebody writes, or only looks
                meter.report("acme", "credits")
                credits += 1
            left = sum(until > clock.now_ms for until in open_until)
            jobs, used_credits, _ = used(meter)
            assert (jobs, used_credits) == (left, credits + 5 * left)
            assert meter.usage("acme").levels[0].open_holds == left
        assert left == 0
        # Late finishers change nothing twice.
        assert used(meter)[:2] == (0, credits)


def test_whoever_finishes_late_takes_nothing_back(server: Server, prefix: str) -> None:
    clock = ManualClock()
    with Meter(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=20) as meter:
        holds = [meter.reserve("acme", COSTS, ttl=10) for _ in range(100)]
        clock.advance(seconds=10)
        for hold in holds[:50]:
            hold.release()
        assert used(meter) == (0, 0, 0)
        for hold in holds[50:]:
            hold.commit({"credits": 2})
        assert used(meter) == (0, 100, 50)
