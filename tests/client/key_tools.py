"""What the tests of API keys share."""

from __future__ import annotations

import hashlib
from typing import Any

from meterd import ApiKey, Bucket, Flag, MeterdError, Plan, Pool, Slots, Verification
from meterd.testing import ManualClock
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


OWN = [Pool("credits", 20, auto=3), Bucket("own", 9, "10s", auto=2)]


def play(meter: AnyMeter, clock: ManualClock) -> list[Any]:
    """What every verb of API keys answers on a store with a pool `credits`; ids become numbers."""
    told: list[Any] = []
    ids: list[str] = []

    def tell(verb: str, *args: Any, **named: Any) -> Any:
        try:
            made = getattr(meter.keys, verb)(*args, **named)
        except MeterdError as error:
            made = error
        found = made
        if isinstance(made, ApiKey):
            ids.extend([made.id] if made.id not in ids else [])
            found = made.as_dict()
        elif isinstance(made, Verification):
            found = made.as_dict()
        elif isinstance(made, list):
            found = sorted((key.as_dict() for key in made), key=repr)
        text = repr(found)
        for number, key_id in enumerate(ids):
            text = text.replace(key_id, f"key {number}")
        told.append((verb, text))
        return made

    own = tell("create", "acme", limits=OWN, name="own", meta={"a": [1, "é"]})
    bare = tell("create", ("acme", "x/y"), expires="1h", prefix="live")
    old = tell("create", "kim", join="pro", sha256=sha256("old"))
    tell("create", "acme", sha256=sha256("old"))
    for secret in (own.secret, bare.secret, "old", "older", own.secret[:-1] + "!"):
        for costs in (None, "credits", {"credits": 2, "calls": 1}, "nothing"):
            tell("verify", secret, costs)
            clock.advance(milliseconds=333)
        tell("verify", secret, auto=False)
    for _ in range(2):
        tell("verify", own.secret, "calls", op="key-op")
    tell("verify", own.secret, "calls", 2, op="key-op")
    tell("update", own.id, limits=[Pool("credits", 5, "day")], name=None, meta=None)
    tell("verify", own.secret, "credits", 10)
    tell("update", bare.id, enabled=False, expires="2h")
    tell("verify", bare.secret)
    tell("update", bare.id, enabled=True)
    clock.advance(hours=2)
    tell("verify", bare.secret)
    new = tell("rotate", old.id, overlap="10s")
    for _ in range(3):
        tell("verify", "old")
        tell("verify", new.secret)
        clock.advance(seconds=5)
    for key in (own, bare, old):
        tell("get", key.id)
        tell("list", key.owner)
        tell("revoke", key.id)
        tell("revoke", key.id)
        tell("get", key.id)
    tell("verify", own.secret)
    told.append(meter.forget("kim"))
    return told
