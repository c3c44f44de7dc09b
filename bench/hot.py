"""The hot path over TCP loopback: what a call costs a process, beside what else could be done.

Contenders alternate in one process, and what is compared is the median ratio of neighbours. Run as
`python -m bench.hot`; `--rounds N` says how long.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import hiredis
import redis

from bench.clients import SUBJECTS, fcalls
from bench.mux import Floor, spread
from bench.scenarios import PLAN, subject
from meterd import AsyncMeter, Bucket, Meter, Plan
from meterd.embedded import ServerProcess, find_binary
from meterd.wire import command

TASKS = 64
BLOCK = 500
REFUSING = Plan("refusing", default=True, includes=[Bucket("api", 1, "1h")])


def block(call: Callable[[int], object], calls: int = 0) -> tuple[float, float]:
    """CPU and wall time of one call, in µs."""
    calls = calls or BLOCK
    busy, started = time.process_time(), time.perf_counter()
    for at in range(calls):
        call(at % SUBJECTS)
    wall, cpu = time.perf_counter() - started, time.process_time() - busy
    return cpu / calls * 1e6, wall / calls * 1e6


def bare(link: socket.socket, packed: list[bytes]) -> Callable[[int], object]:
    """A socket and a parser: the least that a call can take."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = hiredis.Reader()

    def call(number: int) -> object:
        link.send(packed[number])
        reader.feed(link.recv(65_536))
        return reader.gets()

    return call


def sync(url: str, path: str, port: int, rounds: int) -> None:
    calls = fcalls(url, path)
    packed = [command(b"FCALL", name, b"%d" % count, *rest) for name, count, *rest in calls]
    many = [(subject(at % SUBJECTS), "pool") for at in range(BLOCK)]
    with (
        Meter(url, plans=[PLAN], timeout=10) as meter,
        redis.Redis(port=port) as client,
        socket.create_connection(("127.0.0.1", port)) as link,
        Meter(url, plans=[REFUSING], prefix="refusing", refusal_cache="1h") as cached,
    ):
        ways: dict[str, Callable[[int], object]] = {
            "redis-py fcall": lambda i: client.fcall(*calls[i]),
            "bare socket": bare(link, packed),
            "Meter.consume": lambda i: meter.consume(subject(i), "pool"),
            "remembered refusal": lambda i: cached.consume(subject(i), "api", 2),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        batches: list[tuple[float, float]] = []
        for way in ways.values():
            block(way)
        meter.consume_many(many)
        for _ in range(rounds):
            for name, way in ways.items():
                found[name].append(block(way))
            cpu, wall = block(lambda _: meter.consume_many(many), 1)
            batches.append((cpu / BLOCK, wall / BLOCK))
        found[f"consume_many of {BLOCK}"] = batches
    show(found, "redis-py fcall")


def show(found: dict[str, list[tuple[float, float]]], base: str) -> None:
    print(f"{'way':<24}{'CPU us':>9}{'per second':>13}{'CPU over base':>15}{'rate over base':>16}")
    for name, figures in found.items():
        pairs = list(zip(figures, found[base], strict=True))
        print(
            f"{name:<24}{median(cpu for cpu, _ in figures):>9.2f}"
            f"{1e6 / median(wall for _, wall in figures):>13,.0f}"
            f"{median(one[0] / other[0] for one, other in pairs):>15.2f}"
            f"{median(other[1] / one[1] for one, other in pairs):>16.2f}"
        )


async def asynchronous(url: str, path: str, port: int, rounds: int) -> None:
    calls = fcalls(url, path)
    packed = [command(b"FCALL", name, b"%d" % count, *rest) for name, count, *rest in calls]
    floor = Floor(packed)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: floor, "127.0.0.1", port)
    found: dict[str, list[tuple[float, float]]] = {"pipelining": [], "AsyncMeter.consume": []}
    async with AsyncMeter(url, plans=[PLAN], timeout=10) as meter:

        def consume(number: int) -> Any:
            return meter.consume(subject(number), "pool")

        await spread(TASKS, BLOCK, consume)
        for _ in range(rounds):
            for name, work in (
                ("pipelining", floor.run(TASKS, 8 * BLOCK)),
                ("AsyncMeter.consume", spread(TASKS, 8 * BLOCK, consume)),
            ):
                busy, started = time.process_time(), time.perf_counter()
                await work
                wall, cpu = time.perf_counter() - started, time.process_time() - busy
                found[name].append((cpu / (8 * BLOCK) * 1e6, wall / (8 * BLOCK) * 1e6))
    floor._transport.close()
    print(f"\n{TASKS} tasks of one loop:")
    show(found, "pipelining")


def imports(rounds: int) -> None:
    """How long a process takes that only imports something."""
    taken: dict[str, list[float]] = {"import redis": [], "import meterd": []}
    for _ in range(rounds):
        for text, seconds in taken.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True)
            seconds.append(time.perf_counter() - started)
    ratio = median(
        ours / theirs
        for theirs, ours in zip(taken["import redis"], taken["import meterd"], strict=True)
    )
    print(f"\nimport meterd over import redis: {ratio:.2f}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hot", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    port = free_port()
    server = ServerProcess(find_binary(), ["--port", str(port), "--bind", "127.0.0.1"])
    try:
        server.launch()
        url = f"redis://127.0.0.1:{port}/0"
        sync(url, server.socket_path, port, options.rounds)
        asyncio.run(asynchronous(url, server.socket_path, port, options.rounds))
    finally:
        server.close()
    imports(min(options.rounds, 11))


if __name__ == "__main__":
    main()
