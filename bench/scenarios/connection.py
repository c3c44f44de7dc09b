"""What one event loop gets through: the connection that calls share, beside its alternatives.

The reference keeps as many commands in flight as there are tasks and parses the replies, for
nobody. Beside it stand the transport alone, given packed commands, and a meter whose calls have a
connection each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from meterd import AsyncMeter
from meterd.transport import Request
from meterd.transport.aiopool import AsyncPool

from ..core.lab import Lab
from ..core.measure import compare
from ..core.registry import Finding, scenario
from ..core.workload import PLANS, subject
from ..peers import AsyncCalls, AsyncPeer, Setting
from ..peers.bare import ASYNC as BARE
from ..peers.bare import ASYNC_NAME
from ..peers.ours import ASYNC as OURS
from ..peers.ours import TIMEOUT_S
from ..peers.redis_py import packed_calls
from .clients import async_opened

CONNECTIONS = 50


def opener(
    pooled: bool, bare: bool
) -> Callable[[Setting], AbstractAsyncContextManager[AsyncCalls]]:
    """`pooled`: a connection for each call. `bare`: the transport, without the meter around it."""

    @asynccontextmanager
    async def opened(setting: Setting) -> AsyncIterator[AsyncCalls]:
        requests = [Request(packed, None) for packed in packed_calls(setting, "pool")]
        meter = AsyncMeter(setting.url, plans=PLANS, timeout=TIMEOUT_S)
        transport: Any = meter._transport
        if pooled:
            transport._pool_of = lambda dial, node, greeting=None: AsyncPool(
                dial, node, CONNECTIONS, greeting
            )
        async with meter:
            if bare:
                yield AsyncCalls(one=lambda n: transport.send(requests[n], TIMEOUT_S))
            else:
                yield AsyncCalls(one=lambda n: meter.consume(subject(n), "pool"))

    return opened


WAYS = [
    *BARE,
    *OURS,
    AsyncPeer("transport alone", opener(False, True)),
    AsyncPeer("meterd, a connection per call", opener(True, False)),
    AsyncPeer("transport alone, a connection per call", opener(True, True)),
]


@scenario("connection", "the shared connection of AsyncMeter beside its alternatives")
def connection(lab: Lab) -> Iterator[Finding]:
    for tasks in lab.effort.tasks:
        with async_opened(lab.tcp, WAYS, tasks) as clients:
            ones = clients.contenders(lab, lambda calls: calls.one)
            yield Finding(
                f"connection-{tasks}",
                f"Connections, async, {tasks} task{'s' * (tasks > 1)}, one limit",
                compare(ones, lab.effort.blocks, ASYNC_NAME),
            )
