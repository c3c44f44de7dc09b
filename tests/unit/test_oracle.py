"""The model's limits, against naive stepping, trying every millisecond, and plain definitions."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meterd.policy import Bucket, Pool
from tests.oracle.buckets import FixedSpec, SlidingSpec, TokenSpec
from tests.oracle.calendar import to_ms
from tests.oracle.limits import PoolSpec, PoolState
from tests.oracle.plans import spec_of

HOUR, DAY = 3_600_000, 86_400_000
ZONES = [
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "America/Sao_Paulo",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "America/St_Johns",
    "Asia/Gaza",
    "Africa/Cairo",
    "Antarctica/Troll",
]
UNITS = ["hour", "day", "week", "month", "quarter", "year"]


def utc(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


minutes = st.integers(utc("1972-01-01T00:00") // 60_000, utc("2037-12-01T00:00") // 60_000)

# -- pools ---------------------------------------------------------------------------------------

small = st.integers(0, 60)
resets = st.sampled_from([*UNITS, 7 * HOUR, 30 * DAY, 12_345_678])


@st.composite
def pools(draw: st.DrawFn) -> PoolSpec:
    reset: Any = draw(resets)
    anchors: list[Any] = ["subscription", ("at", utc("2020-02-29T12:34:56"))]
    if isinstance(reset, str):
        anchors.append("calendar")
    if reset == "month":
        anchors += [1, 29, 30, 31]
    first_use = draw(st.integers(0, 5)) == 0
    return PoolSpec(
        name="p",
        limit=draw(st.one_of(st.none(), small, small)),
        reset=reset,
        anchor="first_use" if first_use else draw(st.sampled_from(anchors)),
        tz=draw(st.sampled_from(ZONES)),
        rollover=0 if first_use else draw(st.sampled_from([0, 0, 5, 50, 200])),
        overage=draw(st.one_of(st.none(), st.just(0), small)),
        carry_debt=False if first_use else draw(st.booleans()),
        rates=(("p", 1),),
    )


@st.composite
def pools_at(draw: st.DrawFn) -> tuple[PoolSpec, PoolState, int]:
    """A pool in any state, odd ones that only a changed definition can leave included."""
    spec = draw(pools())
    entered = draw(minutes) * 60_000 + draw(st.integers(0, 59_999))
    assume(entered < utc("2030-01-01T00:00"))
    state = spec.fresh(entered, entered)
    if spec.first_use:
        state = spec.charge(state, draw(st.integers(0, 1)), entered)
    state = state._replace(carried=draw(st.integers(-300, 80)))
    if state.open:
        state = state._replace(used=draw(st.integers(0, 120)), over=draw(st.integers(0, 300)))
    return spec, state, entered


@given(pools_at(), st.integers(0, 90), st.integers(-1, 1))
@settings(max_examples=400, deadline=None)
def test_lazy_reset_jumps_to_where_stepping_goes(
    at: tuple[PoolSpec, PoolState, int], periods: int, ms: int
) -> None:
    spec, state, entered = at
    now = entered + ms
    if state.open and not spec.first_use:
        grid = spec.grid(state.anchor_ms)
        now = max(entered, grid.boundary(grid.index_of(entered) + periods) + ms)
    elif state.open:
        now = max(entered, spec.grid(state.start).boundary(periods) + ms)
    jumped = spec.bring(state, now)
    assert jumped == spec.bring_stepwise(state, now)
    assert spec.bring(jumped, now) == jumped
    half = entered + (now - entered) // 2
    assert spec.bring(spec.bring(state, half), now) == jumped, "who calls in between is irrelevant"


@pytest.mark.parametrize(
    ("tz", "reset", "entered", "between", "now", "carried"),
    [
        # 00:30 EST to 03:30 EDT: hours are elapsed time, two have ended.
        (
            "America/New_York",
            "hour",
            "2024-03-10T05:30",
            "2024-03-10T06:30",
            "2024-03-10T07:30",
            20,
        ),
        # The 29th and the 30th, which took no time.
        ("Pacific/Apia", "day", "2011-12-29T12:00", "2011-12-30T09:00", "2011-12-30T11:00", 20),
    ],
)
def test_a_period_without_length_counts_whoever_looks_in_between(
    tz: str, reset: str, entered: str, between: str, now: str, carried: int
) -> None:
    spec = spec_of(Pool("p", 10, reset, anchor="calendar", tz=tz, rollover=1000))
    state = spec.fresh(utc(entered), utc(entered))
    assert spec.bring(state, utc(now)).carried == carried
    assert spec.bring(spec.bring(state, utc(between)), utc(now)) == spec.bring(state, utc(now))


def test_a_huge_gap_is_no_work() -> None:
    spec = spec_of(Pool("p", 10, "1ms", rollover=25, overage=None, carry_debt=True))
    state = spec.charge(spec.fresh(0, 0), 10**9, 0)
    far = utc("9990-01-01T00:00")
    assert spec.bring(state, far) == PoolState(0, far, far + 1, carried=25)
    assert spec.bring(state, 10**7).carried == 10 * 10**7 - 10**9


@given(pools_at(), st.integers(1, 700))
@settings(max_examples=400, deadline=None)
def test_pool_retry_after_is_the_first_boundary_that_helps(
    at: tuple[PoolSpec, PoolState, int], amount: int
) -> None:
    spec, state, now = at
    state = spec.bring(state, now)
    assume(not spec.fits(state, amount, now))
    retry = spec.retry_after(state, amount, now)
    if retry is not None:
        assert spec.fits(spec.bring(state, now + retry), amount, now + retry)
        if not spec.first_use:
            assert not spec.fits(spec.bring(state, now + retry - 1), amount, now + retry - 1)
    later, at_ms = state, now
    for _ in range(60):
        if not later.open or later.end is None:
            break
        at_ms = later.end
        if retry is not None and at_ms >= now + retry:
            break
        later = spec.bring_stepwise(later, at_ms)
        assert not spec.fits(later, amount, at_ms), "an earlier boundary would have done"


def test_pool_retry_after_waits_for_debt_to_shrink_and_rollover_to_grow() -> None:
    spec = spec_of(Pool("p", 10, "1h", overage=100, carry_debt=True, rollover=15))
    indebted = spec.charge(spec.fresh(0, 0), 55, 0)  # 10 used, 45 over: 35 still owed after 1 h
    assert spec.remaining(indebted, 0) == -45
    assert spec.retry_after(indebted, 60, HOUR // 2) == HOUR // 2  # 10 - 45 + 100
    assert spec.retry_after(indebted, 125, 0) == 7 * HOUR  # carried: -45 -35 ... 5, 15
    assert spec.retry_after(indebted, 126, 0) is None


# -- buckets -------------------------------------------------------------------------------------

ALGORITHMS = ["fixed", "sliding", "token"]
tiny = st.builds(
    lambda kind, limit, per, burst: {
        "fixed": FixedSpec("b", limit, per, None, ()),
        "sliding": SlidingSpec("b", limit, per, None, ()),
        "token": TokenSpec("b", limit, per, burst, ()),
    }[kind],
    st.sampled_from(ALGORITHMS),
    st.integers(0, 12),
    st.integers(1, 25),
    st.one_of(st.none(), st.integers(0, 15)),
)
large = st.builds(
    lambda kind, limit, per, burst: {
        "fixed": FixedSpec("b", limit, per, None, ()),
        "sliding": SlidingSpec("b", limit, per, None, ()),
        "token": TokenSpec("b", limit, per, burst, ()),
    }[kind],
    st.sampled_from(ALGORITHMS),
    st.integers(1, 10**12),
    st.integers(1, 366 * DAY),
    st.one_of(st.none(), st.integers(0, 10**12)),
)


def driven(spec: Any, calls: list[tuple[int, int]], start: int) -> tuple[Any, int]:
    """The state after calls of (gap, amount), each charged if it fits."""
    state, now = spec.fresh(start, start), start
    for gap, amount in calls:
        now += gap
        state = spec.bring(state, now)
        if spec.fits(state, amount, now):
            state = spec.charge(state, amount, now)
    return state, now


def check_retry(spec: Any, state: Any, amount: int, now: int) -> None:
    retry = spec.retry_after(state, amount, now)
    if retry is None:
        never = amount > spec.size or spec.limit == 0
        assert never or not spec.fits(spec.bring(state, 2**53 - 1), amount, 2**53 - 1)
        return
    assert retry > 0
    assert spec.fits(spec.bring(state, now + retry), amount, now + retry)
    before = now + retry - 1
    assert before < now or not spec.fits(spec.bring(state, before), amount, before)


@given(tiny, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 14))), st.integers(1, 14))
@settings(max_examples=500, deadline=None)
def test_bucket_retry_after_by_trying_every_millisecond(
    spec: Any, calls: list[tuple[int, int]], amount: int
) -> None:
    state, now = driven(spec, calls, 1000)
    assert spec.fits(state, amount, now) == (amount <= spec.left(state, now))
    if not spec.fits(state, amount, now):
        waits = (
            w for w in range(1, 1000) if spec.fits(spec.bring(state, now + w), amount, now + w)
        )
        assert spec.retry_after(state, amount, now) == next(waits, None)
    full = spec.full_at(state, now)
    if full is not None:
        assert spec.left(spec.bring(state, full), full) == spec.size
        assert full == now or spec.left(spec.bring(state, full - 1), full - 1) < spec.size
    if isinstance(spec, TokenSpec):
        shown_at = spec.figures(state, now).resets_at_ms
        assert shown_at == (full if full != now else None)


@given(large, st.data())
@settings(max_examples=300, deadline=None)
def test_bucket_retry_after_at_any_size(spec: Any, data: st.DataObject) -> None:
    amounts = st.one_of(st.integers(0, max(1, spec.size)), st.just(spec.size))
    gaps = st.integers(0, 2 * spec.per_ms)
    calls = data.draw(st.lists(st.tuples(gaps, amounts), max_size=8))
    state, now = driven(spec, calls, data.draw(minutes) * 60_000)
    amount = data.draw(amounts)
    assert spec.tick_ms * spec.ticks >= spec.per_ms
    assert max(spec.limit, spec.size) * spec.ticks < 2**53
    if not spec.fits(state, amount, now):
        check_retry(spec, state, amount, now)


@given(tiny, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 14))), st.integers(0, 90))
@settings(max_examples=300, deadline=None)
def test_buckets_do_not_care_who_looks_in_between(
    spec: Any, calls: list[tuple[int, int]], gap: int
) -> None:
    state, now = driven(spec, calls, 1000)
    stepped = state
    for ms in range(now, now + gap + 1):
        stepped = spec.bring(stepped, ms)
    assert spec.bring(state, now + gap) == stepped


@given(
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 30), st.integers(-9, 9))),
)
@settings(max_examples=300, deadline=None)
def test_token_refill_is_exact(
    limit: int, per: int, burst: int, calls: list[tuple[int, int]]
) -> None:
    spec = TokenSpec("b", limit, per, burst, ())
    state, now, spent = spec.fresh(0, 0), 0, Fraction(0)
    for gap, amount in calls:
        now += gap
        state = spec.bring(state, now)
        spent = max(Fraction(0), spent - Fraction(gap * limit, per))
        # A unit that has come back in part is still spent; whole units only.
        whole = -(-spent.numerator // spent.denominator)
        assert state.spent == whole
        assert state.spent - Fraction(state.fraction, per) == spent
        if amount < 0:
            state, back = spec.refund(state, -amount, now)
            assert back == min(-amount, whole)
            spent = max(Fraction(0), spent - back)
        elif spec.fits(state, amount, now):
            assert whole + amount <= burst
            state = spec.charge(state, amount, now)
            spent += amount
        else:
            assert whole + amount > burst


@given(st.integers(1, 9), st.integers(1, 12), st.lists(st.integers(0, 9), max_size=80))
@settings(max_examples=200, deadline=None)
def test_fixed_and_sliding_never_pass_their_limit(limit: int, per: int, gaps: list[int]) -> None:
    fixed, sliding = FixedSpec("f", limit, per, None, ()), SlidingSpec("s", limit, per, None, ())
    states: dict[str, Any] = {"f": fixed.fresh(0, 0), "s": sliding.fresh(0, 0)}
    allowed: dict[str, list[int]] = {"f": [], "s": []}
    now = 0
    for gap in gaps:
        now += gap
        spec: Any
        for spec in (fixed, sliding):
            state = spec.bring(states[spec.name], now)
            if spec.fits(state, 1, now):
                state = spec.charge(state, 1, now)
                allowed[spec.name].append(now)
            states[spec.name] = state
    starts: list[int] = []
    for t in allowed["f"]:
        if not starts or t >= starts[-1] + per:
            starts.append(t)
    assert all(sum(s <= t < s + per for t in allowed["f"]) <= limit for s in starts)
    windows = {t // per for t in allowed["s"]}
    assert all(sum(t // per == w for t in allowed["s"]) <= limit for w in windows)


def test_changed_buckets_keep_what_the_contract_says() -> None:
    fixed, sliding, token = (spec_of(Bucket(kind, 10, "1s", algorithm=kind)) for kind in ALGORITHMS)
    held = fixed.charge(fixed.fresh(0, 0), 7, 300)
    slower = spec_of(Bucket("fixed", 5, "2s", algorithm="fixed"))
    assert slower.ends_at(slower.convert(fixed, held, 900)) == 2300
    assert slower.left(slower.convert(fixed, held, 900), 900) == 0
    slid = sliding.charge(sliding.fresh(0, 0), 7, 300)
    assert spec_of(Bucket("sliding", 90, "1s")).convert(sliding, slid, 900) == slid
    assert spec_of(Bucket("sliding", 10, "2s")).convert(sliding, slid, 900).cur == 0
    spent = token.bring(token.charge(token.fresh(0, 0), 9, 0), 150)
    assert (spent.spent, spent.fraction) == (8, 500)
    smaller = spec_of(Bucket("token", 10, "1s", algorithm="token", burst=3))
    assert smaller.convert(token, spent, 150) == (3, 500, 150)
    assert sliding.convert(token, spent, 150) == sliding.fresh(150, 150)
    huge = spec_of(Bucket("fixed", 10**12, "366d", algorithm="fixed"))
    assert huge.tick_ms == 7_021_584
    moved = huge.convert(fixed, fixed.charge(fixed.fresh(0, 0), 7, 70_300_000), 70_300_500)
    assert moved == (7, 10)
