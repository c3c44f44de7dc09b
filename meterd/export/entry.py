"""An entry of the outbox: use of one pool in one period, and the identifier it goes by."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack

from meterd import wire
from meterd.keys import Subject, display, parse_path, tag_at
from meterd.result import instant

_LONGEST_POOL = 40  # characters of an identifier; it must not exceed 100 in all


class Entry(NamedTuple):
    """Use to be billed. `delta` is negative only where use was given back after it was exported.

    `bill`: "use" or "overage", as the pool says. `at_ms`: when it was taken from the record.
    `id`: unique among all entries of all stores, the same at every delivery.
    """

    id: str
    subject: Subject
    root: str
    pool: str
    delta: int
    bill: str
    period_start_ms: int
    period_end_ms: int | None
    at_ms: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        return {
            "id": self.id,
            "subject": self.subject if type(self.subject) is str else list(self.subject),
            "customer": self.root,
            "pool": self.pool,
            "delta": self.delta,
            "bill": self.bill,
            "period_start": _iso(self.period_start_ms),
            "period_end": _iso(self.period_end_ms),
            "at": _iso(self.at_ms),
        }


@lru_cache(maxsize=4096)
def _iso(ms: int | None) -> str | None:
    return None if ms is None else instant(ms).isoformat()


@lru_cache(maxsize=4096)
def _named(encoded: str) -> tuple[Subject, str, str]:
    """A subject as people write it, its root, and what stands for it in an identifier."""
    raw = encoded.encode()
    digest = blake2b(raw, digest_size=4).hexdigest()
    if "%" not in encoded:
        return encoded, encoded.partition("/")[0], digest
    segments = parse_path(raw)
    return display(segments), segments[0], digest


@lru_cache(maxsize=256)
def _pool_part(pool: str) -> str:
    """A pool's name, if it fits: webhook ids must not contain a dot, and Stripe's end at 100."""
    if "." not in pool and len(pool) <= _LONGEST_POOL:
        return pool
    return blake2b(pool.encode(), digest_size=8).hexdigest()


def decode_entry(partition: int, stream_id: bytes, data: bytes) -> Entry:
    """An entry as it stands in the outbox; ValueError and the like for what is none.

    Records born in the same millisecond in different partitions, or in different stores, have the
    same birth id: partition and subject keep their identifiers apart.
    """
    subject, pool, delta, seq, birth, start, end, at, bill = msgpack.unpackb(data)[:9]
    if type(delta) is float:
        delta = int(delta)
    if type(delta) is not int:
        raise ValueError(f"{delta!r} is no amount")
    shown, root, digest = _named(subject)
    born = birth or stream_id.decode()
    return Entry(
        f"{tag_at(partition).decode()}-{born}-{digest}-{_pool_part(pool)}-{int(seq)}",
        shown,
        root,
        pool,
        delta,
        bill,
        int(start),
        None if end is None or end == wire.NONE else int(end),
        int(at),
    )
