"""What is not delivered: dead letters, shown, sent again or given up, and what is still waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgpack

from meterd.batch import Rounds
from meterd.export.item import Dead, Item, Tries, Waiting
from meterd.export.outbox import Outbox
from meterd.keys import PARTITIONS, tag_at
from meterd.result import instant
from meterd.streams import BEGIN, after, checked, entries


class Letter(NamedTuple):
    """A dead letter as it is kept."""

    item: Item
    field: bytes
    dead: Dead


def letters(outbox: Outbox, partitions: Sequence[int] | None = None) -> Rounds[list[Letter]]:
    """The dead letters of this sink."""
    asked = range(PARTITIONS) if partitions is None else partitions
    sizes = yield from outbox.ask([(outbox.dead[at], (b"HLEN", outbox.dead[at])) for at in asked])
    there = [at for at, size in zip(asked, sizes, strict=True) if checked(size)]
    found: list[Letter] = []
    for at in there:
        (reply,) = yield from outbox.ask([(outbox.dead[at], (b"HGETALL", outbox.dead[at]))])
        pairs = checked(reply)
        if not isinstance(pairs, dict):
            pairs = dict(zip(pairs[::2], pairs[1::2], strict=True))
        for name, packed in pairs.items():
            sink, _, stream_id = name.rpartition(b"/")
            if sink == outbox.sink:
                found.append(_letter(at, name, stream_id, packed))
    # Of one record and millisecond the last number in an id is what tells them apart.
    return sorted(found, key=lambda one: (one.dead.at, len(one.dead.id), one.dead.id))


def touch(outbox: Outbox, letter: Letter, reason: str, now_ms: int, first_ms: int) -> Rounds[None]:
    """A dead letter that is sent again, before that and when it failed."""
    key = outbox.dead[letter.item.partition]
    packed = msgpack.packb((letter.item.data, reason, now_ms, first_ms))
    (reply,) = yield from outbox.ask([(key, (b"HSET", key, letter.field, packed))])
    checked(reply)


def discard(outbox: Outbox, letters: Sequence[Letter]) -> Rounds[None]:
    """Dead letters that are over: delivered after all, or given up."""
    replies = yield from outbox.ask(
        [
            (outbox.dead[one.item.partition],
             (b"HDEL", outbox.dead[one.item.partition], one.field))
            for one in letters
        ]
    )  # fmt: skip
    for reply in replies:
        checked(reply)


def waiting(outbox: Outbox, most: int) -> Rounds[list[Waiting]]:
    """What this sink has not settled yet, up to so many entries, by partition and age."""
    lengths = yield from outbox.lengths()
    found: list[Waiting] = []
    for at in lengths:
        if len(found) >= most:
            break
        found += yield from _waiting_in(outbox, at, most - len(found))
    return found


def _waiting_in(outbox: Outbox, at: int, most: int) -> Rounds[list[Waiting]]:
    key = outbox.streams[at]
    group = (yield from outbox.groups([at]))[at].get(outbox.sink)
    items: list[Item] = []
    count = b"%d" % most
    if group is not None and group.pending:
        (pending,) = yield from outbox.ask(
            [(key, (b"XPENDING", key, outbox.sink, b"-", b"+", count))]
        )
        ids = [bytes(row[0]) for row in checked(pending)]
        rows = yield from outbox.ask([(key, (b"XRANGE", key, one, one)) for one in ids])
        for row in rows:
            items += [Item.of(at, m.id, m.data or b"") for m in entries(checked(row))]
    if len(items) < most:
        start = after(group.last) if group is not None else BEGIN
        (rest,) = yield from outbox.ask([(key, (b"XRANGE", key, start, b"+", b"COUNT", count))])
        items += [Item.of(at, m.id, m.data or b"") for m in entries(checked(rest))]
    readable = [item for item in items[:most] if item.entry is not None]
    over = (yield from outbox.recall([readable])) if readable else []
    return [
        Waiting(item.entry, item.tries.attempts, item.tries.reason)
        for item in readable
        if item.entry is not None and item not in over
    ]


def _letter(at: int, name: bytes, stream_id: bytes, packed: bytes) -> Letter:
    data, reason, now_ms, first_ms = msgpack.unpackb(packed)
    item = Item.of(at, stream_id, data)
    item.tries = Tries(first_ms, 0, reason)
    dead = Dead(
        item.entry.id if item.entry else f"{tag_at(at).decode()}-{stream_id.decode()}",
        name.rpartition(b"/")[0].decode(),
        reason,
        instant(now_ms),
        instant(first_ms) if first_ms else None,
        item.entry,
    )
    return Letter(item, name, dead)
