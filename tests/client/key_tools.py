"""What the tests of API keys share."""

from __future__ import annotations

import hashlib
from typing import Any

from meterd import Bucket, Flag, Plan, Pool, Slots
from tests.client.meter_tools import AnyMeter

STARTER = Plan(
    "starter",
    default=True,
    includes=[
        Pool("credits", 100, "month"),
        Pool("tokens", 1000, "month", rates={"prompt": 1, "completion": 3}),
        Bucket("api", 60, "1m", algorithm="fixed", auto=1),
        Bucket("burst", 20, "1s", algorithm="token"),
        Slots("jobs", 2),
        Flag("sso"),
    ],
)
GROWTH = Plan("growth", includes=[Pool("credits", 10_000, "month"), Flag("sso")])
PLANS = (STARTER, GROWTH)


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def used(meter: AnyMeter, subject: Any) -> dict[str, int]:
    """Use by limit of the last level of a subject."""
    usage = meter.usage(subject)
    return {
        state.name: state.used
        for state in usage.limits
        if state.subject == usage.subject and state.used
    }
