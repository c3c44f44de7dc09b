"""The tools of the other tests do what they say: servers, clusters, sentinels, faults."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.crc import key_slot

from tests.support import proxy as faulty
from tests.support import servers
from tests.support.proxy import FaultProxy, command_of, delay, frame_end
from tests.support.servers import Cluster, Sentinel, Server, client_of, start

INSTALLED = servers.installed()


def test_matrix_server_is_what_it_says(matrix_server: Server) -> None:
    facts = matrix_server.info("server")
    kind, _, version = matrix_server.name.partition("-")
    assert facts[f"{kind}_version"].startswith(version + ".")
    assert facts["process_id"] == matrix_server.pid


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_password(tcp: bool) -> None:
    with start(password="p w:/@%", tcp=tcp) as server:
        assert server.client().ping()
        with pytest.raises(redis.AuthenticationError):
            client_of(server.url.replace(":p%20w", ":wrong")).ping()


def test_appendonly_survives_a_kill_and_nothing_survives_without_it() -> None:
    for appendonly in (True, False):
        with start(appendonly=appendonly, tcp=True) as server:
            client, pid = server.client(), server.pid
            client.set("key", "value")
            server.kill()
            assert server.pid == 0
            with pytest.raises(redis.ConnectionError):
                client.get("key")
            server.restart()
            assert server.pid != pid
            assert client.get("key") == (b"value" if appendonly else None)
            server.stop()
            server.restart()
            assert client.get("key") == (b"value" if appendonly else None)
        assert not os.path.exists(server.dir)


def test_restart_after_a_death_nobody_noticed() -> None:
    with start() as server:
        for again in (server.restart, server.kill, server.restart):
            if server.pid:
                os.kill(server.pid, signal.SIGKILL)
                time.sleep(0.05)
            again()
        assert server.ask("PING") is True


@pytest.mark.parametrize("name", INSTALLED)
def test_cluster_moves_a_slot_key_by_key(name: str) -> None:
    with Cluster(name) as cluster:
        key = "{a}1"
        slot = key_slot(key.encode())
        src = cluster.node_of(slot)
        dst, other = (node for node in cluster.nodes if node is not src)
        for index in range(5):
            src.ask("SET", f"{{a}}{index}", index)
        cluster.begin_migration(slot, dst)
        assert cluster.migrate_keys(slot, dst, 2) == 2
        with pytest.raises(redis.exceptions.AskError):
            src.ask("GET", "{a}missing")
        cluster.finish_migration(slot, dst)
        assert cluster.node_of(slot) is dst
        assert dst.ask("GET", "{a}4") == "4"
        for node in (src, other):
            with pytest.raises(redis.exceptions.MovedError):
                node.ask("GET", key)


def test_cluster_moves_a_slot_atomically() -> None:
    with Cluster("valkey-9.1") as cluster:
        slot = key_slot(b"{a}")
        src = cluster.node_of(slot)
        dst = next(node for node in cluster.nodes if node is not src)
        src.ask("SET", "{a}", "here")
        for target in (dst, src, dst):
            cluster.move_slot_atomically(slot, target)
            assert cluster.node_of(slot) is target
            assert target.ask("GET", "{a}") == "here"
        assert cluster.url.count("127.0.0.1:") == 3


def test_cluster_moves_a_slot_atomically_under_writes() -> None:
    with Cluster("valkey-9.1") as cluster:
        slot = key_slot(b"{a}")
        src = cluster.node_of(slot)
        dst = next(node for node in cluster.nodes if node is not src)
        clients = {node.port: node.client() for node in cluster.nodes}
        stop, done = threading.Event(), [0]

        def write() -> None:
            at = src.port
            while not stop.is_set():
                try:
                    clients[at].incr("{a}")
                    done[0] += 1
                except redis.exceptions.MovedError as moved:
                    at = moved.port

        writer = threading.Thread(target=write)
        writer.start()
        try:
            cluster.move_slot_atomically(slot, dst)
            cluster.move_slot_atomically(slot, src)
        finally:
            stop.set()
            writer.join()
        assert int(src.ask("GET", "{a}")) == done[0] > 0


@pytest.mark.parametrize("name", INSTALLED)
def test_sentinel_fails_over(name: str) -> None:
    with Sentinel(name) as group:
        first = group.primary
        for turn in range(2):
            old, new = group.primary, group.replica
            old.ask("SET", "key", turn)
            assert old.ask("WAIT", 1, 5000) == 1
            group.failover()
            assert group.primary is new
            assert new.ask("GET", "key") == str(turn)
            with pytest.raises(redis.ReadOnlyError):
                old.ask("SET", "key", "other")
        assert group.primary is first


@pytest.fixture(params=[False, True], ids=["unix", "tcp"])
def target(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start(tcp=request.param) as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    server.admin.flushall()
    with FaultProxy(server) as made:
        yield made


Connect = Callable[..., redis.Redis]


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Connect]:
    made: list[redis.Redis] = []

    def connect(timeout_s: float = 5.0) -> redis.Redis:
        client = client_of(proxy.url, socket_timeout=timeout_s, single_connection_client=True)
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


def test_proxy_passes_everything_through(target: Server) -> None:
    with FaultProxy(target) as proxy, client_of(proxy.url) as client:
        big = os.urandom(300_000)
        client.set("big", big)
        assert client.get("big") == big
        pipe = client.pipeline(transaction=True)
        for index in range(200):
            pipe.rpush("list", index)
        pipe.lrange("list", 0, -1)
        assert len(pipe.execute()[-1]) == 200
        assert client.execute_command("EVAL", "return {1,{2,false},'x'}", 0) == [1, [2, None], b"x"]
        assert proxy.stats["requests"] == proxy.stats["replies"] == 2 + 203 + 1
    with FaultProxy(target) as proxy, client_of(proxy.url, protocol=3) as client:
        client.hset("hash", mapping={"a": 1, "b": 2})
        assert client.hgetall("hash") == {b"a": b"1", b"b": b"2"}
    assert not os.path.exists(proxy.path)
    proxy.close()


def test_drop(proxy: FaultProxy, connect: Connect, server: Server) -> None:
    client = connect(0.2)
    client.ping()
    proxy.drop_next(2)
    for _ in range(2):
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
    assert client.incr("n") == 3
    assert proxy.stats["drop"] == 2


def test_stall(proxy: FaultProxy, connect: Connect, server: Server) -> None:
    client = connect(0.2)
    proxy.next(faulty.PASS, faulty.STALL)
    pipe = client.pipeline(transaction=False)
    for _ in range(3):
        pipe.incr("n")
    with pytest.raises(redis.TimeoutError):
        pipe.execute()
    assert proxy.stats["replies"] == 1
    servers.wait_until("all executed", lambda: server.admin.get("n") == "3")
    assert client.incr("n") == 4


@pytest.mark.parametrize(
    ("fault", "executed"),
    [(faulty.CUT_BEFORE, 0), (faulty.CUT_AFTER, 1), (faulty.CUT_MID_REPLY, 1)],
    ids=lambda value: getattr(value, "kind", value),
)
def test_cut(proxy: FaultProxy, connect: Connect, fault: faulty.Fault, executed: int) -> None:
    client = connect()
    proxy.cut_next(fault)
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert client.incr("n") == executed + 1
    assert proxy.stats[fault.kind] == 1
    assert proxy.stats["connections"] == 2


def test_duplicate(proxy: FaultProxy) -> None:
    with client_of(proxy.url) as client:
        connection = client.connection_pool.get_connection()
        proxy.next(faulty.DUPLICATE)
        connection.send_command("INCR", "n")
        assert connection.read_response() == 1
        connection.send_command("INCR", "n")
        assert connection.read_response() == 1
        assert connection.read_response() == 2
        connection.disconnect()


def test_delay_and_trickle(proxy: FaultProxy, connect: Connect) -> None:
    client = connect()
    proxy.next(delay(150), faulty.TRICKLE)
    began = time.monotonic()
    assert client.incr("n") == 1
    assert time.monotonic() - began >= 0.15
    assert client.echo("x" * 100) == b"x" * 100


def test_partition(proxy: FaultProxy, connect: Connect, server: Server) -> None:
    before, during = connect(0.2), connect(0.2)
    before.set("n", 1)
    proxy.partition(True)
    for client in (before, during):
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
    assert proxy.stats["swallowed"] > 0
    proxy.partition(False)
    assert server.admin.get("n") == "1"
    assert before.incr("n") == 2
    assert during.incr("n") == 3


def test_partition_swallows_replies_in_flight(proxy: FaultProxy, connect: Connect) -> None:
    client = connect()
    proxy.next(delay(200))
    timer = threading.Timer(0.05, proxy.partition, [True])
    healing = threading.Timer(0.5, proxy.partition, [False])
    timer.start()
    healing.start()
    with pytest.raises(redis.ConnectionError):  # closed at healing
        client.incr("n")
    assert client.incr("n") == 2


def test_random_faults_depend_on_seed_and_index_alone(proxy: FaultProxy) -> None:
    rates = {faulty.DROP: 0.3, faulty.CUT_AFTER: 0.3}
    proxy.random(7, rates)
    first = [proxy.faults(index) for index in range(200)]
    assert {fault.kind for fault in first} == {"drop", "cut_after", "pass"}
    assert first == [proxy.faults(index) for index in range(200)]
    proxy.random(8, rates)
    assert first != [proxy.faults(index) for index in range(200)]
    proxy.calm()
    assert proxy.faults(0) is faulty.PASS
    with pytest.raises(ValueError, match="more than 1"):
        proxy.random(1, {faulty.DROP: 1.1})


def test_proxy_reports_a_dead_server(target: Server) -> None:
    with FaultProxy(target) as proxy, client_of(proxy.url, socket_timeout=5) as client:
        assert client.ping()
        target.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        target.restart()
        assert client.ping()


def test_proxy_waits_with_a_server_that_hangs() -> None:
    with (
        start() as hanging,
        FaultProxy(hanging) as proxy,
        client_of(proxy.url, socket_timeout=0.2) as client,
    ):
        client.ping()
        os.kill(hanging.pid, signal.SIGSTOP)
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        os.kill(hanging.pid, signal.SIGCONT)
        servers.wait_until("executed late", lambda: hanging.admin.get("n") == "1")


VALUES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":1\r\n",
    b"$3\r\nabc\r\n",
    b"$2\r\n\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
    b"_\r\n",
    b",1.5\r\n",
    b"%1\r\n+k\r\n*1\r\n:1\r\n",
    b"|1\r\n+a\r\n:1\r\n+value\r\n",
    b"~1\r\n:1\r\n",
    b">2\r\n+push\r\n:1\r\n",
    b"=5\r\ntxt:a\r\n",
    b"PING\r\n",
]


@pytest.mark.parametrize("value", VALUES)
def test_frame_end(value: bytes) -> None:
    assert frame_end(b"+x\r\n" + value + b":9\r\n", 4) == 4 + len(value)
    for size in range(len(value)):
        assert frame_end(value[:size], 0) is None


def test_command_of() -> None:
    assert command_of(b"*2\r\n$3\r\nget\r\n$1\r\na\r\n") == "GET"
    assert command_of(b"ping\r\n") == "PING"
