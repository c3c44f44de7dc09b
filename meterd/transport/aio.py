"""The asyncio transports: tasks wait here. What to do next is decided in `routing`.

The twin of `sync`, plus one duty: a transport belongs to one event loop. The calls to a node share
one connection (`aiomux`), unless only redis-py can use it (`aiopool`). What all kinds share is in
`aiobase`.
"""

from __future__ import annotations

import asyncio
from threading import get_ident
from time import monotonic
from typing import Any

from meterd.transport.aiobase import AsyncBase
from meterd.transport.aiomux import AsyncMux
from meterd.transport.aiopool import AsyncLink, AsyncPool
from meterd.transport.base import AsyncTransport, Kind, MaybeSent, Node, NotSent, Request
from meterd.transport.dial import Dialer, dialer, injected
from meterd.transport.routing import (
    ROLE,
    Cluster,
    Sentinels,
    check_role,
    settle,
)
from meterd.transport.url import Endpoint, parse_url


class AsyncStandalone(AsyncBase):
    """One server."""

    kind: Kind = "standalone"

    def __init__(
        self, url: str, node: Node, dial: Dialer, timeout: float, max_connections: int
    ) -> None:
        super().__init__(url, dial, timeout, max_connections)
        self._node = node

    async def send(self, request: Request, timeout: float) -> Any:
        deadline = monotonic() + timeout
        pool = self._pools.get(self._node)
        if pool is None or not self._here():
            pool = await self._pool(self._node)
        reply = await pool.call(request.packed, request.replies, deadline)
        if reply.__class__ is bytes:
            return reply
        return settle(reply, request.replies, self._node)

    def start(self, request: Request, timeout: float) -> asyncio.Future[Any]:
        loop = self._loop
        if (
            request[2] == 1
            and loop is not None
            and get_ident() == self._thread
            and loop.is_running()  # up to here it is `_here()`, without a call
            and (pool := self._pools.get(self._node)).__class__ is AsyncMux
        ):
            return pool.call(request[0], 1, monotonic() + timeout, self._settle)
        return asyncio.ensure_future(self.send(request, timeout))

    def _settle(self, future: asyncio.Future[Any], outcome: Any) -> None:
        if not isinstance(outcome, (NotSent, MaybeSent)):
            try:
                future.set_result(settle(outcome, 1, self._node))
                return
            except NotSent as error:
                outcome = error
        future.set_exception(outcome)

    async def nodes(self) -> list[Node]:
        return [self._node]


class AsyncSentinel(AsyncBase):
    """The primary of a service watched by sentinels."""

    kind: Kind = "sentinel"

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        dial = dialer(endpoint, asynchronous=True)
        super().__init__(endpoint.url, dial, timeout, max_connections)
        self._sentinels = Sentinels(endpoint.nodes, endpoint.service)
        self._sentinel_dial = dialer(endpoint, asynchronous=True, sentinel=True)

    async def send(self, request: Request, timeout: float) -> Any:
        return await self._routed(request, monotonic() + timeout)

    async def _routed(
        self, request: Request, deadline: float, known: tuple[Node, Any] | None = None
    ) -> Any:
        return await self._run(self._sentinels.send(request, deadline), deadline, known)

    def _nearest(self, request: Request) -> Node | None:
        return self._sentinels.primary

    def _doubt(self, node: Node) -> None:
        self._sentinels.forget(node)

    async def nodes(self) -> list[Node]:
        if self._sentinels.primary is not None:
            return [self._sentinels.primary]
        deadline = monotonic() + self._timeout
        return [await self._run(self._sentinels.discover(deadline), deadline)]

    def _new_pool(self, node: Node, sentinel: bool) -> AsyncMux | AsyncPool:
        if sentinel:
            return self._pool_of(self._sentinel_dial, node)
        return self._pool_of(self._dial, node, _greet_primary)


async def _greet_primary(link: AsyncLink, where: str) -> None:
    check_role(await link.exchange(ROLE, 1), where)


class AsyncClusterTransport(AsyncBase):
    """Every primary of a cluster, by slot."""

    kind: Kind = "cluster"

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        dial = dialer(endpoint, asynchronous=True)
        super().__init__(endpoint.url, dial, timeout, max_connections)
        self._cluster = Cluster(endpoint.nodes)
        self._version = 0

    async def send(self, request: Request, timeout: float) -> Any:
        return await self._routed(request, monotonic() + timeout)

    async def _routed(
        self, request: Request, deadline: float, known: tuple[Node, Any] | None = None
    ) -> Any:
        reply = await self._run(self._cluster.send(request, deadline), deadline, known)
        if self._version != self._cluster.version:
            await self._forget_strangers()
        return reply

    def _nearest(self, request: Request) -> Node | None:
        return None if self._cluster.stale else self._cluster.owner(request.key)

    def _doubt(self, node: Node) -> None:
        self._cluster.stale = True

    async def nodes(self) -> list[Node]:
        if self._cluster.stale:
            deadline = monotonic() + self._timeout
            await self._run(self._cluster.refresh(deadline), deadline)
        return self._cluster.nodes()

    async def _forget_strangers(self) -> None:
        """Close the pools of nodes that have left the map."""
        self._version = self._cluster.version
        for node in list(self._pools):
            if not self._cluster.known(node):
                pool = self._pools.pop(node, None)
                if pool is not None:
                    await pool.close()


def open_async_transport(
    url: str | None, *, timeout: float, max_connections: int, client: Any = None
) -> AsyncTransport:
    """A transport for a URL, or for a `redis.asyncio.Redis` given as `client`. Does no I/O.

    `timeout` (seconds) bounds `open`, `nodes` and an attempt to connect; `max_connections` is for
    each node, and eight times as many calls are with it at once, as a rule on one connection.
    """
    if client is not None:
        node, its_url, dial = injected(client, asynchronous=True)
        return AsyncStandalone(its_url, node, dial, timeout, max_connections)
    endpoint = parse_url(url)
    if endpoint.kind == "cluster":
        return AsyncClusterTransport(endpoint, timeout, max_connections)
    if endpoint.kind == "sentinel":
        return AsyncSentinel(endpoint, timeout, max_connections)
    dial = dialer(endpoint, asynchronous=True)
    return AsyncStandalone(endpoint.url, endpoint.nodes[0], dial, timeout, max_connections)
