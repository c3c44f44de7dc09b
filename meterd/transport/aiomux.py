"""The calls of one event loop to one node, carried in order over one connection.

The requests of one turn of the loop are written together, in pieces of `_PIECE` so that the server
begins while the loop goes on. At most `connections * depth` calls are with the server at once,
whatever the number of those who wait here; who is not written when the time is over ends as
`NotSent`, and who gives up before that is never written.

Those who have to write when somebody gave up on a reply, and nothing at all has come for a while
(`_MUTE`), take a new connection. The old one is set aside: those who still wait for it may do so
until their own deadlines, and it is closed when there is nobody left. So a stalled connection holds
up nobody else, and a server that is just slow costs nobody an answer. That happens only as long as
fewer than `connections` are open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Any

from meterd.transport.aiopool import AsyncLink, Greeting, inherited
from meterd.transport.base import Node, NotSent
from meterd.transport.dial import Dialer, connect_failure
from meterd.transport.lane import Call, Lane, Other, fail

DEPTH = 8  # enough for a server to be busy: with 50 connections, 400 calls
# Wrongly suspected, a server costs a connection more and no call anything. Each that follows is
# given twice as long, for it may be the server that is slow; whatever it says puts an end to that.
_MUTE, _MUTE_MAX = 0.02, 0.64
_LOOK_AGAIN = 0.05  # how often to look after calls, or connections, that make no progress
_TICK = 0.001  # between two looks at all deadlines, and as much again for a hundred who wait
_TURNS = 3  # of the loop, which a connection at rest is given to tell that it was closed
_PIECE = 24  # calls; without it the server and the loop would work by turns, each idle meanwhile
_PIECE_BYTES = 256 * 1024
_NEVER = float("inf")


class AsyncMux:
    """The calls to `node`. `patience`: seconds for an attempt to connect."""

    def __init__(
        self,
        dialer: Dialer,
        node: Node,
        connections: int,
        depth: int,
        patience: float,
        greeting: Greeting | None = None,
    ) -> None:
        self.node = node
        self._where = str(node)
        self._dialer = dialer
        self._connections = connections
        self._size = connections * depth
        self._patience = patience
        self._greeting = greeting
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._queue: deque[Call] = deque()  # not written yet
        self._lane: Lane | None = None
        self._aside: set[Lane] = set()
        self._opening: asyncio.Task[None] | None = None
        self._scheduled = False
        self._turns = 0
        self._mute = _MUTE
        self._timer: asyncio.TimerHandle | None = None
        self._due = _NEVER
        self._closing = False

    def call(
        self, packed: bytes, replies: int, deadline: float, other: Other | None = None
    ) -> asyncio.Future[Any]:
        """The reply, some time, or `NotSent`, or `MaybeSent`.

        `other`, if given, is told every end but a string, and has to see to the future then.
        """
        if packed.__class__ is not bytes:
            raise TypeError(f"a request is packed as bytes, not as {type(packed).__name__}")
        future = self._new_future()
        queue = self._queue
        queue.append((future, packed, replies, deadline, other))
        if deadline < self._due:
            self._watch(deadline)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)
        elif len(queue) == _PIECE:
            self._flush()
        return future

    def end(self) -> None:
        """Close what is idle; what has begun goes on to its end."""
        self._closing = True
        if asyncio.get_running_loop() is self._loop:
            self._flush()
            if self._opening is not None and not self._waited_for():
                self._opening.cancel()
            for lane in list(self._aside):
                lane.retire()
        elif self._loop.is_running():  # in another thread
            self._loop.call_soon_threadsafe(self.drop)
        elif not self._loop.is_closed():
            self.drop()

    async def close(self) -> None:
        """The same, and wait until what is idle is closed."""
        if not self._closing:
            self.end()
        if asyncio.get_running_loop() is not self._loop:
            return
        if self._opening is not None and not self._waited_for():
            await asyncio.wait([self._opening])
        for lane in list(self._aside):
            if not lane.awaited():
                await asyncio.wait([lane.closed])  # it would be cancelled along with this

    def drop(self) -> None:
        """Close everything without I/O; the loop must not be running."""
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        self._refuse_all(NotSent("the connection was let go"))
        for lane in self._lanes():
            lane.drop()

    def abandon(self) -> None:
        """After a fork: keep the parent's connections from being collected, and touch nothing."""
        inherited.append(self)

    # Writing -------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        """Write what waits, as far as it may; see to a connection if there is none."""
        lane = self._lane
        waiting = self._waited_for()
        if lane is not None and (
            not lane.usable or lane.forsaken() or (waiting and self._stalled(lane))
        ):
            self._set_aside(lane)
            lane = None
        if waiting:
            if lane is None:
                if self._opening is None:
                    self._opening = self._loop.create_task(self._open())
            elif not lane.owed and self._turns < _TURNS and not lane.at_rest():
                self._turns += 1
                self._schedule()
            elif not lane.full:
                self._turns = 0
                self._write(lane)
        elif self._closing and lane is not None:
            self._set_aside(lane)
        if self._queue or self._aside:
            self._watch(monotonic() + _LOOK_AGAIN)

    def _write(self, lane: Lane) -> None:
        queue = self._queue
        room = self._size - len(lane.owed) - sum([len(other.owed) for other in self._aside])
        size, now = 0, monotonic()
        calls: list[Call]
        if len(queue) <= min(room, _PIECE) and now < self._due:
            calls = [call for call in queue if not call[0].done()]
            queue.clear()
        else:
            calls = []
            while queue and room > 0 and size < _PIECE_BYTES:
                call = queue.popleft()
                if call[0].done():
                    continue
                if call[3] <= now:
                    _refuse([call], NotSent(f"no time left to call {self._where}"))
                    continue
                calls.append(call)
                size += len(call[1])
                room -= 1
        if not calls:
            return
        try:
            written = lane.write(calls)
        except BaseException:
            _refuse(calls, NotSent(f"could not write to {self._where}"))
            self._schedule()
            raise
        if written:
            if not self._closing and (size < _PIECE_BYTES or lane.full):
                return
        elif lane.used:
            queue.extendleft(reversed(calls))
        else:
            # A new connection already: to go on would be to go round in circles.
            _refuse(calls, NotSent(f"{self._where} closed the connection"))
        self._schedule()

    def _stalled(self, lane: Lane) -> bool:
        """Whether to write to another connection instead, and there may be one."""
        if not lane.mute(self._mute):
            return False
        if len(self._aside) + 1 >= self._connections and lane.awaited():
            return False
        self._mute = min(2 * self._mute, _MUTE_MAX)
        return True

    def _waited_for(self) -> bool:
        """Whether there is anything to write; who gave up is forgotten."""
        queue = self._queue
        while queue and queue[0][0].done():
            queue.popleft()
        return bool(queue)

    def answered(self) -> None:
        """Who waited for room goes before those whom the replies will wake."""
        self._mute = _MUTE
        if self._queue:
            self._flush()

    def changed(self, lane: Lane) -> None:
        if lane.closed.done():
            self._aside.discard(lane)
            if lane is self._lane:
                self._lane = None
        if self._queue:
            self._schedule()

    def _set_aside(self, lane: Lane) -> None:
        self._lane = None
        self._aside.add(lane)  # first, lest those who wait for it be lost sight of
        lane.retire()
        if lane.closed.done():
            self._aside.discard(lane)

    def _lanes(self) -> list[Lane]:
        return [*self._aside, *([] if self._lane is None else [self._lane])]

    # Connecting ----------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Open a connection for those who wait. Ended by its own clock, it begins again."""
        connection = None
        try:
            async with asyncio.timeout(self._patience):
                connection = self._dialer.connection(self.node, None)
                await connection.connect()
                link = AsyncLink(connection)
                if self._greeting is not None:
                    await self._greeting(link, self._where)
                streams = await link.take_over()
            self._lane = Lane(streams, self._where, self)
            self._turns = _TURNS  # nothing can have happened to it yet
        except TimeoutError:
            pass
        except BaseException as error:
            if not isinstance(error, Exception):
                self._refuse_all(NotSent(f"connecting to {self._where} was interrupted"))
                raise
            failure = connect_failure(error, self._where)
            if failure is not error:
                failure.__cause__ = error
            self._refuse_all(failure)
        finally:
            self._opening = None
            if self._lane is None and connection is not None:
                await AsyncLink(connection).close()
        self._flush()

    def _refuse_all(self, error: NotSent) -> None:
        calls = list(self._queue)
        self._queue.clear()
        _refuse(calls, error)

    # Deadlines -----------------------------------------------------------------------------------

    def _watch(self, deadline: float) -> None:
        if deadline >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = deadline
        least = _TICK * (1 + len(self._queue) / 100)
        self._timer = self._loop.call_later(max(deadline - monotonic(), least), self._look)

    def _look(self) -> None:
        """End every call whose time is over. One timer serves all: it is set for the earliest."""
        self._timer, self._due = None, _NEVER
        now = monotonic()
        again = now + _LOOK_AGAIN  # should anything fail, it is not the calls that hang
        try:
            times = [lane.expire(now) for lane in self._lanes()]
            for lane in list(self._aside):
                lane.retire()
            late = [call for call in self._queue if call[3] <= now]
            if late:
                _refuse(late, NotSent(self._hindrance()))
            self._queue = deque(call for call in self._queue if not call[0].done())
            again = min([_NEVER, *times, *(call[3] for call in self._queue)])
        finally:
            if again < _NEVER:
                self._watch(again)
        self._flush()

    def _hindrance(self) -> str:
        """Why calls were not written in time."""
        if self._lane is None:
            return f"cannot connect to {self._where} in time"
        if self._lane.full:
            return f"{self._where} takes no more data"
        return (
            f"{self._size} calls to {self._where} wait for their replies already; "
            "raise max_connections, or call less at once"
        )


def _refuse(calls: list[Call], error: NotSent) -> None:
    for call in calls:
        own = type(error)(*error.args)
        own.__cause__ = error.__cause__
        fail(call, own)
