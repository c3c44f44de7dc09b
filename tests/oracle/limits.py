"""Pools: what a limit is, what its state is, and every move that state can make.

A *spec* is the effective definition of one limit (groups added up, override applied); a *state* is
an immutable tuple. Every method is a pure function: state in, state out. Except for `bring` and
`convert`'s old state, every state passed in must have been brought to `now` first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tests.oracle import calendar, grants
from tests.oracle.calendar import Grid
from tests.oracle.grants import Grants, Share

MAX_COUNTER = 9 * 10**15


@dataclass(slots=True)
class OLimit:
    """One limit at one level, as a decision or a usage report shows it."""

    subject: tuple[str, ...]
    name: str
    kind: str
    limit: int | None
    used: int
    remaining: int | None
    overage: int
    applied: int
    allowed: bool
    resets_at_ms: int | None
    retry_after_ms: int | None
    drawn: int = 0
    granted: int = 0


class Figures(NamedTuple):
    """`used` counts everything; `drawn` of it came from grants, `granted` is left in live ones."""

    used: int
    remaining: int | None
    overage: int
    resets_at_ms: int | None
    drawn: int = 0
    granted: int = 0


class PoolState(NamedTuple):
    """`end` is None for a period that never ends. A closed pool has `start == end == 0`.

    `grants`: the record's grants for this pool, brought to now as the rest is.
    """

    anchor_ms: int
    start: int
    end: int | None
    open: bool = True
    used: int = 0
    over: int = 0
    carried: int = 0
    drawn: int = 0
    grants: Grants = ()
    said: frozenset[tuple[Any, ...]] = frozenset()  # marks: what this period has told of already


@dataclass(frozen=True)
class PoolSpec:
    """`reset`: None, a unit, or ms. `anchor`: a word, a day 1-31, or ("at", instant in ms).

    `renewed`: the limit from the next period on, where that is another one.
    """

    name: str
    limit: int | None
    reset: str | int | None
    anchor: str | int | tuple[str, int]
    tz: str
    rollover: int
    overage: int | None
    carry_debt: bool
    rates: tuple[tuple[str, int], ...]
    other: tuple[object, ...] = ()
    warn_at: tuple[int, ...] = ()  # millionths
    warn_below: tuple[int, ...] = ()
    bill: str | None = None
    renewed: int | None = None
    kind = "pool"

    @property
    def auto(self) -> Any:
        """What verifying an API key charges unasked."""
        return self.other[0] if self.other else int(self.name == "credits")

    # -- periods ---------------------------------------------------------------------------------

    @cached_property
    def first_use(self) -> bool:
        return self.anchor == "first_use"

    def grid(self, anchor_ms: int) -> Grid:
        """The boundaries. `anchor_ms`: the pool's own anchor (first_use: the period's start)."""
        assert self.reset is not None
        if self.anchor == "calendar":
            assert isinstance(self.reset, str)
            return calendar.calendar_grid(self.reset, self.tz)
        if isinstance(self.anchor, int):
            return calendar.month_day_grid(self.anchor, self.tz)
        origin_ms = self.anchor[1] if isinstance(self.anchor, tuple) else anchor_ms
        return calendar.grid_from(self.reset, self.tz, origin_ms)

    def fresh(self, now: int, anchor_ms: int) -> PoolState:
        """The state of a pool that enters a record at `now`."""
        if self.reset is None:
            return PoolState(anchor_ms, now, None)
        if self.first_use:
            return PoolState(anchor_ms, 0, 0, open=False)
        grid = self.grid(anchor_ms)
        n = grid.index_of(now)
        return PoolState(anchor_ms, grid.boundary(n), grid.boundary(n + 1))

    def ended(self, state: PoolState, now: int) -> bool:
        return state.open and state.end is not None and now >= state.end

    def bring(self, state: PoolState, now: int) -> PoolState:
        """Lazy reset by closed form, however many boundaries were missed."""
        if not self.ended(state, now):
            return state
        carried = self.carry(self.unspent(state))
        if self.first_use:
            return PoolState(state.anchor_ms, 0, 0, False, carried=carried, grants=state.grants)
        assert state.end is not None
        grid = self.grid(state.anchor_ms)
        last = grid.index_of(now)
        # Counted by number: where the clock skips a day, two boundaries are one instant.
        missed = last - grid.index_of(state.end - 1)
        if self.limit is not None:
            carried = self.carry(carried + (missed - 1) * self.limit)
        start, end = grid.boundary(last), grid.boundary(last + 1)
        return PoolState(state.anchor_ms, start, end, carried=carried, grants=state.grants)

    def bring_stepwise(self, state: PoolState, now: int) -> PoolState:
        """The same, one boundary after the other, by the definition of a single period's end."""
        if not self.ended(state, now):
            return state
        if self.first_use:
            return self.close(state)._replace(start=0, end=0, open=False)
        assert state.end is not None
        grid = self.grid(state.anchor_ms)
        n = grid.index_of(state.end - 1) + 1
        while grid.boundary(n) <= now:
            start, end = grid.boundary(n), grid.boundary(n + 1)
            state = self.close(state)._replace(start=start, end=end)
            n += 1
        return state

    def close(self, state: PoolState) -> PoolState:
        """One period's end: nothing used any more, something carried."""
        carried = self.carry(self.unspent(state))
        return state._replace(used=0, drawn=0, over=0, carried=carried, said=frozenset())

    def unspent(self, state: PoolState) -> int | None:
        """N: what a period that ends now leaves behind, negative for debt; None: unbounded.

        Grants are no part of it.
        """
        room = self.room(state)
        return None if room is None else room - state.over - max(0, -state.carried)

    def carry(self, left: int | None) -> int:
        """f: what of it the next period gets."""
        if left is None:
            return self.rollover
        if left >= 0:
            return min(self.rollover, left)
        return left if self.carry_debt else 0

    # -- figures ---------------------------------------------------------------------------------

    def room(self, state: PoolState) -> int | None:
        if self.limit is None:
            return None
        return max(0, self.limit + max(0, state.carried) - state.used)

    def remaining(self, state: PoolState, now: int) -> int | None:
        own = self.unspent(state)
        return None if own is None else own + grants.granted(state.grants, now)

    def figures(self, state: PoolState, now: int) -> Figures:
        used = state.used + state.drawn + state.over
        resets_at = state.end if state.open else None
        left = grants.granted(state.grants, now)
        return Figures(used, self.remaining(state, now), state.over, resets_at, state.drawn, left)

    def spendable(self, state: PoolState, now: int) -> int | None:
        """The largest amount that would fit; None: any."""
        remaining = self.remaining(state, now)
        if remaining is None or self.overage is None:
            return None
        return max(0, remaining + self.overage)

    def fits(self, state: PoolState, amount: int, now: int) -> bool:
        remaining = self.remaining(state, now)
        if amount == 0 or remaining is None or self.overage is None:
            return True
        return amount <= remaining + self.overage

    def retry_after(self, state: PoolState, amount: int, now: int) -> int | None:
        """ms until the first boundary at which the amount fits; None: at none of them.

        A grant counts with what it has now, and only where it is live now and beyond the boundary.
        """
        counted = [grant for grant in state.grants if grant.live(now)]
        while True:
            at = self.fits_at(state, amount - sum(grant.left for grant in counted))
            if at is None:
                return None
            lasting = [grant for grant in counted if not grant.dead(at)]
            if lasting == counted:
                return at - now if at - now <= calendar.CENTURY_MS else None
            counted = lasting  # fewer units: that boundary, or a later one

    def fits_at(self, state: PoolState, amount: int) -> int | None:
        """The first boundary at which the amount fits without any grant."""
        k = self.periods_until_fit(state, amount)
        if k is None:
            return None
        assert state.end is not None
        if self.first_use:
            return state.end
        grid = self.grid(state.anchor_ms)
        try:
            return grid.boundary(grid.index_of(state.end - 1) + k)
        except calendar.OutOfRange:
            return None

    def periods_until_fit(self, state: PoolState, amount: int) -> int | None:
        """The least k >= 1 such that the amount fits once the k-th coming boundary has passed."""
        if not state.open or state.end is None:
            return None
        assert self.limit is not None, "such a pool never refuses"
        assert self.overage is not None, "such a pool never refuses"
        carried = self.carry(self.unspent(state))
        limit = self.limit if self.renewed is None else self.renewed
        needed = amount - limit - self.overage  # fits iff needed <= carried
        if needed <= carried:
            return 1
        # `carried` grows by `limit` per further period, up to `rollover` (debt shrinks to 0).
        if needed > self.rollover or limit == 0 or self.first_use:
            return None
        return 1 + -(-(needed - carried) // limit)

    # -- marks -----------------------------------------------------------------------------------

    def true_marks(self, state: PoolState, now: int) -> list[tuple[Any, ...]]:
        """What could be told of the state."""
        remaining = self.remaining(state, now)
        if remaining is None or self.limit is None:
            return []
        use = state.used + state.drawn + state.over
        own = self.limit + max(0, state.carried)
        total = own + state.drawn + grants.granted(state.grants, now)
        true: list[tuple[Any, ...]] = [
            ("at", share) for share in self.warn_at if use * 1_000_000 >= share * total
        ]
        true += [("below", units) for units in self.warn_below if remaining <= units]
        true += [("exhausted",)] * (remaining <= 0) + [("overage",)] * (state.over > 0)
        return true

    def rearmed(self, state: PoolState, now: int) -> PoolState:
        """There is more to spend than before: what is no longer true may be told again."""
        return state._replace(said=state.said & set(self.true_marks(state, now)))

    def marked(self, old: PoolSpec, state: PoolState, now: int) -> PoolState:
        """The marks that a state keeps under this spec, its figures being those of this spec."""
        known = {("at", n) for n in self.warn_at} | {("below", n) for n in self.warn_below}
        state = state._replace(said=state.said & (known | {("exhausted",), ("overage",)}))
        if self.limit is None or (old.limit is not None and self.limit > old.limit):
            return self.rearmed(state, now)
        return state

    # -- moves -----------------------------------------------------------------------------------

    def opened(self, state: PoolState, now: int) -> PoolState:
        """A closed first_use pool opens its period."""
        if state.open:
            return state
        return state._replace(start=now, end=self.grid(now).boundary(1), open=True)

    def charge(self, state: PoolState, amount: int, now: int) -> PoolState:
        """The sources in burn order, the rest goes over. The caller decides whether it fits."""
        if amount == 0:
            return state
        state = self.opened(state, now)
        shares, over = self.shares(state, amount, now)
        own = sum(units for source, units in shares if source is None)
        return state._replace(
            used=state.used + own,
            drawn=state.drawn + amount - own - over,
            over=state.over + over,
            grants=grants.consumed(state.grants, shares),
        )

    def shares(self, state: PoolState, amount: int, now: int) -> tuple[list[Share], int]:
        """What a charge takes of each source, and what goes over."""
        state = self.opened(state, now)
        return grants.shares_of(amount, self.room(state), state.end, state.grants, now)

    def held(self, state: PoolState, shares: Iterable[Share]) -> PoolState:
        """What a charge just took of the grants is a hold's."""
        return state._replace(grants=grants.held(state.grants, shares))

    def report(self, state: PoolState, amount: int, now: int) -> tuple[PoolState, int]:
        return self.charge(state, amount, now), amount

    def refund(self, state: PoolState, amount: int, now: int) -> tuple[PoolState, int]:
        over = min(amount, state.over)
        after, drawn = grants.refunded(state.grants, min(amount - over, state.drawn), now)
        used = min(amount - over - drawn, state.used)
        state = state._replace(
            over=state.over - over,
            drawn=state.drawn - drawn,
            used=state.used - used,
            grants=after,
        )
        return state, over + drawn + used

    def adjust(self, state: PoolState, used: int, now: int) -> PoolState:
        if used > 0:
            state = self.opened(state, now)
        own = used
        if self.limit is not None:
            own = min(used, self.limit + max(0, state.carried))
        return state._replace(used=own, drawn=0, over=used - own)

    def overflows(self, state: PoolState) -> bool:
        return state.used + state.drawn + state.over + max(0, -state.carried) > MAX_COUNTER

    def just_begun(self, state: PoolState, now: int) -> bool:
        """Whether the period began at this very instant, and nothing was used of it."""
        return state.open and state.start == now and not (state.used or state.drawn or state.over)

    # -- another definition ----------------------------------------------------------------------

    def convert(self, old: Any, state: Any, now: int) -> PoolState:
        """The state under this spec; `state` is brought to `now` under `old`, its former spec."""
        if not isinstance(old, PoolSpec):
            return self.fresh(now, now)
        assert isinstance(state, PoolState)
        if (self.reset, self.anchor, self.tz) == (old.reset, old.anchor, old.tz):
            return state
        if not state.open:
            if self.first_use:
                return state
            fresh = self.fresh(now, state.anchor_ms)
            return state._replace(start=fresh.start, end=fresh.end, open=True)
        return state._replace(end=self.end_after(state, now))

    def end_after(self, state: PoolState, now: int) -> int | None:
        """The first boundary after `now` for the open period of `state`."""
        if self.reset is None:
            return None
        return self.grid(state.start if self.first_use else state.anchor_ms).first_after(now)

    def re_anchor(self, state: PoolState, anchor_ms: int, now: int) -> PoolState:
        """An explicit subscription anchor: use and start stay, the end moves."""
        if self.anchor != "subscription":
            return state
        state = state._replace(anchor_ms=anchor_ms)
        return state._replace(end=self.end_after(state, now))

    def restart(self, state: PoolState, anchor_ms: int, now: int) -> PoolState:
        """A new period from `now`; `state` was closed, or has only just begun."""
        if self.first_use:
            return state._replace(start=0, end=0, open=False, carried=0)
        if self.anchor == "subscription":
            state = state._replace(anchor_ms=anchor_ms)
        state = state._replace(start=now, open=True)
        return state._replace(end=self.end_after(state, now))
