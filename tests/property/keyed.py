"""The machine of API keys: made, verified, changed, given other secrets, filled up, revoked."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from meterd import Plan
from tests.oracle.keys import Keyring, OKey, OVerification
from tests.property.fields import (
    decision_fields,
    instant,
    limit_fields,
    model_fields,
    model_limit,
    path_of,
)
from tests.property.granting import small_plans
from tests.property.machine import AMOUNTS, Machine, random_bucket, random_limits, random_plans

OWNERS: tuple[Any, ...] = ("a", "a", "a", "a/t", "a/t/u", "b", ("b", "x/y"))
GAPS_MS = (0, 0, 0, 0, 1, 1, 50, 999, 30_000, 3_600_000, 86_400_000, 40 * 86_400_000)
OVERLAPS_MS = (0, 0, 1, 50, 1000, 86_400_000)
LASTING_MS = (1000, 60_000, 90 * 86_400_000, 90 * 86_400_000)


@dataclass
class Given:
    """A secret that was given out once."""

    id: str
    subject: Any
    secret: str


class Keyed(Machine):
    """Most of its steps are about keys; the others are also about the subjects that these are."""

    answered: ClassVar[Counter[str]] = Counter()

    def __init__(self, rng: random.Random, make: Any) -> None:
        super().__init__(rng, make)
        self.keyring = Keyring(self.oracle)
        self.secrets: list[Given] = []
        self.imported = 0

    @staticmethod
    def draw_plans(rng: random.Random) -> list[Any]:
        plans = small_plans(rng) if rng.random() < 0.3 else random_plans(rng)
        return [
            Plan(
                plan.id,
                includes=[x if x.name == "shared" else with_auto(rng, x) for x in plan.includes],
                default=plan.default,
                group=plan.group,
            )
            for plan in plans
        ]

    def act(self) -> None:
        rng = self.rng
        if rng.random() < 0.25:
            super().act()
            return
        now = self.pass_time()
        roll = rng.random()
        given = self.some_secret()
        if given is None or roll < 0.06:
            self.create(now)
        elif roll < 0.7:
            self.verify(given, now)
        elif roll < 0.78:
            self.update(given, now)
        elif roll < 0.83:
            self.rotate(given, now)
        elif roll < 0.84:
            self.compare("revoke", lambda: self.keyring.revoke(given.id, now_ms=now), given.id)
        elif roll < 0.86:
            self.compare("get", lambda: self.keyring.get(given.id), given.id)
        elif roll < 0.88:
            owner = rng.choice(OWNERS)
            self.compare("list", lambda: self.keyring.listed(owner), owner)
        else:
            self.use(given, now)

    def pass_time(self) -> int:
        """Often until a key is over, or a secret."""
        rng, now = self.rng, self.clock.now_ms
        ends = [
            at for key in self.keyring.by_id.values() for at in (key.expires_ms, key.overlap_ms)
        ]
        coming = sorted(at for at in ends if at is not None and at > now)
        if coming and rng.random() < 0.1:
            self.clock.now_ms = coming[0] + rng.choice((-1, 0, 0, 1))
        else:
            self.clock.now_ms += rng.choice(GAPS_MS)
        if rng.random() < 0.03:
            self.clock.now_ms -= rng.choice((1, 1000, 10**7))
        self.keep_up()
        return self.clock.now_ms

    def some_secret(self) -> Given | None:
        """Mostly one that is good."""
        good = {key.secret for key in self.keyring.by_id.values() if key.enabled}
        good |= {key.former for key in self.keyring.by_id.values() if key.former is not None}
        some = [given for given in self.secrets if given.secret in good]
        if not some or self.rng.random() < 0.1:
            some = self.secrets[-8:]
        return self.rng.choice(some[-8:]) if some else None

    # Steps ---------------------------------------------------------------------------------------

    def own_limits(self) -> list[Any]:
        rng = self.rng
        limits = random_limits(rng) if rng.random() < 0.5 else [random_bucket(rng, "own")]
        return [with_auto(rng, limit) for limit in limits]

    def create(self, now: int) -> None:
        rng = self.rng
        owner = rng.choice(OWNERS) if rng.random() < 0.98 else "a/b/c/d"
        options: dict[str, Any] = {}
        if rng.random() < 0.6:
            options["limits"] = self.own_limits()
        if rng.random() < 0.3:
            options["join"] = rng.choice(("free", "pro", "more", "nonsense"))
        if rng.random() < 0.3:
            options["name"], options["meta"] = "ci", {"n": len(self.secrets)}
        ends = now + rng.choice((*LASTING_MS, 0)) if rng.random() < 0.2 else None
        theirs = {} if ends is None else {"expires": instant(ends)}
        secret = None
        if rng.random() < 0.2:
            self.imported += 1
            secret = f"imported {self.imported}"
            theirs["sha256"] = hashlib.sha256(secret.encode()).hexdigest()
        made: list[Any] = []

        def engine() -> Any:
            made.append(self.meter.keys.create(owner, **options, **theirs))
            self.secrets.append(Given(made[0].id, made[0].subject, secret or made[0].secret))
            return made[0]

        def model() -> Any:
            key_id, own = (made[0].id, self.secrets[-1].secret) if made else ("failed", "failed")
            return self.keyring.create(owner, key_id, own, **options, expires_ms=ends, now_ms=now)

        self.both_keys(f"create {owner} {options} {ends} {secret}", model, engine)

    def verify(self, given: Given, now: int) -> None:
        rng = self.rng
        costs: Any = None if rng.random() < 0.5 else self.costs()
        amount = rng.choice(AMOUNTS) if isinstance(costs, str) else 1
        options: dict[str, Any] = {}
        if rng.random() < 0.2:
            options["auto"] = False
        if rng.random() < 0.25:
            options["op"] = f"op{rng.randint(1, 12)}"
        secret = given.secret if rng.random() < 0.97 else given.secret[:-1] + "!"
        self.both_keys(
            f"verify {given.subject} {costs} {amount} {options}",
            lambda: self.keyring.verify(secret, costs, amount, **options, now_ms=now),
            lambda: self.meter.keys.verify(secret, costs, amount, **options),
        )

    def update(self, given: Given, now: int) -> None:
        rng = self.rng
        changes: dict[str, Any] = {}
        if rng.random() < 0.5:
            changes["enabled"] = rng.random() < 0.75
        if rng.random() < 0.4:
            changes["limits"] = () if rng.random() < 0.3 else self.own_limits()
        if rng.random() < 0.3:
            changes["name"] = rng.choice((None, "other"))
        if rng.random() < 0.3:
            changes["meta"] = {"now": now}
        theirs, mine = dict(changes), dict(changes)
        if rng.random() < 0.3:
            ends = rng.choice((None, *(now + ms for ms in (*LASTING_MS, 0))))
            mine["expires_ms"], theirs["expires"] = ends, None if ends is None else instant(ends)
        self.both_keys(
            f"update {given.subject} {mine}",
            lambda: self.keyring.update(given.id, **mine, now_ms=now),
            lambda: self.meter.keys.update(given.id, **theirs),
        )

    def rotate(self, given: Given, now: int) -> None:
        overlap = self.rng.choice(OVERLAPS_MS)
        made: list[Any] = []

        def engine() -> Any:
            made.append(self.meter.keys.rotate(given.id, overlap=timedelta(milliseconds=overlap)))
            self.secrets.append(Given(given.id, given.subject, made[0].secret))
            return made[0]

        def model() -> Any:
            secret = made[0].secret if made else "failed"
            return self.keyring.rotate(given.id, secret, overlap, now_ms=now)

        self.both_keys(f"rotate {given.subject} {overlap}", model, engine)

    def use(self, given: Given, now: int) -> None:
        """A key is a subject like any other: filled up by grants, looked at, given back to."""
        step = self.rng.choice(
            (
                self.look, self.charge, self.override, self.adjust, self.grant, self.refill,
                self.past_step, self.past_step, self.reserve, self.subscribe,
            )
        )  # fmt: skip
        if given.id in self.keyring.by_id:
            step(given.subject, now)

    def refill(self, subject: Any, now: int) -> None:
        self.grant(subject, now, name="credits", amount=self.rng.choice((1, 5, 40)))

    # Comparing -----------------------------------------------------------------------------------

    def compare(self, verb: str, model: Any, *args: Any) -> None:
        self.both_keys(f"{verb} {args}", model, lambda: getattr(self.meter.keys, verb)(*args))

    def both_keys(self, what: str, model: Any, engine: Any) -> None:
        """As `both`, of what verbs about keys answer."""

        def shown() -> Any:
            found = model()
            outcome = found.outcome if isinstance(found, OVerification) else type(found).__name__
            self.answered[outcome] += 1
            return Answer(plain(found))

        self.both(f"keys.{what}", shown, lambda: Answer(plain(engine())))


@dataclass
class Answer:
    """What `Machine.both` compares as it is."""

    fields: Any


def plain(found: Any) -> Any:
    """A key, a verification or what else is answered, the engine's or the model's."""
    if isinstance(found, list):
        return [plain(one) for one in found]
    if isinstance(found, OKey):
        return key_fields(found, found.owner, found.path)
    if isinstance(found, OVerification):
        key, decision = found.key, found.decision
        return {
            "code": found.outcome,
            "credits": found.credits,
            "ratelimits": {name: model_limit(x) for name, x in found.ratelimits.items()},
            "whose": None if key is None else (key.id, key.path, key.owner, key.name, key.meta),
            "decision": None if decision is None else model_fields(decision),
        }
    if hasattr(found, "created_ms"):
        return key_fields(found, path_of(found.owner), path_of(found.subject))
    if hasattr(found, "ratelimits"):
        owner, path = (x if x is None else path_of(x) for x in (found.owner, found.subject))
        return {
            "code": str(found.code),
            "credits": found.credits,
            "ratelimits": {name: limit_fields(x) for name, x in found.ratelimits.items()},
            "whose": found.key_id and (found.key_id, path, owner, found.name, dict(found.meta)),
            "decision": None if found.decision is None else decision_fields(found.decision),
        }
    return found


def key_fields(key: Any, owner: Any, path: Any) -> dict[str, Any]:
    names = ("id", "name", "enabled", "expires_ms", "created_ms", "overlap_ms", "join")
    fields = {name: getattr(key, name) for name in names}
    return {**fields, "owner": owner, "path": path, "meta": dict(key.meta)}


def with_auto(rng: random.Random, limit: Any) -> Any:
    """The limit, often with an amount that verifying a key charges unasked."""
    if not hasattr(limit, "auto") or rng.random() < 0.5:
        return limit
    fields = {name: getattr(limit, name) for name in inspect.signature(type(limit)).parameters}
    return type(limit)(**{**fields, "auto": rng.choice((0, 1, 1, 2, 7))})
