"""Grants and the rest of the client: servers that evict, batches, depth, remembered refusals."""

from __future__ import annotations

from typing import Any

import pytest

from meterd import Bucket, Plan, Pool, UnsafeServer
from tests.client.grant_tools import BASE, PLANS, burned, left
from tests.client.meter_tools import AnyMeter, Make
from tests.support import servers


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


# Servers that forget ------------------------------------------------------------------------------


def test_a_server_that_evicts_is_given_no_credits(make: Make, server: servers.Server) -> None:
    """Nor is it when there is no plan with a pool, which it was asked about when plans came."""
    plan = Plan("b", includes=[Bucket("api", 10, "1s")], default=True)
    meter = make([plan])
    admin = server.client()
    admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(UnsafeServer):
            meter.grant("acme", "credits", 5)
        with pytest.raises(UnsafeServer):
            meter.subscribe("acme/ana", limits=[Bucket("own", 5, "1m"), Pool("credits", 5)])
        with pytest.raises(UnsafeServer):
            meter.keys.create("acme", limits=[Pool("credits", 5)])
        assert meter.subjects() == []
        assert meter.keys.list("acme") == []
        meter.subscribe("acme/ana", limits=[Bucket("own", 5, "1m")])  # cheap to lose
        key = meter.keys.create("acme", limits=[Bucket("own", 5, "1m")])
        with pytest.raises(UnsafeServer):
            meter.keys.update(key.id, limits=[Pool("credits", 5)])
        accepting = make(plans=None, accept_eviction=True)
        assert accepting.grant("acme", "credits", 5)
        accepting.subscribe("acme/ana", limits=[Pool("credits", 5)])
    finally:
        admin.config_set("maxmemory-policy", "noeviction")
    meter.grant("acme", "credits", 5)
    assert meter.usage("acme")["credits"].granted == 10


# On the way there ---------------------------------------------------------------------------------


def test_batches_and_pipelines(meter: AnyMeter) -> None:
    meter.grant("acme", "credits", 50, priority=10, op="first")
    meter.grant("acme", "extra", 5, op="beside")
    decisions = meter.consume_many(
        [
            ("acme", "credits", 30),
            ("acme", "extra", 3),
            ("acme", "credits", 30),
            ("acme", "extra", 3),
        ]
    )
    assert [bool(d) for d in decisions] == [True, True, True, False]
    assert [d["credits"].drawn for d in decisions[::2]] == [30, 50]
    assert left(meter) == {"first": 0, "beside": 2}


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_grants_at_several_levels(meter: AnyMeter, depth: int) -> None:
    path = ("acme", "team", "ana", "laptop")[:depth]
    for level in range(1, depth + 1):
        if level > 1:
            meter.subscribe(path[:level], limits=[Pool("credits", 10 * level, "month")])
        meter.grant(path[:level], "credits", 5, priority=level * 20, op=f"level {level}")
    decision = meter.consume(path, {"credits": 12, "export": 1})
    assert decision, decision
    states = [s for s in decision.limits if s.name == "credits"]
    assert [s.drawn for s in states] == [5, 5, 0, 0][:depth]
    assert [s.granted for s in states] == [0, 0, 5, 5][:depth]
    assert decision.balance == min(100 - 7, *(10 * n + 5 - 12 for n in range(2, depth + 1)), 93)
    levels = meter.usage(path).levels
    assert [[g.remaining for g in level.grants] for level in levels] == [[0], [0], [5], [5]][:depth]
    meter.refund(path, "credits", 12)
    assert [[g.remaining for g in x.grants] for x in meter.usage(path).levels] == [[5]] * depth


def test_a_refusal_that_is_remembered_is_forgotten_with_a_grant(make: Make) -> None:
    meter = make([BASE], refusal_cache="1h", clock=None, prefix="grants-refused")
    meter.consume("acme", "credits", 100)
    assert not meter.consume("acme", "credits")
    meter.grant("acme", "credits", 5)
    assert meter.consume("acme", "credits")
    meter.forget("acme")


def test_it_is_seen_by_an_observer(make: Make) -> None:
    seen: list[Any] = []
    meter = make(PLANS, observer=lambda *what: seen.append(what[:3]))
    meter.grant("acme", "credits", 5, op="gift")
    meter.void("acme", "gift")
    assert [(verb, subject) for verb, subject, _ in seen] == [("grant", "acme"), ("void", "acme")]


def test_burned_tells_sources_apart(meter: AnyMeter) -> None:
    """What these tests look at themselves with."""
    assert burned(meter) == ""
    meter.grant("acme", "credits", 5, priority=10, op="gift")
    assert burned(meter) == "gift"
