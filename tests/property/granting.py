"""The machine where grants are everywhere: small pools, many grants, holds on both, few plans."""

from __future__ import annotations

import random
from typing import Any

from meterd import Bucket, Plan, Pool
from tests.property.machine import Machine
from tests.property.machine_holds import Made

RESETS: tuple[Any, ...] = (None, None, "hour", "10d", "90s")
GAPS_MS = (0, 0, 0, 1, 1, 49, 50, 999, 29_999, 60_000, 3_600_000, 86_400_000, 40 * 86_400_000)
AMOUNTS = (1, 1, 2, 3, 5, 8, 13, 21)


def small_pool(rng: random.Random, name: str) -> Pool:
    reset = rng.choice(RESETS)
    anchor = rng.choice(("subscription", "first_use")) if reset else "subscription"
    carries = reset is not None and anchor != "first_use"
    return Pool(
        name,
        rng.choice((0, 0, 3, 3, 10, 10, 40, None)),
        reset,
        anchor=anchor,
        rollover=rng.choice((0, 4, 100)) if carries else 0,
        overage=rng.choice((0, 0, 2, None)),
        carry_debt=carries and rng.random() < 0.5,
        rates=None if rng.random() < 0.7 else {name: rng.choice((1, 2)), "credits": 1},
    )


def small_plans(rng: random.Random) -> list[Plan]:
    """In some of them, what is a pool elsewhere is none, or is missing."""
    plans = []
    for plan in ("free", "pro", "max"):
        limits: list[Any] = [Bucket("api", 10**12, "1d")]
        limits += [small_pool(rng, name) for name in ("credits", "tokens") if rng.random() < 0.75]
        roll = rng.random()
        if roll < 0.2:
            limits.append(small_pool(rng, "extra"))
        elif roll < 0.3:
            limits.append(Bucket("extra", 10**12, "1h", algorithm="fixed"))
        plans.append(Plan(plan, includes=limits, default=plan == "free"))
    plans.append(Plan("more", includes=[Bucket("seats", 9, "1d")], group="addons"))
    return plans


class Granting(Machine):
    """Every step is followed by a look at what became of the grants."""

    draw_plans = staticmethod(small_plans)
    hold_costs = ("credits", "credits", "credits", "tokens", "extra", "api")

    def costs(self) -> Any:
        rng = self.rng
        names = ("credits", "tokens", "extra", "api")
        if rng.random() < 0.7:
            return rng.choice(names[:3])
        return {name: rng.choice(AMOUNTS) for name in rng.sample(names, rng.randint(1, 3))}

    def drawn(self, subject: Any) -> tuple[str, Any, Any, int, dict[str, Any]]:
        verb, subject, costs, amount, options = super().drawn(subject)
        if isinstance(costs, str) and self.rng.random() < 0.8:
            amount = self.fitting(subject, costs)
        return verb, subject, costs, amount, options

    def fitting(self, subject: Any, name: str) -> int:
        """Some amount, often just what is left of a pool or one more."""
        rng = self.rng
        limits = self.oracle.usage(subject, now_ms=self.clock.now_ms).limits
        left = [x.remaining for x in limits if x.name == name and (x.remaining or 0) > 0]
        if not left or rng.random() < 0.7:
            return rng.choice(AMOUNTS)
        return min(rng.choice(left) + rng.choice((-1, 0, 0, 1, 4)), 10**6)

    def hold_amount(self, subject: Any, name: str) -> int:
        return self.fitting(subject, name)

    def actual(self, made: Made) -> dict[str, int]:
        """Often some of what is held."""
        if self.rng.random() < 0.4:
            return super().actual(made)
        return {name: self.rng.randint(0, amount) for name, amount in made.held.items()}

    def pass_time(self, subject: Any, gaps: tuple[int, ...]) -> int:
        """Some of it, or until something ends or begins."""
        rng, now = self.rng, self.clock.now_ms
        ends = self.coming(subject, now)
        if ends and rng.random() < 0.15:
            self.clock.now_ms = max(now, ends[0] + rng.choice((-1, 0, 0, 1)))
        else:
            self.clock.now_ms += rng.choice(gaps)
        if rng.random() < 0.02:
            self.clock.now_ms -= rng.choice((1, 1000, 10**7))
        self.keep_up()
        return self.clock.now_ms

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.15:
            super().step()
            return
        subject = rng.choice(("a", "a", "a", "a/t", "a/t", "b"))
        now = self.pass_time(subject, GAPS_MS)
        roll = rng.random()
        if roll < 0.3:
            self.grant_step(subject, now)
        elif roll < 0.57:
            self.charge(subject, now)
        elif roll < 0.63:
            self.past_step(subject, now)
        elif roll < 0.66:
            self.back_twice(subject, now)
        elif roll < 0.92:
            self.hold_step(subject, now)
        elif roll < 0.93:
            self.many(subject, now)
        elif roll < 0.96:
            self.subscribe(subject, now)
        else:
            self.adjust(subject, now)
        self.look("a/t" if subject == "a" else subject, now)
        self.conserve()

    def back_twice(self, subject: Any, now: int) -> None:
        """A charge comes back by its amount, or some of it does, and then by its id."""
        name, op = self.rng.choice(("credits", "extra")), f"twice{len(self.log)}"
        amount = self.fitting(subject, name)
        for verb, units, options in (
            ("report", amount, {"op": op}),
            ("refund", self.rng.choice((amount, amount, 1)), {}),
        ):
            self.both(
                f"{verb} {subject} {name} {units} {options}",
                lambda verb=verb, units=units, options=options: getattr(self.oracle, verb)(
                    subject, name, units, now_ms=now, **options
                ),
                lambda verb=verb, units=units, options=options: getattr(self.meter, verb)(
                    subject, name, units, **options
                ),
            )
        self.both(
            f"refund {subject} of {op}",
            lambda: self.oracle.refund_of(subject, op, now_ms=now),
            lambda: self.meter.refund(subject, of=op),
        )

    def many(self, subject: Any, now: int) -> None:
        """As many grants as a record takes, and more; then what is left of them is burned."""
        name, priority = self.rng.choice(("credits", "extra")), self.rng.choice((50, 60))
        for _ in range(self.rng.randint(30, 70)):
            self.grant(subject, now, name=name, amount=1, priority=priority)
        for amount in (7, 13, 40):
            self.both(
                f"report {subject} {name} {amount}",
                lambda amount=amount: self.oracle.report(subject, name, amount, now_ms=now),
                lambda amount=amount: self.meter.report(subject, name, amount),
            )


