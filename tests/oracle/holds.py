"""Holds: what a reservation charged at one level, and how much of that comes back when it ends.

A hold has a *part* of every limit that it charged. What comes back of a part depends on where the
charge stands by now: its period or window may be over, a token bucket may have refilled. A limit's
*incarnation* counts how often its state began anew; a part of an earlier one lapses. What a part
took from grants goes back to these whatever became of the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.oracle.buckets import FixedSpec, SlidingSpec, TokenSpec, ceil_div
from tests.oracle.grants import Grant, Share
from tests.oracle.limits import PoolSpec
from tests.oracle.requests import Amounts
from tests.oracle.slots import SlotsSpec


@dataclass(frozen=True)
class Part:
    """`charged` units of one limit; `factors`: units per cost name, as they were then.

    `mark`: which period or window was charged (a pool's start and a fixed window's in ms, sliding:
    its number), for a token bucket when. Of a pool: `shares`, in the order in which they were
    taken, and `over`, what came after them and no source covered.
    """

    of_spec: type
    charged: int
    factors: tuple[tuple[str, int], ...]
    mark: int
    over: int
    incarnation: int
    shares: tuple[Share, ...] = ()
    bill: str | None = None
    end: int | None = None  # of a pool's period

    def of(self, amounts: Amounts) -> int:
        """How many units these amounts are."""
        return sum(amounts.get(cost, 0) * factor for cost, factor in self.factors)

    def returned(self, keep: int) -> tuple[int, list[Share]]:
        """Of `over` and of each share what comes back: what was taken last comes back first."""
        back = self.charged - keep
        over = min(back, self.over)
        back -= over
        shares: list[Share] = []
        for source, units in reversed(self.shares):
            shares.append((source, min(back, units)))
            back -= shares[-1][1]
        assert back == 0
        return over, shares

    def first(self, keep: int) -> Part:
        """The part without what comes back of it."""
        if self.of_spec is not PoolSpec:
            return replace(self, charged=keep)
        over, shares = self.returned(keep)
        back = dict(shares)
        kept = tuple((source, units - back[source]) for source, units in self.shares)
        return replace(self, charged=keep, over=self.over - over, shares=kept)

    def settled(self, grant: Grant, keep: int, now: int) -> Grant:
        """A grant after the hold ended, whether or not it took anything from this one."""
        taken = dict(self.shares).get(grant.id)
        if taken is None:
            return grant
        back = dict(self.returned(keep)[1])[grant.id]
        return grant.settled(taken - back, back, now)


@dataclass(frozen=True)
class Hold:
    """One level's share of a reservation. `tallied`: what is known to be spent, at most `held`."""

    expires: int
    held: dict[str, int]
    tallied: dict[str, int]
    parts: dict[str, Part]


def part_of(
    spec: Any, before: Any, after: Any, charged: int, held: Amounts, incarnation: int, now: int
) -> Part:
    """The part of a limit that went from one state to another by the charge at `now`."""
    shares, over = spec.shares(before, charged, now) if isinstance(spec, PoolSpec) else ((), 0)
    factors = tuple((cost, factor) for cost, factor in spec.rates if cost in held)
    part = Part(
        type(spec), charged, factors, mark_of(spec, after, now), over, incarnation, tuple(shares)
    )
    return replace(part, bill=spec.bill, end=after.end) if isinstance(spec, PoolSpec) else part


def mark_of(spec: Any, state: Any, now: int) -> int:
    """Where a charge at `now` stands, the state being the one after it."""
    mark: int
    if isinstance(spec, PoolSpec):
        mark = state.start
    elif isinstance(spec, FixedSpec):
        mark = spec.ms(state.start)
    elif isinstance(spec, SlidingSpec):
        mark = state.window
    elif isinstance(spec, TokenSpec):
        mark = now
    else:
        assert isinstance(spec, SlotsSpec)
        mark = 0
    return mark


def kept(spec: Any, part: Part, amounts: Amounts) -> int:
    """The units that stay charged where these amounts of the hold were used. No slot does."""
    return 0 if isinstance(spec, SlotsSpec) else part.of(amounts)


def given_back(spec: Any, state: Any, part: Part, keep: int, now: int) -> Any:
    """The state, which has been brought to `now`, after all but `keep` of the part came back.

    Of a pool that is its period; its grants have been settled by themselves.
    """
    back = part.charged - keep
    if isinstance(spec, SlotsSpec):
        return state - min(back, state)
    if isinstance(spec, PoolSpec):
        if not state.open or state.start != part.mark:
            return state
        # Where others gave back what had gone over, the period's own share comes back instead.
        over, shares = part.returned(keep)
        own = over + dict(shares).get(None, 0)
        over = min(over, state.over)
        used = min(own - over, state.used)
        drawn = min(back - own, state.drawn)
        return state._replace(
            over=state.over - over, used=state.used - used, drawn=state.drawn - drawn
        )
    if isinstance(spec, FixedSpec):
        if state.start != spec.tick(part.mark):
            return state
        return state._replace(taken=state.taken - min(back, state.taken))
    if isinstance(spec, SlidingSpec):
        if state.window == part.mark:
            return state._replace(cur=state.cur - min(back, state.cur))
        if state.window == part.mark + 1:
            return state._replace(prev=state.prev - min(back, state.prev))
        return state
    assert isinstance(spec, TokenSpec)
    elapsed = spec.tick(now) - spec.tick(part.mark)
    refilled = ceil_div(elapsed * spec.limit, spec.ticks)
    unspent = max(0, part.charged - refilled) - max(0, keep - refilled)
    spent = state.spent - min(unspent, state.spent)
    return state._replace(spent=spent, fraction=state.fraction if spent else 0)
