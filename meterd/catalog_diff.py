"""How a set of plans differs from the catalog it would be applied to, for people and as data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meterd.catalog_codec import definition_bytes, limit_fields, plan_to_dict
from meterd.errors import PolicyError
from meterd.policy import Limit, Plan
from meterd.timespec import closest, refuse


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One line of a changed plan.

    `limit` is "pool credits" or the like, None for a field of the plan itself. `field` is None
    where a whole limit was added (`old` is None) or dropped (`new` is None).
    """

    limit: str | None
    field: str | None
    old: Any
    new: Any

    def __str__(self) -> str:
        where = f"{self.limit}: " if self.limit else ""
        if self.field is not None:
            old, new = _shown(self.field, self.old), _shown(self.field, self.new)
            return f"{where}{self.field} {old} -> {new}"
        return f"- {self.limit}" if self.new is None else f"+ {self.limit}{_summary(self.new)}"

    def as_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "field": self.field, "old": self.old, "new": self.new}


@dataclass(frozen=True, slots=True)
class PlanChange:
    """A plan whose definition differs, and every difference."""

    old: Plan
    new: Plan
    changes: tuple[FieldChange, ...]

    @property
    def id(self) -> str:
        return self.new.id


@dataclass(frozen=True, slots=True)
class Diff:
    """What an apply would do. True if it would change anything; `str()` is one line per change.

    `unchanged` holds the plans that stay as they are, those that were not given among them.
    """

    added: tuple[Plan, ...] = ()
    changed: tuple[PlanChange, ...] = ()
    removed: tuple[Plan, ...] = ()
    unchanged: tuple[Plan, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        return "\n".join(self._lines()) or "no changes"

    def _lines(self) -> Iterator[str]:
        for plan in self.added:
            inside = ", ".join(_title(limit) for limit in plan.includes) or "nothing included"
            marks = f"group {plan.group}" + (", default" if plan.default else "")
            yield f"+ plan {plan.id} ({marks}): {inside}"
        for change in self.changed:
            for line in change.changes:
                yield f"~ plan {change.id}: {line}"
        for plan in self.removed:
            yield f"- plan {plan.id}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: added definitions, changes per plan, ids of the removed and the unchanged."""
        return {
            "added": [plan_to_dict(plan) for plan in self.added],
            "changed": [
                {"id": change.id, "changes": [line.as_dict() for line in change.changes]}
                for change in self.changed
            ],
            "removed": [plan.id for plan in self.removed],
            "unchanged": [plan.id for plan in self.unchanged],
        }


def diff(old: Mapping[str, Plan], new: Sequence[Plan], remove: Iterable[str] = ()) -> Diff:
    """What applying `new` to the catalog `old` and retiring the ids in `remove` would change.

    Plans of `old` that are in neither stay. Raises PolicyError for an id that cannot be removed.
    """
    gone = check_remove(old, new, remove)
    added: list[Plan] = []
    changed: list[PlanChange] = []
    unchanged = {key: plan for key, plan in old.items() if key not in gone}
    for plan in new:
        before = old.get(plan.id)
        if before is None:
            added.append(plan)
        elif definition_bytes(before) != definition_bytes(plan):
            del unchanged[plan.id]
            changed.append(PlanChange(before, plan, tuple(_changes(before, plan))))
    return Diff(
        added=tuple(added),
        changed=tuple(changed),
        removed=tuple(old[key] for key in gone),
        unchanged=tuple(unchanged.values()),
    )


def check_remove(
    old: Mapping[str, Plan], new: Sequence[Plan], remove: Iterable[str]
) -> tuple[str, ...]:
    """The ids to retire, each once; all of them must be in the catalog and none in `new`."""
    if isinstance(remove, str):
        raise refuse("remove", remove, "a list of plan ids")
    gone = tuple(dict.fromkeys(remove))
    given = {plan.id for plan in new}
    for key in gone:
        if key not in old:
            listed = ", ".join(sorted(old)) or "(the catalog is empty)"
            raise refuse("remove", key, f"ids of the catalog: {listed}", closest(key, old))
        if key in given:
            raise PolicyError(f"remove: plan {key!r} is also among the plans to apply")
    return gone


def _changes(old: Plan, new: Plan) -> Iterator[FieldChange]:
    """Every difference: the plan's own fields, its limits in the new order, then dropped ones."""
    before, after = plan_to_dict(old), plan_to_dict(new)
    for key in ("group", "default", "name", "price", "meta"):
        was, now = before.get(key), after.get(key)
        if key == "default":
            was, now = old.default, new.default
        # Compared as JSON, because Python holds 1, 1.0 and True equal.
        if json.dumps(was, sort_keys=True) != json.dumps(now, sort_keys=True):
            yield FieldChange(None, key, was, now)
    for limit in new.includes:
        twin = old.limits.get(limit.name)
        if twin is None or twin.kind != limit.kind:
            yield FieldChange(_title(limit), None, None, limit_fields(limit))
            continue
        fields_before = limit_fields(twin)
        for key, now in limit_fields(limit).items():
            if fields_before[key] != now:
                yield FieldChange(_title(limit), key, fields_before[key], now)
    for limit in old.includes:
        twin = new.limits.get(limit.name)
        if twin is None or twin.kind != limit.kind:
            yield FieldChange(_title(limit), None, limit_fields(limit), None)
    common_before = [name for name in old.limits if name in new.limits]
    common_after = [name for name in new.limits if name in old.limits]
    if common_before != common_after:
        yield FieldChange(None, "order", common_before, common_after)


def _title(limit: Limit) -> str:
    return f"{limit.kind} {limit.name}"


def _summary(fields: Mapping[str, Any]) -> str:
    """What tells a new limit apart at a glance: " (limit 100, per 1m)"."""
    shown = [f"{k} {_shown(k, fields[k])}" for k in ("limit", "per", "reset") if fields.get(k)]
    return f" ({', '.join(shown)})" if shown else ""


def _shown(field: str, value: Any) -> str:
    if value is None:
        return "unlimited" if field in ("limit", "overage") else "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
