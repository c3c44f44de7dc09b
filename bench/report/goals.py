"""What meterd sets out to reach, as ratios of figures of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..core.floor import FLOOR
from ..core.measure import CPU, RATE
from ..core.registry import Finding
from ..core.stats import Measure, Spread
from ..peers import everybody
from ..peers.bare import ASYNC_NAME
from ..peers.ours import NAME
from ..peers.redis_py import FCALL
from ..scenarios import keys, money
from ..scenarios.export import DRAINED
from ..scenarios.imports import WITH_METER
from ..scenarios.local import CACHED, LEASE
from ..scenarios.server_time import LIMITS_FOUR
from .model import GoalRow, rounded

Findings = Mapping[str, Finding]


def measure_of(findings: Findings, key: str, name: str | None = None) -> Measure | None:
    """A measure of a finding, the first if it is not named."""
    finding = findings.get(key)
    if finding is None:
        return None
    return next((m for m in finding.measures if name in (None, m.name)), None)


class Judge:
    """Fills goals in from what was measured."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self._findings = {finding.key: finding for finding in findings}

    def ratio(
        self, goal: GoalRow, key: str, mine: str, over: str, measure: str | None = None
    ) -> GoalRow:
        found = measure_of(self._findings, key, measure)
        if found is None or mine not in found.samples:
            return goal
        if over not in found.samples and over != found.reference:
            return goal
        return filled(goal, found.ratio(mine, over))

    def over_best(self, goal: GoalRow, key: str, peers: list[str]) -> GoalRow:
        """Decisions per second over whichever peer made most of them."""
        found = measure_of(self._findings, key, RATE)
        best = found.best(peers) if found else None
        if best is None:
            return goal
        return replace(self.ratio(goal, key, NAME, best, RATE), against=best)

    def value(self, goal: GoalRow, key: str, mine: str) -> GoalRow:
        found = measure_of(self._findings, key)
        if found is None or mine not in found.samples:
            return goal
        return filled(goal, found.value(mine))

    def growth(self, goal: GoalRow) -> GoalRow:
        """The slower of one limit and four, among the most subjects."""
        worst = goal
        for limits in ("1", "4"):
            found = measure_of(self._findings, f"growth-{limits}")
            if found is None:
                continue
            most = max(found.samples, key=lambda name: int(name.split()[0].replace(",", "")))
            here = filled(goal, found.ratio(most))
            if worst.measured is None or (here.measured or 0) > worst.measured:
                worst = replace(here, against=f"{most}, {limits} limit{'s' * (limits != '1')}")
        return worst


def filled(goal: GoalRow, found: Spread) -> GoalRow:
    return replace(
        goal, measured=rounded(found.median), low=rounded(found.low), high=rounded(found.high)
    )


def at_most(title: str, limit: float | None, unit: str = "x") -> GoalRow:
    return GoalRow(title, limit, False, unit)


def at_least(title: str, limit: float, unit: str = "x") -> GoalRow:
    return GoalRow(title, limit, True, unit)


def beside(title: str) -> GoalRow:
    return GoalRow(title, None, True, "x")


def one_bucket(peers: list[str]) -> list[str]:
    return [name for name in peers if name.endswith("one bucket")]


def four_calls(peers: list[str]) -> list[str]:
    return [name for name in peers if name not in one_bucket(peers)]


def judged(findings: Iterable[Finding]) -> list[GoalRow]:
    """Every goal, with what was measured."""
    judge = Judge(findings)
    sync_peers = everybody.names(everybody.SYNC, "peer")
    async_peers = everybody.names(everybody.ASYNC, "peer")
    one, four = "consume, 1 limit", "consume, 4 limits"
    return [
        judge.ratio(at_most(f"server time, one limit, over {FLOOR}", 1.7), "server", one, FLOOR),
        judge.ratio(at_most(f"server time, four limits, over {FLOOR}", 2.4), "server", four, FLOOR),
        judge.ratio(
            at_most("server time, pool and 3 buckets, over four fixed windows of `limits`", 0.65),
            "server", four, LIMITS_FOUR,
        ),
        judge.ratio(
            at_most("server time of verifying an API key, over `consume` on its path", 1.3),
            "verify", keys.VERIFY, keys.CONSUME,
        ),
        judge.ratio(
            at_most("server time with 8 live grants, over a plain `consume`", 1.4),
            "money", money.GRANTED, money.CONSUME,
        ),
        judge.ratio(
            at_most("server time with an operation id, over a plain `consume`", 1.5),
            "money", money.WITH_OP, money.CONSUME,
        ),
        judge.ratio(
            at_most("server time of reserve and commit together, over a plain `consume`", 2.5),
            "money", money.HELD, money.CONSUME,
        ),
        judge.over_best(
            at_least("async, 64 tasks, one limit, over the best peer", 12),
            "async-64", async_peers,
        ),
        judge.over_best(
            at_least("async, 64 tasks, pool and three buckets, over the best peer's 4 calls", 40),
            "async-four", four_calls(async_peers),
        ),
        judge.over_best(
            beside("… over four rates in one bucket, all of one kind and one cost"),
            "async-four", one_bucket(async_peers),
        ),
        judge.ratio(
            at_least("async, 64 tasks, over raw hiredis pipelining of the same function", 0.7),
            "async-64", NAME, ASYNC_NAME, RATE,
        ),
        judge.over_best(
            at_least("sync, one thread, one limit, over the best peer", 2.5),
            "sync-one", sync_peers,
        ),
        judge.over_best(
            at_least("sync, one thread, pool and three buckets, over the best peer's 4 calls", 9),
            "sync-four", four_calls(sync_peers),
        ),
        judge.over_best(
            beside("… over four rates in one bucket, all of one kind and one cost"),
            "sync-four", one_bucket(sync_peers),
        ),
        judge.ratio(
            at_most("CPU per sync call over redis-py's own `fcall`", 0.4),
            "sync-one", NAME, FCALL, CPU,
        ),
        judge.value(
            at_least("decisions from a lease, one process", 1.5e6, "/s"), "local", LEASE
        ),
        judge.value(at_least("cached refusals, one process", 1e6, "/s"), "local", CACHED),
        judge.value(
            at_most("bytes per subject, pool and three buckets", 176, "bytes"), "bytes", NAME
        ),
        judge.value(
            at_least("billing export to JSON lines, subjects a second, one process", 20_000, "/s"),
            "export", DRAINED,
        ),
        judge.growth(at_most("server time among the most subjects over the fewest", 1.15)),
        judge.ratio(
            at_most("`import meterd` over `import redis`", 1.3), "imports", NAME, "redis"
        ),
        judge.ratio(
            at_most("… `from meterd import Meter`, with all that it needs", None),
            "imports", WITH_METER, "redis",
        ),
    ]  # fmt: skip
