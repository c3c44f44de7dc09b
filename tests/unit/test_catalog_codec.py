"""Definitions of plans: canonical, complete, and back again unharmed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.catalog import (
    definition_bytes,
    definition_hash,
    diff,
    plan_from_bytes,
    plan_from_dict,
    plan_to_dict,
)
from meterd.errors import PolicyError
from meterd.policy import Bucket, Flag, Limit, Plan, Pool, Price, Slots

T0 = datetime(2024, 1, 31, tzinfo=UTC)

names = st.text("abcXYZ019_.-", min_size=1, max_size=12)
amounts = st.integers(0, 10**15)
rates = st.none() | st.dictionaries(names, st.integers(1, 10**15), min_size=1, max_size=4)
durations = st.integers(1, 366 * 86_400_000).map(lambda ms: timedelta(milliseconds=ms))
words = st.sampled_from(["hour", "day", "week", "month", "quarter", "year"])
instants = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def pools(draw: st.DrawFn, name: str) -> Pool:
    reset = draw(st.none() | words | durations)
    anchors: list[Any] = [st.just("subscription")]
    if reset is not None:
        anchors += [st.just("first_use"), instants]
    if isinstance(reset, str):
        anchors.append(st.just("calendar"))
    if reset == "month":
        anchors.append(st.integers(1, 31))
    anchor = draw(st.one_of(anchors))
    moves = reset is not None and anchor != "first_use"
    return Pool(
        name,
        draw(st.none() | amounts),
        reset,
        anchor=anchor,
        tz=draw(st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"])),
        rollover=draw(amounts) if moves else 0,
        overage=draw(st.none() | amounts),
        carry_debt=draw(st.booleans()) if moves else False,
        rates=draw(rates),
        auto=draw(st.none() | amounts),
        warn_at=draw(st.lists(st.floats(0.01, 1), max_size=3)),
        warn_below=draw(st.lists(st.integers(1, 10**15), max_size=3)),
        bill=draw(st.sampled_from([None, "use", "overage"])),
    )


@st.composite
def buckets(draw: st.DrawFn, name: str) -> Bucket:
    algorithm = draw(st.sampled_from(["fixed", "sliding", "token"]))
    rate = st.integers(0, 10**12)
    return Bucket(
        name,
        draw(rate),
        draw(durations),
        algorithm=algorithm,
        burst=draw(st.none() | rate) if algorithm == "token" else None,
        rates=draw(rates),
        auto=draw(amounts),
        on_error=draw(st.sampled_from(["raise", "allow", "deny"])),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    limits: list[Limit] = []
    for name in draw(st.lists(names, unique=True, max_size=5)):
        kind = draw(st.sampled_from(["pool", "bucket", "slots", "flag"]))
        if kind == "flag":
            limits.append(Flag(name))
        elif kind == "slots":
            limits.append(Slots(name, draw(st.integers(0, 10**12)), rates=draw(rates)))
        elif kind == "pool":
            limits.append(draw(pools(name)))
        else:
            limits.append(draw(buckets(name)))
    return Plan(
        draw(names),
        includes=limits,
        name=draw(st.none() | st.just("Größe XL")),
        group=draw(names),
        default=draw(st.booleans()),
        price=draw(st.none() | st.builds(Price, amounts, st.just("eur"), st.just("year"))),
        meta=draw(st.none() | st.dictionaries(st.text(), json_values, max_size=3)),
    )


@settings(max_examples=150, deadline=None)
@given(plans())
def test_a_definition_survives_json_and_msgpack(plan: Plan) -> None:
    definition = plan_to_dict(plan)
    again = plan_from_dict(json.loads(json.dumps(definition)))
    assert plan_to_dict(again) == definition
    assert plan_from_bytes(definition_bytes(plan)) == again
    assert definition_bytes(again) == definition_bytes(plan)
    assert definition_hash(again) == definition_hash(plan)
    assert not diff({plan.id: plan}, [again])


def test_the_definition_of_a_plan() -> None:
    """Stored in Redis: must not change, or every catalog would look changed after an upgrade."""
    plan = Plan(
        "pro",
        includes=[
            Pool(
                *("credits", 1000, "month"),
                anchor=datetime(2024, 1, 31, 2, tzinfo=timezone(timedelta(hours=2))),
                tz="Europe/Berlin",
                rollover=5,
                rates={"b": 2, "a": 1},
            ),
            Pool("free", None),
            Bucket("api", 5, "60m", algorithm="token", burst=9),
            Flag("sso"),
        ],
        name="Pro",
        default=True,
        price=Price(500),
        meta={"b": [1], "a": None},
    )
    assert plan_to_dict(plan) == {
        "id": "pro",
        "group": "base",
        "default": True,
        "name": "Pro",
        "price": {"amount": 500, "currency": "usd", "interval": "month"},
        "meta": {"a": None, "b": [1]},
        "includes": [
            {
                "kind": "pool",
                "name": "credits",
                "limit": 1000,
                "reset": "month",
                "anchor": "2024-01-31T00:00:00Z",
                "tz": "Europe/Berlin",
                "rollover": 5,
                "rates": {"a": 1, "b": 2},
            },
            {"kind": "pool", "name": "free", "limit": None},
            {
                "kind": "bucket",
                "name": "api",
                "limit": 5,
                "per": "1h",
                "algorithm": "token",
                "burst": 9,
            },
            {"kind": "flag", "name": "sso"},
        ],
    }
    assert definition_hash(plan).hex() == "9df2e7242e166651"


SAME: list[tuple[Limit, Limit]] = [
    (Pool("a", 1, "60m"), Pool("a", 1, timedelta(hours=1))),
    (Pool("a", 1, rates={"a": 1}), Pool("a", 1)),
    (Pool("a", 1, rates={"x": 1, "y": 2}), Pool("a", 1, rates={"y": 2, "x": 1})),
    (Pool("credits", 1, auto=1), Pool("credits", 1)),
    (Pool("a", 1, auto=0), Pool("a", 1)),
    (Pool("a", 1, warn_at=[1, 0.5]), Pool("a", 1, warn_at=(0.5, 1.0))),
    (Pool("a", 1, "7d"), Pool("a", 1, "1w")),
    (
        Pool("a", 1, "day", anchor=T0),
        Pool("a", 1, "day", anchor=T0.astimezone(timezone(timedelta(hours=-5)))),
    ),
    (Bucket("a", 1, "60s"), Bucket("a", 1, "1m", algorithm="sliding")),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_plans_that_mean_the_same_are_the_same(one: Limit, two: Limit) -> None:
    assert definition_hash(Plan("p", includes=[one])) == definition_hash(Plan("p", includes=[two]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": 1}, "plan 'p': colour: unknown key"),
        ({"gruop": "x"}, "did you mean 'group'"),
        ({"includes": None}, "a list of limits"),
        ({"includes": [5]}, "a mapping"),
        ({"includes": [{"kind": "queue", "name": "a"}]}, "limit 'a': kind: got 'queue'.*newer"),
        ({"includes": [{"name": "a"}]}, "kind: got None"),
        ({"includes": [{"kind": "pool", "name": "a"}]}, "plan 'p': pool 'a': limit is missing"),
        ({"includes": [{"kind": "pool", "name": "a", "limit": -1}]}, "plan 'p': pool 'a': limit"),
        (
            {"includes": [{"kind": "flag", "name": "a", "x": 1}]},
            "plan 'p': flag 'a': x: unknown key",
        ),
        (
            {"includes": [{"kind": "pool", "name": "a", "limit": 1, "anchor": "noon"}]},
            "pool 'a': anchor: got 'noon'.*ISO",
        ),
        ({"price": 5}, "plan 'p': price: got 5"),
        ({"price": {"amount": 1, "vat": 19}}, "plan 'p': price: vat: unknown key"),
        ({"price": {}}, "plan 'p': price: amount is missing"),
        ({"group": "a b"}, "plan 'p': group"),
    ],
)
def test_definitions_that_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        plan_from_dict({"id": "p", "includes": [], **change})


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x93\x01", b"\x05", b"\xa1\xff"])
def test_bytes_that_are_no_definition(packed: bytes) -> None:
    with pytest.raises(PolicyError, match="plan definition"):
        plan_from_bytes(packed)


@settings(max_examples=60, deadline=None)
@given(plans(), plans())
def test_a_diff_is_true_exactly_if_definitions_differ(one: Plan, two: Plan) -> None:
    two = plan_from_dict({**plan_to_dict(two), "id": one.id})
    found = diff({one.id: one}, [two])
    assert bool(found) == (definition_bytes(one) != definition_bytes(two))
    assert all(change.changes for change in found.changed)
    json.dumps(found.as_dict())
