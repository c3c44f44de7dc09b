"""Which server gets a request, and what happens when it is the wrong one. No I/O.

A flow is a generator. It yields what to do next, an `Exchange` or a pause in seconds, and is sent
the reply (or thrown the `NotSent`/`MaybeSent` the exchange ended in); what it returns is the
answer. The synchronous and the asynchronous transport drive the same flows; they differ in how
they wait.

Nothing is repeated here unless the server said, or the failed connect proves, that it never ran.
"""

from __future__ import annotations

import random
from binascii import crc_hqx
from collections.abc import Generator, Iterator
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from redis.exceptions import ClusterDownError

from meterd.transport.base import MaybeSent, Node, NotSent, Rejected, Request, pack
from meterd.transport.replies import Verdict, judge, judge_all, target

SLOTS = 16384
_ASKING = pack("ASKING")
_CLUSTER_SLOTS = pack("CLUSTER", "SLOTS")
ROLE = pack("ROLE")
_PAUSE_MIN, _PAUSE_MAX = 0.0005, 0.020
# An attempt begun right before the deadline would turn "not sent" into "nobody knows".
_LAST_ATTEMPT = 0.020
# A refresh of the map is one round trip; a storm of redirects must not become a storm of refreshes.
_REFRESH_EVERY = 0.1


class Exchange(NamedTuple):
    """Write `packed` to `node` and read `replies`; `seconds` may bound it below the call's time."""

    node: Node
    packed: bytes
    replies: int = 1
    seconds: float | None = None
    sentinel: bool = False


Flow: TypeAlias = Generator[Exchange | float, Any, Any]


