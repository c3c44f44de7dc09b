"""Holds: what was reserved and is not settled yet. Here what they do, without doing any of it.

`Holds` has the flows; `HoldBase` what a hold remembers and the rule by which it is left. How it is
carried out is `meterd.hold` and `meterd.aiohold`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, NamedTuple

from meterd import wire
from meterd.errors import (
    NoPlan,
    NotIncluded,
    OpConflict,
    OpNotFound,
    OutcomeUnknown,
    PolicyError,
    ScriptError,
    Unavailable,
)
from meterd.flow import Flow, Sleep
from meterd.keys import Path, Subject
from meterd.operations import Needs, Operations, decode, new_op
from meterd.policy import MAX_PER_MS
from meterd.result import Code, Decision
from meterd.roles import Joining
from meterd.timespec import Seconds, duration_ms, refuse, seconds, shown

Costs = str | Mapping[str, int]
Actual = int | Mapping[str, int] | None
MAX_TTL_MS = MAX_PER_MS


def ttl_ms(ttl: Seconds) -> int:
    """How long a hold lives, in ms: above 0, at most 366 days; a bare number means seconds."""
    if isinstance(ttl, str | timedelta):
        return duration_ms(ttl, field="ttl", most_ms=MAX_TTL_MS)
    found = round(seconds(ttl, "ttl") * 1000)
    if not 1 <= found <= MAX_TTL_MS:
        raise refuse("ttl", ttl, f"a number of seconds, 0.001 to {MAX_TTL_MS // 1000}")
    return found


class Reserved(NamedTuple):
    """What came of a reserve: the hold, if the decision allows it, and what it holds."""

    decision: Decision
    hold_id: str
    path: Path
    costs: wire.Costs


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
    ) -> Flow[Reserved]:
        """Charges as `consume` does, and remembers what: until it is settled, or `ttl` is over."""
        operations = self._operations
        path = operations.keys.path(subject)
        packed = wire.encode_costs(costs, amount)
        lives_ms = ttl_ms(ttl)
        op_id = None if op is None or op is False else new_op() if op is True else wire.check_op(op)
        hold_id = op_id or new_op()
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
            decision = decode(reply, path, op_id)
            if decision.code is Code.NO_PLAN:
                role.complain()
            pause = decision.retry_after
            if decision.allowed or pause is None or time.monotonic() + pause > waited_until:
                return Reserved(decision, hold_id, path, packed)
            yield Sleep(pause)

    def commit(self, path: Path, hold_id: str, costs: wire.Costs | None) -> Flow[Decision]:
        """Settles a hold by what was used; None: by what it holds, if it is still open.

        What is committed of a hold that is over is charged as `report` does.
        """
        request = wire.digest("commit", path.keys, None if costs is None else _pairs(costs))
        names, amounts = (b"", b"") if costs is None else (costs.joined, costs.amounts)
        reply = yield from self._end("commit", path, hold_id, request, [names, amounts])
        if reply[0] == wire.UNKNOWN:
            raise OpNotFound(
                f"commit: no open hold {hold_id!r}: it is over, or never was; give the amounts "
                "that were used to have them charged"
            )
        decision = decode(reply, path, hold_id)
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
        operations = self._operations
        role = Joining(operations.store, None)
        deadline = yield from operations.store.prepare()
        reply = yield from operations.settle(
            entry,
            path,
            path.keys,
            lambda needs: [
                operations.now_argument(),
                role.context(),
                *middle,
                needs.packed(),
                hold_id.encode(),
                ttl,
            ],
            role,
            deadline=deadline,
            harmless=True,
            holds=_levels(path),
        )
        if reply[0] == wire.UNKNOWN:
            raise OpNotFound(f"{entry}: no open hold {hold_id!r}: it is over, or never was")
        if reply[0] != wire.DONE:
            raise ScriptError(f"{entry}: unexpected reply {reply[:40]!r}")


def _levels(path: Path) -> range:
    return range(1, len(path.keys) + 1)


def _pairs(costs: wire.Costs) -> list[tuple[str, int]]:
    return sorted(zip(costs.names, costs.values, strict=True))


# What a hold remembers ---------------------------------------------------------------------------

Way = Literal["commit", "release"]


class HoldBase:
    """What a hold knows: its decision, its id, what it holds, what was tallied, how it ended.

    True if something is held: `hold.decision` says why not.
    """

    def __init__(self, subject: Subject, hold_id: str, path: Path) -> None:
        self.id = hold_id
        self.subject = subject
        self._path = path
        self._decision: Decision | None = None
        self._held: dict[str, int] | None = None  # None: reserved elsewhere
        self._tally: dict[str, int] = {}
        self._ttl_ms = 0
        self._lock = threading.Lock()
        self._ended: Way | None = None  # set when that was begun, whether or not it worked

    def _began(self, reserved: Reserved, lives_ms: int) -> None:
        self._decision = reserved.decision
        self._held = dict(zip(reserved.costs.names, reserved.costs.values, strict=True))
        self._ttl_ms = lives_ms

    @property
    def decision(self) -> Decision:
        """The answer to the reserve, with every limit it reached."""
        if self._decision is None:
            raise PolicyError(f"hold {self.id!r}: its decision is with whoever reserved it")
        return self._decision

    def __bool__(self) -> bool:
        return self._decision is None or self._decision.allowed

    def __repr__(self) -> str:
        if self._ended:
            state = {"commit": "committed", "release": "released"}[self._ended]
        else:
            state = "held" if self else "refused"
        return f"<{type(self).__name__} {self.id!r} of {self.subject!r}, {state}>"

    def spend(self, costs: Costs, amount: int = 1) -> None:
        """Adds to what was used so far; no I/O. Leaving, or `commit()`, commits the sum.

        Costs that are not held may be named: they are charged as `report` does.
        """
        self._refuse_refused()
        if self._ended:
            raise PolicyError(f"spend: hold {self.id!r} was finished already ({self._ended})")
        packed = wire.encode_costs(costs, amount)
        with self._lock:
            sums = {
                name: wire.check_amount(self._tally.get(name, 0) + value, f"sum of {name!r}")
                for name, value in zip(packed.names, packed.values, strict=True)
            }
            self._tally.update(sums)

    @property
    def spent(self) -> dict[str, int]:
        """What was tallied so far, by cost name."""
        with self._lock:
            return dict(self._tally)

    def _refuse_refused(self) -> None:
        if self._decision is not None:
            self._decision.raise_if_refused()

    @property
    def _degraded(self) -> bool:
        """Allowed without the server: nothing is held there, so there is nothing to settle."""
        return self._decision is not None and self._decision.degraded

    @property
    def _lasting(self) -> bool:
        """Whether the server holds something that can be renewed."""
        if self._decision is None:
            return True
        charged = (state.applied for state in self._decision.limits if state.kind != "flag")
        return self._decision.allowed and not self._degraded and any(charged)

    def _settlement(self, actual: Actual) -> wire.Costs | None:
        """What a commit sends. None: all as held, where only the server knows what that is.

        In the process that reserved it is spelt out: so it is charged even if the hold is over.
        """
        self._refuse_refused()
        given: Mapping[str, int]
        if actual is None:
            given = self.spent
        elif isinstance(actual, Mapping):
            if not actual:
                raise PolicyError("actual: an empty mapping; give None to commit what was held")
            given = actual
        elif self._held is not None and len(self._held) == 1:
            given = {name: wire.check_amount(actual, "actual") for name in self._held}
        elif self._held is None:
            raise PolicyError(
                f"actual: {shown(actual)} does not say of what: this process did not reserve hold "
                f"{self.id!r}; allowed: a mapping of cost names to amounts, or None"
            )
        else:
            listed = ", ".join(self._held)
            raise PolicyError(
                f"actual: {shown(actual)} does not say of what: the hold is of {listed}; "
                "allowed: a mapping of cost names to amounts, or None"
            )
        whole = {**(self._held or {}), **given}
        return wire.encode_costs(whole) if whole else None

    def _leaving(self, *, failed: bool) -> Way | None:
        """How a `with` block ends its hold; None: it was ended already, or tried to be."""
        if self._ended or not self:
            return None
        return "release" if failed and not self.spent else "commit"


def note_failure(failure: BaseException, way: Way, hold: HoldBase, error: BaseException) -> str:
    """Says on an exception that leaves a block that its hold could not be ended either."""
    text = f"meterd: {way} of hold {hold.id!r} failed too: {type(error).__name__}: {error}"
    failure.add_note(text)
    return text
