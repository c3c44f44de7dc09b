"""Operations for the tests of torn scripts: what was there before, and the call that is torn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meterd import Bucket, Meter, Plan, Pool

START_MS = 4_000_000_000_000  # after any real now, which the client compares `expires` with
DAY_MS = 86_400_000
FAR = datetime(2100, 1, 1, tzinfo=UTC)
PATH = "acme/team/ana"


class World:
    """A meter and the server's clock, which stands still unless a case moves it."""

    def __init__(self, meter: Meter, set_time: Callable[[int], None]) -> None:
        self.meter = meter
        self._set_time = set_time
        self.now_ms = START_MS
        set_time(START_MS)

        self.secret = self.key_id = ""

    def later(self, ms: int) -> None:
        self.now_ms += ms
        self._set_time(self.now_ms)


Step = Callable[[World], Any]


@dataclass(frozen=True)
class Case:
    """`torn` is torn after `before`. A `repeatable` one may simply be called again; a `resumable`
    one takes several scripts and goes on where it stopped."""

    before: Sequence[Step]
    torn: Step
    repeatable: bool = False
    resumable: bool = False


POOLS = Plan(
    "pools",
    default=True,
    includes=[Pool("credits", 1000, reset="day", rollover=50), Pool("images", 10, overage=5)],
)
MIXED = Plan(
    "mixed",
    default=True,
    includes=[
        Pool("credits", 1000, reset="month"),
        Bucket("fixed", 10, "1m", algorithm="fixed", rates={"credits": 1}),
        Bucket("sliding", 20, "1h", rates={"credits": 1}),
        Bucket("token", 30, "1d", algorithm="token", rates={"credits": 1}),
    ],
)
BUCKETS = Plan("buckets", default=True, includes=[Bucket("calls", 10, "1h"), Bucket("b", 5, "1m")])
LARGER = Plan("pools", default=True, includes=[Pool("credits", 5000, reset="week")])
ADD_ON = Plan("extra", group="extra", includes=[Pool("bonus", 500, rates={"credits": 2})])
TEAM = [Pool("credits", 400, reset="month"), Bucket("team", 50, "1h", rates={"credits": 1})]
PERSON = [Pool("credits", 100, reset="day")]


def applied(*plans: Plan) -> Step:
    return lambda w: w.meter.apply(plans)


def levels(w: World) -> None:
    """A record on each level of the path."""
    w.meter.consume("acme", "credits", 1)
    w.meter.subscribe("acme/team", limits=TEAM)
    w.meter.subscribe(PATH, limits=PERSON)


def consume(amount: int = 3, subject: str = "acme", name: str = "credits", **more: Any) -> Step:
    return lambda w: w.meter.consume(subject, name, amount, **more)


def login(w: World, op: str | None = None) -> Any:
    limits = [Bucket("ip", 10, "1m"), Bucket("slow", 3, "1h", algorithm="token")]
    return w.meter.limiter("login", *limits).consume("1.2.3.4", op=op)


def later(ms: int) -> Step:
    return lambda w: w.later(ms)


def override(expires: datetime | None = None, **fields: int) -> Step:
    return lambda w: w.meter.override("acme", "credits", expires=expires, **fields)


def grant(amount: int = 5, op: str = "gift", name: str = "credits", **more: Any) -> Step:
    return lambda w: w.meter.grant("acme", name, amount, op=op, **more)


_granted = [applied(POOLS), grant(priority=10, expires=FAR), grant(7, "later"), consume(1)]


def key_made(w: World) -> None:
    """An imported key, which is the same in every run."""
    w.secret = "a secret"
    sha256 = hashlib.sha256(w.secret.encode()).digest()
    w.key_id = w.meter.keys.create("acme", limits=PERSON, sha256=sha256).id


def to_come(subject: str, **more: Any) -> Step:
    return lambda w: w.meter.subscribe(subject, "extra", when=_ending, **more)


_stale = [applied(POOLS), consume(), applied(LARGER)]
_deep = [applied(MIXED), levels]
_stale_deep = [*_deep, consume(2, PATH), applied(MIXED, ADD_ON)]
_ending = datetime.fromtimestamp((START_MS + DAY_MS) / 1000, UTC)

