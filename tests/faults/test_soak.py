"""One `AsyncMeter` under load, cuts and cancellations for minutes takes no more than at first."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from meterd import AsyncMeter, OutcomeUnknown, Unavailable
from tests.faults.fault_tools import CREDITS
from tests.support import servers
from tests.support.chaos import Chaos, Rates
from tests.support.servers import Server

ROUNDS = 10
WARM = 3  # rounds, until caches and arenas have the size they keep
TASKS = 100
SUBJECTS = 300
RATES = Rates(cut=0.02, trickle=0.005, chop=0.1, delay=0.02)
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def server() -> Iterator[Server]:
    with servers.start() as started:
        yield started


@dataclass(frozen=True, slots=True)
class Taken:
    """What the process takes while no call is under way."""

    traced: int
    resident: int
    files: int
    tasks: int

    @classmethod
    def now(cls) -> Taken:
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * PAGE
        files = len(os.listdir("/proc/self/fd"))
        return cls(tracemalloc.get_traced_memory()[0], resident, files, len(asyncio.all_tasks()))


class Load:
    """Calls with ends of every kind, and what they may have charged."""

    def __init__(self, meter: AsyncMeter) -> None:
        self.meter = meter
        self.rng = random.Random(17)
        self.ends: Counter[str] = Counter()
        self.sure: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    async def go_on(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self.work(until) for _ in range(TASKS)))
        # The replies that nobody waits for any more come before this one, as a rule.
        await self.meter.usage("quiet")

    async def work(self, until: float) -> None:
        while time.monotonic() < until:
            subject = f"s{self.rng.randrange(SUBJECTS)}"
            await self.one(subject, self.rng.randrange(1, 9))

    async def one(self, subject: str, amount: int) -> None:
        patience = self.rng.random() * 0.02 if self.rng.random() < 0.1 else None
        try:
            async with asyncio.timeout(patience):
                await self.meter.consume(subject, "credits", amount)
        except TimeoutError:
            self.ends["given up"] += 1
            self.unknown[subject] += amount
        except OutcomeUnknown:
            self.ends["unknown"] += 1
            self.unknown[subject] += amount
        except Unavailable:
            self.ends["unavailable"] += 1
        else:
            self.ends["done"] += 1
            self.sure[subject] += amount


@pytest.mark.asyncio
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [10, pytest.param(300, marks=pytest.mark.long)])
async def test_memory_and_files_stay_flat(server: Server, seconds: int) -> None:
    samples: list[Taken] = []
    tracemalloc.start(1)
    try:
        with Chaos(server, 5, RATES) as chaos:
            meter = AsyncMeter(chaos.url, plans=[CREDITS], timeout=5, max_connections=4)
            load = Load(meter)
            for _ in range(ROUNDS):
                await load.go_on(seconds / ROUNDS)
                samples.append(Taken.now())
            chaos.rates = Rates()
            for subject in load.sure:
                used = (await meter.usage(subject))["credits"].used
                assert 0 <= used - load.sure[subject] <= load.unknown[subject], subject
            await meter.close()
            cuts = chaos.stats["cut"]
    finally:
        tracemalloc.stop()
    before, after = samples[WARM - 1 : ROUNDS - 1], samples[-1]
    shown = (samples, load.ends, cuts)
    assert after.traced < max(one.traced for one in before) + 300_000, shown
    assert after.resident < max(one.resident for one in before) + 4_000_000, shown
    # The proxy's connections are files of this process too, and one may be on its way out.
    assert after.files <= min(one.files for one in before) + 8, shown
    assert after.tasks <= min(one.tasks for one in before) + 4, shown
    assert load.ends["done"] > 100 * seconds, shown
    assert load.ends["given up"] > 5 * seconds, shown
    assert load.ends["unknown"] > 0, shown
