"""The model's calendar, against known dates and a scan of every minute around clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle.calendar import (
    Grid,
    calendar_grid,
    grid_from,
    instant_of,
    month_day_grid,
    to_ms,
    wall_at,
)

DAY = 86_400_000
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


def local(text: str, tz: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz)))


def texts(grid: Grid, first: int, last: int, tz: str = "UTC") -> list[str]:
    zone = ZoneInfo(tz)
    return [wall_at(zone, grid.boundary(n)).isoformat() for n in range(first, last + 1)]


@pytest.mark.parametrize(
    ("wall", "tz", "expected"),
    [
        ("2024-03-10T02:30", "America/New_York", "2024-03-10T07:00"),  # skipped
        ("2024-11-03T01:30", "America/New_York", "2024-11-03T05:30"),  # twice: the first
        ("2024-03-31T02:00", "Europe/Berlin", "2024-03-31T01:00"),
        ("2024-03-31T02:59:59.999", "Europe/Berlin", "2024-03-31T01:00"),
        ("2024-10-27T02:00", "Europe/Berlin", "2024-10-27T00:00"),
        ("2024-10-06T02:15", "Australia/Lord_Howe", "2024-10-05T15:30"),  # half an hour only
        ("2024-04-07T01:45", "Australia/Lord_Howe", "2024-04-06T14:45"),
        ("2024-06-01T00:00", "Asia/Kolkata", "2024-05-31T18:30"),
        ("2024-06-01T00:00", "Asia/Kathmandu", "2024-05-31T18:15"),
        ("1986-01-01T00:05", "Asia/Kathmandu", "1985-12-31T18:30"),  # +5:30 became +5:45
        ("2024-03-10T02:30", "Africa/Casablanca", "2024-03-10T01:30"),  # Ramadan: back an hour
        ("2024-04-14T02:30", "Africa/Casablanca", "2024-04-14T02:00"),  # and forth again
        ("2018-11-04T00:00", "America/Sao_Paulo", "2018-11-04T03:00"),  # midnight skipped
        ("2018-02-17T23:30", "America/Sao_Paulo", "2018-02-18T01:30"),
        ("2011-12-30T12:00", "Pacific/Apia", "2011-12-30T10:00"),  # the whole day skipped
        ("2011-12-31T00:00", "Pacific/Apia", "2011-12-30T10:00"),
    ],
)
def test_wall_times_that_are_skipped_or_occur_twice(wall: str, tz: str, expected: str) -> None:
    assert instant_of(ZoneInfo(tz), datetime.fromisoformat(wall)) == utc(expected)


def test_months_are_counted_from_the_anchor_and_clamped() -> None:
    grid = grid_from("month", "UTC", utc("2023-01-31T10:00"))
    days = [text[:10] for text in texts(grid, 0, 4)]
    assert days == ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31"]
    assert texts(grid, 13, 14) == ["2024-02-29T10:00:00", "2024-03-31T10:00:00"]
    assert texts(grid, -2, -1) == ["2022-11-30T10:00:00", "2022-12-31T10:00:00"]


def test_leap_day_and_quarters() -> None:
    grid = grid_from("year", "UTC", utc("2024-02-29T00:00"))
    days = [text[:10] for text in texts(grid, 0, 4)]
    assert days == ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]
    grid = grid_from("quarter", "UTC", utc("2023-11-30T00:00"))
    assert [text[:10] for text in texts(grid, 0, 2)] == ["2023-11-30", "2024-02-29", "2024-05-30"]
    assert texts(month_day_grid(31, "UTC"), 649, 650) == [
        "2024-02-29T00:00:00",
        "2024-03-31T00:00:00",
    ]


def test_days_keep_the_wall_clock_and_hours_do_not() -> None:
    tz = "America/New_York"
    grid = grid_from("day", tz, local("2024-03-09T02:30", tz))
    assert texts(grid, 0, 2, tz) == [
        "2024-03-09T02:30:00",
        "2024-03-10T03:00:00",
        "2024-03-11T02:30:00",
    ]
    grid = grid_from("hour", tz, local("2024-03-10T00:30", tz))
    assert texts(grid, 1, 2, tz) == ["2024-03-10T01:30:00", "2024-03-10T03:30:00"]
    assert grid_from(90_000, tz, 5).boundary(3) == 270_005


def test_calendar_grids_start_on_the_clock_of_the_zone() -> None:
    now = utc("2024-06-05T20:45")

    def start(unit: str, tz: str) -> str:
        grid = calendar_grid(unit, tz)
        return texts(grid, grid.index_of(now), grid.index_of(now), tz)[0]

    assert start("hour", "Asia/Kathmandu") == "2024-06-06T02:00:00"
    assert start("day", "Asia/Kolkata") == "2024-06-06T00:00:00"
    assert start("week", "UTC") == "2024-06-03T00:00:00"
    assert start("month", "UTC") == "2024-06-01T00:00:00"
    assert start("quarter", "UTC") == "2024-04-01T00:00:00"
    assert start("year", "UTC") == "2024-01-01T00:00:00"
    assert calendar_grid("week", "UTC").boundary(0) == utc("1970-01-05T00:00")


def test_a_skipped_day_makes_two_boundaries_one_instant() -> None:
    grid = calendar_grid("day", "Pacific/Apia")
    n = grid.index_of(utc("2011-12-30T09:59"))
    assert grid.boundary(n + 1) == grid.boundary(n + 2) == utc("2011-12-30T10:00")
    assert grid.index_of(utc("2011-12-30T10:00")) == n + 2


def test_an_anchor_in_the_second_of_two_equal_hours_stays_where_it_is() -> None:
    tz = "Europe/Berlin"
    anchor = utc("2024-10-27T01:30")
    grid = grid_from("day", tz, anchor)
    assert grid.boundary(0) == anchor
    assert texts(grid, 0, 1, tz) == ["2024-10-27T02:30:00", "2024-10-28T02:30:00"]
    assert grid.index_of(anchor) == 0
    assert grid.index_of(anchor - 1) == -1


minutes = st.integers(utc("1972-01-01T00:00") // 60_000, utc("2037-12-01T00:00") // 60_000)


@given(st.sampled_from(ZONES), st.datetimes(datetime(1972, 2, 1), datetime(2037, 1, 1)))
@settings(max_examples=40, deadline=None)
def test_wall_times_by_scanning_every_minute(tz: str, wall: datetime) -> None:
    zone, wall = ZoneInfo(tz), wall.replace(second=0, microsecond=0)
    # Only around a change of the clock can the answer be in doubt: look there.
    day = timedelta(days=1)
    offsets = [(wall + n * day).replace(tzinfo=zone).utcoffset() for n in range(200)]
    change = next((n for n in range(1, 200) if offsets[n] != offsets[n - 1]), None)
    if change is not None:
        wall += (change - 1) * day
    base = to_ms(wall.replace(tzinfo=UTC))
    scan = (base + minute * 60_000 for minute in range(-27 * 60, 27 * 60))
    assert instant_of(zone, wall) == next(t for t in scan if wall_at(zone, t) >= wall)


grids = st.one_of(
    st.builds(
        grid_from, st.sampled_from(UNITS), st.sampled_from(ZONES), minutes.map((60_000).__mul__)
    ),
    st.builds(grid_from, st.integers(1, 40 * DAY), st.just("UTC"), minutes.map((60_001).__mul__)),
    st.builds(calendar_grid, st.sampled_from(UNITS), st.sampled_from(ZONES)),
    st.builds(month_day_grid, st.integers(1, 31), st.sampled_from(ZONES)),
)


@given(grids, minutes, st.integers(0, 59_999))
@settings(max_examples=300, deadline=None)
def test_index_of_inverts_boundary(grid: Grid, minute: int, ms: int) -> None:
    t = minute * 60_000 + ms
    n = grid.index_of(t)
    assert grid.boundary(n) <= t < grid.boundary(n + 1) == grid.first_after(t)
    row = [grid.boundary(i) for i in range(n - 3, n + 5)]
    assert row == sorted(row)
    assert grid.index_of(grid.boundary(n)) == n
    assert grid.index_of(grid.boundary(n + 1) - 1) <= n
