"""Running contenders in turns.

A round runs every contender once, in random order, for a block of time; figures of one round are
compared with one another only. What runs asynchronously does so on one event loop that stands still
between the blocks.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from .stats import Measure

RATE, CPU = "decisions/s", "CPU µs/decision"
Sample = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A name, and one block of its work: the quantities it showed."""

    name: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Quantity:
    name: str
    unit: str
    more_is_better: bool = True
    bare: bool = False


QUANTITIES = (Quantity(RATE, ""), Quantity(CPU, "", False))


def compare(
    contenders: Sequence[Contender],
    rounds: int,
    reference: str,
    quantities: Sequence[Quantity] = QUANTITIES,
) -> list[Measure]:
    """One measure per quantity. The first round warms up and is not counted."""
    measures = [Measure(q.name, q.unit, reference, q.more_is_better, q.bare) for q in quantities]
    for number in range(rounds + 1):
        shown: dict[str, Mapping[str, float]] = {}
        for contender in random.sample(contenders, len(contenders)):
            shown[contender.name] = contender.sample()
        if number == 0:
            continue
        for measure in measures:
            measure.add_round({c.name: shown[c.name][measure.name] for c in contenders})
    return measures


def shown(done: int, wall_s: float, cpu_s: float) -> dict[str, float]:
    return {RATE: done / wall_s, CPU: 1e6 * cpu_s / done if done else 0.0}


def sync_block(
    call: Callable[[int], object], seconds: float, subjects: Sequence[int]
) -> dict[str, float]:
    """Calls one after another, subject by subject, for so long."""
    done, at, part = 0, cycle(subjects), 20
    cpu, started = time.process_time(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        for number in islice(at, part):
            call(number)
        done += part
    return shown(done, time.perf_counter() - started, time.process_time() - cpu)


def thread_block(
    call: Callable[[int], object], threads: int, seconds: float, subjects: Sequence[int]
) -> dict[str, float]:
    """The same from several threads at once."""
    counts = [0] * threads
    start = threading.Barrier(threads + 1)
    failures: list[BaseException] = []

    def work(mine: int) -> None:
        at = islice(cycle(subjects), mine * len(subjects) // threads, None)
        start.wait()
        until = time.perf_counter() + seconds
        try:
            while time.perf_counter() < until:
                call(next(at))
                counts[mine] += 1
        except BaseException as error:  # noqa: BLE001  # the main thread raises it
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    cpu, started = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return shown(sum(counts), time.perf_counter() - started, time.process_time() - cpu)


async def async_block(
    call: Callable[[int], Awaitable[Any]],
    tasks: int,
    seconds: float,
    subjects: Sequence[int],
    decisions: int = 1,
) -> dict[str, float]:
    """The same from so many tasks of one event loop, each waiting for its own answers.

    `decisions`: how many of them one call makes.
    """
    done, until = 0, 0.0

    async def work(mine: int) -> None:
        nonlocal done
        at = islice(cycle(subjects), mine * len(subjects) // tasks, None)
        while time.perf_counter() < until:
            await call(next(at))
            done += decisions

    cpu, started = time.process_time(), time.perf_counter()
    until = started + seconds
    await asyncio.gather(*(work(mine) for mine in range(tasks)))
    return shown(done, time.perf_counter() - started, time.process_time() - cpu)
