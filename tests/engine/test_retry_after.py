"""`retry_after` is exact: waiting that long succeeds, a ms less does not, None means never."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import Bucket, Decision, Meter, Plan, Pool
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.support.servers import Server

HYPOTHESIS = settings(deadline=None, suppress_health_check=list(HealthCheck))
DAY_MS = 86_400_000
CENTURY_MS = 99 * 365 * DAY_MS
START_MS = 1_735_689_600_000
LAST_MS = 2**46 - 2 * DAY_MS  # as far as a test clock goes; a bucket may take a trillion years

RATES = st.sampled_from([1, 2, 3, 5, 7, 10, 59, 60, 1000, 999_983, 10**12 - 1, 10**12])
PERS = st.sampled_from(["1ms", "7ms", "999ms", "1s", "10s", "1m", "1h", "1d", "30d", "366d"])


@st.composite
def buckets(draw: Any, name: str = "x") -> Bucket:
    algorithm = draw(st.sampled_from(["fixed", "sliding", "token"]))
    burst = draw(st.none() | RATES) if algorithm == "token" else None
    limit = draw(RATES | st.just(0))
    return Bucket(name, limit, draw(PERS), algorithm=algorithm, burst=burst, rates={"x": 1})


@st.composite
def pools(draw: Any, name: str = "x") -> Pool:
    reset = draw(
        st.sampled_from([None, "hour", "day", "week", "month", "quarter", "year", "90m", "30d"])
    )
    anchor: Any = "subscription"
    if reset is not None:
        kinds = ["subscription", "first_use", "instant"]
        kinds += ["calendar"] if reset not in ("90m", "30d") else []
        kinds += ["day"] if reset == "month" else []
        anchor = draw(st.sampled_from(kinds))
        if anchor == "day":
            anchor = draw(st.integers(1, 31))
        elif anchor == "instant":
            at = timedelta(milliseconds=draw(st.integers(0, 3 * START_MS // 2)))
            anchor = ManualClock(0).now() + at
    carries = reset is not None and anchor != "first_use"
    return Pool(
        name,
        draw(st.sampled_from([0, 1, 10, 97, 10**6])),
        reset,
        anchor=anchor,
        tz=draw(
            st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York"])
        )
        if reset != "hour"
        else "UTC",
        rollover=draw(st.sampled_from([0, 5, 100, 10**7])) if carries else 0,
        carry_debt=carries and draw(st.booleans()),
        overage=draw(st.sampled_from([0, 0, 3, 50])),
        rates={"x": 1},
    )


STEPS = st.sampled_from(
    [0, 1, 2, 6, 998, 999, 1000, 9_999, 59_999, 60_000, 3_599_999, DAY_MS - 1, DAY_MS, 29 * DAY_MS]
) | st.integers(0, 40 * DAY_MS)


def most(limit: Any) -> int:
    return int(max(limit.limit, getattr(limit, "burst", None) or 0))


@st.composite
def stories(draw: Any, kind: Any) -> tuple[list[Any], int, list[tuple[int, str, int]], int]:
    """Limits; the clock's offset; (wait, verb, amount) of earlier calls; the amount asked for."""
    found = draw(kind)
    limits = found if isinstance(found, list) else [found]
    sizes = st.sampled_from([most(limit) for limit in limits])
    amounts = st.builds(
        lambda size, off, part: max(1, min(10**15, size // part + off)),
        sizes,
        st.sampled_from([-1, 0, 0, 1, 2, 40]),
        st.sampled_from([1, 1, 2, 3, 10]),
    )
    calls = st.tuples(STEPS, st.sampled_from(["consume", "consume", "report", "refund"]), amounts)
    return limits, draw(st.integers(0, 10**9)), draw(st.lists(calls, max_size=6)), draw(amounts)


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def assert_exact(server: Server, story: Any, override: tuple[int, int, int] | None = None) -> bool:
    """Whether there was a refusal to look at. `override`, of the limit `x`: before so many of the
    calls, the limit that it sets, and after how many ms it ends."""
    limits, offset, calls, amount = story
    clock = ManualClock(START_MS + offset)
    with Meter(
        server.url, plans=[Plan("p", includes=limits)], clock=clock, prefix="ra", timeout=10
    ) as meter:
        try:
            meter.subscribe("a", "p")
            for number, (step, verb, charge) in enumerate(calls):
                clock.advance(milliseconds=step)
                if override and number == override[0]:
                    ends = timedelta(milliseconds=override[2])
                    meter.override("a", "x", limit=override[1], expires=ends)
                getattr(meter, verb)("a", "x", charge)
            refusal = meter.consume("a", "x", amount)
            if not refusal.allowed:
                assert_refusal(meter, clock, refusal, amount, for_good=override is None)
        finally:
            client = server.admin
            for key in client.scan_iter(match="ra:*"):
                client.delete(key)
    return not refusal.allowed


def assert_refusal(
    meter: Meter, clock: ManualClock, refusal: Decision, amount: int, *, for_good: bool
) -> None:
    """`for_good`: what fits goes on to fit."""
    now = clock.now_ms

    def after(wait: int) -> Decision:
        clock.now_ms = now + wait
        return meter.check("a", "x", amount)

    assert refusal.refused
    waits = [state.retry_after for state in refusal.refused]
    assert refusal.retry_after == (
        None if None in waits else max(w for w in waits if w is not None)
    )
    for state in refusal.limits:
        if state.allowed:
            assert state.retry_after is None
            continue
        if state.retry_after is None:
            horizon = CENTURY_MS if state.kind == "pool" else 400 * DAY_MS
            for wait in (1, 1000, DAY_MS, 40 * DAY_MS, horizon // 7, horizon):
                assert not after(wait)[state.name].allowed, f"{state.name} after {wait} ms"
            continue
        wait = ms(state.retry_after)
        assert wait > 0
        if now + wait > LAST_MS:
            continue
        assert not after(wait - 1)[state.name].allowed, f"{state.name} a ms early"
        assert after(wait)[state.name].allowed, f"{state.name} after {wait} ms"
        for later in (1, 999, DAY_MS) if for_good else ():
            assert after(wait + later)[state.name].allowed
    if refusal.retry_after is not None and now + ms(refusal.retry_after) <= LAST_MS:
        wait = ms(refusal.retry_after)
        assert not after(wait - 1).allowed
        if for_good or len(refusal.limits) == 1:
            clock.now_ms = now + wait
            assert meter.consume("a", "x", amount).allowed
    clock.now_ms = now


KINDS = {
    "bucket": buckets(),
    "pool": pools(),
    "buckets": st.tuples(buckets("x"), buckets("y"), buckets("z")).map(list),
    "both": st.tuples(pools("x"), buckets("y")).map(list),
}


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_exactly_that_long_succeeds(server: Server, kind: str) -> None:
    refusals = 0

    @given(story=stories(KINDS[kind]))
    @settings(HYPOTHESIS, max_examples=150)
    def run(story: Any) -> None:
        nonlocal refusals
        refusals += assert_exact(server, story)

    run()
    assert refusals > 40, "most stories have to end in a refusal, else this looks at nothing"


OVERRIDES = st.tuples(
    st.integers(0, 5),
    st.sampled_from([0, 0, 1, 5, 97, 1000, 10**9]),
    st.sampled_from([1, 2, 999, 60_000, 3_600_000, DAY_MS, DAY_MS + 1, 40 * DAY_MS, 3660 * DAY_MS]),
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_override_that_ends_is_foreseen(server: Server, kind: str) -> None:
    refusals = 0

    @given(story=stories(KINDS[kind]), override=OVERRIDES)
    @settings(HYPOTHESIS, max_examples=150)
    def run(story: Any, override: Any) -> None:
        nonlocal refusals
        refusals += assert_exact(server, story, override)

    run()
    assert refusals > 40


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("overridden", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_waiting_exactly_that_long_succeeds_for_longer(
    server: Server, kind: str, overridden: bool
) -> None:
    @given(story=stories(KINDS[kind]), override=OVERRIDES if overridden else st.none())
    @settings(HYPOTHESIS, max_examples=4000)
    def run(story: Any, override: Any) -> None:
        assert_exact(server, story, override)

    run()


# Cases that are easy to say -----------------------------------------------------------------------


def refused(make: Make, limit: Any, charges: list[tuple[int, int]], amount: int) -> float | None:
    """`retry_after` of `amount` after charges at (ms from the start, amount)."""
    clock = ManualClock(START_MS)
    meter = make([Plan("p", includes=[limit])], clock=clock)
    meter.subscribe("a", "p")
    for at, charge in charges:
        clock.now_ms = START_MS + at
        assert meter.consume("a", limit.name, charge)
    decision = meter.consume("a", limit.name, amount)
    assert not decision
    return decision.retry_after


@pytest.mark.parametrize(
    ("limit", "charges", "amount", "expected"),
    [
        (Bucket("x", 3, "10s", algorithm="fixed"), [(100, 3)], 1, 10.0),
        (Bucket("x", 3, "10s", algorithm="fixed"), [(100, 1), (9000, 2)], 3, 1.1),
        (Bucket("x", 3, "10s", algorithm="fixed"), [(100, 3)], 4, None),
        # Windows of 10 s from the epoch; the whole of one goes by, then a tenth of its weight.
        (Bucket("x", 10, "10s"), [(0, 10)], 1, 11.0),
        (Bucket("x", 10, "10s"), [(0, 10)], 10, 20.0),
        (Bucket("x", 10, "10s"), [(0, 10)], 11, None),
        (Bucket("x", 10, "10s", algorithm="token"), [(0, 10)], 1, 1.0),
        (Bucket("x", 3, "10s", algorithm="token"), [(0, 3)], 1, 3.334),
        (Bucket("x", 3, "10s", algorithm="token", burst=5), [(0, 5)], 5, 16.667),
        (Bucket("x", 3, "10s", algorithm="token", burst=5), [(0, 5)], 6, None),
        (Bucket("x", 0, "10s", algorithm="token", burst=5), [(0, 5)], 1, None),
        (Bucket("x", 0, "10s"), [], 1, None),
        (Bucket("x", 0, "10s", algorithm="fixed"), [], 1, None),
        (Pool("x", 5), [(0, 5)], 1, None),
        (Pool("x", 5, "1h"), [(0, 5), (60_000, 0)], 5, 3540.0),
        (Pool("x", 5, "1h"), [(0, 5)], 6, None),
        (Pool("x", 5, "1h", overage=2), [(0, 7)], 7, 3600.0),
        # 5 unused units an hour roll over: 22 are there after four hours that nobody used.
        (Pool("x", 5, "1h", rollover=17), [(0, 5)], 22, 5 * 3600.0),
        (Pool("x", 5, "1h", rollover=17), [(0, 5)], 23, None),
        (Pool("x", 5, "1h", overage=20, carry_debt=True), [(0, 25)], 25, 5 * 3600.0),
        (Pool("x", 0, "1h", rollover=17), [], 1, None),
        (Pool("x", 5, "1h", anchor="first_use"), [(60_000, 5)], 1, 3600.0),
        (Pool("x", 5, "1h", anchor="first_use"), [], 6, None),
        (Pool("x", 1, "year", rollover=10**6), [], 100, 99 * 365 * 86400.0 + 23 * 86400.0),
        (Pool("x", 1, "year", rollover=10**6), [], 103, None),  # more than a century away
    ],
)
def test_by_hand(make: Make, limit: Any, charges: Any, amount: int, expected: float | None) -> None:
    assert refused(make, limit, charges, amount) == expected


@pytest.mark.parametrize(
    ("limit", "amount", "wait"),
    [
        (Bucket("x", 10, "1h", algorithm="fixed"), 7, 600),
        (Bucket("x", 10, "1h", algorithm="fixed"), 8, 3600),  # 3 were used in the window
        (Bucket("x", 10, "1h", algorithm="fixed"), 11, None),
        # No more can be spent of it than it held meanwhile, and that was nothing.
        (Bucket("x", 10, "1h", algorithm="token"), 10, 600),
        (Pool("x", 10, "day"), 7, 600),
        (Pool("x", 10, "day"), 8, 86_400),
        (Pool("x", 10), 8, None),
    ],
)
def test_an_override_that_shuts_a_limit_for_ten_minutes(
    make: Make, limit: Any, amount: int, wait: float | None
) -> None:
    clock = ManualClock(START_MS)
    meter = make([Plan("p", includes=[limit])], clock=clock)
    meter.subscribe("a", "p")
    meter.consume("a", "x", 3)
    meter.override("a", "x", limit=0, expires="10m")
    refusal = meter.consume("a", "x", amount)
    assert (refusal.allowed, refusal.retry_after) == (False, wait)
    if wait is not None:
        clock.advance(milliseconds=int(wait * 1000) - 1)
        assert not meter.consume("a", "x", amount)
        clock.advance(milliseconds=1)
        assert meter.consume("a", "x", amount)
