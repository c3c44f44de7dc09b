"""`limits`: a strategy over a storage, one `hit` per limit.

Its asynchronous storage runs on coredis unless it is told to run on redis-py; both are here.
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

from ..core.workload import subject
from . import PLENTY, AsyncCalls, AsyncPeer, Calls, Peer, Setting

STRATEGIES = {
    "fixed": "FixedWindowRateLimiter",
    "sliding": "SlidingWindowCounterRateLimiter",
    "moving": "MovingWindowRateLimiter",
}


PREFIXES = {"moving": "moving"}  # its keys have the fixed window's names, and another type


def items() -> tuple[Any, list[Any], Any]:
    """One limit, four of them, and one that is soon used up."""
    from limits import (
        RateLimitItemPerDay,
        RateLimitItemPerHour,
        RateLimitItemPerMinute,
        RateLimitItemPerMonth,
    )

    four = [
        RateLimitItemPerMonth(PLENTY),
        RateLimitItemPerDay(PLENTY),
        RateLimitItemPerHour(PLENTY),
        RateLimitItemPerMinute(PLENTY),
    ]
    return four[-1], four, RateLimitItemPerDay(1)


def prefix(strategy: str) -> str:
    return PREFIXES.get(strategy, "LIMITS")


def opener(strategy: str) -> Callable[[Setting], AbstractContextManager[Calls]]:
    @contextmanager
    def opened(setting: Setting) -> Iterator[Calls]:
        from limits import storage, strategies

        store = storage.RedisStorage(setting.url, key_prefix=prefix(strategy))
        hit = getattr(strategies, STRATEGIES[strategy])(store).hit
        one, four, scarce = items()
        try:
            yield Calls(
                one=lambda n: hit(one, subject(n)),
                four=lambda n: all(hit(item, subject(n)) for item in four),
                refused=lambda n: hit(scarce, "scarce", subject(n)),
            )
        finally:
            store.storage.close()

    return opened


def async_opener(
    strategy: str, client: str
) -> Callable[[Setting], AbstractAsyncContextManager[AsyncCalls]]:
    @asynccontextmanager
    async def opened(setting: Setting) -> AsyncIterator[AsyncCalls]:
        from limits.aio import storage, strategies

        # redis-py's pool raises where more callers come at once than it may have connections.
        implementation: Any = client
        options: dict[str, Any] = {}
        if client == "redispy":
            options["max_connections"] = max(100, setting.callers)
        store: Any = storage.RedisStorage(
            f"async+{setting.url}",
            implementation=implementation,
            key_prefix=prefix(strategy),
            **options,
        )
        hit = getattr(strategies, STRATEGIES[strategy])(store).hit
        one, items4, scarce = items()

        async def four(n: int) -> bool:
            for item in items4:
                if not await hit(item, subject(n)):
                    return False
            return True

        try:
            yield AsyncCalls(
                one=lambda n: hit(one, subject(n)),
                four=four,
                refused=lambda n: hit(scarce, "scarce", subject(n)),
            )
        finally:
            connection = store.bridge.storage
            if client == "redispy":
                await connection.aclose()
            else:
                connection.connection_pool.disconnect()

    return opened


SYNC = [Peer(f"limits, {name}", opener(name), ("limits", "redis")) for name in STRATEGIES]
ASYNC = [
    *(
        AsyncPeer(f"limits, {name}", async_opener(name, "redispy"), ("limits", "redis"))
        for name in STRATEGIES
    ),
    AsyncPeer("limits on coredis, fixed", async_opener("fixed", "coredis"), ("limits", "coredis")),
]
