"""Operations that were: what became of one by its id, and giving one back as a whole. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from meterd import wire
from meterd.errors import OpNotFound, OutcomeUnknown, PolicyError, ScriptError
from meterd.flow import Flow
from meterd.keys import Path, Subject, decode_segment, display
from meterd.needs import Needs
from meterd.operations import Operations, decode, new_op
from meterd.result import Decision, instant
from meterd.roles import Joining
from meterd.timespec import shown

# The verb's letter in what is stored of an operation (lua/lib/op.lua).
_VERBS = {
    "c": "consume", "r": "report", "f": "refund", "h": "reserve", "m": "commit", "x": "release",
    "s": "subscribe", "g": "grant",
}  # fmt: skip
_LENGTHS = struct.Struct("<HHB")
_WHY_NOT = {
    "refund": "a refund is not given back; charge again what is to be charged",
    "reserve": "it is a hold that was not committed; release it to get back what it holds",
    "release": "it is a hold that was released, so nothing of it is charged",
    "grant": "a grant is taken back by void()",
    "subscribe": "a subscription charges nothing; subscribe to another plan instead",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What is kept of an operation id, or of how the hold of that id was ended.

    `verb`: "consume", "report", "refund", "reserve", "commit", "release", "subscribe" or "grant".
    `subject`: the path it was made for. `costs`: the amounts it named; of a commit all that was
    used. `decision`: the first answer (`replayed`); None where the verb has none. `at_ms`,
    `expires_ms`: when it ran, and from when on it is forgotten, epoch ms. `refund`: the answer of
    `refund(of=)` once it was given back as a whole, else None.
    """

    op: str
    verb: str
    subject: Subject
    costs: Mapping[str, int] = field(default_factory=dict)
    decision: Decision | None = None
    at_ms: int = 0
    expires_ms: int = 0
    refund: Decision | None = None

    @property
    def at(self) -> datetime:
        """`at_ms` as an aware UTC datetime."""
        return instant(self.at_ms)

    @property
    def expires(self) -> datetime:
        """`expires_ms` as an aware UTC datetime."""
        return instant(self.expires_ms)

    @property
    def refunded(self) -> bool:
        """Whether it was given back as a whole."""
        return self.refund is not None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        return {
            "op": self.op,
            "verb": self.verb,
            "subject": self.subject,
            "costs": dict(self.costs),
            "decision": None if self.decision is None else self.decision.as_dict(),
            "at": self.at.isoformat(),
            "expires": self.expires.isoformat(),
            "refunded": self.refunded,
            "refund": None if self.refund is None else self.refund.as_dict(),
        }


