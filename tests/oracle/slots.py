"""Slots: how many may run at once. Taken by holds alone, given back as these end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.oracle.limits import Figures


@dataclass(frozen=True)
class SlotsSpec:
    """The state is a number: how many units are held. Time alone never changes it."""

    name: str
    limit: int
    rates: tuple[tuple[str, int], ...]
    kind = "slots"
    auto = 0

    def fresh(self, now: int, anchor_ms: int) -> int:
        return 0

    def bring(self, state: int, now: int) -> int:
        return state

    def convert(self, old: Any, state: Any, now: int) -> int:
        if not isinstance(old, SlotsSpec):
            return self.fresh(now, now)
        assert isinstance(state, int)
        return state

    def left(self, state: int) -> int:
        return max(0, self.limit - state)

    def figures(self, state: int, now: int) -> Figures:
        return Figures(state, self.left(state), 0, None)

    def spendable(self, state: int, now: int) -> int | None:
        return self.left(state)

    def fits(self, state: int, amount: int, now: int) -> bool:
        return amount == 0 or state + amount <= self.limit

    def retry_after(self, state: int, amount: int, now: int, first_end: int | None) -> int | None:
        """`first_end`: when the first of the record's holds expires. A hint, not a promise."""
        return None if amount > self.limit or first_end is None else first_end - now

    def charge(self, state: int, amount: int, now: int) -> int:
        return state + amount

    def report(self, state: int, amount: int, now: int) -> tuple[int, int]:
        """What has happened without a hold never took a slot."""
        return state, 0

    def overflows(self, state: int) -> bool:
        return False
