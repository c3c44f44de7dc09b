"""Durations, seconds and instants: what is accepted, to the millisecond, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.errors import PolicyError
from meterd.timespec import (
    MAX_DURATION_MS,
    closest,
    datetime_ms,
    duration_ms,
    format_instant,
    format_ms,
    instant_ms,
    seconds,
    shown,
)

DURATIONS = [
    ("1ms", 1),
    ("500ms", 500),
    ("10s", 10_000),
    ("5m", 300_000),
    ("5h", 18_000_000),
    ("30d", 2_592_000_000),
    ("2w", 1_209_600_000),
    ("007s", 7_000),
    ("366000d", MAX_DURATION_MS),
    (timedelta(seconds=90), 90_000),
    (timedelta(days=31), 2_678_400_000),
    (timedelta(microseconds=1999), 1),
]

NO_DURATIONS: list[Any] = [
    *("", " ", "s", "10", "10 s", " 10s", "10s ", "10s\n", "1.5h", "-5m", "+5m", "1h30m", "5M"),
    *("5y", "1mo", "5 minutes", "٣s", "1e3s", "0s", "0ms", "366001d", "9" * 5000 + "s"),
    *(timedelta(0), timedelta(seconds=-1), timedelta(microseconds=999), timedelta(days=366_001)),
    *(10, 0, 1.5, True, None, b"5m", float("nan"), [], {"s": 5}),
]


@pytest.mark.parametrize(("value", "ms"), DURATIONS)
def test_duration(value: str | timedelta, ms: int) -> None:
    assert duration_ms(value, field="ttl") == ms


@pytest.mark.parametrize("value", NO_DURATIONS, ids=lambda value: repr(value)[:20])
def test_duration_refused(value: Any) -> None:
    with pytest.raises(PolicyError, match=r"^ttl: got .*; allowed: "):
        duration_ms(value, field="ttl")


@pytest.mark.parametrize("value", ["0s", "0ms", timedelta(0), timedelta(microseconds=5)])
def test_duration_may_be_zero_only_where_said(value: str | timedelta) -> None:
    assert duration_ms(value, field="overlap", allow_zero=True) == 0
    with pytest.raises(PolicyError, match=r"1ms"):
        duration_ms(value, field="overlap")


def test_a_negative_duration_is_refused_even_where_zero_is_not() -> None:
    with pytest.raises(PolicyError, match=r"0ms"):
        duration_ms(timedelta(microseconds=-1), field="overlap", allow_zero=True)


def test_a_bare_number_is_told_why() -> None:
    with pytest.raises(PolicyError, match=r"per: got 60; .*no unit"):
        duration_ms(60, field="per")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(60, 60.0), (0.25, 0.25), ("500ms", 0.5), ("1m", 60.0), (timedelta(milliseconds=1), 0.001)],
)
def test_seconds(value: float | str | timedelta, expected: float) -> None:
    got = seconds(value, "timeout")
    assert got == expected
    assert isinstance(got, float)


@pytest.mark.parametrize(
    "value",
    [0, -1, -0.0, float("nan"), float("inf"), 10**400, True, None, "60", "0s", b"1s", [1]],
    ids=lambda value: repr(value)[:20],
)
def test_seconds_refused(value: Any) -> None:
    with pytest.raises(PolicyError, match=r"^timeout: got "):
        seconds(value, "timeout")


@pytest.mark.parametrize("value", [0, 0.0, "0s", timedelta(0)])
def test_seconds_may_be_zero_only_where_said(value: Any) -> None:
    assert seconds(value, "wait", allow_zero=True) == 0.0


@pytest.mark.parametrize("value", [-1, -0.001, float("nan"), timedelta(seconds=-1), False])
def test_seconds_never_negative(value: Any) -> None:
    with pytest.raises(PolicyError, match=r"^wait: got "):
        seconds(value, "wait", allow_zero=True)


NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("30d", NOW + 2_592_000_000),
        ("0s", NOW),
        (timedelta(seconds=1), NOW + 1000),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(2024, 1, 31, tzinfo=UTC), 1_706_659_200_000),
        (datetime(2024, 1, 31, 2, tzinfo=timezone(timedelta(hours=2))), 1_706_659_200_000),
        (datetime(2024, 1, 31, 0, 0, 0, 1999, tzinfo=UTC), 1_706_659_200_001),
        (datetime(2262, 4, 12, 0, 0, 0, 999_999, tzinfo=UTC), 9_223_372_800_999),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 253_402_300_799_999),
    ],
)
def test_instant(value: datetime | str | timedelta, ms: int) -> None:
    assert instant_ms(value, NOW, "expires") == ms


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (datetime(2024, 1, 31), "no time zone"),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "1970"),
        (datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=1))), "1970"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "1970"),
        (1_700_000_000, "aware datetime, or a duration"),
        (1.5, "aware datetime, or a duration"),
        (True, "aware datetime, or a duration"),
        (None, "aware datetime, or a duration"),
        (datetime(2024, 1, 31).date(), "aware datetime, or a duration"),
        ("2024-01-31", "5m"),
        (timedelta(seconds=-1), "0ms"),
    ],
)
def test_instant_refused(value: Any, why: str) -> None:
    with pytest.raises(PolicyError, match=rf"^expires: got .*{why}"):
        instant_ms(value, NOW, "expires")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (1_500, "1500ms"),
        (1_000, "1s"),
        (90_000, "90s"),
        (60_000, "1m"),
        (3_600_000, "1h"),
        (86_400_000, "1d"),
        (604_800_000, "1w"),
        (2_592_000_000, "30d"),
    ],
)
def test_format(ms: int, text: str) -> None:
    assert format_ms(ms) == text


@given(st.integers(1, MAX_DURATION_MS))
def test_format_is_the_inverse_of_parsing(ms: int) -> None:
    assert duration_ms(format_ms(ms), field="x") == ms


@given(st.integers(1, 10**6), st.sampled_from(["s", "m", "h", "d", "w"]))
def test_text_and_timedelta_agree(count: int, unit: str) -> None:
    word = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[unit]
    delta = timedelta(**{word: count})
    if delta > timedelta(milliseconds=MAX_DURATION_MS):
        with pytest.raises(PolicyError):
            duration_ms(f"{count}{unit}", field="x")
    else:
        assert duration_ms(f"{count}{unit}", field="x") == duration_ms(delta, field="x")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_706_659_200_000, "2024-01-31T00:00:00Z"),
    ],
)
def test_format_instant(ms: int, text: str) -> None:
    assert format_instant(ms) == text


@given(st.integers(0, 253_402_300_799_999))
def test_an_instant_survives_its_text(ms: int) -> None:
    assert datetime_ms(datetime.fromisoformat(format_instant(ms)), field="x") == ms


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("monthly", "; did you mean 'month'?"),
        ("MONTH", "; did you mean 'month'?"),
        ("xyzzy", ""),
        (5, ""),
        ("m" * 5000, ""),
    ],
)
def test_closest(word: object, hint: str) -> None:
    assert closest(word, ("hour", "month", "quarter")) == hint


def test_shown_is_short_and_never_fails() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown("a") == "'a'"
    assert len(shown("a" * 500)) == 80
    assert shown(Broken()) == "<Broken>"
    assert shown(10**5000) == "<int>"
