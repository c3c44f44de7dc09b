"""What a diff says, line by line and field by field."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd.catalog import (
    Diff,
    definition_hash,
    diff,
    plan_to_dict,
    validate_catalog,
)
from meterd.errors import PolicyError
from meterd.policy import Bucket, Flag, Limit, Plan, Pool, Price

T0 = datetime(2024, 1, 31, tzinfo=UTC)

DIFFERENT: list[tuple[Limit, Limit, str]] = [
    (Pool("a", 1), Pool("a", 2), "pool a: limit 1 -> 2"),
    (Pool("a", 1), Pool("a", None), "pool a: limit 1 -> unlimited"),
    (Pool("a", 1), Pool("a", 1, "day"), "pool a: reset none -> day"),
    (Pool("a", 1, "hour"), Pool("a", 1, "1h"), "pool a: reset hour -> 1h"),
    (
        Pool("a", 1, "month"),
        Pool("a", 1, "month", anchor=31),
        "pool a: anchor subscription -> 31",
    ),
    (
        Pool("a", 1, "month", anchor=T0),
        Pool("a", 1, "month", anchor=T0 + timedelta(milliseconds=1)),
        "pool a: anchor 2024-01-31T00:00:00Z -> 2024-01-31T00:00:00.001Z",
    ),
    (Pool("a", 1), Pool("a", 1, tz="Asia/Tokyo"), "pool a: tz UTC -> Asia/Tokyo"),
    (Pool("a", 1, "day"), Pool("a", 1, "day", rollover=7), "pool a: rollover 0 -> 7"),
    (Pool("a", 1), Pool("a", 1, overage=None), "pool a: overage 0 -> unlimited"),
    (
        Pool("a", 1, "day"),
        Pool("a", 1, "day", carry_debt=True),
        "pool a: carry_debt false -> true",
    ),
    (Pool("a", 1), Pool("a", 1, rates={"b": 2}), 'pool a: rates none -> {"b": 2}'),
    (Pool("a", 1), Pool("a", 1, auto=2), "pool a: auto 0 -> 2"),
    (Pool("a", 1), Pool("a", 1, warn_at=()), "pool a: warn_at [0.8] -> []"),
    (Pool("a", 1), Pool("a", 1, warn_below=(5,)), "pool a: warn_below [] -> [5]"),
    (Pool("a", 1), Pool("a", 1, bill="use"), "pool a: bill none -> use"),
    (Bucket("a", 1, "1m"), Bucket("a", 2, "1m"), "bucket a: limit 1 -> 2"),
    (Bucket("a", 1, "1m"), Bucket("a", 1, "1h"), "bucket a: per 1m -> 1h"),
    (
        Bucket("a", 1, "1m"),
        Bucket("a", 1, "1m", algorithm="fixed"),
        "bucket a: algorithm sliding -> fixed",
    ),
    (
        Bucket("a", 1, "1m", algorithm="token"),
        Bucket("a", 1, "1m", algorithm="token", burst=1),
        "bucket a: burst none -> 1",
    ),
    (Bucket("a", 1, "1m"), Bucket("a", 1, "1m", auto=1), "bucket a: auto 0 -> 1"),
    (
        Bucket("a", 1, "1m"),
        Bucket("a", 1, "1m", on_error="allow"),
        "bucket a: on_error raise -> allow",
    ),
]


@pytest.mark.parametrize(("one", "two", "line"), DIFFERENT)
def test_every_field_counts_in_hash_and_diff(one: Limit, two: Limit, line: str) -> None:
    old, new = Plan("p", includes=[one]), Plan("p", includes=[two])
    assert definition_hash(old) != definition_hash(new)
    assert str(diff({"p": old}, [new])) == f"~ plan p: {line}"


def test_diff() -> None:
    old = {
        "free": Plan("free", includes=[Pool("credits", 10)], default=True),
        "pro": Plan(
            "pro",
            includes=[Pool("credits", 1000), Flag("old"), Bucket("api", 5, "1m"), Flag("kind")],
            price=Price(500),
        ),
        "gone": Plan("gone", includes=[]),
        "kept": Plan("kept", includes=[]),
    }
    new = [
        old["free"],
        Plan(
            "pro",
            includes=[
                Bucket("api", 5, "60s"),
                Pool("credits", 2000, overage=None),
                Pool("kind", 5, "day"),
                Flag("new"),
            ],
            name="Pro",
            default=False,
        ),
        Plan("max", includes=[Pool("credits", 5), Flag("sso")], group="big", default=True),
    ]
    found = diff(old, new, remove=["gone"])
    assert found
    assert str(found).splitlines() == [
        "+ plan max (group big, default): pool credits, flag sso",
        "~ plan pro: name none -> Pro",
        '~ plan pro: price {"amount": 500, "currency": "usd", "interval": "month"} -> none',
        "~ plan pro: pool credits: limit 1000 -> 2000",
        "~ plan pro: pool credits: overage 0 -> unlimited",
        "~ plan pro: + pool kind (limit 5, reset day)",
        "~ plan pro: + flag new",
        "~ plan pro: - flag old",
        "~ plan pro: - flag kind",
        '~ plan pro: order ["credits", "api", "kind"] -> ["api", "credits", "kind"]',
        "- plan gone",
    ]
    assert [plan.id for plan in found.added] == ["max"]
    assert [change.id for change in found.changed] == ["pro"]
    assert (found.changed[0].old, found.changed[0].new) == (old["pro"], new[1])
    assert [plan.id for plan in found.removed] == ["gone"]
    assert [plan.id for plan in found.unchanged] == ["free", "kept"]
    data = json.loads(json.dumps(found.as_dict()))
    assert data["added"] == [plan_to_dict(new[2])]
    assert data["removed"] == ["gone"]
    assert data["unchanged"] == ["free", "kept"]
    assert data["changed"][0]["id"] == "pro"
    assert data["changed"][0]["changes"][2] == {
        "limit": "pool credits",
        "field": "limit",
        "old": 1000,
        "new": 2000,
    }
    assert len(data["changed"][0]["changes"]) == 9


def test_no_diff() -> None:
    old = {"pro": Plan("pro", includes=[Pool("a", 1, "60m")])}
    found = diff(old, [Plan("pro", includes=[Pool("a", 1, "1h", rates={"a": 1})])])
    assert not found
    assert str(found) == "no changes"
    assert not diff({}, [])
    assert not Diff()
    assert not diff(old, [])


def test_diff_tells_json_types_apart() -> None:
    metas: list[Any] = [1, 1.0, True]
    held = [Plan("p", includes=[], meta={"x": value}) for value in metas]
    for one in held:
        for two in held:
            assert bool(diff({"p": one}, [two])) == (one is not two)
            if one is not two:
                assert "meta" in str(diff({"p": one}, [two]))


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        (["por"], "got 'por'; allowed: ids of the catalog: free, pro; did you mean 'pro'"),
        (["free"], "'free' is also among the plans to apply"),
        ("pro", "a list of plan ids"),
    ],
)
def test_remove_refused(remove: Any, says: str) -> None:
    free = Plan("free", includes=[])
    old = {"free": free, "pro": Plan("pro", includes=[])}
    with pytest.raises(PolicyError, match=says):
        diff(old, [free], remove)
    with pytest.raises(PolicyError, match=says):
        validate_catalog([free], old, remove)
