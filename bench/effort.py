"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """`rounds` of `calls` each, over `subjects`; the same for growth and clients."""

    rounds: int
    calls: int
    subjects: int
    growth_rounds: int
    growth_sizes: tuple[int, ...]
    client_rounds: int
    client_seconds: float


FULL = Effort(300, 400, 1000, 120, (1_000, 100_000, 1_000_000), 20, 0.5)
QUICK = Effort(40, 250, 1000, 30, (1_000, 100_000, 1_000_000), 5, 0.25)
TINY = Effort(2, 20, 10, 2, (10, 20, 40), 1, 0.02)  # proves that it runs, measures nothing
