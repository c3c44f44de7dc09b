"""How `AsyncMeter` calls: the twin of `caller`, where tasks wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Self, TypeVar

from meterd.base import Costs, MeterBase, outcome_of
from meterd.batch import Rounds
from meterd.flow import Flow, Nodes, Send, SendTo, Sleep, closed, without_io
from meterd.keys import Subject
from meterd.pending import Pending
from meterd.refusals import FREEING, REMEMBERED, Refusals, root_of
from meterd.result import Decision
from meterd.rounds import drive_async
from meterd.shapes import Shapes
from meterd.transport import AsyncTransport, MaybeSent, NotSent, open_async_transport

T = TypeVar("T")


class AsyncCaller(MeterBase):
    """Opens, calls and closes; the verbs, which say what to call, are in `aio`."""

    _transport: AsyncTransport

    def _connect(self, url: str, timeout: float, max_connections: int, client: Any) -> None:
        self._transport = open_async_transport(
            url, timeout=timeout, max_connections=max_connections, client=client
        )

    @property
    def url(self) -> str:
        return self._transport.url

    async def _run(self, flow: Flow[T]) -> T:
        if self._closed:
            flow.close()
            raise closed()
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
            flow = self._operations.resume(shape, reply, deadline)
            decision = without_io(flow) if self._closed else await self._run(flow)
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
            raise closed()
        return await drive_async(self._transport, rounds)
