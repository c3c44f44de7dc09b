"""A bit of everything that a meter can be asked, and a way to see which scripts that called."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from meterd import Bucket, Flag, Meter, Plan, Pool, Slots, wire
from meterd.errors import MeterdError

ROOTS = ("acme", "globex", "ünïcode", "a%b", "*", "x{y}", "tab\tnew\nline", "nul\x00l")


def plans(*, more: int = 0) -> list[Plan]:
    """A catalog of two groups; another `more` is another definition of the same plans."""
    return [
        Plan(
            "free",
            includes=[
                Pool("credits", 100 + more, "month", anchor="calendar", tz="America/Santiago"),
                Bucket("api", 50, "1m", rates={"api": 1, "credits": 1}),
                Slots("jobs", 4),
                Flag("sso"),
            ],
            default=True,
        ),
        Plan("pro", includes=[Pool("credits", 1000 + more, "day"), Bucket("api", 500, "1m")]),
        Plan("extra", includes=[Bucket("seats", 9, "1d", algorithm="token")], group="addons"),
    ]


@dataclass(frozen=True)
class Call:
    """One script as it was called, and what it answered (None: an error)."""

    entry: str
    keys: tuple[bytes, ...]
    args: tuple[bytes, ...]
    reply: Any


@dataclass
class Recorder:
    """Every script that the meters it watches call."""

    calls: list[Call] = field(default_factory=list)

    def watch(self, meter: Meter) -> Meter:
        original = meter._session.call

        def call(entry: str, keys: Any, args: Any, **named: Any) -> Any:
            reply = None
            try:
                reply = yield from original(entry, keys, args, **named)
            finally:
                self.calls.append(Call(entry, tuple(keys), tuple(args), reply))
            return reply

        meter._session.call = call  # type: ignore[method-assign]
        return meter

    def of(self, entry: str) -> list[Call]:
        return [call for call in self.calls if call.entry == entry]


def charge(meter: Meter, root: str) -> None:
    """Every verb that charges, on one to four levels, with an operation id and without."""
    for subject in ((root,), (root, "team"), (root, "team", "ana"), (root, "a/b", "%", "d")):
        meter.check(subject, {"credits": 1, "api": 2})
        meter.consume(subject, "credits", 3)
        meter.consume(subject, {"credits": 3, "api": 1}, op=f"c{len(subject)}")
        meter.consume(subject, {"credits": 3, "api": 1}, op=f"c{len(subject)}")
        with contextlib.suppress(MeterdError):
            meter.consume(subject, "credits", op=f"c{len(subject)}")  # taken
        meter.consume(subject, "credits", 10**6)  # refused
        meter.consume(subject, "nothing")
        meter.report(subject, "credits", 2)
        meter.report(subject, "credits", 2, op=f"r {len(subject)}/%")
        meter.refund(subject, "credits", 1)
        meter.refund(subject, "credits", 1, op=f"b{len(subject)}")
        meter.usage(subject)
    meter.consume(root, "seats", join="extra")
    for subject in ((root,), (root, "team"), (root, "team", "ana"), (root, "a/b", "%", "d")):
        reserve(meter, subject)


def reserve(meter: Meter, subject: tuple[str, ...]) -> None:
    """Holds, ended in every way."""
    hold = meter.reserve(subject, {"jobs": 1, "credits": 2}, op=f"h{len(subject)}/%")
    other = meter.reserve(subject, "credits")
    path, spent = meter._keys.path(subject), wire.encode_costs("credits")
    for act in (
        lambda: meter.reserve(subject, {"jobs": 1, "credits": 2}, op=hold.id),
        lambda: meter.reserve(subject, "jobs", op=hold.id),  # taken
        lambda: meter.reserve(subject, "credits", 10**6),  # refused
        lambda: meter.usage(subject),
        lambda: meter._run(meter._holds.tally(path, hold.id, spent, None)),
        lambda: meter._run(meter._holds.tally(path, hold.id, spent, 5000)),
        lambda: hold.renew(3600),
        lambda: hold.commit({"credits": 1}),
        lambda: hold.commit({"credits": 1}),
        hold.release,  # it was committed
        other.release,
        other.release,
        lambda: meter.hold(subject, "nobody").commit(),
        lambda: meter.hold(subject, "nobody").renew(5),
        lambda: meter.reserve(subject, "jobs"),  # never ended
    ):
        with contextlib.suppress(MeterdError):
            act()


def administer(meter: Meter, root: str) -> None:
    """Every verb that sets something, on a seen subject and on unseen ones."""
    below = (root, "team", "ana")
    for subject in ((root,), (root, "team"), below):
        meter.subscribe(subject, "pro")
        meter.subscribe(subject, "pro", change="reset", op=f"s{len(subject)}")
        meter.subscribe(subject, limits=[Pool("credits", 7), Bucket("own", 1, "1s")])
        meter.override(subject, "credits", limit=9, overage=None)
        meter.override(subject, "credits", clear=True)
        meter.override(subject, "seats", limit=3, expires="30d")  # waits for the plan
        meter.adjust(subject, "credits", used=4)
        meter.unsubscribe(subject, "extra")
        meter.set_meta(subject, {"note": "x", "more": [1, None]})
        meter.set_meta(subject, {"more": None})
        with contextlib.suppress(MeterdError):
            meter.adjust(subject, "nonsense", used=1)
    meter.unsubscribe((root, "nobody"), "pro")
    charge(meter, root)


def everything(meter: Meter) -> None:
    """All of the above for several roots, a limiter, a new catalog, and the end of a subject."""
    for root in ROOTS:
        charge(meter, root)
    login = meter.limiter("login", Bucket("ip", 5, "1m"))
    login.consume("::1")
    login.consume("::1", op="x")
    login.refund("::1")
    login.check("a/b")
    for root in ROOTS:
        administer(meter, root)
    meter.apply(plans(more=1))
    for root in ROOTS:
        charge(meter, root)
    login = meter.limiter("login", Bucket("ip", 6, "1m"), Bucket("day", 60, "1d"))
    login.consume("::1")
    login.reset("::1")
    assert sum(1 for _ in meter.subjects()) >= 3 * len(ROOTS)
    for root in ROOTS[::2]:
        meter.forget((root, "team"))
        meter.forget((root,))
