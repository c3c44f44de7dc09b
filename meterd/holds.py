"""Holds: what was reserved and is not settled yet. Here what they do, without doing any of it.

These are flows: what is asked of the server. What a hold remembers is in `meterd.holdbase`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from meterd import wire
from meterd.errors import (
    NoPlan,
    NotIncluded,
    OpConflict,
    OpNotFound,
    OutcomeUnknown,
    ScriptError,
    Unavailable,
)
from meterd.flow import Flow, Sleep
from meterd.keys import Path, Subject
from meterd.needs import Needs
from meterd.operations import Operations, decode, new_op
from meterd.policy import MAX_PER_MS
from meterd.result import Code, Decision
from meterd.roles import Joining
from meterd.timespec import Seconds, duration_ms, refuse, seconds

Costs = str | Mapping[str, int]
MAX_TTL_MS = MAX_PER_MS


def ttl_ms(ttl: Seconds) -> int:
    """How long a hold lives, in ms: above 0, at most 366 days; a bare number means seconds."""
    if isinstance(ttl, str | timedelta):
        return duration_ms(ttl, field="ttl", most_ms=MAX_TTL_MS)
    most = MAX_TTL_MS // 1000
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0.001 <= ttl <= most:
        allowed = f'seconds as a number from 0.001 to {most}, or a duration such as "10s"'
        raise refuse("ttl", ttl, allowed)
    return round(ttl * 1000)


class Reserved(NamedTuple):
    """What came of a reserve: the hold, if the decision allows it, and what it holds."""

    decision: Decision
    hold_id: str
    path: Path
    costs: wire.Costs
    now_ms: int = 0  # the server's, of its answer


class Holds:
    """The flows of one meter's holds."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def reserve(
        self,
        subject: Subject,
        costs: Costs,
        amount: int,
        ttl: Seconds,
        op: str | bool | None,
        join: str | None,
        wait: Seconds,
        *,
        hold_id: str | None = None,
    ) -> Flow[Reserved]:
        """Charges as `consume` does, and remembers what: until it is settled, or `ttl` is over.

        `hold_id`: a new one, where the caller has to know it even if the answer is lost.
        """
        operations = self._operations
        path = operations.keys.path(subject)
        packed = wire.encode_costs(costs, amount)
        lives_ms = ttl_ms(ttl)
        op_id = None if op is None or op is False else new_op() if op is True else wire.check_op(op)
        hold_id = op_id or hold_id or new_op()
        patience = seconds(wait, "wait", allow_zero=True) if wait != 0 else 0.0
        role = Joining(operations.store, join)
        keys, op_argument = path.keys, b""
        if op_id is not None:
            keys = (*keys, operations.keys.op(path, op_id))
            request = wire.digest("reserve", path.keys, _pairs(packed), lives_ms)
            op_argument = wire.op_argument(request, operations.op_retention_ms)

        def arguments(needs: Needs) -> list[bytes]:
            return [
                operations.now_argument(),
                role.context(),
                packed.joined,
                packed.amounts,
                op_argument,
                needs.packed(),
                hold_id.encode(),
                b"%d" % lives_ms,
            ]

        waited_until = time.monotonic() + patience
        while True:
            try:
                deadline = yield from operations.store.prepare()
                reply = yield from operations.settle(
                    "reserve",
                    path,
                    keys,
                    arguments,
                    role,
                    deadline=deadline,
                    op=op_id,
                    holds=_levels(path),
                )
            except Unavailable:
                fallback = role.degraded(packed)
                if fallback is None:
                    raise
                return Reserved(fallback, hold_id, path, packed)
            except OutcomeUnknown as error:
                if op_id is not None:
                    raise
                raise OutcomeUnknown(
                    f"{error}; if it was, it is hold {hold_id!r}, which ends by itself with its ttl"
                ) from error.__cause__
            decision = decode(reply, path, op_id, behind=True)
            if decision.code is Code.NO_PLAN:
                role.complain()
            pause = decision.retry_after
            if decision.allowed or pause is None or time.monotonic() + pause > waited_until:
                return Reserved(decision, hold_id, path, packed, wire.answered_at(reply))
            yield Sleep(pause)

    def commit(
        self,
        path: Path,
        hold_id: str,
        costs: wire.Costs | None,
        held: Mapping[str, int] | None = None,
    ) -> Flow[Decision]:
        """Settles a hold by what was used; None: by what it holds, if it is still open.

        What is committed of a hold that is over is charged as `report` does. `held`: what is known
        to be held, spelt out where `costs` do not name it, so that it is charged even then.
        """
        said = None if costs is None else _pairs(costs)
        if held is not None:
            given = {} if costs is None else dict(zip(costs.names, costs.values, strict=True))
            costs = wire.encode_costs({**held, **given})
            if {**held, **given} == held:  # as held, which is what another process would say
                said = None
        request = wire.digest("commit", path.keys, said)
        names, amounts = (b"", b"") if costs is None else (costs.joined, costs.amounts)
        reply = yield from self._end("commit", path, hold_id, request, [names, amounts])
        if reply[0] == wire.UNKNOWN:
            raise OpNotFound(
                f"commit: no open hold {hold_id!r}: it is over, or never was; give the amounts "
                "that were used to have them charged"
            )
        decision = decode(reply, path, hold_id, behind=True)
        if not decision.allowed:
            refusal = NoPlan if decision.code is Code.NO_PLAN else NotIncluded
            raise refusal(f"commit: nothing was recorded: {decision.code}", decision)
        return decision

    def release(self, path: Path, hold_id: str) -> Flow[None]:
        """Gives back all that a hold holds; one that is over holds nothing."""
        request = wire.digest("release", path.keys)
        reply = yield from self._end("release", path, hold_id, request, [])
        if reply[0] not in (wire.DONE, wire.REPLAYED):
            raise ScriptError(f"release: unexpected reply {reply[:40]!r}")

    def finish(self, path: Path, hold_id: str, costs: wire.Costs) -> Flow[bool]:
        """As commit, but of a hold that is over nothing is charged: False. Keeps no record.

        Saying it again is safe: by then the hold is over.
        """
        middle = [costs.joined, costs.amounts, b""]
        reply = yield from self._change("commit", path, hold_id, middle)
        return reply[0] != wire.UNKNOWN

    def _end(
        self, entry: str, path: Path, hold_id: str, request: bytes, middle: list[bytes]
    ) -> Flow[bytes]:
        """Ends a hold, once: repeating it is safe, for it is kept how a hold was ended."""
        operations = self._operations
        role = Joining(operations.store, None)
        op_argument = wire.op_argument(request, operations.op_retention_ms)
        deadline = yield from operations.store.prepare()
        try:
            return (
                yield from operations.settle(
                    entry,
                    path,
                    (*path.keys, operations.keys.hold_end(path, hold_id)),
                    lambda needs: [
                        operations.now_argument(),
                        role.context(),
                        *middle,
                        op_argument,
                        needs.packed(),
                        hold_id.encode(),
                    ],
                    role,
                    deadline=deadline,
                    op=hold_id,
                    harmless=True,
                    holds=_levels(path),
                )
            )
        except OpConflict:
            raise OpConflict(
                f"{entry}: hold {hold_id!r} was already released, or committed with other amounts; "
                "nothing was applied"
            ) from None
        except OutcomeUnknown as error:
            raise OutcomeUnknown(
                f"{entry}: sent, but the answer was lost: {error.__cause__}; saying the same of "
                f"hold {hold_id!r} again is safe",
                hold_id,
            ) from error.__cause__

    def renew(self, path: Path, hold_id: str, ttl_ms: int) -> Flow[None]:
        """A hold ends `ttl_ms` from now."""
        yield from self._touch("renew", path, hold_id, [], b"%d" % ttl_ms)

    def tally(self, path: Path, hold_id: str, costs: wire.Costs, ttl_ms: int | None) -> Flow[None]:
        """Says how much of a hold was used so far, in all; that is not given back when it ends.

        `ttl_ms`: renew it as well.
        """
        ttl = b"" if ttl_ms is None else b"%d" % ttl_ms
        yield from self._touch("tally", path, hold_id, [costs.joined, costs.amounts], ttl)

    def _touch(
        self, entry: str, path: Path, hold_id: str, middle: list[bytes], ttl: bytes
    ) -> Flow[None]:
        reply = yield from self._change(entry, path, hold_id, middle, ttl)
        if reply[0] == wire.UNKNOWN:
            raise OpNotFound(f"{entry}: no open hold {hold_id!r}: it is over, or never was")
        if reply[0] != wire.DONE:
            raise ScriptError(f"{entry}: unexpected reply {reply[:40]!r}")

    def _change(
        self, entry: str, path: Path, hold_id: str, middle: list[bytes], *behind: bytes
    ) -> Flow[bytes]:
        operations = self._operations
        role = Joining(operations.store, None)
        deadline = yield from operations.store.prepare()
        return (
            yield from operations.settle(
                entry,
                path,
                path.keys,
                lambda needs: [
                    operations.now_argument(),
                    role.context(),
                    *middle,
                    needs.packed(),
                    hold_id.encode(),
                    *behind,
                ],
                role,
                deadline=deadline,
                harmless=True,
                holds=_levels(path),
            )
        )


def _levels(path: Path) -> range:
    return range(1, len(path.keys) + 1)


def _pairs(costs: wire.Costs) -> list[tuple[str, int]]:
    return sorted(zip(costs.names, costs.values, strict=True))
