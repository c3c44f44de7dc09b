"""One transport shared by threads and tasks, or built on somebody else's client."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from meterd.errors import PolicyError
from meterd.transport import (
    MaybeSent,
    NotSent,
    Request,
    open_async_transport,
    open_transport,
    pack,
)
from tests.client.transport_tools import (
    async_transport,
    command,
    fresh_key,
    transport,
)
from tests.support import proxy as faults
from tests.support import servers
from tests.support.proxy import FaultProxy


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    """One of this file's own: it counts connections."""
    with servers.start() as started:
        yield started


# --- Threads


def test_64_threads_each_get_their_own_answer(server: servers.Server) -> None:
    prefix = fresh_key()
    with transport(server.url, connections=8, timeout=10) as made, ThreadPoolExecutor(64) as pool:
        barrier = threading.Barrier(64)

        def work(index: int) -> None:
            barrier.wait()
            for turn in range(30):
                assert made.send(command("INCR", f"{prefix}:{index}"), 10) == turn + 1
                echo = f"{index}/{turn}"
                assert made.send(command("ECHO", echo), 10) == echo.encode()

        list(pool.map(work, range(64)))
        assert _connected(server) <= 8 + 2
    assert server.ask("GET", f"{prefix}:63") == "30"


def _connected(server: servers.Server) -> int:
    return len(server.ask("CLIENT", "LIST").splitlines())


def test_no_free_connection_in_time_is_not_sent(server: servers.Server) -> None:
    key = fresh_key()
    with transport(server.url, connections=1) as made, ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(made.send, command("BLPOP", key, 5), 6)
        time.sleep(0.2)
        started = time.monotonic()
        with pytest.raises(NotSent, match="max_connections"):
            made.send(command("PING"), 0.2)
        assert 0.15 < time.monotonic() - started < 4
        server.ask("LPUSH", key, "x")
        assert blocked.result() == [key.encode(), b"x"]
        assert made.send(command("PING"), 1) == b"PONG"


def test_waiting_threads_are_served_in_turn(server: servers.Server) -> None:
    """A greedy loop on one connection must not starve another thread."""
    with transport(server.url, connections=1) as made, ThreadPoolExecutor(3) as pool:
        until = time.monotonic() + 0.5

        def greedy() -> int:
            done = 0
            while time.monotonic() < until:
                made.send(command("PING"), 1)
                done += 1
            return done

        shares = [one.result() for one in [pool.submit(greedy) for _ in range(3)]]
    assert min(shares) * 3 > max(shares), shares


def test_connections_survive_threads_and_faults(proxy: FaultProxy, server: servers.Server) -> None:
    proxy.random(7, {faults.CUT_BEFORE: 0.05, faults.CUT_AFTER: 0.05, faults.CUT_MID_REPLY: 0.05})
    prefix, ends = fresh_key(), Counter[str]()
    with transport(proxy.url, connections=4) as made, ThreadPoolExecutor(16) as pool:

        def work(index: int) -> None:
            key, sure = f"{prefix}:{index}", 0
            for turn in range(30):
                try:
                    value = made.send(command("SET", key, turn, "GET"), 5)
                except MaybeSent:
                    ends["maybe"] += 1
                    continue
                ends["reply"] += 1
                assert value is None or sure - 1 <= int(value) < turn
                sure = turn + 1

        list(pool.map(work, range(16)))
        proxy.calm()
        assert all(made.send(command("ECHO", str(i)), 1) == str(i).encode() for i in range(20))
    assert ends["maybe"] > 10
    assert ends["reply"] > 300


# --- Tasks


