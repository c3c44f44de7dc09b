"""Operations of earlier by their ids: what became of one, and giving one back as a whole, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Bucket, OpConflict, Operation, OpNotFound, Plan, PolicyError, Pool, Slots
from meterd.testing import ManualClock, fake
from tests.client.hold_tools import known, reserve
from tests.client.meter_tools import AnyMeter, Make

MIXED = Plan(
    "mixed",
    default=True,
    includes=[
        Pool("credits", 10, "month", overage=90, rates={"tokens": 1, "image": 5}),
        Bucket("fixed", 100, "1m", algorithm="fixed", rates={"tokens": 1}),
        Bucket("sliding", 100, "1m", rates={"tokens": 1}),
        Bucket("token", 100, "100s", algorithm="token", rates={"tokens": 1}),
        Slots("jobs", 5),
    ],
)
OTHER = Plan("other", includes=[Pool("credits", 10, "day"), Bucket("fixed", 9, "1d")])


@pytest.fixture
def mixed(make: Make) -> AnyMeter:
    return make([MIXED, OTHER])


def used(meter: AnyMeter, subject: Any = "acme") -> dict[str, int]:
    return {state.name: state.used for state in meter.usage(subject)}


def applied(decision: Any) -> dict[str, int]:
    return {state.name: state.applied for state in decision.limits}


# --- Giving it back


@pytest.mark.parametrize("verb", ["consume", "report"])
def test_all_that_it_charged_comes_back_once(mixed: AnyMeter, verb: str) -> None:
    mixed.consume("acme", "tokens", 3)
    getattr(mixed, verb)("acme", {"tokens": 4, "image": 2}, op="x")
    mixed.consume("acme", "tokens", 1)
    assert used(mixed) == {"credits": 18, "fixed": 8, "sliding": 8, "token": 8, "jobs": 0}
    first = mixed.refund("acme", of="x")
    assert first.allowed
    assert (first.op, first.replayed) == (None, False)
    assert applied(first) == {"credits": 14, "fixed": 4, "sliding": 4, "token": 4}
    assert first.balance == 96  # of tokens, as tokens were named first
    now = {"credits": 4, "fixed": 4, "sliding": 4, "token": 4, "jobs": 0}
    assert used(mixed) == now
    for options in ({}, {"op": "again"}, {"op": True}):
        again = mixed.refund("acme", of="x", **options)
        assert again.replayed
        assert again.limits == first.limits
    assert used(mixed) == now
    # It still is what it was, so it is not charged again either.
    assert getattr(mixed, verb)("acme", {"tokens": 4, "image": 2}, op="x").replayed
    assert used(mixed) == now


def test_what_went_over_comes_back_from_there(mixed: AnyMeter) -> None:
    mixed.consume("acme", "image", 1, op="within")
    mixed.consume("acme", "image", 2, op="across")
    mixed.consume("acme", "image", 1, op="beyond")
    assert mixed.usage("acme")["credits"].overage == 10
    state = mixed.refund("acme", of="within")["credits"]
    assert (state.applied, state.used, state.overage, state.remaining) == (5, 15, 10, -5)
    state = mixed.refund("acme", of="across")["credits"]
    assert (state.applied, state.used, state.overage, state.remaining) == (10, 5, 5, 5)
    state = mixed.refund("acme", of="beyond")["credits"]
    assert (state.applied, state.used, state.overage, state.remaining) == (5, 0, 0, 10)


def test_on_every_level_of_its_path(mixed: AnyMeter) -> None:
    mixed.subscribe("acme/team", limits=[Pool("credits", 7, rates={"tokens": 2})])
    mixed.consume("acme/team/ana", "tokens", 3, op="x")
    decision = mixed.refund("acme/team/ana", of="x")
    assert [(s.subject, s.name, s.applied) for s in decision.limits] == [
        ("acme", "credits", 3),
        ("acme", "fixed", 3),
        ("acme", "sliding", 3),
        ("acme", "token", 3),
        ("acme/team", "credits", 6),
    ]


def test_what_is_over_lapses(mixed: AnyMeter, clock: ManualClock) -> None:
    clock.set(datetime(2025, 1, 31, 23, 59, 30, tzinfo=UTC))
    mixed.consume("acme", "tokens", 60, op="x")
    clock.advance(seconds=30)  # as much has flowed back to the token bucket, a window of two ended
    mixed.consume("acme", "tokens", 5)
    assert applied(mixed.refund("acme", of="x")) == {
        "credits": 60, "fixed": 60, "sliding": 60, "token": 30,
    }  # fmt: skip
    assert used(mixed)["token"] == 5
    mixed.consume("acme", "tokens", 7, op="y")
    clock.advance(minutes=1)
    mixed.consume("acme", "tokens", 1)
    assert applied(mixed.refund("acme", of="y")) == {
        "credits": 7, "fixed": 0, "sliding": 7, "token": 0,
    }  # fmt: skip


def test_of_a_period_that_is_over_nothing_comes_back(make: Make, clock: ManualClock) -> None:
    meter = make([Plan("daily", default=True, includes=[Pool("credits", 10, "day", rollover=5)])])
    meter.consume("acme", "credits", 7, op="x")
    clock.advance(hours=23, minutes=59)
    meter.consume("acme", "credits", 2, op="y")
    clock.advance(minutes=1)
    meter.consume("acme", "credits", 6)
    decision = meter.refund("acme", of="y")
    assert (decision["credits"].applied, decision["credits"].used) == (0, 6)
    assert meter.refund("acme", of="y").replayed


def test_never_below_zero(mixed: AnyMeter) -> None:
    mixed.consume("acme", "tokens", 4, op="x")
    mixed.refund("acme", "tokens", 3)
    assert applied(mixed.refund("acme", of="x")) == dict.fromkeys(
        ("credits", "fixed", "sliding", "token"), 1
    )


def test_plans_that_changed_meanwhile(mixed: AnyMeter, clock: ManualClock) -> None:
    """Matched by name and kind, and by when their period began."""
    mixed.consume("acme", {"tokens": 4}, op="x")
    mixed.consume("acme", {"tokens": 3}, op="y")
    clock.advance(seconds=1)
    mixed.subscribe("acme", "other")
    decision = mixed.refund("acme", of="x")  # the names of their costs are others now
    assert applied(decision) == {"credits": 4}
    assert decision.balance == 0  # nothing charges tokens any more
    mixed.subscribe("acme", "mixed", change="reset")
    mixed.consume("acme", "image")
    assert applied(mixed.refund("acme", of="y")) == dict.fromkeys(
        ("credits", "fixed", "sliding", "token"), 0
    )
    assert used(mixed)["credits"] == 5


# --- Holds


def test_what_a_commit_kept_comes_back(mixed: AnyMeter, clock: ManualClock) -> None:
    hold = reserve(mixed, "acme", {"tokens": 12, "jobs": 1}, ttl=600, op="call")
    with pytest.raises(PolicyError, match="not committed; release it"):
        mixed.refund("acme", of="call")
    clock.advance(seconds=10)
    hold.commit({"tokens": 15})
    assert used(mixed)["credits"] == 15
    decision = mixed.refund("acme", of="call")
    # Of the 12 that were reserved 10 flowed back to the bucket; the 3 beyond were charged just now.
    assert applied(decision) == {"credits": 15, "fixed": 15, "sliding": 15, "token": 5, "jobs": 0}
    assert used(mixed) == dict.fromkeys(("credits", "fixed", "sliding", "token", "jobs"), 0)
    assert mixed.refund("acme", of="call").replayed
    assert known(mixed, "acme", "call").commit({"tokens": 15}).replayed


def test_a_commit_keeps_where_its_hold_charged(make: Make, clock: ManualClock) -> None:
    meter = make(
        [
            Plan(
                "daily",
                default=True,
                includes=[Pool("credits", 10, "day", anchor="calendar", overage=50)],
            )
        ]
    )
    clock.advance(hours=23)
    hold = reserve(meter, "acme", {"credits": 8}, ttl=7200)
    clock.advance(hours=1)
    meter.consume("acme", "credits", 6)
    hold.commit(9)  # 8 of them were of yesterday
    state = meter.refund("acme", of=hold.id)["credits"]
    assert (state.applied, state.used) == (1, 6)


def test_a_released_hold_has_nothing_to_give(mixed: AnyMeter) -> None:
    hold = reserve(mixed, "acme", {"tokens": 2})
    hold.release()
    with pytest.raises(PolicyError, match="released"):
        mixed.refund("acme", of=hold.id)
    assert mixed.operation("acme", hold.id).verb == "release"


# --- What cannot be given back


def test_unknown_and_forgotten_ids(make: Make, clock: ManualClock) -> None:
    meter = make([MIXED], op_retention="10s")
    meter.consume("acme", "tokens", op="x")
    for of in ("y", "x" * 128):
        with pytest.raises(OpNotFound, match=f"{of!r} is known"):
            meter.refund("acme", of=of)
    with pytest.raises(OpNotFound):
        meter.refund("globex", of="x")
    clock.advance(milliseconds=9_999)
    assert meter.operation("acme", "x").expires - meter.operation("acme", "x").at == timedelta(
        seconds=10
    )
    clock.advance(milliseconds=1)
    for ask in (lambda: meter.refund("acme", of="x"), lambda: meter.operation("acme", "x")):
        with pytest.raises(OpNotFound):
            ask()
    assert used(meter)["credits"] == 1


def test_a_refusal_is_no_operation(mixed: AnyMeter) -> None:
    assert not mixed.consume("acme", "tokens", 101, op="x")
    with pytest.raises(OpNotFound):
        mixed.refund("acme", of="x")


def test_only_what_charges(mixed: AnyMeter) -> None:
    mixed.consume("acme", "tokens", 5, op="charge")
    mixed.refund("acme", "tokens", 2, op="some")
    mixed.refund("acme", of="charge", op="all")
    mixed.subscribe("acme", "mixed", op="plan")
    for op, verb in (("some", "refund"), ("all", "refund"), ("plan", "subscription")):
        with pytest.raises(PolicyError, match=f"a {verb} "):
            mixed.refund("acme", of=op)


def test_on_its_own_path_only(mixed: AnyMeter) -> None:
    mixed.consume(("acme", "a/b"), "tokens", 5, op="x")
    for subject in ("acme", "acme/a", "acme/a/b", ("acme", "a/b", "c")):
        with pytest.raises(PolicyError, match=r"a consume of \('acme', 'a/b'\), not of"):
            mixed.refund(subject, of="x")
    assert used(mixed)["credits"] == 5
    assert mixed.refund(("acme", "a/b"), of="x")["credits"].applied == 5


def test_an_id_of_its_own(mixed: AnyMeter) -> None:
    mixed.consume("acme", "tokens", 5, op="x")
    mixed.consume("acme", "tokens", 5, op="y")
    assert not mixed.refund("acme", of="x", op="back").replayed
    assert mixed.refund("acme", of="x", op="back").replayed
    for again in (
        lambda: mixed.refund("acme", of="y", op="back"),
        lambda: mixed.refund("acme", of="y", op="x"),
        lambda: mixed.consume("acme", "tokens", 5, op="back"),
        lambda: mixed.refund("acme", "tokens", 5, op="back"),
    ):
        with pytest.raises(OpConflict):
            again()
    assert used(mixed)["credits"] == 5


def test_bad_arguments(mixed: AnyMeter) -> None:
    for wrong in ({}, {"costs": "tokens", "of": "x"}, {"of": "x", "amount": 2}, {"of": ""},
                  {"of": 5}, {"of": "x" * 129}, {"of": "x", "op": ""}):  # fmt: skip
        with pytest.raises(PolicyError):
            mixed.refund("acme", **wrong)
    for op in ("", None, "x" * 129):
        with pytest.raises(PolicyError, match="op: "):
            mixed.operation("acme", op)


# --- Looking one up


def test_what_became_of_it(mixed: AnyMeter, clock: ManualClock) -> None:
    first = mixed.consume("acme/team", {"tokens": 4, "image": 2}, op="x")
    clock.advance(seconds=5)
    found = mixed.operation("acme", "x")  # an id belongs to the root
    assert isinstance(found, Operation)
    assert (found.op, found.verb, found.subject) == ("x", "consume", "acme/team")
    assert found.costs == {"tokens": 4, "image": 2}
    assert found.decision is not None
    assert (found.decision.limits, found.decision.balance) == (first.limits, first.balance)
    assert (found.decision.op, found.decision.replayed) == ("x", True)
    assert found.at == datetime.fromtimestamp(clock.now_ms / 1000 - 5, UTC)
    assert found.expires == found.at + timedelta(days=1)
    assert (found.refunded, found.refund) == (False, None)
    given = mixed.refund("acme/team", of="x", op="back")
    found = mixed.operation("acme/team", "x")
    assert found.refunded
    assert found.refund is not None
    assert found.refund.limits == given.limits
    assert found.as_dict()["refund"]["limits"][0]["applied"] == 14
    back = mixed.operation("acme", "back")
    assert (back.verb, back.costs) == ("refund", {"tokens": 4, "image": 2})
    assert back.decision is not None
    assert back.decision.limits == given.limits


def test_every_verb(mixed: AnyMeter) -> None:
    mixed.report("acme", "tokens", 2, op="a")
    mixed.refund("acme", "tokens", 1, op="b")
    mixed.subscribe("acme/team", "mixed", op="c")
    hold = reserve(mixed, "acme", {"tokens": 3, "jobs": 1}, op="d")
    found = [mixed.operation("acme", op) for op in "abcd"]
    assert [one.verb for one in found] == ["report", "refund", "subscribe", "reserve"]
    assert [one.subject for one in found] == ["acme", "acme", "acme/team", "acme"]
    assert [one.decision is None for one in found] == [False, False, True, False]
    assert found[2].as_dict()["decision"] is None
    hold.commit({"tokens": 5, "image": 1})
    ended = mixed.operation("acme", "d")
    assert (ended.verb, ended.costs) == ("commit", {"tokens": 5, "jobs": 1, "image": 1})
    with pytest.raises(OpNotFound, match="never ran, or was refused"):
        mixed.operation("acme", "nothing")


def test_a_subject_like_no_other(mixed: AnyMeter) -> None:
    subject = ("a%b", "é/\n", "!", "c\x00")
    mixed.consume(subject, "tokens", 2, op="!")
    assert mixed.operation(subject, "!").subject == subject
    mixed.refund(subject, of="!")
    assert mixed.operation(subject, "!").refunded


def test_it_writes_nothing(mixed: AnyMeter, server: Any) -> None:
    mixed.consume("acme", "tokens", op="x")
    changes = server.ask("INFO", "persistence")["rdb_changes_since_last_save"]
    assert mixed.operation("acme", "x")
    assert server.ask("INFO", "persistence")["rdb_changes_since_last_save"] == changes


def test_on_fakeredis(clock: ManualClock) -> None:
    with fake([MIXED], clock=clock) as meter:
        meter.consume("acme", "tokens", 15, op="x")
        assert meter.refund("acme", of="x")["credits"].applied == 15
        assert meter.refund("acme", of="x").replayed
        assert meter.operation("acme", "x").refunded


# --- In batches


def test_in_a_pipeline(mixed: AnyMeter) -> None:
    pipeline = mixed.raw.pipeline()
    mixed.consume("acme", "tokens", 5, op="x")
    given = [pipeline.refund("acme", of="x"), pipeline.refund("acme", of="x")]
    mixed._settled(pipeline.execute())
    assert [one.result().replayed for one in given] == [False, True]
    assert used(mixed)["credits"] == 0
