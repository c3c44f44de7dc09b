"""Entries on their way, and what people are shown of those that are waiting, or dead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgpack

from meterd.export.entry import Entry, decode_entry


class Tries(NamedTuple):
    """What is known of earlier attempts. `first_ms`: the first that may have arrived; 0: none."""

    first_ms: int = 0
    attempts: int = 0
    reason: str = ""

    def packed(self) -> bytes:
        made: bytes = msgpack.packb(tuple(self))
        return made


UNTRIED = Tries()


@dataclass(slots=True)
class Item:
    """An entry on its way. `entry` is None, and `broken` says why, if it cannot be read."""

    partition: int
    stream_id: bytes
    data: bytes
    entry: Entry | None
    broken: str = ""
    tries: Tries = UNTRIED
    meta: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, partition: int, stream_id: bytes, data: bytes) -> Item:
        try:
            return cls(partition, stream_id, data, decode_entry(partition, stream_id, data))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            return cls(partition, stream_id, data, None, f"it cannot be read: {error}")


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter: use that is not going to be delivered unless somebody says so.

    `attempted`: when it was sent last, or first if it was sent several times; None: never.
    """

    id: str
    sink: str
    reason: str
    at: datetime
    attempted: datetime | None
    entry: Entry | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        return {
            "id": self.id,
            "sink": self.sink,
            "reason": self.reason,
            "at": self.at.isoformat(),
            "attempted": self.attempted.isoformat() if self.attempted else None,
            "entry": None if self.entry is None else self.entry.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Waiting:
    """Use that is not delivered yet. `reason`: what the last attempt, or the sink, said."""

    entry: Entry
    attempts: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        return {**self.entry.as_dict(), "attempts": self.attempts, "reason": self.reason}
