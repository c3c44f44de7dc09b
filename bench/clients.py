"""Decisions per second through the clients, beside redis-py's own `fcall` of the same function.

Blocks of both alternate in one process; what is compared is the median ratio of neighbours.
redis-py gets its arguments ready-made and nothing decodes its reply: it has less to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import hiredis
import redis
import redis.asyncio

from bench.effort import Effort
from bench.raw import Raw
from bench.scenarios import PLAN, Copier, customer, subject
from meterd import AsyncMeter, Meter

TASKS = 64
SUBJECTS = 100


@dataclass(frozen=True, slots=True)
class Rate:
    """Decisions per second, and the multiple of what redis-py's `fcall` did beside it."""

    name: str
    meterd: float
    redis_py: float
    ratio: float


def measure(url: str, path: str, effort: Effort) -> list[Rate]:
    calls = fcalls(url, path)
    with Meter(url, plans=[PLAN], timeout=10) as meter, redis.Redis.from_url(url) as client:
        pairs = [
            (
                sync_rate(lambda i: meter.consume(subject(i), "pool"), effort.client_seconds),
                sync_rate(lambda i: client.fcall(*calls[i]), effort.client_seconds),
            )
            for _ in range(effort.client_rounds)
        ]
    return [
        rate("sync, 1 thread", pairs),
        rate(f"async, {TASKS} tasks", asyncio.run(async_pairs(url, calls, effort))),
    ]


def rate(name: str, pairs: list[tuple[float, float]]) -> Rate:
    ours, theirs = zip(*pairs, strict=True)
    return Rate(name, median(ours), median(theirs), median(a / b for a, b in pairs))


def fcalls(url: str, path: str) -> list[tuple[Any, ...]]:
    """What `fcall` takes to send what the meter sends, for every subject."""
    with Raw(path) as raw, Copier(raw, url) as copier:
        packed = copier.capture(lambda: copier.meter.consume(subject(0), "pool"))
        copier.copy_records(customer, SUBJECTS)
        made = []
        for command in copier.commands(packed, customer, range(SUBJECTS)):
            reader = hiredis.Reader()
            reader.feed(command)
            _, function, count, *rest = reader.gets()
            made.append((function, int(count), *rest))
        return made


def sync_rate(call: Callable[[int], object], seconds: float) -> float:
    for at in range(SUBJECTS):
        call(at)
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for at in range(SUBJECTS):
            call(at)
        done += SUBJECTS
    return done / elapsed


async def async_rate(call: Callable[[int], Awaitable[Any]], seconds: float) -> float:
    done, until = 0, 0.0

    async def work(first: int) -> None:
        nonlocal done
        at = first
        while time.perf_counter() < until:
            await call(at % SUBJECTS)
            at += 1
            done += 1

    for block in (seconds / 10, seconds):  # the first one opens connections
        done, started = 0, time.perf_counter()
        until = started + block
        await asyncio.gather(*(work(first) for first in range(TASKS)))
        elapsed = time.perf_counter() - started
    return done / elapsed


async def async_pairs(
    url: str, calls: list[tuple[Any, ...]], effort: Effort
) -> list[tuple[float, float]]:
    client = redis.asyncio.Redis.from_url(url)
    try:
        async with AsyncMeter(url, plans=[PLAN], timeout=10) as meter:
            return [
                (
                    await async_rate(
                        lambda i: meter.consume(subject(i), "pool"), effort.client_seconds
                    ),
                    await async_rate(lambda i: client.fcall(*calls[i]), effort.client_seconds),
                )
                for _ in range(effort.client_rounds)
            ]
    finally:
        await client.aclose()
