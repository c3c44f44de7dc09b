"""A connection that breaks, is opened, is closed: what becomes of the calls it carries."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from meterd.transport import MaybeSent, NotSent, open_async_transport, pack
from meterd.transport.aiomux import AsyncMux
from meterd.transport.aiopool import AsyncPool
from tests.client.scripted import Peer, echoes, mux_of, scripted, silence, start, until
from tests.client.transport_tools import async_transport, command, fresh_key
from tests.support import servers

pytestmark = pytest.mark.asyncio


# --- Broken


@pytest.mark.parametrize("how", ["hang_up", "reset"])
async def test_a_lost_connection_is_told_to_those_whose_requests_were_written(how: str) -> None:
    async with scripted(silence) as server, async_transport(server.url, 4) as made:
        tasks = echoes(made, *range(8))
        await server.commands(4)
        server.peers[0].say(b"+0\r\n+1")
        await server.commands(5)
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        getattr(server.peers[0], how)()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        written = [words[-1] for words in server.peers[0].commands]
        assert written == [b"0", b"1", b"2", b"3", b"4"]
        for index, end in enumerate(ends):
            if index and b"%d" % index in written:
                assert isinstance(end, MaybeSent)
            else:
                assert end == b"%d" % index
        assert sum(len(peer.commands) for peer in server.peers) == 8, "nothing was sent twice"


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"*-5\r\n", b"-MOVED here\r\n", b"\x00" * 99],
)
async def test_garbage_closes_the_connection(garbage: bytes) -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        tasks = echoes(made, *range(3))
        await server.commands(3)
        server.peers[0].say(b"+0\r\n" + garbage + b"+1\r\n+2\r\n")
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert ends[0] == b"0"
        for end in ends[1:]:
            assert isinstance(end, MaybeSent)
            assert "what no Redis sends" in str(end)
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        assert await made.send(command("ECHO", "x"), 1) == b"x"
        assert (len(server.peers), server.open) == (2, 1)


async def test_a_reply_too_many_closes_the_connection() -> None:
    async with scripted() as server, async_transport(server.url, 50) as made:
        assert await made.send(command("ECHO", "x"), 1) == b"x"
        server.peers[0].say(b"+more\r\n")
        assert await made.send(command("ECHO", "y"), 1) == b"y"
        await until(lambda: server.open == 1)
        assert len(server.peers) == 2


async def test_a_server_that_cannot_serve_is_left_and_others_keep_their_answers() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        tasks = echoes(made, *range(3))
        await server.commands(3)
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        server.peers[0].say(b"+0\r\n-READONLY You can't write against a read only replica.\r\n")
        with pytest.raises(NotSent, match="read only"):
            await tasks[1]
        assert await made.send(command("ECHO", "new"), 1) == b"new"
        server.peers[0].say(b"+2\r\n")
        assert await asyncio.gather(tasks[0], tasks[2]) == [b"0", b"2"]
        await until(lambda: server.open == 1)
        assert len(server.peers[0].commands) == 3


async def test_what_the_kernel_did_not_take_is_sent_on_a_new_connection(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a connection may become known by the write itself."""
    async with async_transport(server.url) as made:
        key = fresh_key()
        own_id = await made.send(command("CLIENT", "ID"), 1)
        lane = mux_of(made)._lane
        assert lane is not None
        monkeypatch.setattr(lane, "at_rest", lambda: True)
        server.ask("CLIENT", "KILL", "ID", own_id)
        assert await asyncio.gather(*(made.send(command("INCR", key), 1) for _ in range(9)))
        assert server.ask("GET", key) == "9"


async def test_a_server_that_only_hangs_up_is_not_dialled_in_circles() -> None:
    def leave(peer: Peer, words: list[bytes]) -> None:
        peer.hang_up()

    async with scripted(leave) as server, async_transport(server.url, 50) as made:
        for turn in range(1, 4):
            ends = await asyncio.gather(*echoes(made, *range(20)), return_exceptions=True)
            assert all(isinstance(end, (MaybeSent, NotSent)) for end in ends)
            assert len(server.peers) == turn


# --- Connecting


async def test_all_who_wait_share_one_attempt_to_connect() -> None:
    async with scripted() as server, async_transport(server.url, 50) as made:
        assert len(await asyncio.gather(*echoes(made, *range(50)))) == 50
        assert len(server.peers) == 1
    async with async_transport("redis://127.0.0.1:1", 50) as made:
        ends = await asyncio.gather(*echoes(made, *range(20)), return_exceptions=True)
        assert all(isinstance(end, NotSent) and "cannot connect" in str(end) for end in ends)
        assert len({id(end) for end in ends}) == 20


