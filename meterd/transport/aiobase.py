"""What every asyncio transport does: connections by node, one event loop, forks, started calls.

Where a request goes is the business of the kinds of transport, in `aio`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Any
from weakref import WeakSet

from meterd.errors import PolicyError
from meterd.transport.aiomux import DEPTH, AsyncMux
from meterd.transport.aiopool import AsyncPool, Greeting, inherited
from meterd.transport.base import Kind, MaybeSent, Node, NotSent, Request
from meterd.transport.dial import Dialer
from meterd.transport.replies import Verdict, judge
from meterd.transport.routing import Exchange, Flow
from meterd.transport.sync import PING, check_pong, open_failure


class AsyncBase:
    """What the three kinds share. `timeout` serves `open` and `nodes`, which take none."""

    kind: Kind
    depth = DEPTH

    def __init__(self, url: str, dial: Dialer, timeout: float, max_connections: int) -> None:
        self.url = url
        self._dial = dial
        self._timeout = timeout
        self._size = max_connections
        self._pools: dict[Node, AsyncMux | AsyncPool] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: AsyncGenerator[None, None] | None = None
        self._pid = os.getpid()
        self._thread = 0  # where the loop was seen to run
        self._again: set[asyncio.Task[Any]] = set()  # begun by `start`, and not yet at their end
        _transports.add(self)

    async def open(self) -> None:
        try:
            reply = await self.send(PING, self._timeout)
        except (NotSent, MaybeSent) as error:
            raise open_failure(self.url, error) from error
        check_pong(self.url, reply)

    def start(self, request: Request, timeout: float) -> asyncio.Future[Any]:
        """One write to a connection that may be open is the plain case; the others get a task."""
        node = self._nearest(request)
        pool = None if node is None else self._pools.get(node)
        if node is None or pool.__class__ is not AsyncMux or not self._here() or request[2] != 1:
            return asyncio.ensure_future(self.send(request, timeout))
        deadline = monotonic() + timeout
        other = partial(self._otherwise, request, deadline, node)
        return pool.call(request[0], 1, deadline, other)

    def _here(self) -> bool:
        """Whether this is our loop, without asking the kernel for anything.

        A thread runs one loop at a time. After a fork `_thread` is none.
        """
        loop = self._loop
        return loop is not None and get_ident() == self._thread and loop.is_running()

    def _nearest(self, request: Request) -> Node | None:
        """Where `send` would write first, if that is known without asking anyone."""
        raise NotImplementedError

    def _doubt(self, node: Node) -> None:
        """A reply of `node` was lost: see who serves next time."""

    def _otherwise(
        self,
        request: Request,
        deadline: float,
        node: Node,
        future: asyncio.Future[Any],
        outcome: Any,
    ) -> None:
        """What was started has another end than a string: go on as `send` does from there."""
        if isinstance(outcome, MaybeSent):
            self._doubt(node)
            future.set_exception(outcome)
        elif not isinstance(outcome, NotSent) and judge(outcome) is Verdict.REPLY:
            future.set_result(outcome)
        elif not (loop := future.get_loop()).is_running():
            future.set_exception(outcome)  # the transport is let go
        else:
            loop.call_soon(self._go_on, request, deadline, node, future, outcome)

    def _go_on(
        self,
        request: Request,
        deadline: float,
        node: Node,
        future: asyncio.Future[Any],
        outcome: Any,
    ) -> None:
        if future.done():
            return
        task = asyncio.ensure_future(self._routed(request, deadline, (node, outcome)))
        self._again.add(task)
        task.add_done_callback(self._again.discard)
        task.add_done_callback(partial(_hand_on, future))
        future.add_done_callback(lambda _: task.cancel())

    async def _routed(
        self, request: Request, deadline: float, known: tuple[Node, Any] | None = None
    ) -> Any:
        """As `_run`, for the request."""
        raise NotImplementedError

    async def send(self, request: Request, timeout: float) -> Any:
        raise NotImplementedError

    async def send_to(self, node: Node, request: Request, timeout: float) -> Any:
        deadline = monotonic() + timeout
        pool = await self._pool(node)
        return await pool.call(request.packed, request.replies, deadline)

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
            if isinstance(pool, AsyncMux):
                pool.end()  # of all of them, should this be cancelled
        for pool in pools.values():
            await pool.close()

    async def _keep(self) -> AsyncGenerator[None, None]:
        """Lives as long as the loop: what ends a loop in order closes its generators first."""
        try:
            yield
        finally:
            if os.getpid() == self._pid:
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

    async def _run(self, flow: Flow, deadline: float, known: tuple[Node, Any] | None = None) -> Any:
        """What the flow returns. `known`: how an exchange with a node has ended already."""
        try:
            step = next(flow)
            if known is not None and isinstance(step, Exchange) and step.node == known[0]:
                step = _tell(flow, known[1])
            while True:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    step = next(flow)
                    continue
                try:
                    outcome = await self._exchange(step, deadline)
                except (NotSent, MaybeSent) as error:
                    outcome = error
                step = _tell(flow, outcome)
        except StopIteration as end:
            return end.value

    async def _exchange(self, step: Exchange, deadline: float) -> Any:
        if step.seconds is not None:
            deadline = min(deadline, monotonic() + step.seconds)
        pool = await self._pool(step.node, step.sentinel)
        return await pool.call(step.packed, step.replies, deadline)

    async def _pool(self, node: Node, sentinel: bool = False) -> AsyncMux | AsyncPool:
        loop = asyncio.get_running_loop()
        if loop is not self._loop or os.getpid() != self._pid:
            await self._bind(loop)
        self._thread = get_ident()
        pool = self._pools.get(node)
        if pool is None:
            pool = self._pools[node] = self._new_pool(node, sentinel)
        return pool

    def _new_pool(self, node: Node, sentinel: bool) -> AsyncMux | AsyncPool:
        return self._pool_of(self._dial, node)

    def _pool_of(
        self, dial: Dialer, node: Node, greeting: Greeting | None = None
    ) -> AsyncMux | AsyncPool:
        if dial.streams:
            return AsyncMux(dial, node, self._size, self.depth, self._timeout, greeting)
        return AsyncPool(dial, node, self._size, greeting)

    async def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if os.getpid() != self._pid:
            if loop is self._loop:
                raise PolicyError(
                    "this event loop is from before the fork, and its selector is the parent's; "
                    "make a new loop in the child"
                )
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


def _tell(flow: Flow, outcome: Any) -> Exchange | float:
    """The flow's next step, after an exchange that ended so."""
    if isinstance(outcome, (NotSent, MaybeSent)):
        return flow.throw(outcome)
    return flow.send(outcome)


def _hand_on(future: asyncio.Future[Any], task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if future.done():
        return
    if task.cancelled():
        future.cancel()
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


_transports: WeakSet[AsyncBase] = WeakSet()


def _forked() -> None:
    for transport in list(_transports):
        transport._thread = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
