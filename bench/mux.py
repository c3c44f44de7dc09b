"""What one event loop gets through: the shared connection beside its floor and its alternatives.

All contenders call the same function of the same server and alternate in one process. The floor is
a protocol that keeps as many commands in flight and parses the replies, for nobody. CPU is that of
this process alone. Run as `python -m bench.mux`; `--calls N` and `--rounds N` say how long,
`--pin` keeps the scheduler from putting both on one core, as it likes to when they take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from statistics import median
from typing import Any

import hiredis
import redis.asyncio

from bench.clients import SUBJECTS, fcalls
from bench.raw import Raw
from bench.scenarios import PLAN, subject
from meterd import AsyncMeter
from meterd.embedded import EmbeddedServer
from meterd.transport import Request
from meterd.transport.aiopool import AsyncPool
from meterd.wire import command

TASKS = (1, 16, 64, 256)
FLOOR = "floor"


@dataclass(slots=True)
class Figure:
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


class Floor(asyncio.Protocol):
    """`depth` commands in flight, written together when all of their replies are there."""

    def __init__(self, commands: Sequence[bytes]) -> None:
        self._commands = cycle(commands)
        self._reader = hiredis.Reader()
        self._missing = self._left = self._depth = 0
        self._done: asyncio.Future[None]
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def run(self, depth: int, calls: int) -> None:
        self._depth, self._left = depth, calls
        self._done = asyncio.get_running_loop().create_future()
        self._write()
        await self._done

    def _write(self) -> None:
        self._missing = min(self._depth, self._left)
        self._left -= self._missing
        self._transport.write(b"".join(islice(self._commands, self._missing)))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while self._reader.gets() is not False:
            self._missing -= 1
        if not self._missing:
            if self._left:
                self._write()
            else:
                self._done.set_result(None)


async def spread(tasks: int, calls: int, call: Callable[[int], Awaitable[Any]]) -> None:
    """So many calls by so many tasks."""
    numbers = iter(range(calls))

    async def work() -> None:
        for number in numbers:
            await call(number % SUBJECTS)

    await asyncio.gather(*(work() for _ in range(tasks)))


def pooled(url: str) -> AsyncMeter:
    """A meter whose calls have a connection each, as those on an injected subclass do."""
    meter = AsyncMeter(url, plans=[PLAN], timeout=10)
    transport: Any = meter._transport
    transport._pool_of = lambda dial, node, greeting=None: AsyncPool(dial, node, 50, greeting)
    return meter


async def measure(url: str, path: str, calls: int, rounds: int) -> dict[tuple[str, int], Figure]:
    arguments = fcalls(url, path)
    packed = [command(b"FCALL", name, b"%d" % count, *rest) for name, count, *rest in arguments]
    requests = [Request(one, None) for one in packed]
    floor = Floor(packed)
    await asyncio.get_running_loop().create_unix_connection(lambda: floor, path)
    client = redis.asyncio.Redis.from_url(url, max_connections=2 * max(TASKS))
    found: dict[tuple[str, int], Figure] = {}
    async with AsyncMeter(url, plans=[PLAN], timeout=10) as meter, pooled(url) as other:
        ways: dict[str, Callable[[int], Awaitable[Any]]] = {
            "transport.start": lambda i: meter._transport.start(requests[i], 10),
            "transport.send": lambda i: meter._transport.send(requests[i], 10),
            "AsyncMeter.consume": lambda i: meter.consume(subject(i), "pool"),
            "transport.send, pooled": lambda i: other._transport.send(requests[i], 10),
            "AsyncMeter.consume, pooled": lambda i: other.consume(subject(i), "pool"),
            "redis.asyncio fcall": lambda i: client.fcall(*arguments[i]),
        }
        for _ in range(rounds):
            for tasks in TASKS:
                base = await timed(found, (FLOOR, tasks), calls, floor.run(tasks, calls))
                for name, way in ways.items():
                    rate = await timed(found, (name, tasks), calls, spread(tasks, calls, way))
                    found[name, tasks].ratios.append(rate / base)
    await client.aclose()
    floor._transport.close()
    return found


async def timed(
    found: dict[tuple[str, int], Figure], key: tuple[str, int], calls: int, work: Awaitable[None]
) -> float:
    started, busy = time.perf_counter(), time.process_time()
    await work
    rate = calls / (time.perf_counter() - started)
    figure = found.setdefault(key, Figure())
    figure.rates.append(rate)
    figure.cpu.append((time.process_time() - busy) / calls * 1e6)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mux", description=__doc__)
    parser.add_argument("--calls", type=int, default=4000, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pin", action="store_true", help="server and client on a core each")
    options = parser.parse_args()
    with EmbeddedServer.start() as server:
        if options.pin:
            first, second, *_ = sorted(os.sched_getaffinity(0))
            with Raw(server.path) as raw:
                os.sched_setaffinity(int(raw.info("process_id")), {first})
            os.sched_setaffinity(0, {second})
        found = asyncio.run(measure(server.url, server.path, options.calls, options.rounds))
    print(f"{'tasks':>5}  {'way':<28}{'per second':>12}{'best':>10}{'CPU us':>9}{'of floor':>10}")
    for (name, tasks), figure in sorted(found.items(), key=lambda item: item[0][1]):
        ratio = f"{median(figure.ratios):.2f}" if figure.ratios else ""
        print(
            f"{tasks:>5}  {name:<28}{median(figure.rates):>12,.0f}{max(figure.rates):>10,.0f}"
            f"{median(figure.cpu):>9.1f}{ratio:>10}"
        )


if __name__ == "__main__":
    main()
