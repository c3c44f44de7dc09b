"""Consuming events: at least once, once for a group, whatever becomes of its consumers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import redis

from meterd import Event, Meter, PolicyError
from meterd.keys import slot_of
from meterd.streams import ask
from meterd.testing import fake
from tests.client.meter_tools import PLANS, AnyMeter, Make, build
from tests.export.export_tools import NONE, Streams, apart, together
from tests.support import servers

WITHOUT = {"follow": False}


class Through:
    """Just enough of a redis-py client, on a meter's own server."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def xadd(self, key: bytes, fields: dict[bytes, bytes]) -> bytes:
        ((name, value),) = fields.items()
        words = (b"XADD", key, b"*", name, value)
        (reply,) = self._meter._drive(ask(self._meter._session, [(key, words)]))
        return bytes(reply)


class Consumer:
    """The iterator of either meter, as a synchronous one."""

    def __init__(self, meter: AnyMeter, group: str = "g", **how: Any) -> None:
        self._runner = meter.runner
        self._events = meter.raw.events(group, **how)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._runner is None:
            return next(self._events)
        try:
            return self._runner.run(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> Event:
        return await anext(self._events)

    def close(self) -> None:
        if self._runner is None:
            self._events.close()
        else:
            self._runner.run(self._events.aclose())


def consumed(meter: AnyMeter, group: str = "g", **how: Any) -> list[Event]:
    return list(Consumer(meter, group, **(WITHOUT | how)))


def test_an_event_and_its_fields(meter: AnyMeter, streams: Streams) -> None:
    meter.set_meta("acme", {"crm": 7})
    first = streams.event("acme/ana", "warn", "0.8", remaining=20)
    second = streams.event(("acme", "a/b"), "closed", limit=NONE, remaining=None, end=NONE)
    streams.event("acme", "warn", "100")
    one, two, three = consumed(meter)
    assert one.as_dict() == {
        "id": first,
        "type": "warn",
        "subject": "acme/ana",
        "name": "credits",
        "plan": "free",
        "limit": 100,
        "used": 100,
        "remaining": 20,
        "period_start": "2025-01-01T00:00:00+00:00",
        "period_end": "2025-02-01T00:00:00+00:00",
        "at": "2025-01-02T00:00:00+00:00",
        "meta": {"crm": 7},
        "threshold": 0.8,
    }
    assert two.id == second
    assert two.subject == ("acme", "a/b")
    assert two.root == one.root == "acme"
    assert (two.limit, two.remaining, two.period_end) == (None, None, None)
    assert json.dumps(two.as_dict())
    assert "threshold" not in two.as_dict()
    assert three.threshold == 100
    assert type(three.threshold) is int


def test_acknowledged_when_the_next_is_asked_for(meter: AnyMeter, streams: Streams) -> None:
    for _ in range(3):
        streams.event("acme")
    events = Consumer(meter, follow=False)
    first = next(events)
    assert streams.pending("acme", "g") == 3
    next(events)
    assert streams.pending("acme", "g") == 2
    assert len(list(events)) == 1
    assert streams.pending("acme", "g") == 0
    assert first.id not in {event.id for event in consumed(meter)}


def test_left_by_an_exception_it_comes_again(meter: AnyMeter, streams: Streams) -> None:
    ids = [streams.event("acme") for _ in range(3)]
    events = Consumer(meter, follow=False)
    next(events)
    assert next(events).id == ids[1]
    events.close()  # as an exception does
    # At once, without anybody waiting for `idle` to pass; what was read ahead as well.
    assert [event.id for event in consumed(meter)] == ids[1:]
    assert consumed(meter) == []


def test_what_a_killed_consumer_had_is_not_lost(
    make: Make, server: servers.Server, streams: Streams
) -> None:
    meter = make()
    ids = [streams.event("acme") for _ in range(5)]
    killed = Consumer(meter, follow=False)
    assert next(killed).id == ids[0]
    assert next(killed).id == ids[1]
    assert consumed(make()) == []  # not idle for long enough: it may still be at work
    streams.abandon("acme")
    assert [event.id for event in consumed(make())] == ids[1:]
    killed.close()
    assert consumed(make()) == []


def test_a_consumer_that_was_away_gives_up_what_others_claimed(
    make: Make, server: servers.Server, streams: Streams
) -> None:
    ids = [streams.event("acme") for _ in range(4)]
    slow, quick = make(), make()
    events = Consumer(slow, follow=False, idle=0.05)
    assert next(events).id == ids[0]
    time.sleep(0.06)  # longer than it may be
    assert [event.id for event in consumed(quick, idle=0.05)] == ids
    assert list(events) == []


def test_a_group_shares_the_work(make: Make, streams: Streams) -> None:
    roots = apart(40)
    ids = {streams.event(root) for root in roots for _ in range(3)}
    consumers = [Consumer(make(), follow=False) for _ in range(3)]
    found: list[str] = []
    while consumers:
        for consumer in list(consumers):
            event = next(consumer, None)
            if event is None:
                consumers.remove(consumer)
            else:
                found.append(event.id)
    assert len(found) == len(ids)
    assert set(found) == ids
    assert {event.id for event in consumed(make(), "another")} == ids


def test_types(meter: AnyMeter, streams: Streams) -> None:
    for kind in ("warn", "exhausted", "overage", "closed"):
        streams.event("acme", kind, *(["0.8"] if kind == "warn" else []))
    assert [event.type for event in consumed(meter, types=["warn", "closed"])] == ["warn", "closed"]
    assert streams.pending("acme", "g") == 0  # the others are acknowledged unseen
    assert consumed(meter) == []


def test_one_partition_does_not_hold_up_the_others(meter: AnyMeter, streams: Streams) -> None:
    busy, quiet = apart(2)
    for _ in range(200):
        streams.event(busy)
    late = streams.event(quiet)
    found = [event.id for event in consumed(meter)]
    assert len(found) == 201
    assert found.index(late) < 100


def test_roots_of_one_partition_have_their_own_meta(meter: AnyMeter, streams: Streams) -> None:
    roots = together(3)
    for number, root in enumerate(roots):
        meter.set_meta(root, {"number": number})
        streams.event(f"{root}/team")
    assert [event.meta for event in consumed(meter)] == [{"number": n} for n in range(3)]


def test_following_waits_for_what_comes(make: Make, streams: Streams) -> None:
    old, new = apart(2)
    first = streams.event(old)
    events = Consumer(make())
    assert next(events).id == first
    made: list[str] = []

    def later() -> None:
        made.extend([streams.event(new), streams.event(old)])

    timer = threading.Timer(0.3, later)
    timer.start()
    found = {next(events).id, next(events).id}
    timer.join()
    assert found == set(made)
    events.close()


def test_a_stream_made_anew_is_read_from_its_beginning(
    make: Make, server: servers.Server, streams: Streams
) -> None:
    streams.event("acme")
    events = Consumer(make())
    next(events)
    server.admin.delete(streams.key("acme", b"events"))
    again = streams.event("acme")
    other = streams.event(apart(2)[1])
    assert {next(events).id, next(events).id} == {again, other}
    events.close()


def test_what_cannot_be_read_is_passed_over(
    meter: AnyMeter, server: servers.Server, streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    key = streams.key("acme", b"events")
    for data in (b"\xc1", b"", msgpack.packb(["warn"]), msgpack.packb(7), msgpack.packb([1] * 10)):
        server.admin.xadd(key, {b"e": data})
    good = streams.event("acme")
    assert [event.id for event in consumed(meter)] == [good]
    assert caplog.text.count("passed over") == 5
    assert streams.pending("acme", "g") == 0


def test_pending_entries_that_were_trimmed(
    make: Make, server: servers.Server, streams: Streams
) -> None:
    ids = [streams.event("acme") for _ in range(4)]
    Consumer(make()).__next__()
    streams.abandon("acme")
    server.admin.xtrim(streams.key("acme", b"events"), maxlen=2, approximate=False)
    assert [event.id for event in consumed(make())] == ids[2:]
    assert streams.pending("acme", "g") == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"group": ""}, "group"),
        ({"group": 7}, "group"),
        ({"group": "x" * 129}, "group"),
        ({"group": "\ud800"}, "group"),
        ({"types": "warn"}, "types"),
        ({"types": ["warned"]}, "types"),
        ({"types": []}, "types"),
        ({"idle": 0}, "idle"),
    ],
)
def test_wrong_arguments(meter: AnyMeter, given: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=f"^{says}: "):
        meter.raw.events(**({"group": "g"} | given))


