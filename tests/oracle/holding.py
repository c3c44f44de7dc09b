"""Reservations: charge now, and settle later what was really used.

Every level where a reservation charged something keeps its own share of it, a `Hold`. A call about
a hold works on the levels of its path that still have one; the hold is open as long as any has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tests.oracle.core import DAY_MS, Charge, Core, Stored, charges_of
from tests.oracle.decide import Hit, ODecision, check_counters, decide, hits_of, recorded
from tests.oracle.errors import OpConflict, OpNotFound, PolicyError
from tests.oracle.holds import Hold, Part, part_of
from tests.oracle.levels import View
from tests.oracle.limits import PoolSpec
from tests.oracle.records import Record, copy_of, end_hold
from tests.oracle.requests import Amounts, Costs, Path, Subject, amounts_of, check_op, path_of
from tests.oracle.slots import SlotsSpec


@dataclass(slots=True)
class OHold:
    """An open hold at one level, as a usage report shows it."""

    id: str
    expires_ms: int
    amounts: dict[str, int]
    tallied: dict[str, int]


def open_holds(record: Record) -> list[OHold]:
    """Those of a settled record, the soonest to expire first."""
    shown = [OHold(i, h.expires, dict(h.held), dict(h.tallied)) for i, h in record.holds.items()]
    return sorted(shown, key=lambda hold: (hold.expires_ms, hold.id.encode()))


class Holding(Core):
    """reserve, commit, release, renew, tally."""

    def reserve(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        ttl_ms: int,
        hold_id: str | None = None,
        op: str | None = None,
        join: str | None = None,
        now_ms: int | None = None,
    ) -> ODecision:
        """Charges like consume. The hold's id is `op` where given, else `hold_id`."""
        path, amounts = path_of(subject), amounts_of(costs, amount)
        check_ttl(ttl_ms)
        hold_id = op or hold_id
        assert hold_id is not None
        now = self._now(path, now_ms)
        request = ("reserve", path, sorted(amounts.items()), ttl_ms)
        if (first := self._replayed(path, op, request, now)) is not None:
            return first
        views = self.levels.views(path, join, now)
        if with_hold(views, hold_id):
            raise OpConflict(hold_id)
        decision, hits, after = decide(views, amounts, now, op)
        if not decision.allowed:
            if decision.code == "USAGE_EXCEEDED":
                self._exhaust(views, hits, now)
            return decision
        parts: dict[Path, dict[str, Part]] = {}
        for hit, state in zip(hits, after, strict=True):
            record = record_of(hit.view)
            name = hit.spec.name
            if hit.amount and hit.spec.kind != "flag":
                parts.setdefault(hit.view.path, {})[name] = part_of(
                    hit.spec, hit.state, state, hit.amount, amounts, record.incarnation(name), now
                )
        charged = [view for view in views if view.path in parts]
        if any(len(record_of(view).holds) >= self.max_holds for view in charged):
            untouched, _, _ = decide(views, amounts, now, op, dry_run=True)
            return replace(untouched, allowed=False, code="RATE_LIMITED")
        after = [
            hit.spec.held(state, parts[hit.view.path][hit.spec.name].shares)
            if isinstance(hit.spec, PoolSpec) and hit.amount
            else state
            for hit, state in zip(hits, after, strict=True)
        ]
        for view in charged:
            hold = Hold(now + ttl_ms, amounts, dict.fromkeys(amounts, 0), parts[view.path])
            record_of(view).holds[hold_id] = hold
        self._write(views, hits, after, now)
        self._remember(path, op, request, decision, now, amounts)
        return decision

    def commit(
        self,
        subject: Subject,
        hold_id: str,
        actual: Mapping[str, int] | None = None,
        *,
        known: Amounts | None = None,
        now_ms: int | None = None,
    ) -> ODecision:
        """`actual`: what was used, by cost name; names missing there are as held.

        `known`: what the caller knows to be held: charged as such even if the hold is over.
        """
        path, given = path_of(subject), None if actual is None else amounts_of(actual, 1)
        check_op(hold_id)
        now = self._now(path, now_ms)
        said = given
        if known is not None:
            given = {**known, **(given or {})}
            said = None if given == known else said
        request = ("commit", path, None if said is None else sorted(said.items()))
        views = self.levels.views(path, None, now)
        mine = with_hold(views, hold_id)
        if not mine:
            if (before := self._same_commit(path, hold_id, given, now)) is not None:
                request = before
            first = self._answered(self.ends, path, hold_id, request, now)
            if first is not None:
                return first
            if given is None:
                raise OpNotFound(hold_id)
        hold = record_of(mine[0]).holds[hold_id] if mine else None
        held = {} if hold is None else hold.held
        used = {**held, **(given or {})}
        more = {cost: max(0, amount - held.get(cost, 0)) for cost, amount in used.items()}
        charges = kept_of(mine, hold_id, used)
        of_it = settle(mine, hold_id, used, now)

        hits, _ = hits_of(views, more, now)
        if hold is None:
            self._reached(subject, views, hits, more)
        for hit in hits:
            if hit.spec.kind == "slots":
                hit.amount = 0
        moved = [hit.spec.report(hit.state, hit.amount, now) for hit in hits]
        check_counters(hits, [state for state, _ in moved])
        fits = [hit.spec.fits(hit.state, hit.amount, now) for hit in hits]
        decision = recorded(hits, moved, fits, more, now, hold_id)
        told = {(limit.subject, limit.name) for limit in decision.limits}
        charges = [charge for charge in charges if (charge.path, charge.name) in told]
        charges += charges_of(hits, [state for state, _ in moved], decision, now)
        for hit, limit in zip(hits, decision.limits, strict=True):
            limit.applied += of_it.get((hit.view.path, hit.spec.name), 0)
        after = [state for state, _ in moved]
        self._write(views, hits, after, now, also=[view.path for view in mine])
        self._end(path, hold_id, request, decision, now, used, charges)
        return decision

    def _same_commit(
        self, path: Path, hold_id: str, given: Mapping[str, int] | None, now: int
    ) -> object:
        """What the commit of just these amounts asked for, if that is how the hold ended."""
        known = self._stored(self.ends, path, hold_id, now)
        if known is None or known.request[:2] != ("commit", path) or known.costs != given:
            return None
        return known.request

    def release(self, subject: Subject, hold_id: str, now_ms: int | None = None) -> None:
        """Gives everything back. Of a hold that is not open: nothing."""
        path = path_of(subject)
        check_op(hold_id)
        now = self._now(path, now_ms)
        request = ("release", path)
        views = self.levels.views(path, None, now)
        mine = with_hold(views, hold_id)
        if not mine:
            self._answered(self.ends, path, hold_id, request, now)
            return
        settle(mine, hold_id, {}, now)
        self._store(mine, now)
        self._end(path, hold_id, request, ODecision(True, "OK", None), now)

    def renew(self, subject: Subject, hold_id: str, ttl_ms: int, now_ms: int | None = None) -> None:
        """The hold expires `ttl_ms` from now instead."""
        check_ttl(ttl_ms)
        path = path_of(subject)
        check_op(hold_id)
        now = self._now(path, now_ms)
        mine = self._open(path, hold_id, now)
        for view in mine:
            holds = record_of(view).holds
            holds[hold_id] = replace(holds[hold_id], expires=now + ttl_ms)
        self._store(mine, now)

    def tally(
        self,
        subject: Subject,
        hold_id: str,
        amounts: Amounts,
        *,
        ttl_ms: int | None = None,
        now_ms: int | None = None,
    ) -> None:
        """What is known to be spent by now, in all; it stays when the hold expires."""
        path, spent = path_of(subject), amounts_of(amounts, 1)
        check_op(hold_id)
        if ttl_ms is not None:
            check_ttl(ttl_ms)
        now = self._now(path, now_ms)
        mine = self._open(path, hold_id, now)
        for view in mine:
            hold = record_of(view).holds[hold_id]
            if any(amount > hold.held.get(cost, -1) for cost, amount in spent.items()):
                raise PolicyError(f"{spent} is more than {hold.held}")
        for view in mine:
            holds = record_of(view).holds
            hold = holds[hold_id]
            most = {cost: max(old, spent.get(cost, 0)) for cost, old in hold.tallied.items()}
            expires = hold.expires if ttl_ms is None else now + ttl_ms
            holds[hold_id] = replace(hold, tallied=most, expires=expires)
        self._store(mine, now)

    def _open(self, path: Path, hold_id: str, now: int) -> list[View]:
        mine = with_hold(self.levels.views(path, None, now), hold_id)
        if not mine:
            raise OpNotFound(hold_id)
        return mine

    def _store(self, views: list[View], now: int) -> None:
        none: list[Hit] = []
        self._write(views, none, [], now, root=False, also=[view.path for view in views])

    def _end(
        self,
        path: Path,
        hold_id: str,
        request: object,
        answer: ODecision,
        now: int,
        costs: Amounts | None = None,
        charges: Iterable[Charge] = (),
    ) -> None:
        until = now + self.op_retention_ms
        known = Stored(request, answer, now, until, dict(costs or {}), list(charges))
        self.ends.setdefault(path[0], {})[hold_id] = known


