"""One story that touches every verb. What it returns must be the same wherever it is played."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from meterd import Bucket, Flag, MeterdError, Plan, Pool
from meterd.testing import ManualClock
from tests.client import key_tools
from tests.client.meter_tools import AnyMeter

PLANS = (
    Plan(
        "free",
        includes=[
            Pool("credits", 100, "month", anchor="calendar", tz="America/New_York", rollover=20),
            Pool("session", 30, "5h", anchor="first_use", rates={"credits": 1, "image": 10}),
            Bucket("fixed", 5, "1m", algorithm="fixed", rates={"calls": 1}),
            Bucket("sliding", 20, "10s", rates={"calls": 2}),
            Bucket("token", 10, "1m", algorithm="token", burst=15, rates={"calls": 1}),
            Flag("export"),
        ],
        default=True,
    ),
    Plan("pro", includes=[Pool("credits", 1000, "month", anchor=31, overage=None)]),
    Plan("pack", includes=[Pool("images", None, "week"), Flag("sso")], group="addon"),
)
MORE = Plan("more", includes=[Pool("extra", 10**15), Bucket("huge", 10**12, "366d")], group="more")


def play(meter: AnyMeter, clock: ManualClock) -> list[Any]:
    """Plays it on an empty store; every answer as plain data, in order."""
    told: list[Any] = []

    def tell(name: str, *args: Any, **named: Any) -> Any:
        try:
            made = getattr(meter, name)(*args, **named)
        except MeterdError as error:
            told.append((name, type(error).__name__, str(error)))
            return None
        told.append((name, made.as_dict() if hasattr(made, "as_dict") else made))
        return made

    def charge(name: str, subject: Any, *args: Any, **named: Any) -> None:
        tell(name, subject, *args, **named)
        tell("usage", subject)

    clock.set(datetime(2025, 3, 8, 20, tzinfo=UTC))  # before New York changes its clocks
    tell("usage", "acme/ana")
    tell("check", "acme/ana", {"credits": 5, "calls": 1})
    charge("consume", "acme/ana", {"credits": 5, "calls": 1, "export": 1}, op="op-1")
    clock.advance(milliseconds=1234)
    charge("consume", "acme/ana", {"credits": 5, "calls": 1, "export": 1}, op="op-1")
    tell("consume", "acme/ana", {"credits": 6}, op="op-1")
    for _ in range(5):
        charge("consume", "acme", "calls", 2)
        clock.advance(milliseconds=777)
    charge("consume", "acme", "image", 3)
    charge("consume", "acme", "nothing")
    charge("report", "acme", {"credits": 50, "calls": 9}, op="op-2")
    tell("report", "acme", "nothing")
    charge("refund", "acme", {"credits": 7, "calls": 3}, op="op-3")
    tell("subscribe", "acme/ana", limits=[Pool("credits", 40, "day", carry_debt=True)])
    charge("consume", "acme/ana/laptop", "credits", 3)
    tell("subscribe", ("acme", "x/y"), "pro", anchor="3d")
    charge("consume", ("acme", "x/y"), "credits", 2)
    tell("subscribe", "bob", "pro", op="op-4")
    tell("subscribe", "bob", "pro", op="op-4")
    tell("subscribe", "bob", "pack", op="op-4")
    tell("subscribe", "bob", "pack")
    charge("consume", "bob", {"credits": 1500, "images": 3, "sso": 1})
    tell("override", "bob", "credits", limit=2000, overage=5, expires="40d")
    charge("consume", "bob", {"credits": 506})
    charge("consume", "bob", {"credits": 505})
    tell("adjust", "bob", "images", used=12345)
    tell("adjust", "acme", "fixed", used=1)
    tell("adjust", "acme", "fixed", used=6)
    tell("set_meta", "bob", {"customer": "cus_1", "naïve": ["☃", None, 1.5]})
    tell("meta", "bob")
    clock.advance(days=2)
    charge("consume", "acme/ana", {"credits": 1, "calls": 1}, join="pack")
    charge("consume", "eve", "credits", join="pro")
    told += key_tools.play(meter, clock)
    clock.advance(days=39)
    for subject in ("acme/ana", ("acme", "x/y"), "bob", "eve"):
        charge("consume", subject, "credits", 10**15 if subject == "eve" else 1)
    change = meter.apply([MORE, Plan("pro", includes=[Pool("credits", 7, "day")])], remove=["pack"])
    told.append(change.as_dict())
    tell("subscribe", "carl", "pack")
    charge("consume", "bob", "images")
    tell("subscribe", "bob", "more", change="reset")
    charge("consume", "bob", {"extra": 10**15, "huge": 10**12})
    charge("report", "bob", {"extra": 10**15})
    tell("unsubscribe", "bob", "more")
    tell("unsubscribe", "bob", "pro")
    tell("override", "bob", "credits", clear=True)
    tell("usage", "bob")
    login = meter.limiter("login", Bucket("ip", 2, "1m"), Bucket("hour", 3, "1h"))
    for _ in range(3):
        told.append(login.consume("1.2.3.4/32").as_dict())
    told.append(login.check(("a", "b")).as_dict())
    told.append(login.refund("1.2.3.4/32").as_dict())
    told.append(login.reset("1.2.3.4/32"))
    told.append(sorted(map(str, meter.subjects())))
    told.append(meter.subjects("bob"))
    told.append(sorted(meter.plans()) + sorted(meter.plans(retired=True)))
    tell("forget", "acme/ana")
    tell("forget", "acme")
    tell("consume", "acme/ana", {"credits": 6}, op="op-1")
    told.append(sorted(map(str, meter.subjects())))
    for subject in ("acme", "bob", "eve", "carl"):
        tell("forget", subject)
    told.append(meter.subjects())
    return told
