"""`AsyncLease`: sells from memory, in this process. What is decided is in `meterd.leasing`.

What asks the server is a task of its own that every sale waits for who needs it. A sale that is
cancelled stops waiting; the task goes on, and what it brings is there for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar

from meterd.errors import MeterdError, Unavailable
from meterd.flow import Flow
from meterd.leasing import LeaseBase
from meterd.pending import Pending
from meterd.result import Decision

if TYPE_CHECKING:
    from meterd.aio import AsyncMeter

T = TypeVar("T")


class PendingSale(Pending[Decision]):
    """A sale that has to be awaited."""

    __slots__ = ()
    _owner = "lease"


class AsyncLease(LeaseBase):
    """What `AsyncMeter.lease` returns: the same as `Lease`, awaited, for one event loop."""

    __slots__ = ("_meter", "_timer", "_work")

    def __init__(self, meter: AsyncMeter, *terms: Any) -> None:
        super().__init__(meter._operations, meter._holds, *terms)
        self._meter = meter

    def _begin(self) -> None:
        super()._begin()
        self._work: asyncio.Task[Any] | None = None  # what asks the server for this lease
        self._timer: asyncio.TimerHandle | None = None

    def consume(self, n: int = 1) -> Pending[Decision]:
        """See `Lease.consume`."""
        return PendingSale("consume", self._buy(n))

    async def _buy(self, n: int) -> Decision:
        # Sales and what flows change all happen in the thread of the loop: no lock.
        if type(n) is int and 0 < n <= self._ready and self._now() < self._end:
            self._ready -= n
            return self._granted
        rounds = 0
        answer = self._answer(n)
        while answer is None:
            if self._work is not None:
                await self._others(self._work)
            elif await self._carry_out(self._take(n, rounds)):
                rounds += 1
            else:
                return await self._call_for(n)
            answer = self._answer(n)
        return answer

    async def _call_for(self, n: int) -> Decision:
        """An ordinary consume; what this lease holds itself does not count against it."""
        decision = await self._meter._call("consume", self.subject, self._ordinary(n))
        if not decision.allowed and self.remaining:
            await self._idle()
            await self._carry_out(self._return())
            decision = await self._meter._call("consume", self.subject, self._ordinary(n))
        return decision

    async def _carry_out(self, flow: Flow[T]) -> T:
        """Nothing may be awaited between seeing that nobody is at work and this."""
        call = self._meter._call("lease", self.subject, flow)
        work = self._work = asyncio.get_running_loop().create_task(call)
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Task[Any]) -> None:
        self._work = None
        if not work.cancelled():
            work.exception()  # whoever waits has it; if nobody does, nobody misses it
        if self._timer is None and self._chunk is not None and self._clock_ms is None:
            self._look_in(self._patience)

    async def _others(self, work: asyncio.Task[Any]) -> None:
        """Waits for what somebody else has begun; shares its failure if the server is away."""
        await asyncio.wait([work])
        error = None if work.cancelled() else work.exception()
        if isinstance(error, Unavailable):
            raise Unavailable(str(error)) from error

    async def _idle(self) -> None:
        while self._work is not None:
            await asyncio.wait([self._work])

    def _look_in(self, seconds: float) -> None:
        lease = weakref.ref(self)  # one that was dropped is not kept alive, nor looked after

        def look() -> None:
            found = lease()
            if found is not None:
                found._look()

        self._timer = asyncio.get_running_loop().call_later(seconds, look)

    def _look(self) -> None:
        self._timer = None
        if self._meter._closed or self._closed:
            return
        if self._work is not None:
            return  # sets the timer when it is done
        call = self._meter._call("lease", self.subject, self._tend())
        work = self._work = asyncio.get_running_loop().create_task(call)
        work.add_done_callback(self._looked)

    def _looked(self, work: asyncio.Task[float | None]) -> None:
        if not work.cancelled() and work.exception() is None:
            again = work.result()
            if again is not None:
                self._look_in(again)
        self._done(work)

    async def close(self) -> None:
        """See `Lease.close`."""
        self._closed = True  # from here on nothing is sold
        await self._idle()
        if self._timer is not None:
            self._timer.cancel()
        await self._carry_out(self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        try:
            await self.close()
        except MeterdError as error:
            if failure is None:
                raise
            failure.add_note(f"meterd: closing {self!r} failed too: {error}")


class PendingLease(Pending[AsyncLease]):
    """`await` it for the lease, or enter it: `async with meter.lease(...) as lease`."""

    __slots__ = ("_lease",)

    def __init__(self, lease: AsyncLease) -> None:
        super().__init__("lease", _opened(lease))
        self._lease = lease

    async def __aenter__(self) -> AsyncLease:
        return await self

    async def __aexit__(self, *error: Any) -> None:
        await self._lease.__aexit__(*error)


_closing: set[asyncio.Task[None]] = set()  # of leases that nobody has


async def _opened(lease: AsyncLease) -> AsyncLease:
    try:
        await lease._carry_out(lease._open())
    except asyncio.CancelledError:
        task = asyncio.get_running_loop().create_task(_discarded(lease))
        _closing.add(task)
        task.add_done_callback(_closing.discard)
        raise
    return lease


async def _discarded(lease: AsyncLease) -> None:
    with contextlib.suppress(MeterdError):
        await lease.close()
