"""What comes back from the scripts, decoded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack

from meterd.errors import ScriptError
from meterd.grant import Grant
from meterd.keys import Path
from meterd.result import Code, Decision, LimitState, PlanChange, Source

NONE = -(2.0**53)

DECIDED, REPLAYED, NEED, STALE, CONFLICT, DONE, UNKNOWN, HOLDS, DUE = range(9)
CODES = (
    Code.OK,
    Code.NO_PLAN,
    Code.NOT_INCLUDED,
    Code.USAGE_EXCEEDED,
    Code.RATE_LIMITED,
)
# Codes of `keys_verify` that no charge ever has.
KEY_DISABLED, KEY_EXPIRED = 5, 6
_HEAD = struct.Struct("<BBBBdd")
HEAD_BYTES = _HEAD.size
_SECTION = struct.Struct("<BBH")
_NEVER_MS = 2**48 - 1
_KINDS = {
    "p": "pool", "P": "pool",
    "f": "bucket", "s": "bucket", "t": "bucket", "l": "slots", "g": "flag",
}  # fmt: skip


class Stale(NamedTuple):
    level: int
    policy: bytes
    revision: int


def decode_need(reply: bytes) -> list[bytes]:
    return [reply[at : at + 8] for at in range(1, len(reply), 8)]


def decode_stale(reply: bytes) -> list[Stale]:
    return [
        Stale(reply[at], reply[at + 1 : at + 9], int.from_bytes(reply[at + 9 : at + 13], "little"))
        for at in range(1, len(reply), 13)
    ]


class Harvested(NamedTuple):
    """What a `harvest` did: entries written, and which records (from 0) it left as they are."""

    entries: int
    waiting: list[int]  # for their holds to be named
    left: list[int]  # for some other reason


def decode_harvest(reply: bytes) -> Harvested:
    """Behind status 5; raises `ScriptError` for anything else."""
    try:
        status, entries, waiting = struct.unpack_from("<BIH", reply)
        numbers = [n - 1 for (n,) in struct.iter_unpack("<H", reply[7:])]
    except struct.error as error:
        raise ScriptError(f"unexpected reply: {reply[:80]!r}") from error
    if status != DONE:
        raise ScriptError(f"unexpected reply: {reply[:80]!r}")
    return Harvested(entries, numbers[:waiting], numbers[waiting:])


def removed(reply: object) -> int | None:
    """How many keys a `forget` removed; None: it needs policies; else raises `ScriptError`."""
    if isinstance(reply, bytes) and reply:
        if reply[0] == DONE and len(reply) == 5:
            return int.from_bytes(reply[1:], "little")
        if reply[0] == NEED:
            return None
    raise ScriptError(f"forget: unexpected reply {reply!r}")


class DueChange(NamedTuple):
    """A change of plans whose instant has come. `plan` is empty where one is taken away."""

    group: str
    at_ms: int
    plan: str
    definition: bytes  # of a private plan; else empty


class Due(NamedTuple):
    """What is due in a record, in order; `policy` is what it is laid out by."""

    level: int
    policy: bytes
    revision: int
    changes: tuple[DueChange, ...]


def decode_due(reply: bytes) -> list[Due]:
    return [
        Due(
            int(level),
            policy,
            int(revision),
            tuple(
                DueChange(group.decode(), int(at), plan.decode(), definition)
                for group, at, plan, definition in changes
            ),
        )
        for level, policy, revision, changes in msgpack.unpackb(reply[1:], raw=True)
    ]


class Answer(NamedTuple):
    """A decided call: the head decoded, the sections left for whoever looks."""

    allowed: bool
    code: Code
    balance: int | None
    now_ms: int
    limits: Callable[[], tuple[LimitState, ...]]
    end: Callable[[], int]


def _number(value: float) -> int | None:
    return None if value == NONE else int(value)


@lru_cache(maxsize=4096)
def _described(names: bytes) -> tuple[tuple[tuple[str, str], ...], tuple[int, ...]]:
    """Kind and name of each limit, and which of them are pools with grants."""
    lines = names.decode().split("\n")[:-1]
    granted = tuple([i for i, line in enumerate(lines) if line[0] == "P"])
    return tuple((_KINDS[line[0]], line[1:]) for line in lines), granted


@lru_cache(maxsize=64)
def figures(count: int) -> struct.Struct:
    return struct.Struct("<" + "Bddddddd" * count)


def decode_answer(reply: bytes, path: Path) -> Answer:
    """Status 0 or 1 and everything behind it; raises `ScriptError` for anything else."""
    try:
        start = 1 if reply[0] == REPLAYED else 0
        _, code, allowed, sections, now_ms, balance = _HEAD.unpack_from(reply, start)
        at = start + _HEAD.size
        return Answer(
            bool(allowed),
            CODES[code],
            _number(balance),
            int(now_ms),
            lambda: _limits(reply, at, sections, path, int(now_ms))[0],
            lambda: _limits(reply, at, sections, path, int(now_ms))[1],
        )
    except (struct.error, IndexError, TypeError) as error:
        raise ScriptError(f"unexpected reply: {reply[:80]!r}") from error


_new_decision = Decision.__new__
_put_allowed = vars(Decision)["allowed"].__set__
_put_source = vars(Decision)["_source"].__set__


def decided(allowed: bool, source: Source) -> Decision:
    """A `Decision` whose other fields are decoded when somebody looks."""
    decision = _new_decision(Decision)
    _put_allowed(decision, allowed)
    _put_source(decision, source)
    return decision


def head_of(reply: bytes, path: Path) -> tuple[Code, int | None]:
    _, code, _, _, _, balance = _HEAD.unpack_from(reply)
    return CODES[code], _number(balance)


def limits_of(reply: bytes, path: Path) -> tuple[LimitState, ...]:
    return limits_at(reply, path, now_of(reply))


def limits_at(reply: bytes, path: Path, now_ms: int) -> tuple[LimitState, ...]:
    """The limits of a status 0 reply, waits counted from `now_ms`."""
    return _limits(reply, HEAD_BYTES, reply[3], path, now_ms)[0]


def now_of(reply: bytes) -> int:
    return int(_HEAD.unpack_from(reply)[4])


def answered_at(reply: bytes) -> int:
    """The server's now of a status 0 or 1 reply, in ms."""
    return int(_HEAD.unpack_from(reply, 1 if reply[0] == REPLAYED else 0)[4])


