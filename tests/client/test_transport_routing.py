"""Many servers: redirects of a real cluster, failovers under a real sentinel, and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AskError, ResponseError

from meterd.errors import PolicyError, Unavailable
from meterd.transport import MaybeSent, Node, NotSent, Request, open_async_transport, pack
from meterd.transport.routing import key_slot
from tests.client.transport_tools import async_transport, command, fresh_key, transport
from tests.support import servers
from tests.support.servers import Cluster, Sentinel, Server
from tests.support.single import free_port


@pytest.fixture(scope="module", params=["valkey-9.1", "redis-6.2"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    with Cluster(request.param) as started:
        yield started


def other_than(cluster: Cluster, node: Server) -> Server:
    return next(one for one in cluster.nodes if one is not node)


def errors(node: Server, name: str) -> int:
    """How many error replies of that name the node has given since it started."""
    stats = node.info("errorstats").get(f"errorstat_{name}", {"count": 0})
    return int(stats["count"])


@pytest.mark.parametrize("protocol", [2, 3])
def test_every_key_reaches_its_owner(cluster: Cluster, either: Any, protocol: int) -> None:
    made = either(f"redis+cluster://{cluster.nodes[0].address}?protocol={protocol}")
    made.open()
    assert sorted(node.port for node in made.nodes()) == sorted(n.port or 0 for n in cluster.nodes)
    prefix = fresh_key()
    for index in range(60):
        assert made.send(command("SET", f"{prefix}:{index}", index), 2) == b"OK"
    held = [len(node.ask("KEYS", f"{prefix}:*")) for node in cluster.nodes]
    assert sum(held) == 60
    assert min(held) > 0
    assert made.send(Request(pack("DBSIZE"), None), 2) > 0
    sizes = [made.send_to(node, Request(pack("DBSIZE"), None), 2) for node in made.nodes()]
    assert sum(sizes) >= 60
    # What goes to one node is not routed: the redirect comes back as it is.
    key = f"{prefix}:0"
    port = cluster.node_of(key_slot(key.encode())).port
    wrong = next(node for node in made.nodes() if node.port != port)
    assert isinstance(made.send_to(wrong, command("GET", key), 2), AskError)


def test_a_moved_slot_is_followed_once(cluster: Cluster, either: Any) -> None:
    key = fresh_key()
    slot = key_slot(key.encode())
    made = either(cluster.url)
    assert made.send(command("INCR", key), 2) == 1
    source = cluster.node_of(slot)
    target = other_than(cluster, source)
    cluster.begin_migration(slot, target)
    cluster.finish_migration(slot, target)
    before = errors(source, "MOVED")
    assert [made.send(command("INCR", key), 2) for _ in range(5)] == [2, 3, 4, 5, 6]
    if cluster.name != "redis-6.2":
        assert errors(source, "MOVED") == before + 1


def test_several_replies_follow_a_moved_slot_together(cluster: Cluster, either: Any) -> None:
    key = fresh_key()
    slot = key_slot(key.encode())
    made = either(cluster.url)
    request = Request(pack("INCR", key) + pack("INCR", key), key.encode(), 2)
    assert made.send(request, 2) == [1, 2]
    target = other_than(cluster, cluster.node_of(slot))
    cluster.begin_migration(slot, target)
    cluster.finish_migration(slot, target)
    assert made.send(request, 2) == [3, 4]


def test_ask_is_followed_without_changing_the_map(cluster: Cluster, either: Any) -> None:
    tag = fresh_key()
    slot = key_slot(tag.encode())
    moved, stays = f"{{{tag}}}moved", f"{{{tag}}}stays"
    made = either(cluster.url)
    for key in (moved, stays):
        assert made.send(command("INCR", key), 2) == 1
    source = cluster.node_of(slot)
    target = other_than(cluster, source)
    cluster.begin_migration(slot, target)
    source.ask("MIGRATE", "127.0.0.1", target.port or 0, moved, 0, 5000)
    assert [made.send(command("INCR", moved), 2) for _ in range(3)] == [2, 3, 4]
    assert [made.send(command("INCR", stays), 2) for _ in range(3)] == [2, 3, 4]
    assert made.send(command("INCR", f"{{{tag}}}new"), 2) == 1
    assert isinstance(made.send(command("LPUSH", moved, 1), 2), ResponseError)
    cluster.finish_migration(slot, target)
    assert made.send(command("MGET", moved, stays, f"{{{tag}}}new"), 2) == [b"4", b"4", b"1"]


def test_tryagain_waits_for_the_slot(cluster: Cluster, either: Any) -> None:
    tag = fresh_key()
    slot = key_slot(tag.encode())
    here, there = f"{{{tag}}}here", f"{{{tag}}}there"
    made = either(cluster.url)
    assert made.send(command("MSET", here, 1, there, 1), 2) == b"OK"
    source = cluster.node_of(slot)
    target = other_than(cluster, source)
    cluster.begin_migration(slot, target)
    source.ask("MIGRATE", "127.0.0.1", target.port or 0, there, 0, 5000)
    started = time.monotonic()
    with pytest.raises(NotSent, match="Multiple keys request during rehashing of slot"):
        made.send(command("DEL", here, there), 0.3)
    assert 0.2 < time.monotonic() - started < 10
    finishing = threading.Timer(0.3, cluster.finish_migration, (slot, target))
    finishing.start()
    assert made.send(command("DEL", here, there), 5) == 2
    finishing.join()


def test_nothing_is_lost_or_doubled_while_slots_move(cluster: Cluster) -> None:
    """Threads count up while their slot moves key by key, back and forth."""
    tag, stop = fresh_key(), threading.Event()
    slot = key_slot(tag.encode())
    with transport(cluster.url, timeout=5) as made, ThreadPoolExecutor(4) as pool:

        def work(index: int) -> int:
            done = 0
            while not stop.is_set():
                key = f"{{{tag}}}{index}:{done % 7}"
                assert made.send(command("INCR", key), 5) == done // 7 + 1
                done += 1
            return done

        working = [pool.submit(work, index) for index in range(4)]
        try:
            for _ in range(3):
                target = other_than(cluster, cluster.node_of(slot))
                cluster.begin_migration(slot, target)
                while cluster.migrate_keys(slot, target, 3):
                    time.sleep(0.01)
                cluster.finish_migration(slot, target)
                if cluster.name == "valkey-9.1":
                    cluster.move_slot_atomically(slot, other_than(cluster, target))
        finally:
            stop.set()
        assert all(one.result() > 20 for one in working)


@pytest.mark.parametrize("how", ["send", "start"])
@pytest.mark.asyncio
async def test_tasks_lose_nothing_while_slots_move(cluster: Cluster, how: str) -> None:
    """The same on shared connections, one to each node, with cancelled calls among them."""
    tag, moving = fresh_key(), True
    slot = key_slot(tag.encode())
    rng = random.Random(3)

    async with async_transport(cluster.url, 20, timeout=5) as made:
        call = getattr(made, how)

        async def work(index: int) -> int:
            done = 0
            while moving:
                key = f"{{{tag}}}{index}:{done % 7}"
                assert await call(command("INCR", key), 5) == done // 7 + 1
                done += 1
                echo = f"{index}/{done}"
                assert await call(command("ECHO", echo), 5) == echo.encode()
                if rng.random() < 0.1:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(rng.random() * 0.001):
                            await call(command("GET", key), 5)
            return done

        async with asyncio.TaskGroup() as group:
            working = [group.create_task(work(index)) for index in range(30)]
            for _ in range(3):
                target = other_than(cluster, cluster.node_of(slot))
                await asyncio.to_thread(cluster.begin_migration, slot, target)
                while await asyncio.to_thread(cluster.migrate_keys, slot, target, 3):
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(cluster.finish_migration, slot, target)
            moving = False
        assert all(one.result() > 20 for one in working)
        assert len(made._pools) <= len(cluster.nodes)


@pytest.mark.asyncio
async def test_a_started_call_that_finds_a_new_map_forgets_who_left_it(cluster: Cluster) -> None:
    key = fresh_key()
    slot = key_slot(key.encode())
    async with async_transport(cluster.url, timeout=5) as made:
        assert await made.start(command("INCR", key), 5) == 1
        stranger = Node("127.0.0.1", 1)
        made._pools[stranger] = made._new_pool(stranger, False)
        target = other_than(cluster, cluster.node_of(slot))
        await asyncio.to_thread(cluster.begin_migration, slot, target)
        while await asyncio.to_thread(cluster.migrate_keys, slot, target, 3):
            pass
        await asyncio.to_thread(cluster.finish_migration, slot, target)
        await asyncio.sleep(0.15)  # since the last look at the map
        assert await made.start(command("INCR", key), 5) == 2
        assert stranger not in made._pools


@pytest.mark.asyncio
async def test_a_close_that_is_cancelled_closes_every_connection(cluster: Cluster) -> None:
    async with async_transport(cluster.url, timeout=5) as made:
        for node in await made.nodes():
            await made.send_to(node, Request(pack("PING"), None), 5)
        lanes = [pool._lane for pool in made._pools.values()]
        closing = asyncio.create_task(made.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        async with asyncio.timeout(5):
            for lane in lanes:
                await lane.closed


def test_a_started_call_is_let_go_with_its_transport(cluster: Cluster) -> None:
    """Where a call that was not sent would be tried again: not without the loop."""
    made: Any = open_async_transport(cluster.url, timeout=2, max_connections=2)
    key = fresh_key()

    async def begin() -> list[asyncio.Future[Any]]:
        await made.send(command("GET", key), 2)
        for pool in made._pools.values():
            if pool._lane is not None:
                pool._lane.full = True
        return [made.start(command("GET", key), 2) for _ in range(5)]

    async def end(calls: list[asyncio.Future[Any]]) -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    with asyncio.Runner() as runner:
        calls = runner.run(begin())
        made.abandon()
        ends = runner.run(end(calls))
    assert all(isinstance(one, (NotSent, MaybeSent)) for one in ends), ends
    assert len(made._pools) == 0


def test_a_dead_node_is_not_sent_and_comes_back() -> None:
    with Cluster() as own, transport(own.url) as made:
        made.open()
        key = fresh_key()
        slot = key_slot(key.encode())
        assert made.send(command("SET", key, 1), 2) == b"OK"
        owner = own.node_of(slot)
        alive = other_than(own, owner)
        elsewhere = next(f"k{i}" for i in range(999) if own.node_of(_slot(i)) is alive)
        owner.kill()
        started = time.monotonic()
        with pytest.raises(NotSent, match="cannot connect to"):
            made.send(command("GET", key), 0.5)
        assert time.monotonic() - started < 10
        servers.wait_until("cluster down", lambda: "cluster_state:fail" in _info(alive))
        with pytest.raises(NotSent, match="does not serve this slot now: The cluster is down"):
            made.send(command("GET", elsewhere), 0.5)
        owner.restart()
        assert made.send(command("GET", key), 20) is None
        assert made.send(command("GET", elsewhere), 20) is None
        for node in own.nodes:
            node.kill()
        with pytest.raises(NotSent):
            made.send(command("GET", key), 0.3)
        with pytest.raises(Unavailable, match="cannot reach"):
            made.open()


def _slot(index: int) -> int:
    return key_slot(b"k%d" % index)


def _info(node: Server) -> str:
    return str(node.ask("CLUSTER", "INFO"))


# --- Sentinel


def test_a_failover_is_followed(either: Any) -> None:
    with Sentinel() as group:
        made = either(group.url, timeout=3)
        made.open()
        assert made.kind == "sentinel"
        key = fresh_key()
        for turn in range(2):
            assert made.send(command("INCR", key), 3) == turn * 2 + 1
            assert [node.port for node in made.nodes()] == [group.primary.port]
            servers.wait_until(
                "the replica's copy",
                lambda: group.replica.ask("GET", key) == group.primary.ask("GET", key),
            )
            group.failover()
            assert made.send(command("INCR", key), 5) == turn * 2 + 2
        group.primary.kill()
        ends = []
        for _ in range(3):
            with pytest.raises((NotSent, MaybeSent)) as caught:
                made.send(command("INCR", key), 0.2)
            ends.append(caught.type)
        assert ends[-1] is NotSent
        assert made.send(command("INCR", key), 20) == 5


def test_an_unknown_service_is_named(either: Any) -> None:
    with Sentinel() as group:
        made = either(f"redis+sentinel://{group.sentinel.address}/nobody")
        with pytest.raises(Unavailable, match="does not know the service 'nobody'"):
            made.open()
    with pytest.raises(NotSent, match="no sentinel named a primary"):
        either("redis+sentinel://127.0.0.1:1/x").send(command("GET", "a"), 0.3)


# --- TLS


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, Path]]:
    """Debian's Redis, the only one of the matrix that is built with TLS."""
    if not servers.available("redis-7.0") or not shutil.which("openssl"):
        pytest.skip("no server with TLS, or no openssl, is installed")
    home = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(home / "key.pem"), "-out", str(home / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    files = {"cert-file": "cert.pem", "key-file": "key.pem", "ca-cert-file": "cert.pem"}
    options = [part for name, file in files.items() for part in (f"--tls-{name}", str(home / file))]
    options += ["--tls-auth-clients", "no", "--tls-replication", "no"]
    with servers.start("redis-7.0", *options, tcp=True) as started:
        for attempts_left in range(9, -1, -1):
            port = free_port()
            try:
                started.ask("CONFIG", "SET", "tls-port", port)
                break
            except ResponseError:  # somebody else was faster
                if not attempts_left:
                    raise
        yield started, f"rediss://localhost:{port}", home / "cert.pem"


@pytest.mark.parametrize("protocol", [2, 3])
def test_tls(tls_server: tuple[Server, str, Path], either: Any, protocol: int) -> None:
    server, url, certificate = tls_server
    made = either(f"{url}?ssl_ca_certs={certificate}&protocol={protocol}", max_connections=1)
    made.open()
    key = fresh_key()
    assert [made.send(command("INCR", key), 2) for _ in range(20)] == list(range(1, 21))
    value = b"x" * 1_000_000
    assert made.send(command("SET", key, value), 2) == b"OK"
    assert made.send(command("GET", key), 2) == value
    first = made.send(command("CLIENT", "ID"), 2)
    assert made.send(command("CLIENT", "ID"), 2) == first, "an idle connection is used again"
    server.ask("CLIENT", "KILL", "ID", first)
    assert made.send(command("CLIENT", "ID"), 2) != first
    started = time.monotonic()
    with pytest.raises(MaybeSent, match="in time"):
        made.send(command("BLPOP", key + "list", 5), 0.2)
    assert time.monotonic() - started < 4
    assert made.send(command("PING"), 2) == b"PONG"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.asyncio
async def test_tls_shared_by_tasks(tls_server: tuple[Server, str, Path], protocol: int) -> None:
    server, url, certificate = tls_server
    url = f"{url}?ssl_ca_certs={certificate}&protocol={protocol}"
    async with async_transport(url, 20, timeout=10) as made:

        async def work(index: int) -> None:
            for turn in range(20):
                text = f"{index}/{turn}/".encode() + bytes(50_000 if turn == index % 20 else 0)
                assert await made.send(command("ECHO", text), 10) == text

        first = await made.send(command("CLIENT", "ID"), 2)
        await asyncio.gather(*(work(index) for index in range(60)))
        assert await made.send(command("CLIENT", "ID"), 2) == first
        server.ask("CLIENT", "KILL", "ID", first)
        assert await made.send(command("CLIENT", "ID"), 2) != first


def test_tls_problems_are_named(tls_server: tuple[Server, str, Path], either: Any) -> None:
    server, url, _ = tls_server
    with pytest.raises(Unavailable, match=r"(?i)certificate"):
        either(url).open()
    either(f"{url}?ssl_cert_reqs=none").open()
    with pytest.raises(Unavailable, match="if the server does not speak TLS, write redis://"):
        either(f"rediss://localhost:{server.port}", timeout=0.5).open()
    with pytest.raises((Unavailable, PolicyError), match=r"rediss://|what no Redis sends"):
        either(url.replace("rediss", "redis")).open()
