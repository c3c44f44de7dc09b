"""Rate limits: fixed window, sliding window and token bucket, in exact integers.

Bucket time is counted in ticks of `tick_ms` milliseconds; a window or refill interval has `ticks`
of them. As in `limits`, every method is a pure function of immutable states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tests.oracle.errors import PolicyError
from tests.oracle.limits import Figures


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class BucketSpec:
    """What the three algorithms share."""

    name: str
    limit: int
    per_ms: int
    burst: int | None
    rates: tuple[tuple[str, int], ...]
    other: tuple[object, ...] = ()
    kind = "bucket"

    @cached_property
    def size(self) -> int:
        """B: the most a single call can spend."""
        return self.limit if self.burst is None else self.burst

    @cached_property
    def tick_ms(self) -> int:
        """t: one tick, long enough that products stay exact in 53 bits."""
        return max(1, ceil_div(max(self.limit, self.size) * self.per_ms, 2**52))

    @cached_property
    def ticks(self) -> int:
        """P: how many ticks a window lasts."""
        return ceil_div(self.per_ms, self.tick_ms)

    @property
    def auto(self) -> Any:
        return self.other[0] if self.other else 0

    def tick(self, now: int) -> int:
        return now // self.tick_ms

    def ms(self, tick: int) -> int:
        return tick * self.tick_ms

    def left(self, state: Any, now: int) -> int:
        """What one more call could spend right now."""
        raise NotImplementedError

    def add(self, state: Any, amount: int, now: int) -> Any:
        """`amount` more, which is above 0."""
        raise NotImplementedError

    def spendable(self, state: Any, now: int) -> int | None:
        return self.left(state, now)

    def fits(self, state: Any, amount: int, now: int) -> bool:
        return amount == 0 or amount <= self.left(state, now)

    def charge(self, state: Any, amount: int, now: int) -> Any:
        return self.add(state, amount, now) if amount else state

    def report(self, state: Any, amount: int, now: int) -> tuple[Any, int]:
        applied = min(amount, self.left(state, now))
        return self.charge(state, applied, now), applied

    def overflows(self, state: Any) -> bool:
        return False

    def check_adjust(self, used: int) -> None:
        if used > self.size:
            raise PolicyError(f"{self.name}: used {used} is above {self.size}")


class FixedState(NamedTuple):
    """`start` is the window's first tick; None while closed, and then `taken` is 0."""

    taken: int = 0
    start: int | None = None


