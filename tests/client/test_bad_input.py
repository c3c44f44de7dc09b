"""Mistakes of the caller: always a named error that says what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Bucket, Flag, MeterdError, OpConflict, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import FREE, AnyMeter, Make

Call = Callable[[AnyMeter], Any]

AMOUNTS = [1.0, 0.5, float("nan"), float("inf"), True, False, "5", b"5", None, -1, 10**15 + 1]
SUBJECTS: list[Any] = [
    "",
    "a//b",
    "/a",
    "a/",
    "a/b/c/d/e",
    "x" * 129,
    "é" * 65,
    "\ud800",
    (),
    ("a", ""),
    ("a", 1),
    ("a", ["b"]),
    ["a", ["b"]],
    ("a", b"b"),
    ("a", "b", "c", "d", "e"),
    5,
    None,
    b"a",
    {"a": 1},
    {"a"},
    object(),
]
NAMES: list[Any] = ["", "two words", "a,b", "é", "x" * 65, "a\n", b"tokens", 5, None]


@pytest.mark.parametrize("verb", ["consume", "check", "report", "refund"])
@pytest.mark.parametrize("amount", AMOUNTS, ids=repr)
def test_amounts(meter: AnyMeter, verb: str, amount: Any) -> None:
    call = getattr(meter, verb)
    for costs in ("tokens", {"tokens": amount}):
        with pytest.raises(PolicyError, match=r"amount.*10\*\*15") as caught:
            call("ana", costs, amount) if costs == "tokens" else call("ana", costs)
        assert str(amount) in str(caught.value)
    assert meter.subjects() == []


@pytest.mark.parametrize("verb", ["consume", "check", "report", "refund"])
def test_costs(meter: AnyMeter, verb: str) -> None:
    call = getattr(meter, verb)
    for name in NAMES:
        with pytest.raises(PolicyError, match="costs"):
            call("ana", name)
        with pytest.raises(PolicyError, match="costs"):
            call("ana", {"tokens": 1, name: 1})
    with pytest.raises(PolicyError, match="empty mapping"):
        call("ana", {})
    for beside in (2, 0, 1.0, True):
        with pytest.raises(PolicyError, match="beside a mapping"):
            call("ana", {"tokens": 1}, beside)
    with pytest.raises(PolicyError, match="65 names; allowed: at most 64"):
        call("ana", {f"n{i}": 1 for i in range(65)})
    for costs in (["tokens"], ("tokens", 1), {"tokens"}):
        with pytest.raises(PolicyError, match="neither a cost name nor a mapping"):
            call("ana", costs)
    assert meter.subjects() == []


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: f"{type(s).__name__}-{str(s)[:8]!a}")
def test_subjects(meter: AnyMeter, subject: Any) -> None:
    calls: list[Call] = [
        lambda m: m.consume(subject, "tokens"),
        lambda m: m.check(subject, "tokens"),
        lambda m: m.report(subject, "tokens"),
        lambda m: m.refund(subject, "tokens"),
        lambda m: m.usage(subject),
        lambda m: m.subscribe(subject, "pro"),
        lambda m: m.unsubscribe(subject, "pro"),
        lambda m: m.override(subject, "credits", limit=5),
        lambda m: m.adjust(subject, "credits", used=5),
        lambda m: m.set_meta(subject, {"a": 1}),
        lambda m: m.meta(subject),
        lambda m: m.forget(subject),
    ]
    for call in calls:
        with pytest.raises(PolicyError, match="subject"):
            call(meter)
    assert meter.subjects() == []


OPS: list[Any] = ["", "x" * 129, "é" * 65, "\ud800", 5, b"op", 1.5, ["op"]]


@pytest.mark.parametrize("op", OPS, ids=ascii)
def test_operation_ids(meter: AnyMeter, op: Any) -> None:
    for call in (meter.consume, meter.report, meter.refund):
        with pytest.raises(PolicyError, match="op: "):
            call("ana", "tokens", op=op)
    with pytest.raises(PolicyError, match="op: "):
        meter.subscribe("ana", "pro", op=op)
    assert meter.subjects() == []


@pytest.mark.parametrize("join", ["nobody", "", 5, ["free"], {"free"}, True, b"free"], ids=ascii)
def test_join(meter: AnyMeter, join: Any) -> None:
    for call in (meter.consume, meter.check, meter.report):
        with pytest.raises(PolicyError, match=r"free, pack, pro|join"):
            call("ana", "tokens", join=join)
    with pytest.raises(PolicyError, match=r"free, pack, pro|join"):
        meter.usage("ana", join=join)
    assert meter.subjects() == []


WAITS: list[Any] = [-1, -0.5, float("nan"), True, "5", "", None, 10**12, []]


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_wait(meter: AnyMeter, wait: Any) -> None:
    with pytest.raises(PolicyError, match="wait: got"):
        meter.consume("ana", "tokens", wait=wait)
    with pytest.raises(PolicyError, match="wait: got"):
        meter.limiter("login", Bucket("ip", 5, "1m")).consume("1.2.3.4", wait=wait)
    assert meter.subjects() == []


NAIVE = datetime(2030, 1, 1)
AWARE = datetime(2030, 1, 1, tzinfo=UTC)
CALLS: list[tuple[str, Call, str]] = [
    ("refund nothing", lambda m: m.refund("a"), "costs, or of="),
    ("refund both", lambda m: m.refund("a", "tokens", of="x"), "not both"),
    ("subscribe to nothing", lambda m: m.subscribe("a"), "name a plan"),
    ("unknown plan", lambda m: m.subscribe("a", "prp"), "did you mean 'pro'"),
    ("plan that is no text", lambda m: m.subscribe("a", 5), "free, pack, pro"),
    ("plan that is a list", lambda m: m.subscribe("a", ["pro"]), "free, pack, pro"),
    ("private name taken", lambda m: m.subscribe("a", "pro", limits=[Flag("x")]), "in the catalog"),
    ("private name bad", lambda m: m.subscribe("a", "a b", limits=[Flag("x")]), "plan: id"),
    ("private name list", lambda m: m.subscribe("a", ["x"], limits=[Flag("x")]), "plan: id"),
    ("limits no list", lambda m: m.subscribe("a", limits=Flag("x")), "list of Pool"),
    ("limits a number", lambda m: m.subscribe("a", limits=5), "list of Pool"),
    ("limits of text", lambda m: m.subscribe("a", limits=["credits"]), "list of Pool"),
    ("limits twice", lambda m: m.subscribe("a", limits=[Flag("x"), Flag("x")]), "given twice"),
    ("change", lambda m: m.subscribe("a", "pro", change="merge"), '"reset" or "prorate"'),
    ("change a list", lambda m: m.subscribe("a", "pro", change=["keep"]), '"keep", "reset"'),
    ("when", lambda m: m.subscribe("a", "pro", when="later"), '"now", "period_end"'),
    ("when bare", lambda m: m.subscribe("a", "pro", when=5), "aware datetime"),
    ("when naive", lambda m: m.unsubscribe("a", "pro", when=NAIVE), "no time zone"),
    ("when before 1970", lambda m: m.subscribe("a", "pro", when=timedelta(-40_000)), "when"),
    ("when of unsubscribe", lambda m: m.unsubscribe("a", "pro", when="end"), '"now", "period_end"'),
    ("naive anchor", lambda m: m.subscribe("a", "pro", anchor=NAIVE), "no time zone"),
    ("bare anchor", lambda m: m.subscribe("a", "pro", anchor=5), "aware datetime"),
    ("anchor before 1970", lambda m: m.subscribe("a", "pro", anchor=timedelta(-40_000)), "anchor"),
    ("unsubscribe unknown", lambda m: m.unsubscribe("a", "nothing"), "does not hold"),
    ("unsubscribe a list", lambda m: m.unsubscribe("a", ["pro"]), "id of a plan"),
    ("override nothing", lambda m: m.override("a", "credits"), "at least one of limit"),
    ("override and clear", lambda m: m.override("a", "api", clear=True, limit=5), "nothing else"),
    ("clear, expires", lambda m: m.override("a", "api", clear=True, expires="1d"), "nothing else"),
    ("override unknown field", lambda m: m.override("a", "api", per=5), "limit, overage, burst"),
    ("override float", lambda m: m.override("a", "credits", limit=5.0), "integer from 0"),
    ("override bool", lambda m: m.override("a", "credits", limit=True), "integer from 0"),
    ("override negative", lambda m: m.override("a", "credits", overage=-1), "integer from 0"),
    ("override too much", lambda m: m.override("a", "credits", limit=10**15 + 1), "integer from 0"),
    ("override unknown", lambda m: m.override("a", "nothing", limit=5), "no pool, bucket or slots"),
    ("override flag", lambda m: m.override("a", "export", limit=5), "for pools"),
    ("burst of a pool", lambda m: m.override("a", "credits", burst=5), "for pools"),
    ("burst of a window", lambda m: m.override("a", "api", burst=5), "for token buckets"),
    ("unlimited bucket", lambda m: m.override("a", "api", limit=None), "for a bucket"),
    ("override past", lambda m: m.override("a", "api", limit=5, expires="0s"), "after now"),
    ("override naive", lambda m: m.override("a", "api", limit=5, expires=NAIVE), "no time zone"),
    ("override bare", lambda m: m.override("a", "api", limit=5, expires=60), "aware datetime"),
    ("adjust unknown", lambda m: m.adjust("a", "nothing", used=5), "no pool or bucket"),
    ("adjust flag", lambda m: m.adjust("a", "export", used=5), "no pool or bucket"),
    ("adjust float", lambda m: m.adjust("a", "credits", used=5.0), "plain integer"),
    ("adjust negative", lambda m: m.adjust("a", "credits", used=-5), "out of range"),
    ("adjust past a bucket", lambda m: m.adjust("a", "api", used=6), "at most 5"),
    ("meta no mapping", lambda m: m.set_meta("a", ["x"]), "mapping"),
    ("meta empty", lambda m: m.set_meta("a", {}), "at least one field"),
    ("meta unnamed", lambda m: m.set_meta("a", {"": 1}), "non-empty text"),
    ("meta number", lambda m: m.set_meta("a", {5: 1}), "non-empty text"),
    ("meta surrogate", lambda m: m.set_meta("a", {"\ud800": 1}), "text"),
    ("meta no JSON", lambda m: m.set_meta("a", {"x": {1}}), "JSON"),
    ("meta nan", lambda m: m.set_meta("a", {"x": float("nan")}), "JSON"),
    ("meta too many", lambda m: m.set_meta("a", {f"f{i}": 1 for i in range(129)}), "128"),
    ("apply no plans", lambda m: m.apply(["pro"]), "Plan"),
    ("apply one plan", lambda m: m.apply(FREE), "sequence of Plan"),
    ("apply a number", lambda m: m.apply(5), "sequence of Plan"),
    ("apply twice", lambda m: m.apply([FREE, FREE]), "given twice"),
    ("apply two defaults", lambda m: m.apply([Plan("z", includes=(), default=True)]), "default"),
    ("apply moved group", lambda m: m.apply([Plan("pro", includes=(), group="x")]), "group"),
    ("remove unknown", lambda m: m.apply([], remove=["nothing"]), "remove"),
    ("remove a number", lambda m: m.apply([], remove=5), "remove"),
    ("remove numbers", lambda m: m.apply([], remove=[5]), "remove"),
    ("remove and apply", lambda m: m.apply([FREE], remove=["free"]), "also among"),
    ("limiter unnamed", lambda m: m.limiter("", Bucket("ip", 5, "1m")), "limiter"),
    ("limiter name", lambda m: m.limiter(5, Bucket("ip", 5, "1m")), "limiter"),
    ("limiter of nothing", lambda m: m.limiter("login"), "at least one Bucket"),
    ("limiter of a pool", lambda m: m.limiter("login", Pool("ip", 5)), "at least one Bucket"),
]


@pytest.mark.parametrize(("call", "says"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_arguments(meter: AnyMeter, call: Call, says: str) -> None:
    meter.open()
    with pytest.raises(PolicyError, match=says) as caught:
        call(meter)
    assert len(str(caught.value)) < 500
    assert meter.subjects() == []
    assert sorted(meter.plans()) == ["free", "pack", "pro"]
    assert meter.revision == 1


CONFLICTS: list[tuple[list[Any], str]] = [
    ([Pool("credits", 5, "month")], "rates"),
    ([Pool("credits", 5, "day", rates={"tokens": 1, "image": 10})], "reset"),
    ([Bucket("credits", 5, "1m")], "one kind per name"),
    ([Flag("credits")], "one kind per name"),
    ([Pool("credits", 10**15, "month", rates={"tokens": 1, "image": 10})], "limit"),
]


@pytest.mark.parametrize(("limits", "says"), CONFLICTS, ids=[says for _, says in CONFLICTS])
def test_plans_that_do_not_go_together(meter: AnyMeter, limits: list[Any], says: str) -> None:
    meter.subscribe("ana", "pack")
    meter.consume("ana", "tokens", 5)
    before = meter.usage("ana")
    with pytest.raises(PolicyError, match=rf"'pack'.*'credits'.*{says}|'credits'.*{says}"):
        meter.subscribe("ana", limits=limits)
    with pytest.raises(PolicyError, match=rf"'credits'.*{says}"):
        meter.apply([Plan("third", includes=limits, group="third")])
    assert meter.usage("ana") == before
    assert sorted(meter.plans()) == ["free", "pack", "pro"]


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_one_kind_per_name_on_a_path(meter: AnyMeter, seen: bool) -> None:
    meter.apply([Plan("team", includes=[Flag("api"), Pool("other", 5)])])
    if seen:
        meter.consume("ana", "tokens", 5)
    meter.subscribe("ana/team", limits=[Pool("credits", 5, rates={"tokens": 3}), Flag("export")])
    before = meter.usage("ana/team")
    conflicts: list[tuple[Any, str]] = [
        ([Bucket("credits", 5, "1m")], "'credits' is a bucket.*a pool of 'ana'"),
        ([Flag("more"), Pool("api", 5)], "'api' is a pool.*a bucket of 'ana'"),
        ([Bucket("export", 5, "1m")], "'export' is a bucket.*a flag of 'ana'"),
    ]
    for limits, says in conflicts:
        for subject in ("ana/team", "ana/other", "ana/team/bob"):
            with pytest.raises(PolicyError, match=says):
                meter.subscribe(subject, limits=limits)
        with pytest.raises(PolicyError, match=says):
            meter.subscribe("ana/team", limits=limits, when="1d")
        with pytest.raises(PolicyError, match=says):
            meter.keys.create("ana", limits=limits)
    with pytest.raises(PolicyError, match=r"'api' is a flag.*a bucket of 'ana'"):
        meter.subscribe("ana/team", "team")
    assert meter.usage("ana/team") == before
    assert sorted(meter.subjects()) == (["ana", "ana/team"] if seen else ["ana/team"])
    limits = [Bucket("credits.rate", 5, "1m"), Pool("credits", 1)]
    meter.subscribe("ana/team", limits=limits, op="x")
    meter.subscribe("ana", limits=[Pool("credits.rate", 5)])
    meter.subscribe("ana/team", limits=limits, op="x")  # that was done already
    with pytest.raises(OpConflict):
        meter.subscribe("ana/team", limits=limits, change="reset", op="x")
    for op in (None, "y"):
        with pytest.raises(PolicyError, match=r"'credits.rate' is a bucket.*a pool of 'ana'"):
            meter.subscribe("ana/team", limits=limits, op=op)


@pytest.mark.parametrize("name", [*NAMES, {"credits": 1}, ["credits"]], ids=ascii)
def test_limit_names(meter: AnyMeter, name: Any) -> None:
    with pytest.raises(PolicyError, match="limit"):
        meter.override("ana", name, limit=5)
    with pytest.raises(PolicyError, match="limit"):
        meter.adjust("ana", name, used=5)
    assert meter.subjects() == []


NO_TEXTS: list[Any] = ["", "x" * 129, (), ("a", ""), 5, None, b"x", ("a",) * 5]


@pytest.mark.parametrize("subject", NO_TEXTS, ids=ascii)
def test_limiter_subjects(meter: AnyMeter, subject: Any) -> None:
    login = meter.limiter("login", Bucket("ip", 5, "1m"))
    for call in (login.consume, login.check, login.refund, login.reset):
        with pytest.raises(PolicyError, match="subject"):
            call(subject)


@pytest.mark.parametrize("amount", AMOUNTS, ids=repr)
def test_limiter_amounts(meter: AnyMeter, amount: Any) -> None:
    login = meter.limiter("login", Bucket("ip", 5, "1m"))
    for call in (login.consume, login.check, login.refund):
        with pytest.raises(PolicyError, match="amount"):
            call("1.2.3.4", amount)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"url": "localhost:6379"}, "scheme"),
    ({"url": "http://localhost"}, "scheme"),
    ({"url": ""}, "scheme"),
    ({"url": 5}, "must be text"),
    ({"url": "redis://h:99999"}, "port"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": float("nan")}, "timeout"),
    ({"timeout": None}, "timeout"),
    ({"max_connections": 0}, "max_connections"),
    ({"max_connections": 2.0}, "max_connections"),
    ({"max_connections": True}, "max_connections"),
    ({"prefix": ""}, "prefix"),
    ({"prefix": "a{b}"}, "prefix"),
    ({"prefix": 5}, "prefix"),
    ({"prefix": "\ud800"}, "prefix"),
    ({"op_retention": 60}, "op_retention"),
    ({"op_retention": "0s"}, "op_retention"),
    ({"op_retention": "a day"}, "op_retention"),
    ({"observer": 5}, "observer"),
    ({"clock": 5}, "clock"),
    ({"plans": FREE}, "plans"),
    ({"plans": ["free"]}, "plans"),
    ({"plans": 5}, "plans"),
    ({"plans": [FREE, FREE]}, "given twice"),
    ({"client": object()}, "client="),
]


@pytest.mark.parametrize(("settings", "says"), SETTINGS, ids=lambda v: ascii(v)[:20])
def test_settings(make: Make, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        make(**settings)


def test_url_and_client(make: Make) -> None:
    with pytest.raises(PolicyError, match="not both"):
        make(url="redis://localhost", client=object())


@pytest.mark.parametrize("now", [1.5, -1, 2**46, "now", None, True])
def test_a_clock_that_tells_no_time(make: Make, now: Any) -> None:
    class Broken:
        now_ms: Any = now

    with pytest.raises(PolicyError, match="clock"):
        make(clock=Broken()).consume("ana", "tokens")


def test_manual_clock() -> None:
    for start in (-1, 1.5, 2**46, "2025", True):
        with pytest.raises(PolicyError, match="clock"):
            ManualClock(start)  # type: ignore[arg-type]
    clock = ManualClock()
    with pytest.raises(PolicyError, match="no time zone"):
        clock.set(NAIVE)
    with pytest.raises(PolicyError, match="clock"):
        clock.advance(days=-40_000)
    assert clock.now_ms == ManualClock().now_ms


def test_every_call_on_a_closed_meter_says_so(meter: AnyMeter) -> None:
    meter.open()
    login = meter.limiter("login", Bucket("ip", 5, "1m"))
    meter.close()
    meter.close()
    calls: list[Call] = [
        lambda m: m.open(),
        lambda m: m.__enter__().consume("a", "tokens"),
        lambda m: m.consume("a", "tokens"),
        lambda m: m.check("a", "tokens"),
        lambda m: m.report("a", "tokens"),
        lambda m: m.refund("a", "tokens"),
        lambda m: m.usage("a"),
        lambda m: m.apply(),
        lambda m: m.plans(),
        lambda m: m.subscribe("a", "pro"),
        lambda m: m.unsubscribe("a", "pro"),
        lambda m: m.override("a", "credits", limit=5),
        lambda m: m.adjust("a", "credits", used=5),
        lambda m: m.set_meta("a", {"x": 1}),
        lambda m: m.meta("a"),
        lambda m: m.forget("a"),
        lambda m: m.subjects(),
        lambda m: login.consume("x"),
        lambda m: login.check("x"),
        lambda m: login.refund("x"),
        lambda m: login.reset("x"),
    ]
    for call in calls:
        with pytest.raises(MeterdError, match="closed"):
            call(meter)
