"""The machine's steps about grants: made in every way, voided, and looked at."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from meterd.testing import ManualClock
from tests.oracle.model import Oracle
from tests.property.fields import instant

GRANT_NAMES = ("credits",) * 6 + ("tokens", "tokens", "extra", "extra", "addon", "shared")
OTHER_NAMES = ("api", "sso", "jobs")  # mostly no pool
GRANT_AMOUNTS = (1, 1, 2, 3, 5, 8, 13, 40, 100, 10**6)
LASTING_MS = (1, 2, 50, 1000, 30_000, 3_600_000, 86_400_000, 50 * 86_400_000, 400 * 86_400_000)
PRIORITIES = (50, 50, 50, 40, 60, 0, 100)
OTHER_LEVELS = {"a": "a/t", "a/t": "a", "b": "b/t", "b/t": "b"}


class GrantSteps:
    """What `Machine` does about grants, where the meter has them."""

    rng: random.Random
    clock: ManualClock
    oracle: Oracle
    meter: Any
    both: Callable[[str, Callable[[], Any], Callable[[], Any]], None]
    look: Callable[[Any, int], None]

    given: list[tuple[Any, str]]
    """The subject and id of every grant that was tried."""
    timed = True
    """Whether grants may begin and end by themselves."""

    def grant_step(self, subject: Any, now: int) -> None:
        if self.given and self.rng.random() < 0.25:
            self.void(now)
        else:
            self.grant(subject, now)
        if self.rng.random() < 0.5:
            self.look(subject, now)

    def grant(self, subject: Any, now: int, **fixed: Any) -> None:
        """`fixed`: options that are not drawn."""
        rng = self.rng
        name = rng.choice(GRANT_NAMES if rng.random() < 0.95 else OTHER_NAMES)
        amount = rng.choice(GRANT_AMOUNTS)
        options: dict[str, Any] = {"priority": rng.choice(PRIORITIES)}
        if self.timed and rng.random() < 0.6:
            options["expires"] = self.moment(subject, now)
        if self.timed and rng.random() < 0.2:
            options["starts"] = rng.choice((now - 10**9, now - 1, now, self.moment(subject, now)))
        if rng.random() < 0.3:
            options["source"] = rng.choice(("stripe", "sign-up", "ü" * 64))
        if rng.random() < 0.5:
            op = f"op{rng.randint(1, 12)}" if rng.random() < 0.3 else f"grant{len(self.given)}"
            options["op"] = op
        if rng.random() < 0.06:
            amount = rng.choice((amount, 0, 10**15, 10**15 + 1, -1))
            options["priority"] = rng.choice((50, 50, 101, -1))
            options["source"] = "x" * rng.choice((1, 128, 129))
            options["expires"] = now + rng.choice((-1000, 0, 1))
        name, amount = fixed.pop("name", name), fixed.pop("amount", amount)
        options |= fixed
        made: list[str] = []

        def engine() -> Any:
            given = {
                key: instant(value) if key in ("expires", "starts") else value
                for key, value in options.items()
            }
            found = self.meter.grant(subject, name, amount, **given)
            made.append(found.id)
            return found

        def model() -> Any:
            given = {
                f"{key}_ms" if key in ("expires", "starts") else key: value
                for key, value in options.items()
            }
            grant_id = made[0] if made else "failed"
            return self.oracle.grant(subject, name, amount, grant_id=grant_id, now_ms=now, **given)

        self.both(f"grant {subject} {name} {amount} {options}", model, engine)
        self.given += [(subject, grant_id) for grant_id in made]

    def moment(self, subject: Any, now: int) -> int:
        """Some time from now, or when something else ends at that level, or next to it."""
        rng = self.rng
        ends = self.coming(subject, now)
        if ends and rng.random() < 0.4:
            return rng.choice(ends) + rng.choice((0, 0, 0, -1, 1))
        return now + rng.choice(LASTING_MS)

    def coming(self, subject: Any, now: int) -> list[int]:
        """When periods, holds and grants end there, or begin."""
        usage = self.oracle.usage(subject, now_ms=now)
        found = [limit.resets_at_ms for limit in usage.limits if limit.kind == "pool"]
        for holds, grants in zip(usage.holds, usage.grants, strict=True):
            found += [hold.expires_ms for hold in holds]
            found += [at for grant in grants for at in (grant.starts_ms, grant.expires_ms)]
        return sorted({at for at in found if at is not None and at > now})

    def void(self, now: int) -> None:
        rng = self.rng
        subject, grant_id = rng.choice(self.given[-12:])
        if rng.random() < 0.3:
            booked = self.oracle.usage(subject, now_ms=now).grants[-1]
            grant_id = rng.choice([grant.id for grant in booked if grant.held] or [grant_id])
        if rng.random() < 0.05:
            subject = OTHER_LEVELS.get(subject, subject)
        if rng.random() < 0.05:
            grant_id = rng.choice(("unknown", *(given for _, given in self.given)))
        self.both(
            f"void {subject} {grant_id}",
            lambda: self.oracle.void(subject, grant_id, now_ms=now),
            lambda: self.meter.void(subject, grant_id),
        )
