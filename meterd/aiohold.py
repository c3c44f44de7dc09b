"""`AsyncHold`, what `AsyncMeter.reserve` returns: the same as `Hold`, awaited.

What ends a hold is carried through although its task is cancelled meanwhile; the call's own
deadline bounds it, and the cancellation goes on afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar

from meterd.flow import Flow
from meterd.holdbase import Actual, HoldBase
from meterd.holds import Reserved
from meterd.keys import Subject
from meterd.pending import Pending
from meterd.result import Decision
from meterd.timespec import Seconds

if TYPE_CHECKING:
    from meterd.aio import AsyncMeter

T = TypeVar("T")
_TRIES = 3  # whoever cancels all tasks cancels ours as well


class AsyncHold(HoldBase):
    """What was reserved: the same names, arguments and meanings as `Hold`.

    Leaving by cancellation is leaving by an exception: what `spend` counted is committed, else all
    is released; only then the cancellation goes on.
    """

    def __init__(self, meter: AsyncMeter, subject: Subject, hold_id: str) -> None:
        super().__init__(meter, subject, hold_id)
        self._meter = meter
        self._renewal: asyncio.Task[None] | None = None

    def commit(self, actual: Actual = None) -> PendingEnd[Decision]:
        """See `Hold.commit`."""
        return PendingEnd("commit", self._commit(actual))

    async def _commit(self, actual: Actual) -> Decision:
        settled = self._committing(actual)
        self._rest()
        if self._degraded:
            return self.decision
        return await self._carried_through(
            "commit", lambda: self._holds.commit(self._path, self.id, settled, self._held)
        )

    def release(self) -> PendingEnd[None]:
        """See `Hold.release`."""
        return PendingEnd("release", self._release())

    async def _release(self) -> None:
        needed = self._releasing()
        self._rest()
        if needed:
            await self._carried_through("release", lambda: self._holds.release(self._path, self.id))

    async def _carried_through(self, verb: str, flow: Callable[[], Flow[T]]) -> T:
        return await carried_through(lambda: self._meter._call(verb, self.subject, flow()))

    def renew(self, ttl: Seconds) -> PendingEnd[None]:
        """See `Hold.renew`."""
        return PendingEnd("renew", self._renew(ttl))

    async def _renew(self, ttl: Seconds) -> None:
        flow = self._renewing(ttl)
        if flow is not None:
            await self._meter._call("renew", self.subject, flow)
            if self._renewal is not None:
                self._keep_alive()

    async def __aenter__(self) -> Self:
        self._refuse_refused()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        way = self._leaving(failed=error is not None)
        if way is None:
            return
        try:
            if way == "commit":
                await self.commit()
            else:
                await self.release()
        except Exception as failure:
            if error is None:
                raise
            self._say_failed(error, way, failure)

    # Keeping it alive: the task knows it only weakly, so one that is forgotten runs out

    def _keep_alive(self) -> None:
        self._rest()
        self._renewal = asyncio.get_running_loop().create_task(_renewals(weakref.ref(self)))

    def _rest(self) -> None:
        if self._renewal is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._renewal.cancel()

    async def _renew_again(self) -> float | None:
        """Seconds until the next time; None: there is none."""
        problem: Exception | None = None
        try:
            flow = self._holds.renew(self._path, self.id, self._ttl_ms)
            await self._meter._call("renew", self.subject, flow)
        except Exception as error:  # noqa: BLE001  # nobody is there to catch it
            problem = error
        return self._pause(problem)


async def _renewals(known: weakref.ref[AsyncHold]) -> None:
    hold = known()
    pause = None if hold is None else hold._pause()
    while pause is not None:
        del hold
        await asyncio.sleep(pause)
        hold = known()
        pause = None if hold is None or hold._ended else await hold._renew_again()


class PendingEnd(Pending[T]):
    """A call of a hold that has to be awaited."""

    __slots__ = ()
    _owner = "hold"


class PendingHold(Pending[AsyncHold]):
    """`await` it for the hold, or enter it: `async with meter.reserve(...) as hold`."""

    __slots__ = ("_hold",)

    def __init__(
        self,
        meter: AsyncMeter,
        subject: Subject,
        flow: Flow[Reserved],
        ttl: Seconds,
        *,
        keepalive: bool,
    ) -> None:
        super().__init__("reserve", _reserve(meter, subject, flow, ttl, keepalive))
        self._hold: AsyncHold | None = None

    async def __aenter__(self) -> AsyncHold:
        self._hold = await self
        return await self._hold.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        assert self._hold is not None
        await self._hold.__aexit__(*error)


async def _reserve(
    meter: AsyncMeter, subject: Subject, flow: Flow[Reserved], ttl: Seconds, keepalive: bool
) -> AsyncHold:
    reserved = await meter._call("reserve", subject, flow)
    hold = AsyncHold(meter, subject, reserved.hold_id)
    hold._began(reserved, ttl)
    if keepalive and hold._lasting:
        hold._keep_alive()
    return hold


async def carried_through(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of a call that is harmless to repeat, however often this task is cancelled.

    A cancellation is raised when the call is done.
    """
    cancelled: asyncio.CancelledError | None = None
    for left in reversed(range(_TRIES)):
        task = asyncio.get_running_loop().create_task(call())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
        if not (task.cancelled() and left):
            break
    if cancelled is not None:
        if not task.cancelled() and (problem := task.exception()) is not None:
            cancelled.add_note(f"meterd: {type(problem).__name__}: {problem}")
        raise cancelled
    return task.result()
