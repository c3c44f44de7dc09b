"""`wait=`: exactly `retry_after`, while that stays within it, and never a charge twice.

The test's clock moves by what the meter sleeps, so nothing waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meterd import Bucket, Meter, Plan, PolicyError, Pool, Unavailable
from meterd.flow import Flow, Sleep
from meterd.testing import ManualClock
from meterd.transport import MaybeSent, NotSent
from tests.support.servers import Server

PLAN = Plan(
    "p",
    default=True,
    includes=[
        Bucket("fixed", 3, "10s", algorithm="fixed"),
        Bucket("sliding", 10, "10s"),
        Bucket("token", 5, "10s", algorithm="token"),
        Pool("credits", 100, reset="hour"),
        Pool("once", 10),
    ],
)


class Story:
    """Carries flows out on a real server; keeps what they slept; loses replies on demand."""

    def __init__(self, meter: Meter, clock: ManualClock) -> None:
        self.meter = meter
        self.clock = clock
        self.now = time.monotonic()
        self.slept: list[float] = []
        self.sent = 0
        self.lose: set[int] = set()  # replies, by number
        self.down_after: int | None = None

    def consume(self, name: str, amount: int = 1, *, wait: Any, op: str | None = None) -> Any:
        self.slept, self.sent = [], 0
        operations = self.meter._operations
        flow = operations.charge("consume", "acme", name, amount, op, None, wait)
        return self.carry_out(flow)

    def carry_out(self, flow: Flow[Any]) -> Any:
        try:
            step = next(flow)
            while True:
                if type(step) is Sleep:
                    if not self.lose:  # else it is the short pause before another attempt
                        self.slept.append(step.seconds)
                    self.clock.advance(seconds=step.seconds)
                    self.now += step.seconds
                    step = flow.send(None)
                    continue
                self.sent += 1
                if self.down_after is not None and self.sent > self.down_after:
                    step = flow.throw(NotSent("down"))
                    continue
                reply = self.meter._transport.send(step.request, 20)
                if self.sent in self.lose:
                    self.lose.discard(self.sent)
                    step = flow.throw(MaybeSent("lost"))
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            return stop.value


@pytest.fixture
def story(server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    clock = ManualClock(1_700_000_000_123)
    with Meter(server.url, plans=[PLAN], prefix=prefix, clock=clock, timeout=20) as meter:
        meter.check("acme", "credits")
        made = Story(meter, clock)
        for module in ("session", "operations"):
            fake = SimpleNamespace(monotonic=lambda: made.now, time=time.time)
            monkeypatch.setattr(f"meterd.{module}.time", fake)
        yield made


@pytest.mark.parametrize("name", ["fixed", "sliding", "token", "credits"])
def test_it_sleeps_exactly_retry_after(story: Story, name: str) -> None:
    limit = story.meter.usage("acme")[name].limit
    assert story.consume(name, limit, wait=0)
    story.clock.advance(milliseconds=1234)
    refused = story.meter.check("acme", name)
    assert not refused
    decision = story.consume(name, wait=4000)
    assert decision
    assert story.slept == [refused.retry_after]
    # The period that the pool slept through is told of, which takes the partition's keys.
    assert story.sent == (3 if name == "credits" else 2)


def test_it_does_not_sleep_longer_than_it_may(story: Story) -> None:
    story.consume("fixed", 3, wait=0)
    pause = story.meter.check("acme", "fixed").retry_after
    for too_short in (0, pause - 0.001):
        decision = story.consume("fixed", wait=too_short)
        assert not decision
        assert decision.retry_after == pause
        assert story.slept == []
        assert story.sent == 1
    assert story.consume("fixed", wait=pause + 0.001)
    assert story.slept == [pause]


def test_it_does_not_sleep_for_what_never_comes(story: Story) -> None:
    story.consume("once", 10, wait=0)
    for name, amount in (("once", 1), ("fixed", 4), ("unheard-of", 1)):
        assert not story.consume(name, amount, wait=10**6)
        assert story.slept == []


def test_somebody_else_takes_it_meanwhile(story: Story) -> None:
    """Refused again after the pause, it sleeps again, as long as all of it stays within `wait`."""
    story.consume("token", 5, wait=0)
    advance, turns = story.clock.advance, [2, 2, 2]

    def advance_and_take(**delta: Any) -> None:
        advance(**delta)
        if turns:
            story.meter.consume("acme", "token", turns.pop() // 2)

    story.clock.advance = advance_and_take  # type: ignore[method-assign]
    assert story.consume("token", wait=60)
    assert story.slept == [2.0] * 4  # 5 tokens in 10 s: one in 2 s
    turns[:] = [2] * 100
    story.consume("token", 0, wait=0)
    refused = story.consume("token", wait=7)
    assert not refused
    assert story.slept == [2.0] * 3


def test_one_charge_however_often_it_asks(story: Story) -> None:
    story.consume("fixed", 3, wait=0)
    story.lose = {2}  # the answer that came after the pause
    decision = story.consume("fixed", wait=20, op="op-1")
    assert decision.replayed
    assert story.sent == 3
    assert decision["fixed"].used == 1
    assert story.meter.usage("acme")["fixed"].used == 1
    again = story.consume("fixed", wait=20, op="op-1")
    assert again.replayed
    assert story.meter.usage("acme")["fixed"].used == 1


def test_the_server_dies_while_it_sleeps(story: Story) -> None:
    story.consume("fixed", 3, wait=0)
    story.down_after = 1
    with pytest.raises(Unavailable):
        story.consume("fixed", wait=20)
    assert len(story.slept) == 1


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "soon", True, None])
def test_what_is_no_time_to_wait(story: Story, wait: Any) -> None:
    with pytest.raises(PolicyError, match="wait"):
        story.consume("fixed", wait=wait)
    assert story.sent == 0
