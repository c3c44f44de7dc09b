"""What a run of an exporter did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """What a run did: entries `delivered` and put among the `dead`; of those left, by reason:
    `waiting` for something that is missing here, `retrying`, and partitions that another exporter
    was `busy` with."""

    delivered: int = 0
    dead: int = 0
    waiting: int = 0
    retrying: int = 0
    busy: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @property
    def settled(self) -> int:
        """Entries that are over."""
        return self.delivered + self.dead

    def count_left(self, left: Sequence[tuple[str, bool]]) -> None:
        """What is not settled: why, and whether it is to be tried again."""
        self.retrying = sum(retry for _, retry in left)
        self.waiting = len(left) - self.retrying
        self.reasons = dict(Counter(reason for reason, _ in left))
