"""Latency at a fixed rate, waiting counted from when a call was due, not from when it was sent.

A closed loop sends less when the system is slow and so leaves out exactly the calls that would have
waited ("coordinated omission"). Here calls are due at instants fixed beforehand. Whoever falls
behind starts late, and that wait is part of the latency; what has not been answered at the end, or
failed, counts with the wait so far and not as answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from .stats import divided

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
HIGHEST_US = 60_000_000
DRAIN_S = 1.0  # how long answers are awaited after the last call was due


class Histogram(Protocol):
    """The part of `hdrh.histogram.HdrHistogram` that is used here."""

    def record_value(self, value: int) -> object: ...

    def get_value_at_percentile(self, percentile: float) -> float: ...


def new_histogram() -> Histogram:
    """1 us to one minute, three significant digits."""
    from hdrh.histogram import HdrHistogram

    made: Histogram = HdrHistogram(1, HIGHEST_US, 3)
    return made


def due_times(rate: int, seconds: float) -> list[float]:
    """Seconds after the start at which calls are due."""
    return [number / rate for number in range(max(1, math.floor(rate * seconds)))]


def recorded(histogram: Histogram, latency_s: float) -> None:
    histogram.record_value(min(max(1, round(latency_s * 1e6)), HIGHEST_US))


def percentiles_ms(histogram: Histogram) -> dict[str, float]:
    return {
        name: histogram.get_value_at_percentile(percent) / 1000
        for name, percent in PERCENTILES.items()
    }


async def open_loop(
    call: Callable[[int], Awaitable[Any]], rate: int, seconds: float, subjects: Sequence[int]
) -> dict[str, float]:
    """Percentiles in ms, and the share of the calls that were answered in time to be counted."""
    histogram = new_histogram()
    pending: dict[asyncio.Task[None], float] = {}
    answered = 0
    failure: Exception | None = None

    async def one(number: int, due: float) -> None:
        nonlocal answered, failure
        try:
            await call(number)
            answered += 1
        except Exception as error:  # noqa: BLE001  # some clients give up under load
            failure = error
        recorded(histogram, time.perf_counter() - due)

    schedule = due_times(rate, seconds)
    started = time.perf_counter()
    for number, offset in enumerate(schedule):
        due = started + offset
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = asyncio.ensure_future(one(subjects[number % len(subjects)], due))
        pending[task] = due
        task.add_done_callback(lambda finished: pending.pop(finished, None))
        if number % 64 == 0:
            await asyncio.sleep(0)  # a sender that is behind still lets answers in
    if pending:
        await asyncio.wait(set(pending), timeout=DRAIN_S)
    late = dict(pending)
    now = time.perf_counter()
    for task, due in late.items():
        task.cancel()
        recorded(histogram, now - due)
    await asyncio.gather(*late, return_exceptions=True)
    if failure is not None and not answered:
        raise failure
    return percentiles_ms(histogram) | {"answered": 100 * divided(answered, len(schedule))}
