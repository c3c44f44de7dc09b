"""What the processes of a race run; they import this module, so it stays small."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from meterd import AsyncMeter, Meter, Plan, Pool

CREDITS = 10_000
PLAN = Plan("race", default=True, includes=[Pool("credits", CREDITS, reset="month")])
TASKS = 16


def race(url: str, prefix: str, seed: int, kind: str, start: Any, results: Any) -> None:
    """Waits for the start, then buys until nothing is left; puts how much that was."""
    try:
        if kind == "sync":
            meter = Meter(url, plans=[PLAN], prefix=prefix, timeout=60)
            start.wait(60)
            with meter:
                results.put(buy(meter, seed))
        else:
            results.put(asyncio.run(buy_async(url, prefix, seed, start)))
    except BaseException as error:  # noqa: BLE001  # the race itself decides what is wrong
        results.put(repr(error))


def buy(meter: Meter, seed: int) -> int:
    rng, bought, amount = random.Random(seed), 0, 1
    while meter.consume("acme", "credits", amount):
        bought += amount
        amount = rng.randrange(1, 8)
    while meter.consume("acme", "credits", 1):
        bought += 1
    return bought


async def buy_async(url: str, prefix: str, seed: int, start: Any) -> int:
    meter = AsyncMeter(url, plans=[PLAN], prefix=prefix, timeout=60, max_connections=4)
    start.wait(60)

    async def one(number: int) -> int:
        rng, bought, amount = random.Random(seed * 100 + number), 0, 1
        while await meter.consume("acme", "credits", amount):
            bought += amount
            amount = rng.randrange(1, 8)
        while await meter.consume("acme", "credits", 1):
            bought += 1
        return bought

    try:
        return sum(await asyncio.gather(*(one(number) for number in range(TASKS))))
    finally:
        await meter.close()
