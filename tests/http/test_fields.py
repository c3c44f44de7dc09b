"""Structured fields: what is written is what a parser of RFC 9651 reads."""

from __future__ import annotations

from typing import Any

import http_sfv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.http import Reading, ratelimit_fields
from meterd.http.fields import MAX_INTEGER, retry_after_seconds, sf_integer, sf_item, sf_string
from meterd.result import LimitState

NOW = 1_700_000_000_000


def state(name: str = "requests", kind: str = "bucket", **fields: Any) -> LimitState:
    given: dict[str, Any] = {
        "subject": "acme", "limit": 100, "used": 50, "remaining": 50, "overage": 0, "applied": 1,
        "allowed": True, "resets_at_ms": NOW + 30_000, "retry_after": None,
    }  # fmt: skip
    return LimitState(name=name, kind=kind, **(given | fields))


def read(value: str) -> list[tuple[str, dict[str, Any]]]:
    parsed = http_sfv.List()
    parsed.parse(value.encode())
    return [(item.value, dict(item.params.items())) for item in parsed]


def told(*readings: Reading, legacy: bool = False) -> dict[str, str]:
    fields = ratelimit_fields(readings, legacy=legacy)
    assert len(dict(fields)) == len(fields)
    return dict(fields)


@pytest.mark.parametrize(
    ("reading", "policy", "limit"),
    [
        (Reading(state(), 60, NOW), '"requests";q=100;w=60', '"requests";r=50;t=30'),
        (Reading(state(), None, NOW), '"requests";q=100', '"requests";r=50;t=30'),
        (Reading(state(resets_at_ms=None), 60, NOW), '"requests";q=100;w=60', '"requests";r=50'),
        # seconds are rounded up, and never below 0
        (Reading(state(), 60, NOW + 1), '"requests";q=100;w=60', '"requests";r=50;t=30'),
        (Reading(state(), 60, NOW - 1), '"requests";q=100;w=60', '"requests";r=50;t=31'),
        (Reading(state(), 60, NOW + 99_999), '"requests";q=100;w=60', '"requests";r=50;t=0'),
        # refused: until the call fits, as Retry-After says
        (
            Reading(state(allowed=False, remaining=0, retry_after=1.001), 60, NOW),
            '"requests";q=100;w=60',
            '"requests";r=0;t=2',
        ),
        # used beyond the limit
        (Reading(state(remaining=-7), None, NOW), '"requests";q=100', '"requests";r=0;t=30'),
        (
            Reading(state("jobs", "slots", limit=10, remaining=3), None, NOW),
            '"jobs";q=10;qu="concurrent-requests"',
            '"jobs";r=3',
        ),
        (
            Reading(state(limit=10**15, remaining=10**15), None, NOW),
            '"requests";q=999999999999999',
            '"requests";r=999999999999999;t=30',
        ),
    ],
)  # fmt: skip
def test_one_limit(reading: Reading, policy: str, limit: str) -> None:
    assert told(reading) == {"RateLimit-Policy": policy, "RateLimit": limit}


def test_several_limits_in_order() -> None:
    fields = told(Reading(state("b"), 60, NOW), Reading(state("a", "pool"), None, NOW))
    assert fields["RateLimit-Policy"] == '"b";q=100;w=60, "a";q=100'
    assert fields["RateLimit"] == '"b";r=50;t=30, "a";r=50;t=30'


def test_what_has_no_bound_is_not_told() -> None:
    flag = state("sso", "flag", limit=None, remaining=None, resets_at_ms=None)
    unlimited = state("credits", "pool", limit=None, remaining=None)
    assert ratelimit_fields([Reading(flag, None, NOW), Reading(unlimited, None, NOW)]) == []
    assert ratelimit_fields([]) == []


def test_the_tightest_level_is_told() -> None:
    root = Reading(state(remaining=9, limit=300), 60, NOW)
    user = Reading(state(remaining=2, limit=5, subject="acme/ana"), 1, NOW)
    assert told(root, user)["RateLimit-Policy"] == '"requests";q=5;w=1'
    refusing = Reading(state(remaining=3, limit=300, allowed=False, retry_after=1.0), 60, NOW)
    assert told(user, refusing)["RateLimit-Policy"] == '"requests";q=300;w=60'


