"""Making grants and voiding them. What a charge takes of them is in `grants`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.oracle.core import DAY_MS
from tests.oracle.errors import OpConflict, OpNotFound, PolicyError
from tests.oracle.grants import Grant, OGrant
from tests.oracle.holding import Holding
from tests.oracle.limits import PoolSpec
from tests.oracle.plans import MAX_AMOUNT
from tests.oracle.records import Record, add_grant, bring_pools, copy_of, drop_grant, rearm
from tests.oracle.requests import Path, Subject, check_op, path_of

MAX_GRANTS, MAX_EMPTY = 64, 32
GRANT_RETENTION_MS = 30 * DAY_MS


def booked(record: Record) -> list[OGrant]:
    """The grants of a settled record, by pool name in burn order."""
    ordered = sorted(record.grants.values(), key=lambda grant: (grant.name, *grant.burn_key()))
    return [grant.shown() for grant in ordered]


class Granting(Holding):
    """grant, void."""

    def grant(
        self,
        subject: Subject,
        name: str,
        amount: int,
        *,
        expires_ms: int | None = None,
        starts_ms: int | None = None,
        priority: int = 50,
        source: str = "",
        op: str | None = None,
        grant_id: str | None = None,
        now_ms: int | None = None,
    ) -> OGrant:
        """The grant's id is `op` where given, else `grant_id`."""
        path = path_of(subject)
        check_grant(name, amount, priority, source)
        grant_id = grant_id if op is None else op
        assert grant_id is not None
        check_op(grant_id)
        now = self._now(path, now_ms)
        request = ("grant", path, name, amount, expires_ms, starts_ms, priority, source)
        if op is not None:
            known: OGrant | None = self._known(self.operations, path, op, request, now)
            if known is not None:
                return known
        self._check_kinds(path[:-1], {name: "pool"}, now_ms)
        starts = now if starts_ms is None else max(now, starts_ms)
        if expires_ms is not None and expires_ms <= starts:
            raise PolicyError("expires is not after now and starts")
        record, plans = self.levels.settable(path, now)
        record = self.levels.converted(record, plans, now)
        if name in record.base and not isinstance(record.base[name], PoolSpec):
            raise PolicyError(f"{name}: the plans include it, and it is no pool")
        if grant_id in record.grants:
            raise OpConflict(grant_id)
        check_room(record, name, amount, now)
        made = Grant(
            grant_id,
            name,
            amount,
            priority,
            starts,
            expires_ms,
            source,
            now,
            left=amount,
        )
        add_grant(record, made, now)
        if made.live(now):
            rearm(record, name, now)
        empty = [grant.id for grant in record.grants.values() if grant.empty]
        for old in empty[: max(0, len(empty) - MAX_EMPTY)]:
            drop_grant(record, old, now)
        self.levels.store(path, record, now, first_sight=False)
        answer = made.shown()
        retention_ms = max(self.op_retention_ms, GRANT_RETENTION_MS)
        self._remember(path, op, request, answer, now, retention_ms=retention_ms)
        return answer

    def _check_kinds(self, above: Path, kinds: Mapping[str, str], now_ms: int | None) -> None:
        """Of a name all limits on a path are of one kind."""
        for view in self.levels.views(above, None, self._now(above, now_ms)) if above else ():
            for name, spec in view.record.specs.items() if view.record else ():
                if kinds.get(name, spec.kind) != spec.kind:
                    raise PolicyError(f"{name}: a {kinds[name]}, and a {spec.kind} of {view.path}")

    def void(self, subject: Subject, grant_id: str, *, now_ms: int | None = None) -> int:
        """Takes what nobody took of the grant. Returns how many units these were."""
        path = path_of(subject)
        check_op(grant_id)
        now = self._now(path, now_ms)
        record = self.levels.view(path, None, now).record
        if record is None or grant_id not in record.grants:
            raise OpNotFound(grant_id)
        record = copy_of(record)
        bring_pools(record, now)
        grant = record.grants[grant_id]
        record.grants[grant_id] = grant.ended()._replace(void=True)
        self.levels.store(path, record, now)
        return grant.left


def check_grant(name: object, amount: Any, priority: Any, source: Any) -> None:
    """The arguments that are right or wrong by themselves."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise PolicyError(f"name: {name!r}")
    if type(amount) is not int or not 1 <= amount <= MAX_AMOUNT:
        raise PolicyError(f"amount: {amount!r}")
    if type(priority) is not int or not 0 <= priority <= 100:
        raise PolicyError(f"priority: {priority!r}")
    if not isinstance(source, str) or len(source.encode()) > 128:
        raise PolicyError(f"source: {source!r}")


def check_room(record: Record, name: str, amount: int, now: int) -> None:
    """The record can take another grant of so many units of that pool."""
    open_ones = [g for g in record.grants.values() if not (g.empty or g.dead(now))]
    if len(open_ones) >= MAX_GRANTS:
        raise PolicyError(f"{len(open_ones)} grants with something left or held")
    unspent = sum(grant.left for grant in open_ones if grant.name == name)
    if unspent + amount > MAX_AMOUNT:
        raise PolicyError(f"{name}: {unspent} unspent, and {amount} more")
