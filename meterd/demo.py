"""meterd's promises, kept in front of your eyes in a few seconds on a private server.

Each promise is a small program that tries to break it: threads that race, a reply that is really
lost on its way, a clock that crosses months. Nothing is assumed; what is printed was counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread
from typing import Any

from meterd.aio import AsyncMeter
from meterd.client import Meter
from meterd.embedded import EmbeddedServer
from meterd.errors import MeterdError
from meterd.policy import Bucket, Plan, Pool
from meterd.relay import Relay
from meterd.testing import ManualClock

THREADS = 64
TRIES_EACH = 5
CREDITS = 100
TASKS = 128
MEASURE_S = 0.8

PLANS = [
    Plan("starter", default=True, includes=[Pool("credits", CREDITS)]),
    Plan(
        "pro",
        includes=[
            Pool("messages", 1000, "month"),
            Bucket("requests", 3, "1m", algorithm="token"),
        ],
    ),
]
_BUSY = Plan(
    "busy",
    includes=[Pool("tokens", 10**12, "month"), Bucket("calls", 10**9, "1m")],
)


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise: what it says, whether it held, what was seen."""

    says: str
    kept: bool
    seen: str
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        names = ("says", "kept", "seen")
        return {name: getattr(self, name) for name in names} | {"seconds": round(self.seconds, 3)}


@dataclass(slots=True)
class Outcome:
    """Everything a demo found. Rates are decisions per second of one Python process."""

    promises: list[Promise] = field(default_factory=list)
    sync_per_s: int = 0
    async_per_s: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.promises) and all(promise.kept for promise in self.promises)

    def as_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "promises": [promise.as_dict() for promise in self.promises],
            "decisions_per_second": {"sync": self.sync_per_s, "async": self.async_per_s},
            "seconds": round(self.seconds, 3),
        }


def run_demo(on_start: Callable[[str], None], on_promise: Callable[[Promise], None]) -> Outcome:
    """Run everything. `on_start` gets a line once the server is up, `on_promise` each result.

    Raises `Unavailable` where no server can be started.
    """
    outcome = Outcome()
    started = time.perf_counter()
    with EmbeddedServer.start() as server:
        with Meter(server.url) as meter:
            diff = meter.apply(PLANS)
        ready = round((time.perf_counter() - started) * 1000)
        on_start(f"a private server with {len(diff.added)} plans, up in {ready} ms")
        for says, attempt in _PROMISES:
            promise = _try(says, attempt, server.url)
            outcome.promises.append(promise)
            on_promise(promise)
        outcome.sync_per_s = _sync_rate(server.url)
        outcome.async_per_s = asyncio.run(_async_rate(server.url))
    outcome.seconds = time.perf_counter() - started
    return outcome


def _try(says: str, attempt: Callable[[str], tuple[bool, str]], url: str) -> Promise:
    started = time.perf_counter()
    try:
        kept, seen = attempt(url)
    except MeterdError as error:
        kept, seen = False, f"{type(error).__name__}: {error}"
    return Promise(says, kept, seen, time.perf_counter() - started)


