"""The connections to one node, shared by the tasks of one event loop; bounded, first come first.

For connections that only redis-py knows how to use: fakes, and subclasses of an injected client.
All others are shared by many calls at once, see `aiomux`.

A call that does not read all of its replies, cancelled ones included, closes its connection.
Between taking a place and giving it back every await is guarded: no cancellation can leak one.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeAlias

from redis.exceptions import InvalidResponse, RedisError

from meterd.transport.base import MaybeSent, Node, NotSent
from meterd.transport.dial import Dialer, connect_failure
from meterd.transport.replies import is_reply, spoils

# What a fork left behind, connections above all. To close them here would unhook the parent's from
# its own selector, which the two processes share.
inherited: list[Any] = []


class AsyncLink:
    """One open redis-py connection, used by one call at a time."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fresh(self) -> bool:
        """False when the server closed it, or when something unread waits in it."""
        connection = self._connection
        try:
            if not connection.is_connected or await connection.can_read():
                return False
        except (RedisError, OSError):
            return False
        reader = getattr(connection, "_reader", None)
        if reader is not None and reader.at_eof():
            return False
        # What the kernel knows already, even if the loop had no chance to notice.
        get_info = getattr(getattr(connection, "_writer", None), "get_extra_info", None)
        peer = get_info("socket") if get_info is not None else None
        if peer is None or not hasattr(select, "poll"):
            return True
        poller = select.poll()
        poller.register(peer.fileno(), select.POLLIN)
        return not poller.poll(0)

    async def exchange(self, packed: bytes, replies: int) -> Any:
        """The reply (a list when `replies > 1`), errors as values; `NotSent` if writing failed."""
        try:
            await self._connection.send_packed_command([packed])
        except (RedisError, OSError) as error:
            if replies > 1:
                raise
            # A part of the request at most got out, and no server runs a part of a command.
            raise NotSent(
                f"the connection closed before the request was written ({error})"
            ) from error
        if replies == 1:
            return await self._read()
        return [await self._read() for _ in range(replies)]

    async def _read(self) -> Any:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except RedisError as error:
            if is_reply(error):
                return error
            raise

    async def take_over(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The streams, with nothing unread in them; redis-py lets go of them."""
        connection = self._connection
        if await connection.can_read():
            raise RedisError(f"it spoke unasked: {await self._read()}")
        streams = (connection._reader, connection._writer)
        connection._reader = connection._writer = None
        return streams

    async def close(self) -> None:
        """Never raises, never waits."""
        try:
            await self._connection.disconnect(nowait=True)
        except (RedisError, OSError, RuntimeError):
            return

    def drop(self) -> None:
        """Close without waiting for anything; the loop must not be running."""
        connection = self._connection
        transport = getattr(getattr(connection, "_writer", None), "transport", None)
        if transport is not None:
            transport.abort()  # first, or the writer complains when it is let go
        connection._reader = connection._writer = None


Greeting = Callable[[AsyncLink, str], Awaitable[None]]
_Idle: TypeAlias = deque[AsyncLink | None]


class AsyncPool:
    """At most `size` connections to `node`; `idle` holds None for each that may still be opened."""

    def __init__(
        self, dialer: Dialer, node: Node, size: int, greeting: Greeting | None = None
    ) -> None:
        self.node = node
        self._where = str(node)
        self._dialer = dialer
        self._size = size
        self._greeting = greeting
        self._idle: _Idle = deque([None] * size)
        self._waiting: deque[asyncio.Future[tuple[AsyncLink | None, _Idle]]] = deque()

    async def call(self, packed: bytes, replies: int, deadline: float) -> Any:
        """Write and read on one connection; raises `NotSent` or `MaybeSent`."""
        link: AsyncLink | None = None
        idle = self._idle
        steps: list[str] = []
        left = deadline - monotonic()
        if left <= 0:
            raise NotSent(f"no time left to call {self._where}")
        try:
            async with asyncio.timeout(left):
                link, idle = await self._checkout(steps)
                reply = await link.exchange(packed, replies)
        except TimeoutError:
            if link is not None:
                raise MaybeSent(f"no reply from {self._where} in time") from None
            if steps:
                raise NotSent(f"cannot connect to {self._where} in time") from None
            raise NotSent(
                f"all {self._size} connections to {self._where} are busy; "
                "raise max_connections, or call less at once"
            ) from None
        except InvalidResponse as error:
            raise MaybeSent(f"{self._where} sent what no Redis sends ({error})") from error
        except (RedisError, OSError) as error:
            raise MaybeSent(f"lost the connection to {self._where} ({error})") from error
        else:
            if not (isinstance(reply, Exception) and spoils(reply)):
                await self._give_back(idle, link)
                link = None
            return reply
        finally:
            if link is not None:
                await link.close()
                await self._give_back(idle, None)

    async def close(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""
        old, self._idle = self._idle, deque([None] * self._size)
        while self._waiting and self._idle:
            await self._give_back(self._idle, self._idle.pop())
        for link in old:
            if link is not None:
                await link.close()

    def drop(self) -> None:
        """Close what is idle without I/O; the loop must not be running."""
        old, self._idle = self._idle, deque([None] * self._size)
        for link in old:
            if link is not None:
                link.drop()

    def abandon(self) -> None:
        """After a fork: keep the parent's connections from being collected, and touch nothing."""
        inherited.append(self._idle)

    async def _checkout(self, steps: list[str]) -> tuple[AsyncLink, _Idle]:
        """A connection at rest; `steps` tells the caller how far it got if time runs out."""
        while True:
            idle = self._idle
            if idle:
                link = idle.pop()
            else:
                link, idle = await self._queue_up()
            if link is None:
                steps.append("connect")
                return await self._connect(idle), idle
            try:
                fresh = await link.fresh()
            except BaseException:
                await self._give_back(idle, None)
                raise
            if fresh:
                return link, idle
            await link.close()
            await self._give_back(idle, None)

    async def _connect(self, idle: _Idle) -> AsyncLink:
        connection = None
        try:
            connection = self._dialer.connection(self.node, None)
            await connection.connect()
            link = AsyncLink(connection)
            if self._greeting is not None:
                await self._greeting(link, self._where)
            return link
        except BaseException as error:
            if connection is not None:
                await AsyncLink(connection).close()
            await self._give_back(idle, None)
            if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
                raise
            raise connect_failure(error, self._where) from error

    async def _queue_up(self) -> tuple[AsyncLink | None, _Idle]:
        place: asyncio.Future[tuple[AsyncLink | None, _Idle]]
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except BaseException:
            if place.done() and not place.cancelled():
                # Served and cancelled at the same moment: pass it on.
                link, idle = place.result()
                await self._give_back(idle, link)
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    async def _give_back(self, idle: _Idle, link: AsyncLink | None) -> None:
        """Free one place; the first in the queue gets it. Awaits nothing that suspends."""
        if idle is not self._idle:
            if link is not None:
                await link.close()
            return
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result((link, idle))
                return
        if link is None:
            idle.appendleft(None)
        else:
            idle.append(link)
