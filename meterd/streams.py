"""Commands to the streams of many partitions at once, as rounds: what is asked together goes
together, in one write to each server. No I/O.

A stream is the same on every server, but not its replies: this is the place that knows how RESP2
and RESP3, and servers from Redis 6.2 on, differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import ResponseError

from meterd.batch import Rounds
from meterd.errors import Unavailable
from meterd.flow import Flow, Send, Sleep
from meterd.session import Session
from meterd.transport import MaybeSent, NotSent, Request
from meterd.wire import command

T = TypeVar("T")
Asked = tuple[bytes, tuple[bytes, ...]]  # the key that routes a command, and the command

KEPT = 100_000  # entries that a stream of events keeps at least
NEW = b">"
BEGIN = b"0-0"
SECONDS = 5.0  # patience with what is asked of many partitions
_ENOUGH = 0.02  # seconds without which nothing is asked again


class Message(NamedTuple):
    """An entry of a stream; `data` is its only field, None if the entry was deleted meanwhile."""

    id: bytes
    data: bytes | None


class Group(NamedTuple):
    """A consumer group. `read`: how many entries it has read, where the server counts that."""

    name: bytes
    last: bytes
    pending: int
    read: int | None


def alone(flow: Flow[T]) -> Rounds[T]:
    """A flow as rounds of one step each."""
    try:
        step = next(flow)
        while True:
            (result,) = yield [step]
            if isinstance(result, (NotSent, MaybeSent)):
                step = flow.throw(result)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        done: T = stop.value
        return done


def ask(session: Session, asked: Sequence[Asked], wait: float = 0) -> Rounds[list[Any]]:
    """The replies, error replies as values; what got none is asked again until the time is over.

    For commands that do no harm when they run twice. `wait`: seconds that a server may take on
    purpose. Raises `Unavailable`.
    """
    if not asked:
        return []
    requests = [Request(command(*words), key) for key, words in asked]
    replies: list[Any] = [None] * len(requests)
    missing: Sequence[int] = range(len(requests))
    deadline = monotonic() + wait + max(session.timeout, SECONDS)
    losses = 0
    while True:
        left = deadline - monotonic()
        patience = max(wait + (left - wait) / 2, 0.001)
        results = yield [Send(requests[at], patience) for at in missing]
        lost = []
        problem: Exception | None = None
        for at, result in zip(missing, results, strict=True):
            if isinstance(result, (NotSent, MaybeSent)):
                lost.append(at)
                problem = result
            else:
                replies[at] = result
        if problem is None:
            return replies
        if isinstance(problem, NotSent) or deadline - monotonic() < _ENOUGH:
            raise Unavailable(f"the streams could not be asked: {problem}") from problem
        losses += 1
        yield [Sleep(min(0.0005 * (1 << min(losses, 6)), 0.02))]
        missing = lost


def checked(reply: Any) -> Any:
    """A reply that has to be one; `Unavailable` for an error."""
    if isinstance(reply, ResponseError):
        raise Unavailable(f"a stream could not be read or written: {reply}")
    return reply


def is_missing(reply: Any) -> bool:
    """Whether a command failed because there is no such stream, or no such group."""
    if not isinstance(reply, ResponseError):
        return False
    text = str(reply)
    return "NOGROUP" in text or "no such key" in text or "requires the key to exist" in text


def create_group(key: bytes, group: bytes) -> Asked:
    """From the first entry on. An error reply if it exists already, or if there is no stream."""
    return key, (b"XGROUP", b"CREATE", key, group, b"0")


def entries(reply: Any) -> list[Message]:
    """The entries of XRANGE, or of one stream; what the server shows as nothing at all is left."""
    return [
        Message(entry[0], entry[1][1] if entry[1] else None)
        for entry in reply or ()
        if entry is not None and entry[0] is not None
    ]


def by_stream(reply: Any) -> dict[bytes, list[Message]]:
    """The entries of XREAD or XREADGROUP by key."""
    if not reply:
        return {}
    pairs = reply.items() if isinstance(reply, dict) else reply
    return {bytes(key): entries(found) for key, found in pairs}


def mappings(reply: Any) -> list[dict[str, Any]]:
    """The rows of XINFO GROUPS."""
    return [mapping(row) for row in reply]


def mapping(row: Any) -> dict[str, Any]:
    """Names and values, whether they came as a map or as a flat list."""
    pairs: Iterable[tuple[Any, Any]] = (
        row.items() if isinstance(row, dict) else zip(row[::2], row[1::2], strict=True)
    )
    return {bytes(name).decode(): value for name, value in pairs}


def groups(reply: Any) -> dict[bytes, Group]:
    """What XINFO GROUPS says, by name; none where there is no stream."""
    if is_missing(reply):
        return {}
    found = {}
    for row in mappings(checked(reply)):
        read = row.get("entries-read")
        group = Group(
            bytes(row["name"]),
            bytes(row["last-delivered-id"]),
            int(row["pending"]),
            None if read is None else int(read),
        )
        found[group.name] = group
    return found


def trimmed_unread(stream: dict[str, Any], group: Group) -> int | None:
    """How many entries were trimmed away before the group read them; None: nobody knows.

    `stream`: what XINFO STREAM says. It shows until the group has read on. Servers before Redis 7
    do not count; there, a stream that is not full has never been trimmed.
    """
    added, length = stream.get("entries-added"), int(stream["length"])
    read = group.read
    if read is None and place(group.last) == (0, 0):
        read = 0
    if added is not None and read is not None:
        return max(0, int(added) - length - read)
    first = entries([stream["first-entry"]])
    if length < KEPT or (first and place(first[0].id) <= place(group.last)):
        return 0
    return None


def place(entry_id: bytes) -> tuple[int, int]:
    """An entry's id as numbers, which is how ids are in order."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq or 0)


def after(entry_id: bytes) -> bytes:
    """The least id above one."""
    ms, seq = place(entry_id)
    return b"%d-%d" % (ms, seq + 1) if seq < 2**64 - 1 else b"%d-0" % (ms + 1)