@pytest.mark.asyncio
async def test_a_storm_of_cancellations_leaks_and_mixes_nothing(server: servers.Server) -> None:
    rng = random.Random(11)
    prefix, ends = fresh_key(), Counter[str]()
    async with async_transport(server.url, connections=10, timeout=10) as made:

        async def work(index: int) -> None:
            for turn in range(16):
                text = f"{prefix}/{index}/{turn}"
                answer = await made.send(command("ECHO", text), 10)
                ends["calls"] += 1
                ends["answers"] += answer == text.encode()

        tasks = [asyncio.create_task(work(index)) for index in range(500)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(rng.random() * 0.004)
            for task in rng.sample(tasks, 12):
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [one for one in results if one and not isinstance(one, asyncio.CancelledError)]
        assert not failures
        assert sum(isinstance(one, asyncio.CancelledError) for one in results) > 50
        assert ends["calls"] == ends["answers"]
        # Every place is free again, and every connection brings its own answers.
        key = fresh_key()
        replies = await asyncio.gather(
            *[made.send(command("ECHO", f"{key}/{i}"), 5) for i in range(100)]
        )
        assert replies == [f"{key}/{i}".encode() for i in range(100)]
        assert _connected(server) <= 10 + 2
    await asyncio.sleep(0.05)
    assert _connected(server) <= 2


@pytest.mark.asyncio
async def test_a_cancelled_call_gives_back_its_place(proxy: FaultProxy) -> None:
    async with async_transport(proxy.url, connections=1) as made:
        for fault in (faults.STALL, faults.delay(200), faults.DROP):
            proxy.next(fault)
            task = asyncio.create_task(made.send(command("INCR", fresh_key()), 5))
            waiting = asyncio.create_task(made.send(command("ECHO", "me"), 5))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await waiting == b"me"


@pytest.mark.asyncio
async def test_no_free_connection_is_not_sent_async(server: servers.Server) -> None:
    key = fresh_key()
    async with async_transport(server.url, connections=1) as made:
        blocked = asyncio.create_task(made.send(command("BLPOP", key, 5), 6))
        await asyncio.sleep(0.1)
        with pytest.raises(NotSent, match="max_connections"):
            await made.send(command("PING"), 0.1)
        server.ask("LPUSH", key, "x")
        assert await blocked == [key.encode(), b"x"]


def test_a_second_event_loop_is_refused(server: servers.Server) -> None:
    made = open_async_transport(server.url, timeout=1, max_connections=2)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(made.open())
        with pytest.raises(PolicyError, match="another event loop"):
            second.run(made.send(command("PING"), 1))
        assert first.run(made.send(command("PING"), 1)) == b"PONG"
        first.run(made.aclose())
        assert second.run(made.send(command("PING"), 1)) == b"PONG"
        second.run(made.aclose())


def test_closed_from_another_loop_while_its_own_runs(server: servers.Server) -> None:
    """It is the loop that the connections belong to that closes them, in its own thread."""
    made: Any = open_async_transport(server.url, timeout=2, max_connections=2)
    threads = []
    begun = threading.Event()

    async def work() -> Any:
        await made.open()
        lane = next(iter(made._pools.values()))._lane
        close = lane.drop
        lane.drop = lambda: (threads.append(threading.get_ident()), close())
        waiting = made.start(command("BLPOP", fresh_key(), 20), 30)
        asyncio.get_running_loop().call_later(0.05, begun.set)
        with pytest.raises(MaybeSent, match="let go"):
            await waiting
        return threading.get_ident()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(asyncio.run, work())
        assert begun.wait(10)
        asyncio.run(made.aclose())
        assert [working.result(10)] == threads


# --- Injected clients


def test_an_injected_client_lends_its_settings(server: servers.Server) -> None:
    client = redis.Redis(
        unix_socket_path=server.socket, db=3, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )
    key = fresh_key()
    made = open_transport(None, timeout=1, max_connections=2, client=client)
    made.open()
    assert made.url == f"unix://{server.socket}?db=3"
    assert made.send(command("SET", key, "x"), 1) == b"OK"
    assert client.get(key) == "x"
    made.close()
    client.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"retry": None, "retry_on_error": [OSError]}, {"retry": Retry(NoBackoff(), 1)}],
    ids=["default", "on error", "once"],
)
def test_an_injected_client_must_not_retry(options: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"retry=Retry\(NoBackoff\(\), 0\)"):
        open_transport(None, timeout=1, max_connections=2, client=redis.Redis(**options))
    with pytest.raises(PolicyError, match=r"redis.asyncio.Redis\(\.\.\., retry"):
        open_async_transport(
            None, timeout=1, max_connections=2, client=redis.asyncio.Redis(**options)
        )


def test_only_the_right_kind_of_client_is_taken() -> None:
    for client in (object(), redis.asyncio.Redis()):
        with pytest.raises(PolicyError, match=r"must be a redis\.Redis, not"):
            open_transport(None, timeout=1, max_connections=2, client=client)
    with pytest.raises(PolicyError, match=r"must be a redis\.asyncio\.Redis, not Redis"):
        open_async_transport(None, timeout=1, max_connections=2, client=redis.Redis())


def test_fakeredis_works_injected() -> None:
    fake = fakeredis.FakeRedis()
    made = open_transport(None, timeout=1, max_connections=2, client=fake)
    made.open()
    packed = pack("SET", "a", 1) + pack("INCR", "a")
    assert made.send(Request(packed, b"a", 2), 1) == [b"OK", 2]
    assert isinstance(made.send(command("LPUSH", "a", 1), 1), ResponseError)
    assert made.send(Request(pack("EVAL", "return KEYS[1]", 1, "k"), b"k"), 1) == b"k"
    assert fake.get("a") == b"2"
    made.close()


@pytest.mark.asyncio
async def test_fakeredis_works_injected_async() -> None:
    server = fakeredis.FakeServer()
    fake = fakeredis.FakeAsyncRedis(server=server)
    made = open_async_transport(None, timeout=1, max_connections=2, client=fake)
    await made.open()
    packed = pack("SET", "a", 1) + pack("INCR", "a")
    assert await made.send(Request(packed, b"a", 2), 1) == [b"OK", 2]
    assert isinstance(await made.send(command("LPUSH", "a", 1), 1), ResponseError)
    server.connected = False
    with pytest.raises(NotSent):
        await made.send(command("GET", "a"), 1)
    server.connected = True
    assert await made.send(command("GET", "a"), 1) == b"2"
    await made.aclose()
    await fake.aclose()
