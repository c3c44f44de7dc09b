"""Plans and readings for tests of the model's slots and reservations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from tests.oracle import Oracle
from tests.oracle.invariants import check

T0 = 1_000_000
SECOND, MINUTE, DAY = 1_000, 60_000, 86_400_000


@dataclass(frozen=True)
class Slots:
    """The model reads a limit by its public fields only."""

    kind: ClassVar[str] = "slots"

    name: str
    limit: int
    rates: Mapping[str, int] | None = None


def plan(*limits: Any, name: str = "p", group: str = "base") -> Any:
    """The plan "p" is everybody's default."""
    return SimpleNamespace(id=name, group=group, includes=limits, default=name == "p")


def oracle(*limits: Any, **options: Any) -> Oracle:
    """A model at T0 whose default plan has these limits."""
    return Oracle([plan(*limits)], start_ms=T0, **options)


def used(model: Oracle, at: int, name: str, subject: Any = "a") -> int:
    """What the deepest level that has the limit shows as used, `at` ms after T0."""
    limits = model.usage(subject, now_ms=T0 + at).limits
    return next(limit.used for limit in reversed(limits) if limit.name == name)


def held(model: Oracle, at: int, subject: Any = "a") -> list[list[str]]:
    """The ids of the open holds, by level."""
    return [[hold.id for hold in level] for level in model.usage(subject, now_ms=T0 + at).holds]


def give(
    model: Oracle, amount: int, op: str, name: str = "m", to: Any = "a", **options: Any
) -> Any:
    """`at`, `expires` and `starts` are ms after T0."""
    at = options.pop("at", 0)
    for key in ("expires", "starts"):
        if key in options:
            options[f"{key}_ms"] = T0 + options.pop(key)
    return model.grant(to, name, amount, op=op, now_ms=T0 + at, **options)


def books(model: Oracle, at: int = 0, subject: Any = "a") -> dict[str, tuple[int, int, int, int]]:
    """Of the deepest level: left, held, consumed, expired by id, in burn order."""
    found = model.usage(subject, now_ms=T0 + at).grants[-1]
    check(model, T0 + at)
    return {g.id: (g.remaining, g.held, g.consumed, g.expired) for g in found}


def pool(model: Oracle, at: int = 0, name: str = "m", subject: Any = "a") -> Any:
    limits = model.usage(subject, now_ms=T0 + at).limits
    return next(limit for limit in reversed(limits) if limit.name == name)


def figures(model: Oracle, at: int = 0, name: str = "m", subject: Any = "a") -> tuple[Any, ...]:
    """used, of it drawn, of it over; remaining, of it granted."""
    x = pool(model, at, name, subject)
    return (x.used, x.drawn, x.overage, x.remaining, x.granted)