@dataclass(frozen=True)
class FixedSpec(BucketSpec):
    """A window opens at the first charge after the last one ended and lasts `ticks`."""

    def fresh(self, now: int, anchor_ms: int) -> FixedState:
        return FixedState()

    def bring(self, state: FixedState, now: int) -> FixedState:
        if state.start is not None and self.tick(now) - state.start >= self.ticks:
            return FixedState()
        return state

    def left(self, state: FixedState, now: int) -> int:
        return max(0, self.limit - state.taken)

    def add(self, state: FixedState, amount: int, now: int) -> FixedState:
        start = self.tick(now) if state.start is None else state.start
        return FixedState(state.taken + amount, start)

    def refund(self, state: FixedState, amount: int, now: int) -> tuple[FixedState, int]:
        back = min(amount, state.taken)
        return state._replace(taken=state.taken - back), back

    def adjust(self, state: FixedState, used: int, now: int) -> FixedState:
        self.check_adjust(used)
        start = self.tick(now) if state.start is None and used else state.start
        return FixedState(used, start)

    def ends_at(self, state: FixedState) -> int | None:
        return None if state.start is None else self.ms(state.start + self.ticks)

    def figures(self, state: FixedState, now: int) -> Figures:
        return Figures(state.taken, self.left(state, now), 0, self.ends_at(state))

    def retry_after(self, state: FixedState, amount: int, now: int) -> int | None:
        end = self.ends_at(state)
        return end - now if amount <= self.limit and end is not None else None

    def full_at(self, state: FixedState, now: int) -> int:
        end = self.ends_at(state)
        return now if end is None or state.taken == 0 else end

    def convert(self, old: Any, state: Any, now: int) -> FixedState:
        if not isinstance(old, FixedSpec):
            return self.fresh(now, now)
        assert isinstance(state, FixedState)
        if state.start is None:
            return state
        return FixedState(state.taken, state.start * old.tick_ms // self.tick_ms)


class SlidingState(NamedTuple):
    """Counts of the window with number `window` and of the one before it."""

    window: int
    cur: int = 0
    prev: int = 0


@dataclass(frozen=True)
class SlidingSpec(BucketSpec):
    """The previous window's count fades linearly while the current one runs."""

    def fresh(self, now: int, anchor_ms: int) -> SlidingState:
        return SlidingState(self.tick(now) // self.ticks)

    def bring(self, state: SlidingState, now: int) -> SlidingState:
        window = self.tick(now) // self.ticks
        if window == state.window:
            return state
        return SlidingState(window, 0, state.cur if window == state.window + 1 else 0)

    def used(self, state: SlidingState, now: int) -> int:
        elapsed = self.tick(now) % self.ticks
        return state.cur + ceil_div(state.prev * (self.ticks - elapsed), self.ticks)

    def left(self, state: SlidingState, now: int) -> int:
        return max(0, self.limit - self.used(state, now))

    def fits(self, state: SlidingState, amount: int, now: int) -> bool:
        """By the inequality itself, so that `left` is checked against it."""
        elapsed = self.tick(now) % self.ticks
        free = self.limit - state.cur - amount
        fits = free * self.ticks >= state.prev * (self.ticks - elapsed) and free >= 0
        return amount == 0 or fits

    def add(self, state: SlidingState, amount: int, now: int) -> SlidingState:
        return state._replace(cur=state.cur + amount)

    def refund(self, state: SlidingState, amount: int, now: int) -> tuple[SlidingState, int]:
        back = min(amount, state.cur)
        return state._replace(cur=state.cur - back), back

    def adjust(self, state: SlidingState, used: int, now: int) -> SlidingState:
        self.check_adjust(used)
        return SlidingState(state.window, used)

    def figures(self, state: SlidingState, now: int) -> Figures:
        end = self.ms((state.window + 1) * self.ticks)
        return Figures(self.used(state, now), self.left(state, now), 0, end)

    def retry_after(self, state: SlidingState, amount: int, now: int) -> int | None:
        if amount > self.limit:
            return None
        start = state.window * self.ticks
        # In the running window `cur` blocks and `prev` fades; in the next one `cur` itself fades.
        stages = ((start, state.cur, state.prev), (start + self.ticks, 0, state.cur))
        for first, blocked, fading in stages:
            free = self.limit - blocked - amount
            if free < 0:
                continue
            # It fits from the least elapsed e on with fading * (ticks - e) <= free * ticks.
            elapsed = max(0, self.ticks - free * self.ticks // fading) if fading else 0
            if elapsed < self.ticks:
                return self.ms(first + elapsed) - now
        return self.ms(start + 2 * self.ticks) - now

    def full_at(self, state: SlidingState, now: int) -> int:
        windows = 2 if state.cur else 1 if state.prev else 0
        return self.ms((state.window + windows) * self.ticks) if windows else now

    def convert(self, old: Any, state: Any, now: int) -> SlidingState:
        same = isinstance(old, SlidingSpec) and (
            (old.per_ms, old.tick_ms) == (self.per_ms, self.tick_ms)
        )
        if not same:
            return self.fresh(now, now)
        assert isinstance(state, SlidingState)
        return state


class TokenState(NamedTuple):
    """`spent` of the burst as of `tick`; `fraction` / ticks of one more unit has come back."""

    spent: int
    fraction: int
    tick: int


@dataclass(frozen=True)
class TokenSpec(BucketSpec):
    """A burst of `size`, refilled by `limit` per interval, remainders carried exactly."""

    def fresh(self, now: int, anchor_ms: int) -> TokenState:
        return TokenState(0, 0, self.tick(now))

    def bring(self, state: TokenState, now: int) -> TokenState:
        tick = self.tick(now)
        refill = (tick - state.tick) * self.limit + state.fraction
        spent = state.spent - refill // self.ticks
        return TokenState(spent, refill % self.ticks, tick) if spent > 0 else TokenState(0, 0, tick)

    def left(self, state: TokenState, now: int) -> int:
        return max(0, self.size - state.spent)

    def add(self, state: TokenState, amount: int, now: int) -> TokenState:
        return state._replace(spent=state.spent + amount)

    def refund(self, state: TokenState, amount: int, now: int) -> tuple[TokenState, int]:
        back = min(amount, state.spent)
        spent = state.spent - back
        return state._replace(spent=spent, fraction=state.fraction if spent else 0), back

    def adjust(self, state: TokenState, used: int, now: int) -> TokenState:
        self.check_adjust(used)
        return TokenState(used, 0, self.tick(now))

    def ticks_until(self, state: TokenState, spent: int) -> int | None:
        """Ticks until no more than `spent` is spent; None: never."""
        if state.spent <= spent:
            return 0
        if self.limit == 0:
            return None
        return ceil_div((state.spent - spent) * self.ticks - state.fraction, self.limit)

    def figures(self, state: TokenState, now: int) -> Figures:
        wait = self.ticks_until(state, 0)
        full = self.reached(state, wait) if wait else None
        return Figures(state.spent, self.left(state, now), 0, full)

    def reached(self, state: TokenState, wait: int) -> int | None:
        """The instant `wait` ticks on; None where no clock reaches it."""
        at = self.ms(state.tick + wait)
        return at if at < 2**53 else None

    def retry_after(self, state: TokenState, amount: int, now: int) -> int | None:
        if amount > self.size:
            return None
        wait = self.ticks_until(state, self.size - amount)
        at = None if wait is None else self.reached(state, wait)
        return None if at is None else at - now

    def full_at(self, state: TokenState, now: int) -> int | None:
        wait = self.ticks_until(state, 0)
        return None if wait is None else self.reached(state, wait) if wait else now

    def convert(self, old: Any, state: Any, now: int) -> TokenState:
        if not isinstance(old, TokenSpec):
            return self.fresh(now, now)
        assert isinstance(state, TokenState)
        spent = min(state.spent, self.size)
        same = (old.ticks, old.tick_ms) == (self.ticks, self.tick_ms)
        return TokenState(spent, state.fraction if same and spent else 0, self.tick(now))
