"""A record that outlives the years for which its zones are written out is brought along."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis

from meterd import Bucket, Meter, Plan, Pool
from meterd.compile import (
    _FIRST_HORIZON,
    _HORIZON_STEP,
    _LAST_HORIZON,
    horizon_for,
    read_policy,
    year_ms,
)
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.oracle.calendar import Grid, calendar_grid, grid_from, to_ms

TZ = "America/New_York"
START = to_ms(datetime(_FIRST_HORIZON - 1, 10, 20, 3, 4, tzinfo=UTC))
DAY_MS = 86_400_000


def pool(name: str, reset: str, **fields: Any) -> Pool:
    return Pool(name, 100, reset, tz=TZ, rates={"x": 1}, **fields)


PLANS = [
    Plan(
        "free",
        includes=[
            pool("cal-day", "day", anchor="calendar"),
            pool("cal-month", "month", anchor="calendar"),
            pool("sub-week", "week"),
            pool("sub-day", "day"),
            pool("hour", "hour"),
            Bucket("api", 10**6, "1m", rates={"x": 1}),
        ],
        default=True,
    ),
    Plan("pro", includes=[pool("cal-day", "day", anchor="calendar"), pool("sub-week", "week")]),
    Plan("utc", includes=[Bucket("b", 5, "1m")], group="addons"),
]


def grids(made: int) -> dict[str, Grid]:
    return {
        "cal-day": calendar_grid("day", TZ),
        "cal-month": calendar_grid("month", TZ),
        "sub-week": grid_from("week", TZ, made),
        "sub-day": grid_from("day", TZ, made),
        "hour": grid_from("hour", TZ, made),
    }


def assert_right(meter: Meter, clock: ManualClock, made: int = START, subject: str = "a") -> None:
    for state in meter.usage(subject).limits:
        if state.kind == "pool":
            expected = grids(made)[state.name].first_after(clock.now_ms)
            assert state.resets_at_ms == expected, (state.name, clock.now())


def policy_of(meter: Meter, client: redis.Redis, subject: str = "a") -> bytes:
    return bytes(client.get(meter._keys.path(subject).keys[-1])[2:10])


@pytest.fixture(params=[True, False], ids=["functions", "scripts"])
def functions(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_the_first_horizon_is_decades_away() -> None:
    assert year_ms(_FIRST_HORIZON) > to_ms(datetime(2045, 1, 1, tzinfo=UTC))
    years = [horizon_for(year_ms(year)) for year in range(2000, 2600)]
    assert years == sorted(years)
    for year, horizon in zip(range(2000, 2600), years, strict=True):
        assert (
            year < horizon <= max(year + _HORIZON_STEP, _FIRST_HORIZON) or horizon == _LAST_HORIZON
        )


def test_month_by_month_across_it(make: Make, client: redis.Redis, functions: bool) -> None:
    clock = ManualClock(START)
    meter = make(PLANS, clock=clock, functions=functions)
    meter.consume("a", "x")
    policies = set()
    for month in range(40):
        policies.add(policy_of(meter, client))
        assert_right(meter, clock)
        assert meter.check("a", "x").allowed
        before = meter.usage("a")["api"].used if month else 1
        assert meter.consume("a", "x", 2).allowed
        assert meter.usage("a")["api"].used == before + 2
        clock.advance(days=29, hours=7)
        meter.usage("a")
        clock.advance(minutes=-1)
    assert len(policies) == 2


@pytest.mark.parametrize("years", [1, 17, 33, 200, 451, 700])
def test_in_one_leap(make: Make, functions: bool, years: int) -> None:
    """Past the last horizon the zone's last offset stands, so only the leap itself is looked at."""
    clock = ManualClock(START)
    meter = make(PLANS, clock=clock, functions=functions)
    meter.consume("a", "x", 3)
    clock.set(clock.now().replace(year=clock.now().year + years))
    if clock.now().year < _LAST_HORIZON - 1:
        assert_right(meter, clock)
    assert meter.consume("a", "x", 5).allowed
    assert [state.used for state in meter.usage("a").limits] == [5] * 6
    if clock.now().year < _LAST_HORIZON - 1:
        assert_right(meter, clock)


VERBS: dict[str, Callable[[Meter], Any]] = {
    "consume": lambda meter: meter.consume("a", "x"),
    "consume with an id": lambda meter: meter.consume("a", "x", op="id"),
    "consume below": lambda meter: meter.consume("a/team/ana", "x"),
    "check": lambda meter: meter.check("a", "x"),
    "check below": lambda meter: meter.check("a/team", "x"),
    "report": lambda meter: meter.report("a", "x"),
    "refund": lambda meter: meter.refund("a", "x"),
    "usage": lambda meter: meter.usage("a"),
    "usage below": lambda meter: meter.usage("a/team"),
    "subscribe": lambda meter: meter.subscribe("a", "pro"),
    "subscribe below": lambda meter: meter.subscribe("a/team", "pro"),
    "subscribe anew": lambda meter: meter.subscribe("a", "pro", change="reset", op="id"),
    "subscribe to more": lambda meter: meter.subscribe("a", "utc"),
    "unsubscribe": lambda meter: meter.unsubscribe("a", "utc"),
    "override": lambda meter: meter.override("a", "cal-day", limit=7),
    "clear": lambda meter: meter.override("a", "hour", clear=True),
    "adjust": lambda meter: meter.adjust("a", "cal-month", used=9),
    "adjust below": lambda meter: meter.adjust("a/team", "cal-day", used=9),
    "join": lambda meter: meter.consume("a", "x", join="utc"),
    "first sight": lambda meter: meter.consume("unseen", "x"),
    "subscribe the unseen": lambda meter: meter.subscribe("unseen", "pro", anchor="30d"),
    "adjust the unseen": lambda meter: meter.adjust("unseen", "hour", used=3),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "new process"])
