"""How plans add up, and which plans make a catalog."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.catalog import (
    merge,
    overlay,
    validate_catalog,
)
from meterd.errors import PolicyError
from meterd.policy import Bucket, Flag, Limit, Plan, Pool, Slots


def base(*limits: Limit) -> Plan:
    return Plan("pro", includes=limits)


def extra(*limits: Limit, id: str = "boost", group: str = "extra") -> Plan:
    return Plan(id, includes=limits, group=group)


def token(limit: int, burst: int | None) -> Bucket:
    return Bucket("a", limit, "1m", algorithm="token", burst=burst)


MERGED: list[tuple[Limit, Limit, Limit]] = [
    (Pool("a", 1), Pool("a", 2), Pool("a", 3)),
    (Pool("a", None), Pool("a", 2), Pool("a", None)),
    (Pool("a", 2), Pool("a", None), Pool("a", None)),
    (Pool("a", 1, overage=5), Pool("a", 2, overage=6), Pool("a", 3, overage=11)),
    (Pool("a", 1, overage=None), Pool("a", 2, overage=6), Pool("a", 3, overage=None)),
    (
        Pool("a", 1, "month", anchor=31, tz="Asia/Tokyo", rollover=4),
        Pool("a", 2, "month", anchor=31, tz="Asia/Tokyo", rollover=4),
        Pool("a", 3, "month", anchor=31, tz="Asia/Tokyo", rollover=4),
    ),
    (Pool("a", 1, "60m"), Pool("a", 1, "1h"), Pool("a", 2, "60m")),
    (Pool("a", 1, rates={"a": 1}), Pool("a", 1), Pool("a", 2, rates={"a": 1})),
    (Bucket("a", 1, "1m"), Bucket("a", 2, "60s"), Bucket("a", 3, "1m")),
    (token(1, None), token(2, None), token(3, None)),
    (token(1, 10), token(2, None), token(3, 12)),
    (token(1, None), token(2, 10), token(3, 11)),
    (token(1, 10), token(2, 20), token(3, 30)),
    (token(1, 0), token(2, None), token(3, 2)),
    (Flag("a"), Flag("a"), Flag("a")),
    (Slots("a", 2), Slots("a", 0, rates={"a": 1}), Slots("a", 2)),
    (Slots("a", 2, rates={"b": 3}), Slots("a", 5, rates={"b": 3}), Slots("a", 7, rates={"b": 3})),
    (Pool("a", 10**15), Pool("a", 0), Pool("a", 10**15)),
]


@pytest.mark.parametrize(("one", "two", "both"), MERGED)
def test_plans_add_up(one: Limit, two: Limit, both: Limit) -> None:
    assert merge([base(one), extra(two)]) == (both,)


UNMERGED: list[tuple[Limit, Limit, str]] = [
    (Pool("a", 1), Bucket("a", 1, "1m"), "'pro' has a pool and 'boost' a bucket"),
    (Pool("a", 1), Flag("a"), "'pro' has a pool and 'boost' a flag"),
    (Slots("a", 1), Bucket("a", 1, "1m"), "'pro' has a slots and 'boost' a bucket"),
    (Slots("a", 1), Slots("a", 1, rates={"b": 1}), "rates: 'pro' has None, 'boost' has"),
    (Slots("a", 10**12), Slots("a", 1), "add up: slots 'a': limit"),
    (Pool("a", 1), Pool("a", 1, "day"), "reset: 'pro' has None, 'boost' has 'day'"),
    (Pool("a", 1, "day"), Pool("a", 1, "24h"), "reset"),
    (Pool("a", 1, "month", anchor=1), Pool("a", 1, "month", anchor=2), "anchor"),
    (Pool("a", 1), Pool("a", 1, tz="Asia/Tokyo"), "tz"),
    (Pool("a", 1, "day", rollover=1), Pool("a", 1, "day"), "rollover"),
    (Pool("a", 1, "day", carry_debt=True), Pool("a", 1, "day"), "carry_debt"),
    (Pool("a", 1), Pool("a", 1, rates={"b": 1}), "rates"),
    (Pool("a", 1), Pool("a", 1, auto=1), "auto"),
    (Pool("a", 1), Pool("a", 1, warn_at=()), "warn_at"),
    (Pool("a", 1), Pool("a", 1, warn_below=(1,)), "warn_below"),
    (Pool("a", 1), Pool("a", 1, bill="use"), "bill"),
    (Bucket("a", 1, "1m"), Bucket("a", 1, "1h"), "per"),
    (Bucket("a", 1, "1m"), token(1, None), "algorithm"),
    (Bucket("a", 1, "1m"), Bucket("a", 1, "1m", auto=1), "auto"),
    (Bucket("a", 1, "1m"), Bucket("a", 1, "1m", on_error="deny"), "on_error"),
    (Bucket("a", 1, "1m"), Bucket("a", 1, "1m", rates={"b": 1}), "rates"),
    (Pool("a", 10**15), Pool("a", 1), r"add up: pool 'a': limit: got 1000000000000001"),
    (Pool("a", 1, overage=10**15), Pool("a", 1, overage=1), "add up: pool 'a': overage"),
    (Bucket("a", 10**12, "1m"), Bucket("a", 1, "1m"), "add up: bucket 'a': limit"),
    (token(1, 10**12), token(1, None), "add up: bucket 'a': burst"),
]


@pytest.mark.parametrize(("one", "two", "says"), UNMERGED)
def test_plans_that_do_not_go_together(one: Limit, two: Limit, says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        merge([base(one), extra(two)])
    message = str(caught.value)
    assert "'pro'" in message
    assert "'boost'" in message
    with pytest.raises(PolicyError, match=r"'pro' and 'boost'|'pro', 'boost'"):
        validate_catalog([base(one), extra(two)])


def test_merge_order_is_by_group_then_by_the_plans_own() -> None:
    one = Plan("z", includes=[Flag("c"), Pool("a", 1)], group="a")
    two = Plan("y", includes=[Flag("d"), Pool("a", 2), Flag("c"), Flag("b")], group="b")
    expected = (Flag("c"), Pool("a", 3), Flag("d"), Flag("b"))
    assert merge([one, two]) == expected
    assert merge([two, one]) == expected
    assert merge([one]) == one.includes
    assert merge([]) == ()


def test_three_plans_add_up() -> None:
    thirds = [
        extra(token(1, burst), id=f"p{n}", group=f"g{n}") for n, burst in enumerate((9, None, 7))
    ]
    assert merge(thirds) == (token(3, 17),)


def test_merge_wants_one_plan_per_group() -> None:
    with pytest.raises(PolicyError, match=r"'pro' and 'boost' are both of group 'base'"):
        merge([base(), extra(group="base")])


def test_merge_holds_at_most_64_limits() -> None:
    flags = [Flag(f"f{n}") for n in range(65)]
    assert len(merge([base(*flags[:40]), extra(*flags[20:64])])) == 64
    with pytest.raises(PolicyError, match=r"'pro', 'boost': 65 limits together.*at most 64"):
        merge([base(*flags[:40]), extra(*flags[40:])])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**15), st.none() | st.integers(0, 10**14)),
        min_size=1,
        max_size=4,
    )
)
def test_merging_is_adding(fields: list[tuple[int, int | None]]) -> None:
    held = [
        extra(Pool("a", limit // 4, overage=overage), id=f"p{n}", group=f"g{n}")
        for n, (limit, overage) in enumerate(fields)
    ]
    unbounded = any(overage is None for _, overage in fields)
    (pool,) = merge(held)
    assert isinstance(pool, Pool)
    assert pool.limit == sum(limit // 4 for limit, _ in fields)
    assert pool.overage == (None if unbounded else sum(overage or 0 for _, overage in fields))
    assert merge(held[::-1]) == (pool,)


def test_a_catalog_has_unique_ids_and_one_default_per_group() -> None:
    free, pro = Plan("free", includes=[], default=True), Plan("pro", includes=[], default=True)
    addon = Plan("addon", includes=[], default=True, group="addons")
    validate_catalog([free, addon])
    with pytest.raises(PolicyError, match="'free' is given twice"):
        validate_catalog([free, free])
    with pytest.raises(PolicyError, match="'free', 'pro': all are default=True in group 'base'"):
        validate_catalog([free, pro])
    with pytest.raises(PolicyError, match="got 'free'; allowed: Plan"):
        validate_catalog(["free"])  # type: ignore[list-item]


def test_a_catalog_is_validated_with_what_stays() -> None:
    free, pro = Plan("free", includes=[], default=True), Plan("pro", includes=[], default=True)
    with pytest.raises(PolicyError, match="default=True"):
        validate_catalog([pro], {"free": free})
    validate_catalog([pro], {"free": free}, remove=["free"])
    validate_catalog([pro, Plan("free", includes=[])], {"free": free})
    with pytest.raises(PolicyError, match="reset"):
        validate_catalog([base(Pool("a", 1))], {"boost": extra(Pool("a", 1, "day"))})
    with pytest.raises(PolicyError, match="plan 'free': group: got 'x'; allowed: 'base'"):
        validate_catalog([Plan("free", includes=[], group="x")], {"free": free})


def test_plans_of_one_group_need_not_agree() -> None:
    validate_catalog([base(Pool("a", 1)), extra(Bucket("a", 1, "1m"), group="base")])


def test_a_catalog_is_validated_beyond_pairs() -> None:
    third = 4 * 10**14
    held = [extra(Pool("a", third), id=f"p{n}", group=f"g{n}") for n in range(3)]
    validate_catalog(held[:2])
    with pytest.raises(PolicyError, match="'p0', 'p1', 'p2' add up: pool 'a': limit"):
        validate_catalog(held)


def test_overlay() -> None:
    old = {"a": Plan("a", includes=[]), "b": Plan("b", includes=[]), "c": Plan("c", includes=[])}
    new = Plan("b", includes=[Flag("x")])
    result = overlay(old, [new, Plan("d", includes=[])], remove=["c"])
    assert list(result) == ["a", "b", "d"]
    assert result["b"] is new
    assert list(old) == ["a", "b", "c"]
