"""The figures of a run, beside the goals, as text and as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.clients import Rate
from bench.server_time import Cost
from bench.storage import Growth, Size

# Multiples of the floor.
TIME_GOALS = {"consume, 1 limit": 1.7, "consume, 4 limits": 2.4}
MEMORY_GOAL = 192  # bytes for a pool and three buckets, the key included
GROWTH_GOAL = 1.15  # multiple of the time among the fewest subjects


@dataclass(frozen=True, slots=True)
class Goal:
    name: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit

    @property
    def word(self) -> str:
        return f"<= {self.limit:g} {'met' if self.met else 'MISSED'}"


@dataclass(slots=True)
class Figures:
    """Everything a run found out; what was not asked for is empty."""

    server: str = ""
    costs: list[Cost] = field(default_factory=list)
    size: Size | None = None
    growth: list[Growth] = field(default_factory=list)
    clients: list[Rate] = field(default_factory=list)

    def goals(self) -> list[Goal]:
        found = [
            Goal(cost.name, cost.ratio, TIME_GOALS[cost.name])
            for cost in self.costs
            if cost.name in TIME_GOALS
        ]
        if self.size is not None:
            found.append(Goal("bytes per subject", self.size.memory, MEMORY_GOAL))
        for row in self.growth:
            if row.subjects == max(other.subjects for other in self.growth):
                found.append(Goal(f"growth, {row.name}", row.ratio, GROWTH_GOAL))
        return found

    def as_dict(self) -> dict[str, Any]:
        """What --json writes."""
        return {
            "versions": versions(self.server),
            "commit": commit(),
            "machine": machine(),
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals()],
            "server_time": [asdict(cost) for cost in self.costs],
            "bytes": None if self.size is None else asdict(self.size),
            "growth": [asdict(row) for row in self.growth],
            "clients": [asdict(row) for row in self.clients],
        }

    def text(self) -> str:
        goals = {goal.name: goal.word for goal in self.goals()}
        blocks = [self.server]
        if self.costs:
            head = ("server time", "us/call", "x floor", "quartiles", "goal")
            blocks.append(
                table(
                    head,
                    (
                        (
                            c.name,
                            f"{c.usec:.2f}",
                            f"{c.ratio:.2f}",
                            spread(c),
                            goals.get(c.name, ""),
                        )
                        for c in self.costs
                    ),
                )
            )
        if self.size is not None:
            row = (
                "a pool and 3 buckets",
                f"{self.size.memory}",
                f"{self.size.key}",
                f"{self.size.record}",
                goals["bytes per subject"],
            )
            blocks.append(table(("bytes per subject", "memory", "key", "record", "goal"), [row]))
        if self.growth:
            most = max(row.subjects for row in self.growth)
            blocks.append(
                table(
                    ("growth", "us/call", "x fewest", "quartiles", "goal"),
                    (
                        (
                            f"{row.name} of {row.subjects:,} subjects",
                            f"{row.usec:.2f}",
                            f"{row.ratio:.2f}",
                            spread(row),
                            goals[f"growth, {row.name}"] if row.subjects == most else "",
                        )
                        for row in self.growth
                    ),
                )
            )
        if self.clients:
            blocks.append(
                table(
                    ("decisions per second", "meterd", "redis-py", "ratio", ""),
                    (
                        (r.name, f"{r.meterd:,.0f}", f"{r.redis_py:,.0f}", f"{r.ratio:.2f}", "")
                        for r in self.clients
                    ),
                )
            )
        return "\n\n".join(blocks)


def spread(row: Cost | Growth) -> str:
    return f"{row.low:.2f}-{row.high:.2f}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """The first column to the left, the others to the right, the goal to the left again."""
    lines = []
    for name, *figures, goal in (head, *rows):
        cells = "".join(f"{figure:>12}" for figure in figures)
        lines.append(f"{name:<34}{cells}  {goal}".rstrip())
    return "\n".join(lines)


def versions(server: str) -> dict[str, str]:
    packages = ("meterd", "redis", "hiredis", "msgpack")
    return {
        "python": platform.python_version(),
        "server": server,
        **{name: version(name) for name in packages},
    }


def commit() -> str | None:
    """The checkout's commit, "+" behind it if files differ; None outside of a checkout."""
    try:
        done = [
            subprocess.run(
                ["git", *words],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return done[0] + ("+" if done[1] else "")


def machine() -> dict[str, Any]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"platform": platform.platform(), "processor": model, "cpus": os.cpu_count()}
