"""The machine of what is billed: what a receiver was told adds up to what the answers charged.

The receiver breaks down at random and knows identifiers again. What was charged is counted from
the engine's answers alone: all that was applied, without what came back. Pools are there under
every plan and billed by use, and operations come back by their ids only, so that nothing of that
lapses at zero.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from meterd import Bucket, Plan, Pool
from meterd.export import Exporter
from meterd.export.sink import Sink, SinkError
from tests.oracle import telling
from tests.property.fields import path_of
from tests.property.machine import Machine
from tests.property.machine_holds import Made
from tests.property.machine_plans import moment

GAPS_MS = (0, 0, 0, 1, 999, 30_000, 60_000, 3_600_000, 3_600_000, 86_400_000, 40 * 86_400_000)
TTLS_MS = (1, 1000, 60_000, 3_600_000, 86_400_000, 50 * 86_400_000)
YEARS_MS = 800 * 86_400_000
SUBJECTS = ("a", "a", "a/t", "a/t", "b")
NAMES = ("credits", "tokens")


class Receiver(Sink):
    """Knows every identifier again. It takes some of what it is given and then breaks down."""

    name = "receiver"
    batches = True

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.known: dict[str, Any] = {}
        self.again = 0

    def write(self, entries: Any) -> None:
        for entry in entries:
            if self.rng.random() < 0.1:
                raise SinkError("it broke down")
            self.again += entry.id in self.known
            assert self.known.setdefault(entry.id, entry) == entry, "one identifier, two entries"
        if self.rng.random() < 0.2:
            raise SinkError("what it took is not known")

    def sums(self) -> Counter[tuple[Any, str]]:
        sums: Counter[tuple[Any, str]] = Counter()
        for entry in self.known.values():
            sums[path_of(entry.subject), entry.pool] += entry.delta
        return sums


@dataclass
class Open:
    """A hold of which nothing is settled. `tallied` stays charged when it expires."""

    hold: Any
    subject: str
    held: dict[str, int]
    expires: int
    tallied: Counter[str]


class Billing(Machine):
    """Few subjects; charges, holds, plans, time, and a harvest that is delivered now and then."""

    delivered_again = 0

    def __init__(self, rng: random.Random, make: Any) -> None:
        super().__init__(rng, make)
        self.receiver = Receiver(rng)
        self.charged: Counter[tuple[Any, str]] = Counter()
        self.open: list[Open] = []
        self.ops: list[tuple[str, str]] = []
        self.number = 0
        self.settle_down()

    @staticmethod
    def draw_plans(rng: random.Random) -> list[Plan]:
        def pool(name: str) -> Pool:
            anchor = rng.choice(("subscription", "first_use"))
            return Pool(
                name,
                rng.choice((3, 50, 1000, None)),
                rng.choice(("hour", "90s", "10d", "month")),
                anchor=anchor,
                rollover=0 if anchor == "first_use" else rng.choice((0, 20)),
                overage=rng.choice((0, None)),
                bill="use",
            )

        return [
            Plan(
                name,
                includes=[*map(pool, NAMES), Bucket("api", 10**9, "1d")],
                default=name == "free",
            )
            for name in ("free", "pro", "max")
        ]

    def settle_down(self) -> None:
        """The level below the root has a plan of its own."""
        now = self.clock.now_ms
        self.both(
            "subscribe a/t pro",
            lambda: self.oracle.subscribe("a/t", "pro", now_ms=now),
            lambda: self.meter.subscribe("a/t", "pro"),
        )

    # Steps ---------------------------------------------------------------------------------------

    def act(self) -> None:
        rng = self.rng
        self.clock.now_ms += rng.choice(GAPS_MS)
        now, subject, roll = self.clock.now_ms, rng.choice(SUBJECTS), rng.random()
        if roll < 0.35:
            self.use(subject, now)
        elif roll < 0.45 and self.ops:
            self.give_back(now)
        elif roll < 0.6:
            self.hold(subject, now)
        elif roll < 0.75 and self.open:
            self.end(rng.choice(self.open), now)
        elif roll < 0.78:
            self.change(subject, now)
        elif roll < 0.8:
            self.override(subject, now)
        elif roll < 0.81:
            self.apply()
        elif roll < 0.82:
            self.forget(now)
        else:
            self.bill()

    def drawn_costs(self) -> dict[str, int]:
        names = self.rng.sample((*NAMES, "api"), self.rng.randint(1, 3))
        return {name: self.rng.choice((1, 2, 3, 7, 20)) for name in names}

    def add(self, decision: Any, sign: int = 1) -> None:
        """What the engine says that it applied."""
        if decision.allowed and not decision.replayed:
            for state in decision.limits:
                if state.kind == "pool":
                    self.charged[path_of(state.subject), state.name] += sign * state.applied

    def use(self, subject: str, now: int) -> None:
        verb, costs = self.rng.choice(("consume", "consume", "report")), self.drawn_costs()
        self.number += 1
        op = f"use{self.number}"
        self.ops.append((subject, op))

        def engine() -> Any:
            decision = getattr(self.meter, verb)(subject, costs, op=op)
            self.add(decision)
            return decision

        self.both(
            f"{verb} {subject} {costs} {op}",
            lambda: getattr(self.oracle, verb)(subject, costs, op=op, now_ms=now),
            engine,
        )

    def give_back(self, now: int) -> None:
        subject, op = self.rng.choice(self.ops[-9:])

        def engine() -> Any:
            decision = self.meter.refund(subject, of=op)
            self.add(decision, -1)
            return decision

        self.both(
            f"refund {subject} of {op}",
            lambda: self.oracle.refund_of(subject, op, now_ms=now),
            engine,
        )

    def hold(self, subject: str, now: int) -> None:
        costs, ttl = self.drawn_costs(), self.rng.choice(TTLS_MS)
        made: list[Any] = []

        def engine() -> Any:
            made.append(self.meter.reserve(subject, costs, ttl=ttl / 1000))
            return made[0].decision

        self.both(
            f"reserve {subject} {costs} {ttl}",
            lambda: self.oracle.reserve(subject, costs, ttl_ms=ttl, hold_id=made[0].id, now_ms=now),
            engine,
        )
        if made[0]:
            self.open.append(Open(made[0], subject, costs, now + ttl, Counter()))

    def end(self, found: Open, now: int) -> None:
        """It is committed or released, or only said to be spent in part or to last longer."""
        rng, hold, subject = self.rng, found.hold, found.subject
        self.expire(now)
        if found not in self.open:
            return
        roll = rng.random()
        if roll < 0.3:
            spent = {name: rng.randint(0, amount) for name, amount in found.held.items()}
            self.tally_up(subject, hold.id, spent, None, now)
            for name, amount in spent.items():
                found.tallied[name] = max(found.tallied[name], amount)
        elif roll < 0.4:
            ttl = rng.choice(TTLS_MS)
            self.both(
                f"renew {subject} {hold.id} {ttl}",
                lambda: self.oracle.renew(subject, hold.id, ttl, now),
                lambda: self.meter.hold(subject, hold.id).renew(ttl / 1000),
            )
            found.expires = now + ttl
        elif roll < 0.6:
            self.release(Made(subject, hold.id, found.held, hold), subject, now)
            self.open.remove(found)
        else:
            actual = None if rng.random() < 0.4 else self.drawn_costs()
            self.ops.append((subject, hold.id))

            def engine() -> Any:
                decision = self.meter.hold(subject, hold.id).commit(actual)
                self.add(decision)
                return decision

            self.both(
                f"commit {subject} {hold.id} {actual}",
                lambda: self.oracle.commit(subject, hold.id, actual, now_ms=now),
                engine,
            )
            self.open.remove(found)

    def change(self, subject: str, now: int) -> None:
        plan, change = self.rng.choice(("free", "pro", "max")), self.rng.choice(("keep", "reset"))
        when = self.when(now)
        self.both(
            f"subscribe {subject} {plan} {change} {when}",
            lambda: self.oracle.subscribe(subject, plan, change=change, when=when, now_ms=now),
            lambda: self.meter.subscribe(subject, plan, change=change, when=moment(when)),
        )

    def forget(self, now: int) -> None:
        """What was tallied stays charged."""
        self.expire(now)
        for found in [found for found in self.open if path_of(found.subject)[0] == "a"]:
            self.lapse(found)
        self.both(
            "forget a",
            lambda: self.oracle.forget("a", now_ms=now),
            lambda: self.meter.forget("a"),
        )
        self.settle_down()

    def lapse(self, found: Open) -> None:
        self.open.remove(found)
        path = path_of(found.subject)
        for depth in range(1, len(path) + 1):
            for name in NAMES:
                self.charged[path[:depth], name] += found.tallied[name]

    def expire(self, now: int) -> None:
        for found in [found for found in self.open if found.expires <= now]:
            self.lapse(found)

    # Adding up -----------------------------------------------------------------------------------

    def bill(self) -> None:
        """A harvest is delivered, and what the receiver knows is what was charged."""
        self.harvest()
        self.listen()
        self.expire(self.clock.now_ms)
        for _ in range(1000):
            try:
                Exporter(self.meter.raw, self.receiver).run()
            except SinkError:
                continue
            break
        Billing.delivered_again += self.receiver.again
        sums = self.receiver.sums()
        for place in {*sums, *self.charged}:
            expected = self.charged[place] + self.waiting(*place)
            assert sums[place] == expected, f"{place}: {sums[place]}, {expected}\n{self.story()}"

    def waiting(self, path: Any, name: str) -> int:
        """What came back since it was delivered; the end of the period tells of that."""
        record = self.oracle.levels.records.get(path[0], {}).get(path)
        if record is None or name not in record.books:
            return 0
        spec, state, book = record.specs[name], record.states[name], record.books[name]
        units = telling.billed(spec, state, telling.held(record, name, state))
        return int(book.harvested - max(0, units - book.base))

    def over(self) -> None:
        """Every period ends, and every hold: nothing waits any more."""
        self.clock.now_ms += YEARS_MS
        self.bill()
        assert not self.open
        assert all(self.waiting(*place) == 0 for place in self.charged)
