"""Text to integer milliseconds since 1970, for every way traffic files write an instant.

Nothing here is a float: a fraction is cut to whole milliseconds, never rounded up, so a row can not
move past a boundary that it came before. A time without a zone is UTC.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

_DAY_MS = 86_400_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MONTHS = {
    "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6,
    "Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12,
}  # fmt: skip
_CLF = re.compile(r"(\d{1,2})/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ?([+-]\d\d:?\d\d)?\Z")
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?"
    r" ?([Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)?\Z"
)
_EPOCH = re.compile(r"(\d+)(?:\.(\d*))?\Z")

# An epoch number says its unit by its size: seconds stay below this until the year 5138, and
# milliseconds, microseconds and nanoseconds are each a thousand times the one before.
_SECONDS_BELOW = 10**11


def parse_time_ms(text: str) -> int:
    """Milliseconds since 1970-01-01T00:00Z of `text`; ValueError says why it is not an instant.

    Reads the access-log form (`17/May/2015:10:05:03 +0000`), ISO 8601 with any number of fractional
    digits, and epoch numbers in seconds, milliseconds, microseconds or nanoseconds.
    """
    text = text.strip()
    if match := _ISO.match(text):
        year, month, day, hour, minute, second, fraction, zone = match.groups()
        at = _day_ms(int(year), int(month), int(day))
        at += _clock_ms(hour or "0", minute or "0", second or "0")
        at += int((fraction or "0")[:3].ljust(3, "0")) - _zone_ms(zone)
    elif match := _CLF.match(text):
        mday, name, year, hour, minute, second, zone = match.groups()
        if name not in _MONTHS:
            raise ValueError(f"{_show(text)} is not a time: there is no month {name}")
        at = _day_ms(int(year), _MONTHS[name], int(mday))
        at += _clock_ms(hour, minute, second) - _zone_ms(zone)
    elif match := _EPOCH.match(text):
        at = _epoch_ms(match[1], match[2] or "")
    elif not text:
        raise ValueError("the time is empty")
    else:
        raise ValueError(f"{_show(text)} is not a time")
    if not 0 < at < 253_402_300_800_000:  # year 10000
        raise ValueError(f"{_show(text)} lies outside the years 1970 to 9999")
    return at


@lru_cache(maxsize=512)
def _day_ms(year: int, month: int, day: int) -> int:
    return (date(year, month, day).toordinal() - _EPOCH_DAY) * _DAY_MS


def _clock_ms(hour: str, minute: str, second: str) -> int:
    h, m, s = int(hour), int(minute), int(second)
    if h > 23 or m > 59 or s > 60:  # 60: a leap second is the first instant of the next minute
        raise ValueError(f"{h:02}:{m:02}:{s:02} is not a time of day")
    return ((h * 60 + m) * 60 + s) * 1000


@lru_cache(maxsize=512)
def _zone_ms(zone: str | None) -> int:
    """What to take off a wall clock in `zone` to get UTC, in ms."""
    if zone is None or zone[0] not in "+-":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or "0")
    if hours > 23 or minutes > 59:
        raise ValueError(f"{zone} is not a zone offset")
    return (hours * 60 + minutes) * (60_000 if zone[0] == "+" else -60_000)


def _epoch_ms(whole: str, fraction: str) -> int:
    value = int(whole[:25])
    if value < _SECONDS_BELOW:
        return value * 1000 + int(fraction[:3].ljust(3, "0"))
    while value >= _SECONDS_BELOW * 1000:
        value //= 1000
    return value


def _show(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
