"""What the tests of events and of the export share: both streams, filled by hand."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import msgpack

from meterd.keys import Keyspace, encode_segment, partition_of, segments_of

START = 1_735_689_600_000  # 2025-01-01
END = 1_738_368_000_000  # 2025-02-01
AT = START + 86_400_000
NONE = -(2.0**53)
_IDS = """
local ids = {}
for i, entry in ipairs(redis.call("XRANGE", KEYS[1], "-", "+")) do ids[i] = entry[1] end
return ids
"""
_ids = itertools.count(1)


class Streams:
    """Writes entries as the engine writes them."""

    def __init__(self, admin: Any, prefix: str) -> None:
        self.admin = admin
        self.keys = Keyspace(prefix)

    def _encoded(self, subject: Any) -> tuple[int, str]:
        encoded = [encode_segment(part) for part in segments_of(subject)]
        return partition_of(encoded[0]), b"/".join(encoded).decode()

    def partition(self, subject: Any) -> int:
        return self._encoded(subject)[0]

    def key(self, subject: Any, kind: bytes) -> bytes:
        return self.keys.partition_key(self.partition(subject), kind)

    def event(
        self,
        subject: Any,
        kind: str = "exhausted",
        *more: Any,
        name: str = "credits",
        limit: Any = 100,
        remaining: Any = 0,
        start: int = START,
        end: Any = END,
        at: int = AT,
    ) -> str:
        """The id that the event will have."""
        partition, text = self._encoded(subject)
        row = [kind, text, name, "free", limit, 100, remaining, start, end, at, *more]
        key = self.keys.partition_key(partition, b"events")
        stored = _text(self.admin.xadd(key, {b"e": msgpack.packb(row)}))
        return f"{self.keys.path(subject).tag.decode()}-{stored}"

    @contextlib.contextmanager
    def silent(self, subject: Any) -> Iterator[None]:
        """What the engine itself tells about the subject's partition meanwhile is not heard."""
        key = self.key(subject, b"events")
        before = set(self.admin.eval(_IDS, 1, key))
        yield
        told = set(self.admin.eval(_IDS, 1, key)) - before
        if told:
            self.admin.xdel(key, *told)

    def use(
        self,
        subject: Any,
        delta: int = 5,
        *,
        pool: str = "credits",
        seq: int = 1,
        birth: str | None = None,
        start: int = START,
        end: Any = END,
        at: int = AT,
        bill: str = "use",
    ) -> str:
        """The id of the entry in the outbox. A `birth` of its own unless one is given."""
        partition, text = self._encoded(subject)
        born = f"{START + next(_ids)}-0" if birth is None else birth
        row = [text, pool, delta, seq, born, start, end, at, bill]
        key = self.keys.partition_key(partition, b"outbox")
        return _text(self.admin.xadd(key, {b"o": msgpack.packb(row)}))

    def length(self, subject: Any, kind: bytes = b"outbox") -> int:
        return int(self.admin.xlen(self.key(subject, kind)))

    def pending(self, subject: Any, group: str, kind: bytes = b"events") -> int:
        """How many entries of a subject's partition are read and not acknowledged."""
        found = self.admin.xpending(self.key(subject, kind), group)
        return int(found["pending"])

    def abandon(self, subject: Any, group: str = "g") -> None:
        """As if all that a consumer had was left alone for an hour, because it was killed."""
        key = self.key(subject, b"events")
        if any(one["name"] == group for one in self.admin.xinfo_groups(key)):
            rows = self.admin.xpending_range(key, group, "-", "+", 100)
            for row in rows:
                ids = [row["message_id"]]
                self.admin.xclaim(key, group, "meterd", 0, ids, idle=3_600_000, justid=True)


def _text(entry_id: Any) -> str:
    return entry_id.decode() if isinstance(entry_id, bytes) else str(entry_id)


def apart(count: int) -> list[str]:
    """Roots of different partitions."""
    found: dict[int, str] = {}
    for number in itertools.count():
        root = f"c{number}"
        found.setdefault(partition_of(root.encode()), root)
        if len(found) == count:
            return list(found.values())
    raise AssertionError


def together(count: int) -> list[str]:
    """Roots of one partition."""
    wanted = partition_of(b"c0")
    roots = (f"c{number}" for number in itertools.count())
    return list(itertools.islice((r for r in roots if partition_of(r.encode()) == wanted), count))


class Elapsed:
    """The time that an exporter measures and sleeps through, without anybody waiting."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += max(seconds, 0.001)


class Killed(BaseException):
    """The end of a process, as far as a test can have it."""


class Killer:
    """Kills at the n-th thing that is done: a request to the server, or a delivery.

    `after`: once it is done, before anybody hears of it. Whatever is tried later fails as well.
    """

    def __init__(self, at: int, *, after: bool, later: type[BaseException] = Killed) -> None:
        self.at = at
        self.later = later
        self.after = after
        self.done = 0
        self.struck = False
        self._lock = threading.Lock()

    def __call__(self, work: Any) -> Any:
        def watched(*args: Any, **named: Any) -> Any:
            with self._lock:
                if self.struck:
                    raise self.later("killed")
                mine = self.done == self.at
                self.done += 1
                if mine:
                    self.struck = True
                    if not self.after:
                        raise Killed
            found = work(*args, **named)
            if mine:
                raise Killed
            return found

        return watched

    def watch(self, meter: Any, sink: Any) -> None:
        meter._transport.send_many = self(meter._transport.send_many)
        for name in ("send", "write"):
            setattr(sink, name, self(getattr(sink, name)))
