"""Where periods begin and end. Everything the model knows about wall clocks and zones lives here.

A `Grid` is an endless row of boundaries, numbered by n (negative ones too). Boundary n is always
computed from the grid's origin, never from boundary n - 1, and instants are integer milliseconds
since 1970 (UTC).

A wall time is turned into an instant by one rule that covers every case: it is the *first instant
at which the zone's clock shows that time or a later one*. For an ordinary time this is the time
itself; for a time that occurs twice, the first occurrence; for a time that the clock skips, the
instant of the jump.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAIVE_EPOCH = datetime(1970, 1, 1)
ONE_MS = timedelta(milliseconds=1)
HOUR_MS = 3_600_000
CENTURY_MS = 100 * 366 * 86_400_000
"""The last millisecond of the year 9999: nothing later can be written as a `datetime`."""

MONTHS = {"month": 1, "quarter": 3, "year": 12}
DAYS = {"day": 1, "week": 7}
UNITS = ("hour", *DAYS, *MONTHS)


class OutOfRange(Exception):
    """The boundary lies outside the years that `datetime` can express."""


def to_ms(instant: datetime) -> int:
    """An aware datetime as milliseconds since 1970, rounded down."""
    return (instant - EPOCH) // ONE_MS


def wall_at(zone: ZoneInfo, t: int) -> datetime:
    """What the zone's clock shows at instant `t`, as a naive datetime with fold 0."""
    local = (EPOCH + timedelta(milliseconds=t)).astimezone(zone)
    return local.replace(tzinfo=None, fold=0)


def instant_of(zone: ZoneInfo, wall: datetime) -> int:
    """The first instant at which the zone's clock shows `wall` (naive) or a later time."""
    offsets = [wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1)]
    before, after = (wall - NAIVE_EPOCH - o for o in offsets if o is not None)
    if wall_at(zone, before // ONE_MS) == wall:
        return before // ONE_MS
    # Skipped. At `low` the clock has not jumped yet, at `high` it has: bisect for the jump.
    low, high = after // ONE_MS, before // ONE_MS
    while high - low > 1:
        middle = (low + high) // 2
        if wall_at(zone, middle) >= wall:
            high = middle
        else:
            low = middle
    return high


def add_months(origin: datetime, months: int) -> datetime:
    """`origin` moved by whole months; a day that the target month lacks becomes its last."""
    year, month0 = divmod(origin.year * 12 + origin.month - 1 + months, 12)
    if not 1 <= year <= 9999:
        raise OutOfRange(year)
    day = min(origin.day, calendar.monthrange(year, month0 + 1)[1])
    return origin.replace(year=year, month=month0 + 1, day=day)


class Grid:
    """Boundaries in time; subclasses say where boundary n is and roughly which n holds at t."""

    def boundary(self, n: int) -> int:
        """The instant of boundary n (non-decreasing in n)."""
        raise NotImplementedError

    def guess(self, t: int) -> int:
        """An index near the one that holds at `t`."""
        raise NotImplementedError

    def index_of(self, t: int) -> int:
        """The largest n whose boundary is not after `t`."""
        n = self.guess(t)
        while self.boundary(n) > t:
            n -= 1
        while self.boundary(n + 1) <= t:
            n += 1
        return n

    def first_after(self, t: int) -> int:
        """The first boundary later than `t`."""
        return self.boundary(self.index_of(t) + 1)


@dataclass(frozen=True)
class ElapsedGrid(Grid):
    """`origin_ms + n * step_ms`: hours and durations, which know nothing of wall clocks."""

    origin_ms: int
    step_ms: int

    def boundary(self, n: int) -> int:
        return self.origin_ms + n * self.step_ms

    def guess(self, t: int) -> int:
        return (t - self.origin_ms) // self.step_ms


@dataclass(frozen=True)
class WallGrid(Grid):
    """The wall time `origin` of `zone` moved by n steps of months, days or (calendar) hours.

    `exact_ms` is the instant of boundary 0 where the grid was made from an instant: an instant in
    the second half of a repeated hour stays what it is.
    """

    zone: ZoneInfo
    origin: datetime
    months: int = 0
    step: timedelta = timedelta(0)
    exact_ms: int | None = None

    def wall(self, n: int) -> datetime:
        if self.months:
            return add_months(self.origin, n * self.months)
        try:
            return self.origin + n * self.step
        except OverflowError as error:
            raise OutOfRange(n) from error

    def boundary(self, n: int) -> int:
        if n == 0 and self.exact_ms is not None:
            return self.exact_ms
        return _instant(self.zone, self.wall(n))

    def guess(self, t: int) -> int:
        wall, origin = wall_at(self.zone, t), self.origin
        if self.months:
            return ((wall.year - origin.year) * 12 + wall.month - origin.month) // self.months
        return (wall - origin) // self.step


@lru_cache(maxsize=65_536)
def _instant(zone: ZoneInfo, wall: datetime) -> int:
    try:
        return instant_of(zone, wall)
    except OverflowError as error:
        raise OutOfRange(wall) from error


@lru_cache(maxsize=65_536)
def grid_from(reset: str | int, tz: str, origin_ms: int) -> Grid:
    """The grid that starts at an instant. `reset` is a unit's name or a duration in ms."""
    if isinstance(reset, int):
        return ElapsedGrid(origin_ms, reset)
    if reset == "hour":
        return ElapsedGrid(origin_ms, HOUR_MS)
    zone = ZoneInfo(tz)
    return _wall_grid(reset, zone, wall_at(zone, origin_ms), exact_ms=origin_ms)


@lru_cache(maxsize=4096)
def calendar_grid(reset: str, tz: str) -> Grid:
    """Starts of the hour, day, ISO week, month, quarter or year on the clock of `tz`.

    Hours are elapsed time: they start where the clock shows :00 (by the offset of 2024; a zone that
    moves its clock by less than an hour is not modelled).
    """
    if reset == "hour":
        wall = wall_at(ZoneInfo(tz), 1_704_067_200_000)
        return ElapsedGrid(-(wall.minute * 60_000 + wall.second * 1000), HOUR_MS)
    # 1970-01-05 is the first Monday after the epoch.
    origin = datetime(1970, 1, 5) if reset == "week" else NAIVE_EPOCH
    return _wall_grid(reset, ZoneInfo(tz), origin)


@lru_cache(maxsize=4096)
def month_day_grid(day: int, tz: str) -> Grid:
    """00:00 on the given day of every month, or on the last day of shorter months."""
    return _wall_grid("month", ZoneInfo(tz), datetime(1970, 1, day))


def _wall_grid(unit: str, zone: ZoneInfo, origin: datetime, exact_ms: int | None = None) -> Grid:
    if unit in MONTHS:
        return WallGrid(zone, origin, months=MONTHS[unit], exact_ms=exact_ms)
    return WallGrid(zone, origin, step=timedelta(days=DAYS[unit]), exact_ms=exact_ms)
