"""What the tests of holds share: calling, looking at what is stored, what has to be true of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import redis

from meterd import Decision, Meter, wire
from meterd.hold import Hold
from meterd.testing import ManualClock

SIZES = {0: 7, 1: 48, 2: 11, 3: 16, 4: 16, 5: 0}
FIRST, VAR, TTL, HOLDS, BOOKS, LISTED = 1, 2, 4, 8, 32, 64


class Entry(NamedTuple):
    """A hold as it is stored at one level."""

    expiry: int
    names: list[str]
    amounts: list[int]
    tallied: list[int]
    parts: list[list[Any]]


class Stored(NamedTuple):
    """A record, and the holds beside it."""

    rec: bytes
    flags: int
    due: int | None
    variable: dict[str, Any]
    entries: dict[str, Entry]
    order: dict[str, int]


class Holder:
    """A meter on a test clock, and the server beneath it."""

    def __init__(self, meter: Meter, client: redis.Redis, clock: ManualClock | None = None) -> None:
        self.meter = meter
        self.client = client
        self._clock = clock

    @property
    def clock(self) -> ManualClock:
        assert self._clock is not None
        return self._clock

    def later(self, ms: int) -> None:
        self.clock.now_ms += ms

    def reserve(
        self, costs: Any, amount: int = 1, *, ttl: int = 60_000, subject: str = "a", **more: Any
    ) -> Hold:
        """One that has to be allowed."""
        hold = self.try_reserve(costs, amount, ttl=ttl, subject=subject, **more)
        assert hold, hold.decision
        return hold

    def try_reserve(
        self, costs: Any, amount: int = 1, *, ttl: int = 60_000, subject: str = "a", **more: Any
    ) -> Hold:
        return self.meter.reserve(subject, costs, amount, ttl=ttl / 1000, **more)

    def commit(
        self, hold_id: str, actual: Mapping[str, int] | None = None, *, subject: str = "a"
    ) -> Decision:
        """As it comes, past what a hold in hand would add to it."""
        costs = None if actual is None else wire.encode_costs(actual)
        path = self.meter._keys.path(subject)
        return self.meter._run(self.meter._holds.commit(path, hold_id, costs))

    def release(self, hold_id: str, *, subject: str = "a") -> None:
        path = self.meter._keys.path(subject)
        self.meter._run(self.meter._holds.release(path, hold_id))

    def renew(self, hold_id: str, ttl: int, *, subject: str = "a") -> None:
        path = self.meter._keys.path(subject)
        self.meter._run(self.meter._holds.renew(path, hold_id, ttl))

    def tally(
        self,
        hold_id: str,
        spent: Mapping[str, int],
        ttl: int | None = None,
        *,
        subject: str = "a",
    ) -> None:
        path = self.meter._keys.path(subject)
        self.meter._run(self.meter._holds.tally(path, hold_id, wire.encode_costs(spent), ttl))

    def used(self, name: str, subject: str = "a") -> int:
        """At the deepest level that has the limit."""
        found = [s.used for s in self.meter.usage(subject).limits if s.name == name]
        return found[-1]

    def touch(self, subject: str = "a") -> None:
        """Writes the record at the deepest level, brought to now, and changes nothing else."""
        self.meter.override(subject, "nothing-of-it", clear=True)

    def keys(self, subject: str = "a") -> tuple[bytes, bytes, bytes]:
        """Record, hash, sorted set."""
        path = self.meter._keys.path(subject)
        level = len(path.keys)
        return path.keys[-1], *self.meter._keys.holds(path, level)

    def stored(self, subject: str = "a") -> Stored:
        return read(self.client, self.meter, *self.keys(subject))


def layout(client: redis.Redis, meter: Meter, rec: bytes) -> int:
    """Where the states of a record end."""
    blob = client.hget(meter._keys.policies, rec[2:10])
    return 20 + sum(SIZES[row[0]] for row in msgpack.unpackb(blob, raw=True)[4])


def read(client: redis.Redis, meter: Meter, record: bytes, held: bytes, order: bytes) -> Stored:
    rec = client.get(record)
    entries = {
        name.decode(): Entry(*msgpack.unpackb(raw)) for name, raw in client.hgetall(held).items()
    }
    scores = {name.decode(): int(at) for name, at in client.zrange(order, 0, -1, withscores=True)}
    if rec is None:
        return Stored(b"", 0, None, {}, entries, scores)
    flags, at = rec[1], layout(client, meter, rec)
    if flags & TTL:
        at += 6
    due = None
    if flags & HOLDS:
        due = int.from_bytes(rec[at : at + 6], "little")
        at += 6
    variable = msgpack.unpackb(rec[at:]) if flags & (VAR | BOOKS) else {}
    assert flags & (VAR | BOOKS) or at == len(rec)
    return Stored(rec, flags, due, variable, entries, scores)


def assert_sound(client: redis.Redis, meter: Meter) -> int:
    """What is true of every record and its holds after every call. Returns how many there are."""
    seen = 0
    prefix = meter._keys.prefix.encode()
    loose = {
        key for kind in (b"h", b"x") for key in client.scan_iter(prefix + b":{???}:" + kind + b":*")
    }
    for record in client.scan_iter(prefix + b":{???}:s:*", count=1000):
        head, _, subject = record.partition(b"}:s:")
        held, order = head + b"}:h:" + subject, head + b"}:x:" + subject
        loose -= {held, order}
        stored = read(client, meter, record, held, order)
        assert stored.entries.keys() == stored.order.keys(), record
        for name, entry in stored.entries.items():
            assert entry.expiry == stored.order[name]
            assert len(entry.names) == len(entry.amounts) == len(entry.tallied) > 0
            assert all(0 <= t <= a for t, a in zip(entry.tallied, entry.amounts, strict=True))
            assert entry.parts
            for _, kind, gen, mark, over, factors in entry.parts:
                units = sum(f * a for f, a in zip(factors, entry.amounts, strict=True))
                assert 0 <= kind < 5
                assert 0 <= over <= units > 0
                assert gen >= 0 <= mark
        assert stored.due == min(stored.order.values(), default=None), record
        assert stored.order or "g" not in stored.variable
        taken = 0
        for entry in stored.entries.values():
            taken += sum(
                sum(f * a for f, a in zip(part[5], entry.amounts, strict=True))
                for part in entry.parts
                if part[1] == 0
            )
        assert sum(slots_taken(client, meter, stored.rec)) <= taken, "slots that no hold has"
        seen += len(stored.entries)
    assert not loose, f"holds without a record: {loose}"
    return seen


def slots_taken(client: redis.Redis, meter: Meter, rec: bytes) -> list[int]:
    """The state of every limit that is slots."""
    blob = client.hget(meter._keys.policies, rec[2:10])
    at, found = 20, []
    for row in msgpack.unpackb(blob, raw=True)[4]:
        if row[0] == 0:
            found.append(int.from_bytes(rec[at : at + 7], "little"))
        at += SIZES[row[0]]
    return found
