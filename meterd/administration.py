"""The verbs that set something, as flows: overrides, corrections, meta. And those that look."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from meterd import policy_checks as checks
from meterd import wire
from meterd.errors import PolicyError, ScriptError, Unavailable
from meterd.flow import Flow
from meterd.keys import Subject, leaf
from meterd.operations import Operations
from meterd.policy import MAX_AMOUNT, MAX_RATE
from meterd.policy_checks import FrozenMap
from meterd.result import HoldState, Level, Override, Usage
from meterd.roles import Joining
from meterd.timespec import Instant, instant_ms, refuse
from meterd.transport import Node

_OVERRIDABLE = ("limit", "overage", "burst")
PAGE = 200


class Administration:
    """Built on the operations of one meter."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.store = operations.store
        self.keys = operations.keys
        self.session = operations.session

    # Overrides and corrections -------------------------------------------------------------------

    def override(
        self,
        subject: Subject,
        name: str,
        expires: Instant | None,
        clear: bool,
        fields: Mapping[str, Any],
    ) -> Flow[None]:
        """Changes a limit for one subject, or clears the change."""
        path = self.keys.path(subject)
        checks.name(name, "override: limit")
        for key in fields:
            if key not in _OVERRIDABLE:
                raise refuse(f"override of {name!r}", key, ", ".join(_OVERRIDABLE))
        if clear and (fields or expires is not None):
            raise PolicyError(f"override of {name!r}: clear=True goes with nothing else")
        if not clear and not fields:
            listed = ", ".join(_OVERRIDABLE)
            raise PolicyError(f"override of {name!r}: give at least one of {listed}, or clear=True")
        values = [_field(name, key, fields) for key in _OVERRIDABLE]
        now_ms = self.operations.now_ms()
        ends = b"" if expires is None else b"%d" % instant_ms(expires, now_ms, "expires")
        if ends and int(ends) <= now_ms:
            raise refuse("expires", expires, "an instant after now")
        deadline = yield from self.store.prepare()
        known = any(name in plan.limits for plan in self.store.catalog.plans.values())
        role = Joining(self.store, None, root=len(path.keys) == 1, planless=True)
        reply = yield from self.operations.settle(
            "override",
            leaf(path),
            path.keys[::-1],
            lambda needs: [
                self.operations.now_argument(),
                role.context(),
                name.encode(),
                *values,
                ends,
                b"1" if clear else b"",
                b"1" if known else b"",
                needs.packed(),
            ],
            role,
            deadline=deadline,
            harmless=True,
        )
        if reply[0] == wire.UNKNOWN:
            raise self._unknown(subject, "pool, bucket or slots", name)

    def adjust(self, subject: Subject, name: str, used: int) -> Flow[None]:
        """Sets what was used of a limit."""
        path = self.keys.path(subject)
        checks.name(name, "adjust: limit")
        amount = wire.check_amount(used, "used")
        deadline = yield from self.store.prepare()
        root = len(path.keys) == 1
        role = Joining(self.store, None, root=root, planless=True)
        reply = yield from self.operations.settle(
            "adjust",
            leaf(path),
            path.keys[::-1],
            lambda needs: [
                self.operations.now_argument(),
                role.context(),
                name.encode(),
                b"%d" % amount,
                needs.packed(),
            ],
            role,
            deadline=deadline,
            harmless=True,
        )
        if reply[0] == wire.UNKNOWN:
            raise self._unknown(subject, "pool or bucket", name)

    def _unknown(self, subject: Subject, kinds: str, name: str) -> PolicyError:
        known = sorted({n for plan in self.store.catalog.plans.values() for n in plan.limits})
        return PolicyError(
            f"{subject!r} has no {kinds} {name!r}; limits of the catalog: "
            f"{', '.join(known) or 'none'}"
        )

    # Meta ----------------------------------------------------------------------------------------

    def set_meta(self, subject: Subject, mapping: Mapping[str, Any]) -> Flow[None]:
        """Merges JSON values beside the record; None removes a field."""
        path = self.keys.path(subject)
        if not isinstance(mapping, Mapping) or not mapping:
            raise refuse("set_meta", mapping, "a mapping with at least one field")
        if len(mapping) > 128:
            raise PolicyError(f"set_meta: {len(mapping)} fields; allowed: at most 128 in one call")
        args: list[bytes] = []
        for key, value in mapping.items():
            if not isinstance(key, str) or not key or not _encodable(key):
                raise refuse("set_meta: field", key, "non-empty text")
            try:
                text = "" if value is None else json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise PolicyError(f"set_meta: field {key!r}: no JSON value: {error}") from error
            args += [key.encode(), text.encode()]
        yield from self.store.prepare()
        reply = yield from self.session.call(
            "set_meta", [self.keys.meta(path)], args, harmless=True
        )
        if reply != bytes([wire.DONE]):
            raise ScriptError(f"set_meta: unexpected reply {reply!r}")

    def meta(self, subject: Subject) -> Flow[dict[str, Any]]:
        """What `set_meta` stored."""
        key = self.keys.meta(self.keys.path(subject))
        yield from self.store.prepare()
        (raw,) = yield from self.session.plain(key, (b"GET", key))
        if isinstance(raw, ResponseError):
            raise Unavailable(f"meta could not be read: {raw}")
        return wire.decode_meta(raw) if raw else {}

    # Looking -------------------------------------------------------------------------------------

    def usage(self, subject: Subject, join: str | None) -> Flow[Usage]:
        """Every limit at every level."""
        path = self.keys.path(subject)
        deadline = yield from self.store.prepare()
        role = Joining(self.store, join)
        reply = yield from self.operations.settle(
            "usage",
            path,
            path.keys,
            lambda needs: [self.operations.now_argument(), role.context(), needs.packed()],
            role,
            deadline=deadline,
        )
        answer = wire.decode_answer(reply, path)
        levels = []
        for row in wire.decode_levels(reply, answer.end()):
            policy = yield from self.store.policy(row.policy)
            plans = FrozenMap({group: name for group, name, _, _ in policy.plans})
            overrides = tuple(_override(name, raw) for name, raw in sorted(row.overrides.items()))
            holds = tuple(
                HoldState(h.id, h.expires_ms, FrozenMap(h.amounts), FrozenMap(h.tallied))
                for h in row.holds
            )
            subject_there = path.shown(row.level)
            levels.append(
                Level(
                    subject_there,
                    plans,
                    overrides,
                    row.stored,
                    holds,
                    row.open_holds,
                    row.grants,
                    row.pending,
                )
            )
        return Usage(path.shown(len(path.keys)), answer.limits(), tuple(levels))

    # Walking -------------------------------------------------------------------------------------

    def page(self, node: Node, cursor: int, pattern: bytes) -> Flow[tuple[int, list[bytes]]]:
        """One SCAN step on one node."""
        (reply,) = yield from self.session.plain_to(
            node, (b"SCAN", b"%d" % cursor, b"MATCH", pattern, b"COUNT", b"%d" % PAGE)
        )
        if isinstance(reply, ResponseError):
            raise Unavailable(f"SCAN failed: {reply}")
        return int(reply[0]), list(reply[1])


def _field(name: str, key: str, fields: Mapping[str, Any]) -> bytes:
    if key not in fields:
        return b""
    value = fields[key]
    if value is None and key != "burst":
        return b"none"
    most = MAX_RATE if key == "burst" else MAX_AMOUNT
    if type(value) is not int or not 0 <= value <= most:
        none = "" if key == "burst" else " or None"
        raise refuse(f"override of {name!r}: {key}", value, f"an integer from 0 to {most}{none}")
    return b"%d" % value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_SHORT = {"l": "limit", "v": "overage", "b": "burst"}


def _override(name: str, raw: Mapping[str, int]) -> Override:
    fields = {
        long: None if raw[short] == wire.NONE else int(raw[short])
        for short, long in _SHORT.items()
        if short in raw
    }
    return Override(name, FrozenMap(fields), int(raw["e"]) if "e" in raw else None)
