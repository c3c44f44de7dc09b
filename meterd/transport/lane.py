"""One connection that carries many calls at once: written in order, answered in order.

Whatever was written owes its replies. The place of a caller who gave up stays in line and swallows
its reply when it comes, so no reply can reach another call. A lane decides nothing: it tells its
owner that something has changed, and the owner looks.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import hiredis
from redis.connection import DefaultParser
from redis.exceptions import InvalidResponse

from meterd.transport.base import MaybeSent, NotSent
from meterd.transport.replies import GARBAGE, spoils

Other: TypeAlias = Callable[["asyncio.Future[Any]", Any], None]

# Who waits, the packed request, how many replies it has, the deadline (of `monotonic`), and who is
# told instead of the future if the end is anything but a string. A plain tuple, as one is made for
# every call. A future that is done before its turn was given up.
Call: TypeAlias = tuple["asyncio.Future[Any]", bytes, int, float, Other | None]

_MORE = object()
_READS = 8  # by the loop, of up to 256 KiB each, before calls are ended that are over time
_PUSH = hiredis.PushNotification


def fail(call: Call, error: NotSent | MaybeSent) -> None:
    """End a call that nobody has given up."""
    if not call[0].done():
        if call[4] is None:
            call[0].set_exception(error)
        else:
            call[4](call[0], error)


class Owner(Protocol):
    """Whoever writes to a lane."""

    def answered(self) -> None:
        """Replies came, so there may be room for more calls."""

    def changed(self, lane: Lane) -> None:
        """It can be written to again, or is closed."""


class Lane(asyncio.Protocol):
    """An open connection, taken over from redis-py's streams while it is at rest.

    `owed`: the calls written and not yet answered. `usable`: it may be written to. `used`: it has
    brought a reply. `full`: the kernel takes no more. `closed` is done when the socket is.
    """

    def __init__(
        self,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        where: str,
        owner: Owner,
    ) -> None:
        self.owed: deque[Call] = deque()
        self.usable = True
        self.used = False
        self.full = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams = streams  # their finalizers would close the connection
        self._transport = streams[1].transport
        self._where = where
        self._owner = owner
        self._heard = 0.0
        self._reads = _READS
        self._several: list[Any] = []  # the first replies of a call that has several
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_MORE,
        )
        # asyncio's own socket transport sends at once, or fails having sent nothing, as long as its
        # buffer is empty. TLS and other loops send later.
        self._sends_at_once = type(self._transport).__module__ == "asyncio.selector_events"
        self._poll: Callable[[int], Any] = lambda timeout: ()
        peer = self._transport.get_extra_info("socket")
        if peer is not None and hasattr(select, "poll"):
            poller = select.poll()
            poller.register(peer.fileno(), select.POLLIN)
            self._poll = poller.poll
        self._transport.set_write_buffer_limits(high=1)
        self._transport.set_protocol(self)
        _lanes.add(self)

    # What the owner asks -------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """False while something, the end included, is there for the loop to read."""
        return not self._poll(0)

    def awaited(self) -> bool:
        """Whether anybody still waits for a reply."""
        return any(not call[0].done() for call in self.owed)

    def mute(self, seconds: float) -> bool:
        """Whether somebody gave up on a reply, and nothing at all has come for so long."""
        return (
            bool(self.owed)
            and monotonic() - self._heard > seconds
            and any(call[0].done() for call in self.owed)
            and self.at_rest()  # else it is the loop that was busy elsewhere
        )

    def forsaken(self) -> bool:
        """Whether nobody waits for the replies any more, and not just because of cancellations."""
        owed = self.owed
        if not owed or not owed[0][0].done() or self.awaited():
            return False
        return any(not call[0].cancelled() for call in owed)

    def write(self, calls: Sequence[Call]) -> bool:
        """Send requests in one piece; False if certainly nothing of them was sent."""
        transport = self._transport
        if transport.is_closing():
            self.usable = False
            return False
        data = b"".join([call[1] for call in calls])
        if not self.owed:
            self._heard = monotonic()
        self.owed.extend(calls)
        try:
            transport.write(data)
        except BaseException as error:
            self._lose(f"writing to {self._where} failed ({error!r})", None)
            raise
        if self._sends_at_once and transport.is_closing():
            self.usable = False
            for _ in calls:
                self.owed.pop()
            return False
        return True

    def expire(self, now: float) -> float:
        """End the calls whose time is over; when to look again.

        Replies that have arrived while the loop was busy elsewhere are read first.
        """
        waiting = [call for call in self.owed if not call[0].done()]
        late = [call for call in waiting if call[3] <= now]
        if late and self._reads and not self.at_rest():
            self._reads -= 1
            return now
        self._reads = _READS
        for call in late:
            fail(call, MaybeSent(f"no reply from {self._where} in time"))
        return min((call[3] for call in waiting if call[3] > now), default=float("inf"))

    def retire(self) -> None:
        """No further calls; closes as soon as nobody waits for a reply."""
        self.usable = False
        if not self.awaited():
            self.owed.clear()
            self._transport.abort()

    def drop(self) -> None:
        """Close, whoever waits; the loop need not be running."""
        self._lose("the connection was let go", None)

    def part(self, dead: socket.socket) -> None:
        """In a forked child: put another socket in the place of the one shared with the parent."""
        shared = self._transport.get_extra_info("socket")
        if shared is not None and shared.fileno() >= 0:
            os.dup2(dead.fileno(), shared.fileno(), inheritable=False)

    # What asyncio tells --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard = monotonic()
        owed, gets = self.owed, self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := gets()) is not _MORE:
                kind = reply.__class__
                if kind is _PUSH:
                    continue
                if not owed:
                    raise InvalidResponse("a reply that nobody asked for")
                if kind is not bytes and isinstance(reply, Exception) and spoils(reply):
                    self.usable = False
                replies = owed[0][2]
                if replies > 1:
                    self._several.append(reply)
                    if len(self._several) < replies:
                        continue
                    reply, self._several = self._several, []
                future, _, _, _, other = owed.popleft()
                if not future.done():
                    if kind is bytes or other is None:
                        future.set_result(reply)
                    else:
                        other(future, reply)
            self.used = True
        except GARBAGE as error:
            self._lose(f"{self._where} sent what no Redis sends ({error})", error)
        if not self.usable:
            self.retire()
        self._owner.answered()

    def eof_received(self) -> None:
        self.usable = False  # asyncio closes the connection, as nothing is returned

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"lost the connection to {self._where} ({exc or 'it was closed'})", exc)
        if not self.closed.done():
            self.closed.set_result(None)
        self._owner.changed(self)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._owner.changed(self)

    def _lose(self, reason: str, cause: Exception | None) -> None:
        self.usable = False
        while self.owed:
            error = MaybeSent(reason)
            error.__cause__ = cause
            fail(self.owed.popleft(), error)
        self._transport.abort()


_lanes: WeakSet[Lane] = WeakSet()


def _part() -> None:
    """A child shares sockets and selector with its parent: should it run the parent's loop, be it
    to end it, it would take replies from the stream, or the socket out of the selector.
    """
    lanes = list(_lanes)
    if lanes:
        dead, other = socket.socketpair()
        other.close()
        dead.setblocking(False)
        for lane in lanes:
            lane.part(dead)
        dead.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part)
