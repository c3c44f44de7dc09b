"""Buckets that say what to answer without a server; pools, and unknown outcomes, never do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meterd import Bucket, Decision, Flag, OutcomeUnknown, Plan, Pool, Unavailable
from tests.faults.fault_tools import Workshop
from tests.support import proxy as faulty
from tests.support import servers
from tests.support.proxy import Fault, FaultProxy
from tests.support.servers import Server

NOWHERE = "redis://127.0.0.1:1"
PLANS = [
    Plan(
        "base",
        default=True,
        includes=[
            Bucket("open", 100, "1h", on_error="allow"),
            Bucket("shut", 100, "1h", on_error="deny"),
            Bucket("loud", 100, "1h"),
            Pool("credits", 100),
            Pool("both", 100, rates={"both": 1, "mixed": 1}),
            Bucket("mixed", 100, "1h", on_error="allow"),
            Flag("sso"),
        ],
    ),
    Plan("other", includes=[Bucket("open", 5, "1m", on_error="allow")]),
]
ANSWERS: dict[str, Any] = {
    "open": True,
    "shut": False,
    "loud": None,
    "credits": None,
    "both": None,
    "mixed": None,  # a pool charges it, too
    "sso": None,
    "unheard-of": None,
}
MIXES: list[tuple[dict[str, int], bool | None]] = [
    ({"open": 1, "shut": 1}, False),
    ({"open": 1, "loud": 1}, None),
    ({"open": 1, "credits": 1}, None),
    ({"shut": 1, "credits": 0}, None),
    ({"open": 1, "sso": 1}, None),
    ({"open": 1, "unheard-of": 1}, None),
    ({"open": 10**15, "mixed": 1}, None),
    ({"open": 1}, True),
]


def answer(call: Callable[[], Decision]) -> bool | None:
    """What a call says without a server; None: it raises `Unavailable`."""
    try:
        decision = call()
    except Unavailable:
        return None
    assert decision.degraded
    assert decision.limits == ()
    assert decision.code == ("OK" if decision else "RATE_LIMITED")
    assert decision.retry_after is None
    assert not decision.replayed
    return bool(decision)


def expect_answers(meter: Any) -> None:
    for name, expected in ANSWERS.items():
        for op in (None, "x"):
            found = answer(lambda n=name, o=op: meter.consume("acme", n, op=o))
            assert found is expected, (name, op)
        assert answer(lambda n=name: meter.check("acme/team", n)) is expected, name
        # What has to be recorded, or given back, is not done by saying so.
        for verb in ("report", "refund"):
            assert answer(lambda n=name, v=verb: getattr(meter, v)("acme", n)) is None
    for costs, expected in MIXES:
        assert answer(lambda c=costs: meter.consume("acme", c)) is expected, costs


def test_a_server_that_was_never_there(either: Workshop) -> None:
    expect_answers(either(NOWHERE, plans=PLANS, timeout=5))


def test_plans_unknown_is_no_answer(either: Workshop) -> None:
    meter = either(NOWHERE, timeout=5)
    assert answer(lambda: meter.consume("acme", "open")) is None


@pytest.fixture
def own() -> Iterator[Server]:
    with servers.start() as started:
        yield started


def test_a_server_that_went_away(own: Server, either: Workshop) -> None:
    either(own.url, plans=PLANS, timeout=20).open()
    meter = either(own.url, timeout=20)  # which knows the plans from the store alone
    assert not meter.consume("acme", "open").degraded
    own.kill()
    expect_answers(meter)
    own.restart()
    either(own.url, plans=PLANS, timeout=20).open()
    decision = meter.consume("acme", "open", op="x")
    assert not decision.degraded
    assert decision["open"].used == 1


def test_a_full_server(own: Server, either: Workshop) -> None:
    meter = either(own.url, plans=PLANS, timeout=20)
    meter.open()
    meter.consume("acme", "open", 3)
    own.ask("CONFIG", "SET", "maxmemory", 1)
    for name, expected in ANSWERS.items():
        if name not in ("unheard-of", "sso"):  # decided without writing anything
            assert answer(lambda n=name: meter.consume("unseen", n)) is expected, name
    # It can still be asked.
    assert meter.check("acme", "open")["open"].used == 3
    own.ask("CONFIG", "SET", "maxmemory", 0)
    assert meter.usage("acme")["open"].used == 3


def test_a_private_pool_does_not_fail_open_either(own: Server, either: Workshop) -> None:
    """The catalog says bucket; a subject's own plan says that the same name costs credits, too."""
    meter = either(own.url, plans=[PLANS[1]], timeout=20)
    meter.subscribe("acme", limits=[Pool("own", 5, rates={"open": 1})])
    meter.consume("acme", "open", 5)
    own.kill()
    assert answer(lambda: meter.consume("acme", "open")) is None


