"""A grant as its record has it. A value, immutable."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits that a pool got beside its own allowance: `amount`, and what became of it.

    amount = consumed + remaining + held + expired: used for good, still to be spent, with open
    holds, and lost because the grant ended or was made void. `starts_ms`, `expires_ms`: epoch ms
    (None: it never expires). `priority`: low ones burn first, a period's own allowance has 50.
    """

    id: str
    name: str
    amount: int
    remaining: int
    held: int
    consumed: int
    expired: int
    starts_ms: int
    expires_ms: int | None
    priority: int
    source: str

    @property
    def starts(self) -> datetime:
        """`starts_ms` as an aware UTC datetime."""
        return _instant(self.starts_ms)

    @property
    def expires(self) -> datetime | None:
        """`expires_ms` as an aware UTC datetime, None if it never expires."""
        return None if self.expires_ms is None else _instant(self.expires_ms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        at = self.expires
        return {
            "id": self.id,
            "name": self.name,
            "amount": self.amount,
            "remaining": self.remaining,
            "held": self.held,
            "consumed": self.consumed,
            "expired": self.expired,
            "starts": self.starts.isoformat(),
            "expires": at.isoformat() if at else None,
            "priority": self.priority,
            "source": self.source,
        }


def _instant(ms: int) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