def test_a_later_look_at_the_same_limit_counts() -> None:
    fields = told(Reading(state(remaining=5), 60, NOW), Reading(state(remaining=6), 60, NOW))
    assert fields["RateLimit"] == '"requests";r=6;t=30'


def test_the_older_fields() -> None:
    bucket = state(remaining=7, resets_at_ms=NOW + 1)
    pool = state("credits", "pool", limit=1000, remaining=3)
    rich = state("tokens", "pool", limit=1000, remaining=30)
    fields = told(*(Reading(one, None, NOW) for one in (rich, pool, bucket)), legacy=True)
    assert fields["X-RateLimit-Limit"] == "100"
    assert fields["X-RateLimit-Remaining"] == "7"
    assert fields["X-RateLimit-Reset"] == "1700000001"
    assert fields["X-Usage-Remaining"] == "3"


def test_the_older_fields_of_pools_alone() -> None:
    pool = state("credits", "pool", limit=1000, remaining=-3, resets_at_ms=None)
    fields = told(Reading(pool, None, NOW), legacy=True)
    assert fields["X-RateLimit-Limit"] == "1000"
    assert fields["X-RateLimit-Remaining"] == fields["X-Usage-Remaining"] == "0"
    assert "X-RateLimit-Reset" not in fields


@pytest.mark.parametrize(
    ("seconds", "whole"), [(None, None), (0.001, 1), (1.0, 1), (1.0001, 2), (59.999, 60), (0, 0)]
)
def test_retry_after_is_rounded_up(seconds: float | None, whole: int | None) -> None:
    assert retry_after_seconds(seconds) == whole


def test_strings_are_escaped() -> None:
    assert sf_string('a"b\\c') == '"a\\"b\\\\c"'


@pytest.mark.parametrize("text", ["é", "a\nb", "\x7f", "\0", "a\tb"])
def test_what_no_string_can_hold(text: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        sf_string(text)


printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64)
names = st.text("ABCxyz019_.-", min_size=1, max_size=64)
amounts = st.integers(0, 10**15)


@given(printable, st.integers(-(10**20), 10**20), st.none() | printable)
def test_items_come_back(text: str, number: int, other: str | None) -> None:
    ((value, parameters),) = read(sf_item(text, {"q": number, "qu": other}))
    assert value == text
    assert parameters["q"] == int(sf_integer(number))
    assert abs(parameters["q"]) <= MAX_INTEGER
    assert parameters.get("qu") == other
    assert number != parameters["q"] or abs(number) <= MAX_INTEGER


@given(
    st.lists(
        st.builds(
            lambda name, kind, limit, remaining, resets, allowed, retry, window: Reading(
                state(
                    name, kind, limit=limit, remaining=remaining, resets_at_ms=resets,
                    allowed=allowed, retry_after=None if allowed else retry,
                ),
                window,
                NOW,
            ),
            names,
            st.sampled_from(["pool", "bucket", "slots"]),
            st.none() | amounts,
            st.integers(-(10**15), 10**15),
            st.none() | st.integers(0, 2**48),
            st.booleans(),
            st.none() | st.floats(0, 4e9),
            st.none() | st.integers(1, 10**9),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_every_field_can_be_read(readings: list[Reading]) -> None:
    fields = dict(ratelimit_fields(readings, legacy=True))
    bounded = {one.state.name for one in readings if one.state.limit is not None}
    assert bool(fields) == bool(bounded)
    if not fields:
        return
    policies, limits = read(fields["RateLimit-Policy"]), read(fields["RateLimit"])
    assert [name for name, _ in policies] == [name for name, _ in limits]
    assert {name for name, _ in policies} == bounded
    for _, parameters in policies:
        assert parameters["q"] >= 0
        assert parameters.get("w", 1) > 0
    for _, parameters in limits:
        assert parameters["r"] >= 0
        assert parameters.get("t", 0) >= 0
    assert int(fields["X-RateLimit-Limit"]) >= 0
