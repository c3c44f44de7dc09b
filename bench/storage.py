"""What a subject takes: bytes, and whether a call grows slower when there are a million of them."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

from bench.effort import Effort
from bench.floor import Measured
from bench.raw import Raw
from bench.scenarios import Copier, customer, subject
from meterd.embedded import EmbeddedServer

LIMITS = {"1 limit": "pool", "4 limits": "all"}


@dataclass(frozen=True, slots=True)
class Size:
    """Of a subject with a pool and three buckets, in bytes."""

    key: int
    record: int
    memory: int


@dataclass(frozen=True, slots=True)
class Growth:
    """µs per call among `subjects` of them; `ratio` to the smallest number, with its quartiles."""

    name: str
    subjects: int
    usec: float
    ratio: float
    low: float
    high: float


def size(url: str, path: str) -> Size:
    with Raw(path) as raw, Copier(raw, url) as copier:
        copier.meter.consume(subject(0), "all")
        (key,) = customer(0).keys
        memory = raw.ask(b"MEMORY", b"USAGE", key, b"SAMPLES", b"0")
        return Size(len(key), len(raw.ask(b"GET", key)), int(memory))


def growth(effort: Effort, binary: str | None) -> list[Growth]:
    """One server for each number of subjects; calls on all of them are interleaved."""
    with ExitStack() as stack:
        raws: list[Raw] = []
        calls: list[dict[str, Measured]] = []
        for subjects in effort.growth_sizes:
            server = stack.enter_context(EmbeddedServer.start(binary))
            raw = stack.enter_context(Raw(server.path))
            copier = stack.enter_context(Copier(raw, server.url))
            raws.append(raw)
            calls.append(populate(copier, subjects, effort))
        taken: dict[str, list[list[float]]] = {name: [[] for _ in raws] for name in LIMITS}
        for _ in range(effort.growth_rounds):
            for name in LIMITS:
                for at in random.sample(range(len(raws)), len(raws)):
                    measured = calls[at][name]
                    sample = raws[at].timed(measured.batch(effort.calls), measured.stat)
                    taken[name][at].append(sample)
    rows = []
    for name, samples in taken.items():
        for subjects, mine in zip(effort.growth_sizes, samples, strict=True):
            ratios = [a / b for a, b in zip(mine, samples[0], strict=True)]
            low, middle, high = quantiles(ratios, n=4, method="inclusive")
            rows.append(Growth(name, subjects, median(mine), middle, low, high))
    return rows


def populate(copier: Copier, subjects: int, effort: Effort) -> dict[str, Measured]:
    """Makes the subjects; the calls are on so many of them, at random, that few come twice."""
    packed = {
        name: copier.capture(lambda cost=cost: copier.meter.consume(subject(0), cost))  # type: ignore[misc]
        for name, cost in LIMITS.items()
    }
    copier.copy_records(customer, subjects)
    wanted = min(subjects, (effort.growth_rounds + 1) * effort.calls)
    chosen = random.sample(range(subjects), wanted)
    return {
        name: Measured(name, "fcall", copier.commands(template, customer, chosen))
        for name, template in packed.items()
    }
