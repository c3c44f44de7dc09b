"""What the tests of leases share."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meterd import Bucket, Flag, Plan, Pool, Slots
from tests.client.meter_tools import AnyMeter

PLENTY = 10**9
PLAN = Plan(
    "shop",
    default=True,
    includes=[
        Pool("credits", PLENTY, "month", rates={"credits": 1, "tokens": 1, "image": 10}),
        Pool("few", 100, "month"),
        Pool("ever", 100),
        Bucket("fixed", 1000, "10s", algorithm="fixed"),
        Bucket("sliding", 1000, "10s"),
        Bucket("token", 1000, "10s", algorithm="token"),
        Flag("export"),
        Slots("jobs", 5),
    ],
)
PLANS = [PLAN]


class AnyLease:
    """A lease of either kind whose calls block."""

    def __init__(self, inner: Any, runner: asyncio.Runner | None) -> None:
        self.raw = inner
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.raw, name)
        if not callable(found):
            return found
        return lambda *args, **named: self._settled(found(*args, **named))

    def _settled(self, made: Any) -> Any:
        if self.runner is not None and inspect.isawaitable(made):
            return self.runner.run(_awaited(made))
        return made

    def sell(self, count: int, n: int = 1) -> int:
        """How many of so many sales were granted; in one go."""
        if self.runner is None:
            return sum(1 for _ in range(count) if self.raw.consume(n))

        async def selling() -> int:
            return sum([1 for _ in range(count) if (await self.raw.consume(n)).allowed])

        return self.runner.run(selling())


async def _awaited(made: Any) -> Any:
    return await made


@dataclass
class Shop:
    meter: Callable[..., AnyMeter]
    lease: Callable[..., AnyLease]
    runner: asyncio.Runner | None

    def wait(self, seconds: float) -> None:
        """Lets time pass; timers of an event loop run."""
        if self.runner is None:
            time.sleep(seconds)
        else:
            self.runner.run(asyncio.sleep(seconds))


def used(meter: AnyMeter, name: str = "credits", subject: str = "acme") -> int:
    found: int = meter.usage(subject)[name].used
    return found


def holds(meter: AnyMeter, subject: str = "acme") -> int:
    """How many holds are open."""
    found: int = sum(level.open_holds for level in meter.usage(subject).levels)
    return found