def key_slot(key: bytes) -> int:
    """The slot of a key: CRC16 of what stands between the first `{` and the next `}`, if any."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & (SLOTS - 1)


def pauses() -> Iterator[float]:
    """0.5 ms doubling to 20 ms, each shortened at random so that callers do not march in step."""
    pause = _PAUSE_MIN
    while True:
        yield pause * random.uniform(0.5, 1.0)  # spreads load, keeps no secret
        pause = min(pause * 2, _PAUSE_MAX)


def settle(reply: Any, replies: int, where: Node) -> Any:
    """What a server that stands alone answered; `NotSent` if it turned the request away."""
    verdict, error = judge_all(reply, replies)
    if verdict is Verdict.REPLY:
        return reply
    if verdict in (Verdict.MOVED, Verdict.ASK, Verdict.WAIT):
        raise Rejected(f"{where} is part of a cluster ({error}); write redis+cluster:// in its URL")
    if verdict is Verdict.REJECTED:
        raise Rejected(f"{where} refused the login ({error}); check user and password")
    raise NotSent(f"{where} cannot serve now: {error}")


class Sentinels:
    """Finds the primary of one service by asking the sentinels; follows it through failovers."""

    def __init__(self, sentinels: tuple[Node, ...], service: str) -> None:
        self._sentinels = list(sentinels)
        self._service = service
        self.primary: Node | None = None

    def send(self, request: Request, deadline: float) -> Flow:
        """Send to the primary, finding it (again) until the deadline."""
        waits = pauses()
        problem: NotSent | None = None
        while True:
            node = self.primary
            try:
                if node is None:
                    node = yield from self.discover(deadline)
                reply = yield Exchange(node, request.packed, request.replies)
            except (Rejected, MaybeSent):
                self.forget(node)
                raise
            except NotSent as error:
                problem = _telling(problem, error, deadline)
            else:
                verdict, error_reply = judge_all(reply, request.replies)
                if verdict is not Verdict.ELSEWHERE:
                    return settle(reply, request.replies, node)
                problem = NotSent(f"{node} cannot serve now: {error_reply}")
            self.forget(node)
            yield pause_before(deadline, waits, problem)

    def forget(self, node: Node | None) -> None:
        """Ask who serves before the next call."""
        if self.primary == node:
            self.primary = None

    def discover(self, deadline: float) -> Generator[Exchange | float, Any, Node]:
        """Ask one sentinel after the other, the last helpful one first."""
        problem: Exception | None = None
        command = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        sentinels = self._sentinels
        for left, sentinel in zip(range(len(sentinels), 0, -1), sentinels, strict=True):
            share = max(0.02, (deadline - monotonic()) / left)
            try:
                reply = yield Exchange(sentinel, command, 1, share, sentinel=True)
            except (NotSent, MaybeSent) as error:
                problem = error
                continue
            if isinstance(reply, list) and len(reply) == 2:
                host, port = reply
                self.primary = Node(host.decode(), int(port))
                self._sentinels = [sentinel, *(one for one in sentinels if one != sentinel)]
                return self.primary
            if isinstance(reply, Exception):
                text = f"{sentinel} is not a sentinel, or refuses to answer ({reply})"
                problem = Rejected(text) if judge(reply) is Verdict.REPLY else NotSent(text)
            else:
                problem = NotSent(
                    f"sentinel {sentinel} does not know the service {self._service!r}"
                )
        if isinstance(problem, Rejected):
            raise problem
        raise NotSent(f"no sentinel named a primary for {self._service!r}: {problem}")


def check_role(reply: Any, where: str) -> None:
    """A new connection must lead to a primary; one who may not ask ROLE is trusted."""
    if isinstance(reply, list) and reply and reply[0] != b"master":
        raise NotSent(f"{where} is a {reply[0].decode()} now, not the primary")


class Cluster:
    """The slot map of one cluster, and the flow that sends by it."""

    def __init__(self, seeds: tuple[Node, ...]) -> None:
        self._seeds = seeds
        self._owners: list[Node | None] = [None] * SLOTS
        self._primaries: list[Node] = []
        # Nodes met in redirects since the map was fetched: they may own no slot yet.
        self._guests: dict[Node, None] = {}
        self._refreshed_at = float("-inf")
        self.stale = True
        self.version = 0

    def nodes(self) -> list[Node]:
        """Primaries in the map, then those known from redirects only."""
        return [
            *self._primaries,
            *(node for node in list(self._guests) if node not in self._primaries),
        ]

    def known(self, node: Node) -> bool:
        """Whether connections to `node` are worth keeping."""
        return node in self._guests or node in self._primaries or node in self._seeds

    def owner(self, key: bytes | None) -> Node | None:
        """Who the map says owns the key; any primary for None."""
        if key is not None:
            return self._owners[key_slot(key)]
        return random.choice(self._primaries) if self._primaries else None

    def send(self, request: Request, deadline: float) -> Flow:
        """Send to the owner of the key, following redirects until the deadline."""
        waits = pauses()
        problem: NotSent | None = None
        moves = 0
        while True:
            try:
                if self.stale:
                    yield from self.refresh(deadline)
                node = self.owner(request.key)
                if node is None:
                    raise NotSent("no node of the cluster owns the slot of this key")
                reply = yield Exchange(node, request.packed, request.replies)
                verdict, error = judge_all(reply, request.replies)
                while verdict is Verdict.ASK and request.replies == 1:
                    asked = self._guest(target(error, node))
                    answers = yield Exchange(asked, _ASKING + request.packed, 2)
                    reply, node = answers[1], asked
                    verdict, error = judge_all(reply, 1)
            except Rejected:
                raise
            except MaybeSent:
                self.stale = True
                raise
            except NotSent as failure:
                # Never reached anyone. The owner may have died: ask the others who took over.
                problem = _telling(problem, failure, deadline)
                self.stale = True
            else:
                if verdict is Verdict.REPLY:
                    return reply
                if verdict is Verdict.REJECTED:
                    return settle(reply, request.replies, node)
                problem = NotSent(f"{node} does not serve this slot now: {error}")
                if verdict is Verdict.MOVED:
                    yield from self._moved(error, node, deadline)
                    moves += 1
                    if moves <= 2 and monotonic() + _LAST_ATTEMPT < deadline:
                        continue
                elif verdict is Verdict.ELSEWHERE or isinstance(error, ClusterDownError):
                    self.stale = True
            yield pause_before(deadline, waits, problem)

    def _guest(self, node: Node) -> Node:
        self._guests[node] = None
        return node

    def _moved(self, error: Any, answered: Node, deadline: float) -> Generator[Any, Any, None]:
        """Note the slot's new owner. Others have probably moved too: fetch the map from there."""
        owner = self._guest(target(error, answered))
        try:
            if monotonic() - self._refreshed_at >= _REFRESH_EVERY:
                yield from self.refresh(deadline, first=owner)
        except (NotSent, MaybeSent):
            self.stale = True
        # The redirect is newer than any map.
        self._owners[error.slot_id] = self._guest(owner)

    def refresh(self, deadline: float, first: Node | None = None) -> Generator[Any, Any, None]:
        """Fetch the slot map from the first node that answers; at most ten times a second."""
        if self._primaries and monotonic() - self._refreshed_at < _REFRESH_EVERY:
            return
        self._refreshed_at = monotonic()
        candidates = list(
            dict.fromkeys([*([first] if first else ()), *self._shuffled(), *self._seeds])
        )
        problem: Exception | None = None
        for left, node in zip(range(len(candidates), 0, -1), candidates, strict=True):
            share = max(0.02, (deadline - monotonic()) / left)
            try:
                reply = yield Exchange(node, _CLUSTER_SLOTS, 1, share)
            except (NotSent, MaybeSent) as error:
                problem = error
                continue
            if isinstance(reply, list) and reply:
                self._adopt(reply, node)
                return
            if isinstance(reply, Exception) and judge(reply) is Verdict.REPLY:
                problem = Rejected(
                    f"{node} is not part of a cluster ({reply}); write redis:// in its URL"
                )
            else:
                problem = NotSent(f"{node} knows no slots yet ({reply})")
        if isinstance(problem, Rejected):
            raise problem
        raise NotSent(f"no node of the cluster answered: {problem}")

    def _shuffled(self) -> list[Node]:
        nodes = list(self._primaries)
        random.shuffle(nodes)
        return nodes

    def _adopt(self, ranges: list[Any], answered: Node) -> None:
        owners: list[Node | None] = [None] * SLOTS
        primaries: dict[Node, None] = {}
        for first, last, primary, *_replicas in ranges:
            host = (primary[0] or b"").decode()
            node = Node(answered.host if host in ("", "?") else host, int(primary[1]))
            primaries[node] = None
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners = owners
        self._primaries = list(primaries)
        self._guests = {}
        self.version += 1
        self.stale = False


def _telling(earlier: NotSent | None, latest: NotSent, deadline: float) -> NotSent:
    """The failure worth reporting: at the deadline the latest says only that time ran out."""
    return latest if earlier is None or monotonic() < deadline else earlier


def pause_before(deadline: float, waits: Iterator[float], problem: NotSent) -> float:
    """The next pause, or `problem` raised when too little time would be left after it."""
    pause = next(waits)
    if monotonic() + pause + _LAST_ATTEMPT >= deadline:
        raise problem
    return pause
