"""What `doctor` sees of events and of use to be billed. Read-only, and no meter is opened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from meterd.keys import PARTITIONS, Keyspace
from meterd.streams import (
    Asked,
    Group,
    Message,
    entries,
    groups,
    mapping,
    place,
    trimmed_unread,
)
from meterd.transport import MaybeSent, NotSent, Request
from meterd.transport.base import SyncTransport
from meterd.wire import command


@dataclass
class Backlog:
    """Over all partitions. `lost`: events by group that it never got; None: nobody knows.

    `unread`: entries of the outboxes by sink. `oldest_s`: the age of the oldest entry there.
    """

    events: int = 0
    readers: set[str] = field(default_factory=set)
    lost: dict[str, int | None] = field(default_factory=dict)
    entries: int = 0
    oldest_s: float = 0.0
    sinks: set[str] = field(default_factory=set)
    unread: Counter[str] = field(default_factory=Counter)
    dead: int = 0
    refused: str = ""  # why it could not be read


def look(transport: SyncTransport, keys: Keyspace, seconds: float) -> Backlog:
    """Asks all partitions."""
    found = Backlog()

    def ask(asked: Sequence[Asked]) -> list[Any]:
        requests = [Request(command(*words), key) for key, words in asked]
        replies = transport.send_many(requests, seconds) if requests else []
        for reply in replies:
            if isinstance(reply, (NotSent, MaybeSent)):
                raise reply
            if isinstance(reply, ResponseError):
                found.refused = str(reply)
        return [None if isinstance(reply, ResponseError) else reply for reply in replies]

    streams = {
        kind: [keys.partition_key(at, kind) for at in range(PARTITIONS)]
        for kind in (b"events", b"outbox", b"dead")
    }
    sizes = {
        kind: ask([(k, (b"HLEN" if kind == b"dead" else b"XLEN", k)) for k in names])
        for kind, names in streams.items()
    }
    found.dead = sum(int(size or 0) for size in sizes[b"dead"])
    there = [key for key, size in zip(streams[b"events"], sizes[b"events"], strict=True) if size]
    _events(found, there, ask)
    (members,) = ask([(keys.sinks, (b"SMEMBERS", keys.sinks))])
    found.sinks = {bytes(name).decode() for name in members or ()}
    full = {
        key: int(size)
        for key, size in zip(streams[b"outbox"], sizes[b"outbox"], strict=True)
        if size
    }
    _outbox(found, full, ask)
    return found


def _events(found: Backlog, keys: Sequence[bytes], ask: Any) -> None:
    infos = ask([(key, (b"XINFO", b"STREAM", key)) for key in keys])
    groupings = ask([(key, (b"XINFO", b"GROUPS", key)) for key in keys])
    held: list[tuple[bytes, Group, Message]] = []
    for key, info, rows in zip(keys, infos, groupings, strict=True):
        if info is None or rows is None:
            continue
        stream = mapping(info)
        found.events += int(stream["length"])
        first = entries([stream["first-entry"]])
        for group in groups(rows).values():
            found.readers.add(group.name.decode())
            _lose(found, group, trimmed_unread(stream, group))
            if group.pending and first:
                held.append((key, group, first[0]))
    summaries = ask([(key, (b"XPENDING", key, group.name)) for key, group, _ in held])
    for (_, group, first_kept), summary in zip(held, summaries, strict=True):
        if summary and summary[1] is not None and place(summary[1]) < place(first_kept.id):
            _lose(found, group, None)  # read, never acknowledged, and trimmed away


def _lose(found: Backlog, group: Group, lost: int | None) -> None:
    name = group.name.decode()
    if lost is None:
        found.lost.setdefault(name, None)
    elif lost:
        found.lost[name] = (found.lost.get(name) or 0) + lost


def _outbox(found: Backlog, keys: dict[bytes, int], ask: Any) -> None:
    firsts = ask([(key, (b"XRANGE", key, b"-", b"+", b"COUNT", b"1")) for key in keys])
    groupings = ask([(key, (b"XINFO", b"GROUPS", key)) for key in keys])
    now_ms = time.time() * 1000
    for size, first, rows in zip(keys.values(), firsts, groupings, strict=True):
        found.entries += size
        for message in entries(first):
            age = (now_ms - place(message.id)[0]) / 1000
            found.oldest_s = max(found.oldest_s, age)
        known = groups(rows or [])
        for sink in found.sinks:
            group = known.get(sink.encode())
            if group is None:
                found.unread[sink] += size
            else:
                found.unread[sink] += group.pending