def test_a_private_pool_that_another_process_made(own: Server, either: Workshop) -> None:
    """Whoever opens the store learns which names it must not answer for by itself."""
    maker = either(own.url, plans=[PLANS[1]], timeout=20)
    maker.subscribe("acme", limits=[Pool("own", 5, rates={"open": 1})])
    other = either(own.url, plans=[PLANS[1]], timeout=20)
    other.usage("somebody")
    own.kill()
    assert answer(lambda: other.consume("acme", "open")) is None


def test_a_limiter(either: Workshop) -> None:
    for on_error, expected in (("allow", True), ("deny", False), ("raise", None)):
        meter = either(NOWHERE, timeout=5)
        login = meter.meter.limiter(
            "login",
            Bucket("ip", 5, "1m", on_error=on_error),
            Bucket("b", 9, "1h", on_error="allow"),
        )
        assert answer(lambda m=meter, x=login: m.awaited(x.consume("1.2.3.4"))) is expected
        assert answer(lambda m=meter, x=login: m.awaited(x.check("1.2.3.4"))) is expected


# --- An unknown outcome is never an answer


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as started:
        yield started


@pytest.mark.parametrize("name", ["open", "shut"])
def test_an_unknown_outcome_is_raised(
    proxy: FaultProxy, either: Workshop, prefix: str, name: str
) -> None:
    meter = either(proxy.url, plans=PLANS, prefix=prefix, timeout=5)
    assert meter.consume("acme", name)
    for fault in (faulty.CUT_BEFORE, faulty.CUT_AFTER, faulty.CUT_MID_REPLY):
        proxy.next(fault)
        with pytest.raises(OutcomeUnknown):
            meter.consume("acme", name)
    meter.hurry(0.12)
    proxy.partition(True)
    for op in (None, "x"):
        with pytest.raises(OutcomeUnknown) as caught:
            meter.consume("acme", name, op=op)
        assert caught.value.op == op
    # Nothing is lost by asking, so a check may be answered.
    assert answer(lambda: meter.check("acme", name)) is ANSWERS[name]
    assert answer(lambda: meter.check("acme", "credits")) is None


def test_lost_and_then_down_is_unknown(
    proxy: FaultProxy, server: Server, either: Workshop, prefix: str
) -> None:
    """The first attempt may have been applied, even though the others never left."""
    meter = either(proxy.url, plans=PLANS, prefix=prefix, timeout=5)
    direct = either(server.url, prefix=prefix, timeout=20)
    meter.consume("acme", "open")
    meter.hurry(0.2)
    listening = proxy.path

    def vanish(index: int) -> Fault:
        os.rename(listening, listening + "-away")
        return faulty.CUT_AFTER

    proxy.faults = vanish
    with pytest.raises(OutcomeUnknown) as caught:
        meter.consume("acme", "open", op="lost")
    assert caught.value.op == "lost"
    assert direct.usage("acme")["open"].used == 2
    # Nothing leaves this process now, so nothing is unknown.
    assert answer(lambda: meter.consume("acme", "open", op="lost")) is True
    assert answer(lambda: meter.consume("acme", "loud", op="lost")) is None
    os.rename(listening + "-away", listening)
    proxy.calm()
    meter.hurry(20)
    decision = meter.consume("acme", "open", op="lost")
    assert decision.replayed
    assert not decision.degraded
