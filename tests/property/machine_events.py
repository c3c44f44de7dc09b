"""The machine's steps about what is told: after every step both sides have told the same.

And what was billed adds up: what has been harvested of a pool's running period is what the model
says, period by period, since every single entry is.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgpack

from meterd import Meter
from meterd.keys import decode_segment
from meterd.testing import ManualClock
from tests.oracle.model import Oracle
from tests.oracle.telling import Entry, Event

ROOTS = ("a", "b")
NONE = -(2**53)


def random_telling(rng: random.Random) -> dict[str, Any]:
    """How a pool warns, and how it is billed."""
    return {
        "warn_at": rng.choice(((), (0.8,), (0.8,), (0.5, 1), (1 / 3, 0.999999, 0.001))),
        "warn_below": rng.choice(((), (), (1,), (3, 50))),
        "bill": rng.choice((None, None, "use", "use", "overage")),
    }


class EventSteps:
    """What `Machine` does about events and the outbox."""

    rng: random.Random
    clock: ManualClock
    oracle: Oracle
    meter: Meter
    log: list[str]
    heard: dict[bytes, bytes]
    latest: int

    def story(self) -> str:
        raise NotImplementedError

    def keep_up(self) -> None:
        """A harvest brings records to its own now: no clock goes back behind that."""
        self.clock.now_ms = max(self.clock.now_ms, self.latest)

    def harvest(self) -> None:
        # Some record may have seen a later instant than this, if the clock was set back.
        seen = [r.seen for level in self.oracle.levels.records.values() for r in level.values()]
        self.clock.now_ms = self.latest = max([self.clock.now_ms, *seen])
        self.log.append(f"@{self.clock.now_ms} harvest")
        before = len(self.oracle.levels.journal.entries)
        self.oracle.harvest(seen=self.due(), now_ms=self.clock.now_ms)
        made = self.meter.harvest()
        expected = len(self.oracle.levels.journal.entries) - before
        assert made == expected, f"harvested {made}, expected {expected}\n{self.story()}"

    def due(self) -> set[tuple[str, ...]]:
        """The subjects at which the harvest is going to look."""
        keys = [self.meter._keys.shared(self.path(root)).due for root in ROOTS]
        until = b"%d" % self.clock.now_ms
        commands = [(b"ZRANGEBYSCORE", key, b"-inf", until) for key in keys]
        flow = self.meter._session.plain(None, *commands)
        found = self.meter._call("due", "a", flow)
        return {path_of(subject.decode()) for subjects in found for subject in subjects}

    def listen(self) -> None:
        """Compares what has been told since the last time."""
        events: Counter[Any] = Counter()
        entries: Counter[Any] = Counter()
        keys = [key for root in ROOTS for key in self.meter._keys.shared(self.path(root))[:2]]
        commands = [(b"XRANGE", key, self.heard.get(key, b"-"), b"+") for key in keys]
        flow = self.meter._session.plain(None, *commands)
        for key, rows in zip(keys, self.meter._call("listen", "a", flow), strict=True):
            for at, (_, raw) in rows:
                self.heard[key] = b"(" + at
                row = msgpack.unpackb(raw)
                if key.endswith(b":events"):
                    events[event_of(row)] += 1
                else:
                    entries[entry_of(row)] += 1
        journal = self.oracle.levels.journal
        expected = Counter(journal.events), Counter(journal.entries)
        for what, found, wanted in (
            ("events", events, expected[0]),
            ("entries", entries, expected[1]),
        ):
            if found != wanted:
                more, less = found - wanted, wanted - found
                raise AssertionError(
                    f"{what}: too many {list(more)}, missing {list(less)}\n{self.story()}"
                )
        journal.events, journal.entries = [], []

    def path(self, subject: str) -> Any:
        return self.meter._keys.path(subject)


def event_of(row: list[Any]) -> Event:
    kind, subject, name, plan, limit, used, remaining, start, end, at, *threshold = row
    return Event(
        kind, path_of(subject), name, plan, some(limit), used, some(remaining), start, some(end),
        at, *threshold,
    )  # fmt: skip


def entry_of(row: list[Any]) -> Entry:
    subject, pool, delta, sequence, _, start, end, at, how = row
    return Entry(path_of(subject), pool, delta, sequence, start, some(end), at, how)


def some(number: int) -> int | None:
    return None if number == NONE else number


def path_of(subject: str) -> tuple[str, ...]:
    return tuple(decode_segment(part.encode()) for part in subject.split("/"))
