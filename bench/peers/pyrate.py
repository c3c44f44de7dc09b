"""`pyrate-limiter`: a factory makes a bucket for each name, as its documentation shows.

Four limits are four limiters. It also takes several rates for one bucket, which it then checks in
one call; that is here too, as "one bucket". Such rates share one log, one algorithm and one weight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any

from ..core.workload import subject
from . import PLENTY, AsyncCalls, AsyncPeer, Calls, Peer, Setting

KINDS = ("log", "token bucket")  # the first is its default
DAY_MS = 86_400_000
LENGTHS_MS = (60_000, 3_600_000, DAY_MS, 30 * DAY_MS)


def limiter_of(kind: str, client: Any, prefix: str, rates: dict[int, int]) -> Any:
    """A limiter of that many per so many ms; async if the client is."""
    from pyrate_limiter import (
        BucketFactory,
        Limiter,
        Rate,
        RateItem,
        RedisBucket,
        RedisStateStore,
        StateBucket,
        TokenBucket,
        WallClock,
    )

    clock = WallClock()
    each = [Rate(limit, length) for length, limit in rates.items()]

    class PerName(BucketFactory):
        def __init__(self) -> None:
            self.buckets: dict[str, Any] = {}

        def wrap_item(self, name: str, weight: int = 1) -> RateItem:
            return RateItem(name, clock.now(), weight=weight)

        def get(self, item: RateItem) -> Any:
            return self.buckets.get(item.name) or self.made(item.name)

        def made(self, name: str) -> Any:
            key = f"{kind[:3]}:{prefix}:{name}"
            if kind == "log":
                bucket: Any = RedisBucket.init(each, client, key)
                return (
                    self.later(name, bucket)
                    if hasattr(bucket, "__await__")
                    else self.kept(name, bucket)
                )
            store = RedisStateStore(client, key)
            return self.kept(name, StateBucket(each, store=store, algorithm=TokenBucket()))

        async def later(self, name: str, bucket: Any) -> Any:
            return self.kept(name, await bucket)

        def kept(self, name: str, bucket: Any) -> Any:
            self.buckets[name] = bucket
            if kind == "log":
                self.schedule_leak(bucket)
            return bucket

    return Limiter(PerName())


@dataclass(frozen=True, slots=True)
class Limiters:
    one: Any
    four: list[Any]
    scarce: Any


def limiters(kind: str, client: Any, joint: bool) -> Limiters:
    """`joint`: the four rates in one bucket, whose limits must grow with the period."""
    if joint:
        grown = {length: PLENTY * 10**at for at, length in enumerate(LENGTHS_MS)}
        four = [limiter_of(kind, client, "joint", grown)]
    else:
        four = [limiter_of(kind, client, f"every{ms}", {ms: PLENTY}) for ms in LENGTHS_MS]
    return Limiters(four[0], four, limiter_of(kind, client, "scarce", {DAY_MS: 1}))


def close(found: Limiters) -> float:
    """Ends their cleaning in the background; seconds until a pass under way is through."""
    for limiter in (*found.four, found.scarce):
        limiter.bucket_factory.close()
    return 0.2


def opener(kind: str, joint: bool) -> Callable[[Setting], AbstractContextManager[Calls]]:
    @contextmanager
    def opened(setting: Setting) -> Iterator[Calls]:
        from redis import Redis

        with Redis.from_url(setting.url) as client:
            found = limiters(kind, client, joint)
            one, scarce = found.one.try_acquire, found.scarce.try_acquire
            acquires = [limiter.try_acquire for limiter in found.four]

            def four(n: int) -> bool:
                return all(acquire(subject(n), blocking=False) for acquire in acquires)

            if joint:
                yield Calls(four=four)
            else:
                yield Calls(
                    one=lambda n: one(subject(n), blocking=False),
                    four=four,
                    refused=lambda n: scarce(subject(n), blocking=False),
                )
            time.sleep(close(found))

    return opened


def async_opener(
    kind: str, joint: bool
) -> Callable[[Setting], AbstractAsyncContextManager[AsyncCalls]]:
    @asynccontextmanager
    async def opened(setting: Setting) -> AsyncIterator[AsyncCalls]:
        from redis.asyncio import Redis

        # redis-py's pool raises where more callers come at once than it may have connections.
        client = Redis.from_url(setting.url, max_connections=max(100, setting.callers))
        async with client:
            found = limiters(kind, client, joint)
            one, scarce = found.one.try_acquire_async, found.scarce.try_acquire_async
            acquires = [limiter.try_acquire_async for limiter in found.four]

            async def four(n: int) -> bool:
                for acquire in acquires:
                    if not await acquire(subject(n), blocking=False):
                        return False
                return True

            if joint:
                yield AsyncCalls(four=four)
            else:
                yield AsyncCalls(
                    one=lambda n: one(subject(n), blocking=False),
                    four=four,
                    refused=lambda n: scarce(subject(n), blocking=False),
                )
            await asyncio.sleep(close(found))

    return opened


NAMES = {f"pyrate-limiter, {kind}": (kind, False) for kind in KINDS}
NAMES |= {f"pyrate-limiter, {kind}, one bucket": (kind, True) for kind in KINDS}
PACKAGES = ("pyrate-limiter", "redis")
SYNC = [Peer(name, opener(*how), PACKAGES) for name, how in NAMES.items()]
ASYNC = [AsyncPeer(name, async_opener(*how), PACKAGES) for name, how in NAMES.items()]
