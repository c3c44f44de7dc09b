"""From plans to specs: limits normalized, groups added up, overrides on top. And the catalog.

`meterd.policy` objects are read by their public fields only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

from tests.oracle.buckets import FixedSpec, SlidingSpec, TokenSpec
from tests.oracle.calendar import UNITS, to_ms
from tests.oracle.errors import PolicyError
from tests.oracle.flags import FlagSpec
from tests.oracle.limits import PoolSpec
from tests.oracle.slots import SlotsSpec

Specs = dict[str, Any]
ALGORITHMS = {"fixed": FixedSpec, "sliding": SlidingSpec, "token": TokenSpec}
UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
MAX_AMOUNT, MAX_RATE, MAX_LIMITS = 10**15, 10**12, 64


def duration_ms(value: str | timedelta) -> int:
    if isinstance(value, timedelta):
        return value // timedelta(milliseconds=1)
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d|w)", value)
    if match is None:
        raise PolicyError(f"not a duration: {value!r}")
    return int(match[1]) * UNIT_MS[match[2]]


def spec_of(limit: Any) -> Any:
    """The spec of one `Pool`, `Bucket`, `Slots` or `Flag`."""
    if not hasattr(limit, "limit"):
        return FlagSpec(limit.name)
    rates = tuple(sorted((limit.rates or {limit.name: 1}).items()))
    if limit.kind == "slots":
        return SlotsSpec(limit.name, limit.limit, rates)
    if hasattr(limit, "per"):
        return ALGORITHMS[limit.algorithm](
            name=limit.name,
            limit=limit.limit,
            per_ms=duration_ms(limit.per),
            burst=limit.burst,
            rates=rates,
            other=(limit.auto, limit.on_error),
        )
    reset, anchor = limit.reset, limit.anchor
    if reset is not None and reset not in UNITS:
        reset = duration_ms(reset)
    if isinstance(anchor, datetime):
        anchor = ("at", to_ms(anchor))
    auto = limit.auto
    if auto is None:
        auto = 1 if limit.name == "credits" else 0
    return PoolSpec(
        name=limit.name,
        limit=limit.limit,
        reset=reset,
        anchor=anchor,
        tz=limit.tz,
        rollover=limit.rollover,
        overage=limit.overage,
        carry_debt=limit.carry_debt,
        rates=rates,
        other=(auto,),
        warn_at=tuple(sorted({max(1, round(share * 1_000_000)) for share in limit.warn_at})),
        warn_below=tuple(limit.warn_below),
        bill=limit.bill,
    )


def added(a: Any, b: Any) -> Any:
    """Two equal-named limits of different groups as one."""
    if isinstance(a, FlagSpec) and isinstance(b, FlagSpec):
        return a
    if isinstance(a, PoolSpec) and isinstance(b, PoolSpec):
        sums = {
            "limit": None if a.limit is None or b.limit is None else a.limit + b.limit,
            "overage": None if a.overage is None or b.overage is None else a.overage + b.overage,
        }
    elif isinstance(a, SlotsSpec) and isinstance(b, SlotsSpec):
        sums = {"limit": a.limit + b.limit}
    elif type(a) is type(b) and not isinstance(a, FlagSpec | PoolSpec):
        burst = None if a.burst is None and b.burst is None else a.size + b.size
        sums = {"limit": a.limit + b.limit, "burst": burst}
    else:
        raise PolicyError(f"{a.name}: different kinds in different groups")
    if replace(a, **sums) != replace(b, **sums):
        raise PolicyError(f"{a.name}: plans of different groups disagree")
    most = MAX_AMOUNT if isinstance(a, PoolSpec) else MAX_RATE
    if any(value is not None and value > most for value in sums.values()):
        raise PolicyError(f"{a.name}: {sums} is above {most}")
    return replace(a, **sums)


def merge(plans: Iterable[Any]) -> Specs:
    """One plan per group → the specs by name; groups in the order of their names."""
    merged: Specs = {}
    for plan in sorted(plans, key=lambda plan: str(plan.group)):
        for limit in plan.includes:
            spec = spec_of(limit)
            old = merged.get(spec.name)
            merged[spec.name] = spec if old is None else added(old, spec)
    if len(merged) > MAX_LIMITS:
        raise PolicyError(f"{len(merged)} limits")
    return merged


def check_override(spec: Any, fields: Mapping[str, int | None]) -> None:
    """The override fits the limit; `spec` is None where no plan includes it now."""
    allowed: set[str] = {"limit", "overage", "burst"}
    if isinstance(spec, PoolSpec):
        allowed = {"limit", "overage"}
    elif isinstance(spec, TokenSpec):
        allowed = {"limit", "burst"}
    elif spec is not None:
        allowed = set() if isinstance(spec, FlagSpec) else {"limit"}
    if not fields or not set(fields) <= allowed:
        raise PolicyError(f"override of {sorted(fields)}; allowed: {sorted(allowed)}")
    most = MAX_AMOUNT if isinstance(spec, PoolSpec | None) else MAX_RATE
    for field, value in fields.items():
        if value is None and (isinstance(spec, PoolSpec | None) or field == "burst"):
            continue
        if type(value) is not int or not 0 <= value <= most:
            raise PolicyError(f"override: {field}={value!r}")


def overridden(spec: Any, fields: Mapping[str, int | None]) -> Any:
    """The spec with an override laid on top; fields that its kind lacks are ignored."""
    if isinstance(spec, FlagSpec):
        return spec
    known = {"limit", "overage"} if isinstance(spec, PoolSpec) else {"limit"}
    if isinstance(spec, TokenSpec):
        known.add("burst")
    changes: dict[str, Any] = {k: v for k, v in fields.items() if k in known}
    if not isinstance(spec, PoolSpec) and changes.get("limit", 0) is None:
        del changes["limit"]
    return replace(spec, **changes)


def made_by_grants(name: str) -> PoolSpec:
    """The pool that a record has of a name which no plan of it includes."""
    return PoolSpec(
        name=name,
        limit=0,
        reset=None,
        anchor="subscription",
        tz="UTC",
        rollover=0,
        overage=0,
        carry_debt=False,
        rates=((name, 1),),
    )


class Catalog:
    """All plans, with a revision number that grows with every apply that changes something."""

    def __init__(self) -> None:
        self.revision = 0
        self.plans: dict[str, Any] = {}
        self.retired: frozenset[str] = frozenset()
        self.defaults: dict[str, str] = {}
        self._merged: dict[tuple[str, ...], Specs] = {}

    def apply(self, plans: Iterable[Any], remove: Iterable[str]) -> None:
        """Add or redefine `plans`, retire those in `remove`. A PolicyError changes nothing."""
        given = list(plans)
        removed = frozenset(remove)
        if len({plan.id for plan in given} - removed) < len(given):
            raise PolicyError("a plan is given twice, or both given and removed")
        merged = {**self.plans, **{plan.id: plan for plan in given}}
        for plan in given:
            if plan.id in self.plans and plan.group != self.plans[plan.id].group:
                raise PolicyError(f"{plan.id}: a plan cannot change its group")
        if not removed <= set(merged):
            raise PolicyError(f"unknown plans: {sorted(removed - set(merged))}")
        retired = (self.retired - {plan.id for plan in given}) | removed
        defaults: dict[str, str] = {}
        for plan in merged.values():
            if plan.default and plan.id not in retired:
                if plan.group in defaults:
                    raise PolicyError(f"two default plans in group {plan.group}")
                defaults[plan.group] = plan.id
        offered = [plan for plan in merged.values() if plan.id not in retired]
        for one, two in combinations(offered, 2):
            if one.group != two.group:
                merge((one, two))
        if merged == self.plans and retired == self.retired:
            return
        self.revision += 1
        self.plans, self.retired, self.defaults = merged, retired, defaults
        self._merged = {}

    def plan(self, plan_id: str) -> Any:
        if plan_id not in self.plans:
            raise PolicyError(f"unknown plan {plan_id!r}")
        return self.plans[plan_id]

    def mentions(self, name: str) -> bool:
        """Whether any plan includes a limit of that name."""
        return any(limit.name == name for p in self.plans.values() for limit in p.includes)

    def joinable(self, plan_id: str) -> Any:
        if plan_id in self.retired:
            raise PolicyError(f"plan {plan_id!r} is retired")
        return self.plan(plan_id)

    def merged(self, held: Mapping[str, Any]) -> Specs:
        """The specs of {group: plan id, or a private plan itself}. Shared: never change them."""
        if not all(isinstance(one, str) for one in held.values()):
            return merge(self.plans[p] if isinstance(p, str) else p for p in held.values())
        key = tuple(sorted(held.values()))
        if key not in self._merged:
            self._merged[key] = merge(self.plans[plan_id] for plan_id in key)
        return self._merged[key]