async def test_an_attempt_to_connect_ends_and_begins_again() -> None:
    async with scripted(silence) as server:
        url = f"{server.url}?protocol=3"  # the first word is ours, and has to be answered
        async with async_transport(url, 50, timeout=0.15) as made:
            short = echoes(made, 0, timeout=0.05)
            long = echoes(made, 1, timeout=5)
            (end,) = await asyncio.gather(*short, return_exceptions=True)
            assert isinstance(end, NotSent)
            assert "cannot connect" in str(end)
            assert "in time" in str(end)
            await until(lambda: len(server.peers) == 2)
            server.answer = lambda peer, words: (
                b"%1\r\n+proto\r\n:3\r\n" if words[0] == b"HELLO" else b"+" + words[-1] + b"\r\n"
            )
            assert await asyncio.gather(*long) == [b"1"]
            assert all(words[-1] != b"0" for peer in server.peers for words in peer.commands)


async def test_a_caller_who_leaves_does_not_take_the_attempt_along() -> None:
    async with scripted() as server, async_transport(server.url, 50) as made:
        first, second = echoes(made, 1, 2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"2"
        assert [words[-1] for words in server.peers[0].commands] == [b"2"]


# --- Closing


async def test_what_is_under_way_is_finished_after_close() -> None:
    async with scripted(silence) as server:
        made: Any = open_async_transport(server.url, timeout=60, max_connections=4)
        made.depth = 1
        tasks = echoes(made, *range(10), timeout=60)
        await server.commands(4)
        began = time.monotonic()
        await made.aclose()
        assert time.monotonic() - began < 30
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        server.peers[0].say(b"+0\r\n+1\r\n+2\r\n+3\r\n")
        assert await asyncio.gather(*tasks) == [b"%d" % index for index in range(10)]
        await until(lambda: server.open == 0)
        assert len(server.peers) == 1


async def test_close_waits_until_idle_connections_are_closed(server: servers.Server) -> None:
    made = open_async_transport(server.url, timeout=2, max_connections=4)
    own_id = await made.send(command("CLIENT", "ID"), 1)
    await made.aclose()
    assert f"id={own_id} " not in server.ask("CLIENT", "LIST")  # the loop has not run since
    connecting = start(made, "PING")
    await asyncio.sleep(0)
    connecting.cancel()
    await made.aclose()
    assert len(asyncio.all_tasks()) == 2  # this test, and the cancelled call
    await asyncio.gather(connecting, return_exceptions=True)


async def test_close_gives_a_silent_server_up_at_the_deadline() -> None:
    async with scripted(silence) as server:
        made: Any = open_async_transport(server.url, timeout=2, max_connections=2)
        made.depth = 1
        tasks = echoes(made, *range(3), timeout=0.5)
        await server.commands(2)
        await made.aclose()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [MaybeSent, MaybeSent, NotSent]
        await until(lambda: server.open == 0)


async def test_a_loop_that_ends_with_calls_pending_leaves_nothing_open() -> None:
    def leave_pending(url: str) -> None:
        async def main() -> None:
            made = open_async_transport(url, timeout=2, max_connections=2)
            echoes(made, *range(5), timeout=60)
            await asyncio.sleep(0.1)

        asyncio.run(main())

    async with scripted(silence) as server:
        await asyncio.to_thread(leave_pending, server.url)
        await until(lambda: server.peers and server.open == 0)
    gc.collect()


# --- Whose connection it is


async def test_who_brings_a_connection_class_has_it_used(server: servers.Server) -> None:
    """A subclass may do anything when it sends and reads, so each call gets one to itself."""
    sent = []

    class Watched(redis.asyncio.connection.UnixDomainSocketConnection):
        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            sent.append(command)
            await super().send_packed_command(command, check_health)

    for kind, pool in ((Watched, AsyncPool), (None, AsyncMux)):
        client = redis.asyncio.Redis(unix_socket_path=server.socket, retry=Retry(NoBackoff(), 0))
        if kind is not None:
            client.connection_pool.connection_class = kind
        made = open_async_transport(None, timeout=1, max_connections=2, client=client)
        key = fresh_key()
        assert sorted(
            await asyncio.gather(*(made.send(command("INCR", key), 1) for _ in range(20)))
        ) == list(range(1, 21))
        assert [type(one) for one in made._pools.values()] == [pool]  # type: ignore[attr-defined]
        await made.aclose()
        await client.aclose()
    assert len([one for one in sent if one == [pack("INCR", key)]]) == 0
    assert len(sent) >= 20