class Past:
    """The flows about one meter's operations by their ids."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def operation(self, subject: Subject, op: str) -> Flow[Operation]:
        """What became of an operation of the subject's root. `OpNotFound`: nothing, or long ago."""
        operations = self._operations
        path = operations.keys.path(subject)
        wire.check_op(op)
        deadline = yield from operations.store.prepare()
        reply = yield from operations.session.call(
            "operation", self._keys(path, op), [operations.now_argument()], deadline=deadline
        )
        if reply == bytes([wire.UNKNOWN]):
            raise self._not_found("operation", op)
        return self._decoded(path, op, reply)

    def refund(
        self,
        subject: Subject,
        costs: str | Mapping[str, int] | None,
        amount: int,
        of: str | None,
        op: str | bool | None,
        *,
        shared: bool = False,
    ) -> Flow[Decision]:
        """refund: exactly one of `costs` and `of`. `shared`: name the partition's keys unasked."""
        if (costs is None) == (of is None):
            raise PolicyError("refund: give costs, or of= an operation id, and not both")
        if costs is not None:
            return self._operations.charge(
                "refund", subject, costs, amount, op, None, 0, shared=shared
            )
        if amount != 1 or type(amount) is not int:
            raise PolicyError(
                f"amount: {shown(amount)} beside of=, which gives the whole operation back"
            )
        return self._whole(subject, wire.check_op(of), op, shared)

    def _whole(
        self, subject: Subject, of: str, op: str | bool | None, shared: bool
    ) -> Flow[Decision]:
        """Gives an operation back, once: later calls are answered as the first was."""
        operations = self._operations
        path = operations.keys.path(subject)
        op_id = None if op is None or op is False else new_op() if op is True else wire.check_op(op)
        keys, op_argument = self._keys(path, of), b""
        if op_id is not None:
            keys = (*path.keys, operations.keys.op(path, op_id), *keys[len(path.keys) :])
            request = wire.digest("refund of", path.keys, of)
            op_argument = wire.op_argument(request, operations.op_retention_ms)
        role = Joining(operations.store, None)

        def arguments(needs: Needs) -> list[bytes]:
            return [operations.now_argument(), role.context(), op_argument, needs.packed()]

        deadline = yield from operations.store.prepare()
        try:
            reply = yield from operations.settle(
                "refund_of", path, keys, arguments, role,
                deadline=deadline, op=op_id, harmless=True, shared=shared,
            )  # fmt: skip
        except OutcomeUnknown as error:
            raise OutcomeUnknown(
                f"refund: sent, but the answer was lost: {error.__cause__}; giving {of!r} back "
                "again is safe",
                op_id,
            ) from error.__cause__
        if reply[0] == wire.UNKNOWN:
            if len(reply) == 1:
                raise self._not_found("refund", of)
            raise self._refused(path, of, reply)
        return decode(reply, path, op_id, behind=True)

    def _keys(self, path: Path, op: str) -> tuple[bytes, ...]:
        keys = self._operations.keys
        return (*path.keys, keys.op(path, op), keys.hold_end(path, op))

    def _not_found(self, verb: str, op: str) -> OpNotFound:
        return OpNotFound(
            f"{verb}: no operation {op!r} is known: it never ran, or was refused, or ran longer "
            "ago than operation ids are kept"
        )

    def _refused(self, path: Path, of: str, reply: bytes) -> PolicyError:
        verb, ran_for = _verb(reply[1:2]), _path_below(path, reply[2:])
        if verb in _WHY_NOT:
            return PolicyError(f"refund: of={of!r}: {_WHY_NOT[verb]}; nothing was applied")
        return PolicyError(
            f"refund: of={of!r} was a {verb} of {display(ran_for)!r}, not of "
            f"{display(path.segments)!r}; nothing was applied"
        )

    def _decoded(self, path: Path, op: str, reply: bytes) -> Operation:
        """Ends 6 bytes, the answer, the note of what it was; see lua/lib/op.lua."""
        try:
            ends, body, given_back = int.from_bytes(reply[1:7], "little"), reply[7:], b""
            if body.endswith(b"!"):
                size = int.from_bytes(body[-5:-1], "little")
                body, given_back = body[: -5 - size], body[-5 - size : -5]
            verb = _verb(body[-1:])
            below, listed, count = _LENGTHS.unpack(body[-6:-1])
            at = len(body) - 9 - 8 * count
            amounts = struct.unpack_from(f"<{count}d", body, at)
            names = body[at - listed : at].decode()
            path = self._operations.keys.path(
                _path_below(path, body[at - listed - below : at - listed])
            )
            decision = None
            if body[0] == wire.DONE:
                sources = int.from_bytes(body[-9:-6], "little")
                start = at - listed - below - sources
                ran = int.from_bytes(body[start : start + sources], "little")
            else:
                decision, ran = _decision(body, path, op)
            costs = dict(zip(names.split(",") if names else (), map(int, amounts), strict=True))
            costs.pop(wire.AUTO, None)  # what limits charge unasked is not named
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise ScriptError(f"operation: unexpected reply: {reply[:80]!r}") from error
        refund = _decision(given_back, path, None)[0] if given_back else None
        whom = display(path.segments)
        return Operation(op, verb, whom, costs, decision, ran, ends, refund)


def _verb(letter: bytes) -> str:
    return _VERBS[letter.decode("latin-1")]


def _path_below(path: Path, below: bytes) -> tuple[str, ...]:
    """The path whose part below the root is spelt like that."""
    return (path.segments[0], *(decode_segment(part) for part in below.split(b"/")[1:]))


def _decision(answer: bytes, path: Path, op: str | None) -> tuple[Decision, int]:
    """A stored answer and its instant."""
    read = wire.decode_answer(answer, path)
    decision = Decision(read.allowed, read.code, read.balance, read.limits, op, True)
    return decision, read.now_ms
