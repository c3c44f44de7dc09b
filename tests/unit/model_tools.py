"""Plans and readings for tests of the model's slots and reservations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from tests.oracle import Oracle

T0 = 1_000_000
SECOND, MINUTE = 1_000, 60_000


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
