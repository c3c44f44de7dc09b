"""Reservations through either client: what they hold, how they end, what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import (
    Bucket,
    Code,
    HoldState,
    NoPlan,
    NotIncluded,
    OpConflict,
    OpNotFound,
    Plan,
    PolicyError,
    Pool,
    Slots,
    Unavailable,
)
from meterd.testing import ManualClock
from tests.client.hold_tools import PLANS, known, reserve, used
from tests.client.meter_tools import AnyMeter, Make


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


# --- What is held


def test_one_hold_covers_slots_and_credits(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 5})
    assert hold
    assert hold.decision.code is Code.OK
    assert [(s.name, s.kind, s.applied) for s in hold.decision.limits] == [
        ("jobs", "slots", 1),
        ("credits", "pool", 5),
    ]
    assert hold.decision.balance == 9
    jobs = meter.usage("acme")["jobs"]
    assert (jobs.limit, jobs.used, jobs.remaining, jobs.overage) == (10, 1, 9, 0)
    assert (jobs.resets_at, jobs.retry_after) == (None, None)
    decision = hold.commit({"tokens": 3})
    assert (decision["credits"].used, decision["credits"].applied) == (3, 3)
    assert (decision["jobs"].used, decision["jobs"].remaining) == (0, 10)
    assert used(meter) == (0, 3)


@pytest.mark.parametrize("before", [None, 5, {"tokens": 5}, {}, {"tokens": 5, "jobs": 1}])
@pytest.mark.parametrize("after", [None, 5, {"tokens": 5}, {}, {"jobs": 1, "tokens": 5}])
def test_the_same_settlement_may_be_said_in_any_way(
    meter: AnyMeter, before: Any, after: Any
) -> None:
    both = (isinstance(before, dict) and "jobs" in before) or (
        isinstance(after, dict) and len(after) > 1
    )
    if both and 5 in (before, after):
        pytest.skip("a number does not say of what")
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 5} if both else {"tokens": 5})
    first = hold.commit(before)
    again = hold.commit(after)
    assert (first.replayed, again.replayed) == (False, True)
    assert used(meter) == (0, 5)
    with pytest.raises(OpConflict):
        hold.commit({"tokens": 4})
    elsewhere = known(meter, "acme", hold.id)
    full = {"tokens": 5, "jobs": 1} if both else {"tokens": 5}
    assert elsewhere.commit(full).replayed
    with pytest.raises(OpConflict):
        elsewhere.commit({**full, "image": 1})
    assert used(meter) == (0, 5)


def test_a_part_and_then_all_of_it(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 5})
    hold.commit({"tokens": 2})
    assert hold.commit({"tokens": 2, "jobs": 1}).replayed
    with pytest.raises(OpConflict):
        hold.commit()
    assert used(meter) == (0, 2)


def test_all_or_nothing(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 1001})
    assert not hold
    assert hold.decision.code is Code.USAGE_EXCEEDED
    assert used(meter) == (0, 0)
    assert reserve(meter, "acme", "nothing").decision.code is Code.NOT_INCLUDED


def test_slots_run_out_and_come_back(meter: AnyMeter, clock: ManualClock) -> None:
    holds = [reserve(meter, "acme", "jobs", ttl=10 + n) for n in range(10)]
    assert all(holds)
    refused = reserve(meter, "acme", "jobs").decision
    assert (refused.code, refused.retry_after) == (Code.RATE_LIMITED, 10)
    assert meter.check("acme", "jobs").code is Code.RATE_LIMITED
    assert reserve(meter, "acme", "jobs", 11).decision.retry_after is None
    holds[9].release()
    holds[8].commit()
    assert meter.check("acme", "jobs", 2)
    assert not meter.check("acme", "big-jobs")
    clock.advance(seconds=10)
    assert not meter.check("acme", "jobs", 4)
    clock.advance(seconds=1)
    assert reserve(meter, "acme", "big-jobs")
    assert used(meter)[0] == 10


@pytest.mark.parametrize("verb", ["consume", "report", "refund"])
def test_only_a_reservation_takes_slots(meter: AnyMeter, verb: str) -> None:
    with pytest.raises(PolicyError, match="only a reservation"):
        getattr(meter, verb)("acme", {"tokens": 1, "jobs": 1})
    assert used(meter) == (0, 0)


def test_slots_are_overridden_and_not_adjusted(meter: AnyMeter) -> None:
    meter.override("acme", "jobs", limit=1)
    assert reserve(meter, "acme", "jobs")
    assert not reserve(meter, "acme", "jobs")
    with pytest.raises(PolicyError):
        meter.adjust("acme", "jobs", used=0)
    for fields in ({"limit": None}, {"burst": 5}, {"overage": 5}):
        with pytest.raises(PolicyError):
            meter.override("acme", "jobs", **fields)
    meter.override("acme", "jobs", clear=True)
    meter.subscribe("acme", "more")
    assert meter.usage("acme")["jobs"].limit == 15
    assert used(meter)[0] == 1


def test_levels_hold_together(meter: AnyMeter) -> None:
    meter.subscribe("acme/ana", limits=[Slots("jobs", 2), Bucket("api", 3, "1m")])
    holds = [reserve(meter, "acme/ana", {"jobs": 1, "api": 1}) for _ in range(3)]
    assert [bool(hold) for hold in holds] == [True, True, False]
    assert [s.subject for s in holds[2].decision.refused] == ["acme/ana"]
    assert [s.used for s in meter.usage("acme/ana") if s.name == "jobs"] == [2, 2]
    holds[0].release()
    holds[1].commit()
    states = {(s.subject, s.name): s.used for s in meter.usage("acme/ana")}
    assert states["acme", "jobs"] == states["acme/ana", "jobs"] == 0
    assert states["acme", "api"] == states["acme/ana", "api"] == 1
    levels = meter.usage("acme/ana").levels
    assert [(level.holds, level.open_holds) for level in levels] == [((), 0)] * 2


# --- How it ends


@pytest.mark.parametrize(
    ("actual", "credits"),
    [(None, 50), (0, 0), (20, 20), (50, 50), (70, 70), ({"tokens": 7}, 7), ({"image": 2}, 70)],
)
def test_commit(meter: AnyMeter, actual: Any, credits: int) -> None:
    hold = reserve(meter, "acme", "tokens", 50)
    decision = hold.commit(actual)
    assert decision.code is Code.OK
    assert (decision["credits"].used, decision["credits"].applied) == (credits, credits)
    assert used(meter) == (0, credits)
    again = hold.commit(actual)
    assert again.replayed
    assert again.limits == decision.limits
    assert repr(hold.raw).endswith("of 'acme', committed>")


def test_a_commit_goes_beyond_the_limit(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", "tokens", 1000)
    state = hold.commit(1100)["credits"]
    assert (state.used, state.overage, state.remaining) == (1100, 100, -100)


def test_finished_differently_is_a_conflict(meter: AnyMeter) -> None:
    hold = reserve(meter, "acme", "tokens", 50)
    hold.commit(5)
    for other in (lambda: hold.commit(6), hold.release, known(meter, "acme", hold.id).release):
        with pytest.raises(OpConflict, match="already released, or committed"):
            other()
    second = reserve(meter, "acme", "tokens", 50)
    second.release()
    second.release()
    with pytest.raises(OpConflict):
        second.commit(5)
    assert used(meter) == (0, 5)


def test_another_process_finishes_it(make: Make) -> None:
    one, two = make(PLANS), make(PLANS)
    first, second, third = [
        reserve(one, ("acme",), {"jobs": 1, "tokens": 50}, op=f"job-{n}") for n in range(3)
    ]
    known(two, "acme", first.id).commit({"tokens": 8})
    known(two, "acme", second.id).release()
    assert known(two, "acme", third.id).commit()["credits"].applied == 50
    assert used(one) == (0, 58)
    # Who began it may say the same; and it is known here what else was held.
    assert first.commit({"tokens": 8}).replayed
    assert third.commit().replayed
    with pytest.raises(OpConflict):
        second.commit()


# --- After it is over


def test_commit_after_expiry_is_a_report(meter: AnyMeter, clock: ManualClock) -> None:
    holds = [reserve(meter, "acme", {"jobs": 1, "tokens": 400, "api": 90}) for _ in range(2)]
    assert [bool(hold) for hold in holds] == [True, False]
    clock.advance(seconds=60)
    assert used(meter) == (0, 0)
    holds[1] = reserve(meter, "acme", "tokens", 990)
    # All as held, though the server forgot it: 400 go beyond what is left.
    decision = holds[0].commit()
    assert decision.code is Code.OK
    assert (decision["credits"].applied, decision["credits"].overage) == (400, 390)
    assert (decision["api"].applied, decision["jobs"].applied) == (90, 0)
    assert holds[0].commit().replayed
    holds[1].commit(5)
    assert used(meter) == (0, 405)


def test_what_is_over_cannot_be_renewed(meter: AnyMeter, clock: ManualClock) -> None:
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 5}, ttl="30s")
    clock.advance(seconds=29)
    hold.renew(timedelta(minutes=1))
    clock.advance(seconds=59)
    assert used(meter) == (1, 5)
    clock.advance(seconds=1)
    with pytest.raises(OpNotFound, match="over, or never was"):
        hold.renew(60)
    hold.release()  # holds nothing
    assert used(meter) == (0, 0)


def test_a_hold_that_nobody_knows(meter: AnyMeter) -> None:
    for act in (lambda h: h.commit(), lambda h: h.renew(5)):
        with pytest.raises(OpNotFound):
            act(known(meter, "acme", "nobody"))
    known(meter, "acme", "nobody").release()
    assert known(meter, "acme", "late").commit({"tokens": 3})["credits"].applied == 3
    assert known(meter, "acme", "slots").commit({"jobs": 3})["jobs"].applied == 0
    with pytest.raises(NotIncluded, match="commit: nothing was recorded: NOT_INCLUDED"):
        known(meter, "acme", "other").commit({"nothing": 3})


def test_without_a_plan(make: Make) -> None:
    meter = make([PLANS[1]])
    hold = reserve(meter, "acme", "jobs")
    assert (bool(hold), hold.decision.code) == (False, Code.NO_PLAN)
    with pytest.raises(NoPlan):
        known(meter, "acme", "some").commit({"jobs": 1})
    assert reserve(meter, "acme", "jobs", join="more")


def test_a_hold_of_nothing(meter: AnyMeter) -> None:
    for costs in ({"tokens": 0}, {"export": 1}):
        hold = reserve(meter, "acme", costs, keepalive=True)
        assert hold
        hold.renew(60)
        assert hold.commit().code is Code.OK
    assert meter.usage("acme").levels[0].open_holds == 0


# --- Operation ids


def test_an_operation_id_names_the_hold(meter: AnyMeter) -> None:
    one = reserve(meter, "acme", {"jobs": 1, "tokens": 5}, op="call-7")
    two = reserve(meter, "acme", {"tokens": 5, "jobs": 1}, op="call-7", wait=1)
    assert (one.id, two.id, two.decision.op) == ("call-7",) * 3
    assert two.decision.replayed
    assert two.decision.limits == one.decision.limits
    assert used(meter) == (1, 5)
    for costs, ttl in (({"jobs": 1, "tokens": 6}, 60), ({"jobs": 1, "tokens": 5}, 61)):
        with pytest.raises(OpConflict):
            reserve(meter, "acme", costs, ttl=ttl, op="call-7")
    with pytest.raises(OpConflict):
        meter.consume("acme", "tokens", 5, op="call-7")
    two.commit({"tokens": 2})
    assert used(meter) == (0, 2)
    assert reserve(meter, "acme", {"jobs": 1, "tokens": 5}, op="call-7").decision.replayed
    made = reserve(meter, "acme", "tokens", op=True)
    assert made.id == made.decision.op
    assert reserve(meter, "acme", "tokens").decision.op is None


# --- Looking, forgetting, observing


def test_usage_shows_open_holds(meter: AnyMeter, clock: ManualClock) -> None:
    late = reserve(meter, "acme", {"jobs": 1, "tokens": 50}, ttl=90)
    soon = reserve(meter, "acme", "tokens", 7, ttl="10s")
    (level,) = meter.usage("acme").levels
    assert level.open_holds == 2
    assert level.holds == (
        HoldState(soon.id, clock.now_ms + 10_000, {"tokens": 7}, {"tokens": 0}),
        HoldState(
            late.id, clock.now_ms + 90_000, {"jobs": 1, "tokens": 50}, {"jobs": 0, "tokens": 0}
        ),
    )
    assert level.holds[0].expires == datetime(2025, 1, 1, 0, 0, 10, tzinfo=UTC)
    assert level.as_dict()["holds"][0] == {
        "id": soon.id,
        "expires": "2025-01-01T00:00:10+00:00",
        "amounts": {"tokens": 7},
        "tallied": {"tokens": 0},
    }
    clock.advance(seconds=10)
    assert [hold.id for hold in meter.usage("acme").levels[0].holds] == [late.id]
    late.release()
    assert meter.usage("acme").levels[0].holds == ()


def test_forget_takes_holds_along(meter: AnyMeter) -> None:
    meter.subscribe("acme/ana", limits=[Slots("jobs", 2)])
    open_one = reserve(meter, "acme/ana", "jobs", op="open")
    reserve(meter, "acme/ana", "jobs").commit()
    assert meter.forget("acme") == 2 + 2 * 2 + 1 + 1
    assert not list(meter.subjects())
    with pytest.raises(OpNotFound):
        open_one.renew(5)
    assert used(meter) == (0, 0)


def test_what_the_observer_hears(make: Make) -> None:
    heard: list[tuple[str, Any, str]] = []
    meter = make(
        PLANS, observer=lambda verb, subject, outcome, _: heard.append((verb, subject, outcome))
    )
    hold = reserve(meter, "acme", "jobs")
    hold.renew(5)
    hold.commit()
    reserve(meter, ("acme",), "jobs", 11)
    with pytest.raises(OpConflict):
        hold.release()
    assert heard == [
        ("reserve", "acme", "OK"),
        ("renew", "acme", "OK"),
        ("commit", "acme", "OK"),
        ("reserve", ("acme",), "RATE_LIMITED"),
        ("release", "acme", "OpConflict"),
    ]


# --- Without the server


def test_degraded(make: Make, tmp_path: Any) -> None:
    open_plan = Plan(
        "open",
        includes=[Bucket("api", 5, "1m", on_error="allow"), Slots("jobs", 5), Pool("credits", 5)],
        default=True,
    )
    meter = make([open_plan], url=f"unix://{tmp_path}/none", timeout=0.2)
    meter.raw._store.ready = True  # as if the server had gone away meanwhile
    with reserve(meter, "acme", "api", keepalive=True) as hold:
        assert hold.decision.degraded
        hold.renew(5)
    assert hold.commit().degraded
    hold.release()
    for costs in ("jobs", "credits", {"api": 1, "jobs": 1}):
        with pytest.raises(Unavailable):
            reserve(meter, "acme", costs)
