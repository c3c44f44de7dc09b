"""`AsyncMeter`: the same verbs, awaited. Belongs to the event loop that used it first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from meterd.administration import Instant
from meterd.aiohold import AsyncHold, PendingHold
from meterd.aiolease import AsyncLease, PendingLease
from meterd.base import Costs, MeterBase, outcome_of
from meterd.batch import Item, Rounds, all_or_error, calls_of
from meterd.catalog import Diff
from meterd.errors import MeterdError, PolicyError
from meterd.flow import Flow, Nodes, Send, SendTo, Sleep
from meterd.keys import Subject, display
from meterd.limiter import AsyncLimiter
from meterd.pending import Pending
from meterd.policy import Bucket, Limit, Plan
from meterd.refusals import FREEING, REMEMBERED, Refusals, root_of
from meterd.result import Decision, Usage
from meterd.rounds import drive_async
from meterd.shapes import Shapes
from meterd.timespec import Seconds
from meterd.transport import AsyncTransport, MaybeSent, NotSent, open_async_transport

if TYPE_CHECKING:
    from meterd.pipeline import AsyncPipeline

T = TypeVar("T")


class AsyncMeter(MeterBase):
    """The asynchronous client: the same names, arguments and meanings as `Meter`.

    Its verbs return awaitables that raise `TypeError` when they are tested, unpacked or looked into
    without `await`. Cancelling a call never disturbs another one. All calls to a server share one
    connection; eight times `max_connections` are under way at once, the others wait in turn.
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

    async def _observed(self, verb: str, subject: Subject, work: Coroutine[Any, Any, T]) -> T:
        started = time.perf_counter()
        try:
            result = await work
        except BaseException as error:
            self._observe(verb, subject, outcome_of(error), started)
            raise
        self._observe(verb, subject, outcome_of(result), started)
        return result

    def _call(self, verb: str, subject: Subject, flow: Flow[T], scope: object = None) -> Pending[T]:
        work = self._run(flow)
        if self._observer is not None:
            work = self._observed(verb, subject, work)
        if self._refusals is not None and verb in FREEING:
            work = self._freeing(self._refusals, root_of(scope, subject), work)
        return Pending(verb, work)

    async def _freeing(self, refusals: Refusals, root: object, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        finally:
            refusals.drop(root)

    def _charge(
        self,
        shapes: Shapes,
        verb: str,
        subject: Subject,
        costs: Costs,
        amount: int,
        op: str | bool | None,
        join: str | None,
        wait: Any,
        at_server: bool = False,
    ) -> Pending[Decision]:
        """One charge: by its shape if that is known when it is awaited, else by its flow."""
        if self._refusals is not None and not at_server:
            work = self._remembering(
                self._refusals, shapes, verb, subject, costs, amount, op, join, wait
            )
            return Pending(verb, work)
        if op is not None or wait.__class__ is not int or wait != 0:
            flow = shapes.flow(verb, subject, costs, amount, op, join, wait)
            return self._call(verb, subject, flow)
        work = self._ask(shapes, verb, subject, costs, amount, join)
        if self._observer is not None:
            work = self._observed(verb, subject, work)
        return Pending(verb, work)

    async def _remembering(
        self,
        refusals: Refusals,
        shapes: Shapes,
        verb: str,
        subject: Subject,
        costs: Costs,
        amount: int,
        op: str | bool | None,
        join: str | None,
        wait: Any,
    ) -> Decision:
        """One charge, unless its refusal is known."""
        asked = None
        if op is None and wait.__class__ is int and wait == 0 and verb in REMEMBERED:
            found = None
            if not self._closed:
                found = refusals.look(shapes.scope, subject, costs, amount, join)
            if isinstance(found, Decision):
                self._observe(verb, subject, outcome_of(found), time.perf_counter())
                return found
            asked = found
        try:
            decision = await self._charge(
                shapes, verb, subject, costs, amount, op, join, wait, True
            )
        except BaseException as error:
            refusals.after(shapes.scope, verb, subject, join, error)
            raise
        refusals.after(shapes.scope, verb, subject, join, decision, asked)
        return decision

    async def _ask(
        self,
        shapes: Shapes,
        verb: str,
        subject: Subject,
        costs: Costs,
        amount: int,
        join: str | None,
    ) -> Decision:
        now = monotonic()
        shape = None if self._closed else shapes.find(verb, subject, costs, amount, join, now)
        if shape is None:
            return await self._run(shapes.flow(verb, subject, costs, amount, None, join, 0))
        request = shape.request
        if self._manual:
            request = shape.at(self._operations.now_argument())
        try:
            reply = await self._transport.start(request, shape.seconds)
        except (NotSent, MaybeSent) as error:
            reply = error
        decision = shape.answer(reply)
        if decision is None:
            shapes.forget(shape)
            deadline = now + self._timeout
            decision = await self._run(self._operations.resume(shape, reply, deadline))
        return decision

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

    async def _drive(self, rounds: Rounds[T]) -> T:
        if self._closed:
            raise PolicyError("this meter is closed; make a new one")
        return await drive_async(self._transport, rounds)

    # Verbs ---------------------------------------------------------------------------------------

    def check(
        self, subject: Subject, costs: Costs, amount: int = 1, *, join: str | None = None
    ) -> Pending[Decision]:
        """See `Meter.check`."""
        return self._charge(self._shapes, "check", subject, costs, amount, None, join, 0)

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
        return self._charge(self._shapes, "consume", subject, costs, amount, op, join, wait)

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
        return self._charge(self._shapes, "report", subject, costs, amount, op, join, 0)

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
        if costs is not None and of is None:
            return self._charge(self._shapes, "refund", subject, costs, amount, op, None, 0)
        flow = self._operations.refund(subject, costs, amount, of, op)
        return self._call("refund", subject, flow)

    @overload
    def consume_many(
        self, items: Iterable[Item], *, return_exceptions: Literal[False] = False
    ) -> Pending[list[Decision]]: ...

    @overload
    def consume_many(
        self, items: Iterable[Item], *, return_exceptions: bool
    ) -> Pending[list[Decision | MeterdError]]: ...

    def consume_many(
        self, items: Iterable[Item], *, return_exceptions: bool = False
    ) -> Pending[Any]:
        """See `Meter.consume_many`."""

        async def work() -> list[Any]:
            calls = calls_of(items)
            outcomes = await self._drive(self._batch(calls).rounds())
            return list(outcomes) if return_exceptions else all_or_error(calls, outcomes)

        return Pending("consume_many", work())

    def pipeline(self, *, raise_on_error: bool = True) -> AsyncPipeline:
        """See `Meter.pipeline`; `async with`, and `await p.execute()`."""
        from meterd.pipeline import AsyncPipeline

        return AsyncPipeline(self, raise_on_error)

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
        diff = await self._run(self._store.apply(plans, dry_run=dry_run, remove=remove))
        if self._refusals is not None:
            self._refusals.clear()
        return diff

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
