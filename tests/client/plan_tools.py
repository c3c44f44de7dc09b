"""Two plans, and readings, for the tests of plan changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from meterd import Plan, PlanChange, Pool
from tests.client.meter_tools import AnyMeter

MS = timedelta(milliseconds=1)


def month(limit: int | None, name: str = "credits", **more: Any) -> Pool:
    return Pool(name, limit, "month", **more)


SMALL = Plan("small", includes=[month(1_000)], default=True)
BIG = Plan("big", includes=[month(10_000)])
PLANS = (SMALL, BIG)


def rolling(most: int) -> list[Plan]:
    """PLANS, but up to so much is carried over."""
    return [Plan(p.id, includes=[month(p.limits["credits"].limit, rollover=most)]) for p in PLANS]


def day(month: int, of: int = 1, hour: int = 0, year: int = 2025) -> datetime:
    return datetime(year, month, of, hour, tzinfo=UTC)


def ms(moment: datetime) -> int:
    return int((moment - day(1, year=1970)) / MS)


def pool(meter: AnyMeter, name: str = "credits", subject: Any = "ana") -> tuple[Any, int, Any]:
    state = meter.usage(subject)[name]
    return state.limit, state.used, state.resets_at


def pending(meter: AnyMeter, subject: Any = "ana") -> tuple[PlanChange, ...]:
    found: tuple[PlanChange, ...] = meter.usage(subject).levels[-1].pending
    return found
