"""Which keys Redis may drop by itself: records that say nothing any more, and old ids."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import Bucket, Flag, Meter, Plan, Pool, wire
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.raw import LEVELS, Raw, database
from tests.support.servers import Server

BUCKETS = (
    Bucket("sliding", 100, "30d"),
    Bucket("fixed", 100, "30d", algorithm="fixed"),
    Bucket("token", 100, "30d", algorithm="token", burst=500),
)
ALL = {"sliding": 1, "fixed": 1, "token": 1}
DAY_MS = 86_400_000
TAIL = 20 + 16 + 11 + 16  # where the instant of the expiry stands in a record of BUCKETS


def plan(*limits: Any, **fields: Any) -> Plan:
    return Plan("free", includes=limits, default=True, **fields)


def expiry(client: redis.Redis, key: bytes) -> int:
    """Epoch ms; -1: never."""
    assert client.exists(key)
    return int(client.execute_command("PEXPIRETIME", key))


def key_of(meter: Meter, subject: str = "a") -> bytes:
    return meter._keys.path(subject).keys[-1]


def written(client: redis.Redis) -> dict[str, int]:
    """How often each writing command has been carried out."""
    stats = client.info("commandstats")
    names = ("set", "setrange", "mset", "pexpire", "expire", "del")
    return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names}


def test_a_record_of_first_sight_with_only_buckets_expires(make: Make, client: redis.Redis) -> None:
    meter = make([plan(*BUCKETS)])
    assert meter.consume("a", ALL)
    key = key_of(meter)
    stored = int.from_bytes(client.get(key)[TAIL : TAIL + 6], "little")
    seen = int.from_bytes(client.get(key)[14:20], "little")
    assert len(client.get(key)) == TAIL + 6
    assert abs(expiry(client, key) - stored) < 60_000
    # A token bucket of 500 that gets 100 back in 30 days is full after 150.
    assert stored - seen >= 150 * 86_400_000


def test_the_expiry_moves_only_when_it_has_to(make: Make, client: redis.Redis) -> None:
    meter = make([plan(*BUCKETS)])
    meter.consume("a", ALL)
    key = key_of(meter)
    first, before = expiry(client, key), written(client)
    for _ in range(5):
        assert meter.consume("a", ALL)
        assert meter.consume("a", "fixed")
    after = written(client)
    assert after.pop("setrange") == before.pop("setrange") + 10
    assert after == before
    assert expiry(client, key) == first

    # As if most of the time had passed: what is left of it no longer covers the buckets.
    rec = client.get(key)
    seen = int.from_bytes(rec[14:20], "little")
    soon = seen + 100 * 86_400_000
    client.setrange(key, TAIL, struct.pack("<Q", soon)[:6])
    client.pexpireat(key, soon)
    assert meter.consume("a", "fixed")
    assert abs(expiry(client, key) - first) < 60_000
    moved = int.from_bytes(client.get(key)[TAIL : TAIL + 6], "little")
    assert abs(moved - expiry(client, key)) < 60_000


@pytest.mark.parametrize("verb", ["consume", "report"])
def test_writing_beside_an_operation_id_keeps_the_expiry(
    make: Make, client: redis.Redis, verb: str
) -> None:
    """MSET takes a TTL off; it has to be put back."""
    meter = make([plan(*BUCKETS)])
    meter.consume("a", ALL)
    first = expiry(client, key_of(meter))
    getattr(meter, verb)("a", "fixed", op="id")
    assert abs(expiry(client, key_of(meter)) - first) < 60_000
    getattr(meter, verb)("b", "fixed", op="id")
    assert expiry(client, key_of(meter, "b")) > 0


def test_what_else_writes_keeps_the_expiry_too(make: Make, client: redis.Redis) -> None:
    meter = make([plan(*BUCKETS)])
    meter.consume("a", ALL)
    first = expiry(client, key_of(meter))
    meter.refund("a", "fixed")
    meter.adjust("a", "fixed", used=7)
    assert expiry(client, key_of(meter)) == first
    meter.adjust("new", "fixed", used=7)
    assert expiry(client, key_of(meter, "new")) > 0
    assert meter.check("new", "fixed").limits[0].used == 7


@pytest.mark.parametrize(
    "other",
    [
        Pool("credits", 5),
        Flag("sso"),
        Bucket("closed", 0, "1m"),
        Bucket("slow", 1, "366d", algorithm="token", burst=10**12),  # full again in 10**12 years
    ],
    ids=lambda limit: limit.name,
)
def test_a_record_with_anything_else_stays(make: Make, client: redis.Redis, other: Any) -> None:
    meter = make([plan(*BUCKETS, other)])
    assert meter.consume("a", ALL)
    assert meter.consume("b", ALL, op="id")
    assert meter.consume("b", ALL)
    if other.name == "slow":
        assert meter.consume("a", "slow", 3)
        assert meter.consume("c", "slow", 10**12, op="id2")
    for subject in ("a", "b"):
        assert expiry(client, key_of(meter, subject)) == -1


def test_a_record_that_somebody_made_stays(make: Make, client: redis.Redis) -> None:
    meter = make([plan(*BUCKETS), Plan("pro", includes=[*BUCKETS, Bucket("more", 5, "1m")])])
    for change in (
        lambda subject: meter.subscribe(subject, "pro"),
        lambda subject: meter.subscribe(subject, "free"),
        lambda subject: meter.subscribe(subject, limits=[Bucket("own", 1, "1m")]),
        lambda subject: meter.override(subject, "fixed", limit=3),
    ):
        for charged_before in (False, True):
            subject = f"s{id(change)}{charged_before}"
            if charged_before:
                meter.consume(subject, ALL)
                assert expiry(client, key_of(meter, subject)) > 0
            change(subject)
            assert expiry(client, key_of(meter, subject)) == -1
            meter.report(subject, {"fixed": 1, "own": 1})
            meter.report(subject, {"fixed": 1, "own": 1}, op=subject)
            assert expiry(client, key_of(meter, subject)) == -1
    meter.override("s", "fixed", limit=3)
    meter.override("s", "fixed", clear=True)
    assert expiry(client, key_of(meter, "s")) == -1


def test_levels_below_the_root_stay(make: Make, client: redis.Redis) -> None:
    meter = make([plan(*BUCKETS)])
    meter.subscribe("a/team", limits=[Bucket("fixed", 5, "1m", algorithm="fixed")])
    assert meter.consume("a/team", "fixed")
    assert expiry(client, key_of(meter, "a/team")) == -1
    assert expiry(client, key_of(meter, "a")) > 0


@pytest.mark.parametrize("op", [None, "id"])
def test_a_plan_that_gains_a_pool_keeps_the_record(
    make: Make, client: redis.Redis, op: str | None
) -> None:
    meter = make([plan(*BUCKETS)])
    meter.consume("a", ALL)
    assert expiry(client, key_of(meter)) > 0
    meter.apply([plan(*BUCKETS, Pool("credits", 5))])
    assert meter.consume("a", "credits", op=op)
    assert expiry(client, key_of(meter)) == -1
    assert [s.used for s in meter.usage("a").limits] == [1, 1, 1, 1]


def test_a_longer_bucket_moves_the_expiry(make: Make, client: redis.Redis) -> None:
    meter = make([plan(Bucket("b", 1, "1d"))])
    meter.consume("a", "b")
    first = expiry(client, key_of(meter))
    meter.apply([plan(Bucket("b", 2, "300d"))])
    assert meter.consume("a", "b")
    assert expiry(client, key_of(meter)) - first > 500 * 86_400_000


def test_a_plain_limiter_forgets(make: Make, client: redis.Redis) -> None:
    meter = make([])
    login = meter.limiter("login", Bucket("ip", 5, "1m"), Bucket("day", 50, "1d"))
    assert login.consume("::1")
    (key,) = meter._keys.limiter("login", ("::1",)).keys
    assert expiry(client, key) > 0


def test_nothing_expires_on_a_test_clock(make: Make, client: redis.Redis, prefix: str) -> None:
    clock = ManualClock()
    meter = make([plan(*BUCKETS)], clock=clock)
    for subject in ("a", "b"):
        meter.consume(subject, ALL, op="id")
        clock.advance(days=400)
        meter.consume(subject, ALL)
    meter.limiter("login", Bucket("ip", 5, "1m")).consume("::1", op="x")
    keys = list(client.scan_iter(match=f"{prefix}*"))
    assert len(keys) >= 7
    assert {expiry(client, key) for key in keys} == {-1}


@pytest.mark.parametrize(("retention", "ms"), [("24h", 86_400_000), ("2w", 1_209_600_000)])
def test_operation_ids_last_as_long_as_they_are_said_to(
    make: Make, client: redis.Redis, retention: str, ms: int
) -> None:
    meter = make([plan(*BUCKETS)], op_retention=retention)
    meter.consume("a", "fixed", op="id")
    meter.report("a", "fixed", op="id2")
    meter.refund("a", "fixed", op="id3")
    meter.subscribe("a", "free", op="id4")
    now = None
    for op in ("id", "id2", "id3"):
        key = meter._keys.op(meter._keys.path("a"), op)
        stored = client.get(key)
        ends = int.from_bytes(stored[16:22], "little")
        now = wire.decode_answer(stored[22:], LEVELS).now_ms
        assert ends - now == ms
        assert abs(expiry(client, key) - ends) < 60_000
    key = meter._keys.op(meter._keys.path("a"), "id4")
    assert abs(int.from_bytes(client.get(key)[16:22], "little") - (now or 0) - ms) < 60_000
    assert expiry(client, key) > 0


def test_what_the_store_needs_never_expires(make: Make, client: redis.Redis) -> None:
    meter = make([plan(*BUCKETS)])
    meter.consume("a", ALL)
    meter.set_meta("a", {"x": 1})
    keys = meter._keys
    for key in (keys.catalog, keys.policies, keys.clock, keys.meta(keys.path("a"))):
        assert expiry(client, key) == -1


@st.composite
def bucket_plans(draw: Any) -> tuple[Bucket, ...]:
    def one(name: str) -> Bucket:
        algorithm = draw(st.sampled_from(["sliding", "fixed", "token"]))
        return Bucket(
            name,
            draw(st.sampled_from([1, 3, 7, 1000, 10**12])),
            draw(st.sampled_from(["7s", "1m", "1h", "30d", "366d"])),
            algorithm=algorithm,
            burst=draw(st.sampled_from([None, 5, 999])) if algorithm == "token" else None,
            rates={"x": 1},
        )

    return tuple(one(f"b{i}") for i in range(draw(st.integers(1, 3))))


@given(buckets=bucket_plans(), amounts=st.lists(st.integers(1, 1000), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_at_its_expiry_a_record_says_no_more_than_an_unseen_subject(
    server: Server, buckets: tuple[Bucket, ...], amounts: list[int]
) -> None:
    """Asked at the very instant with the record still there: the same figures."""
    client = database(server, 6)
    client.flushdb()
    raw = Raw(client)
    with Meter(f"{server.url}?db=6", plans=[plan(*buckets)], timeout=10) as meter:
        for amount in amounts:
            meter.report("a", "x", amount)
        key, unseen = key_of(meter), key_of(meter, "unseen")
        expires = expiry(client, key)
        if expires == -1:  # one that is full again after a century stays
            assert (
                max((b.burst or b.limit) * b.per_ms // b.limit for b in buckets) > 36_500 * DAY_MS
            )
            return
        stored = int.from_bytes(client.get(key)[-6:], "little")
        policies = {n: b for n, b in client.hgetall(meter._keys.policies).items() if len(n) == 8}
        answers = []
        for at in (key, unseen):
            args = [
                b"%d" % min(stored, expires),
                meter._store.context(None),
                wire.extra(policies, {}),
            ]
            reply = raw.call("usage", [at], args)
            answers.append(wire.decode_answer(reply, LEVELS).limits())
    for left, right in zip(*answers, strict=True):
        assert (left.used, left.remaining) == (0, right.remaining)