def end_of(reply: bytes) -> int:
    """Where the answer of a status 0 or 1 reply ends."""
    try:
        start = 1 if reply[0] == REPLAYED else 0
        at = start + HEAD_BYTES
        for _ in range(reply[start + 3]):
            _, count, length = _SECTION.unpack_from(reply, at)
            at += _SECTION.size
            _, granted = _described(reply[at : at + length])
            at += length + count * figures(1).size + 16 * len(granted)
    except (struct.error, IndexError) as error:
        raise ScriptError(f"unexpected reply: {reply[:80]!r}") from error
    return at


def _limits(
    reply: bytes, at: int, sections: int, path: Path, now_ms: int
) -> tuple[tuple[LimitState, ...], int]:
    found: list[LimitState] = []
    for _ in range(sections):
        level, count, length = _SECTION.unpack_from(reply, at)
        at += _SECTION.size
        described, granted = _described(reply[at : at + length])
        at += length
        form = figures(count)
        values = form.unpack_from(reply, at)
        at += form.size
        sources = {}
        for i in granted:
            sources[i] = struct.unpack_from("<dd", reply, at)
            at += 16
        subject = path.shown(level)
        for i, (kind, name) in enumerate(described):
            fits, limit, used, remaining, over, applied, resets, retry = values[i * 8 : i * 8 + 8]
            drawn, unspent = sources.get(i, (0, 0)) if granted else (0, 0)
            found.append(
                LimitState(
                    subject,
                    name,
                    kind,
                    _number(limit),
                    int(used),
                    _number(remaining),
                    int(over),
                    int(applied),
                    bool(fits),
                    _number(resets),
                    None if retry == NONE else (int(retry) - now_ms) / 1000,
                    int(drawn),
                    int(unspent),
                )
            )
    return tuple(found), at


class HoldRow(NamedTuple):
    """An open hold as `usage` lists it; amounts by cost name, reserved and tallied."""

    id: str
    expires_ms: int
    amounts: dict[str, int]
    tallied: dict[str, int]


class LevelRow(NamedTuple):
    level: int
    policy: bytes
    stored: bool
    overrides: dict[str, dict[str, int]]
    holds: tuple[HoldRow, ...] = ()
    open_holds: int = 0  # more than `holds` where there are very many
    grants: tuple[Grant, ...] = ()
    pending: tuple[PlanChange, ...] = ()


def decode_levels(reply: bytes, at: int) -> list[LevelRow]:
    """What stands behind the answer of `usage`."""
    rows: list[LevelRow] = []
    while at < len(reply):
        level, policy, stored, length = struct.unpack_from("<B8sBH", reply, at)
        at += 12
        rest: dict[str, Any] = {}
        if length:
            rest = msgpack.unpackb(reply[at : at + length])
            at += length
        holds = tuple([_hold_row(*row) for row in rest.get("h") or ()])
        overrides = rest.get("o") or {}
        granted = sorted(rest.get("k") or (), key=_burning)
        grants = tuple([_grant(*row) for row in granted])
        open_holds = int(rest.get("n", 0))
        pending = [
            PlanChange(group, plan or None, int(at), change)
            for group, at, plan, change in rest.get("p") or ()
        ]
        rows.append(
            LevelRow(
                level,
                policy,
                bool(stored),
                overrides,
                holds,
                open_holds,
                grants,
                tuple(sorted(pending, key=lambda change: (change.at_ms, change.group))),
            )
        )
    return rows


def decode_grant(packed: bytes) -> Grant:
    """A row of `lua/lib/grants.lua`."""
    try:
        return _grant(*msgpack.unpackb(packed))
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise ScriptError(f"unexpected reply: no grant: {packed[:80]!r}") from error


def _grant(
    grant_id: str,
    name: str,
    amount: float,
    left: float,
    held: float,
    lost: float,
    starts: float,
    expires: float,
    priority: float,
    age: float,
    source: str,
    voided: float,
) -> Grant:
    consumed = int(amount - left - held - lost)
    ends = None if expires >= _NEVER_MS else int(expires)
    return Grant(
        grant_id, name, int(amount), int(left), int(held), consumed, int(lost),
        int(starts), ends, int(priority), source,
    )  # fmt: skip


def _burning(row: Sequence[Any]) -> tuple[Any, ...]:
    """By pool; of one pool by priority, expiry, age and id."""
    grant_id, name, expires, priority, age = (row[i] for i in (0, 1, 7, 8, 9))
    return name, priority, expires, age, grant_id


def _hold_row(
    hold_id: str, expires_ms: float, names: str, amounts: list[float], tallied: list[float]
) -> HoldRow:
    listed = names.split(",")
    held = dict(zip(listed, map(int, amounts), strict=True))
    # What was never tallied is empty, and an empty list may come as an empty map.
    spent = dict(zip(listed, map(int, tallied or ()), strict=bool(tallied)))
    return HoldRow(hold_id, int(expires_ms), held, spent)


def decode_meta(raw: bytes) -> dict[str, Any]:
    """Fields and their JSON values."""
    return {name: json.loads(value) for name, value in msgpack.unpackb(raw).items()}
