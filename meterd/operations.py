"""Every operation as a flow: arguments checked, packed, sent, brought what they lack, decoded.

A script that cannot decide writes nothing and says what it needs (a policy's bytes, a record's move
to the current catalog, zones written out further); the call is then repeated with it.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meterd import wire
from meterd.errors import (
    NoPlan,
    NotIncluded,
    OpConflict,
    ScriptError,
    Unavailable,
)
from meterd.flow import Flow, Sleep
from meterd.keys import Keyspace, Path, Subject
from meterd.needs import Needs, due_steps
from meterd.result import Code, Decision
from meterd.roles import Joining, Moving, NotHeld, Pinned
from meterd.scripts import READ_ONLY
from meterd.session import NOTHING, HorizonNeeded, Session, outcome_unknown
from meterd.shapes import Shape
from meterd.store import Store
from meterd.timespec import Seconds, seconds
from meterd.transport import MaybeSent

_ROUNDS = 12  # how often a script may ask for something before we believe that it never ends
_HINTS = 8192

Clock = Callable[[], int] | None


class Operations:
    """The verbs of one meter, as flows."""

    def __init__(
        self,
        session: Session,
        store: Store,
        keyspace: Keyspace,
        *,
        clock: Clock,
        op_retention_ms: int,
    ) -> None:
        self.session = session
        self.store = store
        self.keys = keyspace
        self._clock = clock
        self.op_retention_ms = op_retention_ms
        # What a subject's last call had to bring along, so that the next brings it unasked.
        self._insisting: set[tuple[bytes, str | None]] = set()
        self._hints: OrderedDict[tuple[bytes, str | None], tuple[int, Needs]] = OrderedDict()

    @property
    def clock(self) -> Clock:
        """A test clock's ms, if there is one."""
        return self._clock

    def now_argument(self) -> bytes:
        return b"" if self._clock is None else b"%d" % self._clock()

    def now_ms(self) -> int:
        """Now as this process sees it, to turn durations into instants."""
        return int(time.time() * 1000) if self._clock is None else self._clock()

    # The verbs that charge -----------------------------------------------------------------------

    def charge(
        self,
        verb: str,
        subject: Subject,
        costs: str | Mapping[str, int],
        amount: int,
        op: str | bool | None,
        join: str | None,
        wait: Seconds,
        *,
        shared: bool = False,
    ) -> Flow[Decision]:
        """consume, check, report and refund by amount. `shared`: as in `settle`."""
        path = self.keys.path(subject)
        packed = wire.encode_costs(costs, amount)
        role = Joining(self.store, join)
        return (yield from self.decide(verb, path, packed, op, wait, role, shared=shared))

    def decide(
        self,
        verb: str,
        path: Path,
        costs: wire.Costs,
        op: str | bool | None,
        wait: Seconds,
        role: Joining | Pinned,
        *,
        given: Any = NOTHING,
        deadline: float | None = None,
        shared: bool = False,
    ) -> Flow[Decision]:
        """One charge, repeated after `retry_after` while that stays within `wait` seconds.

        `given`: what came of its first request, which was sent already. `shared`: as in `settle`.
        """
        op_id = None if op is None or op is False else new_op() if op is True else wire.check_op(op)
        keys: Sequence[bytes] = path.keys
        op_argument = b""
        if op_id is not None:
            keys = (*path.keys, self.keys.op(path, op_id))
            request = wire.digest(
                verb, path.keys, sorted(zip(costs.names, costs.values, strict=True))
            )
            op_argument = wire.op_argument(request, self.op_retention_ms)

        def arguments(needs: Needs) -> list[bytes]:
            return [
                self.now_argument(),
                role.context(),
                costs.joined,
                costs.amounts,
                op_argument,
                needs.packed(),
            ]

        patience = seconds(wait, "wait", allow_zero=True) if wait != 0 else 0.0
        waited_until = time.monotonic() + patience
        while True:
            try:
                if deadline is None:
                    deadline = self.store.deadline()
                if deadline is None:
                    deadline = yield from self.store.prepare()
                reply = yield from self.settle(
                    verb, path, keys, arguments, role,
                    deadline=deadline, op=op_id, given=given, shared=shared,
                )  # fmt: skip
            except Unavailable:
                fallback = role.degraded(costs) if verb in ("consume", "check") else None
                if fallback is None:
                    raise
                return fallback
            decision = self.decision(verb, path, role, reply, op_id)
            if decision.code is Code.NO_PLAN:
                role.complain()
            if not patience or decision.allowed or decision.retry_after is None:
                break
            pause = decision.retry_after
            if time.monotonic() + pause > waited_until:
                break
            yield Sleep(pause)
            deadline, given = None, NOTHING
        if verb == "report" and not decision.allowed:
            refusal = NoPlan if decision.code is Code.NO_PLAN else NotIncluded
            raise refusal(f"report: nothing was recorded: {decision.code}", decision)
        return decision

    def decision(
        self, verb: str, path: Path, role: Joining | Pinned, reply: bytes, op: str | None
    ) -> Decision:
        """What a reply says; an allowed charge has moved on the records that were behind."""
        hint_key = (path.keys[-1], role.hint)
        behind = self._hinted(hint_key, role).leads_on
        decision = decode(reply, path, op, behind=behind)
        if behind and decision.allowed and verb not in READ_ONLY:
            self._written(hint_key)
        return decision

    def resume(self, shape: Shape, given: Any, deadline: float) -> Flow[Decision]:
        """Goes on where a packed call has led to something else than a plain decision."""
        if isinstance(given, MaybeSent) and shape.verb not in READ_ONLY:
            raise outcome_unknown(shape.verb, None, given) from given
        role = shape.role()
        return (
            yield from self.decide(
                shape.verb,
                shape.path,
                shape.costs,
                None,
                0,
                role,
                given=given,
                deadline=deadline,
                shared=shape.shared,
            )
        )

    # Asking until the script has what it needs ---------------------------------------------------

    def settle(
        self,
        entry: str,
        path: Path,
        keys: Sequence[bytes],
        arguments: Callable[[Needs], list[bytes]],
        role: Joining | Pinned | Moving,
        *,
        deadline: float,
        op: str | None = None,
        harmless: bool = False,
        holds: Iterable[int] = (),
        shared: bool = False,
        given: Any = NOTHING,
    ) -> Flow[bytes]:
        """The reply of a script that is neither "need" nor "stale" nor "holds" nor "due".

        `holds`: levels of `path` whose holds are declared from the start; `shared`: so are the
        partition's keys.
        """
        hint_key = (path.keys[-1], role.hint)
        needs = self._hinted(hint_key, role)
        needs.holds.update(holds)
        needs.shared = shared
        asked = False
        reply: bytes = b""
        for _ in range(_ROUNDS):
            for first in (role.first(), role.also):
                if first is None:
                    continue
                if entry not in READ_ONLY and not self.store.keeps(first):
                    yield from self.store.keep(first)
                if not self.session.functions:
                    needs.policies[first.name] = first.blob
            if entry not in READ_ONLY:
                for name in needs.targets():  # stored before any record names them
                    yield from self.store.keep((yield from self.store.policy(name)))
            if self.store.catalog.revision != role.revision:
                continue  # it changed while this call made things ready for the last one
            needs.start_over(role.revision)
            needs.revision = role.revision
            try:
                first_reply, given = given, NOTHING
                declared = [key for n in sorted(needs.holds) for key in self.keys.holds(path, n)]
                if needs.shared:
                    declared += self.keys.shared(path)
                reply = yield from self.session.call(
                    entry,
                    [*keys, *declared] if declared else keys,
                    arguments(needs),
                    op=op,
                    harmless=harmless,
                    deadline=deadline,
                    given=first_reply,
                )
            except HorizonNeeded as beyond:
                asked = True
                yield from self._lengthen(path, beyond, role, needs)
                continue
            if not isinstance(reply, bytes) or not reply:
                raise ScriptError(f"{entry}: unexpected reply {reply!r}")
            status = reply[0]
            if status == wire.NEED:
                for name in wire.decode_need(reply):
                    policy = yield from self.store.policy(name)
                    needs.policies[name] = policy.blob
            elif status == wire.STALE:
                yield from self._catch_up(wire.decode_stale(reply), role, needs)
            elif status == wire.DUE:
                yield from self._catch_up(wire.decode_due(reply), role, needs)
            elif status == wire.HOLDS:
                needs.ask(reply[1:])  # of this moment: nothing for the next call
                continue
            elif status == wire.CONFLICT:
                raise OpConflict(
                    f"{entry}: operation id {op!r} was already used for a different request; "
                    "nothing was applied"
                )
            else:
                if asked:
                    self._remember(hint_key, needs)
                return reply
            asked = True
            if status == wire.NEED and self.session.functions:
                asked = needs.leads_on  # the server keeps policies by itself
        raise ScriptError(f"{entry}: the script kept asking; last reply {reply[:40]!r}")

    def _catch_up(
        self,
        rows: Sequence[wire.Stale | wire.Due],
        role: Joining | Pinned | Moving,
        needs: Needs,
    ) -> Flow[None]:
        if max(row.revision for row in rows) > self.store.catalog.revision:
            yield from self.store.refresh()
        revision = self.store.catalog.revision
        needs.start_over(revision)
        for row in rows:
            if isinstance(row, wire.Due):
                root = role.root and row.level == 1
                made = yield from due_steps(self.store, row, root=root)
                needs.steps.update(made)
                named = [row.policy, *(to for _, to, _ in made.values())]
            else:
                target = yield from role.target(row)
                needs.moves[row.level, row.policy] = (row.policy, target.name)
                named = [row.policy, target.name]
            if not self.session.functions:
                for name in named:
                    needs.policies[name] = (yield from self.store.policy(name)).blob
        needs.revision = revision if self.store.catalog.revision == revision else -1

    def _lengthen(
        self, path: Path, beyond: HorizonNeeded, role: Joining | Pinned | Moving, needs: Needs
    ) -> Flow[None]:
        """Moves records off a policy whose zones end too early."""
        self.store.extend_horizon(beyond.needed_ms)
        short = yield from self.store.policy(beyond.policy)
        plans = yield from self.store.plans_of(short, current=False)
        longer = self.store.compile(plans)
        needs.policies[longer.name] = longer.blob
        needs.replace(short.name, longer.name)
        # Some record may be laid out by it; which one, only the script knows, so each level is
        # offered the move.
        for level in range(1, len(path.keys) + 1):
            if (level, short.name) not in needs.moves:
                to_policy = longer
                with contextlib.suppress(NotHeld):  # then a change that is due comes first
                    to_policy = yield from role.target(wire.Stale(level, short.name, 0))
                needs.policies[to_policy.name] = to_policy.blob
                needs.moves[level, short.name] = (longer.name, to_policy.name)

    def _hinted(self, key: tuple[bytes, str | None], role: Joining | Pinned | Moving) -> Needs:
        found = self._hints.get(key)
        if found is None or role.hint is None or found[0] != self.store.catalog.revision:
            return Needs()
        known = found[1]
        return Needs(dict(known.policies), dict(known.moves), found[0], steps=dict(known.steps))

    def brings_something(self, path: Path, role: Joining | Pinned) -> bool:
        """Whether a call has to bring along what its record needs."""
        needs = self._hinted((path.keys[-1], role.hint), role)
        return needs.leads_on or bool(needs.policies)

    def _written(self, key: tuple[bytes, str | None]) -> None:
        """An allowed charge has moved its records on, so the moves need not be brought again.

        Unless they were asked for again: a level that is never charged stays behind.
        """
        found = self._hints.get(key)
        if found is None or not found[1].leads_on or key in self._insisting:
            return
        if len(self._insisting) >= _HINTS:
            self._insisting.clear()
        self._insisting.add(key)
        if found[1].policies and not self.session.functions:
            self._hints[key] = (found[0], Needs(dict(found[1].policies), {}, found[0]))
        else:
            self._hints.pop(key, None)

    def _remember(self, key: tuple[bytes, str | None], needs: Needs) -> None:
        if key[1] is None:
            return
        self._hints[key] = (needs.revision, needs)
        if len(self._hints) > _HINTS:
            self._hints.popitem(last=False)

    def forget_hints(self) -> None:
        """Drops what was remembered of subjects."""
        self._hints.clear()
        self._insisting.clear()


def decode(reply: bytes, path: Path, op: str | None, *, behind: bool) -> Decision:
    """A status 0 or 1 reply as a `Decision`. `behind`: records may not be written as they count."""
    if reply[0] not in (wire.DECIDED, wire.REPLAYED):
        raise ScriptError(f"unexpected reply {reply[:40]!r}")
    answer = wire.decode_answer(reply, path)
    if op is None and reply[0] == wire.DECIDED and not behind:
        return wire.decided(answer.allowed, (wire.head_of, wire.limits_of, reply, path))
    return Decision(
        answer.allowed, answer.code, answer.balance, answer.limits, op, reply[0] == wire.REPLAYED
    )


def new_op() -> str:
    """A fresh operation id."""
    return uuid.uuid4().hex
