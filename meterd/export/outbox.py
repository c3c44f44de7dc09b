"""The outboxes of a store as one sink sees them: its lease, its group, its dead letters. No I/O.

Each sink is a consumer group on the outbox of every partition. Exporters of one sink take turns on
a partition: whoever holds its lease delivers it, so entries of one customer are never delivered
by two processes at once, and what a crashed exporter had read is simply read again by the next, as
all of them go by one consumer name. Nothing but that order rests on the lease: should it be lost
unnoticed, entries are delivered twice under one identifier, as after a crash.

An entry is removed from the outbox once every sink has settled it: delivered it, or put it among
the dead letters. Whichever of them is last removes it; what a crash left behind is trimmed away
when a partition is visited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack

from meterd.batch import Rounds
from meterd.export.item import UNTRIED, Item, Tries
from meterd.export.sink import Outcome
from meterd.keys import PARTITIONS, Keyspace
from meterd.session import Session
from meterd.streams import (
    NEW,
    Asked,
    after,
    ask,
    by_stream,
    checked,
    create_group,
    entries,
    is_missing,
    place,
)
from meterd.streams import groups as groups_of

_CONSUMER = b"meterd"


class Outbox:
    """All partitions, for one sink."""

    def __init__(self, session: Session, keys: Keyspace, sink: str) -> None:
        self._session = session
        self._keys = keys
        self.sink = sink.encode()
        self.others: list[bytes] = []  # the sinks that have to settle an entry besides this one
        self.streams = [keys.partition_key(at, b"outbox") for at in range(PARTITIONS)]
        self.tries = [keys.partition_key(at, b"tries") for at in range(PARTITIONS)]
        self.dead = [keys.partition_key(at, b"dead") for at in range(PARTITIONS)]
        self._leases = [keys.partition_key(at, b"lease:" + self.sink) for at in range(PARTITIONS)]

    def ask(self, asked: Sequence[Asked]) -> Rounds[list[Any]]:
        """See `meterd.streams.ask`."""
        return (yield from ask(self._session, asked))

    def field(self, stream_id: bytes) -> bytes:
        """What an entry goes by among tries and dead letters."""
        return self.sink + b"/" + stream_id

    # The store as a whole ------------------------------------------------------------------------

    def register(self) -> Rounds[None]:
        """From now on no entry is removed before this sink has settled it."""
        key = self._keys.sinks
        added, members = yield from self.ask(
            [(key, (b"SADD", key, self.sink)), (key, (b"SMEMBERS", key))]
        )
        checked(added)
        self.others = sorted(bytes(name) for name in checked(members) if name != self.sink)

    def retire(self) -> Rounds[None]:
        """Nothing waits for this sink any more. Its dead letters stay."""
        key = self._keys.sinks
        (removed,) = yield from self.ask([(key, (b"SREM", key, self.sink))])
        checked(removed)
        exists = yield from self.ask([(key, (b"EXISTS", key)) for key in self.streams])
        there = [at for at, found in enumerate(exists) if checked(found)]
        yield from self._forget_tries(there)
        replies = yield from self.ask(
            [
                (self.streams[at], (b"XGROUP", b"DESTROY", self.streams[at], self.sink))
                for at in there
            ]
        )
        for reply in replies:
            checked(reply)

    def lengths(self) -> Rounds[dict[int, int]]:
        """How many entries there are, by partition; none where there are none."""
        replies = yield from self.ask([(key, (b"XLEN", key)) for key in self.streams])
        return {at: int(found) for at, found in enumerate(replies) if checked(found)}

    def now_ms(self) -> Rounds[int]:
        """The server's clock."""
        (reply,) = yield from self.ask([(self._keys.sinks, (b"TIME",))])
        seconds, micros = checked(reply)
        return int(seconds) * 1000 + int(micros) // 1000

    # Leases --------------------------------------------------------------------------------------

    def lease(self, partitions: Sequence[int], token: bytes, ttl_ms: int) -> Rounds[list[int]]:
        """Those of the partitions that are ours from now on."""
        asked: list[Asked] = []
        for at in partitions:
            key = self._leases[at]
            asked.append((key, (b"SET", key, token, b"NX", b"PX", b"%d" % ttl_ms)))
            asked.append((key, (b"GET", key)))
        replies = yield from self.ask(asked)
        return [
            at for at, held in zip(partitions, replies[1::2], strict=True) if checked(held) == token
        ]

    def renew(self, partitions: Sequence[int], token: bytes, ttl_ms: int) -> Rounds[None]:
        """For the holder, well before the end."""
        words = (token, b"XX", b"PX", b"%d" % ttl_ms)
        replies = yield from self.ask(
            [(self._leases[at], (b"SET", self._leases[at], *words)) for at in partitions]
        )
        for reply in replies:
            checked(reply)

    def release(self, partitions: Sequence[int], token: bytes) -> Rounds[None]:
        """Gives back what is still ours."""
        held = yield from self.ask(
            [(self._leases[at], (b"GET", self._leases[at])) for at in partitions]
        )
        yield from self.ask(
            [
                (self._leases[at], (b"DEL", self._leases[at]))
                for at, found in zip(partitions, held, strict=True)
                if found == token
            ]
        )

    # Reading -------------------------------------------------------------------------------------

    def visit(self, partitions: Sequence[int]) -> Rounds[dict[int, int]]:
        """Sees to the group of each partition and trims what all sinks have settled.

        Returns how many entries were read and not settled, where there are any.
        """
        wanted = [self.sink, *self.others]
        found = yield from self.groups(partitions)
        bare = [at for at in partitions if self.sink not in found[at]]
        yield from self.ask([create_group(self.streams[at], self.sink) for at in bare])
        whole = [at for at in partitions if all(name in found[at] for name in wanted)]
        held = [(at, name) for at in whole for name in wanted if found[at][name].pending]
        summaries = yield from self.ask(
            [(self.streams[at], (b"XPENDING", self.streams[at], name)) for at, name in held]
        )
        least = {
            which: bytes(reply[1])
            for which, reply in zip(held, map(checked, summaries), strict=True)
            if reply[1] is not None
        }
        firsts = yield from self.ask(
            [
                (self.streams[at], (b"XRANGE", self.streams[at], b"-", b"+", b"COUNT", b"1"))
                for at in whole
            ]
        )
        trims: list[Asked] = []
        for at, reply in zip(whole, firsts, strict=True):
            there = entries(checked(reply))
            bounds = [least.get((at, name)) or after(found[at][name].last) for name in wanted]
            bound = min(bounds, key=place)
            if there and place(there[0].id) < place(bound):
                key = self.streams[at]
                trims.append((key, (b"XTRIM", key, b"MINID", bound)))
        for reply in (yield from self.ask(trims)):
            checked(reply)
        pending = {
            at: found[at][self.sink].pending
            for at in partitions
            if self.sink in found[at] and found[at][self.sink].pending
        }
        yield from self._forget_tries([at for at in partitions if at not in pending])
        return pending

    def _forget_tries(self, partitions: Sequence[int]) -> Rounds[None]:
        """Attempts at entries that are all settled."""
        found = yield from self.ask(
            [(self.tries[at], (b"HKEYS", self.tries[at])) for at in partitions]
        )
        asked: list[Asked] = []
        for at, names in zip(partitions, found, strict=True):
            own = [name for name in checked(names) if name.startswith(self.sink + b"/")]
            if own:
                asked.append((self.tries[at], (b"HDEL", self.tries[at], *own)))
        for reply in (yield from self.ask(asked)):
            checked(reply)

    def groups(self, partitions: Sequence[int]) -> Rounds[dict[int, Any]]:
        """The groups of each partition, by name."""
        replies = yield from self.ask(
            [(self.streams[at], (b"XINFO", b"GROUPS", self.streams[at])) for at in partitions]
        )
        return {at: groups_of(reply) for at, reply in zip(partitions, replies, strict=True)}

    def read(self, wants: Sequence[tuple[int, bytes, int]]) -> Rounds[list[list[Item]]]:
        """Entries by partition: new ones, or those read before, after the place given.

        What was settled already and not acknowledged, because of a crash in between, is
        acknowledged and left out; it counts towards the number wanted as an item without data.
        """
        replies = yield from self.ask([self._reading(*want) for want in wants])
        again = [n for n, reply in enumerate(replies) if is_missing(reply)]
        if again:
            bare = [wants[n][0] for n in again]
            yield from self.ask([create_group(self.streams[at], self.sink) for at in bare])
            repeated = yield from self.ask([self._reading(*wants[n]) for n in again])
            for n, reply in zip(again, repeated, strict=True):
                replies[n] = [] if is_missing(reply) else reply
        found: list[list[Item]] = []
        for (at, _, _), reply in zip(wants, replies, strict=True):
            messages = by_stream(checked(reply)).get(self.streams[at], [])
            found.append([Item.of(at, m.id, m.data or b"") for m in messages])
        old = [items for items, want in zip(found, wants, strict=True) if want[1] != NEW and items]
        finished = yield from self.recall(old)
        yield from self._remove(finished)
        for item in finished:
            item.data = b""
        return found

    def _reading(self, at: int, where: bytes, count: int) -> Asked:
        key = self.streams[at]
        words = (b"XREADGROUP", b"GROUP", self.sink, _CONSUMER, b"COUNT", b"%d" % count)
        return key, (*words, b"STREAMS", key, where)

    def recall(self, pages: Sequence[list[Item]]) -> Rounds[list[Item]]:
        """Looks up what is known of entries that were read before; those that are over."""
        asked: list[Asked] = []
        for items in pages:
            at = items[0].partition
            fields = [self.field(item.stream_id) for item in items]
            asked.append((self.tries[at], (b"HMGET", self.tries[at], *fields)))
            asked.append((self.dead[at], (b"HMGET", self.dead[at], *fields)))
        replies = yield from self.ask(asked)
        finished: list[Item] = []
        for items, tries, dead in zip(pages, replies[::2], replies[1::2], strict=True):
            for item, tried, buried in zip(items, checked(tries), checked(dead), strict=True):
                if tried is not None:
                    item.tries = Tries(*msgpack.unpackb(tried))
                if buried is not None or not item.data:
                    finished.append(item)
        return finished

    # Settling ------------------------------------------------------------------------------------

    def mark(self, items: Iterable[Item]) -> Rounds[None]:
        """Writes down what is known of attempts, before they are made or after they failed."""
        kept: dict[int, list[bytes]] = {}
        dropped: dict[int, list[bytes]] = {}
        for item in items:
            name = self.field(item.stream_id)
            if item.tries == UNTRIED:
                dropped.setdefault(item.partition, []).append(name)
            else:
                kept.setdefault(item.partition, []).extend((name, item.tries.packed()))
        asked: list[Asked] = []
        for at, pairs in kept.items():
            asked.append((self.tries[at], (b"HSET", self.tries[at], *pairs)))
        for at, names in dropped.items():
            asked.append((self.tries[at], (b"HDEL", self.tries[at], *names)))
        for reply in (yield from self.ask(asked)):
            checked(reply)

    def settle(self, done: Sequence[tuple[Item, Outcome]], now_ms: int) -> Rounds[None]:
        """Delivered entries are over; dead ones are put among the dead letters first."""
        buried = [(item, outcome) for item, outcome in done if outcome.kind == "dead"]
        questions: list[Asked] = []
        for item, _ in buried:
            key, one = self.streams[item.partition], item.stream_id
            questions.append((key, (b"XPENDING", key, self.sink, one, one, b"1")))
        held = yield from self.ask(questions)
        asked: list[Asked] = []
        for (item, outcome), still_ours in zip(buried, held, strict=True):
            if not checked(still_ours):
                continue  # the lease ran out unnoticed, and another exporter has settled it
            at, name = item.partition, self.field(item.stream_id)
            letter = msgpack.packb((item.data, outcome.reason, now_ms, item.tries.first_ms))
            asked.append((self.dead[at], (b"HSET", self.dead[at], name, letter)))
            asked.append((self.tries[at], (b"HDEL", self.tries[at], name)))
        for reply in (yield from self.ask(asked)):
            checked(reply)
        yield from self._remove([item for item, _ in done])

    def _remove(self, items: Sequence[Item]) -> Rounds[None]:
        """Acknowledges entries, and deletes those that no other sink waits for."""
        by_partition: dict[int, list[Item]] = {}
        for item in items:
            by_partition.setdefault(item.partition, []).append(item)
        asked: list[Asked] = []
        for at, mine in by_partition.items():
            key = self.streams[at]
            ids = [item.stream_id for item in mine]
            asked.append((key, (b"XACK", key, self.sink, *ids)))
            if not self.others:
                asked.append((key, (b"XDEL", key, *ids)))
            tried = [self.field(i.stream_id) for i in mine if i.tries is not UNTRIED]
            if tried:
                asked.append((self.tries[at], (b"HDEL", self.tries[at], *tried)))
        for reply in (yield from self.ask(asked)):
            checked(reply)
        if self.others:
            yield from self._delete_settled(by_partition)

    def _delete_settled(self, by_partition: Mapping[int, Sequence[Item]]) -> Rounds[None]:
        # After the acknowledgement: of two sinks at it at once, one sees that the other is done.
        found = yield from self.groups(list(by_partition))
        asked: list[Asked] = []
        for at, mine in by_partition.items():
            key, ids = self.streams[at], [item.stream_id for item in mine]
            bounds = (min(ids, key=place), max(ids, key=place), b"%d" % 1_000_000)
            asked += [(key, (b"XPENDING", key, other, *bounds)) for other in self.others]
        replies = iter((yield from self.ask(asked)))
        removals: list[Asked] = []
        for at, mine in by_partition.items():
            settled = {item.stream_id for item in mine}
            for other in self.others:
                reply = next(replies)
                group = found[at].get(other)
                if group is None or is_missing(reply):
                    settled = set()
                    continue
                held = {bytes(row[0]) for row in checked(reply)}
                settled = {
                    one for one in settled if place(one) <= place(group.last) and one not in held
                }
            if settled:
                removals.append((self.streams[at], (b"XDEL", self.streams[at], *settled)))
        for reply in (yield from self.ask(removals)):
            checked(reply)
