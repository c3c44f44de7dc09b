"""The asyncio transports: tasks wait here. What to do next is decided in `routing`.

Statement for statement the twin of `sync`, plus one duty: a transport belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any

from meterd.errors import PolicyError
from meterd.transport.aiopool import AsyncLink, AsyncPool, inherited
from meterd.transport.base import AsyncTransport, Kind, MaybeSent, Node, NotSent, Request
from meterd.transport.dial import Dialer, dialer, injected
from meterd.transport.routing import (
    ROLE,
    Cluster,
    Exchange,
    Flow,
    Sentinels,
    check_role,
    settle,
)
from meterd.transport.sync import PING, check_pong, open_failure
from meterd.transport.url import Endpoint, parse_url


class _Base:
    """What the three kinds share. `timeout` serves `open` and `nodes`, which take none."""

    kind: Kind

    def __init__(self, url: str, dial: Dialer, timeout: float, max_connections: int) -> None:
        self.url = url
        self._dial = dial
        self._timeout = timeout
        self._size = max_connections
        self._pools: dict[Node, AsyncPool] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: AsyncGenerator[None, None] | None = None
        self._pid = os.getpid()

    async def open(self) -> None:
        try:
            reply = await self.send(PING, self._timeout)
        except (NotSent, MaybeSent) as error:
            raise open_failure(self.url, error) from error
        check_pong(self.url, reply)

    async def send(self, request: Request, timeout: float) -> Any:
        raise NotImplementedError

    async def send_to(self, node: Node, request: Request, timeout: float) -> Any:
        return await self._exchange(
            Exchange(node, request.packed, request.replies), monotonic() + timeout
        )

    async def aclose(self) -> None:
        if os.getpid() != self._pid:
            self._inherit()
            return
        keeper, self._keeper = self._keeper, None
        await self._close()
        if keeper is not None:
            await keeper.aclose()

    async def _close(self) -> None:
        pools, self._pools = self._pools, {}
        self._loop = None
        for pool in pools.values():
            await pool.close()

    async def _keep(self) -> AsyncGenerator[None, None]:
        """Lives as long as the loop: what ends a loop in order closes its generators first."""
        try:
            yield
        finally:
            await self._close()

    def abandon(self) -> None:
        if os.getpid() != self._pid:
            self._inherit()
            return
        loop, self._loop = self._loop, None
        keeper, self._keeper = self._keeper, None
        pools, self._pools = self._pools, {}
        if loop is None or loop.is_closed():
            return
        for pool in pools.values():
            pool.drop()
        if keeper is not None:
            with contextlib.suppress(StopIteration):
                keeper.aclose().send(None)  # finds nothing left to close, so it does not wait

    async def _run(self, flow: Flow, deadline: float) -> Any:
        try:
            step = next(flow)
            while True:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    step = next(flow)
                    continue
                try:
                    reply = await self._exchange(step, deadline)
                except (NotSent, MaybeSent) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            return end.value

    async def _exchange(self, step: Exchange, deadline: float) -> Any:
        loop = asyncio.get_running_loop()
        if loop is not self._loop or os.getpid() != self._pid:
            await self._bind(loop)
        if step.seconds is not None:
            deadline = min(deadline, monotonic() + step.seconds)
        pool = self._pools.get(step.node)
        if pool is None:
            pool = self._pools[step.node] = self._new_pool(step)
        return await pool.call(step.packed, step.replies, deadline)

    def _new_pool(self, step: Exchange) -> AsyncPool:
        return AsyncPool(self._dial, step.node, self._size)

    async def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if os.getpid() != self._pid:
            self._inherit()
        elif self._loop is not None:
            if not self._loop.is_closed():
                raise PolicyError(
                    "this AsyncMeter belongs to another event loop that has not ended; make one "
                    "for each loop"
                )
            self.abandon()
        self._loop = loop
        self._keeper = self._keep()
        await anext(self._keeper)

    def _inherit(self) -> None:
        """After a fork: what was opened before it is the parent's."""
        self._pid = os.getpid()
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.abandon()
        inherited.append(self._keeper)
        self._keeper = self._loop = None


class AsyncStandalone(_Base):
    """One server, one pool."""

    kind: Kind = "standalone"

    def __init__(
        self, url: str, node: Node, dial: Dialer, timeout: float, max_connections: int
    ) -> None:
        super().__init__(url, dial, timeout, max_connections)
        self._node = node

    async def send(self, request: Request, timeout: float) -> Any:
        reply = await self.send_to(self._node, request, timeout)
        return settle(reply, request.replies, self._node)

    async def nodes(self) -> list[Node]:
        return [self._node]


class AsyncSentinel(_Base):
    """The primary of a service watched by sentinels."""

    kind: Kind = "sentinel"

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        dial = dialer(endpoint, asynchronous=True)
        super().__init__(endpoint.url, dial, timeout, max_connections)
        self._sentinels = Sentinels(endpoint.nodes, endpoint.service)
        self._sentinel_dial = dialer(endpoint, asynchronous=True, sentinel=True)

    async def send(self, request: Request, timeout: float) -> Any:
        deadline = monotonic() + timeout
        return await self._run(self._sentinels.send(request, deadline), deadline)

    async def nodes(self) -> list[Node]:
        if self._sentinels.primary is not None:
            return [self._sentinels.primary]
        deadline = monotonic() + self._timeout
        return [await self._run(self._sentinels.discover(deadline), deadline)]

    def _new_pool(self, step: Exchange) -> AsyncPool:
        if step.sentinel:
            return AsyncPool(self._sentinel_dial, step.node, self._size)
        return AsyncPool(self._dial, step.node, self._size, greeting=_greet_primary)


async def _greet_primary(link: AsyncLink, where: str) -> None:
    check_role(await link.exchange(ROLE, 1), where)


class AsyncClusterTransport(_Base):
    """Every primary of a cluster, by slot."""

    kind: Kind = "cluster"

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        dial = dialer(endpoint, asynchronous=True)
        super().__init__(endpoint.url, dial, timeout, max_connections)
        self._cluster = Cluster(endpoint.nodes)
        self._version = 0

    async def send(self, request: Request, timeout: float) -> Any:
        deadline = monotonic() + timeout
        reply = await self._run(self._cluster.send(request, deadline), deadline)
        if self._version != self._cluster.version:
            await self._forget_strangers()
        return reply

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

    `timeout` (seconds) bounds `open` and `nodes`; `max_connections` is for each node.
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
