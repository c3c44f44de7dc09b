"""A server whose every byte is the test's decision, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import hiredis

from meterd.transport.aiomux import AsyncMux
from tests.client.transport_tools import command

# What a peer says to one command (its words); None: nothing, for now.
Answer = Callable[["Peer", list[bytes]], bytes | None]


def echo(peer: Peer, words: list[bytes]) -> bytes:
    """The last word as a bulk string."""
    return b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1])


def silence(peer: Peer, words: list[bytes]) -> None:
    """Nothing."""


class Peer(asyncio.Protocol):
    """One accepted connection: the `commands` that came, and the `chunks` they came in."""

    def __init__(self, server: Scripted) -> None:
        self.commands: list[list[bytes]] = []
        self.chunks: list[bytes] = []
        self.open = True
        self._server = server
        self._reader = hiredis.Reader()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.peers.append(self)

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)
        self._reader.feed(data)
        said = []
        while (words := self._reader.gets()) is not False:
            self.commands.append(words)
            said.append(self._server.answer(self, words) or b"")
        self.say(b"".join(said))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False

    def say(self, data: bytes) -> None:
        if data:
            self._transport.write(data)

    def hang_up(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """Close with an error instead of an end."""
        taken = self._transport.get_extra_info("socket")
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def stop_reading(self) -> None:
        self._transport.pause_reading()


class Scripted:
    """`peers`: every connection so far. `answer` may be changed at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.peers: list[Peer] = []
        self.url = ""

    @property
    def open(self) -> int:
        return sum(peer.open for peer in self.peers)

    async def commands(self, count: int, peer: int = 0) -> list[list[bytes]]:
        """Those of one peer, as soon as there are so many."""
        await until(lambda: len(self.peers) > peer and len(self.peers[peer].commands) >= count)
        return self.peers[peer].commands


@contextlib.asynccontextmanager
async def scripted(answer: Answer = echo) -> AsyncIterator[Scripted]:
    made = Scripted(answer)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(made), "127.0.0.1", 0)
    made.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for peer in made.peers:
            peer._transport.abort()
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def start(made: Any, *words: str | bytes, timeout: float = 5) -> asyncio.Task[Any]:
    return asyncio.create_task(made.send(command(*words), timeout))


def echoes(made: Any, *texts: object, timeout: float = 5) -> list[asyncio.Task[Any]]:
    return [start(made, "ECHO", str(text), timeout=timeout) for text in texts]


def mux_of(made: Any) -> AsyncMux:
    (mux,) = made._pools.values()
    assert isinstance(mux, AsyncMux)
    return mux
