"""What comes back when a hold ends, kind by kind: to exactly where it was charged, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from meterd import Bucket, Plan, Pool, Slots
from meterd.errors import PolicyError
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.held import Holder, assert_sound

MINUTE = 60_000
HOUR = 60 * MINUTE
START = 1_709_000_000_000 // HOUR * HOUR

Begin = Callable[..., Holder]


@pytest.fixture
def begin(make: Make, client: redis.Redis) -> Iterator[Begin]:
    """`begin(limit, ...)`: a meter whose default plan includes these, on a test clock."""
    made: list[Holder] = []

    def build(*limits: Any, **more: Any) -> Holder:
        clock = ManualClock(START)
        plans = [Plan("free", includes=limits, default=True)]
        plans += [Plan(name, includes=included) for name, included in more.items()]
        made.append(Holder(make(plans, clock=clock), client, clock))
        return made[-1]

    yield build
    for holder in made:
        assert_sound(holder.client, holder.meter)


def end(holder: Holder, hold_id: str, way: str) -> None:
    """Ends a hold that keeps 1, 0 or what was tallied."""
    if way == "commit":
        holder.commit(hold_id, {"x": 1})
    elif way == "release":
        holder.release(hold_id)
    else:
        assert way == "expire"
        holder.touch()


# Pools --------------------------------------------------------------------------------------------


def test_a_pool_gets_back_what_went_over_first(begin: Begin) -> None:
    holder = begin(Pool("x", 10, "1h", overage=10))
    first, second = holder.reserve("x", 8), holder.reserve("x", 7)
    assert (holder.meter.usage("a")["x"].used, holder.meter.usage("a")["x"].overage) == (15, 5)
    holder.release(first.id)  # none of it went over
    state = holder.meter.usage("a")["x"]
    assert (state.used, state.overage) == (7, 5)
    holder.commit(second.id, {"x": 1})
    state = holder.meter.usage("a")["x"]
    assert (state.used, state.overage) == (1, 0)


def test_no_more_comes_back_than_is_there(begin: Begin) -> None:
    holder = begin(
        Pool("x", 10, overage=10), Bucket("y", 20, "1h", algorithm="fixed", rates={"x": 1})
    )
    hold = holder.reserve("x", 12)
    holder.meter.refund("a", "x", 9)
    holder.release(hold.id)
    assert (holder.used("x"), holder.used("y")) == (0, 0)


@pytest.mark.parametrize("way", ["commit", "release", "expire"])
@pytest.mark.parametrize("anchor", ["subscription", "calendar", "first_use"])
def test_what_a_closed_period_held_lapses(begin: Begin, way: str, anchor: str) -> None:
    holder = begin(Pool("x", 10, "hour" if anchor == "calendar" else "1h", anchor=anchor))
    hold = holder.reserve("x", 6, ttl=HOUR)
    holder.later(HOUR)
    holder.meter.report("a", "x", 4)
    end(holder, hold.id, way)
    assert holder.used("x") == (5 if way == "commit" else 4)  # it had expired: charged anew


@pytest.mark.parametrize("way", ["commit", "release"])
def test_of_a_closed_period_nothing_is_charged_again(begin: Begin, way: str) -> None:
    holder = begin(Pool("x", 10, "1h"))
    hold = holder.reserve("x", 6, ttl=3 * HOUR)
    holder.later(HOUR)
    holder.meter.report("a", "x", 4)
    if way == "release":
        holder.release(hold.id)
        assert holder.used("x") == 4
    else:
        (state,) = holder.commit(hold.id, {"x": 9}).limits  # 3 more than was held
        assert (state.applied, state.used) == (9, 7)


@pytest.mark.parametrize(("ttl", "balance"), [(HOUR - 1, 20), (HOUR, 14)])
def test_what_expires_in_its_period_is_back_before_that_ends(
    begin: Begin, ttl: int, balance: int
) -> None:
    """It rolls over, though nobody came by until later. At one instant the period ends first."""
    holder = begin(Pool("x", 10, "1h", rollover=50))
    holder.reserve("x", 6, ttl=ttl)
    holder.later(HOUR)
    assert holder.meter.check("a", "x").balance == balance


def test_a_pool_that_was_reset_gets_nothing_back(begin: Begin) -> None:
    """Also within the same ms, where its period looks the same."""
    holder = begin(Pool("x", 10, "1h"))
    hold = holder.reserve("x", 6)
    holder.meter.subscribe("a", "free", change="reset")
    holder.meter.report("a", "x", 3)
    holder.release(hold.id)
    assert holder.used("x") == 3


@pytest.mark.parametrize("change", ["keep", "reset"])
def test_a_pool_that_goes_on_gets_it_back(begin: Begin, change: str) -> None:
    holder = begin(Pool("x", 10, "1h"), Bucket("y", 5, "1h"), pro=[Pool("x", 100, "1h")])
    hold = holder.reserve({"x": 6, "y": 2})
    holder.meter.subscribe("a", "pro", change=change)
    holder.meter.report("a", "x", 3)
    holder.release(hold.id)
    assert holder.used("x") == 3


# Windows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["commit", "release", "expire"])
@pytest.mark.parametrize(
    ("later", "open_"), [(MINUTE - 1, True), (MINUTE, False), (9 * MINUTE, False)]
)
def test_a_fixed_window_gets_it_back_while_it_is_open(
    begin: Begin, way: str, later: int, open_: bool
) -> None:
    holder = begin(Bucket("x", 10, "1m", algorithm="fixed"))
    hold = holder.reserve("x", 6, ttl=later if way == "expire" else 10 * MINUTE)
    holder.later(later)
    holder.meter.report("a", "x", 3)
    end(holder, hold.id, way)
    kept = 1 if way == "commit" and open_ else 0
    assert holder.used("x") == 3 + kept
    assert holder.meter.usage("a")["x"].resets_at_ms == (
        START + MINUTE if open_ else START + later + MINUTE
    )


def test_a_window_that_is_empty_stays_open(begin: Begin) -> None:
    holder = begin(Bucket("x", 10, "1m", algorithm="fixed"))
    holder.release(holder.reserve("x", 6).id)
    assert holder.meter.usage("a")["x"].resets_at_ms == START + MINUTE


@pytest.mark.parametrize(
    ("later", "current", "previous"),
    [(0, 3, 0), (MINUTE - 1, 3, 0), (MINUTE, 3, 0), (2 * MINUTE - 1, 3, 0), (2 * MINUTE, 3, 0)],
)
@pytest.mark.parametrize("way", ["release", "expire"])
def test_a_sliding_window_gets_it_back_to_the_one_that_was_charged(
    begin: Begin, later: int, current: int, previous: int, way: str
) -> None:
    holder = begin(Bucket("x", 10, "1m"))
    hold = holder.reserve("x", 6, ttl=max(1, later) if way == "expire" else 10 * MINUTE)
    assert START % MINUTE == 0
    holder.later(max(later, 1) if way == "expire" else later)
    holder.meter.report("a", "x", 3)
    end(holder, hold.id, way)
    rec = holder.stored().rec
    assert int.from_bytes(rec[26:31], "little") == current
    assert int.from_bytes(rec[31:36], "little") == previous


def test_what_others_used_in_the_previous_window_stays(begin: Begin) -> None:
    holder = begin(Bucket("x", 10, "1m"))
    hold = holder.reserve("x", 4, ttl=HOUR)
    holder.meter.consume("a", "x", 5)
    holder.later(MINUTE)
    holder.commit(hold.id, {"x": 1})
    rec = holder.stored().rec
    assert (int.from_bytes(rec[26:31], "little"), int.from_bytes(rec[31:36], "little")) == (0, 6)


# Token buckets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["commit", "release", "expire"])
@pytest.mark.parametrize("later", [0, 1, 5_999, 6_000, 6_001, 23_999, 24_001, MINUTE, 9 * MINUTE])
def test_a_token_bucket_gets_back_what_has_not_come_back_by_itself(
    begin: Begin, way: str, later: int
) -> None:
    """10 a minute: one every 6 s. What refilled since is taken to have been the hold's."""
    holder = begin(Bucket("x", 10, "1m", algorithm="token", burst=30))
    if way == "expire":
        later = max(1, later)
    holder.meter.consume("a", "x", 15)
    hold = holder.reserve("x", 8, ttl=later if way == "expire" else 10 * MINUTE)
    holder.later(later)
    refilled = min(8, -(-later // 6_000))
    keep = 1 if way == "commit" else 0
    spent = max(0, 23 - later // 6_000)
    end(holder, hold.id, way)
    assert holder.used("x") == max(0, spent - (max(0, 8 - refilled) - max(0, keep - refilled)))


# Slots --------------------------------------------------------------------------------------------


def test_slots_come_back_however_the_hold_ends(begin: Begin) -> None:
    holder = begin(Slots("x", 5))
    first = holder.reserve("x", 3)
    (state,) = holder.reserve("x", 2, ttl=1000).decision.limits
    assert (state.kind, state.used, state.remaining, state.applied) == ("slots", 5, 0, 2)
    refused = holder.try_reserve("x", 1).decision
    assert (str(refused.code), refused.retry_after) == ("RATE_LIMITED", 1.0)
    assert holder.try_reserve("x", 6).decision.retry_after is None
    holder.tally(first.id, {"x": 3})
    holder.later(1000)
    assert holder.used("x") == 3
    (state,) = holder.commit(first.id, {"x": 5}).limits
    assert (state.used, state.applied) == (0, 3)  # what it took, and gave back
    third = holder.reserve("x", 4, ttl=10)
    holder.tally(third.id, {"x": 4})
    holder.later(10)
    assert holder.used("x") == 0  # nobody runs on, whatever was tallied


@pytest.mark.parametrize("verb", ["consume", "report", "refund", "adjust"])
def test_only_a_reservation_takes_slots(begin: Begin, verb: str) -> None:
    holder = begin(Slots("x", 5), Pool("y", 5, rates={"y": 1, "x": 1}))
    holder.reserve("x", 2)
    before = holder.stored()
    how = {"used": 1} if verb == "adjust" else {}
    with pytest.raises(PolicyError, match="slots"):
        getattr(holder.meter, verb)("a", "x", **how)
    assert holder.stored() == before
    assert not holder.meter.check("a", "x", 4)
    assert holder.meter.check("a", "x", 3)


def test_slots_of_which_there_are_fewer_now(begin: Begin) -> None:
    holder = begin(Slots("x", 5))
    hold = holder.reserve("x", 4)
    holder.meter.override("a", "x", limit=2, expires="30s")
    state = holder.meter.usage("a")["x"]
    assert (state.limit, state.used, state.remaining) == (2, 4, 0)
    assert not holder.try_reserve("x")
    assert holder.try_reserve("x", 0)
    holder.later(30_000)
    assert holder.try_reserve("x")
    holder.release(hold.id)
    assert holder.used("x") == 1


# Limits that begin anew ---------------------------------------------------------------------------

OTHERS = [
    ("gone", [Bucket("y", 5, "1m")]),
    ("pool", [Pool("x", 50)]),
    ("fixed", [Bucket("x", 50, "1m", algorithm="fixed")]),
    ("sliding", [Bucket("x", 50, "1m")]),
    ("longer", [Bucket("x", 50, "2m")]),
    ("token", [Bucket("x", 50, "1m", algorithm="token")]),
]


@pytest.mark.parametrize(("kind", "other"), OTHERS, ids=[name for name, _ in OTHERS])
@pytest.mark.parametrize("back", [False, True])
def test_a_limit_that_began_anew_gets_nothing_back(
    begin: Begin, kind: str, other: list[Any], back: bool
) -> None:
    """There and back within one ms: its state looks as if it had never been away."""
    own = {
        "pool": Bucket("x", 9, "1m"),
        "sliding": Bucket("x", 9, "1m", algorithm="token"),
    }.get(kind, Bucket("x", 9, "1m"))
    holder = begin(own, Slots("jobs", 3))
    hold = holder.reserve({"x": 6, "jobs": 1})
    holder.meter.subscribe("a", limits=[*other, Slots("jobs", 3)])
    if back:
        holder.meter.subscribe("a", "free")
    if kind != "gone" or back:
        holder.meter.report("a", "x", 3)
        assert holder.used("x") == 3
    assert holder.stored().variable["g"]["x"] == (2 if back and kind != "gone" else 1)
    holder.commit(hold.id, {"x": 1})
    if kind != "gone" or back:
        assert holder.used("x") == 3
    assert holder.used("jobs") == 0
    assert "g" not in holder.stored().variable


def test_slots_that_vanish_and_return(begin: Begin) -> None:
    holder = begin(Slots("x", 5), pro=[Pool("y", 5)])
    old = holder.reserve({"x": 3})
    holder.meter.subscribe("a", "pro")
    holder.meter.subscribe("a", "free")
    new = holder.reserve({"x": 4})
    holder.release(old.id)
    assert holder.used("x") == 4
    holder.release(new.id)
    assert holder.used("x") == 0


def test_an_override_that_changes_the_tick_of_a_sliding_window(begin: Begin) -> None:
    holder = begin(Bucket("x", 9, "366d"))
    hold = holder.reserve("x", 6, ttl=HOUR)
    holder.meter.override("a", "x", limit=10**12)
    assert holder.stored().variable["g"] == {"x": 1}
    holder.meter.report("a", "x", 3)
    holder.release(hold.id)
    assert holder.used("x") == 3


# At its very instant ------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "used"), [(-1, 4), (0, 6), (1, 7)])
def test_events_happen_in_their_order(begin: Begin, shift: int, used: int) -> None:
    """A hold expires before, with, or after an override; nobody looks until all is over.

    Of 9 units 2.5 are back after 5 min at 5 per 10 min. The hold gives back what at the rate of
    its instant has not come back by itself: 6 - 3 at 5 per 10 min, 6 - 5 and 6 - 6 at 10.
    """
    holder = begin(Bucket("x", 10, "10m", algorithm="token", burst=40))
    holder.meter.override("a", "x", limit=5, expires="5m")
    holder.reserve("x", 6, ttl=5 * MINUTE + shift)
    holder.meter.report("a", "x", 3)
    holder.later(5 * MINUTE + 1)
    assert holder.used("x") == used


def test_nobody_can_tell_when_it_was_given_back(begin: Begin) -> None:
    """Looked at in between or not: the same figures at the end."""
    figures = []
    for looked in (False, True):
        holder = begin(
            Pool("p", 50, "7m", rollover=20, rates={"x": 1}),
            Bucket("f", 50, "3m", algorithm="fixed", rates={"x": 1}),
            Bucket("s", 50, "2m", rates={"x": 1}),
            Bucket("t", 20, "9m", algorithm="token", burst=50, rates={"x": 1}),
            Slots("j", 50, rates={"x": 1}),
        )
        subject = f"s{looked}"
        for i in range(6):
            holder.reserve("x", 2 + i, ttl=(i + 1) * 41_000, subject=subject)
        holder.meter.override(subject, "t", limit=7, expires="100s")
        for _ in range(12):
            holder.later(30_500)
            if looked:
                holder.touch(subject)
        states = holder.meter.usage(subject).limits
        figures.append([(s.name, s.used, s.remaining, s.resets_at_ms) for s in states])
        holder.clock.now_ms = START
    assert figures[0] == figures[1]


def test_what_was_tallied_stays_when_it_expires(begin: Begin) -> None:
    holder = begin(Pool("x", 50), Pool("y", 50, rates={"y": 3, "x": 1}))
    hold = holder.reserve({"x": 10, "y": 5}, ttl=MINUTE)
    holder.tally(hold.id, {"x": 4, "y": 1})
    holder.tally(hold.id, {"x": 3})  # never less than before
    for more in ({"x": 11}, {"z": 1}, {"x": 1, "y": 6}):
        with pytest.raises(PolicyError):
            holder.tally(hold.id, more)
    assert holder.stored().entries[hold.id].tallied == [4, 1]
    holder.tally(hold.id, {"y": 2}, 2 * MINUTE)
    holder.later(2 * MINUTE - 1)
    assert (holder.used("x"), holder.used("y")) == (10, 25)
    holder.later(1)
    assert (holder.used("x"), holder.used("y")) == (4, 4 + 6)
    holder.touch()
    assert (holder.used("x"), holder.used("y")) == (4, 4 + 6)


def test_a_commit_keeps_gives_back_and_charges_in_one(begin: Begin) -> None:
    holder = begin(Pool("x", 20), Pool("y", 20, overage=5), Bucket("z", 3, "1m"), Slots("j", 2))
    hold = holder.reserve({"x": 10, "y": 4, "j": 1})
    answer = holder.commit(hold.id, {"z": 5, "y": 22, "x": 7})
    shown = {s.name: (s.applied, s.used) for s in answer.limits}
    assert shown == {"x": (7, 7), "y": (22, 22), "j": (1, 0), "z": (3, 3)}
    assert [s.name for s in answer.limits] == ["x", "y", "z", "j"]
    assert answer.balance == 13
