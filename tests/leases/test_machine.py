"""The machine of `machine.py` on a real server."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from meterd import Meter
from meterd.testing import ManualClock
from meterd.testing.cleanup import remove_prefix
from tests.client.meter_tools import fresh_prefix
from tests.leases.machine import PLAN, Machine
from tests.support.servers import Server


@pytest.fixture
def prefix(server: Server) -> Iterator[str]:
    made = fresh_prefix()
    yield made
    remove_prefix(server.url, made)


def run(server: Server, prefix: str, seed: str, steps: int, *, faulty: bool) -> Machine:
    made: list[Meter] = []
    timeout = 0.3 if faulty else 10

    def make(clock: ManualClock) -> Meter:
        made.append(
            Meter(server.url, prefix=prefix + seed, plans=[PLAN], clock=clock, timeout=timeout)
        )
        return made[-1]

    try:
        machine = Machine(random.Random(seed), make, faulty=faulty)
        for _ in range(steps):
            machine.step()
        machine.finish()
        return machine
    finally:
        for meter in made:
            meter.close()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_sold_twice_and_nothing_is_lost(server: Server, prefix: str, seed: int) -> None:
    machine = run(server, prefix, f"plain {seed}", 400, faulty=False)
    assert len(machine.sales) > 100


@pytest.mark.parametrize("seed", range(8))
def test_not_even_when_requests_fail(server: Server, prefix: str, seed: int) -> None:
    machine = run(server, prefix, f"faulty {seed}", 150, faulty=True)
    assert machine.faults > 10


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_seeds(server: Server, prefix: str) -> None:
    for seed in range(300):
        run(server, prefix, f"long {seed}", 400, faulty=seed % 3 == 0)