CASES: dict[str, Case] = {
    "first sight": Case([applied(POOLS)], consume()),
    "first sight, op": Case([applied(POOLS)], consume(op="x"), repeatable=True),
    "first sight, four kinds": Case([applied(MIXED)], consume(op="x"), repeatable=True),
    "first sight, expiring": Case([applied(BUCKETS)], consume(1, name="calls")),
    "first sight, expiring, op": Case(
        [applied(BUCKETS)], consume(1, name="calls", op="x"), repeatable=True
    ),
    "consume": Case([applied(POOLS), consume()], consume()),
    "consume, op": Case([applied(POOLS), consume()], consume(op="x"), repeatable=True),
    "consume, four kinds": Case([applied(MIXED), consume()], consume()),
    "consume, next period": Case([applied(POOLS), consume(), later(3 * DAY_MS)], consume()),
    "consume, expiring": Case(
        [applied(BUCKETS), consume(1, name="calls")], consume(1, name="calls")
    ),
    "consume, expiring later": Case(
        [applied(BUCKETS), consume(1, name="calls"), later(3 * 3_600_000)],
        consume(1, name="calls", op="x"),
        repeatable=True,
    ),
    "consume, 3 levels": Case(_deep, consume(subject=PATH)),
    "consume, 3 levels, op": Case(_deep, consume(subject=PATH, op="x"), repeatable=True),
    "consume, stale": Case(_stale, consume()),
    "consume, stale, op": Case(_stale, consume(op="x"), repeatable=True),
    "consume, 3 stale levels": Case(_stale_deep, consume(subject=PATH)),
    "consume, 3 stale levels, op": Case(
        _stale_deep, consume(subject=PATH, op="x"), repeatable=True
    ),
    "consume, override": Case([applied(POOLS), consume(), override(limit=7)], consume(4)),
    "consume, override ended": Case(
        [applied(POOLS), consume(), override(_ending, limit=7), later(2 * DAY_MS)],
        consume(4, op="x"),
        repeatable=True,
    ),
    "consume, override, stale": Case(
        [applied(POOLS), consume(), override(FAR, limit=70), applied(LARGER)],
        consume(4, op="x"),
        repeatable=True,
    ),
    "limiter": Case([], login),
    "limiter, again, op": Case([login], lambda w: login(w, "x"), repeatable=True),
    "report": Case([applied(POOLS), consume()], lambda w: w.meter.report("acme", "credits", 2000)),
    "report, 3 levels, op": Case(
        _deep, lambda w: w.meter.report(PATH, "credits", 70, op="x"), repeatable=True
    ),
    "report, first sight, op": Case(
        [applied(MIXED)], lambda w: w.meter.report("acme", "credits", 9, op="x"), repeatable=True
    ),
    "refund": Case([applied(POOLS), consume(9)], lambda w: w.meter.refund("acme", "credits", 4)),
    "refund, 3 levels, op": Case(
        [*_deep, consume(9, PATH)],
        lambda w: w.meter.refund(PATH, "credits", 4, op="x"),
        repeatable=True,
    ),
    "refund, stale, op": Case(
        _stale, lambda w: w.meter.refund("acme", "credits", 2, op="x"), repeatable=True
    ),
    "refund, of": Case(
        [applied(MIXED), consume(9, op="x")],
        lambda w: w.meter.refund("acme", of="x"),
        repeatable=True,
    ),
    "refund, of, 3 stale levels, op": Case(
        [*_deep, consume(9, PATH, op="x"), applied(MIXED, ADD_ON)],
        lambda w: w.meter.refund(PATH, of="x", op="y"),
        repeatable=True,
    ),
    "refund, of a commit": Case(
        [
            applied(POOLS),
            lambda w: w.meter.reserve("acme", "credits", 9, ttl="1h", op="x").commit(1200),
        ],
        lambda w: w.meter.refund("acme", of="x"),
        repeatable=True,
    ),
    "refund, of, lapsed": Case(
        [applied(POOLS), consume(op="x"), later(DAY_MS - 1000), consume(op="y"), later(2000)],
        lambda w: w.meter.refund("acme", of="y"),
        repeatable=True,
    ),
    "subscribe, unseen": Case(
        [applied(POOLS, ADD_ON)], lambda w: w.meter.subscribe("acme", "extra"), repeatable=True
    ),
    "subscribe, keep": Case(
        [applied(POOLS, ADD_ON), consume()],
        lambda w: w.meter.subscribe("acme", "extra"),
        repeatable=True,
    ),
    "subscribe, keep, op": Case(
        [applied(POOLS, ADD_ON), consume(), override(limit=70)],
        lambda w: w.meter.subscribe("acme", "extra", op="x"),
        repeatable=True,
    ),
    "subscribe, reset": Case(
        [applied(POOLS), consume(), later(1000)],
        lambda w: w.meter.subscribe("acme", "pools", change="reset"),
    ),
    "subscribe, reset, op": Case(
        [applied(POOLS), consume(), later(1000)],
        lambda w: w.meter.subscribe("acme", "pools", change="reset", op="x"),
        repeatable=True,
    ),
    "subscribe, private, deep": Case(
        [applied(POOLS), consume()],
        lambda w: w.meter.subscribe("acme/team", limits=TEAM, op="x"),
        repeatable=True,
    ),
    "subscribe, prorated": Case(
        [applied(POOLS), consume(), later(1000)],
        lambda w: w.meter.subscribe("acme", limits=TEAM, change="prorate"),
        repeatable=True,
    ),
    "subscribe, to come": Case(
        [applied(POOLS, ADD_ON), consume()], to_come("acme"), repeatable=True
    ),
    "subscribe, to come, unseen, op": Case(
        [applied(POOLS, ADD_ON)], to_come("acme", op="x"), repeatable=True
    ),
    "unsubscribe, to come": Case(
        [applied(POOLS, ADD_ON), lambda w: w.meter.subscribe("acme", "extra")],
        lambda w: w.meter.unsubscribe("acme", "extra", when=_ending),
        repeatable=True,
    ),
    "consume, change due, op": Case(
        [applied(POOLS, ADD_ON), consume(), to_come("acme"), later(2 * DAY_MS)],
        consume(op="x"),
        repeatable=True,
    ),
    "consume, changes due, 3 levels": Case(
        [applied(MIXED, ADD_ON), levels, to_come("acme"), to_come(PATH), later(2 * DAY_MS)],
        consume(2, PATH),
    ),
    "override, change due": Case(
        [applied(POOLS, ADD_ON), consume(), to_come("acme"), later(2 * DAY_MS)],
        override(limit=70),
        repeatable=True,
    ),
    "unsubscribe": Case(
        [applied(POOLS, ADD_ON), consume(), lambda w: w.meter.subscribe("acme", "extra")],
        lambda w: w.meter.unsubscribe("acme", "extra"),
        repeatable=True,
    ),
    "override, set": Case([applied(POOLS), consume()], override(limit=5), repeatable=True),
    "override, replaced, stale": Case(
        [applied(POOLS), consume(), override(FAR, limit=70), applied(LARGER)],
        override(limit=5, overage=2),
        repeatable=True,
    ),
    "override, cleared": Case(
        [applied(POOLS), consume(), override(limit=5)],
        lambda w: w.meter.override("acme", "credits", clear=True),
        repeatable=True,
    ),
    "adjust": Case(
        [applied(MIXED), consume()],
        lambda w: w.meter.adjust("acme", "credits", used=77),
        repeatable=True,
    ),
    "adjust, stale": Case(
        _stale, lambda w: w.meter.adjust("acme", "credits", used=77), repeatable=True
    ),
    "grant": Case([applied(POOLS), consume()], grant(source="x", expires=FAR), repeatable=True),
    "grant, unseen": Case([applied(POOLS)], grant(), repeatable=True),
    "grant, a pool of its own": Case(
        [applied(BUCKETS), consume(1, name="calls")], grant(), repeatable=True
    ),
    "grant, stale": Case([*_stale, grant(9, "other")], grant(), repeatable=True),
    "grant, void": Case(_granted, lambda w: w.meter.void("acme", "gift"), repeatable=True),
    "grant, void, stale": Case(
        [*_granted, applied(LARGER)], lambda w: w.meter.void("acme", "later"), repeatable=True
    ),
    "grants, consume": Case(_granted, consume()),
    "grants, consume, all of several, op": Case(_granted, consume(1010, op="x"), repeatable=True),
    "grants, consume, 3 levels, op": Case(
        [*_deep, grant(), grant(8, "bonus", "bonus")],
        consume(subject=PATH, op="x"),
        repeatable=True,
    ),
    "grants, consume, one expired": Case(
        [*_granted, grant(4, "soon", expires=_ending), later(2 * DAY_MS)], consume()
    ),
    "grants, report": Case(_granted, lambda w: w.meter.report("acme", "credits", 2000)),
    "grants, refund, op": Case(
        [*_granted, consume(9)],
        lambda w: w.meter.refund("acme", "credits", 3, op="x"),
        repeatable=True,
    ),
    "grants, another plan": Case(
        [*_granted, applied(POOLS, ADD_ON), grant(8, "bonus", "bonus")],
        lambda w: w.meter.subscribe("acme", "extra"),
        repeatable=True,
    ),
    "set_meta": Case([applied(POOLS)], lambda w: w.meter.set_meta("acme", {"a": 1}), True),
    "set_meta, more": Case(
        [applied(POOLS), lambda w: w.meter.set_meta("acme", {"a": 1, "b": 2})],
        lambda w: w.meter.set_meta("acme", {"a": None, "c": 3}),
        repeatable=True,
    ),
    "set_meta, emptied": Case(
        [applied(POOLS), lambda w: w.meter.set_meta("acme", {"a": 1})],
        lambda w: w.meter.set_meta("acme", {"a": None}),
        repeatable=True,
    ),
    "verify": Case([*_deep, key_made], lambda w: w.meter.keys.verify(w.secret, "credits", 3)),
    "verify, op": Case(
        [*_deep, key_made],
        lambda w: w.meter.keys.verify(w.secret, "credits", 3, op="x"),
        repeatable=True,
    ),
    "verify, stale": Case(
        [*_deep, key_made, applied(MIXED, ADD_ON)],
        lambda w: w.meter.keys.verify(w.secret, op="x"),
        repeatable=True,
    ),
    "update a key": Case(
        [key_made], lambda w: w.meter.keys.update(w.key_id, enabled=False, name="x"), True
    ),
    "forget": Case(
        [*_deep, consume(op="x"), lambda w: w.meter.set_meta("acme", {"a": 1})],
        lambda w: w.meter.forget("acme"),
        repeatable=True,
        resumable=True,
    ),
    "forget a leaf": Case(
        [*_deep, lambda w: w.meter.set_meta(PATH, {"a": 1})],
        lambda w: w.meter.forget(PATH),
        repeatable=True,
    ),
    "apply, first": Case([], applied(POOLS), repeatable=True),
    "apply, next": Case([applied(POOLS)], applied(LARGER, ADD_ON), repeatable=True),
}