def race(url: str) -> tuple[bool, str]:
    """Threads buy at the same instant, more than there is."""
    sold = [0] * THREADS
    start = Barrier(THREADS)

    def buyer(number: int, meter: Meter) -> None:
        start.wait()
        for _ in range(TRIES_EACH):
            sold[number] += meter.consume("race", "credits").allowed

    with Meter(url, timeout=10) as meter:
        threads = [Thread(target=buyer, args=(n, meter)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        state = meter.usage("race")["credits"]
    tries = THREADS * TRIES_EACH
    seen = f"{tries} tries, {sum(sold)} sold, {state.used} counted, {state.remaining} left"
    return (sum(sold), state.used, state.remaining) == (CREDITS, CREDITS, 0), seen


def lost_reply(url: str) -> tuple[bool, str]:
    """The server charges, its answer is lost on the way, the client asks again with the same id."""
    with Relay(url) as relay, Meter(relay.url, timeout=5) as meter:
        meter.consume("shop", "credits", 10)
        relay.lose_next_reply()
        decision = meter.consume("shop", "credits", 7, op="order-1")
        again = meter.consume("shop", "credits", 7, op="order-1")
        used = meter.usage("shop")["credits"].used
    kept = relay.lost == 1 and decision.allowed and decision.replayed and again.replayed
    seen = f"{relay.lost} reply lost, 7 credits asked for, {used - 10} charged"
    return kept and used == 17, seen


def all_or_nothing(url: str) -> tuple[bool, str]:
    """A pool and a bucket in one call: whichever refuses, the other keeps what it has."""
    with _on_clock(url, "nothing", datetime(2024, 5, 1, tzinfo=UTC)) as (meter, _):
        for _ in range(3):
            meter.consume("acme", {"messages": 300, "requests": 1}, join="pro")
        # No request is left, then (after a refund) too few messages are.
        slow = meter.consume("acme", {"messages": 1, "requests": 1})
        meter.refund("acme", "requests", 2)
        short = meter.consume("acme", {"messages": 101, "requests": 1})
        usage = meter.usage("acme")
        figures = (usage["messages"].used, usage["requests"].used)
        fits = meter.consume("acme", {"messages": 100, "requests": 1})
    codes = (str(slow.code), str(short.code))
    kept = codes == ("RATE_LIMITED", "USAGE_EXCEEDED") and figures == (900, 1) and fits.allowed
    return kept, f"refused {codes[0]} and {codes[1]}; still {figures[0]} messages, 1 request used"


def months(url: str) -> tuple[bool, str]:
    """A subscription begun on January 31 renews on the last day of a shorter month, and returns."""
    begun = datetime(2023, 1, 31, 9, 30, tzinfo=UTC)
    expected = [begun.replace(month=2, day=28), begun.replace(month=3, day=31)]
    found = []
    kept = True
    with _on_clock(url, "months", begun) as (meter, clock):
        state = meter.consume("acme", "messages", 1000, join="pro")["messages"]
        for boundary in expected:
            if state.resets_at is None:
                return False, "no next reset"
            found.append(f"{state.resets_at:%b %d}")
            kept &= state.resets_at == boundary
            clock.set(boundary - timedelta(milliseconds=1))
            kept &= not meter.consume("acme", "messages").allowed
            clock.set(boundary)
            decision = meter.consume("acme", "messages", 1000)
            kept &= decision.allowed
            state = decision["messages"]
    return kept, f"Jan 31 > {' > '.join(found)}; refused 1 ms before, full again at the instant"


def exact_wait(url: str) -> tuple[bool, str]:
    """What a refusal says about waiting is exact: the last millisecond decides."""
    with _on_clock(url, "wait", datetime(2024, 5, 1, tzinfo=UTC)) as (meter, clock):
        for _ in range(3):
            meter.consume("acme", "requests", join="pro")
        wait = meter.consume("acme", "requests").retry_after
        if wait is None:
            return False, "no time to wait was given"
        clock.advance(milliseconds=round(wait * 1000) - 1)
        early = meter.check("acme", "requests").allowed
        clock.advance(milliseconds=1)
        due = meter.check("acme", "requests").allowed
    seen = f"said {wait:g} s: {'fits' if early else 'refused'} 1 ms before, "
    return due and not early, seen + ("fits then" if due else "still refused then")


_PROMISES: list[tuple[str, Callable[[str], tuple[bool, str]]]] = [
    (f"{THREADS} threads race for {CREDITS} credits: exactly {CREDITS} are sold", race),
    ("a lost reply, repeated with its id, is charged exactly once", lost_reply),
    ("all or nothing over a credit pool and a rate limit", all_or_nothing),
    ("months keep their day: Jan 31, Feb 28, Mar 31", months),
    ("a refusal says exactly how long to wait", exact_wait),
]


@contextmanager
def _on_clock(url: str, name: str, at: datetime) -> Iterator[tuple[Meter, ManualClock]]:
    """A meter on a clock that stands still unless told, with a store of its own."""
    clock = ManualClock(round(at.timestamp() * 1000))
    with Meter(url, plans=PLANS, prefix=f"demo-{name}", clock=clock, timeout=10) as meter:
        yield meter, clock


def _sync_rate(url: str) -> int:
    """Decisions per second of one thread that waits for each answer; a pool and a bucket each."""
    costs = {"tokens": 3, "calls": 1}
    with Meter(url, plans=[_BUSY], prefix="demo-rate", timeout=10) as meter:
        meter.subscribe("busy", "busy")
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < MEASURE_S:
            for _ in range(50):
                meter.consume("busy", costs)
            done += 50
    return round(done / elapsed)


async def _async_rate(url: str) -> int:
    """The same by many tasks at once: their calls share connections and round trips."""
    costs = {"tokens": 3, "calls": 1}
    done = 0
    async with AsyncMeter(url, plans=[_BUSY], prefix="demo-rate", timeout=10) as meter:
        await meter.consume("busy", costs)
        started = time.perf_counter()

        async def worker() -> None:
            nonlocal done
            while time.perf_counter() - started < MEASURE_S:
                await meter.consume("busy", costs)
                done += 1

        await asyncio.gather(*(worker() for _ in range(TASKS)))
        elapsed = time.perf_counter() - started
    return round(done / elapsed)
