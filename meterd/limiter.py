"""Plain rate limiting: a named set of buckets over any text, without plans or a catalog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meterd import policy_checks as checks
from meterd import wire
from meterd.errors import PolicyError
from meterd.flow import Flow
from meterd.keys import Path, Subject, checked_subject
from meterd.operations import Operations
from meterd.policy import Bucket, Plan
from meterd.result import Decision
from meterd.roles import Pinned
from meterd.shapes import Shapes
from meterd.timespec import Seconds

if TYPE_CHECKING:
    from meterd.aio import AsyncMeter
    from meterd.client import Meter
    from meterd.pending import Pending


class LimiterCalls(Shapes):
    """The charges of one limiter. A text subject is one segment, whatever it contains."""

    def __init__(self, operations: Operations, name: str, limits: Sequence[Bucket]) -> None:
        super().__init__(operations)
        checks.name(name, "limiter: name")
        if not limits or not all(isinstance(limit, Bucket) for limit in limits):
            raise PolicyError(
                f"limiter {name!r}: give at least one Bucket, and nothing else; got {limits!r}"
            )
        self.name = name
        self.scope = (name,)
        # One cost name reaches every limit; what else their rates say is for plans.
        charged = tuple(replace(limit, rates={name: 1}) for limit in limits)
        self._plan = Plan("limiter", includes=charged)
        self._role = Pinned(operations.store, self._plan)

    def _path(self, subject: Subject) -> Path:
        subject = checked_subject(subject)
        segments = (subject,) if isinstance(subject, str) else subject
        return self._operations.keys.limiter(self.name, segments)

    def _parts(
        self, subject: Subject, costs: Any, amount: int, join: str | None
    ) -> tuple[Path, wire.Costs, Callable[[], Pinned]]:
        return self._path(subject), wire.encode_costs(costs, amount), lambda: self._role

    def flow(
        self,
        verb: str,
        subject: Any,
        costs: Any,
        amount: int,
        op: str | bool | None,
        join: str | None,
        wait: Seconds,
    ) -> Flow[Decision]:
        path = self._path(subject)
        packed = wire.encode_costs(costs, amount)
        return (yield from self._operations.decide(verb, path, packed, op, wait, self._role))

    def reset(self, subject: Subject) -> Flow[int]:
        yield from self._operations.store.prepare()
        key, now = self._path(subject).keys[0], self._operations.now_argument()
        reply = yield from self._operations.session.call(
            "forget", [key], [now, b"", b""], harmless=True
        )
        return wire.removed(reply) or 0


class Limiter:
    """What `Meter.limiter` returns: charges `amount` of each of its limits, all or none."""

    def __init__(self, meter: Meter, calls: LimiterCalls) -> None:
        self._meter = meter
        self._calls = calls

    def consume(
        self, subject: Subject, amount: int = 1, *, op: str | bool | None = None, wait: Seconds = 0
    ) -> Decision:
        """Charges every limit, or none of them."""
        return self._meter._charge(
            self._calls, "consume", subject, self._calls.name, amount, op, None, wait
        )

    def check(self, subject: Subject, amount: int = 1) -> Decision:
        """The answer `consume` would give now."""
        return self._meter._charge(
            self._calls, "check", subject, self._calls.name, amount, None, None, 0
        )

    def refund(
        self, subject: Subject, amount: int = 1, *, op: str | bool | None = None
    ) -> Decision:
        """Gives back, never below zero."""
        return self._meter._charge(
            self._calls, "refund", subject, self._calls.name, amount, op, None, 0
        )

    def reset(self, subject: Subject) -> None:
        """Forgets one subject of this limiter."""
        self._meter._call("reset", subject, self._calls.reset(subject), self._calls.scope)


class AsyncLimiter:
    """What `AsyncMeter.limiter` returns: the same, awaited."""

    def __init__(self, meter: AsyncMeter, calls: LimiterCalls) -> None:
        self._meter = meter
        self._calls = calls

    def consume(
        self, subject: Subject, amount: int = 1, *, op: str | bool | None = None, wait: Seconds = 0
    ) -> Pending[Decision]:
        """Charges every limit, or none of them."""
        return self._meter._charge(
            self._calls, "consume", subject, self._calls.name, amount, op, None, wait
        )

    def check(self, subject: Subject, amount: int = 1) -> Pending[Decision]:
        """The answer `consume` would give now."""
        return self._meter._charge(
            self._calls, "check", subject, self._calls.name, amount, None, None, 0
        )

    def refund(
        self, subject: Subject, amount: int = 1, *, op: str | bool | None = None
    ) -> Pending[Decision]:
        """Gives back, never below zero."""
        return self._meter._charge(
            self._calls, "refund", subject, self._calls.name, amount, op, None, 0
        )

    async def reset(self, subject: Subject) -> None:
        """Forgets one subject of this limiter."""
        await self._meter._call("reset", subject, self._calls.reset(subject), self._calls.scope)
