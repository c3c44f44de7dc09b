"""What the tests of holds share: plans, and one interface over `Hold` and `AsyncHold`."""

from __future__ import annotations

import asyncio
from typing import Any

from meterd import AsyncHold, Bucket, Flag, Hold, Plan, Pool, Slots
from tests.client.meter_tools import AnyMeter

BASE = Plan(
    "base",
    includes=[
        Slots("jobs", 10, rates={"jobs": 1, "big-jobs": 4}),
        Pool("credits", 1000, "month", rates={"tokens": 1, "image": 10}),
        Bucket("api", 100, "1m", algorithm="fixed"),
        Flag("export"),
    ],
    default=True,
)
MORE = Plan("more", includes=[Slots("jobs", 5, rates={"jobs": 1, "big-jobs": 4})], group="addon")
PLANS = (BASE, MORE)


class AnyHold:
    """The synchronous interface over either kind of hold; `with` is `async with` for the other."""

    def __init__(self, inner: Hold | AsyncHold, runner: asyncio.Runner | None) -> None:
        self.raw: Any = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.raw, name)
        if name not in ("commit", "release", "renew"):
            return found
        return lambda *args: self._settled(found(*args))

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __enter__(self) -> AnyHold:
        self._settled(self.raw.__enter__() if self._runner is None else self.raw.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        if self._runner is None:
            self.raw.__exit__(*error)
        else:
            self._runner.run(self.raw.__aexit__(*error))

    def _settled(self, made: Any) -> Any:
        return made if self._runner is None else self._runner.run(_awaited(made))


async def _awaited(made: Any) -> Any:
    return await made


def reserve(meter: AnyMeter, *args: Any, **named: Any) -> AnyHold:
    return AnyHold(meter.reserve(*args, **named), meter.runner)


def known(meter: AnyMeter, subject: Any, hold_id: str) -> AnyHold:
    """A hold that was reserved elsewhere."""
    return AnyHold(meter.hold(subject, hold_id), meter.runner)


def used(meter: AnyMeter, subject: str = "acme") -> tuple[int, int]:
    """How many jobs run, and the credits used."""
    usage = meter.usage(subject)
    return usage["jobs"].used, usage["credits"].used
