"""Server time per call, as a multiple of the floor that was measured next to it.

Every sample of a scenario stands between two samples of the floor, a few milliseconds apart, so
that whatever else the machine is busy with slows both; the figure is the median over many rounds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench.effort import Effort
from bench.floor import FLOOR, Measured
from bench.floor import prepare as prepare_floor
from bench.raw import Raw
from bench.scenarios import Copier
from bench.scenarios import prepare as prepare_scenarios


@dataclass(frozen=True, slots=True)
class Cost:
    """Median µs per call, median ratio to the floor, and the ratio's quartiles."""

    name: str
    usec: float
    ratio: float
    low: float
    high: float


def measure(url: str, path: str, effort: Effort) -> list[Cost]:
    """The floor first, then what else is simple, then every scenario by FCALL and by EVALSHA."""
    with (
        Raw(path) as raw,
        Copier(raw, url) as functions,
        Copier(raw, url, functions=False) as scripts,
    ):
        floor, *simple = prepare_floor(raw, effort.subjects)
        scenarios = [
            *prepare_scenarios(functions, effort.subjects),
            *prepare_scenarios(scripts, effort.subjects),
        ]
        return compare(raw, floor, [*simple, *scenarios], effort)


def compare(raw: Raw, floor: Measured, others: Sequence[Measured], effort: Effort) -> list[Cost]:
    floors: list[float] = []
    usec: dict[str, list[float]] = {other.name: [] for other in others}
    ratios: dict[str, list[float]] = {other.name: [] for other in others}
    for measured in (floor, *others):
        raw.timed(measured.batch(effort.calls), measured.stat)  # warm
    for _ in range(effort.rounds):
        before = raw.timed(floor.batch(effort.calls), floor.stat)
        for other in random.sample(others, len(others)):
            taken = raw.timed(other.batch(effort.calls), other.stat)
            after = raw.timed(floor.batch(effort.calls), floor.stat)
            usec[other.name].append(taken)
            ratios[other.name].append(2 * taken / (before + after))
            floors.append(after)
            before = after
    costs = [Cost(FLOOR, median(floors), 1.0, 1.0, 1.0)]
    for other in others:
        low, middle, high = quantiles(ratios[other.name], n=4, method="inclusive")
        costs.append(Cost(other.name, median(usec[other.name]), middle, low, high))
    return costs
