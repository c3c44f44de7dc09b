"""`AsyncMeter`: the same verbs, awaited. Belongs to the event loop that used it first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from meterd.administration import Instant
from meterd.aiohold import AsyncHold, PendingHold
from meterd.aiolease import AsyncLease, PendingLease
from meterd.base import Costs, MeterBase, outcome_of
from meterd.catalog import Diff
from meterd.errors import PolicyError
from meterd.flow import Flow, Nodes, Send, SendTo, Sleep
from meterd.keys import Subject, display
from meterd.limiter import AsyncLimiter
from meterd.pending import Pending
from meterd.policy import Bucket, Limit, Plan
from meterd.result import Decision, Usage
from meterd.timespec import Seconds
from meterd.transport import AsyncTransport, MaybeSent, NotSent, open_async_transport

T = TypeVar("T")


class AsyncMeter(MeterBase):
    """The asynchronous client: the same names, arguments and meanings as `Meter`.

    Its verbs return awaitables that raise `TypeError` when they are tested, unpacked or looked into
    without `await`. Cancelling a call never disturbs another one.
    """

    _transport: AsyncTransport

    def _connect(self, url: str, timeout: float, max_connections: int, client: Any) -> None:
        self._transport = open_async_transport(
            url, timeout=timeout, max_connections=max_connections, client=client
        )

    @classmethod
    def embedded(cls, plans: Sequence[Plan] | None = None, **settings: Any) -> Self:
        """A meter on a private server, gone when closed. Takes what `AsyncMeter` takes."""
        from meterd.embedded import EmbeddedServer

        server = EmbeddedServer.start()
        try:
            meter = cls(server.url, plans=plans, **settings)
        except BaseException:
            server.close()
            raise
        meter._server = server
        return meter

    @property
    def url(self) -> str:
        return self._transport.url

    # Carrying out --------------------------------------------------------------------------------

    async def _run(self, flow: Flow[T]) -> T:
        if self._closed:
            flow.close()
            raise PolicyError("this meter is closed; make a new one")
        transport = self._transport
        try:
            step = next(flow)
            while True:
                try:
                    if type(step) is Send:
                        result: Any = await transport.send(step.request, step.timeout)
                    elif type(step) is Sleep:
                        await asyncio.sleep(step.seconds)
                        result = None
                    elif type(step) is SendTo:
                        result = await transport.send_to(step.node, step.request, step.timeout)
                    else:
                        assert type(step) is Nodes
                        result = await transport.nodes()
                except (NotSent, MaybeSent) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            done: T = stop.value
            return done

    async def _observed(self, verb: str, subject: Subject, flow: Flow[T]) -> T:
        started = time.perf_counter()
        try:
            result = await self._run(flow)
        except BaseException as error:
            self._observe(verb, subject, outcome_of(error), started)
            raise
        self._observe(verb, subject, outcome_of(result), started)
        return result

    def _call(self, verb: str, subject: Subject, flow: Flow[T]) -> Pending[T]:
        if self._observer is None:
            return Pending(verb, self._run(flow))
        return Pending(verb, self._observed(verb, subject, flow))

    async def open(self) -> Self:
        """Connects, and sees to it that the store knows these plans."""
        if not self._closed:
            await self._transport.open()
        await self._run(self._store.open())
        return self

    async def close(self) -> None:
        """Closes every connection and, if there is one, the embedded server."""
        if not self._closed:
            self._closed = True
            await self._transport.aclose()
            if self._server is not None:
                await asyncio.to_thread(self._server.close)

    aclose = close

    def abandon(self) -> None:
        """Lets every connection go without I/O: for code that runs after the event loop.

        While the loop runs, `await meter.close()` is the way.
        """
        if not self._closed:
            self._closed = True
            self._transport.abandon()
            if self._server is not None:
                self._server.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Verbs ---------------------------------------------------------------------------------------

    def check(
        self, subject: Subject, costs: Costs, amount: int = 1, *, join: str | None = None
    ) -> Pending[Decision]:
        """See `Meter.check`."""
        flow = self._operations.charge("check", subject, costs, amount, None, join, 0)
        return self._call("check", subject, flow)

    def consume(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | bool | None = None,
        join: str | None = None,
        wait: Seconds = 0,
    ) -> Pending[Decision]:
        """See `Meter.consume`."""
        flow = self._operations.charge("consume", subject, costs, amount, op, join, wait)
        return self._call("consume", subject, flow)

    def report(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | bool | None = None,
        join: str | None = None,
    ) -> Pending[Decision]:
        """See `Meter.report`."""
        flow = self._operations.charge("report", subject, costs, amount, op, join, 0)
        return self._call("report", subject, flow)

    def refund(
        self,
        subject: Subject,
        costs: Costs | None = None,
        amount: int = 1,
        *,
        of: str | None = None,
        op: str | bool | None = None,
    ) -> Pending[Decision]:
        """See `Meter.refund`."""
        flow = self._operations.refund(subject, costs, amount, of, op)
        return self._call("refund", subject, flow)

    def reserve(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        ttl: Seconds = 60,
        op: str | bool | None = None,
        join: str | None = None,
        wait: Seconds = 0,
        keepalive: bool = False,
    ) -> PendingHold:
        """See `Meter.reserve`; `async with meter.reserve(...) as hold` awaits by itself."""
        flow = self._holds.reserve(subject, costs, amount, ttl, op, join, wait)
        return PendingHold(self, subject, flow, ttl, keepalive=keepalive)

    def hold(self, subject: Subject, hold_id: str) -> AsyncHold:
        """See `Meter.hold`."""
        return AsyncHold(self, subject, hold_id)

    def usage(self, subject: Subject, *, join: str | None = None) -> Pending[Usage]:
        """See `Meter.usage`."""
        return self._call("usage", subject, self._administration.usage(subject, join))

    def lease(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1000,
        *,
        ttl: Seconds = 5,
        least: int = 1,
        most: int | None = None,
        join: str | None = None,
    ) -> PendingLease:
        """See `Meter.lease`; `async with meter.lease(...) as lease` awaits by itself."""
        return PendingLease(AsyncLease(self, subject, costs, amount, ttl, least, most, join))

    async def apply(
        self,
        plans: Sequence[Plan] | None = None,
        *,
        dry_run: bool = False,
        remove: Sequence[str] = (),
    ) -> Diff:
        """See `Meter.apply`."""
        return await self._run(self._store.apply(plans, dry_run=dry_run, remove=remove))

    async def plans(self, *, retired: bool = False) -> dict[str, Plan]:
        """See `Meter.plans`."""
        return await self._run(self._store.listed(retired=retired))

    async def subscribe(
        self,
        subject: Subject,
        plan: str | None = None,
        *,
        limits: Sequence[Limit] = (),
        change: str = "keep",
        when: str | Instant = "now",
        anchor: Instant | None = None,
        op: str | bool | None = None,
    ) -> None:
        """See `Meter.subscribe`."""
        flow = self._administration.subscribe(subject, plan, limits, change, when, anchor, op)
        await self._call("subscribe", subject, flow)

    async def unsubscribe(
        self, subject: Subject, plan: str, *, when: str | Instant = "now"
    ) -> None:
        """See `Meter.unsubscribe`."""
        flow = self._administration.unsubscribe(subject, plan, when)
        await self._call("unsubscribe", subject, flow)

    async def override(
        self,
        subject: Subject,
        name: str,
        /,
        *,
        expires: Instant | None = None,
        clear: bool = False,
        **fields: int | None,
    ) -> None:
        """See `Meter.override`."""
        flow = self._administration.override(subject, name, expires, clear, fields)
        await self._call("override", subject, flow)

    async def adjust(self, subject: Subject, name: str, *, used: int) -> None:
        """See `Meter.adjust`."""
        await self._call("adjust", subject, self._administration.adjust(subject, name, used))

    async def set_meta(self, subject: Subject, mapping: Mapping[str, Any]) -> None:
        """See `Meter.set_meta`."""
        await self._call("set_meta", subject, self._administration.set_meta(subject, mapping))

    async def meta(self, subject: Subject) -> dict[str, Any]:
        """See `Meter.meta`."""
        return await self._call("meta", subject, self._administration.meta(subject))

    async def forget(self, subject: Subject) -> int:
        """See `Meter.forget`."""
        return await self._call("forget", subject, self._administration.forget(subject))

    async def subjects(self, root: str | None = None) -> AsyncIterator[Subject]:
        """See `Meter.subjects`."""
        pattern = self._keys.subjects_pattern(root)
        await self._run(self._store.prepare())
        seen: set[bytes] = set()
        for node in await self._run(self._session.nodes()):
            cursor, more = 0, True
            while more:
                cursor, found = await self._run(self._administration.page(node, cursor, pattern))
                more = cursor != 0
                for key in found:
                    if key not in seen:
                        seen.add(key)
                        segments = self._keys.parse_subject(key)
                        if root is None or segments[0] == root:
                            yield display(segments)

    def limiter(self, name: str, *limits: Bucket) -> AsyncLimiter:
        """See `Meter.limiter`."""
        return AsyncLimiter(self, self._limiter(name, limits))


__all__ = ["AsyncMeter", "Pending"]
