"""Answers as plain values that can be compared: the engine's and the model's, in the same words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from meterd import Meter

GRANTS = hasattr(Meter, "grant")
DRAWN = ("drawn", "granted") if GRANTS else ()


def decision_fields(decision: Any) -> dict[str, Any]:
    """Every field of an engine's decision, in the model's words."""
    after = decision.retry_after
    return {
        "allowed": decision.allowed,
        "code": str(decision.code),
        "balance": decision.balance,
        "retry_after_ms": None if after is None else round(after * 1000),
        "op": decision.op,
        "replayed": decision.replayed,
        "limits": [limit_fields(state) for state in decision.limits],
        "refused": [(path_of(s.subject), s.name) for s in decision.refused],
    }


def path_of(subject: Any) -> tuple[str, ...]:
    return tuple(subject.split("/")) if isinstance(subject, str) else tuple(subject)


def limit_fields(state: Any) -> dict[str, Any]:
    after = state.retry_after
    return {
        "subject": path_of(state.subject),
        "name": state.name,
        "kind": state.kind,
        "limit": state.limit,
        "used": state.used,
        "remaining": state.remaining,
        "overage": state.overage,
        "applied": state.applied,
        "allowed": state.allowed,
        "resets_at_ms": state.resets_at_ms,
        "retry_after_ms": None if after is None else round(after * 1000),
        **{name: getattr(state, name) for name in DRAWN},
    }


def model_fields(decision: Any) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "code": decision.code,
        "balance": decision.balance,
        "retry_after_ms": decision.retry_after_ms,
        "op": decision.op,
        "replayed": decision.replayed,
        "limits": [model_limit(limit) for limit in decision.limits],
        "refused": [(tuple(limit.subject), limit.name) for limit in decision.refused],
    }


def model_limit(limit: Any) -> dict[str, Any]:
    names = (
        "name", "kind", "limit", "used", "remaining", "overage", "applied", "allowed",
        "resets_at_ms", "retry_after_ms", *DRAWN,
    )  # fmt: skip
    return {"subject": tuple(limit.subject), **{name: getattr(limit, name) for name in names}}


def grant_fields(grant: Any) -> dict[str, Any]:
    """Both have them under the same names."""
    names = (
        "id", "name", "amount", "remaining", "held", "consumed", "expired", "starts_ms",
        "expires_ms", "priority", "source",
    )  # fmt: skip
    return {name: getattr(grant, name) for name in names}


def instant(ms: int) -> Any:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def difference(left: dict[str, Any], right: dict[str, Any]) -> str:
    lines = []
    for key, value in left.items():
        if value != right[key]:
            if key == "limits" and len(value) == len(right[key]):
                for one, two in zip(value, right[key], strict=True):
                    if one != two:
                        lines.append(f"  model  {one}\n  engine {two}")
            else:
                lines.append(f"  {key}: model {value}\n  {key}: engine {right[key]}")
    return "\n".join(lines)
