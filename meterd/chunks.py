"""What leases are made of: chunks, how long they last, how large they may be. No I/O, no state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from meterd import wire
from meterd.errors import PolicyError
from meterd.keys import Path
from meterd.result import Decision, LimitState
from meterd.timespec import refuse

# Where there is one, a clock that goes on while the machine is suspended.
_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", None)
clock: Callable[[], float] = time.monotonic if _BOOT is None else partial(time.clock_gettime, _BOOT)

Units = str | dict[str, int]  # what one unit of a lease costs


@dataclass(slots=True, eq=False)
class Chunk:
    """What was taken at once. `definite` of it is charged for good, `asked` perhaps."""

    size: int
    hold_id: str
    path: Path
    taken: float  # the instants of a chunk are on this process's clock
    end: float  # from here on nothing of it is sold
    expires: float  # from here on the server gives back what is not definite
    definite: int = 0
    asked: int = 0
    sold: int = 0  # once it is given up
    seen: int = 0  # sold when the lease was last looked after

    @property
    def piece(self) -> int:
        """How many units become definite at a time."""
        return max(self.size // 16, min(4, self.size // 4), 1)


def units(value: object, field: str) -> int:
    """A number of units: a plain integer, 1 to 10**15."""
    if type(value) is not int or not 1 <= value <= wire.MAX_AMOUNT:
        raise refuse(field, value, "a plain integer, 1 to 10**15")
    return value


def times(one: Units, n: int) -> tuple[Units, int]:
    """What `n` units cost, as costs and an amount."""
    if isinstance(one, str):
        return one, n
    return {name: value * n for name, value in one.items()}, 1


def lives_ms(decision: Decision, now_ms: int, ttl_ms: int) -> int:
    """How long a chunk may be sold: its ttl, or until a period or window ends that was charged.

    A token bucket has no windows: there it is until the bucket would be full again.
    """
    ends = [
        state.resets_at_ms - now_ms
        for state in decision.limits
        if state.applied > 0 and state.resets_at_ms is not None
    ]
    return max(0, min([ttl_ms, *ends]))


def less(one: Units, decision: Decision, size: int) -> int:
    """How large a chunk may fit where `size` did not; 0: that cannot be told."""
    balance = decision.balance
    if isinstance(one, str):
        return balance if balance is not None and balance < size else 0
    first = next(iter(one.values()))
    half = size // 2
    return half if balance is None or not first else min(half, balance // first)


def refuse_never(one: Units, decision: Decision, size: int) -> None:
    """Raises if a limit could not give that much at any time."""
    for state in decision.refused:
        if state.retry_after is None and _above(one, state, decision, size):
            raise PolicyError(
                f"lease: amount={size} of {one!r} is more than {state.kind} {state.name!r} of "
                f"{state.subject!r} can ever give (limit: {state.limit}); take a smaller amount"
            )


def _above(one: Units, state: LimitState, decision: Decision, size: int) -> bool:
    if state.kind != "pool" or state.resets_at_ms is not None:
        return state.kind != "slots"  # "never" is for good
    # A pool that never resets says so too when it is used up; its balance tells the two apart.
    if decision.balance is None or len(decision.refused) != 1:
        return False
    if not isinstance(one, str):
        if len(one) != 1:
            return False
        size *= next(iter(one.values()))
    return size > decision.balance + state.used


def refuse_slots(one: Units, decision: Decision) -> None:
    """Raises if slots were reached: they are given back when a hold ends, whatever was tallied."""
    for state in decision.limits:
        if state.kind == "slots":
            raise PolicyError(
                f"lease: {one!r} reaches the slots {state.name!r}, which a lease cannot sell; "
                "allowed: pools and buckets"
            )
