"""Operations that were: looking one up by its id, and giving one back as a whole, once.

What an operation charged to a limit is a list of *parts*, as those of a hold. Where it charged at
the instant it ran, it is by that instant that the running period or window is known to be the one.
Limits are matched by name and kind, whatever became of their plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.oracle import telling
from tests.oracle.buckets import FixedSpec, SlidingSpec, TokenSpec
from tests.oracle.core import Charge, Stored
from tests.oracle.decide import AUTO, Hit, ODecision, hits_of, recorded
from tests.oracle.errors import OpNotFound, PolicyError
from tests.oracle.granting import Granting
from tests.oracle.grants import Share
from tests.oracle.holds import given_back
from tests.oracle.limits import PoolSpec
from tests.oracle.records import Record, copy_of
from tests.oracle.requests import Path, Subject, check_op, path_of


@dataclass(slots=True)
class OOperation:
    """What is known of an operation id. `decision`, `refund`: None where there is none."""

    verb: str
    subject: Path
    costs: dict[str, int]
    decision: ODecision | None
    at_ms: int
    expires_ms: int
    refund: ODecision | None


class Past(Granting):
    """operation, refund_of."""

    def operation(self, subject: Subject, op: str, *, now_ms: int | None = None) -> OOperation:
        path = path_of(subject)
        check_op(op)
        known = self._past(path, op, self._now(path, now_ms))
        verb = known.request[0].partition(" ")[0]
        decision = None
        if verb not in ("subscribe", "grant", "release"):
            decision = replace(known.answer, replayed=True)
        refund = known.refund and replace(known.refund, replayed=True)
        path = known.request[1]
        costs = {cost: amount for cost, amount in known.costs.items() if cost != AUTO}
        return OOperation(verb, path, costs, decision, known.at, known.until, refund)

    def refund_of(
        self, subject: Subject, of: str, *, op: str | None = None, now_ms: int | None = None
    ) -> ODecision:
        """Later calls are answered as the first one was."""
        path = path_of(subject)
        check_op(of)
        now = self._now(path, now_ms)
        request = ("refund of", path, of)
        if (first := self._replayed(path, op, request, now)) is not None:
            return first
        known = self._past(path, of, now)
        if known.request[0] not in ("consume", "report", "commit") or known.request[1] != path:
            raise PolicyError(of)
        if known.refund is not None:
            return replace(known.refund, replayed=True, op=op)
        back = Back(known, now)
        views = self.levels.views(path, None, now)
        for view in views:
            if view.record is not None:
                view.record = copy_of(view.record)
                back.to_grants(view.path, view.record)
        hits = [hit for view in views for hit in back.limits(view)]
        moved = [back.to_limit(hit) for hit in hits]
        decision = recorded(hits, moved, [True] * len(hits), known.costs, now, op)
        after = [state for state, _ in moved]
        self._write(views, hits, after, now, root=False, also=back.moved, charged=False)
        known.refund = replace(decision, op=None)
        self._remember(path, op, request, decision, now, known.costs)
        return decision

    def _past(self, path: Path, op: str, now: int) -> Stored:
        """What is stored under the id; of a hold, rather how it was ended than how it was made."""
        made = self._stored(self.operations, path, op, now)
        ended = self._stored(self.ends, path, op, now)
        if ended is not None and (made is None or made.request[0] == "reserve"):
            return ended
        if made is None:
            raise OpNotFound(op)
        return made


class Back:
    """What one operation charged comes back. `moved`: levels where grants got something."""

    def __init__(self, known: Stored, now: int) -> None:
        self.known, self.now = known, now
        self.at = min(known.at, now)
        self.shares: dict[int, tuple[Share, ...]] = {}
        self.moved: set[Path] = set()

    def to_grants(self, path: Path, record: Record) -> None:
        """What came from grants goes back there; `shares` become what did, by charge.

        Of one that has left the books nobody knows what it got back before.
        """
        for number, charge in enumerate(self.known.charges):
            if charge.path != path or charge.part.of_spec is not PoolSpec:
                continue
            left = []
            for source, units in charge.part.shares:
                back = units
                if source in record.grants:
                    grant, back = record.grants[source].refunded(units, self.now)
                    record.grants[source] = grant
                if source is not None and back:
                    self.moved.add(path)
                    if isinstance(record.specs.get(charge.name), PoolSpec):
                        telling.bring(record, charge.name, self.now)
                left.append((source, back))
            self.shares[number] = tuple(left)

    def limits(self, view: Any) -> list[Hit]:
        """What its costs reach now, and what else it charged that is still there."""
        record = view.record
        if record is None:
            return []
        hits, _ = hits_of([view], dict.fromkeys(self.known.costs, 0), self.now)
        names = {hit.spec.name for hit in hits}
        for charge in self.known.charges:
            spec = record.specs.get(charge.name)
            if charge.path != view.path or type(spec) is not charge.part.of_spec:
                continue
            if charge.name not in names:
                names.add(charge.name)
                hits.append(Hit(view, spec, record.state(charge.name, self.now), 0))
        return hits

    def to_limit(self, hit: Hit) -> tuple[Any, int]:
        """The limit's state after that, and what came back to it and its grants."""
        state, back = hit.state, 0
        for number, charge in enumerate(self.known.charges):
            place = (charge.path, charge.name, charge.part.of_spec)
            if place != (hit.view.path, hit.spec.name, type(hit.spec)):
                continue
            part = charge.part
            if isinstance(hit.spec, PoolSpec):
                shares = self.shares[number]
                part = replace(part, shares=shares, charged=part.over + sum(u for _, u in shares))
            before = state
            mark = self.mark(charge, hit.spec, state)
            if mark is not None:
                state = given_back(hit.spec, state, replace(part, mark=mark), 0, self.now)
            back += taken(hit.spec, before) - taken(hit.spec, state)
            back += sum(units for source, units in part.shares if source is not None)
        return state, back

    def mark(self, charge: Charge, spec: Any, state: Any) -> int | None:
        """Of a charge at an earlier instant; None if its period or window is over."""
        if charge.settled:
            return charge.part.mark
        at = self.at
        if isinstance(spec, PoolSpec):
            return state.start if state.open and state.start <= at else None
        if isinstance(spec, FixedSpec):
            running = state.start is not None and state.start <= spec.tick(at)
            return spec.ms(state.start) if running else None
        if isinstance(spec, SlidingSpec):
            window = spec.tick(at) // spec.ticks
            same = spec.ms((window + 1) * spec.ticks) == charge.resets_at_ms
            return window if same else None
        assert isinstance(spec, TokenSpec)
        return at


def taken(spec: Any, state: Any) -> int:
    """Units that a state counts, whatever they weigh; not those that came from grants."""
    if isinstance(spec, PoolSpec):
        return int(state.used + state.over)
    if isinstance(spec, FixedSpec):
        return int(state.taken)
    if isinstance(spec, SlidingSpec):
        return int(state.cur + state.prev)
    return int(state.spent) if isinstance(spec, TokenSpec) else 0
