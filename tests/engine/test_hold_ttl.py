"""How long Redis keeps records with holds, and the holds: never shorter than they matter."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
import redis

from meterd import Bucket, Plan, Pool, Slots
from tests.engine.conftest import Make
from tests.engine.held import TTL, Holder, assert_sound

DAY_MS = 86_400_000
BUCKETS = (Bucket("api", 100, "1m", algorithm="fixed"), Bucket("tok", 50, "1m", algorithm="token"))
MINUTES_MS = 2 * 60_000  # what such buckets need until all are full again


def plan(*limits: Any) -> Plan:
    return Plan("free", includes=limits, default=True)


def left(client: redis.Redis, key: bytes) -> int:
    """ms until Redis drops it; -1: never."""
    assert client.exists(key)
    return client.pttl(key)


@pytest.fixture
def holder(make: Make, client: redis.Redis) -> Holder:
    pro = Plan("pro", includes=[*BUCKETS, Slots("jobs", 5)])
    return Holder(
        make([plan(*BUCKETS), pro, Plan("wide", includes=[Bucket("api", 5, "9d")])]), client
    )


def keys_of(holder: Holder) -> list[bytes]:
    return list(holder.keys())


def assert_kept(holder: Holder, ms: int) -> None:
    """Record, hash and set outlive `ms` from now, and what the buckets need after that."""
    for key in keys_of(holder):
        assert left(holder.client, key) >= ms + MINUTES_MS - 5_000


def test_a_record_outlives_its_holds(holder: Holder) -> None:
    holder.reserve("api", 3, ttl=9 * DAY_MS)
    assert holder.stored().flags & TTL
    assert_kept(holder, 9 * DAY_MS)
    holder.meter.consume("a", "api")
    holder.reserve("tok", 3, ttl=1000)
    holder.reserve("tok", 3, ttl=1000, op="x")
    assert_kept(holder, 9 * DAY_MS)


def test_a_hold_that_is_renewed_is_outlived_too(holder: Holder) -> None:
    """Also where another one is still the first to expire, so that nothing else changes."""
    holder.reserve("api", ttl=60_000)
    second = holder.reserve("api", ttl=120_000)
    holder.renew(second.id, 30 * DAY_MS)
    assert_kept(holder, 30 * DAY_MS)
    holder.tally(second.id, {"api": 1}, 60 * DAY_MS)
    assert_kept(holder, 60 * DAY_MS)
    assert assert_sound(holder.client, holder.meter) == 2


def test_renewing_the_only_hold(holder: Holder) -> None:
    only = holder.reserve("api", ttl=60_000)
    holder.renew(only.id, 30 * DAY_MS)
    assert_kept(holder, 30 * DAY_MS)


@pytest.mark.parametrize("how", ["subscribe", "override", "apply", "apply, checked before"])
def test_holds_stay_with_a_record_that_stays(holder: Holder, how: str) -> None:
    """The keys of the holds lose their expiry with the record's: slots would be taken for ever."""
    meter, client = holder.meter, holder.client
    old = holder.reserve("api", 9)
    assert left(client, holder.keys()[1]) > 0
    if how == "subscribe":
        meter.subscribe("a", "pro")
    elif how == "override":
        meter.override("a", "api", limit=50)
    else:
        meter.apply([plan(*BUCKETS, Slots("jobs", 5))])
        if "checked" in how:
            meter.check("a", "api")
        meter.consume("a", "api")
    assert [left(client, key) for key in keys_of(holder)] == [-1, -1, -1]
    if how != "override":
        holder.reserve("jobs", 5, ttl=9 * DAY_MS)
    assert [left(client, key) for key in keys_of(holder)] == [-1, -1, -1]
    holder.release(old.id)
    assert_sound(client, meter)


def test_of_a_record_that_stays_nothing_expires(make: Make, client: redis.Redis) -> None:
    holder = Holder(make([plan(*BUCKETS, Pool("credits", 50))]), client)
    holder.reserve({"api": 1, "credits": 1}, op="x")
    assert [left(client, key) for key in keys_of(holder)] == [-1, -1, -1]


def test_a_longer_bucket_keeps_all_three(holder: Holder) -> None:
    holder.reserve("api", ttl=DAY_MS)
    holder.meter.apply([plan(Bucket("api", 100, "90d"))])
    holder.meter.consume("a", "api")
    record, *_ = holder.keys()
    assert left(holder.client, record) > 179 * DAY_MS
    assert_kept(holder, DAY_MS)


def test_what_has_ended_leaves_nothing(holder: Holder) -> None:
    holder.reserve("api", ttl=1)
    holder.release(holder.reserve("api").id)
    holder.commit(holder.reserve("api").id)
    time.sleep(0.005)
    holder.meter.consume("a", "api")
    record, held, order = holder.keys()
    assert not holder.client.exists(held, order)
    assert left(holder.client, record) > 0


def test_ends_of_holds_last_as_long_as_operation_ids(holder: Holder) -> None:
    for verb in ("commit", "release"):
        hold = holder.reserve("api")
        getattr(holder, verb)(hold.id)
        key = holder.meter._keys.hold_end(holder.meter._keys.path("a"), hold.id)
        assert abs(left(holder.client, key) - DAY_MS) < 60_000
        (ends,) = struct.unpack("<Q", holder.client.get(key)[16:22] + b"\0\0")
        assert abs(ends - holder.client.execute_command("PEXPIRETIME", key)) < 60_000
