"""Which plans a subject has, as flows: giving and taking them, now or at an instant to come.

A change that is to come stands in the record until somebody looks at that after its instant; it
then counts from that very instant on (see `meterd.needs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgpack

from meterd import policy_checks as checks
from meterd import wire
from meterd.catalog import definition_hash
from meterd.compile import private_plan
from meterd.errors import PolicyError
from meterd.flow import Flow
from meterd.keys import Subject, leaf
from meterd.kinds import Kinds
from meterd.operations import Operations, new_op
from meterd.policy import Limit, Plan
from meterd.roles import Moving, NotHeld, pool_names
from meterd.timespec import Instant, datetime_ms, instant_ms, refuse

_CHANGES = ("keep", "reset", "prorate")


class Subscriptions:
    """Built on the operations of one meter."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.store = operations.store
        self.keys = operations.keys
        self._kinds = Kinds(operations)

    def subscribe(
        self,
        subject: Subject,
        plan: str | None,
        limits: Sequence[Limit],
        change: str,
        when: Instant,
        anchor: Instant | None,
        op: str | bool | None,
    ) -> Flow[None]:
        """Gives a subject another plan of its group."""
        path = self.keys.path(subject)
        if change not in _CHANGES:
            raise refuse("change", change, '"keep", "reset" or "prorate"')
        at = self._when(when)
        anchor_ms = None
        if anchor is not None:
            anchor_ms = instant_ms(anchor, self.operations.now_ms(), "anchor")
        own = not isinstance(limits, Sequence) or len(limits) > 0
        deadline = yield from self.store.prepare()
        if own:
            yield from self.store.check_pools(self._private(plan, limits).includes)

        def retired() -> bool:
            return not own and isinstance(plan, str) and self.store.retired(plan)

        def wanted() -> Plan:  # by the catalog as it is then
            if plan is not None and retired():
                return self.store.catalog.plans[plan]
            return self._private(plan, limits) if own else self._listed(plan)

        def changed(plans: list[Plan]) -> list[Plan]:
            new = wanted()
            if retired() and new.id not in [held.id for held in plans]:
                raise NotHeld(new.id)
            return [kept for kept in plans if kept.group != new.group] + [new]

        role = Moving(
            self.store,
            root=len(path.keys) == 1,
            unseen=lambda: None if retired() else [wanted()],
            change=changed,
            group=lambda: wanted().group,
            later=at != b"",
        )
        keys: list[bytes] = [path.keys[-1]]
        above = path.keys[:-1]
        op_id, op_argument = None, b""
        if op is not None and op is not False:
            op_id = new_op() if op is True else wire.check_op(op)
            keys.append(self.keys.op(path, op_id))
            given = [_as_given(anchor), _as_given(when)]
            definition = definition_hash(wanted()) if own else None
            request = wire.digest("subscribe", path.keys, plan, definition, change, given)
            op_argument = wire.op_argument(request, self.operations.op_retention_ms)
        start = b"" if anchor_ms is None else b"%d" % anchor_ms
        new = wanted()
        kinds = {limit.name: limit.kind for limit in new.includes}
        yield from self._kinds.check(path, kinds, f"plan {new.id!r}", "subscribe", op_id)

        def arguments(packed: bytes) -> list[bytes]:
            new = wanted()
            return [
                self.operations.now_argument(),
                role.context(),
                change.encode(),
                start,
                pool_names([new]).encode(),
                op_argument,
                packed,
                at,
                new.group.encode(),
                new.id.encode(),
                definition_hash(new) if own else b"",
                role.also.name if role.also else b"",
                _leaving(role),
            ]

        try:
            yield from self.operations.settle(
                "subscribe",
                leaf(path),
                [*keys, *above],
                lambda needs: arguments(needs.packed()),
                role,
                deadline=deadline,
                op=op_id,
                harmless=change != "reset",  # a second "reset" would close a second period
            )
        except (NotHeld, PolicyError):
            if retired():  # that a subject is unseen, only the script knows
                self.store.catalog.plan(plan or "")  # says so
            raise

    def _listed(self, plan: str | None) -> Plan:
        if plan is None:
            raise PolicyError("subscribe: name a plan of the catalog, or give limits=[...]")
        return self.store.catalog.plan(plan)

    def _private(self, plan: str | None, limits: Sequence[Limit]) -> Plan:
        name = "private" if plan is None else checks.name(plan, "subscribe: plan: id")
        if name in self.store.catalog.plans:
            raise PolicyError(
                f"subscribe: plan {name!r} is in the catalog; a private plan (limits=) needs "
                "a name of its own"
            )
        return private_plan(name, limits)

    def unsubscribe(self, subject: Subject, plan: str, when: Instant) -> Flow[None]:
        """Takes a plan away; its group falls back to the default, if there is one."""
        path = self.keys.path(subject)
        at = self._when(when)
        if not isinstance(plan, str) or not plan:
            raise refuse("unsubscribe: plan", plan, "the id of a plan that the subject holds")
        deadline = yield from self.store.prepare()
        known = plan in self.store.catalog.plans
        group = ""

        def changed(plans: list[Plan]) -> list[Plan]:
            nonlocal known, group
            held = [other for other in plans if other.id == plan]
            if not held:
                raise NotHeld(", ".join(sorted(other.id for other in plans)) or "no plan")
            known = True  # if it is gone when asked again, an answer that was lost took it away
            group = held[0].group
            return [other for other in plans if other.id != plan]

        role = Moving(
            self.store,
            root=len(path.keys) == 1,
            unseen=list,
            change=changed,
            group=lambda: group,
            later=at != b"",
        )
        shown = "no plan"
        try:
            reply = yield from self.operations.settle(
                "unsubscribe",
                leaf(path),
                path.keys[::-1],
                lambda needs: [
                    self.operations.now_argument(),
                    role.context(),
                    needs.packed(),
                    at,
                    group.encode(),
                    _leaving(role),
                ],
                role,
                deadline=deadline,
                harmless=True,
            )
            if known or reply[0] == wire.DONE:
                return
        except NotHeld as error:
            shown = str(error)
        if not known:
            raise PolicyError(
                f"unsubscribe: {subject!r} does not hold plan {plan!r}; it holds: {shown}"
            )

    def _when(self, when: Instant) -> bytes:
        """Empty for now, else what the scripts take."""
        if isinstance(when, str) and when in ("now", "period_end"):
            return b"" if when == "now" else b"period_end"
        try:
            return b"%d" % instant_ms(when, self.operations.now_ms(), "when")
        except PolicyError as error:
            if isinstance(when, str):
                allowed = '"now", "period_end", an aware datetime, or a duration such as "30d"'
                raise refuse("when", when, allowed) from error
            raise


def _as_given(instant: Instant | None) -> object:
    """A duration from now is the same request however much later that is repeated."""
    return datetime_ms(instant, field="at") if isinstance(instant, datetime) else str(instant)


def _leaving(role: Moving) -> bytes:
    packed: bytes = msgpack.packb(role.leaving, use_bin_type=False) if role.leaving else b""
    return packed
