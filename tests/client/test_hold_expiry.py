"""Whoever touches a record next gives back what expired there: every verb, at either level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meterd import OpConflict, Plan, Pool, Slots
from meterd.testing import ManualClock
from tests.client.hold_tools import known, reserve
from tests.client.meter_tools import AnyMeter, Make, requests_of

LIMITS = [Slots("jobs", 10), Pool("credits", 1000, "month"), Pool("tokens", 1000)]
PLANS = [
    Plan("base", includes=LIMITS, default=True),
    Plan("more", includes=[Pool("extra", 5)], group="addon"),
]
ANA = "acme/ana"

VERBS: dict[str, Callable[[AnyMeter], Any]] = {
    "check": lambda m: m.check(ANA, "credits"),
    "consume": lambda m: m.consume(ANA, "tokens"),
    "consume, refused": lambda m: m.consume(ANA, "tokens", 2000),
    "consume with an id": lambda m: m.consume(ANA, "tokens", op="x"),
    "report": lambda m: m.report(ANA, "tokens"),
    "refund": lambda m: m.refund(ANA, "tokens"),
    "usage": lambda m: m.usage(ANA),
    "reserve": lambda m: reserve(m, ANA, {"jobs": 0, "tokens": 1}).release(),
    "commit": lambda m: known(m, ANA, "first").commit({"tokens": 3}),
    "release": lambda m: known(m, ANA, "nobody").release(),
    "renew": lambda m: known(m, ANA, "last").renew(3600),
    "subscribe": lambda m: m.subscribe(ANA, "more"),
    "subscribe with an id": lambda m: m.subscribe(ANA, "more", op="s"),
    "unsubscribe": lambda m: m.unsubscribe(ANA, "base"),
    "override": lambda m: m.override(ANA, "credits", limit=50),
    "override, root": lambda m: m.override("acme", "credits", limit=50),
    "adjust": lambda m: m.adjust(ANA, "tokens", used=5),
    "set_meta": lambda m: m.set_meta(ANA, {"a": 1}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_given_back(make: Make, clock: ManualClock, verb: str) -> None:
    meter = make(PLANS)
    meter.subscribe(ANA, "base")
    for n, name in enumerate(("first", "second", "third")):
        assert reserve(meter, ANA, {"jobs": 1, "credits": 10}, op=name, ttl=10 + n)
    assert reserve(meter, ANA, {"jobs": 1, "credits": 100}, op="last", ttl=600)
    assert reserve(meter, "acme", {"jobs": 1, "credits": 1000 - 130}, op="root", ttl=5)
    clock.advance(seconds=30)
    VERBS[verb](meter)
    usage = meter.usage(ANA)
    figures = {(s.subject, s.name): s.used for s in usage}
    assert (figures["acme", "jobs"], figures["acme", "credits"]) == (1, 100)
    if verb != "unsubscribe":
        assert (figures[ANA, "jobs"], figures[ANA, "credits"]) == (1, 100)
    # What was dropped with its plan lapses, but the hold is open all the same.
    assert [level.open_holds for level in usage.levels] == [1, 1]
    assert known(meter, ANA, "last").commit({"credits": 7})
    figures = {(s.subject, s.name): s.used for s in meter.usage(ANA)}
    assert (figures["acme", "jobs"], figures["acme", "credits"]) == (0, 7)


def test_one_more_round_trip_when_something_has_expired(make: Make, clock: ManualClock) -> None:
    meter = make(PLANS)
    reserve(meter, "acme", "credits", 7, ttl=10)
    meter.consume("acme", "tokens")
    meter.consume("acme", "credits", 900)  # it has warned
    sent = requests_of(meter)
    assert meter.consume("acme", "credits", 90)
    assert len(sent) == 1
    clock.advance(seconds=10)
    assert meter.consume("acme", "credits", 8)  # 3 were left, and the hold's 7
    assert len(sent) == 3
    assert meter.consume("acme", "credits", 1)
    assert len(sent) == 4


def test_the_instant_of_expiry(make: Make, clock: ManualClock) -> None:
    meter = make(PLANS)
    hold = reserve(meter, "acme", {"jobs": 1, "credits": 7}, ttl="5s", op="one")
    clock.advance(milliseconds=4999)
    assert meter.usage("acme")["jobs"].used == 1
    clock.advance(milliseconds=1)
    assert meter.usage("acme")["jobs"].used == 0
    # Its operation id still says that it was allowed; there is nothing to settle any more.
    assert reserve(meter, "acme", {"jobs": 1, "credits": 7}, ttl="5s", op="one").decision.replayed
    assert meter.usage("acme")["jobs"].used == 0
    hold.release()
    assert hold.raw._ended == "release"
    with pytest.raises(OpConflict):
        meter.consume("acme", "credits", 7, op="one")
