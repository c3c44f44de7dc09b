"""Oracle and engine side by side: random plans, paths, costs, clocks, plan changes, replayed ids.

A machine draws every choice from one `random.Random`, so Hypothesis can drive and shrink it, and a
long run can feed it plain seeds. After every step each field of the engine's answer must equal the
model's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from meterd import Bucket, Flag, Meter, Plan, Pool, errors
from meterd.testing import ManualClock
from tests.oracle import errors as oracle_errors
from tests.oracle.grants import OGrant
from tests.oracle.model import Oracle
from tests.property.conservation import Conservation
from tests.property.fields import (
    GRANTS,
    decision_fields,
    difference,
    grant_fields,
    instant,
    limit_fields,
    model_fields,
    model_limit,
)
from tests.property.machine_events import EventSteps, random_telling
from tests.property.machine_grants import GrantSteps
from tests.property.machine_holds import HoldSteps, holds_fields, random_slots
from tests.property.machine_past import PastSteps, operation_fields
from tests.property.machine_plans import PlanSteps, pending_fields

START_MS = 1_709_000_000_000  # 2024-02-27
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Sydney", "Asia/Kolkata",
    "Africa/Casablanca", "Pacific/Apia",
)  # fmt: skip
SUBJECTS = ("a", "b", "a/t", "b/t", "a/t/u", "a/t/u/v", ("b", "x/y"))
COSTS = ("credits", "api", "burst", "login", "tokens", "sso", "nothing")
EXTRA = ("extra",) if GRANTS else ()  # in no plan: only grants make it a pool
AMOUNTS = (0, 1, 1, 1, 2, 3, 5, 8, 13, 40, 100, 1000, 10**6)
STEPS_MS = (0, 0, 1, 1, 7, 100, 999, 1000, 5_000, 60_000, 3_600_000, 86_400_000, 40 * 86_400_000)
RESETS = (None, "hour", "day", "week", "month", "quarter", "year", "90s", "36h", "10d")


def random_pool(rng: random.Random, name: str) -> Pool:
    reset = rng.choice(RESETS)
    anchors: list[Any] = ["subscription"]
    if reset is not None:
        anchors += ["first_use", rng_datetime(rng)]
        if reset in ("hour", "day", "week", "month", "quarter", "year"):
            anchors.append("calendar")
        if reset == "month":
            anchors += [rng.randint(1, 31)] * 3
    anchor = rng.choice(anchors)
    carries = reset is not None and anchor != "first_use"
    return Pool(
        name,
        rng.choice((None, 0, 1, 10, 100, 1000, 10**15)),
        reset,
        anchor=anchor,
        tz=rng.choice(ZONES),
        rollover=rng.choice((0, 0, 5, 100, 10**6)) if carries else 0,
        overage=rng.choice((0, 0, 0, 7, None)),
        carry_debt=carries and rng.random() < 0.4,
        rates=random_rates(rng, name),
        **random_telling(rng),
    )


def rng_datetime(rng: random.Random) -> Any:
    return datetime(2023, 1, 31, 5, 30, tzinfo=UTC) + timedelta(minutes=rng.randint(0, 10**6))


def random_rates(rng: random.Random, name: str) -> dict[str, int] | None:
    if rng.random() < 0.6:
        return None
    names = rng.sample((*COSTS[:6], "jobs"), rng.randint(1, 3))
    return {cost: rng.choice((1, 1, 2, 3, 10)) for cost in names}


def random_bucket(rng: random.Random, name: str) -> Bucket:
    algorithm = rng.choice(("sliding", "fixed", "token"))
    return Bucket(
        name,
        rng.choice((0, 1, 3, 10, 60, 1000, 10**12)),
        rng.choice(("1ms", "7ms", "1s", "10s", "1m", "1h", "30d", "366d")),
        algorithm=algorithm,
        burst=rng.choice((None, 1, 5, 20, 10**12)) if algorithm == "token" else None,
        rates=random_rates(rng, name),
    )


def random_limits(rng: random.Random) -> list[Any]:
    limits: list[Any] = []
    if rng.random() < 0.85:
        limits.append(random_pool(rng, "credits"))
    if rng.random() < 0.3:
        limits.append(random_pool(rng, "tokens"))
    limits += [random_bucket(rng, name) for name in ("api", "burst", "login") if rng.random() < 0.5]
    if rng.random() < 0.4:
        limits.append(Flag("sso"))
    limits += random_slots(rng)
    rng.shuffle(limits)
    return limits


def random_plans(rng: random.Random) -> list[Plan]:
    """Base plans, and an add-on whose limits agree with every base plan in all that must agree."""
    plans = [
        Plan(name, includes=random_limits(rng), default=default)
        for name, default in (("free", rng.random() < 0.7), ("pro", False), ("max", False))
    ]
    extra = [Bucket("seats", rng.choice((1, 9)), "1d", rates={"login": 1})]
    if rng.random() < 0.5:
        extra.append(Pool("addon", 50, "month", rates={"credits": 2}))
    plans.append(Plan("more", includes=extra, group="addons", default=rng.random() < 0.2))
    same = Pool("shared", 10, "week", anchor="calendar", rates={"tokens": 1})
    if rng.random() < 0.5:
        plans[0] = Plan("free", includes=[*plans[0].includes, same], default=plans[0].default)
        plans[-1] = Plan("more", includes=[*extra, same], group="addons", default=plans[-1].default)
    return plans


_ERRORS: dict[type[Exception], type[Exception]] = {
    oracle_errors.PolicyError: errors.PolicyError,
    oracle_errors.OpConflict: errors.OpConflict,
    oracle_errors.OpNotFound: errors.OpNotFound,
    oracle_errors.NotIncluded: errors.NotIncluded,
    oracle_errors.NoPlan: errors.NoPlan,
}


class Machine(Conservation, GrantSteps, HoldSteps, PastSteps, PlanSteps, EventSteps):
    """One store and one model, fed the same calls."""

    draw_plans = staticmethod(random_plans)

    def __init__(self, rng: random.Random, make: Callable[[Any, list[Plan]], Meter]) -> None:
        self.rng = rng
        self.clock = ManualClock(START_MS + rng.randint(0, 10**9))
        plans = self.draw_plans(rng)
        self.log: list[str] = [f"plans={plans}"]
        self.oracle = Oracle(plans, start_ms=self.clock.now_ms, expire_first_sight=False)
        self.meter = make(self.clock, plans)
        self.made = []
        self.given = []
        self.books = {}
        self.heard: dict[bytes, bytes] = {}
        self.latest = 0
        self.limiter = (
            [random_bucket(rng, "ip"), random_bucket(rng, "all")] if rng.random() < 0.5 else []
        )
        if self.limiter:
            self.limits = self.meter.limiter("login", *self.limiter)
            self.model_limits = self.oracle.limiter("login", *self.limiter)

    def both(self, what: str, model: Callable[[], Any], engine: Callable[[], Any]) -> None:
        """Runs both; same error, or same answer in every field."""
        self.log.append(f"@{self.clock.now_ms} {what}")
        actual = failure = None
        try:
            actual = engine()
        except errors.MeterdError as error:
            failure = error
        expected: Any
        try:
            expected = model()
        except oracle_errors.OracleError as error:
            expected = error
        if failure is not None:
            if type(failure) is _ERRORS.get(type(expected)):
                return
            raise AssertionError(f"{what}: expected {expected!r}\n{self.story()}") from failure
        if isinstance(expected, Exception):
            raise AssertionError(f"{what}: {actual!r}, expected {expected!r}\n{self.story()}")
        if hasattr(expected, "code"):
            left, right = model_fields(expected), decision_fields(actual)
        elif hasattr(expected, "verb"):
            left = operation_fields(expected, model_fields)
            right = operation_fields(actual, decision_fields)
        elif hasattr(expected, "plans"):
            left = {"limits": [model_limit(limit) for limit in expected.limits]}
            right = {"limits": [limit_fields(state) for state in actual.limits]}
            left["pending"] = pending_fields(
                [
                    p
                    for p, plans in zip(expected.pending, expected.plans, strict=True)
                    if plans is not None
                ]
            )
            right["pending"] = pending_fields([level.pending for level in actual.levels])
            if self.holding:
                known = zip(expected.holds, expected.plans, strict=True)
                left["holds"] = holds_fields(
                    [held[:100] for held, plans in known if plans is not None]
                )
                right["holds"] = holds_fields([level.holds for level in actual.levels])
            if GRANTS:
                booked = zip(expected.grants, expected.plans, strict=True)
                left["grants"] = [
                    [grant_fields(grant) for grant in level]
                    for level, plans in booked
                    if plans is not None
                ]
                right["grants"] = [
                    [grant_fields(grant) for grant in level.grants] for level in actual.levels
                ]
        elif isinstance(expected, OGrant):
            left, right = grant_fields(expected), grant_fields(actual)
        elif hasattr(expected, "fields"):
            left, right = {"answer": expected.fields}, {"answer": actual.fields}
        elif isinstance(expected, int):
            left, right = {"units": expected}, {"units": actual}
        else:
            return
        if left != right:
            raise AssertionError(f"{what}:\n{difference(left, right)}\n{self.story()}")

    def story(self) -> str:
        return "\n".join([*self.log[:1], *self.log[-40:]])

    def limits_drawn(self) -> list[Any]:
        return random_limits(self.rng)

    # Steps ---------------------------------------------------------------------------------------

    def costs(self) -> Any:
        rng = self.rng
        if GRANTS and rng.random() < 0.15:
            amount = rng.choice(AMOUNTS)
            return rng.choice(("extra", {"extra": amount}, {"credits": amount, "extra": 1}))
        if rng.random() < 0.6:
            return rng.choice(COSTS[:6])
        names = rng.sample(COSTS[: 7 if rng.random() < 0.1 else 6], rng.randint(1, 4))
        return {name: rng.choice(AMOUNTS) for name in names}

    def step(self) -> None:
        self.act()
        self.listen()
        self.conserve()

    def act(self) -> None:
        rng = self.rng
        self.clock.now_ms += rng.choice(STEPS_MS)
        if rng.random() < 0.03:
            self.clock.now_ms -= rng.choice((1, 1000, 10**7))
        self.keep_up()
        now = self.clock.now_ms
        subject = rng.choice(SUBJECTS)
        roll = rng.random()
        if rng.random() < 0.06:
            self.harvest()
        elif self.holding and rng.random() < 0.35:
            self.hold_step(subject, now)
        elif GRANTS and rng.random() < 0.15:
            self.grant_step(subject, now)
        elif roll < 0.62:
            self.charge(subject, now)
        elif roll < 0.72:
            self.past_step(subject, now)
        elif roll < 0.78:
            self.look(subject, now)
        elif roll < 0.84:
            self.subscribe(subject, now)
        elif roll < 0.86:
            self.unsubscribe(subject, now)
        elif roll < 0.90:
            self.override(subject, now)
        elif roll < 0.93:
            self.adjust(subject, now)
        elif roll < 0.935:
            self.both(
                f"forget {subject}",
                lambda: self.oracle.forget(subject, now_ms=now),
                lambda: self.meter.forget(subject),
            )
        elif roll < 0.96 and self.limiter:
            self.limit(now)
        elif roll < 0.985:
            self.apply()

    def look(self, subject: Any, now: int) -> None:
        self.both(
            f"usage {subject}",
            lambda: self.oracle.usage(subject, now_ms=now),
            lambda: self.meter.usage(subject),
        )

    def charge(self, subject: Any, now: int) -> None:
        verb, subject, costs, amount, options = self.drawn(subject)
        self.both(
            f"{verb} {subject} {costs} {amount} {options}",
            lambda: getattr(self.oracle, verb)(subject, costs, amount, now_ms=now, **options),
            lambda: getattr(self.meter, verb)(subject, costs, amount, **options),
        )

    def drawn(self, subject: Any) -> tuple[str, Any, Any, int, dict[str, Any]]:
        """A call of a verb that charges."""
        rng = self.rng
        verb = rng.choice(("consume", "consume", "consume", "consume", "check", "report", "refund"))
        costs = self.costs()
        amount = rng.choice(AMOUNTS) if isinstance(costs, str) else 1
        if isinstance(costs, str) and rng.random() < 0.01:
            amount = 10**15
        options: dict[str, Any] = {}
        if verb != "refund" and rng.random() < 0.2:
            options["join"] = rng.choice(("free", "pro", "more"))
        if verb != "check" and rng.random() < 0.3:
            options["op"] = f"op{rng.randint(1, 12)}"
        return verb, subject, costs, amount, options

    def override(self, subject: Any, now: int) -> None:
        rng = self.rng
        name = rng.choice(("credits", "tokens", "api", "burst", "login", "jobs"))
        options: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        if rng.random() < 0.2:
            options["clear"] = True
        else:
            if rng.random() < 0.8:
                fields["limit"] = rng.choice((0, 2, 50, 10**6))
            elif name in ("credits", "tokens"):
                fields["overage"] = rng.choice((0, 3, None))
            else:
                fields["burst"] = rng.choice((1, 30))
            ends = rng.choice((None, None, now + 1, now + 90_000, now + 86_400_000 * 50, now))
            if ends is not None:
                options["expires"] = ends
        model = {("expires_ms" if k == "expires" else k): v for k, v in options.items()}
        if "expires" in options:
            options["expires"] = instant(options["expires"])
        self.both(
            f"override {subject} {name} {model} {fields}",
            lambda: self.oracle.override(subject, name, now_ms=now, **model, **fields),
            lambda: self.meter.override(subject, name, **options, **fields),
        )

    def adjust(self, subject: Any, now: int) -> None:
        name, used = self.rng.choice((*COSTS, "jobs", *EXTRA)), self.rng.choice(AMOUNTS)
        self.both(
            f"adjust {subject} {name} {used}",
            lambda: (self.oracle.adjust(subject, name, used=used, now_ms=now), None)[1],
            lambda: self.meter.adjust(subject, name, used=used),
        )

    def limit(self, now: int) -> None:
        verb = self.rng.choice(("consume", "consume", "check"))
        subject, amount = self.rng.choice(("1.2.3.4", "ab")), self.rng.choice(AMOUNTS)
        self.both(
            f"limiter.{verb} {subject} {amount}",
            lambda: getattr(self.model_limits, verb)(subject, amount, now_ms=now),
            lambda: getattr(self.limits, verb)(subject, amount),
        )

    def apply(self) -> None:
        plans = [plan for plan in self.draw_plans(self.rng) if self.rng.random() < 0.6]
        self.both(
            f"apply {plans}",
            lambda: self.oracle.apply(plans),
            lambda: self.meter.apply(plans),
        )
