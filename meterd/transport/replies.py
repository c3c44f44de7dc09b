"""What a server's error reply means for the request that got it. Pure; shared by every transport.

Only replies that a server gives *instead of* running a command count as "not run". An error raised
inside a script is a reply like any other, because what the script wrote before it stays.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from meterd.transport.base import Node

# What the parser, or redis-py's reading of an error reply, makes of bytes that no Redis sends.
GARBAGE = (InvalidResponse, ValueError, LookupError, TypeError)


class Verdict(Enum):
    """What to do with a reply."""

    REPLY = auto()  # hand it to the caller
    MOVED = auto()  # another node owns the slot from now on
    ASK = auto()  # another node has this key, this once
    WAIT = auto()  # the slot is between two nodes, or uncovered
    ELSEWHERE = auto()  # this server cannot serve now: a replica, loading, too many clients, busy
    REJECTED = auto()  # this server will never serve these credentials


# A script run by EVALSHA on Redis 6.2 reports this as text; a replica refuses its first write, so
# nothing was written.
_READ_ONLY = "-READONLY You can't write against a read only replica"


def judge(reply: Any) -> Verdict:
    """The verdict on one raw reply."""
    if not isinstance(reply, Exception):
        return Verdict.REPLY
    if isinstance(reply, MovedError):
        return Verdict.MOVED
    if isinstance(reply, AskError):
        return Verdict.ASK
    if isinstance(reply, (MasterDownError, ReadOnlyError)):
        return Verdict.ELSEWHERE
    if isinstance(reply, (TryAgainError, ClusterDownError)):
        return Verdict.WAIT
    if isinstance(reply, AuthenticationError):
        return Verdict.REJECTED
    if isinstance(reply, ConnectionError):
        # redis-py's class for LOADING and for "max number of clients reached".
        return Verdict.ELSEWHERE
    text = str(reply)
    if text.startswith("BUSY ") or _READ_ONLY in text:
        return Verdict.ELSEWHERE
    return Verdict.REPLY


def judge_all(reply: Any, replies: int) -> tuple[Verdict, Any]:
    """The verdict on a whole answer, and the error it rests on.

    Several replies count as not run only when all of them do; a mixture is an answer.
    """
    if replies == 1:
        return judge(reply), reply
    verdicts = [judge(one) for one in reply]
    if Verdict.REPLY in verdicts:
        return Verdict.REPLY, reply
    return verdicts[0], reply[0]


def is_reply(error: Exception) -> bool:
    """Whether an exception raised by redis-py is a server's words, not a broken connection.

    Some error replies (LOADING, NOAUTH, too many clients) come as subclasses of `ConnectionError`.
    """
    return (
        isinstance(error, (ResponseError, AuthenticationError, BusyLoadingError))
        or getattr(error, "status_code", None) is not None
    )


def spoils(reply: Any) -> bool:
    """Whether the connection that brought `reply` is of no further use."""
    return judge(reply) in (Verdict.ELSEWHERE, Verdict.REJECTED)


def target(error: AskError, answered: Node) -> Node:
    """Where a redirect points; an empty or unknown host means the host that answered."""
    host = error.host
    return Node(answered.host if host in ("", "?") else host, int(error.port))
