"""A bit of everything that a meter can be asked, and a way to see which scripts that called."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

from meterd import Bucket, Flag, Meter, Plan, Pool, Slots, wire
from meterd.errors import MeterdError
from meterd.testing import ManualClock

ROOTS = ("acme", "globex", "ünïcode", "a%b", "*", "x{y}", "tab\tnew\nline", "nul\x00l")


def plans(*, more: int = 0) -> list[Plan]:
    """A catalog of two groups; another `more` is another definition of the same plans."""
    return [
        Plan(
            "free",
            includes=[
                Pool("credits", 100 + more, "month", anchor="calendar", tz="America/Santiago"),
                Bucket("api", 50, "1m", rates={"api": 1, "credits": 1}),
                Flag("sso"),
                Slots("jobs", 20),
            ],
            default=True,
        ),
        Plan(
            "pro",
            includes=[
                Pool("credits", 1000 + more, "day"),
                Bucket("api", 500, "1m"),
                Slots("jobs", 20),
            ],
        ),
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
        undo(meter, subject)
        meter.usage(subject)
    meter.consume(root, "seats", join="extra")


def undo(meter: Meter, subject: tuple[str, ...]) -> None:
    """Operations are looked up and given back, those that can be and those that cannot."""
    meter.consume(subject, {"credits": 2, "api": 1}, op=f"d{len(subject)}")
    for name in (f"d{len(subject)}", f"b{len(subject)}", f"i{len(subject)}/%", "never was"):
        for ask in (
            lambda op: meter.operation(subject, op),
            lambda op: meter.refund(subject, of=op),
            lambda op: meter.refund(subject, of=op, op=f"e{len(subject)}"),
            lambda op: meter.refund((*subject[:-1], "other"), of=op),
        ):
            with contextlib.suppress(MeterdError):
                ask(name)
    meter.consume(subject, "credits", op=f"f{len(subject)}")
    meter.refund(subject, of=f"f{len(subject)}", op=f"g{len(subject)}")
    meter.refund(subject, of=f"f{len(subject)}", op=f"g{len(subject)}")
    with contextlib.suppress(MeterdError):
        meter.refund(subject, of=f"f{len(subject)}", op=f"c{len(subject)}")  # taken


def hold(meter: Meter, subject: tuple[str, ...]) -> None:
    """Every verb that makes, keeps or ends holds."""
    path, costs = meter._keys.path(subject), {"jobs": 2, "credits": 3}
    one = meter.reserve(subject, costs)
    assert one
    meter.reserve(subject, {"jobs": 1}, ttl=300)
    meter._run(meter._holds.tally(path, one.id, wire.encode_costs("credits", 1), None))
    meter._run(meter._holds.tally(path, one.id, wire.encode_costs("credits", 2), 200_000))
    one.renew(400)
    meter.usage(subject)
    for actual in (2, 2, 1):
        with contextlib.suppress(MeterdError):  # the last one is not what the first one said
            meter.hold(subject, one.id).commit({"credits": actual, "api": 1})
    for name in (f"h{len(subject)}", f"i{len(subject)}/%"):
        for _ in range(2):
            meter.reserve(subject, costs, op=name)
        with contextlib.suppress(MeterdError):
            meter.reserve(subject, "jobs", op=name)  # taken
    meter.hold(subject, name).commit()
    for _ in range(2):
        meter.hold(subject, f"h{len(subject)}").release()
    meter.hold(subject, "never was").release()
    assert not meter.reserve(subject, "jobs", 10**6)
    meter.hold(subject, f"u{len(subject)}").commit({"credits": 1})
    for unknown in (
        meter.hold(subject, "none").commit,
        lambda: meter.hold(subject, "none").renew(5),
    ):
        with contextlib.suppress(MeterdError):
            unknown()


def keys(meter: Meter, owner: tuple[str, ...], clock: ManualClock | None) -> None:
    """Every verb of API keys, on keys with limits and without."""
    own = [Pool("credits", 50, auto=2), Bucket("own", 90, "1s", auto=1)]
    sha256 = hashlib.sha256(repr(owner).encode()).digest()
    made = [
        meter.keys.create(owner, limits=own, expires="30d", join="pro"),
        meter.keys.create(owner, name="bare", meta={"a": [1]}),
    ]
    made.append(meter.keys.create(owner, sha256=sha256))
    with contextlib.suppress(MeterdError):
        meter.keys.create(owner, sha256=sha256)
    for key in made:
        secret = key.secret or repr(owner)
        assert meter.keys.verify(secret)
        assert meter.keys.verify(secret, {"credits": 1, "api": 1})
        assert meter.keys.verify(secret, auto=False)
        for _ in range(2):
            assert meter.keys.verify(secret, "api", 2, op=f"v{key.id}/%")
        with contextlib.suppress(MeterdError):
            meter.keys.verify(secret, "api", op=f"v{key.id}/%")  # taken
        assert not meter.keys.verify(secret, "credits", 10**6)
        assert not meter.keys.verify(secret, "nothing")
        assert meter.reserve(key.subject, {"jobs": 1, "credits": 1}, ttl=0.001)
        if clock is None:
            time.sleep(0.003)
        else:
            clock.now_ms += 1
        assert meter.keys.verify(secret)
        meter.keys.update(key.id, enabled=False, name=None, meta={})
        assert not meter.keys.verify(secret)
        meter.keys.update(key.id, enabled=True, expires="60d", limits=own, name="x")
        new = meter.keys.rotate(key.id, overlap="1h")
        assert meter.keys.verify(secret)
        assert meter.keys.verify(str(new.secret))
        meter.keys.rotate(key.id)
        assert not meter.keys.verify(secret)
    assert len(meter.keys.list(owner)) == 3
    for key in made[1:]:
        assert meter.keys.revoke(key.id)


def grant(meter: Meter, subject: tuple[str, ...]) -> None:
    """Every verb about grants, and those that charge and hold where some are live."""
    for name, fields in (
        ("credits", {"priority": 10}),
        ("credits", {"expires": "30d", "source": "order 1/ü", "op": f"k{len(subject)}"}),
        ("unplanned", {"starts": "1h", "priority": 90, "op": f"l{len(subject)}"}),
    ):
        for _ in range(2):
            meter.grant(subject, name, 20, **fields)
    with contextlib.suppress(MeterdError):
        meter.grant(subject, "unplanned", 9, op=f"k{len(subject)}")  # taken
    for verb in (meter.check, meter.consume, meter.report, meter.refund):
        verb(subject, {"credits": 5, "unplanned": 0})
    meter.usage(subject)
    held = meter.reserve(subject, "credits", 30)
    meter.void(subject, f"k{len(subject)}")
    held.release()
    for name in (f"l{len(subject)}", "never was"):
        with contextlib.suppress(MeterdError):
            meter.void(subject, name)


def expire(meter: Meter, subject: tuple[str, ...], clock: ManualClock | None) -> None:
    """Every verb comes upon a hold that has expired."""
    meter.consume(subject, "credits", op=f"z{len(subject)}")
    for verb in (
        lambda: meter.refund(subject, of=f"z{len(subject)}"),
        lambda: meter.check(subject, "credits"),
        lambda: meter.consume(subject, "api"),
        lambda: meter.report(subject, "credits", 2, op=f"x{len(subject)}"),
        lambda: meter.refund(subject, "credits"),
        lambda: meter.usage(subject),
        lambda: meter.reserve(subject, "jobs"),
        lambda: meter.hold(subject, "none").release(),
        lambda: meter.subscribe(subject, "pro"),
        lambda: meter.subscribe(subject, "pro", op=f"y{len(subject)}"),
        lambda: meter.unsubscribe(subject, "extra"),
        lambda: meter.override(subject, "credits", limit=900),
        lambda: meter.adjust(subject, "credits", used=40),
        lambda: meter.grant(subject, "credits", 30),
        lambda: meter.grant(subject, "unplanned", 3, expires="1h", op=f"v{len(subject)}"),
        lambda: meter.void(subject, f"v{len(subject)}"),
    ):
        for _ in range(2):
            assert meter.reserve(subject, {"jobs": 1, "api": 1}, ttl=0.001)
        if clock is None:
            time.sleep(0.003)
        else:
            clock.now_ms += 1
        verb()


def come(meter: Meter, subject: tuple[str, ...], clock: ManualClock | None) -> None:
    """Every verb comes upon a change of plans that is due."""
    for verb in (
        lambda: meter.check(subject, "credits"),
        lambda: meter.consume(subject, "api"),
        lambda: meter.report(subject, "credits", 2, op=f"t{len(subject)}"),
        lambda: meter.refund(subject, "credits"),
        lambda: meter.usage(subject),
        lambda: meter.reserve(subject, "jobs"),
        lambda: meter.hold(subject, "none").release(),
        lambda: meter.subscribe(subject, "pro", change="prorate", when="period_end"),
        lambda: meter.subscribe(subject, "pro", op=f"w{len(subject)}", when="9d"),
        lambda: meter.unsubscribe(subject, "pro", when="period_end"),
        lambda: meter.override(subject, "credits", limit=900),
        lambda: meter.adjust(subject, "credits", used=40),
    ):
        meter.subscribe(subject, "free", when="9d", change="reset")
        meter.subscribe(subject, "pro", change="prorate", when="1ms")
        if clock is None:
            time.sleep(0.003)
        else:
            clock.now_ms += 1
        verb()


def pulse(meter: Meter, subject: tuple[str, ...], clock: ManualClock | None) -> None:
    """Every verb comes upon a period that is over, of a pool that is billed."""
    limits = [Pool("pulse", 10**6, "1ms", bill="use", overage=5), Bucket("side", 90, "1d")]
    meter.subscribe(subject, limits=limits)
    path, one = meter._keys.path(subject), wire.encode_costs("pulse", 1)
    kept = [meter.reserve(subject, "pulse", 3, ttl=ttl) for ttl in (600, 600, 20)]
    assert not meter.consume(subject, "pulse", 10**9)  # the pool is exhausted, for once
    meter.consume(subject, {"pulse": 1, "side": 1}, op="pulse")
    meter.grant(subject, "beside", 1, op="pulse of grants")
    meter.harvest()
    for verb in (
        lambda: meter.consume(subject, "side", 5),
        lambda: meter.consume(subject, "pulse"),
        lambda: meter.report(subject, "pulse", 2),
        lambda: meter.refund(subject, {"pulse": 1, "side": 1}),
        lambda: meter.reserve(subject, {"pulse": 1}, ttl=600),
        lambda: kept[2].renew(30),
        lambda: meter._run(meter._holds.tally(path, kept[2].id, one, 700_000)),
        lambda: kept[0].commit({"pulse": 5}),
        kept[1].release,
        lambda: meter.override(subject, "pulse", limit=900),
        lambda: meter.adjust(subject, "pulse", used=40),
        lambda: meter.refund(subject, of="pulse"),
        lambda: meter.grant(subject, "pulse", 30),
        lambda: meter.void(subject, "pulse of grants"),
        meter.harvest,
        lambda: meter.subscribe(subject, limits=limits, change="reset"),
        lambda: meter.unsubscribe(subject, "private"),
    ):
        meter.report(subject, "pulse", 7)
        assert meter.reserve(subject, "pulse", 2, ttl=0.001)
        if clock is None:
            time.sleep(0.003)
        else:
            clock.now_ms += 3
        verb()


def administer(meter: Meter, root: str, clock: ManualClock | None) -> None:
    """Every verb that sets something, on a seen subject and on unseen ones."""
    below = (root, "team", "ana")
    for subject in ((root,), (root, "team"), below, (*below, "d")):
        meter.subscribe(subject, "pro")
        hold(meter, subject)
        grant(meter, subject)
        expire(meter, subject, clock)
    for owner in ((root,), below):
        keys(meter, owner, clock)
        pulse(meter, subject, clock)
    for subject in ((root,), (root, "team"), below):
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
    for subject in ((root,), (root, "team"), below):
        come(meter, subject, clock)
    meter.unsubscribe((root, "nobody"), "pro")
    meter.grant((root, "somebody"), "credits", 4)
    meter.consume((root, "somebody"), "credits")
    meter.hold((root, "nobody"), "none").release()
    charge(meter, root)


def everything(meter: Meter, clock: ManualClock | None = None) -> None:
    """All of the above for several roots, a limiter, a new catalog, and the end of a subject.

    `clock`: the meter's test clock, if it has one.
    """
    for root in ROOTS:
        charge(meter, root)
    login = meter.limiter("login", Bucket("ip", 5, "1m"))
    login.consume("::1")
    login.consume("::1", op="x")
    login.refund("::1")
    login.check("a/b")
    for root in (ROOTS[0], *ROOTS[1::2]):  # those that are hard to encode
        administer(meter, root, clock)
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
