"""Flags: features that a plan includes or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.oracle.limits import Figures


@dataclass(frozen=True)
class FlagSpec:
    """A feature: included or not. It has no state, and any amount of it fits."""

    name: str
    kind = "flag"
    limit = None
    auto = 0

    @property
    def rates(self) -> tuple[tuple[str, int], ...]:
        return ((self.name, 1),)

    def fresh(self, now: int, anchor_ms: int) -> None:
        return None

    def bring(self, state: None, now: int) -> None:
        return None

    def convert(self, old: Any, state: Any, now: int) -> None:
        return None

    def figures(self, state: None, now: int) -> Figures:
        return Figures(0, None, 0, None)

    def spendable(self, state: None, now: int) -> int | None:
        return None

    def fits(self, state: None, amount: int, now: int) -> bool:
        return True

    def retry_after(self, state: None, amount: int, now: int) -> int | None:
        return None

    def charge(self, state: None, amount: int, now: int) -> None:
        return None

    def report(self, state: None, amount: int, now: int) -> tuple[None, int]:
        return None, 0

    def refund(self, state: None, amount: int, now: int) -> tuple[None, int]:
        return None, 0

    def overflows(self, state: None) -> bool:
        return False
