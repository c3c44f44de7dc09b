"""A plan as plain data and back: the only place that knows how a definition is stored.

Definitions are canonical. Two plans that mean the same have the same dict, bytes and hash: defaults
are left out, durations take their shortest text ("60m" is "1h"), instants are UTC text, rates are
sorted. The order of `includes` is kept, because answers list limits in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from typing import Any, Final

import msgpack

from meterd.errors import PolicyError
from meterd.policy import ANCHORS, Bucket, Flag, Limit, Plan, Pool, Price, Slots
from meterd.timespec import closest, format_instant, format_ms, refuse

KINDS: Final[Mapping[str, type[Pool] | type[Bucket] | type[Slots] | type[Flag]]] = {
    "pool": Pool,
    "bucket": Bucket,
    "slots": Slots,
    "flag": Flag,
}
_PLAN_KEYS: Final = ("id", "group", "default", "name", "price", "meta", "includes")


def field_names(cls: type) -> tuple[str, ...]:
    """The arguments a policy class takes, in order."""
    return tuple(f.name for f in fields(cls) if f.init)


def required_names(cls: type) -> tuple[str, ...]:
    """The arguments a policy class cannot do without."""
    return tuple(f.name for f in fields(cls) if f.init and f.default is MISSING)


def limit_fields(limit: Limit) -> dict[str, Any]:
    """Every field but the name, canonical and JSON-able, defaults filled in."""
    if isinstance(limit, Flag):
        return {}
    out: dict[str, Any] = {key: getattr(limit, key) for key in field_names(type(limit))[1:]}
    own_name_only = dict(limit.charges) == {limit.name: 1}
    out["rates"] = None if own_name_only else dict(sorted(limit.charges.items()))
    if isinstance(limit, Bucket):
        out["per"] = format_ms(limit.per_ms)
    if not isinstance(limit, Pool):
        return out
    if limit.interval_ms is not None:
        out["reset"] = format_ms(limit.interval_ms)
    if limit.anchor_ms is not None:
        out["anchor"] = format_instant(limit.anchor_ms)
    out["auto"] = limit.auto_amount
    out["warn_at"] = list(limit.warn_at)
    out["warn_below"] = list(limit.warn_below)
    return out


def limit_to_dict(limit: Limit) -> dict[str, Any]:
    """`kind`, `name` and what differs from the defaults."""
    given = limit_fields(limit)
    plain = dict(given)
    if not isinstance(limit, Flag):
        needed = {key: getattr(limit, key) for key in required_names(type(limit))}
        plain = limit_fields(type(limit)(**needed))
        for key in needed:
            plain.pop(key, None)
    changed = {k: v for k, v in given.items() if k not in plain or plain[k] != v}
    return {"kind": limit.kind, "name": limit.name, **changed}


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The canonical definition as JSON-able data; `plan_from_dict` is its inverse."""
    out: dict[str, Any] = {"id": plan.id, "group": plan.group}
    if plan.default:
        out["default"] = True
    if plan.name is not None:
        out["name"] = plan.name
    if plan.price is not None:
        out["price"] = {key: getattr(plan.price, key) for key in field_names(Price)}
    if plan.meta:
        out["meta"] = thawed(plan.meta)
    out["includes"] = [limit_to_dict(limit) for limit in plan.includes]
    return out


def plan_from_dict(definition: Mapping[str, Any]) -> Plan:
    """The plan of a definition. Unknown keys are refused: a newer meterd may have meant them."""
    if not isinstance(definition, Mapping):
        raise refuse("plan definition", definition, "a mapping")
    at = f"plan {definition.get('id')!r}: "
    check_keys(definition, _PLAN_KEYS, at, needed=("id", "includes"))
    values = dict(definition)
    if not isinstance(values["includes"], list | tuple):
        raise refuse(f"{at}includes", values["includes"], "a list of limits")
    try:
        values["includes"] = [limit_from_dict(item) for item in values["includes"]]
        if values.get("price") is not None:
            if not isinstance(values["price"], Mapping):
                raise refuse("price", values["price"], "a mapping")
            check_keys(values["price"], field_names(Price), "price: ", needed=("amount",))
            values["price"] = Price(**values["price"])
    except PolicyError as error:
        raise PolicyError(f"{at}{error}") from None
    return Plan(**values)


def limit_from_dict(definition: Mapping[str, Any]) -> Limit:
    """The limit of one entry of a definition's `includes`."""
    if not isinstance(definition, Mapping):
        raise refuse("limit definition", definition, "a mapping")
    kind = definition.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        at = f"limit {definition.get('name')!r}: kind"
        raise refuse(at, kind, ", ".join(KINDS), " (written by a newer meterd?)")
    cls = KINDS[kind]
    values = {key: value for key, value in definition.items() if key != "kind"}
    at = f"{kind} {definition.get('name')!r}: "
    check_keys(values, field_names(cls), at, needed=required_names(cls))
    anchor = values.get("anchor")
    if isinstance(anchor, str) and anchor not in ANCHORS:
        try:
            values["anchor"] = datetime.fromisoformat(anchor)
        except ValueError:
            allowed = f"{', '.join(ANCHORS)}, a day of the month 1-31, or ISO 8601 text"
            raise refuse(f"{at}anchor", anchor, allowed) from None
    return cls(**values)


def check_keys(
    given: Mapping[Any, object], allowed: tuple[str, ...], at: str, *, needed: tuple[str, ...] = ()
) -> None:
    """Refuses a key that is not allowed, and the lack of one that is needed."""
    for key in given:
        if key not in allowed:
            hint = closest(key, allowed)
            raise PolicyError(f"{at}{key}: unknown key; allowed: {', '.join(allowed)}{hint}")
    for key in needed:
        if key not in given:
            raise PolicyError(f"{at}{key} is missing")


def definition_bytes(plan: Plan) -> bytes:
    """The canonical definition as msgpack with sorted keys: equal for plans that mean the same."""
    packed: bytes = msgpack.packb(_sorted(plan_to_dict(plan)), use_bin_type=False)
    return packed


def plan_from_bytes(packed: bytes) -> Plan:
    """The inverse of `definition_bytes`."""
    try:
        definition = msgpack.unpackb(packed, raw=False)
    except ValueError as error:
        raise PolicyError(f"plan definition: not readable: {error}") from None
    return plan_from_dict(definition)


def definition_hash(plan: Plan) -> bytes:
    """Eight bytes that name the definition: the head of its SHA-1."""
    return hashlib.sha1(definition_bytes(plan), usedforsecurity=False).digest()[:8]


def thawed(value: object) -> Any:
    """Frozen maps and tuples as the dicts and lists of JSON."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thawed(item) for item in value]
    return value


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value
