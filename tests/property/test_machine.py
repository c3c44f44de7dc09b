"""The machine of `machine.py` on real servers, driven by Hypothesis and by plain seeds."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import KeyCode, Plan
from meterd.testing import fake
from meterd.testing.cleanup import remove_prefix
from tests.client.hold_tools import known, reserve
from tests.client.meter_tools import AnyMeter, build
from tests.property.billing import Billing
from tests.property.granting import Burning, Granting
from tests.property.keyed import Keyed
from tests.property.machine import Machine
from tests.property.variants import Batches, Changing, Remembering
from tests.support.servers import Server, available, start

MATRIX = ("valkey-9.1", "valkey-8.1", "redis-8.2", "redis-7.0", "redis-6.2")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start("valkey-9.1") as server:
        yield server.url


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


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False), way=st.sampled_from(sorted(WAYS)))
def test_hypothesis_drives_engine_and_oracle(url: str, rng: random.Random, way: str) -> None:
    run(rng, 40, url, way)


@pytest.mark.parametrize("way", WAYS)
def test_many_seeds(url: str, way: str) -> None:
    for seed in range(40 if way == "sync" else 20):
        run(random.Random(f"seed {seed}"), 150, url, way)
    if way == "billing":
        assert Billing.delivered_again > 100
    if "remembering" in way:
        assert Remembering.hits > 100
    if "keys" in way:
        assert all(Keyed.answered[str(code)] > 10 for code in KeyCode if code != "NO_PLAN")


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("name", MATRIX)
def test_every_server(name: str, protocol: int) -> None:
    if not available(name):
        pytest.skip(f"{name} is not installed here")
    with start(name) as server:
        url = with_protocol(server, protocol)
        for seed in range(8):
            way = "changing" if seed % 4 == 3 else "sync"
            run(random.Random(f"{name} {protocol} {seed}"), 100, url, way)


def with_protocol(server: Server, protocol: int) -> str:
    joint = "&" if "?" in server.url else "?"
    return f"{server.url}{joint}protocol={protocol}"


def test_fakeredis() -> None:
    for seed in range(4):
        kind = Changing if seed == 3 else Machine
        machine = kind(random.Random(f"fake {seed}"), lambda clock, plans: fake(plans, clock=clock))
        for _ in range(60):
            machine.step()
        machine.meter.close()


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_a_million_operations(url: str) -> None:
    total = int(os.environ.get("METERD_LONG_OPERATIONS", "1000000"))
    done, seed = 0, int(os.environ.get("METERD_LONG_SEED", "0"))
    while done < total:
        done += run(random.Random(f"long {seed}"), 250, url, list(WAYS)[seed % len(WAYS)])
        seed += 1