def test_a_meter_that_is_closed(server: servers.Server, prefix: str) -> None:
    meter = Meter(server.url, prefix=prefix)
    events = meter.events("g")
    meter.close()
    with pytest.raises(PolicyError, match="closed"):
        next(events)


def test_on_fakeredis() -> None:
    with fake() as meter:
        streams = Streams(Through(meter), "meterd")
        ids = [streams.event("acme") for _ in range(3)]
        events = meter.events("g")
        assert [next(events).id for _ in range(3)] == ids
        events.close()  # type: ignore[attr-defined]
        assert [event.id for event in meter.events("g", follow=False)] == ids[2:]


def test_the_async_one_ends_with_its_task(server: servers.Server, prefix: str) -> None:
    from meterd import AsyncMeter

    async def wait(meter: AsyncMeter) -> None:
        async for _ in meter.events("g"):
            pass

    async def main() -> None:
        async with AsyncMeter(server.url, prefix=prefix) as meter:
            task = asyncio.create_task(wait(meter))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await meter.plans() == {}

    asyncio.run(main())


@pytest.mark.matrix
def test_every_server(matrix_server: servers.Server, prefix: str) -> None:
    streams = Streams(matrix_server.admin, prefix)
    ids = [streams.event("acme") for _ in range(5)]
    with Meter(matrix_server.url, prefix=prefix) as meter:
        killed = meter.events("g")
        assert next(killed).id == ids[0]
        streams.abandon("acme")
        matrix_server.admin.xtrim(streams.key("acme", b"events"), maxlen=3, approximate=False)
        assert [event.id for event in meter.events("g", follow=False)] == ids[2:]
        assert streams.pending("acme", "g") == 0


