"""The machine's steps about plans of a subject: changed, now or later, in every way."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from meterd import Flag, Meter
from tests.oracle.model import Oracle
from tests.property.fields import instant


class PlanSteps:
    """What `Machine` does about the plans of a subject."""

    rng: random.Random
    oracle: Oracle
    meter: Meter
    both: Callable[[str, Callable[[], Any], Callable[[], Any]], None]

    waits = True  # changes may come later

    def limits_drawn(self) -> list[Any]:
        raise NotImplementedError

    def subscribe(self, subject: Any, now: int) -> None:
        rng = self.rng
        change = rng.choice(("keep", "reset", "prorate"))
        anchor = rng.choice((None, None, None, now - 86_400_000 * 3, now + 5_000_000))
        if rng.random() < 0.25:
            limits = self.limits_drawn() or [Flag("sso")]
            plan = None
        else:
            limits, plan = [], rng.choice(("free", "pro", "max", "more"))
        given = {"change": change, "anchor": None if anchor is None else instant(anchor)}
        when = self.when(now)
        self.both(
            f"subscribe {subject} {plan} {limits} {change} {anchor} {when}",
            lambda: self.oracle.subscribe(
                subject, plan, limits=limits, change=change, when=when, anchor_ms=anchor, now_ms=now
            ),
            lambda: self.meter.subscribe(subject, plan, limits=limits, when=moment(when), **given),
        )

    def when(self, now: int) -> int | str:
        if not self.waits:
            return "now"
        later = (0, 1, 1000, 90_000, 86_400_000, 45 * 86_400_000)
        return self.rng.choice(("now", "now", "period_end", now + self.rng.choice(later)))

    def unsubscribe(self, subject: Any, now: int) -> None:
        plan = self.rng.choice(("free", "pro", "more", "nonsense"))
        when = self.when(now)
        self.both(
            f"unsubscribe {subject} {plan} {when}",
            lambda: self.oracle.unsubscribe(subject, plan, when=when, now_ms=now),
            lambda: self.meter.unsubscribe(subject, plan, when=moment(when)),
        )


def moment(when: int | str) -> Any:
    """As the engine takes it."""
    return instant(when) if isinstance(when, int) else when


def pending_fields(levels: list[Any]) -> list[list[tuple[Any, ...]]]:
    """Per level the changes that wait, the next one first."""
    return [[(p.group, p.plan, p.at_ms, p.change) for p in pending] for pending in levels]
