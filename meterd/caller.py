"""How `Meter` calls: threads wait here while the steps of a flow are carried out; flows decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Self, TypeVar

from meterd.base import Costs, MeterBase, outcome_of
from meterd.batch import Rounds
from meterd.flow import Flow, Nodes, Send, SendTo, Sleep, closed, without_io
from meterd.keeper import Keeper
from meterd.keys import Subject
from meterd.refusals import FREEING, REMEMBERED, Refusals, root_of
from meterd.result import Decision
from meterd.rounds import drive
from meterd.shapes import Shape, Shapes
from meterd.transport import MaybeSent, NotSent, SyncTransport, open_transport

T = TypeVar("T")


class Caller(MeterBase):
    """Opens, calls and closes; the verbs, which say what to call, are in `client`."""

    _transport: SyncTransport

    def _connect(self, url: str, timeout: float, max_connections: int, client: Any) -> None:
        self._transport = open_transport(
            url, timeout=timeout, max_connections=max_connections, client=client
        )
        # Every call has a connection to itself; what stands in for a server may not know waits.
        self._waits = client is None and self._transport.kind != "cluster"
        self._keeper = Keeper()  # a thread, once there is something to do later

    @property
    def url(self) -> str:
        return self._transport.url

    def _run(self, flow: Flow[T]) -> T:
        if self._closed:
            flow.close()
            raise closed()
        transport = self._transport
        try:
            step = next(flow)
            while True:
                try:
                    if type(step) is Send:
                        result: Any = transport.send(step.request, step.timeout)
                    elif type(step) is Sleep:
                        time.sleep(step.seconds)
                        result = None
                    elif type(step) is SendTo:
                        result = transport.send_to(step.node, step.request, step.timeout)
                    else:
                        assert type(step) is Nodes
                        result = transport.nodes()
                except (NotSent, MaybeSent) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            done: T = stop.value
            return done

    def _call(self, verb: str, subject: Subject, flow: Flow[T], scope: object = None) -> T:
        if self._refusals is not None and verb in FREEING:
            try:
                return self._watched(verb, subject, partial(self._run, flow))
            finally:
                self._refusals.drop(root_of(scope, subject))
        return self._watched(verb, subject, partial(self._run, flow))

    def _watched(self, verb: str, subject: Subject, work: Callable[[], T]) -> T:
        if self._observer is None:
            return work()
        started = time.perf_counter()
        try:
            result = work()
        except BaseException as error:
            self._observe(verb, subject, outcome_of(error), started)
            raise
        self._observe(verb, subject, outcome_of(result), started)
        return result

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
    ) -> Decision:
        """One charge: by its shape if that is known, else by its flow."""
        refusals = self._refusals
        if refusals is not None and not at_server:
            if op is None and wait.__class__ is int and wait == 0 and verb in REMEMBERED:
                known = refusals.known(shapes.scope, subject, costs, amount, join)
                if known is not None and self._recall is not None:
                    return known
            return self._remembering(refusals, shapes, verb, subject, costs, amount, op, join, wait)
        if op is None and wait.__class__ is int and wait == 0 and not self._closed:
            now = monotonic()
            shape = shapes.find(verb, subject, costs, amount, join, now)
            if shape is not None:
                if self._observer is None:
                    return self._ask(shapes, shape, now)
                return self._watched(verb, subject, partial(self._ask, shapes, shape, now))
        flow = shapes.flow(verb, subject, costs, amount, op, join, wait)
        return self._call(verb, subject, flow)

    def _remembering(
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
                if self._observer is not None:
                    self._observe(verb, subject, outcome_of(found), time.perf_counter())
                return found
            asked = found
        try:
            decision = self._charge(shapes, verb, subject, costs, amount, op, join, wait, True)
        except BaseException as error:
            refusals.after(shapes.scope, verb, subject, join, error)
            raise
        refusals.after(shapes.scope, verb, subject, join, decision, asked)
        return decision

    def _ask(self, shapes: Shapes, shape: Shape, now: float) -> Decision:
        request = shape.at(self._operations.now_argument()) if self._manual else shape.request
        try:
            reply = self._transport.send(request, shape.seconds)
        except (NotSent, MaybeSent) as error:
            reply = error
        decision = shape.answer(reply)
        if decision is None:
            shapes.forget(shape)
            deadline = now + self._timeout
            decision = self._resumed(self._operations.resume(shape, reply, deadline))
        return decision

    def _resumed(self, flow: Flow[T]) -> T:
        return without_io(flow) if self._closed else self._run(flow)

    def open(self) -> Self:
        """Connects, and sees to it that the store knows these plans."""
        if not self._closed:
            self._transport.open()
        self._run(self._store.open())
        return self

    def close(self) -> None:
        """Closes every connection and, if there is one, the embedded server."""
        if not self._closed:
            self._closed, self._recall = True, None
            self._keeper.close()
            self._transport.close()
            if self._server is not None:
                self._server.close()

    def __enter__(self) -> Self:
        return self if self._store.ready and not self._closed else self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, rounds: Rounds[T]) -> T:
        if self._closed:
            raise closed()
        return drive(self._transport, rounds)
