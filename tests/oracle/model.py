"""The engine as a plain object: subjects, plans, operations. What a limit does is in `limits`.

Every call looks at the levels as they are *now* (`View`), decides, and only then writes: a call
that raises or refuses has changed nothing. All instants are integer milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from tests.oracle import telling
from tests.oracle.changes import OPending, Waiting, period_end
from tests.oracle.core import charges_of
from tests.oracle.decide import (
    Hit,
    ODecision,
    check_counters,
    decide,
    hits_of,
    planned,
    recorded,
    refuse_slots,
    retry_after,
    shown,
)
from tests.oracle.errors import PolicyError
from tests.oracle.granting import booked
from tests.oracle.grants import OGrant
from tests.oracle.holding import OHold, open_holds
from tests.oracle.limiter import OLimiter
from tests.oracle.limits import OLimit
from tests.oracle.past import Past
from tests.oracle.plans import check_override, merge
from tests.oracle.records import Override, Record
from tests.oracle.requests import Amounts, Costs, Path, Subject, amounts_of, check_amount, path_of


@dataclass(slots=True)
class OUsage:
    """Every limit of every level, root first; `plans`: per level {group: plan id}, or None.

    `holds`: per level those that are open, the soonest to expire first. `grants`: per level those
    in the books, by pool name in burn order. `pending`: per level the changes that wait, the next
    one first.
    """

    limits: list[OLimit]
    plans: list[dict[str, str] | None]
    holds: list[list[OHold]]
    grants: list[list[OGrant]]
    pending: list[list[OPending]]


class Oracle(Past):
    """Everything that the engine does; `Core` says what it is made of."""

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
        request = ("consume", path, sorted(amounts.items()))
        return self._consume(path, amounts, request, op, join, now_ms)

    def verified(
        self, path: Path, amounts: Amounts, *, op: str | None, join: str | None, now_ms: int
    ) -> ODecision:
        """What verifying an API key charges; nobody else's call has the same operation id."""
        request = ("consume", path, sorted(amounts.items()), "verify")
        return self._consume(path, amounts, request, op, join, now_ms)

    def _consume(
        self,
        path: Path,
        amounts: Amounts,
        request: object,
        op: str | None,
        join: str | None,
        now_ms: int | None,
    ) -> ODecision:
        now = self._now(path, now_ms)
        if (first := self._replayed(path, op, request, now)) is not None:
            return first
        views = self.levels.views(path, join, now)
        decision, hits, after = decide(views, amounts, now, op)
        refuse_slots(hits)
        if decision.allowed:
            self._write(views, hits, after, now)
            charges = charges_of(hits, after, decision, now)
            self._remember(path, op, request, decision, now, amounts, charges)
        elif decision.code == "USAGE_EXCEEDED":
            self._exhaust(views, hits, now)
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
        self._reached(subject, views, hits, amounts)
        refuse_slots(hits)
        moved = [hit.spec.report(hit.state, hit.amount, now) for hit in hits]
        check_counters(hits, [state for state, _ in moved])
        fits = [hit.spec.fits(hit.state, hit.amount, now) for hit in hits]
        decision = recorded(hits, moved, fits, amounts, now, op)
        after = [state for state, _ in moved]
        self._write(views, hits, after, now)
        charges = charges_of(hits, after, decision, now)
        self._remember(path, op, request, decision, now, amounts, charges)
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
        refuse_slots(hits)
        if not hits:
            code = "NOT_INCLUDED" if planned(views) else "NO_PLAN"
            return ODecision(False, code, 0, op=op)
        moved = [hit.spec.refund(hit.state, hit.amount, now) for hit in hits]
        decision = recorded(hits, moved, [True] * len(hits), amounts, now, op)
        self._write(views, hits, [state for state, _ in moved], now, root=False, charged=False)
        self._remember(path, op, request, decision, now, amounts)
        return decision

    def usage(
        self, subject: Subject, *, join: str | None = None, now_ms: int | None = None
    ) -> OUsage:
        path = path_of(subject)
        now = self._now(path, now_ms)
        limits: list[OLimit] = []
        plans: list[dict[str, str] | None] = []
        holds: list[list[OHold]] = []
        grants: list[list[OGrant]] = []
        pending: list[list[OPending]] = []
        for view in self.levels.views(path, join, now):
            record = view.record
            holds.append([])
            grants.append([])
            pending.append([])
            if record is None:
                plans.append(None)
                continue
            plans.append({group: _id_of(plan) for group, plan in record.plans.items()})
            holds[-1] = open_holds(record)
            grants[-1] = booked(record)
            pending[-1] = [
                OPending(group, None if w.plan is None else _id_of(w.plan), w.at, w.change)
                for group, w in sorted(record.pending.items(), key=lambda x: (x[1].at, x[0]))
            ]
            for name, spec in record.specs.items():
                hit = Hit(view, spec, record.state(name, now), 1)
                fit = spec.fits(hit.state, 1, now)
                retry = None if fit else retry_after(hit, now)
                limits.append(shown(hit, hit.state, now, 0, fit, retry))
        return OUsage(limits, plans, holds, grants, pending)

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
        when: int | str = "now",
        anchor_ms: int | None = None,
        op: str | None = None,
        now_ms: int | None = None,
    ) -> None:
        """`change`: "keep", "reset" or "prorate". `when`: "now", "period_end" or an instant."""
        if change not in ("keep", "reset", "prorate"):
            raise PolicyError(change)
        path, private = path_of(subject), tuple(limits)
        now = self._now(path, now_ms)
        request = ("subscribe", path, plan, private, change, when, anchor_ms)
        if self._replayed(path, op, request, now) is not None:
            return
        target = self._target(path, plan, private, now)
        kinds = {limit.name: limit.kind for limit in target.includes}
        self._check_kinds(path[:-1], kinds, now_ms)
        held = target if private else target.id
        at = self._later(path, target.group, when, now)
        if at is not None:
            self.levels.wait(path, target.group, Waiting(at, held, change, anchor_ms), now)
            self._remember(path, op, request, ODecision(True, "OK", None), now)
            return
        record, plans = self.levels.settable(path, now)
        plans[target.group] = held
        record = without_pending(record, target.group)
        self.levels.rewrite(
            path,
            record,
            plans,
            now,
            own=frozenset(limit.name for limit in target.includes),
            anchor_ms=anchor_ms,
            change=change,
            group=target.group,
        )
        self._remember(path, op, request, ODecision(True, "OK", None), now)

    def _later(self, path: Path, group: str, when: int | str, now: int) -> int | None:
        """The instant after now at which a change is to come; None: now."""
        if isinstance(when, int):
            return when if when > now else None
        stored = self.levels.stored(path, now)
        if when == "now" or stored is None:
            return None
        assert when == "period_end"
        record = self.levels.settled(path, stored, now)
        left = record.plans.get(group)
        if left is None:
            return None
        plan = self.catalog.plan(left) if isinstance(left, str) else left
        names = frozenset(limit.name for limit in plan.includes)
        return period_end(record.specs, record.states, names, now)

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
        stored = self.levels.stored(path, now)
        if stored is not None and plan in self.levels.settled(path, stored, now).plans.values():
            return self.catalog.plan(plan)
        return self.catalog.joinable(plan)

    def unsubscribe(
        self, subject: Subject, plan: str, *, when: int | str = "now", now_ms: int | None = None
    ) -> None:
        """A plan that is not held: nothing happens."""
        path = path_of(subject)
        now = self._now(path, now_ms)
        stored = self.levels.stored(path, now)
        held = {}
        if stored is not None:
            record = self.levels.settled(path, stored, now)
            held = {_id_of(p): group for group, p in record.plans.items()}
        if plan not in held:
            self.catalog.plan(plan)
            return
        group = held[plan]
        at = self._later(path, group, when, now)
        if at is not None:
            self.levels.wait(path, group, Waiting(at, None, "keep"), now)
            return
        record, plans = self.levels.settable(path, now)
        record = without_pending(record, group)
        del plans[group]
        if len(path) == 1 and group in self.catalog.defaults:
            plans[group] = self.catalog.defaults[group]
        self.levels.rewrite(path, record, plans, now, change="keep", group=group)

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
        if record is None or name not in record.specs:
            raise PolicyError(f"no limit {name!r}")
        if record.specs[name].kind in ("flag", "slots"):
            raise PolicyError(f"no pool or bucket {name!r}")
        spec = record.specs[name]
        telling.bring(record, name, now)
        state = spec.adjust(record.state(name, now), used, now)
        record.put(name, state)
        self.levels.store(path, record, now, first_sight=False)
        return shown(Hit(view, spec, state, 0), state, now, 0, True, None)

    def harvest(self, *, seen: Collection[Path] = (), now_ms: int | None = None) -> None:
        """What is billed and new is told, and periods that are over. `seen`: who is looked at.

        Nobody else has anything to tell; but these are brought to changes of plans too.
        """
        self.levels.harvest(self.clock_ms if now_ms is None else now_ms, seen)

    def join(self, root: Path, plan: str, *, now_ms: int) -> None:
        """As the first call does that says so."""
        now = self._now(root, now_ms)
        self._write(self.levels.views(root, plan, now), [], [], now)

    def plans_of(self, path: Path, *, now_ms: int) -> list[str]:
        record = self.levels.view(path, None, self._now(path, now_ms)).record
        return [] if record is None else [_id_of(plan) for plan in record.plans.values()]

    def forget(self, subject: Subject, *, now_ms: int | None = None) -> None:
        """Everything at and below; with the root, its operation ids and ended holds too."""
        path = path_of(subject)
        self.levels.forget(path, self.clock_ms if now_ms is None else now_ms)
        for tell in self.forgotten:
            tell(path)
        if len(path) == 1:
            self.operations.pop(path[0], None)
            self.ends.pop(path[0], None)


def without_pending(record: Record, group: str) -> Record:
    """The record without the change that waits in that group."""
    return replace(record, pending={g: w for g, w in record.pending.items() if g != group})


def _id_of(plan: Any) -> str:
    return plan if isinstance(plan, str) else str(plan.id)
