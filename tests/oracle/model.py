"""The engine as a plain object: subjects, plans, operations. What a limit does is in `limits`.

Every call looks at the levels as they are *now* (`View`), decides, and only then writes: a call
that raises or refuses has changed nothing. All instants are integer milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from tests.oracle.decide import (
    Hit,
    ODecision,
    balance,
    check_counters,
    decide,
    hits_of,
    retry_after,
    shown,
)
from tests.oracle.errors import NoPlan, NotIncluded, OpConflict, PolicyError
from tests.oracle.levels import Levels, View
from tests.oracle.limiter import OLimiter
from tests.oracle.limits import OLimit
from tests.oracle.plans import Catalog, check_override, merge
from tests.oracle.records import Override, Record
from tests.oracle.requests import (
    Amounts,
    Costs,
    Path,
    Subject,
    amounts_of,
    check_amount,
    check_op,
    path_of,
)

DAY_MS = 86_400_000


@dataclass(slots=True)
class OUsage:
    """Every limit of every level, root first; `plans`: per level {group: plan id}, or None."""

    limits: list[OLimit]
    plans: list[dict[str, str] | None]


class Oracle:
    """`now_ms` defaults to `clock_ms`: `start_ms` at first, moved only by whoever uses the model.

    `expire_first_sight`: whether records made by first sight that hold only buckets are gone once
    all of these are full again.
    """

    def __init__(
        self,
        plans: Iterable[Any] = (),
        *,
        start_ms: int = 0,
        op_retention_ms: int = DAY_MS,
        expire_first_sight: bool = True,
    ) -> None:
        self.clock_ms = start_ms
        self.op_retention_ms = op_retention_ms
        self.catalog = Catalog()
        self.levels = Levels(self.catalog, expire_first_sight)
        self.operations: dict[str, dict[str, tuple[Any, ODecision, int]]] = {}
        self.limiter_records: dict[str, dict[Path, Record]] = {}
        self.catalog.apply(plans, ())

    def _now(self, path: Path, now_ms: int | None) -> int:
        return self.levels.now(path, self.clock_ms if now_ms is None else now_ms)

    # -- charging --------------------------------------------------------------------------------

    def consume(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | None = None,
        join: str | None = None,
        now_ms: int | None = None,
    ) -> ODecision:
        path, amounts = path_of(subject), amounts_of(costs, amount)
        now = self._now(path, now_ms)
        request = ("consume", path, sorted(amounts.items()))
        if (first := self._replayed(path, op, request, now)) is not None:
            return first
        views = self.levels.views(path, join, now)
        decision, hits, after = decide(views, amounts, now, op)
        if decision.allowed:
            self._commit(views, hits, after, now)
            self._remember(path, op, request, decision, now)
        return decision

    def check(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        join: str | None = None,
        now_ms: int | None = None,
    ) -> ODecision:
        path, amounts = path_of(subject), amounts_of(costs, amount)
        now = self._now(path, now_ms)
        return decide(self.levels.views(path, join, now), amounts, now, None, dry_run=True)[0]

    def report(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | None = None,
        join: str | None = None,
        now_ms: int | None = None,
    ) -> ODecision:
        path, amounts = path_of(subject), amounts_of(costs, amount)
        now = self._now(path, now_ms)
        request = ("report", path, sorted(amounts.items()))
        if (first := self._replayed(path, op, request, now)) is not None:
            return first
        views = self.levels.views(path, join, now)
        hits, _ = hits_of(views, amounts, now)
        if not any(view.record and view.record.plans for view in views):
            raise NoPlan(subject)
        if not hits:
            raise NotIncluded(sorted(amounts))
        moved = [hit.spec.report(hit.state, hit.amount, now) for hit in hits]
        check_counters(hits, [state for state, _ in moved])
        fits = [hit.spec.fits(hit.state, hit.amount, now) for hit in hits]
        decision = _applied(hits, moved, fits, amounts, now, op)
        self._commit(views, hits, [state for state, _ in moved], now)
        self._remember(path, op, request, decision, now)
        return decision

    def refund(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | None = None,
        now_ms: int | None = None,
    ) -> ODecision:
        path, amounts = path_of(subject), amounts_of(costs, amount)
        now = self._now(path, now_ms)
        request = ("refund", path, sorted(amounts.items()))
        if (first := self._replayed(path, op, request, now)) is not None:
            return first
        views = self.levels.views(path, None, now)
        hits, _ = hits_of(views, amounts, now)
        if not hits:
            planned = any(view.record and view.record.plans for view in views)
            return ODecision(False, "NOT_INCLUDED" if planned else "NO_PLAN", 0, op=op)
        moved = [hit.spec.refund(hit.state, hit.amount, now) for hit in hits]
        decision = _applied(hits, moved, [True] * len(hits), amounts, now, op)
        self._commit(views, hits, [state for state, _ in moved], now, root=False)
        self._remember(path, op, request, decision, now)
        return decision

    def usage(
        self, subject: Subject, *, join: str | None = None, now_ms: int | None = None
    ) -> OUsage:
        path = path_of(subject)
        now = self._now(path, now_ms)
        limits: list[OLimit] = []
        plans: list[dict[str, str] | None] = []
        for view in self.levels.views(path, join, now):
            record = view.record
            if record is None:
                plans.append(None)
                continue
            plans.append({group: _id_of(plan) for group, plan in record.plans.items()})
            for name, spec in record.specs.items():
                hit = Hit(view, spec, record.state(name, now), 1)
                fit = spec.fits(hit.state, 1, now)
                retry = None if fit else retry_after(hit, now)
                limits.append(shown(hit, hit.state, now, 0, fit, retry))
        return OUsage(limits, plans)

    def limiter(self, name: str, *limits: Any) -> OLimiter:
        """Plain rate limiting beside the catalog."""
        return OLimiter(self, name, limits)

    # -- plans and settings ----------------------------------------------------------------------

    def apply(self, plans: Iterable[Any], remove: Iterable[str] = ()) -> None:
        self.catalog.apply(plans, remove)

    def subscribe(
        self,
        subject: Subject,
        plan: str | None = None,
        *,
        limits: Iterable[Any] = (),
        change: str = "keep",
        anchor_ms: int | None = None,
        op: str | None = None,
        now_ms: int | None = None,
    ) -> None:
        """`change`: "keep" or "reset". Takes effect now."""
        if change not in ("keep", "reset"):
            raise NotImplementedError(change)
        path, private = path_of(subject), tuple(limits)
        now = self._now(path, now_ms)
        request = ("subscribe", path, plan, private, change, anchor_ms)
        if self._replayed(path, op, request, now) is not None:
            return
        target = self._target(path, plan, private, now)
        record, plans = self.levels.settable(path, now)
        plans[target.group] = target if private else target.id
        self.levels.rewrite(
            path,
            record,
            plans,
            now,
            own=frozenset(limit.name for limit in target.includes),
            anchor_ms=anchor_ms,
            reset=change == "reset",
        )
        self._remember(path, op, request, ODecision(True, "OK", None), now)

    def _target(self, path: Path, plan: str | None, private: tuple[Any, ...], now: int) -> Any:
        """The plan to subscribe to; a retired one only for those who hold it."""
        if private:
            made = SimpleNamespace(id=plan or "private", group="base", includes=private)
            if made.id in self.catalog.plans:
                raise PolicyError(f"{made.id!r} is a plan of the catalog")
            merge([made])
            return made
        if plan is None:
            raise PolicyError("neither a plan nor limits")
        record = self.levels.stored(path, now)
        if record is not None and plan in record.plans.values():
            return self.catalog.plan(plan)
        return self.catalog.joinable(plan)

    def unsubscribe(self, subject: Subject, plan: str, *, now_ms: int | None = None) -> None:
        """A plan that is not held: nothing happens."""
        path = path_of(subject)
        now = self._now(path, now_ms)
        stored = self.levels.stored(path, now)
        held = {} if stored is None else {_id_of(p): group for group, p in stored.plans.items()}
        if plan not in held:
            self.catalog.plan(plan)
            return
        record, plans = self.levels.settable(path, now)
        group = held[plan]
        del plans[group]
        if len(path) == 1 and group in self.catalog.defaults:
            plans[group] = self.catalog.defaults[group]
        self.levels.rewrite(path, record, plans, now)

    def override(
        self,
        subject: Subject,
        name: str,
        /,
        *,
        expires_ms: int | None = None,
        clear: bool = False,
        now_ms: int | None = None,
        **fields: int | None,
    ) -> None:
        path = path_of(subject)
        now = self._now(path, now_ms)
        if clear and (fields or expires_ms is not None):
            raise PolicyError("clear takes no fields")
        if expires_ms is not None and expires_ms <= now:
            raise PolicyError("expires is not in the future")
        if clear and self.levels.stored(path, now) is None:
            return
        record, plans = self.levels.settable(path, now)
        overrides = {other: o for other, o in record.overrides.items() if other != name}
        if not clear:
            spec = self.catalog.merged(plans).get(name)
            if spec is None and not self.catalog.mentions(name):
                raise PolicyError(f"no plan includes {name!r}")
            check_override(spec, fields)
            overrides[name] = Override(fields, expires_ms)
        self.levels.rewrite(path, record, plans, now, overrides=overrides)

    def adjust(
        self, subject: Subject, name: str, *, used: int, now_ms: int | None = None
    ) -> OLimit:
        path = path_of(subject)
        check_amount(used)
        now = self._now(path, now_ms)
        view = self.levels.view(path, None, now)
        record = view.record
        if record is None or name not in record.specs or record.specs[name].kind == "flag":
            raise PolicyError(f"no pool or bucket {name!r}")
        spec = record.specs[name]
        state = spec.adjust(record.state(name, now), used, now)
        record.states[name] = state
        self.levels.store(path, record, now, first_sight=False)
        return shown(Hit(view, spec, state, 0), state, now, 0, True, None)

    def forget(self, subject: Subject) -> None:
        """Everything at and below; with the root, its operation ids too."""
        path = path_of(subject)
        self.levels.forget(path)
        if len(path) == 1:
            self.operations.pop(path[0], None)

    # -- writing ---------------------------------------------------------------------------------

    def _commit(
        self, views: list[View], hits: list[Hit], after: list[Any], now: int, *, root: bool = True
    ) -> None:
        """Write what a charge changed, and (`root`) every level that is new or brought up."""
        touched = {view.path for view in views if root and view.changed}
        touched |= {h.view.path for h, new in zip(hits, after, strict=True) if new != h.state}
        for hit, state in zip(hits, after, strict=True):
            if hit.view.path in touched:
                assert hit.view.record is not None
                hit.view.record.states[hit.spec.name] = state
        for view in views:
            if view.path in touched:
                assert view.record is not None
                self.levels.store(view.path, view.record, now)

    def _replayed(self, path: Path, op: str | None, request: Any, now: int) -> ODecision | None:
        """The first answer to the same request under this operation id, if there is one."""
        if op is None:
            return None
        check_op(op)
        known = self.operations.get(path[0], {}).get(op)
        if known is None or known[2] + self.op_retention_ms <= now:
            return None
        first, answer, _ = known
        if first != request:
            raise OpConflict(op)
        return replace(answer, replayed=True)

    def _remember(
        self, path: Path, op: str | None, request: Any, answer: ODecision, now: int
    ) -> None:
        if op is not None:
            self.operations.setdefault(path[0], {})[op] = (request, answer, now)


def _id_of(plan: Any) -> str:
    return plan if isinstance(plan, str) else str(plan.id)


def _applied(
    hits: list[Hit],
    moved: list[tuple[Any, int]],
    fits: list[bool],
    amounts: Amounts,
    now: int,
    op: str | None,
) -> ODecision:
    """The answer to a call that never refuses: report, refund."""
    limits = []
    for hit, (state, applied), fit in zip(hits, moved, fits, strict=True):
        limits.append(shown(hit, state, now, applied, fit, None))
    left = balance(hits, [state for state, _ in moved], amounts, now)
    return ODecision(True, "OK", left, limits, op=op)
