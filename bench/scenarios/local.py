"""Decisions that need no server: from a lease, from a remembered refusal; and in-process libraries.

They limit one process only, where a lease is a share of a limit that all processes have in common.
The reference is the least a Python process can do: one more in a dictionary.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from meterd import Meter

from ..core.lab import Lab
from ..core.measure import Contender, compare, shown, sync_block
from ..core.registry import Finding, scenario
from ..core.workload import PLANS, poor, subject
from ..peers import PLENTY, installed

COUNTER = "dict, += 1"
LEASE = "meterd, from a lease"
CACHED = "meterd, cached refusal"
SIZE = 10**9  # credits of one lease: it lasts for the whole run
ONE = (0,)


def counter() -> Callable[[int], object]:
    counts: defaultdict[int, int] = defaultdict(int)

    def add(n: int) -> None:
        counts[n] += 1

    return add


def leased(lab: Lab, stack: ExitStack) -> Callable[[int], object] | str:
    """Its call, or why there is none."""
    if not hasattr(Meter, "lease"):
        return "this version has no leases"
    meter: Any = stack.enter_context(Meter(lab.tcp.url, plans=PLANS, timeout=10))
    lease = meter.lease(subject(0), "pool", amount=SIZE, ttl=600)
    stack.callback(lease.close)
    consume = lease.consume
    if not consume():
        return "the lease refused its first charge"
    return lambda _: consume()


def cached(lab: Lab, stack: ExitStack) -> Callable[[int], object] | str:
    if "refusal_cache" not in inspect.signature(Meter).parameters:
        return "this version remembers no refusals"
    options: dict[str, Any] = {"refusal_cache": "1s"}
    meter = stack.enter_context(Meter(lab.tcp.url, plans=PLANS, timeout=10, **options))
    consume, mine = meter.consume, poor(0)
    consume(mine, "scarce", join="scarce")
    if consume(mine, "scarce", join="scarce"):
        return "nothing was refused"
    return lambda _: consume(mine, "scarce", join="scarce")


def limits_memory() -> Callable[[int], object]:
    from limits import RateLimitItemPerMinute, storage, strategies

    hit = strategies.FixedWindowRateLimiter(storage.MemoryStorage()).hit
    item = RateLimitItemPerMinute(PLENTY * 1000)
    return lambda _: hit(item, "acme")


def pyrate_memory() -> Callable[[int], object]:
    from pyrate_limiter import Limiter, Rate, StateBucket, TokenBucket

    bucket = StateBucket([Rate(PLENTY * 1000, 60_000)], algorithm=TokenBucket())
    acquire = Limiter(bucket).try_acquire
    return lambda _: acquire("acme", blocking=False)


def throttled_memory() -> Callable[[int], object]:
    from datetime import timedelta

    import throttled

    quota = throttled.rate_limiter.per_duration(timedelta(minutes=1), PLENTY * 1000)
    limit = throttled.Throttled(using="fixed_window", quota=quota).limit
    return lambda _: limit("acme")


def aiolimiter_block(seconds: float) -> Callable[[], dict[str, float]]:
    """Its `acquire` while there is capacity, awaited one after another on one loop."""
    from aiolimiter import AsyncLimiter

    async def block() -> dict[str, float]:
        import time

        limiter, done = AsyncLimiter(PLENTY * 1000, 60), 0
        cpu, started = time.process_time(), time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(20):
                await limiter.acquire()
            done += 20
        return shown(done, time.perf_counter() - started, time.process_time() - cpu)

    return lambda: asyncio.run(block())


MEMORY = {
    "limits, in memory": ("limits", limits_memory),
    "pyrate-limiter, in memory": ("pyrate-limiter", pyrate_memory),
    "throttled-py, in memory": ("throttled-py", throttled_memory),
}


@scenario("local", "leases and cached refusals, beside in-process limiters")
def local(lab: Lab) -> Iterator[Finding]:
    lab.tcp.flush()
    seconds, absent = lab.effort.block_s, {}
    calls: dict[str, Callable[[int], object]] = {COUNTER: counter()}
    with ExitStack() as stack:
        for name, make in ((LEASE, leased), (CACHED, cached)):
            call = make(lab, stack)
            if isinstance(call, str):
                absent[name] = call
            else:
                calls[name] = call
        for name, (package, prepare) in MEMORY.items():
            if installed(package) is None:
                absent[name] = f"{package} is not installed"
            else:
                calls[name] = prepare()

        def contender(name: str, call: Callable[[int], object]) -> Contender:
            return Contender(name, lambda: sync_block(call, seconds, ONE))

        contenders = [contender(name, call) for name, call in calls.items()]
        if installed("aiolimiter") is None:
            absent["aiolimiter"] = "aiolimiter is not installed"
        else:
            contenders.append(Contender("aiolimiter", aiolimiter_block(seconds)))
        yield Finding(
            "local",
            "In one process, without the server, one subject",
            compare(contenders, lab.effort.blocks, COUNTER),
            note="A lease is a share of a limit that every process counts against; the libraries "
            "in memory limit one process.",
            absent=absent,
        )
