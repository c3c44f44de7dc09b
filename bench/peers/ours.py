"""meterd itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from meterd import AsyncMeter, Meter

from ..core.workload import IP, PLANS, poor, subject
from . import AsyncCalls, AsyncPeer, Calls, Peer, Setting

NAME = "meterd"
LIMITER = "meterd, plain limiter"
TIMEOUT_S = 10


@contextmanager
def meter(setting: Setting) -> Iterator[Calls]:
    with Meter(setting.url, plans=PLANS, timeout=TIMEOUT_S) as made:
        consume = made.consume
        yield Calls(
            one=lambda n: consume(subject(n), "pool"),
            four=lambda n: consume(subject(n), "all"),
            refused=lambda n: consume(poor(n), "scarce", join="scarce"),
        )


@contextmanager
def limiter(setting: Setting) -> Iterator[Calls]:
    with Meter(setting.url, plans=PLANS, timeout=TIMEOUT_S) as made:
        consume = made.limiter("bench", IP).consume
        yield Calls(one=lambda n: consume(subject(n)))


@asynccontextmanager
async def async_meter(setting: Setting) -> AsyncIterator[AsyncCalls]:
    async with AsyncMeter(setting.url, plans=PLANS, timeout=TIMEOUT_S) as made:
        consume = made.consume
        yield AsyncCalls(
            one=lambda n: consume(subject(n), "pool"),
            four=lambda n: consume(subject(n), "all"),
            refused=lambda n: consume(poor(n), "scarce", join="scarce"),
        )


SYNC = [Peer(NAME, meter, role="ours"), Peer(LIMITER, limiter, role="ours")]
ASYNC = [AsyncPeer(NAME, async_meter, role="ours")]
