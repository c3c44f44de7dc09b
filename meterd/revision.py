"""The catalog at one revision: a value. How it is kept and shared is `store`'s business."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from meterd.catalog import (
    definition_bytes,
    definition_hash,
    overlay,
    plan_from_bytes,
    validate_catalog,
)
from meterd.errors import PolicyError, ScriptError
from meterd.policy import Plan
from meterd.timespec import closest, refuse

_LAYOUT = 1
_KEPT_LIBRARIES = 3


@dataclass(frozen=True, slots=True)
class Catalog:
    """All plans at one revision. `retired` plans take no new subscribers."""

    revision: int = 0
    plans: dict[str, Plan] = field(default_factory=dict)
    retired: frozenset[str] = frozenset()
    history: tuple[tuple[int, dict[str, bytes]], ...] = ()
    libraries: tuple[str, ...] = ()
    raw: bytes = b""

    @classmethod
    def from_bytes(cls, raw: bytes) -> Catalog:
        data = msgpack.unpackb(raw, raw=True)
        if data[0] != _LAYOUT:
            raise ScriptError(f"the stored catalog has layout {data[0]}; a newer meterd wrote it")
        plans = [plan_from_bytes(definition) for definition in data[2]]
        history = tuple(
            (revision, {name.decode(): digest for name, digest in held})
            for revision, held in data[4]
        )
        return cls(
            data[1],
            {plan.id: plan for plan in plans},
            frozenset(name.decode() for name in data[3]),
            history,
            tuple(name.decode() for name in data[5]),
            raw,
        )

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb(
            [
                _LAYOUT,
                self.revision,
                [definition_bytes(plan) for plan in self.plans.values()],
                sorted(self.retired),
                [[revision, sorted(held.items())] for revision, held in self.history],
                self.libraries,
            ],
            use_bin_type=False,
        )
        return packed

    def live(self, *, retired: bool = False) -> dict[str, Plan]:
        """The plans that take subscribers, or with `retired` those that take no more."""
        return {
            name: plan for name, plan in self.plans.items() if (name in self.retired) is retired
        }

    def knows(self, plans: Sequence[Plan]) -> bool:
        """Whether these plans stood together in this revision or in an earlier one."""
        wanted = {plan.id: definition_hash(plan) for plan in plans}
        return any(
            all(held.get(name) == digest for name, digest in wanted.items())
            for _, held in self.history
        )

    def plan(self, name: str) -> Plan:
        """A plan that takes subscribers, or `PolicyError`."""
        found = self.plans.get(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(sorted(self.live())) or "none yet"
            raise PolicyError(
                f"plan {name!r} is not in the catalog; allowed: {known}{closest(name, self.live())}"
            )
        if name in self.retired:
            raise PolicyError(f"plan {name!r} is retired: it takes no new subscribers")
        return found

    def defaults(self) -> dict[str, Plan]:
        """Group -> its default plan."""
        return {plan.group: plan for plan in self.live().values() if plan.default}

    def applied(self, plans: Sequence[Plan], remove: Iterable[str], library: str) -> Catalog:
        """The next revision."""
        gone = set(remove)
        validate_catalog(plans)  # by themselves: no id twice
        live = overlay(self.live(), plans, gone)
        retired = (self.retired | gone) - {plan.id for plan in plans}
        # Those who hold a retired plan still have to fit in; nobody joins it as a default any more.
        held_on = {
            name: replace(plan, default=False) if name in retired else plan
            for name, plan in self.plans.items()
        }
        validate_catalog(tuple(live.values()), held_on)
        after = {**self.plans, **live}
        held = {name: definition_hash(plan) for name, plan in live.items()}
        libraries = (*(name for name in self.libraries if name != library), library)
        made = Catalog(
            self.revision + 1,
            after,
            frozenset(retired),
            (*self.history, (self.revision + 1, held)),
            libraries[-_KEPT_LIBRARIES:],
        )
        return Catalog(**{**_fields(made), "raw": made.to_bytes()})


def _fields(catalog: Catalog) -> dict[str, Any]:
    return {name: getattr(catalog, name) for name in Catalog.__slots__}


def checked_plans(plans: object) -> tuple[Plan, ...]:
    """What was given as plans, or `PolicyError`."""
    if isinstance(plans, Iterable) and not isinstance(plans, str | bytes):
        found = tuple(plans)
        if all(isinstance(plan, Plan) for plan in found):
            return found
    raise refuse("plans", plans, "a sequence of Plan")


def plan_ids(remove: object) -> tuple[str, ...]:
    if isinstance(remove, str):
        return (remove,)
    if isinstance(remove, Iterable):
        found = tuple(remove)
        if all(isinstance(name, str) for name in found):
            return found
    raise refuse("remove", remove, "a list of plan ids")
