"""The machine of `machine.py` on real servers, driven by Hypothesis and by plain seeds."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd.testing import fake
from tests.property.machine import Machine
from tests.property.runs import WAYS, run
from tests.property.variants import Changing
from tests.support.servers import Server, available, start

MATRIX = ("valkey-9.1", "valkey-8.1", "redis-8.2", "redis-7.0", "redis-6.2")


@pytest.mark.timeout(600)
@settings(
    max_examples=40,
    derandomize=True,  # new examples are for the long run, whose seeds can be chosen
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False), way=st.sampled_from(sorted(WAYS)))
def test_hypothesis_drives_engine_and_oracle(url: str, rng: random.Random, way: str) -> None:
    run(rng, 40, url, way)


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
