"""Events: what happened to limits, handed to the consumers of a group, each at least once.

Every partition has a stream of events, and a group of consumers is a Streams consumer group on each
of them. All consumers of a group go by one name there: which of them has an entry is known by how
long it has been left alone. An entry that nobody has touched for `idle` is claimed by whoever looks
next, so what a crashed consumer had is not lost, and nothing has to be tidied up after it.

News are found by one blocking read over all streams where a server can wait for them without
holding up others (`Meter` on a single server, or behind Sentinel); otherwise by looking every
`POLL_SECONDS`, in a cluster, where each stream is asked by itself, every `SCATTERED_SECONDS`. No
I/O here: `EventReader` says what to ask, in rounds.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

from meterd import wire
from meterd.batch import Rounds
from meterd.event import Event, checked_group, checked_types, event_id, event_of, row_of
from meterd.flow import Sleep
from meterd.keys import PARTITIONS, Keyspace
from meterd.session import Session
from meterd.store import Store
from meterd.streams import (
    BEGIN,
    NEW,
    Asked,
    Message,
    alone,
    ask,
    by_stream,
    checked,
    create_group,
    entries,
    groups,
    is_missing,
    mapping,
    place,
    trimmed_unread,
)
from meterd.timespec import Seconds, seconds

_log = logging.getLogger("meterd")

POLL_SECONDS = 0.2
SCATTERED_SECONDS = 0.5
BLOCK_SECONDS = 1.0  # a server's wait for news, renewed until there are some
IDLE_SECONDS = 60.0
_CONSUMER = b"meterd"
_BATCH = 32  # entries of one stream
_STREAMS = 32  # of which entries are fetched together


class _Got(NamedTuple):
    """An entry that was read and not yet acknowledged."""

    partition: int
    id: bytes
    event: Event
    read: float  # when, of `monotonic`


class EventReader:
    """One consumer of a group. `next` gives its next event; `close` lets the others have the rest.

    `waits`: a server may be asked to wait for news. `scattered`: streams are on several servers.
    """

    def __init__(
        self,
        session: Session,
        store: Store,
        keys: Keyspace,
        group: str,
        types: Sequence[str] | None,
        follow: bool,
        idle: Seconds,
        *,
        waits: bool,
        scattered: bool,
    ) -> None:
        self._session = session
        self._store = store
        self._keys = keys
        self._group = checked_group(group)
        self._types = checked_types(types)
        self._follow = follow
        self._idle = seconds(idle, "idle")
        self._waits = waits
        self._scattered = scattered
        self._streams = [
            keys.partition_key(partition, b"events") for partition in range(PARTITIONS)
        ]
        self._partitions = {key: at for at, key in enumerate(self._streams)}
        self._seen = [BEGIN] * PARTITIONS  # up to where this group has been read
        self._grouped: set[int] = set()  # partitions that have the group
        self._news: deque[int] = deque()
        self._claims: deque[tuple[int, bytes]] = deque()  # partition, and where to go on
        self._buffer: deque[_Got] = deque()
        self._current: _Got | None = None
        self._looked = False
        self._claimed = 0.0
        self._started = False

    def next(self) -> Rounds[Event | None]:
        """Acknowledges the event given last, and gives the next; None: there is none left."""
        if not self._started:
            yield from self._start()
        if self._current is not None:
            done = self._current
            yield from self._acknowledge([(done.partition, done.id)])
            self._current = None
        while True:
            yield from self._keep()
            if self._buffer:
                self._current = self._buffer.popleft()
                return self._current.event
            if monotonic() - self._claimed > self._idle / 2:
                yield from self._look_for_idle()
            if self._claims:
                yield from self._claim()
            elif self._news:
                yield from self._fetch()
            elif self._follow or not self._looked:
                yield from self._look()
            else:
                return None

    def close(self) -> Rounds[None]:
        """What was read and not acknowledged may be claimed at once, by whoever looks next."""
        left = [*([self._current] if self._current else ()), *self._buffer]
        self._current = None
        self._buffer.clear()
        idle = b"%d" % round(self._idle * 1000)
        # Only where nobody has claimed it since.
        yield from self._claim_back(left, (b"IDLE", idle))

    # Steps of it ---------------------------------------------------------------------------------

    def _ask(self, asked: Sequence[Asked], wait: float = 0) -> Rounds[list[Any]]:
        return (yield from ask(self._session, asked, wait))

    def _start(self) -> Rounds[None]:
        if not self._store.ready:
            yield from alone(self._store.prepare())
        exists = yield from self._ask([(key, (b"EXISTS", key)) for key in self._streams])
        there = [at for at, found in enumerate(exists) if checked(found)]
        yield from self._ask([create_group(self._streams[at], self._group) for at in there])
        self._grouped.update(there)
        yield from self._look_for_idle()
        self._started = True

    def _acknowledge(self, done: Sequence[tuple[int, bytes]]) -> Rounds[None]:
        by_partition: dict[int, list[bytes]] = {}
        for partition, entry in done:
            by_partition.setdefault(partition, []).append(entry)
        replies = yield from self._ask(
            [
                (self._streams[at], (b"XACK", self._streams[at], self._group, *ids))
                for at, ids in by_partition.items()
            ]
        )
        for reply in replies:
            checked(reply)

    def _keep(self) -> Rounds[None]:
        """What was read long ago may have been claimed by another consumer meanwhile."""
        if not self._buffer or monotonic() - self._buffer[0].read < self._idle / 2:
            return
        held = list(self._buffer)
        self._buffer.clear()
        kept = yield from self._claim_back(held, ())
        now = monotonic()
        self._buffer.extend(
            got._replace(read=now) for got in held if (got.partition, got.id) in kept
        )

    def _claim_back(
        self, held: Sequence[_Got], how: tuple[bytes, ...]
    ) -> Rounds[set[tuple[int, bytes]]]:
        """Those that nobody has touched since they were read here."""
        now = monotonic()
        asked = []
        for got in held:
            alone_ms = max(0, int((now - got.read) * 1000) - 1)
            key = self._streams[got.partition]
            words = (b"XCLAIM", key, self._group, _CONSUMER, b"%d" % alone_ms, got.id)
            asked.append((key, (*words, *how, b"JUSTID")))
        replies = yield from self._ask(asked)
        return {
            (got.partition, got.id)
            for got, reply in zip(held, replies, strict=True)
            if isinstance(reply, list) and reply
        }

    def _look_for_idle(self) -> Rounds[None]:
        """Which streams have entries that somebody has read and not acknowledged."""
        self._claimed = monotonic()
        order = sorted(self._grouped)
        asked: list[Asked] = []
        for at in order:
            key = self._streams[at]
            asked += [(key, (b"XINFO", b"GROUPS", key)), (key, (b"XINFO", b"STREAM", key))]
        replies = yield from self._ask(asked)
        found = replies[::2]
        self._warn(found, replies[1::2])
        waiting = {partition for partition, _ in self._claims}
        for at, reply in zip(order, found, strict=True):
            group = groups(reply).get(self._group)
            if group is None:
                self._grouped.discard(at)
                self._seen[at] = BEGIN
                continue
            if not self._started:
                self._seen[at] = group.last
            if group.pending and at not in waiting:
                self._claims.append((at, BEGIN))

    def _warn(self, groupings: Sequence[Any], streams: Sequence[Any]) -> None:
        """Says what this group has lost because it did not read in time."""
        lost = 0
        for of_groups, of_stream in zip(groupings, streams, strict=True):
            group = groups(of_groups).get(self._group)
            if group is not None and not is_missing(of_stream):
                lost += trimmed_unread(mapping(checked(of_stream)), group) or 0
        if lost:
            _log.warning("group %r has lost %d events: they were trimmed before it read them",
                         self._group.decode(), lost)  # fmt: skip

    def _claim(self) -> Rounds[None]:
        taken = [self._claims.popleft() for _ in range(min(_STREAMS, len(self._claims)))]
        idle = b"%d" % round(self._idle * 1000)
        asked: list[Asked] = []
        for at, cursor in taken:
            key = self._streams[at]
            words = (b"XAUTOCLAIM", key, self._group, _CONSUMER, idle, cursor)
            asked.append((key, (*words, b"COUNT", b"%d" % _BATCH)))
        replies = yield from self._ask(asked)
        read = monotonic()
        messages: list[tuple[int, Message]] = []
        for (at, _), reply in zip(taken, replies, strict=True):
            if is_missing(reply):
                continue
            cursor, found = checked(reply)[:2]
            messages += [(at, message) for message in entries(found)]
            if any(one is None or one[0] is None for one in found):
                yield from self._drop_trimmed(at)  # as Redis 6.2 shows what was trimmed away
            if cursor != BEGIN:
                self._claims.append((at, bytes(cursor)))
        yield from self._take(messages, read)

    def _drop_trimmed(self, at: int) -> Rounds[None]:
        """Entries that were never acknowledged and are no longer there: nothing can be done."""
        key = self._streams[at]
        (first,) = yield from self._ask([(key, (b"XRANGE", key, b"-", b"+", b"COUNT", b"1"))])
        there = entries(checked(first))
        end = there[0].id if there else b"+"
        (pending,) = yield from self._ask(
            [(key, (b"XPENDING", key, self._group, b"-", end, b"%d" % (10 * _BATCH)))]
        )
        ids = [bytes(row[0]) for row in checked(pending)]
        gone = [one for one in ids if not there or place(one) < place(there[0].id)]
        if gone:
            _log.warning("%d events of group %r were trimmed before they were acknowledged",
                         len(gone), self._group.decode())  # fmt: skip
            yield from self._acknowledge([(at, one) for one in gone])

    def _look(self) -> Rounds[None]:
        """Which streams have entries that this group has not read."""
        first, self._looked = not self._looked, True
        if not self._scattered:
            if not first and not self._waits:
                yield [Sleep(POLL_SECONDS)]
            block = BLOCK_SECONDS if self._waits and not first else 0
            wait = (b"BLOCK", b"%d" % round(block * 1000)) if block else ()
            words = (b"XREAD", b"COUNT", b"1", *wait, b"STREAMS", *self._streams, *self._seen)
            (reply,) = yield from self._ask([(self._streams[0], words)], block)
            found = by_stream(checked(reply))
            self._news.extend(sorted(self._partitions[key] for key in found))
            return
        if not first:
            yield [Sleep(SCATTERED_SECONDS)]
        replies = yield from self._ask(
            [
                (key, (b"XREAD", b"COUNT", b"1", b"STREAMS", key, seen))
                for key, seen in zip(self._streams, self._seen, strict=True)
            ]
        )
        self._news.extend(at for at, reply in enumerate(replies) if by_stream(checked(reply)))

    def _fetch(self) -> Rounds[None]:
        taken = [self._news.popleft() for _ in range(min(_STREAMS, len(self._news)))]
        fresh = [at for at in taken if at not in self._grouped]
        yield from self._ask([create_group(self._streams[at], self._group) for at in fresh])
        self._grouped.update(fresh)
        words = (b"XREADGROUP", b"GROUP", self._group, _CONSUMER, b"COUNT", b"%d" % _BATCH)
        replies = yield from self._ask(
            [(self._streams[at], (*words, b"STREAMS", self._streams[at], NEW)) for at in taken]
        )
        read = monotonic()
        messages: list[tuple[int, Message]] = []
        emptied = []
        for at, reply in zip(taken, replies, strict=True):
            if is_missing(reply):  # the stream was deleted, or made anew
                self._grouped.discard(at)
                self._seen[at] = BEGIN
                continue
            found = by_stream(checked(reply)).get(self._streams[at], [])
            messages += [(at, message) for message in found]
            if found:
                self._seen[at] = found[-1].id
            else:
                emptied.append(at)
            if len(found) == _BATCH:
                self._news.append(at)
        infos = yield from self._ask(
            [(self._streams[at], (b"XINFO", b"GROUPS", self._streams[at])) for at in emptied]
        )
        for at, reply in zip(emptied, infos, strict=True):
            group = groups(reply).get(self._group)
            if group is not None:
                self._seen[at] = group.last  # another consumer of the group was faster
        yield from self._take(messages, read)

    def _take(self, messages: Sequence[tuple[int, Message]], read: float) -> Rounds[None]:
        """Puts what is wanted into the buffer and acknowledges the rest."""
        wanted: list[tuple[int, Message, list[Any], bytes]] = []
        unwanted: list[tuple[int, bytes]] = []
        for at, message in messages:
            try:
                row = row_of(message)
                event_of(at, message, row, {})
                root = str(row[1]).partition("/")[0].encode()
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                _log.error("event %s is passed over, it cannot be read: %s",
                           event_id(at, message), error)  # fmt: skip
                unwanted.append((at, message.id))
                continue
            if self._types is None or row[0] in self._types:
                wanted.append((at, message, row, root))
            else:
                unwanted.append((at, message.id))
        metas = yield from read_metas(
            self._session, self._keys, {(at, root) for at, _, _, root in wanted}
        )
        for at, message, row, root in wanted:
            event = event_of(at, message, row, metas[at, root])
            self._buffer.append(_Got(at, message.id, event, read))
        if unwanted:
            yield from self._acknowledge(unwanted)


def read_metas(
    session: Session, keys: Keyspace, roots: set[tuple[int, bytes]]
) -> Rounds[dict[tuple[int, bytes], dict[str, Any]]]:
    """What is kept beside roots, by partition and encoded root; {} for those without."""
    order = sorted(roots)
    names = [keys.root_meta(at, root) for at, root in order]
    replies = yield from ask(session, [(name, (b"GET", name)) for name in names])
    found = {}
    for which, raw in zip(order, replies, strict=True):
        found[which] = wire.decode_meta(raw) if checked(raw) else {}
    return found
