"""What a transport is: it carries packed commands to a server and brings the raw replies back.

Everything the core may assume about the network lives here. A call ends in one of three ways:
replies (server error replies included, as values), `NotSent` (nothing was executed, repeating is
safe), or `MaybeSent` (executed once or not at all, nobody can tell). There is no fourth way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from hiredis import pack_command

Kind = Literal["standalone", "sentinel", "cluster"]


class Request(NamedTuple):
    """One or more packed commands, written in one piece.

    `key` routes in a cluster (None: any primary). With `replies == 1`, `send` returns the reply,
    else a list of them. A request of several replies is repeated after a redirect only when *every*
    reply is one; otherwise the redirects are handed back among the other replies.
    """

    packed: bytes
    key: bytes | None
    replies: int = 1


class Node(NamedTuple):
    """One server process: `path` is set for a unix socket, host and port otherwise."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NotSent(Exception):
    """Nothing of the request was executed: no server got it, or it was turned away unread."""


class Rejected(NotSent):
    """`NotSent`, and waiting will not help: wrong login, wrong kind of server, not Redis at all."""


class MaybeSent(Exception):
    """The request was written, at least in part, and its reply was lost, late or unreadable."""


def pack(*args: bytes | str | int) -> bytes:
    """One command as RESP: `pack("GET", key)` -> `b"*2\\r\\n$3\\r\\nGET\\r\\n…"`."""
    packed: bytes = pack_command(args)  # type: ignore[arg-type]  # its stub knows one-tuples only
    return packed


class SyncTransport(Protocol):
    """Thread-safe, fork-safe, connects lazily. `timeout` is seconds and bounds the whole call."""

    url: str
    kind: Kind

    def open(self) -> None:
        """Connect once and see that a server answers; raises `Unavailable` or `PolicyError`."""

    def send(self, request: Request, timeout: float) -> Any:
        """Route, follow redirects, return the raw reply; raises `NotSent` or `MaybeSent`."""

    def send_many(self, requests: Sequence[Request], timeout: float) -> list[Any]:
        """As `send` for each, all at once: one write to each node, in order.

        A request that ends in `NotSent` or `MaybeSent` has that in the place of its reply.
        """

    def nodes(self) -> list[Node]:
        """Every primary known (one unless a cluster), those met in redirects included.

        Asks the cluster or the sentinels when it has to, and then raises as `send` does.
        """

    def send_to(self, node: Node, request: Request, timeout: float) -> Any:
        """As `send`, to one node, without routing: redirects come back as values."""

    def close(self) -> None:
        """Close what is idle now, and what is in use later. Another call connects again."""


class AsyncTransport(Protocol):
    """The same, awaited; belongs to the event loop that used it first, until `aclose()`.

    A loop that ends in order (`asyncio.run` and its like) closes it.
    """

    url: str
    kind: Kind

    async def open(self) -> None: ...

    async def send(self, request: Request, timeout: float) -> Any: ...

    def start(self, request: Request, timeout: float) -> asyncio.Future[Any]:
        """As `send`, begun at once; in the plain case no coroutine is made for it.

        Await the future, or cancel it to give up. The future tells every end, `NotSent` included.
        """

    async def nodes(self) -> list[Node]: ...

    async def send_to(self, node: Node, request: Request, timeout: float) -> Any: ...

    async def aclose(self) -> None: ...

    def abandon(self) -> None:
        """Let go of every connection without I/O, while the loop does not run."""
