"""`throttled-py`: a `Throttled` per limit over one Redis store."""

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

ALGORITHMS = {"token bucket": "token_bucket", "fixed": "fixed_window"}  # the first is its default
DAY_S = 86_400


def throttles(module: Any, store: Any, algorithm: str) -> tuple[Any, list[Any], Any]:
    """One limit, four of them, and one that is soon used up; a prefix keeps them apart."""
    from datetime import timedelta

    from throttled import rate_limiter

    def made(seconds: int, limit: int = PLENTY, prefix: str = "") -> Any:
        quota = rate_limiter.per_duration(timedelta(seconds=seconds), limit, burst=limit)
        name = prefix or f"every{seconds}"
        return module.Throttled(using=algorithm, quota=quota, store=store, key_prefix=name)

    four = [made(30 * DAY_S), made(DAY_S), made(3600), made(60)]
    return four[-1], four, made(DAY_S, 1, "scarce")


def opener(algorithm: str) -> Callable[[Setting], AbstractContextManager[Calls]]:
    @contextmanager
    def opened(setting: Setting) -> Iterator[Calls]:
        import throttled

        store: Any = throttled.store.RedisStore(server=setting.url, options={})
        one, throttles4, scarce = throttles(throttled, store, ALGORITHMS[algorithm])
        yield Calls(
            one=lambda n: not one.limit(subject(n)).limited,
            four=lambda n: not any(each.limit(subject(n)).limited for each in throttles4),
            refused=lambda n: not scarce.limit(subject(n)).limited,
        )
        store._backend.get_client().close()

    return opened


def async_opener(
    algorithm: str,
) -> Callable[[Setting], AbstractAsyncContextManager[AsyncCalls]]:
    @asynccontextmanager
    async def opened(setting: Setting) -> AsyncIterator[AsyncCalls]:
        import throttled.asyncio

        # redis-py's pool raises where more callers come at once than it may have connections.
        pool = {"max_connections": max(100, setting.callers)}
        store: Any = throttled.asyncio.store.RedisStore(
            server=setting.url, options={"CONNECTION_POOL_KWARGS": pool}
        )
        one, throttles4, scarce = throttles(throttled.asyncio, store, ALGORITHMS[algorithm])

        async def allowed(throttle: Any, n: int) -> bool:
            return not (await throttle.limit(subject(n))).limited

        async def four(n: int) -> bool:
            for each in throttles4:
                if not await allowed(each, n):
                    return False
            return True

        yield AsyncCalls(
            one=lambda n: allowed(one, n), four=four, refused=lambda n: allowed(scarce, n)
        )
        await store._backend.get_client().aclose()

    return opened


PACKAGES = ("throttled-py", "redis")
SYNC = [Peer(f"throttled-py, {name}", opener(name), PACKAGES) for name in ALGORITHMS]
ASYNC = [AsyncPeer(f"throttled-py, {name}", async_opener(name), PACKAGES) for name in ALGORITHMS]
