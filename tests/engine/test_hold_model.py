"""Holds on a real server beside the model: random calls, the same answers, nothing left."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import Bucket, Flag, Meter, Plan, Pool, Slots, errors
from meterd.scripts import Scripts
from meterd.testing import ManualClock
from meterd.testing.cleanup import remove_prefix
from meterd.testing.prelude import prelude
from tests.engine.held import Holder, assert_sound
from tests.oracle import errors as oracle_errors
from tests.oracle.model import Oracle
from tests.property.machine import (
    decision_fields,
    difference,
    instant,
    limit_fields,
    model_fields,
    model_limit,
)
from tests.support import servers

START_MS = 1_709_000_000_000
NAMES = ("credits", "api", "tok", "jobs", "desks")
SUBJECTS = ("a", "a/t", "a/t/u", "b")
STEPS_MS = (0, 0, 0, 1, 400, 1000, 7_000, 30_000, 61_000, 600_000, 86_400_000, 40 * 86_400_000)
TTLS_MS = (1, 400, 1000, 5_000, 30_000, 61_000, 3_600_000, 50 * 86_400_000)


def random_limit(rng: random.Random, name: str) -> Any:
    rates = None if rng.random() < 0.6 else {name: rng.choice((1, 2)), rng.choice(NAMES): 1}
    if rng.random() < 0.1:
        return Flag(name)
    if name in ("jobs", "desks") and rng.random() < 0.85:
        return Slots(name, rng.choice((0, 3, 8, 30)), rates=rates)
    if name == "credits" or rng.random() < 0.1:
        reset = rng.choice((None, "1h", "day", "month", "90s"))
        anchor = rng.choice(("subscription", "first_use")) if reset else "subscription"
        roll = rng.choice((0, 5)) if reset and anchor != "first_use" else 0
        return Pool(
            name, rng.choice((None, 7, 30, 1000)), reset, anchor=anchor, rollover=roll,
            overage=rng.choice((0, 4, None)), rates=rates,
        )  # fmt: skip
    algorithm = rng.choice(("sliding", "fixed", "token"))
    return Bucket(
        name,
        rng.choice((0, 5, 20, 20, 10**12)),
        rng.choice(("7ms", "1s", "10s", "1m", "1h", "30d", "366d")),
        algorithm=algorithm,
        burst=rng.choice((None, 3, 40)) if algorithm == "token" else None,
        rates=rates,
    )


def random_limits(rng: random.Random) -> list[Any]:
    return [random_limit(rng, name) for name in NAMES if rng.random() < 0.85] or [Flag("sso")]


def random_plans(rng: random.Random) -> list[Plan]:
    return [
        Plan("free", includes=random_limits(rng), default=True),
        Plan("pro", includes=random_limits(rng)),
    ]


Make = Callable[[ManualClock, list[Plan]], tuple[Meter, Any]]
_SAME = (
    errors.PolicyError,
    errors.OpConflict,
    errors.OpNotFound,
    errors.NotIncluded,
    errors.NoPlan,
)


class Run:
    """One store and one model, fed the same calls about holds and about what they meet."""

    def __init__(self, rng: random.Random, make: Make) -> None:
        self.rng = rng
        clock = ManualClock(START_MS + rng.randint(0, 10**9))
        plans = random_plans(rng)
        self.meter, client = make(clock, plans)
        self.holder = Holder(self.meter, client, clock)
        self.clock = clock
        self.oracle = Oracle(plans, start_ms=clock.now_ms, expire_first_sight=False)
        self.log = [f"plans={plans}"]
        self.ids: list[tuple[str, str, dict[str, int]]] = [("a", "never", {"jobs": 1})]

    def both(self, what: str, model: Any, engine: Any) -> Any:
        self.log.append(f"@{self.clock.now_ms} {what}")
        story = "\n".join([*self.log[:1], *self.log[-25:]])
        try:
            expected: Any = model()
        except oracle_errors.OracleError as error:
            expected = type(error).__name__
        try:
            actual: Any = engine()
        except _SAME as error:
            actual = type(error).__name__
        if hasattr(expected, "code") and hasattr(actual, "code"):
            left, right = model_fields(expected), decision_fields(actual)
            left.pop("op"), right.pop("op")
            assert left == right, f"{what}:\n{difference(left, right)}\n{story}"
        elif isinstance(expected, str) or isinstance(actual, str):
            assert expected == actual, f"{what}\n{story}"
        return actual

    def look(self, subject: str) -> None:
        """The whole picture, holds included."""
        now = self.clock.now_ms
        expected, actual = self.oracle.usage(subject, now_ms=now), self.meter.usage(subject)
        story = "\n".join([*self.log[:1], *self.log[-25:]])
        left = [model_limit(limit) for limit in expected.limits]
        right = [limit_fields(state) for state in actual.limits]
        assert left == right, f"usage {subject}\n{left}\n{right}\n{story}"
        listed = {
            level.subject: [
                (h.id, h.expires_ms, dict(h.amounts), dict(h.tallied)) for h in level.holds
            ]
            for level in actual.levels
            if level.holds
        }
        path = tuple(subject.split("/"))
        modelled = {
            "/".join(path[: depth + 1]): [(h.id, h.expires_ms, h.amounts, h.tallied) for h in holds]
            for depth, holds in enumerate(expected.holds)
            if holds
        }
        assert modelled == listed, f"holds of {subject}\n{story}"

    def costs(self) -> dict[str, int]:
        names = self.rng.sample(NAMES, self.rng.randint(1, 3))
        return {name: self.rng.choice((0, 1, 1, 2, 3, 5, 12)) for name in names}

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.45:
            self.clock.now_ms += rng.choice(STEPS_MS)
        now, subject = self.clock.now_ms, rng.choice(SUBJECTS)
        roll = rng.random()
        if roll < 0.35:
            self.reserve(subject, now)
        elif roll < 0.6:
            self.settle(now)
        elif roll < 0.75:
            verb = rng.choice(("consume", "consume", "check", "report", "refund"))
            costs = self.costs()
            self.both(
                f"{verb} {subject} {costs}",
                lambda: getattr(self.oracle, verb)(subject, costs, now_ms=now),
                lambda: getattr(self.meter, verb)(subject, costs),
            )
        elif roll < 0.95:
            self.administer(subject, now)
        else:
            plans = [Plan("free", includes=random_limits(rng), default=True)]
            self.both(
                f"apply {plans}", lambda: self.oracle.apply(plans), lambda: self.meter.apply(plans)
            )
        self.look(subject)
        assert_sound(self.holder.client, self.meter)

    def reserve(self, subject: str, now: int) -> None:
        rng, costs = self.rng, self.costs()
        ttl, name = rng.choice(TTLS_MS), f"h{rng.randint(1, 400)}"
        answer = self.both(
            f"reserve {subject} {costs} {ttl} {name}",
            lambda: self.oracle.reserve(subject, costs, ttl_ms=ttl, op=name, now_ms=now),
            lambda: self.meter.reserve(subject, costs, ttl=ttl / 1000, op=name).decision,
        )
        if getattr(answer, "allowed", False):
            self.ids.append((subject, name, costs))

    def settle(self, now: int) -> None:
        rng = self.rng
        mine = rng.choice(self.ids[-5:])
        subject, name, held_costs = mine
        held, costs = self.holder, self.costs()
        roll = rng.random()
        if roll < 0.4 and rng.random() < 0.7 and len(self.ids) > 1:
            self.ids.remove(mine)
        if roll < 0.3:
            actual = None if rng.random() < 0.4 else costs
            self.both(
                f"commit {subject} {name} {actual}",
                lambda: self.oracle.commit(subject, name, actual, now_ms=now),
                lambda: held.commit(name, actual, subject=subject),
            )
        elif roll < 0.4:
            self.both(
                f"release {subject} {name}",
                lambda: self.oracle.release(subject, name, now_ms=now),
                lambda: held.release(name, subject=subject),
            )
        elif roll < 0.7:
            ttl = rng.choice(TTLS_MS)
            self.both(
                f"renew {subject} {name} {ttl}",
                lambda: self.oracle.renew(subject, name, ttl, now_ms=now),
                lambda: held.renew(name, ttl, subject=subject),
            )
        else:
            cost = rng.choice([*held_costs] * 4 + [*NAMES])
            spent = {cost: rng.choice((0, 1, held_costs.get(cost, 1)))}
            lives = rng.choice((None, *TTLS_MS))
            self.both(
                f"tally {subject} {name} {spent} {lives}",
                lambda: self.oracle.tally(subject, name, spent, ttl_ms=lives, now_ms=now),
                lambda: held.tally(name, spent, lives, subject=subject),
            )

    def administer(self, subject: str, now: int) -> None:
        rng = self.rng
        roll = rng.random()
        if roll < 0.45:
            change, own = rng.choice(("keep", "reset")), rng.random() < 0.6
            limits, plan = (random_limits(rng), None) if own else ([], rng.choice(("free", "pro")))
            self.both(
                f"subscribe {subject} {plan} {limits} {change}",
                lambda: self.oracle.subscribe(
                    subject, plan, limits=limits, change=change, now_ms=now
                ),
                lambda: self.meter.subscribe(subject, plan, limits=limits, change=change),
            )
        elif roll < 0.8:
            name, ends = rng.choice(NAMES), rng.choice((None, now + 1, now + 1000, now + 61_000))
            fields = {"limit": rng.choice((0, 2, 15, 10**12))}
            self.both(
                f"override {subject} {name} {fields} {ends}",
                lambda: self.oracle.override(subject, name, expires_ms=ends, now_ms=now, **fields),
                lambda: self.meter.override(
                    subject, name, expires=None if ends is None else instant(ends), **fields
                ),
            )
        elif roll < 0.95:
            name, used = rng.choice(NAMES), rng.choice((0, 1, 3))
            self.both(
                f"adjust {subject} {name} {used}",
                lambda: self.oracle.adjust(subject, name, used=used, now_ms=now),
                lambda: self.meter.adjust(subject, name, used=used),
            )
        else:
            self.both(
                f"forget {subject}",
                lambda: self.oracle.forget(subject),
                lambda: self.meter.forget(subject) and None,
            )


def run(rng: random.Random, steps: int, server: servers.Server) -> None:
    prefix = f"hold-{secrets.token_hex(4)}"

    def make(clock: Any, plans: Any) -> tuple[Meter, Any]:
        meter = Meter(server.url, prefix=prefix, clock=clock, plans=plans, timeout=10)
        return meter.open(), server.binary

    made = Run(rng, make)
    try:
        for _ in range(steps):
            made.step()
    finally:
        made.meter.close()
        remove_prefix(server.url, prefix)


@pytest.fixture(scope="module")
def own() -> Iterator[servers.Server]:
    with servers.start() as started:
        yield started


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_engine_and_model_agree_on_holds(own: servers.Server, rng: random.Random) -> None:
    run(rng, 30, own)


@pytest.mark.parametrize("seed", range(5))
def test_engine_and_model_agree_for_longer(own: servers.Server, seed: int) -> None:
    run(random.Random(seed), 250, own)


def test_engine_and_model_agree_on_every_server(matrix_server: servers.Server) -> None:
    run(random.Random(50), 200, matrix_server)


@pytest.mark.filterwarnings("ignore")
def test_engine_and_model_agree_on_a_fake() -> None:
    def make(clock: Any, plans: Any) -> tuple[Meter, Any]:
        client = fakeredis.FakeRedis(
            server=fakeredis.FakeServer(server_type="valkey", version=(8,))
        )
        scripts = Scripts(prelude=prelude())
        return Meter(client=client, plans=plans, clock=clock, scripts=scripts).open(), client

    made = Run(random.Random(60), make)
    for _ in range(120):
        made.step()
    made.meter.close()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_engine_and_model_agree_for_very_long(own: servers.Server) -> None:
    for seed in range(1000, 1300):
        run(random.Random(seed), 250, own)
