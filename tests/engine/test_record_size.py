"""What a subject costs in memory: one short string, whatever its history."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from meterd import Bucket, Plan, Pool
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.support.servers import Server

BUDGET = 192
SUBJECT = "customer-0001"


def plan(*algorithms: Any) -> Plan:
    pool = Pool("credits", 10**6, "month", anchor="calendar", tz="Europe/Berlin", overage=None)
    buckets = [
        Bucket(f"bucket{i}", 1000, "1h", algorithm=algorithm, rates={"credits": 1})
        for i, algorithm in enumerate(algorithms)
    ]
    return Plan("free", includes=[pool, *buckets], default=True)


@pytest.mark.parametrize(
    "algorithms",
    [("sliding", "fixed", "token"), ("sliding",) * 3, ("token",) * 3, ("fixed",) * 3],
)
def test_a_pool_and_three_buckets_fit_the_budget(
    make: Make, client: redis.Redis, server: Server, algorithms: tuple[str, ...]
) -> None:
    assert server.name == "valkey-9.1"
    clock = ManualClock()
    meter = make([plan(*algorithms)], clock=clock, prefix="size")
    (key,) = meter._keys.path(SUBJECT).keys
    assert len(key) <= 30
    try:
        for days in range(4):
            clock.advance(days=days * 20)
            assert meter.consume(SUBJECT, "credits", 1 + days * 100)
            meter.report(SUBJECT, "credits", 10**9)
            meter.refund(SUBJECT, "credits", 5)
            assert client.memory_usage(key, samples=0) <= BUDGET
            assert len(client.get(key)) <= 116
            assert client.execute_command("PEXPIRETIME", key) == -1
        # An operation id takes another way of writing; a correction writes the record whole.
        meter.report(SUBJECT, "credits", 1, op="id")
        assert client.memory_usage(key, samples=0) <= BUDGET
        meter.adjust(SUBJECT, "credits", used=3)
        assert client.memory_usage(key, samples=0) <= BUDGET
    finally:
        for name in client.scan_iter(match="size:*"):
            client.delete(name)


def test_an_override_costs_memory_only_while_it_lasts(make: Make, client: redis.Redis) -> None:
    meter = make([plan("sliding", "fixed", "token")], clock=ManualClock())
    meter.consume(SUBJECT, "credits", 1)
    (key,) = meter._keys.path(SUBJECT).keys
    before = len(client.get(key))
    meter.override(SUBJECT, "credits", limit=5)
    assert len(client.get(key)) > before
    meter.override(SUBJECT, "credits", clear=True)
    assert len(client.get(key)) == before


def test_a_hold_costs_memory_only_while_it_is_open(make: Make, client: redis.Redis) -> None:
    """Six bytes of the record, and two small keys for all of its holds."""
    clock = ManualClock()
    meter = make([plan("sliding", "fixed", "token")], clock=clock)
    meter.consume(SUBJECT, "credits", 1)
    path = meter._keys.path(SUBJECT)
    (key,), held = path.keys, meter._keys.holds(path, 1)
    before = len(client.get(key))
    holds = [meter.reserve(SUBJECT, "credits") for _ in range(8)]
    assert len(client.get(key)) == before + 6
    assert sum(client.memory_usage(name, samples=0) for name in held) < 8 * 350
    for hold in holds[:4]:
        hold.commit()
    assert client.exists(*held) == 2
    clock.advance(seconds=60)
    meter.consume(SUBJECT, "credits", 1)
    assert len(client.get(key)) == before
    assert not client.exists(*held)
