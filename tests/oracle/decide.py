"""Deciding one call: which limits it reaches, whether they fit, and how the answer shows them.

Nothing here writes: states go in and come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.oracle.calendar import CENTURY_MS
from tests.oracle.errors import PolicyError
from tests.oracle.levels import View
from tests.oracle.limits import OLimit
from tests.oracle.records import copy_of, end_override, end_share
from tests.oracle.requests import Amounts

AUTO = "+"
"""Among amounts: so many times what each limit charges unasked, where nothing else reaches it."""


@dataclass(slots=True)
class ODecision:
    """The answer to a call that charges or could. `refused` holds entries of `limits`."""

    allowed: bool
    code: str
    balance: int | None
    limits: list[OLimit] = field(default_factory=list)
    refused: list[OLimit] = field(default_factory=list)
    retry_after_ms: int | None = None
    op: str | None = None
    replayed: bool = False


@dataclass(slots=True)
class Hit:
    """A limit that the call charges, with its state brought to now."""

    view: View
    spec: Any
    state: Any
    amount: int


def planned(views: list[View]) -> bool:
    """Whether any level has a plan, or a grant."""
    return any(view.record and (view.record.plans or view.record.grants) for view in views)


def factors(spec: Any, amounts: Amounts) -> list[tuple[str, int]]:
    """Which of the cost names the limit charges, and how many units each is."""
    charged = [(cost, factor) for cost, factor in spec.rates if cost in amounts]
    if not charged and AUTO in amounts and spec.auto:
        return [(AUTO, spec.auto)]
    return charged


def hits_of(views: list[View], amounts: Amounts, now: int) -> tuple[list[Hit], set[str]]:
    """Every limit charged, levels root first, and the cost names that reach nothing."""
    hits: list[Hit] = []
    missing = set(amounts) - {AUTO}
    for view in views:
        if view.record is None:
            continue
        for name, spec in view.record.specs.items():
            charged = factors(spec, amounts)
            if charged:
                missing.difference_update(cost for cost, _ in charged)
                total = sum(amounts[cost] * factor for cost, factor in charged)
                hits.append(Hit(view, spec, view.record.state(name, now), total))
    return hits, missing


def decide(
    views: list[View],
    amounts: Amounts,
    now: int,
    op: str | None,
    *,
    dry_run: bool = False,
) -> tuple[ODecision, list[Hit], list[Any]]:
    """The decision on charging `amounts`; the limits concerned and their states after the call."""
    hits, missing = hits_of(views, amounts, now)
    fits = [hit.spec.fits(hit.state, hit.amount, now) for hit in hits]
    refusing = [hit for hit, fit in zip(hits, fits, strict=True) if not fit]
    code = "OK"
    if not planned(views):
        code = "NO_PLAN"
    elif missing:
        code = "NOT_INCLUDED"
    elif refusing:
        pool = any(hit.spec.kind == "pool" for hit in refusing)
        code = "USAGE_EXCEEDED" if pool else "RATE_LIMITED"
    allowed = code == "OK"
    after = [hit.state for hit in hits]
    if allowed:
        charged = [hit.spec.charge(hit.state, hit.amount, now) for hit in hits]
        check_counters(hits, charged)
        after = after if dry_run else charged
    limits = []
    for hit, fit, state in zip(hits, fits, after, strict=True):
        retry = None if fit else retry_after(hit, now)
        applied = hit.amount if allowed and not dry_run and hit.spec.kind != "flag" else 0
        limits.append(shown(hit, state, now, applied, fit, retry))
    refused = [limit for limit in limits if not limit.allowed]
    waits = [limit.retry_after_ms for limit in refused]
    known = [wait for wait in waits if wait is not None]
    decision = ODecision(
        allowed,
        code,
        balance(hits, after, amounts, now, code),
        limits,
        refused,
        max(known) if refused and known == waits and not missing else None,
        op,
    )
    return decision, hits, after


def retry_after(hit: Hit, now: int) -> int | None:
    """A refused first sight leaves no record, so no period of its pools ever passes."""
    if hit.view.fresh and hit.spec.kind == "pool":
        return None
    if hit.spec.kind == "slots":
        assert hit.view.record is not None
        return hit.spec.retry_after(hit.state, hit.amount, now, hit.view.record.first_end())
    wait = hit.spec.retry_after(hit.state, hit.amount, now)
    assert hit.view.record is not None
    record, name = hit.view.record, hit.spec.name
    ends = record.overrides[name].expires if name in record.overrides else None
    if ends is None or ends - now > CENTURY_MS or (wait is not None and now + wait < ends):
        return wait
    after = copy_of(record)
    if name in after.shares and after.shares[name].end <= ends:
        end_share(after, name, after.shares[name].end)
    end_override(after, name, ends)
    spec, state = after.specs[name], after.state(name, ends)
    if spec.fits(state, hit.amount, ends):
        return ends - now
    wait = spec.retry_after(state, hit.amount, ends)
    return None if wait is None else ends - now + wait


def refuse_slots(hits: list[Hit]) -> None:
    """Slots are for holds alone."""
    for hit in hits:
        if hit.spec.kind == "slots":
            raise PolicyError(f"{hit.spec.name}: slots are taken by a reservation")


def check_counters(hits: list[Hit], states: list[Any]) -> None:
    for hit, state in zip(hits, states, strict=True):
        if hit.spec.overflows(state):
            raise PolicyError(f"{hit.spec.name}: the counter would pass 9*10**15")


def balance(
    hits: list[Hit], states: list[Any], amounts: Amounts, now: int, code: str = ""
) -> int | None:
    """How many more of the first cost name would fit; None: no bound."""
    first = next(iter(amounts))
    reached = False
    bounds: list[int] = []
    for hit, state in zip(hits, states, strict=True):
        factor = dict(factors(hit.spec, amounts)).get(first)
        if factor is not None:
            reached = True
            spendable = hit.spec.spendable(state, now)
            if spendable is not None:
                bounds.append(spendable // factor)
    if not reached:  # with nothing to charge there is no bound either
        return None if first == AUTO and code == "OK" else 0
    return min(bounds, default=None)


def recorded(
    hits: list[Hit],
    moved: list[tuple[Any, int]],
    fits: list[bool],
    amounts: Amounts,
    now: int,
    op: str | None,
) -> ODecision:
    """The answer to a call that never refuses: report, refund, commit."""
    limits = []
    for hit, (state, applied), fit in zip(hits, moved, fits, strict=True):
        limits.append(shown(hit, state, now, applied, fit, None))
    left = balance(hits, [state for state, _ in moved], amounts, now)
    return ODecision(True, "OK", left, limits, op=op)


def shown(hit: Hit, state: Any, now: int, applied: int, allowed: bool, retry: int | None) -> OLimit:
    figures = hit.spec.figures(state, now)
    return OLimit(
        hit.view.path,
        hit.spec.name,
        hit.spec.kind,
        hit.spec.limit,
        figures.used,
        figures.remaining,
        figures.overage,
        applied,
        allowed,
        figures.resets_at_ms,
        retry,
        figures.drawn,
        figures.granted,
    )
