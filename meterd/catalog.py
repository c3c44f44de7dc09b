"""The catalog's rules: how plans add up, and which sets of plans may be applied together.

Pure functions over plans. Reading them from files is `catalog_toml`, storing them `catalog_codec`,
comparing them `catalog_diff`; their public names are here too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from meterd.catalog_codec import (
    definition_bytes,
    definition_hash,
    limit_fields,
    plan_from_bytes,
    plan_from_dict,
    plan_to_dict,
)
from meterd.catalog_diff import Diff, FieldChange, PlanChange, check_remove, diff
from meterd.errors import PolicyError
from meterd.policy import MAX_LIMITS, Bucket, Flag, Limit, Plan, Pool, Slots
from meterd.timespec import refuse, shown

__all__ = [
    "Diff",
    "FieldChange",
    "PlanChange",
    "definition_bytes",
    "definition_hash",
    "diff",
    "merge",
    "overlay",
    "plan_from_bytes",
    "plan_from_dict",
    "plan_to_dict",
    "validate_catalog",
]

# What adds up when several plans include a limit; every other field must agree.
_SUMMED: Final = frozenset({"limit", "overage", "burst"})
# Every combination of one plan per group is merged up to this many; beyond it, every pair is.
_MAX_COMBINATIONS: Final = 1000


def merge(plans: Sequence[Plan]) -> tuple[Limit, ...]:
    """The effective limits of a subject that holds these plans, at most one per group.

    `limit` and `overage` add up (unlimited wins), so does `burst` (where one plan leaves it out,
    its limit stands in; None if all do); flags unite. Ordered by group name, then by the plan's
    own order, each name where it first occurs. Raises PolicyError naming both plans and the field
    where plans do not go together.
    """
    ordered = sorted(plans, key=lambda plan: plan.group)
    for one, two in itertools.pairwise(ordered):
        if one.group == two.group:
            raise PolicyError(
                f"plans {one.id!r} and {two.id!r} are both of group {one.group!r}; "
                "allowed: one plan per group"
            )
    found: dict[str, list[tuple[Plan, Limit]]] = {}
    for plan in ordered:
        for limit in plan.includes:
            found.setdefault(limit.name, []).append((plan, limit))
    if len(found) > MAX_LIMITS:
        raise PolicyError(
            f"{_named(ordered)}: {len(found)} limits together; allowed: at most {MAX_LIMITS}"
        )
    return tuple(_merge_one(holders) for holders in found.values())


def _merge_one(holders: list[tuple[Plan, Limit]]) -> Limit:
    """One limit out of the equal-named limits of several plans."""
    first_plan, first = holders[0]
    for plan, limit in holders[1:]:
        _check_agree(first_plan, first, plan, limit)
    limits = [limit for _, limit in holders]
    if len(limits) == 1 or isinstance(first, Flag):
        return first
    pools = [limit for limit in limits if isinstance(limit, Pool)]
    buckets = [limit for limit in limits if isinstance(limit, Bucket)]
    try:
        if isinstance(first, Pool):
            return replace(
                first,
                limit=_sum(pool.limit for pool in pools),
                overage=_sum(pool.overage for pool in pools),
            )
        if isinstance(first, Slots):
            return replace(first, limit=sum(x.limit for x in limits if isinstance(x, Slots)))
        burst = None
        if any(bucket.burst is not None for bucket in buckets):
            burst = sum(b.limit if b.burst is None else b.burst for b in buckets)
        return replace(first, limit=sum(bucket.limit for bucket in buckets), burst=burst)
    except PolicyError as error:
        raise PolicyError(f"{_named([plan for plan, _ in holders])} add up: {error}") from None


def _check_agree(one: Plan, first: Limit, two: Plan, second: Limit) -> None:
    at = f"plans {one.id!r} and {two.id!r}: {first.kind} {first.name!r}"
    if first.kind != second.kind:
        raise PolicyError(
            f"{at}: {one.id!r} has a {first.kind} and {two.id!r} a {second.kind} of that name; "
            "allowed: one kind per name"
        )
    others = limit_fields(second)
    for field, value in limit_fields(first).items():
        if field not in _SUMMED and value != others[field]:
            raise PolicyError(
                f"{at}: {field}: {one.id!r} has {shown(value)}, {two.id!r} has "
                f"{shown(others[field])}; allowed: the same in plans that add up"
            )


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum, None (unbounded) if any is."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _named(plans: Sequence[Plan]) -> str:
    return "plans " + ", ".join(repr(plan.id) for plan in plans)


def overlay(
    previous: Mapping[str, Plan], plans: Sequence[Plan], remove: Iterable[str] = ()
) -> dict[str, Plan]:
    """The catalog after an apply: `previous` without `remove`, with `plans` put over it."""
    gone = check_remove(previous, plans, remove)
    kept = {key: plan for key, plan in previous.items() if key not in gone}
    return kept | {plan.id: plan for plan in plans}


def validate_catalog(
    plans: Sequence[Plan],
    previous: Mapping[str, Plan] | None = None,
    remove: Iterable[str] = (),
) -> None:
    """Raises PolicyError unless `plans` may be applied to the catalog `previous`.

    Plan ids are unique and keep their group; and in the catalog after the apply (plans that were
    not given stay) a group has at most one default, and plans of different groups go together.
    """
    previous = previous or {}
    seen: set[str] = set()
    for plan in plans:
        if not isinstance(plan, Plan):
            raise refuse("plans", plan, "Plan objects")
        if plan.id in seen:
            raise PolicyError(f"plan {plan.id!r} is given twice; allowed: one plan per id")
        seen.add(plan.id)
        before = previous.get(plan.id)
        if before is not None and before.group != plan.group:
            raise PolicyError(
                f"plan {plan.id!r}: group: got {plan.group!r}; allowed: {before.group!r}, which it "
                "had before (make a plan of another id instead)"
            )
    groups: dict[str, list[Plan]] = {}
    for plan in overlay(previous, plans, remove).values():
        groups.setdefault(plan.group, []).append(plan)
    for group, members in groups.items():
        defaults = [plan for plan in members if plan.default]
        if len(defaults) > 1:
            raise PolicyError(
                f"{_named(defaults)}: all are default=True in group {group!r}; "
                "allowed: one default per group"
            )
    _check_mergeable([groups[group] for group in sorted(groups)])


def _check_mergeable(groups: list[list[Plan]]) -> None:
    """Every pair of plans of different groups; every full combination where those are few."""
    for ours, theirs in itertools.combinations(groups, 2):
        for pair in itertools.product(ours, theirs):
            merge(pair)
    # Pairs show every disagreement. Only sums and the number of limits can still go too far.
    if len(groups) > 2 and math.prod(len(group) for group in groups) <= _MAX_COMBINATIONS:
        for combination in itertools.product(*groups):
            merge(combination)
