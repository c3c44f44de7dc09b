"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of every scenario. A block is the time that one contender runs before the next does."""

    name: str
    # server time: `calls` pipelined calls per sample, over so many subjects
    rounds: int
    calls: int
    subjects: int
    growth_rounds: int
    growth_sizes: tuple[int, ...]
    # clients
    blocks: int
    block_s: float
    tasks: tuple[int, ...]
    threads: tuple[int, ...]
    many_subjects: int
    # open loop
    rates: tuple[int, ...]
    open_blocks: int
    open_s: float
    # the rest
    census_calls: int
    balance_subjects: int
    export_entries: int
    export_rounds: int
    imports: int


FULL = Effort(
    name="full",
    rounds=300,
    calls=400,
    subjects=1000,
    growth_rounds=120,
    growth_sizes=(1_000, 10_000, 100_000, 1_000_000),
    blocks=12,
    block_s=0.35,
    tasks=(1, 16, 64, 256),
    threads=(1, 4, 16),
    many_subjects=1_000_000,
    rates=(500, 2_000, 5_000),
    open_blocks=5,
    open_s=2.5,
    census_calls=500,
    balance_subjects=200_000,
    export_entries=100_000,
    export_rounds=5,
    imports=12,
)
QUICK = Effort(
    name="quick",
    rounds=40,
    calls=250,
    subjects=1000,
    growth_rounds=30,
    growth_sizes=(1_000, 100_000, 1_000_000),
    blocks=3,
    block_s=0.12,
    tasks=(1, 16, 64, 256),
    threads=(1, 4, 16),
    many_subjects=100_000,
    rates=(500, 2_000),
    open_blocks=2,
    open_s=0.8,
    census_calls=200,
    balance_subjects=50_000,
    export_entries=50_000,
    export_rounds=2,
    imports=3,
)
# Proves that everything runs, measures nothing.
TINY = Effort(
    name="tiny",
    rounds=2,
    calls=20,
    subjects=10,
    growth_rounds=2,
    growth_sizes=(10, 20, 40),
    blocks=1,
    block_s=0.01,
    tasks=(1, 64),
    threads=(1, 2),
    many_subjects=200,
    rates=(200,),
    open_blocks=1,
    open_s=0.1,
    census_calls=5,
    balance_subjects=3_000,
    export_entries=300,
    export_rounds=1,
    imports=1,
)
