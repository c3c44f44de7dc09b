"""Many calls on one connection: order, bounds, deadlines, and what a broken one means."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from meterd.transport import MaybeSent, NotSent, Request, pack
from meterd.transport.base import Rejected
from tests.client.scripted import Peer, echoes, mux_of, scripted, silence, start, until
from tests.client.transport_tools import async_transport, command, fresh_key
from tests.support import servers

pytestmark = pytest.mark.asyncio


# --- In order, and together


async def test_the_calls_of_a_turn_are_a_few_writes_on_one_connection() -> None:
    async with scripted() as server, async_transport(server.url, 50) as made:
        await made.send(command("ECHO", "first"), 1)
        (peer,) = server.peers
        for count, writes in ((1, 1), (10, 1), (50, 3)):
            before = len(peer.chunks)
            texts = [f"{count}/{index}" for index in range(count)]
            assert await asyncio.gather(*echoes(made, *texts)) == [t.encode() for t in texts]
            assert len(peer.chunks) <= before + writes
        assert len(server.peers) == 1


async def test_every_kind_of_reply_finds_its_call(server: servers.Server) -> None:
    async with async_transport(server.url, 32) as made:
        key = fresh_key()

        async def several(index: int) -> None:
            name = f"{key}:{index}"
            packed = pack("SET", name, index) + pack("LPUSH", name, 1) + pack("INCR", name)
            ok, error, number = await made.send(Request(packed, b"", 3), 5)
            assert (ok, number) == (b"OK", index + 1)
            assert "WRONGTYPE" in str(error)

        async def single(index: int) -> None:
            name = f"{key}:s{index}"
            assert await made.send(command("GET", name), 5) is None
            assert await made.send(command("INCRBY", name, index), 5) == index
            assert await made.send(command("MGET", name, "none:"), 5) == [b"%d" % index, None]
            error = await made.send(
                command("EVAL", "return redis.error_reply(ARGV[1])", 0, f"E{index} x"), 5
            )
            assert str(error).startswith(f"E{index} x")
            large = os.urandom(70_000)
            assert await made.send(command("ECHO", large), 5) == large

        await asyncio.gather(*(work(i) for i in range(100) for work in (several, single)))


async def test_replies_that_come_byte_by_byte() -> None:
    replies: list[tuple[bytes, Any]] = [
        (b"+simple\r\n", b"simple"),
        (b":42\r\n", 42),
        (b"$0\r\n\r\n", b""),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"$12\r\n\r\n$3\r\n+a\r\n\r\n\r\n", b"\r\n$3\r\n+a\r\n\r\n"),
        (b"*3\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n+b\r\n", [1, [b"a", None], b"b"]),
        (b"%1\r\n+k\r\n#t\r\n", {b"k": True}),
        (b"_\r\n", None),
    ]
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        for _ in range(3):
            tasks = echoes(made, *range(len(replies)))
            seen = len(server.peers[0].commands) if server.peers else 0
            await server.commands(seen + len(replies))
            tasks[5].cancel()
            for raw, _ in replies:
                for byte in raw:
                    server.peers[0].say(bytes([byte]))
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(ends.pop(5), asyncio.CancelledError)
            assert ends == [expected for at, (_, expected) in enumerate(replies) if at != 5]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_pushes_are_not_replies_to_anyone(protocol: int) -> None:
    push = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"

    def answer(peer: Peer, words: list[bytes]) -> bytes:
        if words[0] == b"HELLO":
            return b"%1\r\n+proto\r\n:3\r\n"
        return push + b"+" + words[-1] + b"\r\n" + push

    async with scripted(answer) as server:
        url = f"{server.url}?protocol={protocol}"
        async with async_transport(url, 10) as made:
            for _ in range(3):
                assert await asyncio.gather(*echoes(made, 1, 2, 3)) == [b"1", b"2", b"3"]
                server.peers[0].say(push)
                await asyncio.sleep(0.01)
            assert len(server.peers) == 1


async def test_a_push_before_its_own_reply(server: servers.Server) -> None:
    async with async_transport(f"{server.url}?protocol=3") as made:
        key = fresh_key()
        await made.send(command("CLIENT", "TRACKING", "ON"), 1)
        await made.send(command("GET", key), 1)
        packed = pack("SET", key, 1) + pack("GET", key)
        assert await made.send(Request(packed, None, 2), 1) == [b"OK", b"1"]


# --- Bounded


async def test_no_more_than_max_connections_calls_are_with_the_server() -> None:
    async with scripted(silence) as server, async_transport(server.url, 4) as made:
        tasks = echoes(made, *range(10))
        await server.commands(4)
        (late,) = echoes(made, "late", timeout=0.1)
        with pytest.raises(NotSent, match=r"4 calls .* raise max_connections"):
            await late
        (peer,) = server.peers
        assert len(peer.commands) == 4
        peer.say(b"+0\r\n")
        await server.commands(5)
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        peer.say(b"+1\r\n+2\r\n+3\r\n+4\r\n")
        assert await asyncio.gather(*tasks) == [b"%d" % index for index in range(10)]
        assert [words[-1] for words in peer.commands] == [b"%d" % index for index in range(10)]


async def test_those_who_give_up_waiting_leave_nothing_behind() -> None:
    async with scripted(silence) as server, async_transport(server.url, 2) as made:
        first = echoes(made, 0, 1)
        await server.commands(2)
        mux = mux_of(made)
        for _ in range(5):
            waiting = echoes(made, *range(400))
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await until(lambda: not mux._queue)
        server.peers[0].say(b"+0\r\n+1\r\n")
        assert await asyncio.gather(*first) == [b"0", b"1"]
        assert len(server.peers[0].commands) == 2


async def test_a_server_that_stops_reading_stops_the_writing() -> None:
    async with scripted() as server, async_transport(server.url, 8) as made:
        await made.send(command("ECHO", "x"), 1)
        (peer,) = server.peers
        peer.stop_reading()
        large = [start(made, "ECHO", bytes(1_000_000), timeout=0.5) for _ in range(40)]
        ends = await asyncio.gather(*large, return_exceptions=True)
        kinds = [type(end) for end in ends]
        # What the kernel took may have been executed; the rest never left.
        assert 1 <= kinds.count(MaybeSent) <= 32
        assert kinds.count(MaybeSent) + kinds.count(NotSent) == 40
        mux = mux_of(made)
        await until(lambda: not mux._aside and (mux._lane is None or not mux._lane.owed))


# --- Cancelled


async def test_a_call_cancelled_before_it_is_written_is_never_written() -> None:
    async with scripted() as server, async_transport(server.url, 50) as made:
        await made.send(command("ECHO", "x"), 1)
        tasks = echoes(made, *range(20))
        await asyncio.sleep(0)  # every task has made its call; the turn is not over yet
        for task in tasks[::2]:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert ends[1::2] == [b"%d" % index for index in range(1, 20, 2)]
        assert all(isinstance(end, asyncio.CancelledError) for end in ends[::2])
        assert [words[-1] for words in server.peers[0].commands[1:]] == ends[1::2]


async def test_a_cancelled_call_keeps_its_place_in_line() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        tasks = echoes(made, *range(6))
        await server.commands(6)
        for index in (0, 2, 5):
            tasks[index].cancel()
        server.peers[0].say(b"".join(b"+%d\r\n" % index for index in range(6)))
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [ends[index] for index in (1, 3, 4)] == [b"1", b"3", b"4"]
        (after,) = echoes(made, 6)
        await server.commands(7)
        server.peers[0].say(b"+6\r\n")
        assert await after == b"6"
        assert len(server.peers) == 1


async def test_a_reply_of_several_parts_is_swallowed_whole() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        given_up = asyncio.create_task(made.send(Request(pack("A") * 3, None, 3), 5))
        (kept,) = echoes(made, "kept")
        await server.commands(4)
        peer = server.peers[0]
        peer.say(b"+a\r\n")
        await asyncio.sleep(0.005)
        given_up.cancel()
        peer.say(b"+b\r\n-ERR c\r\n+kept\r\n")
        assert await kept == b"kept"


# --- Deadlines


async def test_each_call_has_its_own_deadline() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        began = time.monotonic()
        took: dict[float, float] = {}

        async def call(seconds: float) -> None:
            with pytest.raises(MaybeSent, match="in time"):
                await made.send(command("ECHO", "x"), seconds)
            took[seconds] = time.monotonic() - began

        long = echoes(made, "before", "between", timeout=60)
        await asyncio.gather(*(call(seconds) for seconds in (0.9, 0.3, 0.6)))
        assert all(seconds <= spent < seconds + 20 for seconds, spent in took.items()), took
        assert len(server.peers) == 1
        assert not any(one.done() for one in long)
        for one in long:
            one.cancel()


async def test_a_late_reply_is_nobodys_and_shifts_nothing() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        (short,) = echoes(made, "short", timeout=0.5)
        (long,) = echoes(made, "long", timeout=5)
        with pytest.raises(MaybeSent):
            await short
        server.peers[0].say(b"+short\r\n")
        (next_one,) = echoes(made, "next")
        await server.commands(3)
        server.peers[0].say(b"+long\r\n+next\r\n")
        assert await long == b"long"
        assert await next_one == b"next"
        assert len(server.peers) == 1


async def test_a_stalled_connection_holds_up_nobody_else() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        (patient,) = echoes(made, "patient", timeout=5)
        (impatient,) = echoes(made, "impatient", timeout=0.5)
        with pytest.raises(MaybeSent):
            await impatient
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        assert await made.send(command("ECHO", "other"), 1) == b"other"
        assert len(server.peers) == server.open == 2
        # It was only slow: whoever waited on gets the answer, and then it is closed.
        server.peers[0].say(b"+patient\r\n+impatient\r\n")
        assert await patient == b"patient"
        await until(lambda: server.open == 1)
        assert await made.send(command("ECHO", "more"), 1) == b"more"
        assert len(server.peers) == 2


async def test_a_stalled_connection_is_noticed_when_callers_are_cancelled() -> None:
    """An application with timeouts of its own, far below ours."""
    async with scripted(silence) as server, async_transport(server.url, 2) as made:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await made.send(command("ECHO", "x"), 60)
        assert len(server.peers) == 3
        first = echoes(made, 1, 2, timeout=60)
        waiting = echoes(made, 3, timeout=60)
        await server.commands(2, peer=3)
        for task in first:
            task.cancel()
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        assert await asyncio.gather(*waiting) == [b"3"]
        await until(lambda: server.open == 1)


async def test_connections_that_stall_one_after_the_other_are_bounded() -> None:
    async with scripted(silence) as server, async_transport(server.url, 3, depth=8) as made:
        patient = []
        for _ in range(6):
            patient += echoes(made, "patient", timeout=60)
            with pytest.raises((MaybeSent, NotSent)):
                await made.send(command("ECHO", "impatient"), 0.06)
        assert len(server.peers) == 3
        for task in patient:
            task.cancel()
        server.answer = lambda peer, words: b"+" + words[-1] + b"\r\n"
        assert await made.send(command("ECHO", "other"), 5) == b"other"
        await until(lambda: server.open == 1)


async def test_a_server_that_is_silent_for_long_is_not_dialled_again_and_again() -> None:
    async with scripted(silence) as server, async_transport(server.url, 50, depth=8) as made:
        until_then = time.monotonic() + 1.5
        while time.monotonic() < until_then:
            calls = [made.start(command("ECHO", "x"), 60) for _ in range(50)]
            await asyncio.sleep(0.001)
            for call in calls:
                call.cancel()
        assert 2 <= len(server.peers) <= 12
        assert server.open <= 3
        mux = mux_of(made)
        assert sum(len(lane.owed) for lane in mux._lanes()) + len(mux._queue) <= 450


async def test_the_window_is_some_calls_for_each_connection_allowed() -> None:
    async with scripted(silence) as server, async_transport(server.url, 2, depth=8) as made:
        tasks = echoes(made, *range(40))
        await server.commands(16)
        await asyncio.sleep(0.01)
        assert len(server.peers) == 1
        assert len(server.peers[0].commands) == 16
        for task in tasks:
            task.cancel()


# --- Begun at once


async def test_a_call_that_is_started_is_a_future_with_the_same_ends(
    server: servers.Server,
) -> None:
    async with async_transport(server.url) as made:
        key = fresh_key()
        for _ in range(2):  # the first time there is no connection yet
            assert await made.start(command("ECHO", key), 5) == key.encode()
            assert await made.start(command("GET", key), 5) is None
            error = await made.start(command("LPUSH"), 5)
            assert "wrong number" in str(error)
            packed = pack("ECHO", 1) + pack("ECHO", 2)
            assert await made.start(Request(packed, None, 2), 5) == [b"1", b"2"]
            with pytest.raises(NotSent):
                await made.start(command("INCR", key), 0)
        started = [made.start(command("INCR", key), 5) for _ in range(100)]
        for index in range(0, 100, 10):
            started[index].cancel()
        ends = await asyncio.gather(*started, return_exceptions=True)
        counts = [end for end in ends if isinstance(end, int)]
        assert counts == sorted(counts)
        assert len(counts) == 90


async def test_what_was_started_is_turned_away_or_lost_as_what_was_sent() -> None:
    answers = iter([b"-MOVED 1 127.0.0.1:1\r\n", b"-LOADING not yet\r\n", b""])

    def answer(peer: Peer, words: list[bytes]) -> bytes | None:
        return b"+PONG\r\n" if words[0] == b"PING" else next(answers)

    async with scripted(answer) as server, async_transport(server.url) as made:
        await made.open()
        with pytest.raises(Rejected, match="part of a cluster"):
            await made.start(command("GET", "k"), 5)
        with pytest.raises(NotSent, match="cannot serve now"):
            await made.start(command("GET", "k"), 5)
        await made.open()
        with pytest.raises(MaybeSent, match="in time"):
            await made.start(command("GET", "k"), 0.5)