def check_ttl(ttl_ms: int) -> None:
    if not 1 <= ttl_ms <= 366 * DAY_MS:
        raise PolicyError(f"ttl: {ttl_ms} ms")


def record_of(view: View) -> Record:
    assert view.record is not None
    return view.record


def with_hold(views: list[View], hold_id: str) -> list[View]:
    """The levels where the hold is open."""
    return [view for view in views if view.record is not None and hold_id in view.record.holds]


def kept_of(views: list[View], hold_id: str, used: Amounts) -> list[Charge]:
    """What a commit keeps of what the hold charged, where there is such a limit now. Not slots."""
    found = []
    for view in views:
        record = record_of(view)
        hold = record.holds[hold_id]
        settled = {cost: min(used.get(cost, 0), amount) for cost, amount in hold.held.items()}
        for name, part in hold.parts.items():
            units = part.of(settled)
            if units and type(record.specs.get(name)) is part.of_spec is not SlotsSpec:
                kept = part.first(units)
                found.append(Charge(view.path, name, kept, settled=True, resets_at_ms=None))
    return found


def settle(views: list[View], hold_id: str, used: Amounts, now: int) -> dict[tuple[Path, str], int]:
    """Ends the hold in copies of its records. Returns what was used of it, by level and limit."""
    of_it: dict[tuple[Path, str], int] = {}
    for view in views:
        view.record = copy_of(record_of(view))
        hold = view.record.holds[hold_id]
        settled = {cost: min(used.get(cost, 0), amount) for cost, amount in hold.held.items()}
        for name, part in hold.parts.items():
            if type(view.record.specs.get(name)) is part.of_spec:
                of_it[view.path, name] = part.of(settled)
        end_hold(view.record, hold_id, settled, now)
    return of_it
