"""The machine of `machine.py` on real servers, driven by Hypothesis and by plain seeds."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import Meter, Plan
from meterd.testing import fake
from meterd.testing.cleanup import remove_prefix
from tests.property.machine import Machine
from tests.support.servers import Server, available, start

Make = Callable[[Any, list[Plan]], Meter]
MATRIX = ("valkey-9.1", "valkey-8.1", "redis-8.2", "redis-7.0", "redis-6.2")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start("valkey-9.1") as server:
        yield server.url


def run(rng: random.Random, steps: int, url: str) -> int:
    """One machine on one store of its own. Returns how many operations it compared."""
    prefix = f"machine-{uuid.uuid4().hex[:8]}"
    made: list[Meter] = []

    def make(clock: Any, plans: list[Plan]) -> Meter:
        made.append(Meter(url, prefix=prefix, clock=clock, plans=plans, timeout=10))
        return made[0]

    try:
        machine = Machine(rng, make)
        for _ in range(steps):
            machine.step()
    finally:
        for meter in made:
            meter.close()
        remove_prefix(url, prefix)
    return steps


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.randoms(use_true_random=False))
def test_hypothesis_drives_engine_and_oracle(url: str, rng: random.Random) -> None:
    run(rng, 40, url)


def test_many_seeds(url: str) -> None:
    for seed in range(40):
        run(random.Random(f"seed {seed}"), 150, url)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("name", MATRIX)
def test_every_server(name: str, protocol: int) -> None:
    if not available(name):
        pytest.skip(f"{name} is not installed here")
    with start(name) as server:
        for seed in range(8):
            run(random.Random(f"{name} {protocol} {seed}"), 100, with_protocol(server, protocol))


def with_protocol(server: Server, protocol: int) -> str:
    joint = "&" if "?" in server.url else "?"
    return f"{server.url}{joint}protocol={protocol}"


def test_fakeredis() -> None:
    for seed in range(4):
        machine = Machine(
            random.Random(f"fake {seed}"), lambda clock, plans: fake(plans, clock=clock)
        )
        for _ in range(60):
            machine.step()
        machine.meter.close()


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_a_million_operations(url: str) -> None:
    total = int(os.environ.get("METERD_LONG_OPERATIONS", "1000000"))
    done, seed = 0, int(os.environ.get("METERD_LONG_SEED", "0"))
    while done < total:
        done += run(random.Random(f"long {seed}"), 250, url)
        seed += 1
