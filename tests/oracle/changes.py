"""Changes of plans: limits that move in proportion to the time left, and changes that wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.oracle.limits import PoolSpec, PoolState
from tests.oracle.plans import Specs

DAY_MS = 86_400_000
INTERVALS_MS = {
    "hour": DAY_MS // 24,
    "day": DAY_MS,
    "week": 7 * DAY_MS,
    "month": 2_629_746_000,
    "quarter": 3 * 2_629_746_000,
    "year": 12 * 2_629_746_000,
}


@dataclass(frozen=True)
class Share:
    """By how much a pool's limit differs from its plans' until its period ends, by group."""

    differs: Mapping[str, int]
    end: int


@dataclass(frozen=True)
class Waiting:
    """A change of a group that is to come. `plan`: an id, a private plan, or None: it goes."""

    at: int
    plan: Any
    change: str
    anchor_ms: int | None = None


@dataclass(frozen=True)
class OPending:
    """A change that waits, as a usage report shows it."""

    group: str
    plan: str | None
    at_ms: int
    change: str


def shared(spec: PoolSpec, share: Share) -> PoolSpec:
    """The spec in force until the share ends; `spec` is the plans'."""
    assert spec.limit is not None
    return replace(spec, limit=max(0, spec.limit + sum(share.differs.values())), renewed=spec.limit)


def share_after(
    old: PoolSpec,
    new: PoolSpec,
    share: Share | None,
    state: PoolState,
    now: int,
    change: str | None,
    group: str,
) -> Share | None:
    """The share once the plans' limit went from one to the other, the period being `state`'s.

    `change`, `group`: the change that this is; None: only the definition of plans is another.
    """
    if old.limit is None or new.limit is None or not state.open or state.end is None:
        return None
    differs = dict(share.differs) if share is not None else {}
    gap = new.limit - old.limit
    if change == "prorate":
        points = 10_000 * (state.end - now) // (state.end - state.start)
        moved = abs(gap) * points // 10_000
        in_force = old.limit + differs.get(group, 0) + (moved if gap > 0 else -moved)
        differs[group] = in_force - new.limit
    elif change is not None and gap:
        # The plan's limit counts in full; what a downgrade left beyond it stays.
        differs[group] = max(0, differs.get(group, 0))
    elif gap < 0:
        # The limit in force falls only once nothing is held back any more.
        for other in sorted(differs):
            less = min(max(0, -differs[other]), -gap)
            differs[other] += less
            gap += less
    differs = {other: amount for other, amount in differs.items() if amount}
    return Share(differs, state.end) if differs else None


def period_end(
    specs: Specs, states: Mapping[str, Any], names: frozenset[str], now: int
) -> int | None:
    """The next boundary of the pool with the longest interval; the latest among equals."""
    found = []
    for name in names & set(specs):
        spec = specs[name]
        if not isinstance(spec, PoolSpec) or spec.reset is None:
            continue
        state = spec.bring(states[name], now)
        if state.open and state.end is not None:
            reset = spec.reset
            interval = reset if isinstance(reset, int) else INTERVALS_MS[reset]
            found.append((interval, state.end))
    return max(found)[1] if found else None
