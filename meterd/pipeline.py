"""Pipelines: calls gathered now, sent together, each with a result of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from meterd.batch import Batch, Call, Outcome, all_or_error
from meterd.errors import MeterdError, OutcomeUnknown, PolicyError
from meterd.keys import Subject
from meterd.result import Decision

if TYPE_CHECKING:
    from meterd.aio import AsyncMeter
    from meterd.client import Meter
    from meterd.past import Past


class Queued:
    """A call of a pipeline. `result()` is its decision, or raises its error, once that has run."""

    __slots__ = ("_outcome", "_verb")

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._outcome: Outcome | None = None

    @property
    def done(self) -> bool:
        return self._outcome is not None

    def result(self) -> Decision:
        outcome = self._outcome
        if outcome is None:
            raise PolicyError(
                f"{self._verb}: the pipeline has not run yet; leave its with block or execute() it"
            )
        if isinstance(outcome, MeterdError):
            raise outcome
        return outcome

    def _not_a_decision(self) -> NoReturn:
        raise TypeError(f"a queued {self._verb} is no decision yet: ask for its result()")

    if not TYPE_CHECKING:  # a type checker finds these by itself, as long as they are not there

        def __bool__(self):  # noqa: PLE0304  # it never returns
            self._not_a_decision()

        def __iter__(self):
            self._not_a_decision()

        def __getitem__(self, name):
            self._not_a_decision()

    def __repr__(self) -> str:
        return f"<queued {self._verb}: {'not run yet' if not self.done else self._outcome!r}>"


class Queue:
    """What both kinds of pipeline share: the calls so far."""

    def __init__(self, past: Past, raise_on_error: bool) -> None:
        self._past = past
        self._raise_on_error = raise_on_error
        self._calls: list[Call] = []
        self._queued: list[Queued] = []

    def __len__(self) -> int:
        return len(self._calls)

    def check(
        self,
        subject: Subject,
        costs: str | Mapping[str, int],
        amount: int = 1,
        *,
        join: str | None = None,
    ) -> Queued:
        """See `Meter.check`."""
        return self._add(Call("check", subject, costs, amount, join=join))

    def consume(
        self,
        subject: Subject,
        costs: str | Mapping[str, int],
        amount: int = 1,
        *,
        op: str | bool | None = None,
        join: str | None = None,
    ) -> Queued:
        """See `Meter.consume`."""
        return self._add(Call("consume", subject, costs, amount, op=op, join=join))

    def report(
        self,
        subject: Subject,
        costs: str | Mapping[str, int],
        amount: int = 1,
        *,
        op: str | bool | None = None,
        join: str | None = None,
    ) -> Queued:
        """See `Meter.report`."""
        return self._add(Call("report", subject, costs, amount, op=op, join=join))

    def refund(
        self,
        subject: Subject,
        costs: str | Mapping[str, int] | None = None,
        amount: int = 1,
        *,
        of: str | None = None,
        op: str | bool | None = None,
    ) -> Queued:
        """See `Meter.refund`."""
        if costs is not None and of is None:
            return self._add(Call("refund", subject, costs, amount, op=op))
        refund = self._past.refund
        return self._add(
            Call(
                "refund", subject, make=lambda: refund(subject, costs, amount, of, op, shared=True)
            )
        )

    def _add(self, call: Call) -> Queued:
        queued = Queued(call.verb)
        self._calls.append(call)
        self._queued.append(queued)
        return queued

    def _taken(self) -> tuple[list[Call], list[Queued]]:
        """The calls so far; the pipeline is empty again."""
        calls, queued = self._calls, self._queued
        self._calls, self._queued = [], []
        return calls, queued

    def _settle(self, batch: Batch, queued: list[Queued]) -> None:
        for one, outcome in zip(queued, batch.outcomes, strict=True):
            one._outcome = (
                outcome
                if outcome is not None
                else OutcomeUnknown(
                    f"{one._verb}: the pipeline was interrupted; applied once or not at all"
                )
            )

    def _judged(
        self, calls: list[Call], outcomes: Sequence[Any], raise_on_error: bool | None
    ) -> list[Any]:
        if self._raise_on_error if raise_on_error is None else raise_on_error:
            return all_or_error(calls, outcomes)
        return list(outcomes)


class Pipeline(Queue):
    """What `Meter.pipeline` returns. Not for several threads at once."""

    def __init__(self, meter: Meter, raise_on_error: bool) -> None:
        super().__init__(meter._past, raise_on_error)
        self._meter = meter

    def execute(self, raise_on_error: bool | None = None) -> list[Any]:
        """Sends the calls so far, and returns what became of each, in order.

        Raises `BatchError` if some failed, unless `raise_on_error=False`: then errors stand in the
        list. Either way every `result()` is there. The pipeline is empty again.
        """
        calls, queued = self._taken()
        batch = self._meter._batch(calls)
        try:
            outcomes = self._meter._drive(batch.rounds())
        finally:
            self._settle(batch, queued)
        return self._judged(calls, outcomes, raise_on_error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Executes; after an exception nothing is sent."""
        if kind is None:
            self.execute()


class AsyncPipeline(Queue):
    """What `AsyncMeter.pipeline` returns. Not for several tasks at once."""

    def __init__(self, meter: AsyncMeter, raise_on_error: bool) -> None:
        super().__init__(meter._past, raise_on_error)
        self._meter = meter

    async def execute(self, raise_on_error: bool | None = None) -> list[Any]:
        """See `Pipeline.execute`."""
        calls, queued = self._taken()
        batch = self._meter._batch(calls)
        try:
            outcomes = await self._meter._drive(batch.rounds())
        finally:
            self._settle(batch, queued)
        return self._judged(calls, outcomes, raise_on_error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None:
            await self.execute()
