"""An event: something that happened to a limit, and how it is read from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgpack

from meterd import wire
from meterd.keys import Subject, display, parse_path, tag_at
from meterd.result import instant
from meterd.streams import Message
from meterd.timespec import refuse

TYPES = ("warn", "exhausted", "overage", "closed")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a limit, once per period.

    `type`: "warn" (`threshold` was crossed: a fraction of what the period offers as a float, or
    remaining units as an int), "exhausted", "overage", or "closed" (a period with use has ended).
    `id` stays the same when an event is delivered again. Amounts are as they were then; `limit` and
    `remaining` are None where unlimited, `period_end` is None where a period has none. `meta`: what
    `set_meta` stored for the root, as it is now.
    """

    id: str
    type: str
    subject: Subject
    name: str
    plan: str
    limit: int | None
    used: int
    remaining: int | None
    period_start: datetime
    period_end: datetime | None
    at: datetime
    meta: dict[str, Any]
    threshold: float | int | None = None

    @property
    def root(self) -> str:
        """The customer: the first segment of the subject."""
        return self.subject.partition("/")[0] if type(self.subject) is str else self.subject[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        end = self.period_end
        found = {
            "id": self.id,
            "type": self.type,
            "subject": self.subject if type(self.subject) is str else list(self.subject),
            "name": self.name,
            "plan": self.plan,
            "limit": self.limit,
            "used": self.used,
            "remaining": self.remaining,
            "period_start": self.period_start.isoformat(),
            "period_end": end.isoformat() if end else None,
            "at": self.at.isoformat(),
            "meta": self.meta,
        }
        return found | {"threshold": self.threshold} if self.type == "warn" else found


def row_of(message: Message) -> list[Any]:
    """The values of an entry; ValueError and the like for what is none."""
    if message.data is None:
        raise ValueError("it is empty")
    row: list[Any] = msgpack.unpackb(message.data)
    if len(row) < 10:
        raise ValueError(f"it has {len(row)} values")
    return row


def event_of(partition: int, message: Message, row: list[Any], meta: dict[str, Any]) -> Event:
    """The event that an entry of a partition's stream tells of."""
    kind, subject, name, plan, limit, used, remaining, start, end, at = row[:10]
    end_ms = _number(end)
    return Event(
        id=event_id(partition, message),
        type=kind,
        subject=display(parse_path(subject.encode())),
        name=name,
        plan=plan,
        limit=_number(limit),
        used=int(used),
        remaining=_number(remaining),
        period_start=instant(int(start)),
        period_end=None if end_ms is None else instant(end_ms),
        at=instant(int(at)),
        meta=meta,
        threshold=_threshold(row[10]) if len(row) > 10 else None,
    )


def event_id(partition: int, message: Message) -> str:
    return f"{tag_at(partition).decode()}-{message.id.decode()}"


def _number(value: Any) -> int | None:
    return None if value is None or value == wire.NONE else int(value)


def _threshold(text: Any) -> float | int | None:
    if text is None:
        return None
    return int(text) if str(text).isdigit() else float(text)


def checked_group(group: object) -> bytes:
    """A group's name: text of 1 to 128 bytes of UTF-8."""
    if not isinstance(group, str) or not 1 <= len(group.encode("utf-8", "replace")) <= 128:
        raise refuse("group", group, "text of 1 to 128 bytes")
    try:
        return group.encode()
    except UnicodeEncodeError as error:
        raise refuse("group", group, "valid Unicode text") from error


def checked_types(types: object) -> frozenset[str] | None:
    """Types of events; None means all."""
    if types is None:
        return None
    if isinstance(types, str) or not isinstance(types, Sequence | set | frozenset) or not types:
        raise refuse("types", types, f"a sequence of {', '.join(TYPES)}, or None for all")
    for one in types:
        if one not in TYPES:
            raise refuse("types", one, ", ".join(TYPES))
    return frozenset(types)
