"""Latency counts from when a call was due: a stall is in the figures, however few calls saw it."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.core import latency
from bench.core.latency import due_times, new_histogram, open_loop, percentiles_ms, recorded

SUBJECTS = range(10)


def test_calls_are_due_at_fixed_instants() -> None:
    assert due_times(4, 1) == [0, 0.25, 0.5, 0.75]
    assert due_times(1000, 0.0001) == [0]


def test_percentiles_are_in_milliseconds() -> None:
    histogram = new_histogram()
    for ms in range(1, 1001):
        recorded(histogram, ms / 1000)
    found = percentiles_ms(histogram)
    assert found["p50"] == pytest.approx(500, rel=0.01)
    assert found["p99"] == pytest.approx(990, rel=0.01)
    assert found["p99.9"] == pytest.approx(999, rel=0.01)


def test_what_is_longer_than_the_histogram_counts_as_its_longest() -> None:
    histogram = new_histogram()
    recorded(histogram, 10**6)
    recorded(histogram, -1)
    assert percentiles_ms(histogram)["p99"] == pytest.approx(latency.HIGHEST_US / 1000, rel=0.01)


def test_a_stall_counts_for_every_call_that_was_due_in_it() -> None:
    calls = 0

    async def call(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            time.sleep(0.2)  # the whole loop stands still, and nothing is sent meanwhile

    found = asyncio.run(open_loop(call, 500, 0.4, SUBJECTS))
    # 100 of 200 calls were due in the stall and waited 100 ms on average; a closed loop would have
    # shown one slow call in 200.
    assert found["answered"] == 100
    assert found["p99"] > 150


def test_unanswered_calls_count_with_their_wait_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "DRAIN_S", 0.1)
    calls = 0

    async def call(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            await asyncio.Event().wait()

    found = asyncio.run(open_loop(call, 100, 0.1, SUBJECTS))
    assert found["answered"] == 50
    assert found["p99"] > 90


def test_failures_are_not_answers() -> None:
    async def sometimes(n: int) -> None:
        if n % 2:
            raise ConnectionError

    assert asyncio.run(open_loop(sometimes, 100, 0.1, SUBJECTS))["answered"] == 50

    async def never(_: int) -> None:
        raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        asyncio.run(open_loop(never, 100, 0.1, SUBJECTS))