class Burning(Granting):
    """Few names and one policy, so that the engine learns the calls; one pool has the grants."""

    hold_costs = ("credits", "credits", "api")

    def __init__(self, rng: random.Random, make: Any) -> None:
        super().__init__(rng, make)
        self.costs_here = [
            "credits",
            {"credits": 1},
            {"credits": 2, "api": 1},
            {"api": 1},
        ][: rng.randint(1, 4)]
        self.subjects = rng.choice((("a",), ("a",), ("a/t",), ("a", "a/t")))
        if "a/t" in self.subjects:
            self.oracle.subscribe("a/t", "pro", now_ms=self.clock.now_ms)
            self.meter.subscribe("a/t", "pro")

    @staticmethod
    def draw_plans(rng: random.Random) -> list[Plan]:
        """Always the same few of them."""
        always = random.Random(f"burning {rng.randint(1, 12)}")
        made = []
        for plan in ("free", "pro", "max"):
            limits = [small_pool(always, "credits"), Bucket("api", 10**12, "1d")]
            made.append(Plan(plan, includes=limits, default=plan == "free"))
        return [*made, Plan("more", includes=[Bucket("seats", 9, "1d")], group="addons")]

    def costs(self) -> Any:
        return self.rng.choice(self.costs_here)

    def drawn(self, subject: Any) -> tuple[str, Any, Any, int, dict[str, Any]]:
        verb = self.rng.choice(("consume",) * 5 + ("check", "check", "report", "refund"))
        costs = self.costs()
        amount = self.fitting(subject, costs) if isinstance(costs, str) else 1
        return verb, subject, costs, amount, {}

    def step(self) -> None:
        rng = self.rng
        subject = rng.choice(self.subjects)
        now = self.pass_time(subject, (0, 0, 0, 0, 0, 0, 1, 1, 50, 999, 60_000, 3_600_000))
        roll = rng.random()
        if roll < 0.68:
            self.charge(subject, now)
        elif roll < 0.8:
            fixed = {"starts": self.moment(subject, now)} if rng.random() < 0.2 else {}
            self.grant(subject, now, name="credits", amount=rng.choice(AMOUNTS), **fixed)
        elif roll < 0.83 and self.given:
            self.void(now)
        elif roll < 0.96:
            self.hold_step(subject, now)
        elif roll < 0.97:
            self.subscribe(subject, now)
        elif roll < 0.98:
            self.override(subject, now)
        elif roll < 0.99:
            self.adjust(subject, now)
        if rng.random() < 0.2:
            self.look(subject, now)
        self.conserve()
