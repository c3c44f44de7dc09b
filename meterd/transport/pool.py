"""The connections to one node, shared by threads: bounded, last in first out, never retrying.

`idle` holds links and, to their left, one None for every connection that may still be opened. Its
`pop` and `append` are atomic, so the common case takes no lock. A thread that finds it empty queues
up and is served in turn. A fork or a close replaces the deque: links of an older one are not taken
back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from os import getpid
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeAlias

from meterd.transport.base import MaybeSent, Node, NotSent
from meterd.transport.dial import Dialer, connect_failure
from meterd.transport.link import Link, Unwritten, open_link
from meterd.transport.replies import spoils

_Idle: TypeAlias = deque[Link | None]

# Checks a link that has just been opened; raises `NotSent` when it leads to the wrong server.
Greeting = Callable[[Link, float], None]


class Pool:
    """At most `size` connections to `node`."""

    def __init__(
        self, dialer: Dialer, node: Node, size: int, greeting: Greeting | None = None
    ) -> None:
        self.node = node
        self._where = str(node)
        self._dialer = dialer
        self._size = size
        self._greeting = greeting
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[SimpleQueue[tuple[Link | None, _Idle]]] = deque()
        self._idle: _Idle = deque([None] * self._size)
        self._pid = getpid()

    def call(self, packed: bytes, replies: int, deadline: float) -> Any:
        """Write and read on one connection; raises `NotSent` or `MaybeSent`."""
        if monotonic() >= deadline:
            raise NotSent(f"no time left to call {self._where}")
        idle = self._idle
        try:
            link = idle.pop()
        except IndexError:
            link = self._checkout(deadline)
        else:
            if getpid() != self._pid:
                link = self._checkout(deadline)  # which lets go of all that is the parent's
            elif link is None or link.stale(0):
                self._give_back(idle, link)
                link = self._checkout(deadline)
        spare = 2
        while True:
            try:
                reply = link.exchange(packed, replies, deadline)
            except Unwritten:
                self._discard(link)
                if not spare or monotonic() >= deadline:
                    raise
                spare -= 1
                link = self._checkout(deadline)
                continue
            except BaseException:
                # Whatever it was, an interrupt included: the reply may still come, for nobody.
                self._discard(link)
                raise
            if (
                reply.__class__ is not bytes and isinstance(reply, Exception) and spoils(reply)
            ) or link.unsettled():
                self._discard(link)
            else:
                self._give_back(link.home, link)
            return reply

    def call_each(self, packed: bytes, replies: int, deadline: float) -> list[Any]:
        """As `call`, but a lost reply is a `MaybeSent` among the others, which are kept."""
        if monotonic() >= deadline:
            raise NotSent(f"no time left to call {self._where}")
        spare = 2
        while True:
            link = self._checkout(deadline)
            try:
                answers = link.exchange_each(packed, replies, deadline)
            except Unwritten:
                self._discard(link)
                if not spare or monotonic() >= deadline:
                    raise
                spare -= 1
                continue
            except BaseException:
                self._discard(link)
                raise
            if link.unsettled() or any(
                isinstance(one, MaybeSent) or (isinstance(one, Exception) and spoils(one))
                for one in answers
            ):
                self._discard(link)
            else:
                self._give_back(link.home, link)
            return answers

    def close(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""
        if getpid() != self._pid:
            self._renew()
            return
        with self._lock:
            old, self._idle = self._idle, deque([None] * self._size)
            self._serve()
        while old:
            link = old.pop()
            if link is not None:
                link.close()

    def _checkout(self, deadline: float) -> Link:
        if getpid() != self._pid:
            # The parent's links are let go, not shut down: both processes share the sockets.
            self._renew()
        while True:
            idle = self._idle
            try:
                link = idle.pop()
            except IndexError:
                link, idle = self._queue_up(deadline)
            if link is None:
                return self._connect(idle, deadline)
            if not link.stale(0):
                return link
            # Closed by the server, or holding a reply that nobody waited for.
            self._discard(link)

    def _connect(self, idle: _Idle, deadline: float) -> Link:
        connection = None
        try:
            left = deadline - monotonic()
            if left <= 0:
                raise NotSent(f"no time left to connect to {self._where}")
            connection = self._dialer.connection(self.node, left)
            connection.connect()
            link = open_link(connection, self._where)
            link.home = idle
            if self._greeting is not None:
                self._greeting(link, deadline)
            return link
        except BaseException as error:
            if connection is not None:
                Link(connection, self._where).close()
            self._give_back(idle, None)
            if isinstance(error, MaybeSent):  # the greeting's: it is not the caller's request
                raise NotSent(f"cannot connect to {self._where}: {error}") from error
            if not isinstance(error, Exception):
                raise
            raise connect_failure(error, self._where) from error

    def _queue_up(self, deadline: float) -> tuple[Link | None, _Idle]:
        """Wait in turn for a connection that another thread gives back."""
        place: SimpleQueue[tuple[Link | None, _Idle]] = SimpleQueue()
        with self._lock:
            self._waiting.append(place)
            self._serve()
        try:
            return place.get(timeout=max(0.0, deadline - monotonic()))
        except BaseException as error:
            with self._lock:
                served = place not in self._waiting
                if not served:
                    self._waiting.remove(place)
            if isinstance(error, Empty):
                if served:
                    return place.get()
                raise NotSent(
                    f"all {self._size} connections to {self._where} are busy; "
                    "raise max_connections, or call less at once"
                ) from None
            if served:
                link, idle = place.get()
                self._give_back(idle, link)
            raise

    def _discard(self, link: Link) -> None:
        link.close()
        self._give_back(link.home, None)

    def _give_back(self, idle: _Idle, link: Link | None) -> None:
        """Free one place; an unused link goes to the right, where it is taken first."""
        if idle is not self._idle:
            if link is not None:
                link.close()
            return
        if link is None:
            idle.appendleft(None)
        else:
            idle.append(link)
        if self._waiting:
            with self._lock:
                self._serve()

    def _serve(self) -> None:
        """Hand idle places to the waiting, first come first served; the lock is held."""
        idle = self._idle
        while self._waiting:
            try:
                link = idle.pop()
            except IndexError:
                return
            self._waiting.popleft().put((link, idle))
