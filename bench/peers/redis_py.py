"""redis-py as a bare client: it calls meterd's own function, and the floor's commands.

What it sends for meterd's function is what meterd itself would send, taken from it beforehand;
nothing decodes the reply, so it has less to do than any client that answers a question.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

import hiredis
import redis
import redis.asyncio

from ..core import floor
from ..core.raw import Raw
from ..core.workload import Copier, customer, subject
from . import AsyncCalls, AsyncPeer, Calls, Peer, Setting

SUBJECTS = 1000
FCALL = "redis-py, meterd's fcall"
ASYNC_FCALL = "redis.asyncio, meterd's fcall"
COSTS = {"one": "pool", "four": "all"}


def packed_calls(setting: Setting, cost: str, subjects: int = SUBJECTS) -> list[bytes]:
    """The command of `consume(subject, cost)` for every subject; their records exist afterwards."""
    with Raw(setting.path) as raw, Copier(raw, setting.url) as copier:
        packed = copier.capture(lambda: copier.meter.consume(subject(0), cost))
        copier.copy_records(customer, subjects)
        return copier.commands(packed, customer, range(subjects))


def words(command: bytes) -> list[bytes]:
    """A packed command's words."""
    reader = hiredis.Reader()
    reader.feed(command)
    parts: list[bytes] = reader.gets()
    return parts


def fcalls(setting: Setting, cost: str) -> list[tuple[Any, ...]]:
    """The same as arguments of `fcall`."""
    made = []
    for command in packed_calls(setting, cost):
        _, function, count, *rest = words(command)
        made.append((function.decode(), int(count), *rest))
    return made


@contextmanager
def fcall(setting: Setting) -> Iterator[Calls]:
    one, four = (fcalls(setting, cost) for cost in COSTS.values())
    with redis.Redis.from_url(setting.url) as client:
        yield Calls(one=lambda n: client.fcall(*one[n]), four=lambda n: client.fcall(*four[n]))


@asynccontextmanager
async def async_client(setting: Setting) -> AsyncIterator[Any]:
    # Its pool raises where more callers come at once than it may have connections.
    most = max(100, setting.callers)
    client = redis.asyncio.Redis.from_url(setting.url, max_connections=most)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def async_fcall(setting: Setting) -> AsyncIterator[AsyncCalls]:
    one, four = (fcalls(setting, cost) for cost in COSTS.values())
    async with async_client(setting) as client:
        yield AsyncCalls(one=lambda n: client.fcall(*one[n]), four=lambda n: client.fcall(*four[n]))


Floor = Callable[[Any], Callable[[int], Any]]
FLOORS: dict[str, Floor] = {
    "PING": lambda client: lambda n: client.ping(),
    "INCRBY": lambda client: lambda n: client.incrby(f"count:{n}", 1),
    "Lua GET+SET": lambda client: (
        lambda n: client.fcall("bench_rewrite", 1, f"floor:{n}", floor.RECORD)
    ),
}


def floor_opener(bind: Floor) -> Callable[[Setting], AbstractContextManager[Calls]]:
    @contextmanager
    def opened(setting: Setting) -> Iterator[Calls]:
        with Raw(setting.path) as raw:
            floor.load(raw)
        with redis.Redis.from_url(setting.url) as client:
            yield Calls(one=bind(client))

    return opened


def async_floor_opener(bind: Floor) -> Callable[[Setting], AbstractAsyncContextManager[AsyncCalls]]:
    @asynccontextmanager
    async def opened(setting: Setting) -> AsyncIterator[AsyncCalls]:
        with Raw(setting.path) as raw:
            floor.load(raw)
        async with async_client(setting) as client:
            yield AsyncCalls(one=bind(client))

    return opened


SYNC = [
    Peer(FCALL, fcall, role="client"),
    *(Peer(f"redis-py, {name}", floor_opener(f), role="floor") for name, f in FLOORS.items()),
]
ASYNC = [
    AsyncPeer(ASYNC_FCALL, async_fcall, role="client"),
    *(
        AsyncPeer(f"redis.asyncio, {name}", async_floor_opener(f), role="floor")
        for name, f in FLOORS.items()
    ),
]
