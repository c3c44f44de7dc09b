"""A socket and hiredis: what is left when a client is left out.

Calls meterd's function with ready arguments, packs the commands and parses the replies with
hiredis, decodes nothing. The async one keeps as many commands in flight as there are callers, in
one write and without a future per call: what one event loop can do at most.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import hiredis

from . import AsyncCalls, AsyncPeer, Calls, Peer, Setting
from .redis_py import COSTS, packed_calls, words

NAME = "hiredis, one at a time"
ASYNC_NAME = "hiredis, pipelined"


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def arguments(setting: Setting, cost: str) -> list[tuple[bytes, ...]]:
    return [tuple(words(command)) for command in packed_calls(setting, cost)]


@contextmanager
def blocking(setting: Setting) -> Iterator[Calls]:
    one, four = (arguments(setting, cost) for cost in COSTS.values())
    pack: Any = hiredis.pack_command
    reader = hiredis.Reader()
    with socket.create_connection(address(setting.url)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(command: tuple[bytes, ...]) -> Any:
            connection.sendall(pack(command))
            while (reply := reader.gets()) is False:
                reader.feed(connection.recv(65536))
            return checked(reply)

        yield Calls(one=lambda n: ask(one[n]), four=lambda n: ask(four[n]))


def checked(reply: Any) -> Any:
    if isinstance(reply, hiredis.ReplyError):
        raise RuntimeError(f"error reply: {reply}")
    return reply


class Pipeline(asyncio.Protocol):
    """One batch of commands at a time, written at once; done when the last reply is parsed."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._left = 0
        self._done: asyncio.Future[None] | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            checked(reply)
            self._left -= 1
        if self._left == 0 and self._done is not None:
            self._done.set_result(None)
            self._done = None

    def batch(self, packed: bytes, count: int) -> asyncio.Future[None]:
        self._left = count
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(packed)
        return self._done

    def close(self) -> None:
        self._transport.close()


@asynccontextmanager
async def pipelined(setting: Setting) -> AsyncIterator[AsyncCalls]:
    """Its calls are whole batches of `setting.callers`."""
    one, four = (arguments(setting, cost) for cost in COSTS.values())
    pack: Any = hiredis.pack_command
    loop = asyncio.get_running_loop()
    _, pipeline = await loop.create_connection(Pipeline, *address(setting.url))
    size = setting.callers

    def batch(commands: list[tuple[bytes, ...]], first: int) -> asyncio.Future[None]:
        many = len(commands)
        packed = b"".join([pack(commands[(first + i) % many]) for i in range(size)])
        return pipeline.batch(packed, size)

    yield AsyncCalls(one=lambda n: batch(one, n), four=lambda n: batch(four, n))
    pipeline.close()


SYNC = [Peer(NAME, blocking, role="floor")]
ASYNC = [AsyncPeer(ASYNC_NAME, pipelined, role="batch")]
