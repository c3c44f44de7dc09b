"""The model's subjects, plans and operations: one example per rule, then what must always hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd import catalog
from meterd.policy import Bucket, Flag, Plan, Pool
from tests.oracle import NoPlan, NotIncluded, OpConflict, Oracle, PolicyError
from tests.oracle.calendar import to_ms
from tests.oracle.plans import merge, spec_of

HOUR, DAY = 3_600_000, 86_400_000
NOW = to_ms(datetime(2024, 1, 31, 12, tzinfo=UTC))
FREE = Plan(
    "free",
    includes=[Pool("messages", 10, "day"), Bucket("api", 3, "10s", rates={"messages": 1})],
    default=True,
)
PRO = Plan("pro", includes=[Pool("messages", 100, "day"), Bucket("api", 30, "10s"), Flag("sso")])
EXTRA = Plan("extra", includes=[Pool("messages", 5, "day"), Pool("images", 2)], group="addon")


def oracle(*plans: Plan, **options: Any) -> Oracle:
    return Oracle(plans or (FREE, PRO, EXTRA), start_ms=NOW, **options)


def used(model: Oracle, subject: str) -> dict[str, int]:
    return {limit.name: limit.used for limit in model.usage(subject).limits}


def test_first_sight_joins_the_default_or_what_the_call_says() -> None:
    model = oracle()
    assert model.usage("ana").plans == [{"base": "free"}]
    assert model.check("ana", "messages").allowed
    assert model.levels.records == {}
    decision = model.consume("ana", "messages", 2)
    assert (decision.allowed, decision.code, decision.balance) == (True, "OK", 1)
    assert [(x.name, x.used, x.applied) for x in decision.limits] == [
        ("messages", 2, 2),
        ("api", 2, 2),
    ]
    assert model.consume("bob", "sso", join="pro").balance is None
    assert model.usage("bob", join="free").plans == [{"base": "pro"}]
    assert model.usage("cy", join="extra").plans == [{"base": "free", "addon": "extra"}]
    with pytest.raises(PolicyError):
        model.check("ana", "messages", join="nothing")


def test_codes_and_what_a_refusal_says() -> None:
    model = oracle()
    refused = model.consume("ana", "messages", 4)
    assert (refused.code, refused.retry_after_ms, refused.balance) == ("RATE_LIMITED", None, 3)
    assert [x.name for x in refused.refused] == ["api"]
    assert model.levels.records == {}
    assert model.consume("ana", "messages", 11).code == "USAGE_EXCEEDED"
    partly = model.consume("ana", {"messages": 99, "sso": 1})
    assert (partly.code, partly.retry_after_ms, partly.balance) == ("NOT_INCLUDED", None, 3)
    assert [x.name for x in partly.refused] == ["messages", "api"]
    assert model.consume("ana", {"sso": 1, "messages": 1}).balance == 0
    for _ in range(3):
        assert model.consume("ana", "messages").allowed
    assert model.consume("ana", "messages").retry_after_ms == 10_000 + 3334
    empty = oracle(PRO)
    nothing = empty.consume("ana", "messages")
    assert (nothing.code, nothing.limits, nothing.balance) == ("NO_PLAN", [], 0)
    assert empty.refund("ana", "messages").code == "NO_PLAN"
    with pytest.raises(NoPlan):
        empty.report("ana", "messages")
    with pytest.raises(NotIncluded):
        model.report("ana", "sso")


def test_all_levels_or_none() -> None:
    model = oracle()
    model.subscribe("acme/team", limits=[Pool("messages", 2)])
    assert model.usage("acme/team").plans == [{"base": "free"}, {"base": "private"}]
    decision = model.consume("acme/team/ana", "messages", 2)
    assert [(x.subject, x.remaining) for x in decision.limits if x.kind == "pool"] == [
        (("acme",), 8),
        (("acme", "team"), 0),
    ]
    refused = model.consume("acme/team/ana", "messages")
    assert refused.code == "USAGE_EXCEEDED"
    assert refused.retry_after_ms is None
    assert refused.refused[0].subject == ("acme", "team")
    assert used(model, "acme") == {"messages": 2, "api": 2}
    assert model.consume(("acme", "te/am"), "messages").allowed


def test_amounts_add_up_and_rates_multiply() -> None:
    plan = Plan("p", includes=[Pool("credits", 100, rates={"image": 10, "text": 3})], default=True)
    model = oracle(plan)
    decision = model.consume("ana", {"text": 2, "image": 4})
    assert decision.limits[0].used == 46
    assert decision.balance == 54 // 3
    with pytest.raises(PolicyError):
        model.consume("ana", {})
    for amount in (-1, 1.0, True, 10**15 + 1, "1"):
        with pytest.raises(PolicyError):
            model.consume("ana", "image", amount)  # type: ignore[arg-type]


def test_report_goes_beyond_and_refund_comes_back_from_there_first() -> None:
    model = oracle()
    decision = model.report("ana", "messages", 25)
    pool, bucket = decision.limits
    assert (pool.used, pool.overage, pool.remaining, pool.applied) == (25, 15, -15, 25)
    assert (bucket.used, bucket.applied, decision.allowed) == (3, 3, True)
    assert (pool.allowed, bucket.allowed) == (False, False)
    back = model.refund("ana", "messages", 17)
    assert [(x.used, x.overage, x.applied) for x in back.limits] == [(8, 0, 17), (0, 0, 3)]
    assert [x.applied for x in model.refund("ana", "messages", 17).limits] == [8, 0]
    assert model.refund("new", "messages").allowed
    assert "new" not in model.levels.records


def test_operation_ids() -> None:
    model = oracle()
    first = model.consume("ana", {"messages": 2}, op="a")
    again = model.consume("ana", "messages", 2, op="a", join="pro", now_ms=NOW + DAY - 1)
    assert again.replayed
    assert again.limits == first.limits
    with pytest.raises(OpConflict):
        model.consume("ana", "messages", 3, op="a")
    with pytest.raises(OpConflict):
        model.report("ana/phone", "messages", 2, op="a")
    assert not model.consume("ana", "messages", 9, op="b").allowed
    assert model.consume("ana", "messages", 1, op="b").allowed, "a refusal is not sticky"
    late = model.consume("ana", "messages", 2, op="a", now_ms=NOW + DAY)
    assert late.allowed
    assert not late.replayed


def test_now_never_goes_back() -> None:
    model = oracle()
    model.consume("ana", "messages", now_ms=NOW + DAY)
    assert model.consume("ana", "messages").limits[0].resets_at_ms == NOW + 2 * DAY


def test_plans_add_up_as_the_package_says() -> None:
    base = Plan("base", includes=[Pool("m", 5, "day", overage=2), *buckets(3, None), Flag("f")])
    one = Plan("one", includes=[Bucket("n", 4, "1s"), Pool("m", 7, "day")], group="a")
    two = Plan("two", includes=[*buckets(10, 20), Pool("m", 1, "day", overage=None)], group="z")
    for plans in ([base], [base, one], [two, base], [two, one, base]):
        expected = {limit.name: spec_of(limit) for limit in catalog.merge(plans)}
        assert list(merge(plans).items()) == list(expected.items())


def buckets(limit: int, burst: int | None) -> list[Bucket]:
    return [Bucket("b", limit, "9s", algorithm="token", burst=burst)]


def test_a_new_revision_reaches_a_subject_at_its_next_writing_call() -> None:
    model = oracle(FREE, PRO)
    model.consume("ana", "messages", 3)
    addon = Plan("gift", includes=[Pool("messages", 7, "day")], group="gift")
    weekly = Plan("free", includes=[Pool("messages", 50, "week"), Flag("sso")], default=True)
    model.apply([weekly])
    later = NOW + 2 * HOUR
    shown = model.usage("ana", now_ms=later)
    assert [(x.name, x.used, x.limit) for x in shown.limits] == [
        ("messages", 3, 50),
        ("sso", 0, None),
    ]
    assert model.levels.records["ana"][("ana",)].revision == 1
    model.consume("ana", "sso", now_ms=later)
    assert model.levels.records["ana"][("ana",)].revision == 2
    assert model.usage("ana", now_ms=later).limits[0].resets_at_ms == NOW + 7 * DAY
    model.apply([weekly])
    assert model.catalog.revision == 2
    with pytest.raises(PolicyError):
        model.apply([addon])  # day and week cannot be added up
    model.apply([], remove=["pro"])
    with pytest.raises(PolicyError):
        model.subscribe("ana", "pro")
    with pytest.raises(PolicyError):
        model.apply([Plan("free", includes=[], group="addon")])


def test_groups_add_up() -> None:
    model = oracle()
    model.subscribe("ana", "extra")
    limits = {x.name: x.limit for x in model.usage("ana").limits}
    assert list(limits.items()) == [("messages", 15), ("images", 2), ("api", 3)]
    model.consume("ana", "images")
    model.unsubscribe("ana", "extra")
    model.unsubscribe("ana", "extra")
    assert model.consume("ana", "images").code == "NOT_INCLUDED"
    model.subscribe("ana", "pro")
    model.unsubscribe("ana", "pro")
    assert model.usage("ana").plans == [{"base": "free"}]


def test_an_upgrade_keeps_use_and_period_a_reset_starts_anew() -> None:
    model = oracle()
    model.consume("ana", "messages", 3)
    model.subscribe("ana", "pro", now_ms=NOW + HOUR)
    pool = model.usage("ana").limits[0]
    assert (pool.used, pool.remaining, pool.resets_at_ms) == (3, 97, NOW + DAY)
    model.subscribe("ana", "free", change="reset", now_ms=NOW + 2 * HOUR)
    pool = model.usage("ana").limits[0]
    assert (pool.used, pool.resets_at_ms) == (0, NOW + 2 * HOUR + DAY)
    model.subscribe("ana", "pro", anchor_ms=NOW + 5 * HOUR, now_ms=NOW + 3 * HOUR)
    assert model.usage("ana").limits[0].resets_at_ms == NOW + 5 * HOUR


def test_an_override_ends_at_its_own_instant() -> None:
    plan = Plan("p", includes=[Pool("m", 10, "1h", rollover=100)], default=True)
    model = oracle(plan)
    model.override("ana", "m", limit=50, expires_ms=NOW + 2 * HOUR + 1)
    model.consume("ana", "m", 20)
    # 30 left at 1 h, 50 more at 2 h; from then on 10 per hour.
    shown = model.usage("ana", now_ms=NOW + 3 * HOUR).limits[0]
    assert (shown.limit, shown.remaining) == (10, 100)
    assert model.usage("ana", now_ms=NOW + 2 * HOUR).limits[0].remaining == 130
    assert model.usage("ana", now_ms=NOW + 2 * HOUR + 1).limits[0].remaining == 90
    model.override("ana", "m", overage=None, now_ms=NOW + 3 * HOUR)
    assert model.check("ana", "m", 10**9).allowed
    model.override("ana", "m", clear=True)
    assert not model.check("ana", "m", 10**9).allowed
    with pytest.raises(PolicyError):
        model.override("ana", "later", limit=7)  # no plan at all includes it
    model.apply([Plan("more", includes=[Bucket("later", 1, "1s")], group="g")])
    model.override("ana", "later", limit=7)
    assert [x.limit for x in model.usage("ana").limits] == [10]  # it sleeps
    model.apply([Plan("more", includes=[Bucket("later", 1, "1s")], group="g", default=True)])
    assert [x.limit for x in model.usage("ana").limits] == [10, 7]
    mistakes: list[dict[str, Any]] = [{"burst": 3}, {"limit": -1}, {}]
    for wrong in mistakes:
        with pytest.raises(PolicyError):
            model.override("ana", "m", **wrong)


def test_adjust_sets_what_was_used() -> None:
    model = oracle()
    assert model.adjust("ana", "messages", used=12).overage == 2
    assert model.adjust("ana", "api", used=2).remaining == 1
    for name, amount in (("api", 4), ("sso", 1), ("nothing", 1)):
        with pytest.raises(PolicyError):
            model.adjust("ana", name, used=amount)
    assert used(model, "ana") == {"messages": 12, "api": 2}


def test_a_counter_has_an_end() -> None:
    model = oracle(Plan("p", includes=[Pool("m", None)], default=True))
    for _ in range(9):
        model.report("ana", "m", 10**15)
    with pytest.raises(PolicyError):
        model.consume("ana", "m", 1)
    assert used(model, "ana") == {"m": 9 * 10**15}


def test_first_use_periods_open_with_the_first_charge() -> None:
    model = oracle(
        Plan("p", includes=[Pool("m", 5, "5h", anchor="first_use"), Pool("n", 5)], default=True)
    )
    model.consume("ana", {"m": 0, "n": 1})
    assert model.usage("ana", now_ms=NOW + HOUR).limits[0].resets_at_ms is None
    model.consume("ana", "m", 5, now_ms=NOW + HOUR)
    refused = model.consume("ana", "m", now_ms=NOW + 2 * HOUR)
    assert refused.retry_after_ms == 4 * HOUR
    assert model.consume("ana", "m", 6, now_ms=NOW + 2 * HOUR).retry_after_ms is None
    assert model.usage("ana", now_ms=NOW + 6 * HOUR).limits[0].resets_at_ms is None


def test_bucket_records_that_first_sight_made_expire_when_full() -> None:
    plans = [
        Plan("a", includes=[Bucket("api", 2, "10s", algorithm="fixed")], default=True),
        Plan("b", includes=[Bucket("api", 5, "10s", algorithm="fixed")]),
    ]
    for expire, limit in ((True, 2), (False, 5)):
        model = Oracle(plans, start_ms=NOW, expire_first_sight=expire)
        model.consume("ana", "api", join="b")
        assert model.usage("ana", now_ms=NOW + 9_999).limits[0].limit == 5
        assert model.usage("ana", now_ms=NOW + 10_000).limits[0].limit == limit


def test_forget_and_limiter() -> None:
    model = oracle()
    model.consume("ana", "messages", op="a")
    model.subscribe("ana/x", "pro")
    model.forget("ana")
    assert model.usage("ana/x").plans == [{"base": "free"}, None]
    assert not model.consume("ana", "messages", 2, op="a").replayed
    login = model.limiter("login", Bucket("ip", 2, "1m"), Bucket("day", 9, "1d", rates={"x": 1}))
    assert [login.consume("ip:::1/64").allowed for _ in range(3)] == [True, True, False]
    assert login.check("ip:::1/64").code == "RATE_LIMITED"
    assert login.consume("other").balance == 1


# -- what always holds ---------------------------------------------------------------------------

costs = st.dictionaries(
    st.sampled_from(["m", "n", "b", "t", "f"]), st.integers(0, 9), min_size=1, max_size=3
)
verbs = st.sampled_from(["consume", "consume", "report", "refund"])
calls = st.lists(
    st.tuples(verbs, st.sampled_from(["a", "a/x", "a/x/y"]), costs, st.integers(0, 20_000)),
    max_size=25,
)
MIXED = Plan(
    "mixed",
    includes=[
        Pool("m", 12, "20s", rollover=7, carry_debt=True, overage=3, rates={"m": 2, "n": 1}),
        Pool("n", 40, overage=None),
        Bucket("b", 5, "7s"),
        Bucket("t", 4, "9s", algorithm="token", burst=6, rates={"t": 1, "m": 1}),
        Bucket("w", 6, "8s", algorithm="fixed", rates={"n": 1}),
        Flag("f"),
    ],
    default=True,
)


def mixed() -> Oracle:
    model = Oracle([MIXED], start_ms=NOW)
    # A refusal makes no record: what a pool would roll over counts from the first allowed call.
    assert model.consume("a", "f").allowed
    model.subscribe("a/x", limits=[Pool("n", 25), Bucket("b", 3, "5s", algorithm="fixed")])
    return model


@given(calls)
@settings(max_examples=150, deadline=None)
def test_answers_are_consistent(history: list[tuple[str, str, dict[str, int], int]]) -> None:
    model, now = mixed(), NOW
    net: dict[tuple[str, ...], int] = {}
    for verb, subject, amounts, gap in history:
        now += gap
        before, checked = model.usage(subject, now_ms=now), None
        if verb == "consume":
            checked = model.check(subject, amounts, now_ms=now)
            assert model.usage(subject, now_ms=now) == before, "check writes nothing"
        decision = getattr(model, verb)(subject, amounts, now_ms=now)
        after = {(x.subject, x.name): x for x in model.usage(subject, now_ms=now).limits}
        if checked is not None:
            assert (checked.allowed, checked.code) == (decision.allowed, decision.code)
            assert checked.retry_after_ms == decision.retry_after_ms
        if not decision.allowed:
            assert list(after.values()) == before.limits, "a refusal changes nothing"
            if decision.retry_after_ms is not None:
                again = model.check(subject, amounts, now_ms=now + decision.retry_after_ms)
                assert again.allowed
                early = now + decision.retry_after_ms - 1
                assert not model.check(subject, amounts, now_ms=early).allowed
        elif verb == "consume" and decision.balance is not None:
            first = next(iter(amounts))
            assert model.check(subject, first, decision.balance, now_ms=now).allowed
            assert not model.check(subject, first, decision.balance + 1, now_ms=now).allowed
        for limit in decision.limits:
            shown = after[limit.subject, limit.name]
            assert (limit.used, limit.remaining) == (shown.used, shown.remaining)
            if limit.name == "n":  # never resets: what went in and did not come back is there
                sign = -1 if verb == "refund" else 1
                net[limit.subject] = net.get(limit.subject, 0) + sign * limit.applied
                assert limit.used == net[limit.subject]


@given(calls, calls)
@settings(max_examples=60, deadline=None)
def test_looking_changes_no_later_answer(
    history: list[tuple[str, str, dict[str, int], int]],
    looks: list[tuple[str, str, dict[str, int], int]],
) -> None:
    quiet, watched, now = mixed(), mixed(), NOW
    for number, (verb, subject, amounts, gap) in enumerate(history):
        for _, path, asked, _ in looks[number : number + 2]:
            watched.usage(path, now_ms=now + gap // 2)
            watched.check(path, asked, now_ms=now + gap)
        now += gap
        assert getattr(quiet, verb)(subject, amounts, now_ms=now) == getattr(watched, verb)(
            subject, amounts, now_ms=now
        )
    assert quiet.levels.records == watched.levels.records
