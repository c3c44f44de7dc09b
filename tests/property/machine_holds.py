"""The machine's steps about slots and reservations: made, committed, released, renewed, or left."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import meterd
from meterd import Meter, wire
from meterd.testing import ManualClock
from tests.oracle.model import Oracle

TTLS_MS = (1, 2, 50, 1000, 1000, 30_000, 3_600_000, 86_400_000, 50 * 86_400_000, 366 * 86_400_000)
HOLD_COSTS = ("credits", "api", "burst", "login", "tokens", "jobs", "jobs", "jobs", "sso")
if hasattr(Meter, "grant"):
    HOLD_COSTS += ("credits", "extra")
HOLD_AMOUNTS = (0, 1, 1, 1, 2, 3, 5, 8, 13, 40)
OTHER_PATHS = {"a": "a/t/u", "b": "b/t", "a/t": "a", "b/t": "b", "a/t/u": "a/t", "a/t/u/v": "a/t"}


def random_slots(rng: random.Random) -> list[Any]:
    """At most one of them."""
    if not hasattr(meterd, "Slots") or rng.random() < 0.4:
        return []
    rates = None if rng.random() < 0.8 else {"jobs": rng.choice((1, 2)), "tokens": 1}
    return [meterd.Slots("jobs", rng.choice((0, 1, 2, 5, 100, 10**12)), rates=rates)]


@dataclass
class Made:
    """A reservation that was tried. `hold`: what the meter returned, where it was allowed."""

    subject: Any
    id: str
    held: dict[str, int]
    hold: Any


class HoldSteps:
    """What `Machine` does about reservations, where the meter has them."""

    rng: random.Random
    clock: ManualClock
    oracle: Oracle
    meter: Meter
    both: Callable[[str, Callable[[], Any], Callable[[], Any]], None]

    made: list[Made]
    hold_costs = HOLD_COSTS

    @property
    def holding(self) -> bool:
        return hasattr(self.meter, "reserve")

    def hold_step(self, subject: Any, now: int) -> None:
        roll = self.rng.random()
        if roll < 0.45 or not self.made:
            self.reserve(subject, now)
            return
        made = self.rng.choice(self.made[-12:])
        subject = made.subject
        if self.rng.random() < 0.05:
            subject = OTHER_PATHS.get(subject, subject)
        if roll < 0.72:
            self.commit(made, subject, now)
        elif roll < 0.82:
            self.release(made, subject, now)
        elif roll < 0.91:
            self.renew(made, subject, now)
        else:
            self.tally(made, subject, now)

    def reserve(self, subject: Any, now: int) -> None:
        rng = self.rng
        if rng.random() < 0.5:
            costs: Any = rng.choice(self.hold_costs)
            amount = self.hold_amount(subject, costs)
            held = {costs: amount}
        else:
            known = sorted(set(self.hold_costs))
            names = rng.sample(known, rng.randint(1, min(4, len(known))))
            held = costs = {name: rng.choice(HOLD_AMOUNTS) for name in names}
            amount = 1
        ttl = rng.choice(TTLS_MS)
        options: dict[str, Any] = {}
        if rng.random() < 0.2:
            options["join"] = rng.choice(("free", "pro", "more"))
        if rng.random() < 0.3:
            options["op"] = f"op{rng.randint(1, 12)}"
        made = Made(subject, options.get("op", ""), held, None)

        def engine() -> Any:
            hold = self.meter.reserve(
                subject, costs, amount, ttl=timedelta(milliseconds=ttl), **options
            )
            assert bool(hold) == hold.decision.allowed
            made.id, made.hold = hold.id, hold if hold else None
            return hold.decision

        def model() -> Any:
            hold_id = made.id or "failed"
            return self.oracle.reserve(
                subject, costs, amount, ttl_ms=ttl, hold_id=hold_id, now_ms=now, **options
            )

        self.both(f"reserve {subject} {costs} {amount} {ttl} {options}", model, engine)
        if made.id:
            self.made.append(made)

    def hold_amount(self, subject: Any, name: str) -> int:
        return self.rng.choice(HOLD_AMOUNTS)

    def commit(self, made: Made, subject: Any, now: int) -> None:
        """By the hold that was made here, or as another process would."""
        rng = self.rng
        actual = None if rng.random() < 0.4 else self.actual(made)
        here = made.hold is not None and subject == made.subject and rng.random() < 0.4
        known = made.held if here else None  # whoever made it says what was held
        hold = made.hold if here else self.meter.hold(subject, made.id)
        self.both(
            f"commit {subject} {made.id} {actual} {known}",
            lambda: self.oracle.commit(subject, made.id, actual, known=known, now_ms=now),
            lambda: hold.commit(actual),
        )
        if rng.random() < 0.2:  # the same, or nearly, said in full
            full = {**made.held, **(actual or {})}
            if rng.random() < 0.2:
                full[rng.choice(sorted(full))] += 1
            self.both(
                f"commit {subject} {made.id} {full} again",
                lambda: self.oracle.commit(subject, made.id, full, now_ms=now),
                lambda: self.meter.hold(subject, made.id).commit(full),
            )

    def actual(self, made: Made) -> dict[str, int]:
        rng = self.rng
        names = rng.sample(sorted(made.held), rng.randint(0, len(made.held)))
        if not names or rng.random() < 0.3:
            names.append(rng.choice((*self.hold_costs, "nothing")))
        return {
            name: rng.choice((0, made.held.get(name, 3), *HOLD_AMOUNTS))
            for name in dict.fromkeys(names)
        }

    def release(self, made: Made, subject: Any, now: int) -> None:
        self.both(
            f"release {subject} {made.id}",
            lambda: self.oracle.release(subject, made.id, now),
            lambda: self.meter.hold(subject, made.id).release(),
        )

    def renew(self, made: Made, subject: Any, now: int) -> None:
        ttl = self.rng.choice(TTLS_MS)
        self.both(
            f"renew {subject} {made.id} {ttl}",
            lambda: self.oracle.renew(subject, made.id, ttl, now),
            lambda: self.meter.hold(subject, made.id).renew(timedelta(milliseconds=ttl)),
        )

    def tally(self, made: Made, subject: Any, now: int) -> None:
        rng = self.rng
        names = rng.sample(sorted(made.held), rng.randint(1, len(made.held)))
        spent = {name: rng.randint(0, made.held[name]) for name in names}
        if rng.random() < 0.05:
            spent[rng.choice((*names, "nothing"))] = 41
        self.tally_up(subject, made.id, spent, rng.choice((None, *TTLS_MS)), now)

    def tally_up(
        self, subject: Any, hold_id: str, spent: dict[str, int], ttl: int | None, now: int
    ) -> None:
        def engine() -> Any:
            path = self.meter._keys.path(subject)
            flow = self.meter._holds.tally(path, hold_id, wire.encode_costs(spent), ttl)
            return self.meter._call("tally", subject, flow)

        self.both(
            f"tally {subject} {hold_id} {spent} {ttl}",
            lambda: self.oracle.tally(subject, hold_id, spent, ttl_ms=ttl, now_ms=now),
            engine,
        )


def holds_fields(levels: list[Any]) -> list[list[tuple[Any, ...]]]:
    """Per level the open holds, at most 100 of them, soonest first."""
    return [[(h.id, h.expires_ms, dict(h.amounts), dict(h.tallied)) for h in x] for x in levels]
