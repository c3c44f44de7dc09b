"""One server: how a call may end, whatever the network does."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest
from redis.exceptions import ResponseError

from meterd.errors import PolicyError, Unavailable
from meterd.transport import (
    MaybeSent,
    NotSent,
    Rejected,
    Request,
    pack,
)
from tests.client.transport_tools import (
    command,
    fresh_key,
    listener,
    transport,
)
from tests.support import proxy as faults
from tests.support import servers
from tests.support.proxy import FaultProxy


@pytest.mark.matrix
@pytest.mark.parametrize("protocol", [2, 3])
def test_replies_are_raw(matrix_server: servers.Server, either: Any, protocol: int) -> None:
    made = either(f"{matrix_server.url}?protocol={protocol}")
    made.open()
    key = fresh_key()
    assert made.send(command("SET", key, 5), 1) == b"OK"
    assert made.send(command("GET", key), 1) == b"5"
    assert made.send(command("INCRBY", key, 10**15), 1) == 10**15 + 5
    assert made.send(command("GET", key + "none"), 1) is None
    assert made.send(command("MGET", key, key + "none"), 1) == [b"1000000000000005", None]
    error = made.send(command("LPUSH", key, "x"), 1)
    assert isinstance(error, ResponseError)
    assert "WRONGTYPE" in str(error)
    (node,) = made.nodes()
    assert made.send_to(node, command("GET", key), 1) == b"1000000000000005"


def test_several_commands_are_one_write(server: servers.Server, either: Any) -> None:
    made, key = either(server.url), fresh_key()
    packed = pack("SET", key, 1) + pack("LPUSH", key, 1) + pack("INCR", key)
    first, second, third = made.send(Request(packed, key.encode(), 3), 1)
    assert (first, third) == (b"OK", 2)
    assert isinstance(second, ResponseError)


def test_large_requests_and_replies(server: servers.Server, either: Any) -> None:
    made, key = either(server.url), fresh_key()
    value = os.urandom(5_000_000)
    assert made.send(command("SET", key, value), 5) == b"OK"
    assert made.send(command("GET", key), 5) == value
    assert made.send(command("DEL", key), 5) == 1


def test_pushes_are_not_replies(server: servers.Server) -> None:
    with transport(f"{server.url}?protocol=3", connections=1) as made:
        key = fresh_key()
        made.send(command("CLIENT", "TRACKING", "ON"), 1)
        made.send(command("GET", key), 1)
        # The invalidation of our own write arrives before its reply, on the same connection.
        packed = pack("SET", key, 1) + pack("GET", key)
        assert made.send(Request(packed, None, 2), 1) == [b"OK", b"1"]


# --- Opening


def test_open_tells_a_dead_server_from_a_wrong_url(either: Any) -> None:
    with pytest.raises(Unavailable, match=r"cannot reach redis://127\.0\.0\.1:1/0"):
        either("redis://127.0.0.1:1").open()
    with pytest.raises(Unavailable, match="No such file"):
        either("unix:///nowhere/at.all").open()
    with pytest.raises(NotSent, match=r"cannot connect to 127\.0\.0\.1:1"):
        either("redis://127.0.0.1:1").send(command("GET", "x"), 1)


def test_wrong_credentials_are_named(either: Any) -> None:
    with servers.start(password="right") as guarded:
        either(guarded.url).open()
        for url in (f"unix://:wrong@{guarded.socket}", f"unix://{guarded.socket}"):
            with pytest.raises(PolicyError, match="refused the login") as caught:
                either(url).open()
            assert "wrong@" not in str(caught.value)
            with pytest.raises(Rejected):
                either(url).send(command("GET", "x"), 1)
        with pytest.raises(PolicyError, match="DB index is out of range"):
            either(guarded.url + "?db=99").open()


def test_what_is_no_redis_is_refused(either: Any) -> None:
    def http(one: socket.socket) -> None:
        one.recv(1000)
        one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listener(http) as url, pytest.raises(PolicyError, match="what no Redis sends"):
        either(url).open()


@pytest.mark.parametrize(
    "garbage",
    [b"-MOVED here\r\n", b"-ASK 1 y\r\n", b"%1\r\n*1\r\n+a\r\n+b\r\n", b"$x\r\n", b"\x00" * 99],
)
def test_garbage_is_a_lost_reply(either: Any, garbage: bytes) -> None:
    def mad(one: socket.socket) -> None:
        while one.recv(1000):
            one.sendall(garbage)

    with listener(mad) as url, pytest.raises(MaybeSent, match="what no Redis sends"):
        either(url).send(command("GET", "x"), 5)


def test_a_server_that_hangs_up_may_want_tls(either: Any) -> None:
    def hang_up(one: socket.socket) -> None:
        one.recv(1000)
        one.close()

    with listener(hang_up) as url, pytest.raises(Unavailable, match="cannot reach"):
        either(url).open()


def test_a_cluster_node_asks_for_the_right_url(either: Any) -> None:
    started = servers.start(servers.DEFAULT, "--cluster-enabled", "yes")
    with started as node, pytest.raises(Rejected, match=r"redis\+cluster://"):
        either(node.url).send(command("SET", "x", 1), 1)


def test_a_plain_server_is_no_cluster(either: Any) -> None:
    with servers.start(tcp=True) as alone:
        with pytest.raises(PolicyError, match="not part of a cluster"):
            either(alone.url.replace("redis://", "redis+cluster://")).open()
        with pytest.raises(PolicyError, match="not a sentinel"):
            either(f"redis+sentinel://{alone.address}/mymaster").open()


def test_a_replica_serves_no_writes(either: Any, server: servers.Server) -> None:
    with servers.start() as replica:
        replica.ask("REPLICAOF", "127.0.0.1", 1)
        made = either(replica.url)
        made.open()
        with pytest.raises(NotSent, match="read only replica"):
            made.send(command("SET", "x", 1), 1)
        script = "return redis.call('SET', KEYS[1], 1)"
        with pytest.raises(NotSent, match="read only replica"):
            made.send(Request(pack("EVAL", script, 1, "x"), b"x"), 1)


# --- Lost replies


LOSING = [faults.DROP, faults.STALL, faults.CUT_BEFORE, faults.CUT_AFTER, faults.CUT_MID_REPLY]


@pytest.mark.parametrize("fault", LOSING, ids=lambda fault: fault.kind)
def test_a_lost_reply_is_maybe_sent_and_arrives_once(
    proxy: FaultProxy, server: servers.Server, either: Any, fault: faults.Fault
) -> None:
    made, key = either(proxy.url, max_connections=1), fresh_key()
    assert made.send(command("INCR", key), 1) == 1
    proxy.next(fault)
    with pytest.raises(MaybeSent):
        made.send(command("INCR", key), 0.3)
    expected = 1 if fault is faults.CUT_BEFORE else 2
    assert server.ask("GET", key) == str(expected)
    # The next answer is its own, not the one that was lost.
    assert made.send(command("INCRBY", key, 100), 1) == expected + 100


def test_a_late_reply_is_never_anothers_answer(proxy: FaultProxy, either: Any) -> None:
    made, key = either(proxy.url, max_connections=1), fresh_key()
    proxy.next(faults.delay(300))
    with pytest.raises(MaybeSent, match="in time"):
        made.send(command("INCR", key), 0.1)
    assert made.send(command("GET", key + "other"), 1) is None
    time.sleep(0.4)
    assert made.send(command("GET", key + "other"), 1) is None


def test_a_second_copy_of_a_reply_is_noticed(proxy: FaultProxy, either: Any) -> None:
    made, key = either(proxy.url, max_connections=1), fresh_key()
    proxy.next(faults.DUPLICATE)
    assert made.send(command("INCR", key), 1) == 1
    assert made.send(command("GET", key), 1) == b"1"
    assert proxy.stats["connections"] == 2


def test_data_that_arrives_while_idle_spoils_a_connection(either: Any) -> None:
    talk = threading.Event()

    def serve(one: socket.socket) -> None:
        one.recv(1000)
        one.sendall(b"+first\r\n")
        talk.wait(5)
        one.sendall(b"+stale\r\n")
        talk.clear()
        one.recv(1000)

    with listener(serve) as url:
        made = either(url, max_connections=1)
        assert made.send(command("GET", "a"), 1) == b"first"
        talk.set()
        while talk.is_set():
            time.sleep(0.01)
        assert made.send(command("GET", "b"), 1) == b"first"


def test_a_trickle_is_bounded_by_the_deadline(either: Any) -> None:
    def serve(one: socket.socket) -> None:
        one.recv(1000)
        one.sendall(b"$1000\r\n")
        while True:
            one.sendall(b"x")
            time.sleep(0.05)

    with listener(serve) as url:
        started = time.monotonic()
        with pytest.raises(MaybeSent, match="in time"):
            either(url).send(command("GET", "a"), 0.4)
        assert 0.35 < time.monotonic() - started < 20


def test_a_server_that_never_reads_is_bounded_by_the_deadline(either: Any) -> None:
    def serve(one: socket.socket) -> None:
        time.sleep(30)

    with listener(serve) as url:
        started = time.monotonic()
        with pytest.raises(MaybeSent):
            either(url).send(command("SET", "a", b"x" * 30_000_000), 0.4)
        assert 0.35 < time.monotonic() - started < 20


def test_a_restart_between_calls_goes_unnoticed(either: Any) -> None:
    with servers.start() as own:
        made = either(own.url)
        assert [made.send(command("PING"), 1) for _ in range(3)] == [b"PONG"] * 3
        own.restart()
        assert made.send(command("PING"), 1) == b"PONG"
        own.kill()
        with pytest.raises(NotSent, match="cannot connect"):
            made.send(command("PING"), 1)
        own.restart()
        assert made.send(command("PING"), 1) == b"PONG"


def test_connections_killed_while_idle_are_replaced(server: servers.Server, either: Any) -> None:
    made = either(server.url, max_connections=1)
    for _ in range(5):
        own_id = made.send(command("CLIENT", "ID"), 1)
        server.ask("CLIENT", "KILL", "ID", own_id)
        assert made.send(command("PING"), 1) == b"PONG"


def test_used_again_after_close(server: servers.Server, either: Any) -> None:
    made = either(server.url)
    assert made.send(command("PING"), 1) == b"PONG"
    made.close()
    made.close()
    assert made.send(command("PING"), 1) == b"PONG"
