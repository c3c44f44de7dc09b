"""The synchronous transports: threads wait here. What to do next is decided in `routing`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any

from redis.exceptions import InvalidResponse

from meterd.errors import PolicyError, Unavailable
from meterd.transport.base import (
    Kind,
    MaybeSent,
    Node,
    NotSent,
    Rejected,
    Request,
    SyncTransport,
    pack,
)
from meterd.transport.dial import Dialer, dialer, injected
from meterd.transport.link import Link
from meterd.transport.pool import Pool
from meterd.transport.replies import Verdict, judge_all
from meterd.transport.routing import (
    ROLE,
    Cluster,
    Exchange,
    Flow,
    Sentinels,
    check_role,
    settle,
)
from meterd.transport.url import Endpoint, parse_url

_ENOUGH = 0.02  # seconds without which nothing is begun anew
PING = Request(pack("PING"), None)


class _Base:
    """What the three kinds share. `timeout` serves `open` and `nodes`, which take none."""

    kind: Kind

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self._timeout = timeout

    def send(self, request: Request, timeout: float) -> Any:
        raise NotImplementedError

    def send_many(self, requests: Sequence[Request], timeout: float) -> list[Any]:
        raise NotImplementedError

    def open(self) -> None:
        try:
            reply = self.send(PING, self._timeout)
        except (NotSent, MaybeSent) as error:
            raise open_failure(self.url, error) from error
        check_pong(self.url, reply)


def check_pong(url: str, reply: Any) -> None:
    """`open` wants PONG; a user that may not PING is told so at the first real call, if at all."""
    if reply != b"PONG" and not str(getattr(reply, "status_code", "")) == "NOPERM":
        raise PolicyError(f"{url} answered PING with {reply!r}: not a Redis or Valkey server")


def open_failure(url: str, error: NotSent | MaybeSent) -> PolicyError | Unavailable:
    """`PolicyError` where the URL is at fault, `Unavailable` where time may heal it."""
    if isinstance(error, Rejected) or isinstance(error.__cause__, InvalidResponse):
        return PolicyError(f"cannot use {url}: {error}")
    hint = ""
    late, secure = str(error).endswith("in time"), url.startswith("rediss")
    if isinstance(error, MaybeSent) and not secure and not late:
        hint = "; if the server wants TLS, write rediss://"
    elif secure and late:
        hint = "; if the server does not speak TLS, write redis://"
    return Unavailable(f"cannot reach {url}: {error}{hint}")


class Standalone(_Base):
    """One server, one pool."""

    kind: Kind = "standalone"

    def __init__(
        self, url: str, node: Node, dial: Dialer, timeout: float, max_connections: int
    ) -> None:
        super().__init__(url, timeout)
        self._node = node
        self._pool = Pool(dial, node, max_connections)

    def send(self, request: Request, timeout: float) -> Any:
        replies = request.replies
        reply = self._pool.call(request.packed, replies, monotonic() + timeout)
        if reply.__class__ is bytes:
            return reply
        return settle(reply, replies, self._node)

    def send_many(self, requests: Sequence[Request], timeout: float) -> list[Any]:
        answers = together(self._pool, requests, monotonic() + timeout)
        for at, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            if answer.__class__ is not bytes and not isinstance(answer, (NotSent, MaybeSent)):
                try:
                    settle(answer, request.replies, self._node)
                except NotSent as error:
                    answers[at] = error
        return answers

    def nodes(self) -> list[Node]:
        return [self._node]

    def send_to(self, node: Node, request: Request, timeout: float) -> Any:
        return self.send(request, timeout)

    def close(self) -> None:
        self._pool.close()


def together(pool: Pool, requests: Sequence[Request], deadline: float) -> list[Any]:
    """What came of each request, all written at once; `NotSent` and `MaybeSent` as values."""
    packed = b"".join([request.packed for request in requests])
    try:
        replies = pool.call_each(packed, sum([request.replies for request in requests]), deadline)
    except (NotSent, MaybeSent) as error:
        return [type(error)(*error.args) for _ in requests]
    if len(replies) == len(requests):
        return replies
    answers: list[Any] = []
    at = 0
    for request in requests:
        own = replies[at : at + request.replies]
        at += request.replies
        lost = [one for one in own if isinstance(one, MaybeSent)]
        answers.append(lost[0] if lost else own[0] if request.replies == 1 else own)
    return answers


class _Routed(_Base):
    """Drives the flows of `routing` over one pool for each node."""

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        super().__init__(endpoint.url, timeout)
        self._endpoint = endpoint
        self._dial = dialer(endpoint, asynchronous=False)
        self._size = max_connections
        self._pools: dict[Node, Pool] = {}

    def send_to(self, node: Node, request: Request, timeout: float) -> Any:
        return self._exchange(
            Exchange(node, request.packed, request.replies), monotonic() + timeout
        )

    def send_many(self, requests: Sequence[Request], timeout: float) -> list[Any]:
        deadline = monotonic() + timeout
        self._look_around(deadline)
        answers: list[Any] = [None] * len(requests)
        places: dict[Node | None, list[int]] = {}
        for at, request in enumerate(requests):
            places.setdefault(self._nearest(request), []).append(at)
        for node, members in places.items():
            found: list[Any] = [NotSent("nobody knows where to")] * len(members)
            if node is not None:
                pool = self._pools.get(node) or self._pool(Exchange(node, b""))
                found = together(pool, [requests[at] for at in members], deadline)
            for at, answer in zip(members, found, strict=True):
                if isinstance(answer, MaybeSent):
                    self._doubt(node)
                    answers[at] = answer
                elif isinstance(answer, NotSent) or not self._served(answer, requests[at]):
                    # The others need not wait for it: it goes its own way, redirects and all.
                    answers[at] = self._alone(requests[at], answer, deadline)
                else:
                    answers[at] = answer
        return answers

    def _alone(self, request: Request, answer: Any, deadline: float) -> Any:
        left = deadline - monotonic()
        if left < _ENOUGH:
            if isinstance(answer, NotSent):
                return answer
            return NotSent(f"no time left to ask elsewhere: {answer}")
        try:
            return self.send(request, left)
        except (NotSent, MaybeSent) as error:
            return error

    def _served(self, answer: Any, request: Request) -> bool:
        verdict, _ = judge_all(answer, request.replies)
        return verdict is Verdict.REPLY

    def _look_around(self, deadline: float) -> None:
        """Find out where requests go, if that is not known; whoever needs to know will say so."""
        with contextlib.suppress(NotSent, MaybeSent):
            self._discover(deadline)

    def _discover(self, deadline: float) -> None:
        raise NotImplementedError

    def _nearest(self, request: Request) -> Node | None:
        """Where `send` would write first, if that is known."""
        raise NotImplementedError

    def _doubt(self, node: Node | None) -> None:
        """A reply of `node` was lost: see who serves next time."""
        raise NotImplementedError

    def close(self) -> None:
        for pool in list(self._pools.values()):
            pool.close()

    def _run(self, flow: Flow, deadline: float) -> Any:
        try:
            step = next(flow)
            while True:
                if isinstance(step, float):
                    sleep(step)
                    step = next(flow)
                    continue
                try:
                    reply = self._exchange(step, deadline)
                except (NotSent, MaybeSent) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            return end.value

    def _exchange(self, step: Exchange, deadline: float) -> Any:
        if step.seconds is not None:
            deadline = min(deadline, monotonic() + step.seconds)
        pool = self._pools.get(step.node) or self._pool(step)
        return pool.call(step.packed, step.replies, deadline)

    def _pool(self, step: Exchange) -> Pool:
        # setdefault, not a lock: of two pools made at once one is dropped before it connects.
        return self._pools.setdefault(step.node, self._new_pool(step))

    def _new_pool(self, step: Exchange) -> Pool:
        return Pool(self._dial, step.node, self._size)


class Sentinel(_Routed):
    """The primary of a service watched by sentinels."""

    kind: Kind = "sentinel"

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        super().__init__(endpoint, timeout, max_connections)
        self._sentinels = Sentinels(endpoint.nodes, endpoint.service)
        self._sentinel_dial = dialer(endpoint, asynchronous=False, sentinel=True)

    def send(self, request: Request, timeout: float) -> Any:
        deadline = monotonic() + timeout
        return self._run(self._sentinels.send(request, deadline), deadline)

    def nodes(self) -> list[Node]:
        if self._sentinels.primary is not None:
            return [self._sentinels.primary]
        deadline = monotonic() + self._timeout
        return [self._run(self._sentinels.discover(deadline), deadline)]

    def _discover(self, deadline: float) -> None:
        if self._sentinels.primary is None:
            self._run(self._sentinels.discover(deadline), deadline)

    def _nearest(self, request: Request) -> Node | None:
        return self._sentinels.primary

    def _doubt(self, node: Node | None) -> None:
        if self._sentinels.primary == node:
            self._sentinels.primary = None

    def _new_pool(self, step: Exchange) -> Pool:
        if step.sentinel:
            return Pool(self._sentinel_dial, step.node, self._size)
        return Pool(self._dial, step.node, self._size, greeting=_greet_primary)


def _greet_primary(link: Link, deadline: float) -> None:
    check_role(link.exchange(ROLE, 1, deadline), link.where)


class ClusterTransport(_Routed):
    """Every primary of a cluster, by slot."""

    kind: Kind = "cluster"

    def __init__(self, endpoint: Endpoint, timeout: float, max_connections: int) -> None:
        super().__init__(endpoint, timeout, max_connections)
        self._cluster = Cluster(endpoint.nodes)
        self._version = 0

    def send(self, request: Request, timeout: float) -> Any:
        deadline = monotonic() + timeout
        reply = self._run(self._cluster.send(request, deadline), deadline)
        if self._version != self._cluster.version:
            self._forget_strangers()
        return reply

    def nodes(self) -> list[Node]:
        if self._cluster.stale:
            deadline = monotonic() + self._timeout
            self._run(self._cluster.refresh(deadline), deadline)
        return self._cluster.nodes()

    def _discover(self, deadline: float) -> None:
        if self._cluster.stale:
            self._run(self._cluster.refresh(deadline), deadline)

    def _nearest(self, request: Request) -> Node | None:
        return self._cluster.owner(request.key)

    def _doubt(self, node: Node | None) -> None:
        self._cluster.stale = True

    def _forget_strangers(self) -> None:
        """Close the pools of nodes that have left the map."""
        self._version = self._cluster.version
        for node in list(self._pools):
            if not self._cluster.known(node):
                pool = self._pools.pop(node, None)
                if pool is not None:
                    pool.close()


def open_transport(
    url: str | None, *, timeout: float, max_connections: int, client: Any = None
) -> SyncTransport:
    """A transport for a URL, or for a `redis.Redis` given as `client`. Does no I/O.

    `timeout` (seconds) bounds `open` and `nodes`; `max_connections` is for each node.
    """
    if client is not None:
        node, its_url, dial = injected(client, asynchronous=False)
        return Standalone(its_url, node, dial, timeout, max_connections)
    endpoint = parse_url(url)
    if endpoint.kind == "cluster":
        return ClusterTransport(endpoint, timeout, max_connections)
    if endpoint.kind == "sentinel":
        return Sentinel(endpoint, timeout, max_connections)
    dial = dialer(endpoint, asynchronous=False)
    return Standalone(endpoint.url, endpoint.nodes[0], dial, timeout, max_connections)
