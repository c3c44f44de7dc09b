"""What every call shares: the clock, the stored levels, operation ids, and writing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from tests.oracle import telling
from tests.oracle.decide import Hit, ODecision, planned
from tests.oracle.errors import NoPlan, NotIncluded, OpConflict
from tests.oracle.holds import Part, part_of
from tests.oracle.levels import Levels, View
from tests.oracle.limits import PoolSpec
from tests.oracle.plans import Catalog
from tests.oracle.records import Record
from tests.oracle.requests import Amounts, Path, check_op

DAY_MS = 86_400_000
MAX_HOLDS = 10_000


@dataclass(frozen=True)
class Charge:
    """What an operation charged to one limit.

    `settled`: by a hold, before it was committed; else at the instant of the operation.
    """

    path: Path
    name: str
    part: Part
    settled: bool
    resets_at_ms: int | None


@dataclass(slots=True)
class Stored:
    """What is kept under an id. `refund`: the answer, once it was given back as a whole."""

    request: Any
    answer: Any
    at: int
    until: int
    costs: dict[str, int]
    charges: list[Charge]
    refund: ODecision | None = None


Answers = dict[str, dict[str, Stored]]
"""Root -> id."""


class Core:
    """`now_ms` defaults to `clock_ms`: `start_ms` at first, moved only by whoever uses the model.

    `expire_first_sight`: whether records made by first sight that hold only buckets are gone once
    all of these are full again. `max_holds`: how many may be open per level.
    """

    def __init__(
        self,
        plans: Iterable[Any] = (),
        *,
        start_ms: int = 0,
        op_retention_ms: int = DAY_MS,
        expire_first_sight: bool = True,
        max_holds: int = MAX_HOLDS,
    ) -> None:
        self.clock_ms = start_ms
        self.op_retention_ms = op_retention_ms
        self.catalog = Catalog()
        self.levels = Levels(self.catalog, expire_first_sight)
        self.max_holds = max_holds
        self.operations: Answers = {}
        self.ends: Answers = {}
        self.forgotten: list[Callable[[Path], None]] = []  # who wants to hear of it
        self.quiet = False  # refusals are answered from memory, and tell nothing
        self.limiter_records: dict[str, dict[Path, Record]] = {}
        self.catalog.apply(plans, ())

    def _now(self, path: Path, now_ms: int | None) -> int:
        return self.levels.now(path, self.clock_ms if now_ms is None else now_ms)

    def _reached(self, subject: Any, views: list[View], hits: list[Hit], amounts: Amounts) -> None:
        """Something can be recorded."""
        if not planned(views):
            raise NoPlan(subject)
        if not hits:
            raise NotIncluded(sorted(amounts))

    def _write(
        self,
        views: list[View],
        hits: list[Hit],
        after: list[Any],
        now: int,
        *,
        root: bool = True,
        also: Collection[Path] = (),
        charged: bool = True,
    ) -> None:
        """Write what a call changed, and (`root`) every level that is new or brought up.

        `charged`: it charged, which pools may have something to say of.
        """
        moved = {h.view.path for h, new in zip(hits, after, strict=True) if new != h.state}
        touched = {view.path for view in views if root and view.changed} | set(also) | moved
        for hit, state in zip(hits, after, strict=True):
            if hit.view.path in moved:
                record, name = hit.view.record, hit.spec.name
                assert record is not None
                telling.bring(record, name, now)
                if charged and isinstance(hit.spec, PoolSpec) and hit.amount:
                    state = telling.say(record, name, state, now)  # noqa: PLW2901
                record.put(name, state)
        for view in views:
            if view.path in touched:
                assert view.record is not None
                self.levels.store(view.path, view.record, now)

    def _exhaust(self, views: list[View], hits: list[Hit], now: int) -> None:
        """Pools that refuse say so, once in their period; nothing else is written.

        Nor does a record come to be, or join a plan, for a refusal.
        """
        if self.quiet:
            return
        said: dict[Path, set[str]] = {}
        for hit in hits:
            there = not hit.view.fresh and not hit.view.joins
            refuses = isinstance(hit.spec, PoolSpec) and there and hit.state.open
            if (
                refuses
                and not hit.spec.fits(hit.state, hit.amount, now)
                and ("exhausted",) not in hit.state.said
            ):
                said.setdefault(hit.view.path, set()).add(hit.spec.name)
        for hit in hits:
            record = hit.view.record
            if hit.view.path in said:
                assert record is not None
                telling.bring(record, hit.spec.name, now)
                if hit.spec.name in said[hit.view.path]:
                    state = telling.exhaust(record, hit.spec.name, hit.state, now)
                    record.put(hit.spec.name, state)
        for view in views:
            if view.path in said:
                assert view.record is not None
                self.levels.store(view.path, view.record, now)

    def _replayed(self, path: Path, op: str | None, request: Any, now: int) -> ODecision | None:
        """The first answer to the same request under this operation id, if there is one."""
        if op is None:
            return None
        check_op(op)
        return self._answered(self.operations, path, op, request, now)

    def _answered(
        self, answers: Answers, path: Path, op: str, request: Any, now: int
    ) -> ODecision | None:
        first = self._known(answers, path, op, request, now)
        return None if first is None else replace(first, replayed=True)

    def _known(self, answers: Answers, path: Path, op: str, request: Any, now: int) -> Any:
        """What was answered to the same request, if that is remembered; None: nothing is."""
        known = self._stored(answers, path, op, now)
        if known is not None and known.request != request:
            raise OpConflict(op)
        return None if known is None else known.answer

    def _stored(self, answers: Answers, path: Path, op: str, now: int) -> Stored | None:
        known = answers.get(path[0], {}).get(op)
        return None if known is None or known.until <= now else known

    def _remember(
        self,
        path: Path,
        op: str | None,
        request: Any,
        answer: Any,
        now: int,
        costs: Amounts | None = None,
        charges: Iterable[Charge] = (),
        retention_ms: int | None = None,
    ) -> None:
        if op is not None:
            until = now + (self.op_retention_ms if retention_ms is None else retention_ms)
            known = Stored(request, answer, now, until, dict(costs or {}), list(charges))
            self.operations.setdefault(path[0], {})[op] = known


def charges_of(hits: list[Hit], after: list[Any], answer: ODecision, now: int) -> list[Charge]:
    """What a call charged at `now` that took these limits to these states."""
    found = []
    for hit, state, limit in zip(hits, after, answer.limits, strict=True):
        if limit.applied:
            part = part_of(hit.spec, hit.state, state, limit.applied, {}, 0, now)
            place = (hit.view.path, hit.spec.name)
            found.append(Charge(*place, part, settled=False, resets_at_ms=limit.resets_at_ms))
    return found