@pytest.mark.parametrize("name", ["valkey-9.1", "redis-6.2"])
@pytest.mark.parametrize("runner", [None, asyncio.Runner], ids=["sync", "async"])
def test_a_cluster_whose_slots_move(name: str, runner: Any, prefix: str) -> None:
    if not servers.available(name):
        pytest.skip(f"{name} is not installed")
    roots = apart(30)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(servers.Cluster(name))
        made = stack.enter_context(runner()) if runner else None
        node = cluster.nodes[0]
        admin = redis.RedisCluster(host="127.0.0.1", port=node.port)
        stack.callback(admin.close)
        streams = Streams(admin, prefix)
        url = cluster.url
        meter = stack.enter_context(build(made, url, plans=PLANS, prefix=prefix, timeout=5))
        ids = {streams.event(root) for root in roots for _ in range(2)}
        events = Consumer(meter)
        found = {next(events).id for _ in range(20)}
        slot = slot_of(streams.key(roots[0], b"events"))
        owner = cluster.node_of(slot)
        other = next(one for one in cluster.nodes if one is not owner)
        if name == "redis-6.2":
            cluster.begin_migration(slot, other)
            cluster.migrate_keys(slot, other, 100)
            ids.add(streams.event(roots[0]))
        else:
            cluster.move_slot_atomically(slot, other)
        ids |= {streams.event(root) for root in roots}
        found |= {next(events).id for _ in range(len(ids) - 20)}
        assert found == ids
        events.close()
        assert len(consumed(meter)) == 1  # the last one, which was never acknowledged
        meter.close()
