"""Runs of the machine, in each of the ways to drive it."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

from meterd import Plan
from meterd.testing.cleanup import remove_prefix
from tests.client.hold_tools import known, reserve
from tests.client.meter_tools import AnyMeter, build
from tests.property.billing import Billing
from tests.property.granting import Burning, Granting
from tests.property.keyed import Keyed
from tests.property.machine import Machine
from tests.property.variants import Batches, Changing, Remembering

WAYS: dict[str, tuple[type[Machine], bool]] = {
    "sync": (Machine, False),
    "async": (Machine, True),
    "batches": (Batches, False),
    "async batches": (Batches, True),
    "changing": (Changing, False),
    "async changing": (Changing, True),
    "billing": (Billing, False),
    "burning": (Burning, False),
    "granting": (Granting, False),
    "async granting": (Granting, True),
    "keys": (Keyed, False),
    "async keys": (Keyed, True),
    "remembering": (Remembering, False),
    "async remembering": (Remembering, True),
}


class AnyHolder(AnyMeter):
    """Its holds are as synchronous as it is itself."""

    def reserve(self, *args: Any, **named: Any) -> Any:
        return reserve(AnyMeter(self.raw, self.runner), *args, **named)

    def hold(self, subject: Any, hold_id: str) -> Any:
        return known(AnyMeter(self.raw, self.runner), subject, hold_id)


def run(rng: random.Random, steps: int, url: str, way: str = "sync") -> int:
    """One machine on one store of its own. Returns how many operations it compared."""
    prefix = f"machine-{uuid.uuid4().hex[:8]}"
    kind, asynchronous = WAYS[way]
    made: list[AnyMeter] = []
    runner = asyncio.Runner() if asynchronous else None

    def make(clock: Any, plans: list[Plan]) -> AnyMeter:
        options: dict[str, Any] = {"prefix": prefix, "clock": clock, "plans": plans, "timeout": 10}
        if kind is Remembering:
            options["refusal_cache"] = {"buckets": "4000d", "pools": "4000d"}
        made.append(AnyHolder(build(runner, url, **options).raw, runner))
        return made[0]

    try:
        machine = kind(rng, make)
        for _ in range(steps):
            machine.step()
        if isinstance(machine, Billing):
            machine.over()
    finally:
        for meter in made:
            meter.close()
        if runner is not None:
            runner.close()
        remove_prefix(url, prefix)
    return steps
