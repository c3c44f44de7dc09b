"""`AsyncMeter`: the same verbs, awaited. How they are carried out is in `aiocaller`."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from meterd.aiocaller import AsyncCaller
from meterd.aiohold import AsyncHold, PendingHold
from meterd.aiolease import AsyncLease, PendingLease
from meterd.base import Costs
from meterd.batch import Item, all_or_error, calls_of
from meterd.catalog import Diff
from meterd.errors import MeterdError
from meterd.grant import Grant
from meterd.keys import Subject, display
from meterd.limiter import AsyncLimiter
from meterd.past import Operation
from meterd.pending import Pending
from meterd.policy import Bucket, Limit, Plan
from meterd.result import Decision, Usage
from meterd.timespec import Instant, Seconds

if TYPE_CHECKING:
    from meterd.event import Event
    from meterd.events import EventReader
    from meterd.keyverbs import AsyncKeys
    from meterd.pipeline import AsyncPipeline

T = TypeVar("T")


class AsyncMeter(AsyncCaller):
    """The asynchronous client: the same names, arguments and meanings as `Meter`.

    Its verbs return awaitables that raise `TypeError` when they are tested, unpacked or looked into
    without `await`. It belongs to the event loop that used it first. Cancelling a call never
    disturbs another one. All calls to a server share one connection; eight times `max_connections`
    are under way at once, the others wait in turn.
    """

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
        flow = self._past.refund(subject, costs, amount, of, op)
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

    def operation(self, subject: Subject, op: str) -> Pending[Operation]:
        """See `Meter.operation`."""
        return self._call("operation", subject, self._past.operation(subject, op))

    @property
    def keys(self) -> AsyncKeys:
        """See `Meter.keys`."""
        from meterd.keyverbs import AsyncKeys

        return AsyncKeys(self, self._apikeys())

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
        flow = self._subscriptions.subscribe(subject, plan, limits, change, when, anchor, op)
        await self._call("subscribe", subject, flow)

    async def unsubscribe(
        self, subject: Subject, plan: str, *, when: str | Instant = "now"
    ) -> None:
        """See `Meter.unsubscribe`."""
        flow = self._subscriptions.unsubscribe(subject, plan, when)
        await self._call("unsubscribe", subject, flow)

    async def grant(
        self,
        subject: Subject,
        name: str,
        amount: int,
        *,
        expires: Instant | None = None,
        starts: Instant | None = None,
        priority: int = 50,
        source: str = "",
        op: str | bool | None = None,
    ) -> Grant:
        """Gives a pool `amount` units of their own: a top-up, a bonus, what was paid in advance.

        They are spent from `starts` up to, not at, `expires`, in order of `priority` (0 to 100, low
        first; the period's own allowance has 50), then what expires soonest, then the oldest (of
        the same ms, by id); no plan change touches them. A pool that no plan includes is there with
        limit 0. `op`: the grant's id; the same call again returns the first answer (for 30 days at
        least). Raises `PolicyError` (also beyond 64 live grants, or 10**15 unspent, and where a
        level above has a bucket or flag of that name), `OpConflict`, `UnsafeServer`.
        """
        flow = self._grants.grant(subject, name, amount, expires, starts, priority, source, op)
        return await self._call("grant", subject, flow)

    async def void(self, subject: Subject, grant_id: str) -> int:
        """Takes back what a grant has left, and returns how much that was: 0 if it is spent.

        What open holds have of it stays with them; what comes back from them is lost. Raises
        `OpNotFound` for a grant that is not there (any more).
        """
        return await self._call("void", subject, self._grants.void(subject, grant_id))

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
        return await self._call("forget", subject, self._apikeys().forget(subject))

    async def harvest(self, *, limit: int | None = None) -> int:
        """See `Meter.harvest`."""
        return await self._drive(self._harvest.rounds(limit))

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

    def events(
        self,
        group: str,
        types: Sequence[str] | None = None,
        follow: bool = True,
        *,
        idle: Seconds = 60,
    ) -> AsyncIterator[Event]:
        """See `Meter.events`; `async for`. After a `break`, close it: `contextlib.aclosing`."""
        return self._following(self._reader(group, types, follow, idle))

    async def _following(self, reader: EventReader) -> AsyncIterator[Event]:
        try:
            while (event := await self._drive(reader.next())) is not None:
                yield event
        finally:
            with suppress(MeterdError):
                await self._drive(reader.close())

    def limiter(self, name: str, *limits: Bucket) -> AsyncLimiter:
        """See `Meter.limiter`."""
        return AsyncLimiter(self, self._limiter(name, limits))


__all__ = ["AsyncMeter", "Pending"]
