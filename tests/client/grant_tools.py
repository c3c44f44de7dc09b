"""What the tests of grants share: plans, and what has to be true of every grant at every moment."""

from __future__ import annotations

from typing import Any

from meterd import Bucket, Flag, Grant, Plan, Pool
from tests.client.meter_tools import AnyMeter

BASE = Plan(
    "base",
    includes=[
        Pool("credits", 100, "month", anchor="calendar", rates={"credits": 1, "image": 10}),
        Bucket("api", 1000, "1m"),
        Flag("export"),
    ],
    default=True,
)
PRO = Plan("pro", includes=[Pool("credits", 1000, "month", anchor="calendar")])
BARE = Plan("bare", includes=[Bucket("api", 1000, "1m")])
PLANS = (BASE, PRO, BARE)


def grants_of(meter: AnyMeter, subject: Any = "acme", level: int = -1) -> dict[str, Grant]:
    """The books of one level, by id."""
    return {grant.id: grant for grant in meter.usage(subject).levels[level].grants}


def left(meter: AnyMeter, subject: Any = "acme") -> dict[str, int]:
    """What each grant in the books can still give."""
    found = grants_of(meter, subject)
    for grant in found.values():
        assert_kept(grant)
    return {name: grant.remaining for name, grant in found.items()}


def assert_kept(grant: Grant) -> None:
    """Nothing of a grant is lost or made."""
    parts = (grant.consumed, grant.remaining, grant.held, grant.expired)
    assert min(parts) >= 0, grant
    assert grant.amount == sum(parts), grant


def burned(meter: AnyMeter, amount: int = 1, subject: Any = "acme") -> str:
    """Consumes so much, and tells the one source that it came from: an id, or "" for the period."""
    before, used = left(meter, subject), meter.usage(subject)["credits"]
    decision = meter.consume(subject, "credits", amount)
    assert decision, decision
    after = left(meter, subject)
    changed = {name for name in after if after[name] != before[name]}
    if not changed:
        assert decision["credits"].drawn == used.drawn
        return ""
    (name,) = changed
    assert before[name] - after[name] == amount
    return name
