"""How long a limit's window is, for the `w` of RateLimit-Policy: from the catalog, without I/O.

An answer of the engine tells a limit's figures, not its plan. Where the catalog's definitions leave
open which window it is, nothing is said: `w` is optional, and better missing than wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from meterd.policy import Bucket, Plan, Pool
from meterd.result import LimitState

if TYPE_CHECKING:
    from meterd.store import Store

_SECONDS = {"hour": 3600, "day": 86_400, "week": 604_800}


class _Known(NamedTuple):
    limit: int | None
    window: int | None
    charged: frozenset[str]


_Index = dict[tuple[str, str], list[_Known]]


def window_seconds(limit: Bucket | Pool) -> int | None:
    """Whole seconds, rounded up; None where there is no fixed number of them.

    A day counts as 86,400 s; a month, a quarter or a year has no such number.
    """
    if isinstance(limit, Bucket):
        return -(-limit.per_ms // 1000)
    if limit.interval_ms is not None:
        return -(-limit.interval_ms // 1000)
    return _SECONDS.get(limit.reset_kind or "")


class Windows:
    """The windows of one store's limits, or of the plan of one limiter."""

    def __init__(self, store: Store, plan: Plan | None = None) -> None:
        self._store = store
        self._read: tuple[object, _Index] | None = None
        if plan is not None:
            self._read = (None, _indexed([plan]))
        self._pinned = plan is not None

    def __call__(self, state: LimitState) -> int | None:
        """The window of a limit, in seconds; None if it has none or it is not certain."""
        known = self._index().get((state.kind, state.name), [])
        exact = {one.window for one in known if one.limit == state.limit}
        if len(exact) == 1:
            return exact.pop()
        # Overridden, or added up from several plans: they agree, unless a private plan is meant.
        every = {one.window for one in known}
        private = any(one.charged & self._store.guarded for one in known)
        return every.pop() if len(every) == 1 and not private else None

    def _index(self) -> _Index:
        read, catalog = self._read, self._store.catalog
        if read is None or (read[0] is not catalog and not self._pinned):
            read = self._read = (catalog, _indexed(catalog.plans.values()))
        return read[1]


def _indexed(plans: Iterable[Plan]) -> _Index:
    index: _Index = {}
    for plan in plans:
        for limit in plan.includes:
            if isinstance(limit, Bucket | Pool):
                known = _Known(limit.limit, window_seconds(limit), frozenset(limit.charges))
                index.setdefault((limit.kind, limit.name), []).append(known)
    return index
