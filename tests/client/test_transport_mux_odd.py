"""The shared connection when something is wrong in this process: a request, the loop, a bug."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from asyncio.selector_events import _SelectorSocketTransport as Transport  # type: ignore
from typing import Any

import pytest

from meterd.transport import MaybeSent, NotSent, Request
from meterd.transport.aiomux import AsyncMux
from meterd.transport.lane import Lane
from tests.client.scripted import Peer, echoes, mux_of, scripted, silence, until
from tests.client.transport_tools import async_transport, command, listener

pytestmark = pytest.mark.asyncio


async def test_a_request_that_is_not_bytes_fails_alone_and_shifts_nothing() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, told: complaints.append(told))
    async with scripted() as server, async_transport(server.url, 50) as made:
        await made.send(command("ECHO", "first"), 5)
        for wrong in ("text", None, 5):
            before = echoes(made, *range(5))
            bad = asyncio.create_task(made.send(Request(wrong, None), 5))  # type: ignore[arg-type]
            behind = echoes(made, *range(5, 10))
            ends = await asyncio.gather(*before, bad, *behind, return_exceptions=True)
            assert isinstance(ends.pop(5), TypeError)
            assert ends == [b"%d" % index for index in range(10)]
        assert len(server.peers) == 1
    assert not complaints


async def test_replies_that_came_while_the_loop_was_blocked_are_in_time() -> None:
    """Even if they are more than asyncio reads at once."""
    reply = b"$2000\r\n" + b"x" * 2000 + b"\r\n"
    sent = threading.Event()

    def serve(peer: socket.socket) -> None:
        peer.recv(1000)
        peer.sendall(b"+PONG\r\n")
        asked = b""
        while asked.count(b"GET") < 30:
            asked += peer.recv(1000)
        peer.sendall(reply * 30)
        sent.set()
        peer.recv(1)

    with listener(serve) as url:
        async with async_transport(url, 50) as made:
            await made.open()
            mux_of(made)._lane._transport.max_size = 5000  # type: ignore[union-attr]
            calls = [made.start(command("GET", "x"), 0.4) for _ in range(30)]
            await asyncio.sleep(0)
            assert sent.wait(20)
            time.sleep(0.5)
            assert await asyncio.gather(*calls) == [b"x" * 2000] * 30


async def test_a_server_that_never_stops_talking_keeps_nobody_beyond_the_deadline() -> None:
    push = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"
    async with scripted(silence) as server, async_transport(server.url, 50) as made:
        (call,) = echoes(made, "x", timeout=0.5)
        await server.commands(1)
        over = False

        async def chatter() -> None:
            while not over:
                server.peers[0].say(push * 100)
                await asyncio.sleep(0)

        chattering = asyncio.create_task(chatter())
        began = time.monotonic()
        with pytest.raises(MaybeSent):
            await call
        assert time.monotonic() - began < 5
        over = True
        await chattering


@pytest.mark.parametrize(
    ("what", "where"),
    [
        (AsyncMux, "answered"),
        (AsyncMux, "_write"),
        (AsyncMux, "_flush"),
        (AsyncMux, "_hindrance"),
        (Lane, "write"),
        (Lane, "expire"),
        (Lane, "retire"),
        (Lane, "at_rest"),
        (Transport, "write"),
    ],
)
async def test_a_bug_ends_calls_but_hangs_none(
    monkeypatch: pytest.MonkeyPatch, what: Any, where: str
) -> None:
    """Whatever is raised where nothing can be: typed ends, and later calls are served."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, told: None)
    tripped = []

    def answer(peer: Peer, words: list[bytes]) -> bytes | None:
        return b"+" + words[-1] + b"\r\n"

    def trip(*args: Any) -> None:
        tripped.append(args)
        raise ZeroDivisionError

    async with scripted(answer) as server, async_transport(server.url, 4) as made:
        await made.send(command("ECHO", "first"), 5)
        if where in ("expire", "_hindrance", "retire"):
            server.answer = silence
        with monkeypatch.context() as patched:
            patched.setattr(what, where, trip)
            # Those with more time are there still when something is done about the first three.
            calls = [*echoes(made, *range(3), timeout=0.2), *echoes(made, *range(3, 8), timeout=1)]
            await until(lambda: tripped)
            await asyncio.sleep(0)
        server.answer = answer
        async with asyncio.timeout(5):
            ends = await asyncio.gather(*calls, return_exceptions=True)
        for index, end in enumerate(ends):
            assert end == b"%d" % index or isinstance(end, (MaybeSent, NotSent)), end
        assert await made.send(command("ECHO", "more"), 5) == b"more"
