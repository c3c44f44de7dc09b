"""The arguments of a call, checked and normalized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.oracle.errors import PolicyError
from tests.oracle.plans import MAX_AMOUNT

Path = tuple[str, ...]
Subject = str | Path
Costs = str | Mapping[str, int]
Amounts = Mapping[str, int]


def path_of(subject: Subject) -> Path:
    path = tuple(subject.split("/")) if isinstance(subject, str) else tuple(subject)
    if not 1 <= len(path) <= 4:
        raise PolicyError(f"subject: {len(path)} segments")
    for segment in path:
        if not isinstance(segment, str) or not 1 <= len(segment.encode()) <= 128:
            raise PolicyError(f"subject: segment {segment!r}")
    return path


def check_amount(amount: object) -> None:
    if type(amount) is not int or not 0 <= amount <= MAX_AMOUNT:
        raise PolicyError(f"amount: {amount!r}")


def amounts_of(costs: Costs, amount: int) -> dict[str, int]:
    """Cost name → amount, in the order given."""
    if isinstance(costs, str):
        amounts = {costs: amount}
    elif not costs or amount != 1:
        raise PolicyError("costs: an empty mapping, or a mapping and an amount")
    else:
        amounts = dict(costs)
    for one in amounts.values():
        check_amount(one)
    return amounts


def id_of(plan: Any) -> str:
    return plan if isinstance(plan, str) else str(plan.id)


def check_op(op: str) -> None:
    if not isinstance(op, str) or not 1 <= len(op.encode()) <= 128:
        raise PolicyError(f"op: {op!r}")