def test_any_verb_may_be_the_first_to_cross_it(
    make: Make, functions: bool, verb: str, fresh: bool
) -> None:
    clock = ManualClock(START)
    meter = make(PLANS, clock=clock, functions=functions)
    meter.consume("a", "x", 3)
    meter.subscribe("a/team", "pro")
    meter.consume("a/team", "x", 2)
    meter.override("a", "hour", limit=50, expires=timedelta(days=365 * 40))
    clock.advance(days=365 * 3)
    if fresh:
        meter = make(clock=clock, functions=functions)
    VERBS[verb](meter)
    made = clock.now_ms if "anew" in verb else START  # its pools start over
    assert_right(meter, clock, made)
    states = {state.name: state for state in meter.usage("a").limits}
    if verb not in ("clear",) and "hour" in states:
        assert states["hour"].limit == 50
    # And whoever comes next, with a plan of a newer catalog.
    other = make(clock=clock, functions=functions)
    assert other.consume("a/team/ana", "x").allowed
    other.apply([Plan("free", includes=[*PLANS[0].includes, Bucket("b2", 3, "1m")], default=True)])
    assert other.consume("a/team/ana", "x").allowed
    assert_right(other, clock, made)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"adjust"}))  # of what goes with its plan
@pytest.mark.parametrize("years", [1, 3, 20])
def test_changes_that_are_due_cross_it(make: Make, functions: bool, verb: str, years: int) -> None:
    """One comes well before anybody looks, another one a day before."""
    clock = ManualClock(START)
    meter = make(PLANS, clock=clock, functions=functions)
    meter.consume("a", "x", 3)
    for subject in ("a", "a/team"):
        meter.subscribe(subject, "pro", when=timedelta(days=40), change="prorate")
        meter.subscribe(subject, "utc", when=timedelta(days=365 * years - 1))
    clock.advance(days=365 * years)
    meter = make(clock=clock, functions=functions)
    VERBS[verb](meter)
    made = clock.now_ms if "anew" in verb else START
    assert_right(meter, clock, made)
    for level in meter.usage("a/team").levels:
        below = level.subject != "a"
        gone = verb == "unsubscribe" and not below
        assert level.plans == {"base": "pro", **({} if gone else {"addons": "utc"})}
        assert level.pending == ()
    assert meter.consume("a/team", "x").allowed


def test_use_and_period_survive_it(make: Make, client: redis.Redis) -> None:
    """Being written out further is no reason to close a period."""
    clock = ManualClock(START)
    meter = make([Plan("p", includes=[pool("sub-year", "year")], default=True)], clock=clock)
    meter.consume("a", "x", 30)
    # The boundary that lies beyond is what has to be known, long before the clock is there.
    assert read_policy(client.hget(meter._keys.policies, policy_of(meter, client))).horizon > 2048
    clock.advance(days=300)
    assert meter.usage("a")["sub-year"].used == 30
    meter.consume("a", "x", 1)
    assert meter.usage("a")["sub-year"].used == 31
    assert meter.refund("a", "x", 5)["sub-year"].applied == 5
    clock.advance(days=100)
    assert meter.usage("a")["sub-year"].used == 0


def test_looking_does_not_write_it_out(make: Make, client: redis.Redis) -> None:
    clock = ManualClock(START)
    meter = make(PLANS, clock=clock)
    meter.consume("a", "x", 30)
    before = client.get(meter._keys.path("a").keys[0])
    clock.advance(days=365 * 3)
    assert meter.check("a", "x").allowed
    assert not meter.check("a", "x", 101).allowed
    assert client.get(meter._keys.path("a").keys[0]) == before
    # The first refusal of a period says so, the next one changes nothing.
    assert not meter.consume("a", "x", 101)
    before = client.get(meter._keys.path("a").keys[0])
    assert not meter.consume("a", "x", 101)
    assert client.get(meter._keys.path("a").keys[0]) == before


def test_many_horizons_on_the_way_to_the_last(make: Make) -> None:
    clock = ManualClock(START)
    meter = make(PLANS, clock=clock)
    meter.consume("a", "x", 1)
    while clock.now().year < _LAST_HORIZON - 10:
        clock.advance(days=365 * 45 + 17)
        assert_right(meter, clock)
        assert meter.consume("a", "x", 1).allowed


@pytest.mark.parametrize("month", range(1, 13))
def test_hours_where_the_clock_moves_by_half_of_one(make: Make, month: int) -> None:
    """An hour on the wall begins at :00 on it; beyond the horizon, too."""
    tz = "Australia/Lord_Howe"
    clock = ManualClock(START)
    hours = Pool("hour", 100, "hour", anchor="calendar", tz=tz)
    meter = make([Plan("p", includes=[hours], default=True)], clock=clock)
    meter.consume("a", "hour")
    clock.set(datetime(_FIRST_HORIZON + 3, month, 20, 3, 4, 5, tzinfo=UTC))
    begun = clock.now().astimezone(ZoneInfo(tz)).replace(minute=0, second=0)
    for verb in (meter.check, meter.consume):
        assert verb("a", "hour")["hour"].resets_at == begun + timedelta(hours=1)


def test_a_limiter_has_no_zones_and_no_horizon(make: Make) -> None:
    clock = ManualClock(START)
    login = make([], clock=clock).limiter("login", Bucket("ip", 3, "1m"))
    assert login.consume("a", 3)
    clock.advance(days=365 * 1000)
    assert login.consume("a", 3)
