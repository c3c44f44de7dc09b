"""Plain rate limiting beside the catalog: one record per subject, whatever its path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.oracle import records
from tests.oracle.decide import ODecision, decide
from tests.oracle.levels import View
from tests.oracle.plans import merge
from tests.oracle.requests import Subject, check_amount, path_of

if TYPE_CHECKING:
    from tests.oracle.model import Oracle

COST = "*"
"""The one cost name of a limiter, which reaches each of its limits at rate 1."""


class OLimiter:
    """Charges 1 (or `amount`) of each of its limits, all or nothing."""

    def __init__(self, oracle: Oracle, name: str, limits: Iterable[Any]) -> None:
        self.oracle = oracle
        self.plans: dict[str, Any] = {"base": name}
        base = merge([SimpleNamespace(id=name, group="base", includes=tuple(limits))])
        self.specs = {n: replace(spec, rates=((COST, 1),)) for n, spec in base.items()}
        self.records = oracle.limiter_records.setdefault(name, {})

    def consume(self, subject: Subject, amount: int = 1, *, now_ms: int | None = None) -> ODecision:
        return self._run(subject, amount, now_ms, dry_run=False)

    def check(self, subject: Subject, amount: int = 1, *, now_ms: int | None = None) -> ODecision:
        return self._run(subject, amount, now_ms, dry_run=True)

    def _run(
        self, subject: Subject, amount: int, now_ms: int | None, *, dry_run: bool
    ) -> ODecision:
        path = path_of(subject)
        check_amount(amount)
        now = self.oracle.clock_ms if now_ms is None else now_ms
        record = self.records.get(path)
        changed = record is None or record.specs != self.specs
        if record is None:
            record = records.fresh(self.plans, self.specs, 0, now)
        else:
            now = max(now, record.seen)
            if record.specs != self.specs:
                record = records.converted(
                    record, plans=self.plans, base=self.specs, revision=0, overrides={}, now=now
                )
        view = View(path, record)
        decision, hits, after = decide([view], {COST: amount}, now, None, dry_run=dry_run)
        if decision.allowed and (amount or changed) and not dry_run:
            for hit, state in zip(hits, after, strict=True):
                record.states[hit.spec.name] = state
            record.seen = now
            self.records[path] = record
        return decision
