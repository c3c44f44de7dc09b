"""Holds that nobody looks at: what ends is given back late, as if it had been done at once.

A second model, `Prompt`, does at every single millisecond what ends then, in the plainest way.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.policy import Bucket, Flag, Pool
from tests.oracle import Oracle, OracleError
from tests.oracle.holds import Part, given_back
from tests.oracle.invariants import check
from tests.oracle.records import Record
from tests.oracle.slots import SlotsSpec
from tests.unit.model_tools import T0, Slots, plan

BASE = plan(
    Pool("m", 12, "20ms", rollover=7, carry_debt=True, overage=3, rates={"m": 2, "n": 1}),
    Pool("n", 40, overage=None),
    Pool("o", 9, "15ms", anchor="first_use", rates={"o": 1, "jobs": 2}),
    Bucket("s", 9, "7ms"),
    Bucket("t", 4, "9ms", algorithm="token", burst=12, rates={"t": 1, "m": 1}),
    Bucket("f", 8, "8ms", algorithm="fixed", rates={"n": 1}),
    Slots("jobs", 4),
    Flag("sso"),
)
OTHER = plan(
    Pool("m", 5, "30ms", overage=9),
    Pool("o", 20),
    Bucket("s", 6, "9ms", rates={"m": 1, "s": 1}),
    Bucket("t", 3, "7ms", algorithm="token"),
    Bucket("f", 8, "11ms", algorithm="fixed", rates={"n": 1}),
    Slots("jobs", 2),
    name="q",
)
PLANS = [BASE, OTHER, plan(Slots("x", 1), name="addon", group="addon")]
NAMES = ("m", "n", "o", "s", "t", "jobs", "extra")
SUBJECTS = ("a", "a/x", "a/x/y", "b")
HOMES = {"h1": "a/x", "h2": "a/x/y"}


class Prompt(Oracle):
    """Whoever moves its clock moves every level along, a millisecond at a time."""

    def advance(self, start: int, end: int) -> None:
        for now in range(start + 1, end + 1):
            for level in self.levels.records.values():
                for record in level.values():
                    self.end_what_ends(record, now)

    def end_what_ends(self, record: Record, now: int) -> None:
        for name, spec in record.specs.items():
            record.states[name] = spec.bring(record.states[name], now)
        for name in [n for n, o in record.overrides.items() if o.expires == now]:
            del record.overrides[name]
            if name in record.base:
                old, record.specs[name] = record.specs[name], record.base[name]
                record.states[name] = record.specs[name].convert(old, record.states[name], now)
        for grant in record.grants.values():
            if grant.expires == now:
                lost = grant._replace(left=0, expired=grant.expired + grant.left)
                record.grants[grant.id] = lost
        for hold_id in sorted(i for i, hold in record.holds.items() if hold.expires == now):
            hold = record.holds.pop(hold_id)
            for name, part in hold.parts.items():
                self.give_back_to_grants(record, part, hold.tallied, now)
                spec = record.specs.get(name)
                if spec is not None and record.incarnation(name) == part.incarnation:
                    keep = sum(hold.tallied[cost] * factor for cost, factor in part.factors)
                    keep = 0 if isinstance(spec, SlotsSpec) else keep
                    state = record.states[name]
                    record.states[name] = given_back(spec, state, part, keep, now)
        gone = [g for g in record.grants.values() if g.held == 0 and g.expires and g.expires <= now]
        for grant in gone:
            del record.grants[grant.id]
        for name in {grant.name for grant in gone} - {g.name for g in record.grants.values()}:
            if name not in record.base:
                del record.specs[name], record.states[name]
                record.incarnations[name] = record.incarnation(name) + 1

    def give_back_to_grants(self, record: Record, part: Part, used: Any, now: int) -> None:
        """One unit after the other, from that which was taken last."""
        taken = [name for name, units in part.shares for _ in range(units)]
        taken += ["over"] * part.over
        keep = sum(used[cost] * factor for cost, factor in part.factors)
        for number, name in enumerate(taken):
            if name in record.grants:
                grant = record.grants[name]
                alive = not grant.void and (grant.expires is None or grant.expires > now)
                where = "consumed" if number < keep else "left" if alive else "expired"
                changes = {"held": grant.held - 1, where: getattr(grant, where) + 1}
                record.grants[name] = grant._replace(**changes)


amounts = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 6), min_size=1, max_size=3)
ids = st.sampled_from(list(HOMES))
ttls = st.integers(1, 40)
held = st.sampled_from(
    [
        {"m": 3},
        {"extra": 3, "o": 2},
        {"t": 4, "n": 2},
        {"jobs": 1, "s": 3},
        {"m": 1, "s": 2, "t": 1},
        {"o": 2, "m": 2},
    ]
)
some = st.sampled_from([{"m": 1}, {"m": 2}, {"t": 2}, {"s": 1}, {"jobs": 1}])
tallied = st.tuples(st.just("tally"), ids, some, st.none() | ttls)
granted = st.sampled_from(["m", "m", "n", "o", "extra", "s"])
ends = st.none() | st.integers(-5, 40)
changes = st.sampled_from(["keep", "reset"])
VERBS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "reserve": st.tuples(st.just("reserve"), ids, held | amounts, ttls),
    "consume": st.tuples(st.just("consume"), amounts),
    "report": st.tuples(st.just("report"), amounts),
    "commit": st.tuples(st.just("commit"), ids, st.none() | some | amounts),
    "release": st.tuples(st.just("release"), ids),
    "renew": st.tuples(st.just("renew"), ids, ttls),
    "tally": tallied,
    "refund": st.tuples(st.just("refund"), amounts),
    "adjust": st.tuples(st.just("adjust"), st.sampled_from(NAMES), st.integers(0, 4)),
    "override": st.tuples(
        st.just("override"), st.sampled_from(NAMES), st.sampled_from([0, 5, 20, 10**12]), ttls
    ),
    "subscribe": st.tuples(st.just("subscribe"), st.sampled_from(["p", "q"]), changes),
    "apply": st.tuples(st.just("apply"), st.integers(1, 9)),
    "forget": st.tuples(st.just("forget")),
    "grant": st.tuples(
        st.just("grant"), granted, st.integers(1, 9), ends, ends, st.sampled_from([40, 50, 60])
    ),
    "void": st.tuples(st.just("void"), st.integers(0, 3)),
}
CHARGING = ["reserve"] * 5 + ["consume"] * 2 + ["commit"] * 2
CHARGING += ["report", "release", "renew", "tally", "tally", "grant", "grant", "void"]
SETTING = ["refund", "adjust", "override", "override", "subscribe", "apply", "forget"]
gaps, subjects = st.sampled_from([0, 0, 1, 2, 5, 9, 20]), st.sampled_from(SUBJECTS)
charging = st.sampled_from(CHARGING).flatmap(VERBS.__getitem__)
anything = st.sampled_from(CHARGING * 2 + SETTING).flatmap(VERBS.__getitem__)
histories = st.lists(st.tuples(subjects, anything, gaps), min_size=12, max_size=40)
charges = st.lists(st.tuples(subjects, charging, gaps), min_size=12, max_size=40)


def run(model: Oracle, subject: str, call: tuple[Any, ...], now: int) -> Any:
    """The call's answer, or the name of its error. A hold's own path is that of `HOMES`, mostly."""
    verb, *args = call
    if verb in ("reserve", "commit", "release", "renew", "tally") and subject != "b":
        subject = HOMES[args[0]]
    try:
        if verb == "reserve":
            return model.reserve(subject, args[1], ttl_ms=args[2], hold_id=args[0], now_ms=now)
        if verb == "tally":
            return model.tally(subject, args[0], args[1], ttl_ms=args[2], now_ms=now)
        if verb == "adjust":
            return model.adjust(subject, args[0], used=args[1], now_ms=now)
        if verb == "override":
            fields = {"limit": args[1], "expires_ms": now + args[2]}
            return model.override(subject, args[0], now_ms=now, **fields)
        if verb == "subscribe":
            return model.subscribe(subject, args[0], change=args[1], now_ms=now)
        if verb == "grant":
            name, amount, expires, starts, priority = args
            return model.grant(
                subject,
                name,
                amount,
                expires_ms=None if expires is None else now + expires,
                starts_ms=None if starts is None else now + starts,
                priority=priority,
                grant_id=f"{name}{amount}-{priority}-{now}",
                now_ms=now,
            )
        if verb == "void":
            booked = model.usage(subject, now_ms=now).grants[-1]
            chosen = booked[args[0]].id if args[0] < len(booked) else "none"
            return model.void(subject, chosen, now_ms=now)
        if verb == "apply":
            return model.apply([plan(*BASE.includes[:2], *BASE.includes[3:], Slots("x", args[0]))])
        if verb == "forget":
            return model.forget(subject)
        return getattr(model, verb)(subject, *args, now_ms=now)
    except OracleError as error:
        return type(error).__name__


def started(kind: type[Oracle]) -> Any:
    model = kind(PLANS, start_ms=T0, expire_first_sight=False)
    model.consume("a", "sso")
    model.subscribe("a/x", limits=[Pool("n", 25), Bucket("s", 5, "5ms", algorithm="fixed")])
    model.subscribe("a/x/y", limits=[Slots("jobs", 3), Pool("m", 9)])
    return model


@given(histories)
@settings(max_examples=200, deadline=None)
def test_late_is_as_good_as_prompt(history: list[tuple[str, tuple[Any, ...], int]]) -> None:
    late, prompt, now = started(Oracle), started(Prompt), T0
    for subject, call, gap in history:
        prompt.advance(now, now + gap)
        now += gap
        assert run(late, subject, call, now) == run(prompt, subject, call, now)
        check(late, now)
    prompt.advance(now, now + 50)
    for at in (now, now + 50):
        for subject in SUBJECTS:
            if at > now:
                assert late.usage(subject, now_ms=at) == prompt.usage(subject, now_ms=at)


@given(histories, st.lists(amounts, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_looking_changes_no_later_answer(
    history: list[tuple[str, tuple[Any, ...], int]], looks: list[dict[str, int]]
) -> None:
    quiet, watched, now = started(Oracle), started(Oracle), T0
    for number, (subject, call, gap) in enumerate(history):
        asked = looks[number % len(looks)]
        watched.usage(subject, now_ms=now + gap // 2)
        watched.check(subject, asked, now_ms=now + gap)
        refused = {**asked, "nothing": 1}
        watched.reserve(subject, refused, ttl_ms=5, hold_id="no", now_ms=now + gap)
        now += gap
        assert run(quiet, subject, call, now) == run(watched, subject, call, now)
    assert quiet.levels.records == watched.levels.records


@given(charges)
@settings(max_examples=100, deadline=None)
def test_shares_add_up(history: list[tuple[str, tuple[Any, ...], int]]) -> None:
    model, now = started(Oracle), T0
    for subject, call, gap in history:
        now += gap
        run(model, subject, call, now)
        check(model, now, charged_only=True)


@given(charges, subjects, amounts, st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_a_reservation_and_its_two_ends(
    history: list[tuple[str, tuple[Any, ...], int]], subject: str, held: dict[str, int], gap: int
) -> None:
    model, now = started(Oracle), T0
    for other, call, pause in history:
        now += pause
        run(model, other, call, now)
    released, committed = deepcopy(model), deepcopy(model)
    before = {(x.subject, x.name): x.used for x in model.usage(subject, now_ms=now).limits}
    checked = model.check(subject, held, now_ms=now)
    made = model.reserve(subject, held, ttl_ms=60, hold_id="it", now_ms=now)
    assert (made.allowed, made.code, made.retry_after_ms) == (
        checked.allowed,
        checked.code,
        checked.retry_after_ms,
    )
    if not made.allowed or not any(x.applied for x in made.limits):
        return
    # Given back at once, it is as if it had never been.
    released.reserve(subject, held, ttl_ms=60, hold_id="it", now_ms=now)
    released.release(subject, "it", now_ms=now)
    after = {(x.subject, x.name): x.used for x in released.usage(subject, now_ms=now).limits}
    assert after == before
    # Committed as held, at whatever instant, it is as if it had been consumed.
    committed.reserve(subject, held, ttl_ms=60, hold_id="it", now_ms=now)
    committed.commit(subject, "it", now_ms=now + gap)
    shown = {(x.subject, x.name): x for x in committed.usage(subject, now_ms=now + gap).limits}
    open_ones = {(x.subject, x.name): x for x in model.usage(subject, now_ms=now + gap).limits}
    for key, limit in shown.items():
        if limit.kind != "slots":
            assert limit == open_ones[key]
