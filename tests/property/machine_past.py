"""The machine's steps about operations of earlier: looked up by their ids, or given back whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from meterd import Meter
from tests.oracle.model import Oracle
from tests.property.machine_holds import Made


class PastSteps:
    """What `Machine` does about operations of earlier. `came_back`: units that came back so far."""

    rng: random.Random
    oracle: Oracle
    meter: Meter
    both: Callable[[str, Callable[[], Any], Callable[[], Any]], None]

    made: list[Made]
    came_back = 0

    def past_step(self, subject: Any, now: int) -> None:
        rng = self.rng
        op = f"op{rng.randint(1, 12)}"
        root = subject.partition("/")[0] if isinstance(subject, str) else subject[0]
        live = {
            id: known
            for table in (self.oracle.operations, self.oracle.ends)
            for id, known in table.get(root, {}).items()
            if known.until > now and known.refund is None
        }
        if live and rng.random() < 0.8:
            op = rng.choice(sorted(live))
            subject = live[op].request[1] if rng.random() < 0.95 else subject
        elif self.made and rng.random() < 0.5:
            made = rng.choice(self.made[-12:])
            op, subject = made.id, made.subject
        if rng.random() < 0.4:
            self.both(
                f"operation {subject} {op}",
                lambda: self.oracle.operation(subject, op, now_ms=now),
                lambda: self.meter.operation(subject, op),
            )
            return
        own = f"op{rng.randint(1, 12)}" if rng.random() < 0.2 else None

        def engine() -> Any:
            decision = self.meter.refund(subject, of=op, op=own)
            if not decision.replayed:
                PastSteps.came_back += sum(state.applied for state in decision.limits)
            return decision

        self.both(
            f"refund {subject} of {op} as {own}",
            lambda: self.oracle.refund_of(subject, op, op=own, now_ms=now),
            engine,
        )


def operation_fields(found: Any, decision_fields: Callable[[Any], Any]) -> dict[str, Any]:
    """Every field of the engine's or the model's account of an operation."""
    subject = found.subject
    return {
        "verb": found.verb,
        "subject": tuple(subject.split("/")) if isinstance(subject, str) else tuple(subject),
        "costs": list(found.costs.items()),
        "at_ms": found.at_ms,
        "expires_ms": found.expires_ms,
        "decision": found.decision and decision_fields(found.decision),
        "refund": found.refund and decision_fields(found.refund),
    }
