"""Grants: credits that a pool gets beside its own allowance, as flows."""

from __future__ import annotations

import secrets
import struct
import time
from datetime import datetime, timedelta

from meterd import policy_checks as checks
from meterd import wire
from meterd.errors import OpNotFound, PolicyError, ScriptError
from meterd.flow import Flow
from meterd.grant import Grant
from meterd.keys import Subject, leaf
from meterd.kinds import Kinds
from meterd.operations import Operations
from meterd.roles import Joining
from meterd.timespec import instant_ms, refuse

Instant = datetime | timedelta | str
MOST_TEXT_BYTES = 128
RETENTION_MS = 30 * 86_400_000  # of a grant's operation id: payment providers redeliver


class Grants:
    """The flows of one meter's grants."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._kinds = Kinds(operations)

    def grant(
        self,
        subject: Subject,
        name: str,
        amount: int,
        expires: Instant | None,
        starts: Instant | None,
        priority: int,
        source: str,
        op: str | bool | None,
    ) -> Flow[Grant]:
        """Adds a grant to one record; the same `op` again answers what it was."""
        operations = self._operations
        path = operations.keys.path(subject)
        checks.name(name, "grant: pool")
        if wire.check_amount(amount) < 1:
            raise refuse("grant: amount", amount, "an integer from 1 to 10**15")
        if type(priority) is not int or not 0 <= priority <= 100:
            raise refuse("grant: priority", priority, "an integer from 0 to 100; low goes first")
        noted = _text(source)
        op_id = (
            None if op is None or op is False else _new_id() if op is True else wire.check_op(op)
        )
        grant_id = op_id or _new_id()
        deadline = yield from operations.store.prepare()
        yield from operations.store.check_eviction()
        now_ms = int(operations.now_argument() or time.time() * 1000)
        starts_ms = None if starts is None else max(0, instant_ms(starts, now_ms, "starts"))
        expires_ms = None if expires is None else instant_ms(expires, now_ms, "expires")
        # With `op` it may be the repetition of a grant that has ended: the server knows its answer.
        if op_id is None and expires_ms is not None and expires_ms <= max(now_ms, starts_ms or 0):
            raise refuse("grant: expires", expires, "an instant after now and after `starts`")
        keys, op_argument = [path.keys[-1]], b""
        if op_id is not None:
            keys.append(operations.keys.op(path, op_id))
            # A duration from now is the same request however much later it is repeated.
            given = [
                ms if isinstance(at, datetime) else str(at)
                for at, ms in ((starts, starts_ms), (expires, expires_ms))
            ]
            request = wire.digest("grant", path.keys, name, amount, *given, priority, source)
            retention_ms = max(operations.op_retention_ms, RETENTION_MS)
            op_argument = wire.op_argument(request, retention_ms)
        yield from self._kinds.check(path, {name: "pool"}, "this grant", "grant", op_id)
        role = Joining(operations.store, None, root=len(path.keys) == 1, planless=True)
        reply = yield from operations.settle(
            "grant",
            leaf(path),
            [*keys, *path.keys[:-1]],
            lambda needs: [
                operations.now_argument(),
                role.context(),
                name.encode(),
                b"%d" % amount,
                b"" if starts_ms is None else b"%d" % starts_ms,
                b"" if expires_ms is None else b"%d" % expires_ms,
                b"%d" % priority,
                noted,
                grant_id.encode(),
                op_argument,
                needs.packed(),
            ],
            role,
            deadline=deadline,
            op=op_id,
        )
        row = reply[2:] if reply[0] == wire.REPLAYED else reply[1:]
        return wire.decode_grant(row)

    def void(self, subject: Subject, grant_id: str) -> Flow[int]:
        """Takes back what a grant has left."""
        operations = self._operations
        path = operations.keys.path(subject)
        checked = wire.check_hold_id(grant_id)
        deadline = yield from operations.store.prepare()
        role = Joining(operations.store, None, root=len(path.keys) == 1, planless=True)
        reply = yield from operations.settle(
            "void",
            leaf(path),
            path.keys[::-1],
            lambda needs: [
                operations.now_argument(),
                role.context(),
                checked.encode(),
                needs.packed(),
            ],
            role,
            deadline=deadline,
            harmless=True,
        )
        if reply[0] == wire.UNKNOWN:
            raise OpNotFound(f"void: {subject!r} has no grant {grant_id!r} (any more)")
        if reply[0] != wire.DONE or len(reply) != 9:
            raise ScriptError(f"void: unexpected reply {reply[:40]!r}")
        return int(struct.unpack_from("<d", reply, 1)[0])


def _new_id() -> str:
    """Later ones come later: of grants made at the same instant, that is the order they burn in."""
    return f"{time.time_ns():016x}{secrets.token_hex(8)}"


def _text(source: object) -> bytes:
    if not isinstance(source, str):
        raise refuse("grant: source", source, "text")
    try:
        raw = source.encode()
    except UnicodeEncodeError as error:
        raise PolicyError(f"grant: source: {source!r} is not valid Unicode text") from error
    if len(raw) > MOST_TEXT_BYTES:
        raise PolicyError(f"grant: source: {len(raw)} bytes; allowed: at most {MOST_TEXT_BYTES}")
    return raw
