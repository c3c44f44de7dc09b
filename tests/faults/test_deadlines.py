"""`timeout` bounds a call as a whole, whatever it does first. No waiting: the clock is ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meterd import Meter, OutcomeUnknown, Unavailable
from meterd.flow import Flow, Nodes, Sleep
from meterd.transport import MaybeSent, NotSent
from tests.faults.fault_tools import CREDITS
from tests.support.servers import Server

TIMEOUT = 1.0


class Clock:
    """What the client believes the time to be; steps move it, nothing waits."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def swallow(self, flow: Flow[Any], spent: float = 1.0, error: Any = MaybeSent) -> float:
        """Every attempt ends without an answer after `spent` of its time; how long it all took."""
        began = self.now
        try:
            step = next(flow)
            while True:
                if type(step) is Sleep:
                    self.now += step.seconds
                    step = flow.send(None)
                    continue
                self.now += (TIMEOUT if type(step) is Nodes else step.timeout) * spent
                step = flow.throw(error("swallowed"))
        except (Unavailable, OutcomeUnknown):
            return self.now - began


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("session", "store", "operations"):
        fake = SimpleNamespace(monotonic=lambda: made.now, time=time.time)
        monkeypatch.setattr(f"meterd.{module}.time", fake)
    return made


@pytest.fixture
def meter(server: Server, prefix: str, clock: Clock) -> Iterator[Meter]:
    with Meter(server.url, plans=[CREDITS], prefix=prefix, timeout=TIMEOUT) as made:
        made.consume("seen", "credits")
        yield made


FLOWS = {
    "check": lambda m: m._operations.charge("check", "seen", "credits", 1, None, None, 0),
    "consume": lambda m: m._operations.charge("consume", "seen", "credits", 1, None, None, 0),
    "consume-op": lambda m: m._operations.charge("consume", "seen", "credits", 1, "x", None, 0),
    "usage": lambda m: m._administration.usage("seen", None),
    "subscribe": lambda m: m._subscriptions.subscribe(
        "seen", "credits", (), "keep", "now", None, None
    ),
    "override": lambda m: m._administration.override("seen", "credits", None, False, {"limit": 1}),
    "adjust": lambda m: m._administration.adjust("seen", "credits", 1),
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("state", ["warm", "unopened", "refresh due", "policy unknown"])
def test_a_silent_server_costs_one_timeout(
    meter: Meter, clock: Clock, flow: str, state: str
) -> None:
    if state == "refresh due":
        clock.now += 60
    elif state == "unopened":
        meter._store.ready = False
    elif state == "policy unknown":
        meter._store._stored.clear()
    took = clock.swallow(FLOWS[flow](meter))
    assert took <= TIMEOUT + 0.05


@pytest.mark.parametrize("flow", FLOWS)
def test_a_server_that_hangs_up_at_once_is_asked_until_the_deadline(
    meter: Meter, clock: Clock, flow: str
) -> None:
    meter._session.timeout = 60.0  # long enough for a backoff to grow out of bounds
    took = clock.swallow(FLOWS[flow](meter), spent=0.0)
    assert took == (0.0 if flow == "consume" else pytest.approx(60.0, abs=0.05))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_server_that_refuses_connections_is_not_waited_for(
    meter: Meter, clock: Clock, flow: str
) -> None:
    assert clock.swallow(FLOWS[flow](meter), spent=0.0, error=NotSent) == 0.0
