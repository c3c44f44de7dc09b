"""Times as people write them, turned into integer milliseconds. All parsing of times is here.

A *duration* is text (`"500ms" "10s" "5m" "5h" "30d" "2w"`) or a `timedelta`. An *instant* is an
aware `datetime`, or a duration from now. Bare numbers mean seconds, and only where `seconds` is
used. Every `field` argument is the text that an error starts with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from meterd.errors import PolicyError

UNIT_MS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
DAY_MS: Final = UNIT_MS["d"]
# A thousand years: sums with any instant a datetime can hold stay far below 2**53.
MAX_DURATION_MS: Final = 366_000 * DAY_MS

Seconds = float | str | timedelta  # what `ttl`, `timeout` and `wait` take
Instant = datetime | timedelta | str  # what `expires`, `anchor` and `when` take

_TEXT: Final = re.compile(r"([0-9]{1,15})(ms|s|m|h|d|w)", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_DURATION: Final = 'text such as "500ms", "10s", "5m", "5h", "30d", "2w", or a timedelta'


def shown(value: object) -> str:
    """The value as an error message quotes it: its repr, cut at 80 characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # an error message must not fail on a broken __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def closest(given: object, allowed: Iterable[str]) -> str:
    """`"; did you mean 'month'?"` when something allowed resembles what was given, else `""`."""
    if not isinstance(given, str) or len(given) > 100:
        return ""
    by_lower = {name.lower(): name for name in sorted(allowed, reverse=True)}
    import difflib

    near = difflib.get_close_matches(given.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def refuse(field: str, given: object, allowed: str, hint: str = "") -> PolicyError:
    """The error for a bad value: which field, what was given, what is allowed."""
    return PolicyError(f"{field}: got {shown(given)}; allowed: {allowed}{hint}")


def duration_ms(
    value: str | timedelta,
    *,
    field: str,
    allow_zero: bool = False,
    most_ms: int = MAX_DURATION_MS,
) -> int:
    """A duration in milliseconds, positive (or zero with `allow_zero`), at most `most_ms`.

    A `timedelta` is cut down to whole milliseconds. A bare number is refused: its unit is a guess.
    """
    if isinstance(value, timedelta):
        ms = value // _MILLISECOND
    elif isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if match is None:
            raise refuse(field, value, _DURATION)
        ms = int(match[1]) * UNIT_MS[match[2]]
    else:
        raise refuse(field, value, _DURATION, _if_bare(value))
    if ms < (0 if allow_zero else 1) or ms > most_ms:
        least = "0ms" if allow_zero else "1ms"
        raise refuse(field, value, f"a duration from {least} to {format_ms(most_ms)}")
    return ms


def _if_bare(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return " (a bare number has no unit)" if number else ""


def seconds(value: Seconds, field: str, *, allow_zero: bool = False) -> float:
    """Seconds from a bare number of seconds, or from a duration; positive unless `allow_zero`.

    For `ttl`, `timeout` and `wait` only.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        most = MAX_DURATION_MS // 1000
        # NaN fails every comparison, so the test says what is right, not what is wrong.
        if (0 <= value <= most) and (value > 0 or allow_zero):
            return float(value)
        least = "0" if allow_zero else "above 0"
        raise refuse(field, value, f"a number of seconds, {least} to {most}, or a duration")
    if isinstance(value, str | timedelta):
        return duration_ms(value, field=field, allow_zero=allow_zero) / 1000
    raise refuse(field, value, f"a number of seconds, or {_DURATION}")


def instant_ms(value: datetime | str | timedelta, now_ms: int, field: str) -> int:
    """An instant in ms since 1970-01-01T00:00Z: an aware datetime, or a duration from now.

    A datetime is cut down to its whole millisecond and may lie in the past; a duration may be 0.
    """
    if isinstance(value, datetime):
        return datetime_ms(value, field=field)
    if isinstance(value, str | timedelta):
        return now_ms + duration_ms(value, field=field, allow_zero=True)
    raise refuse(field, value, f"an aware datetime, or a duration from now: {_DURATION}")


def datetime_ms(value: datetime, *, field: str) -> int:
    """An aware datetime, at or after 1970, as whole milliseconds since then."""
    if value.utcoffset() is None:
        raise refuse(field, value, "an aware datetime", " (this one has no time zone)")
    ms = (value - _EPOCH) // _MILLISECOND
    if ms < 0:
        raise refuse(field, value, "an aware datetime at or after 1970-01-01T00:00:00Z")
    return ms


def format_ms(ms: int) -> str:
    """The shortest exact duration text: 90_000 -> "90s", 604_800_000 -> "1w", 0 -> "0s".

    `duration_ms(format_ms(x))` is x again.
    """
    if ms == 0:
        return "0s"
    for unit, size in reversed(UNIT_MS.items()):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    raise AssertionError("every integer is a whole number of milliseconds")


def format_instant(ms: int) -> str:
    """An instant as ISO 8601 text in UTC, such as "2024-01-31T00:00:00Z"."""
    moment = _EPOCH + timedelta(milliseconds=ms)
    text = moment.isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
    return text.replace("+00:00", "Z")
