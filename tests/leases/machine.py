"""Random leases of several processes on one store, under a manual clock, and what must hold.

`sold` is written down by whoever sold, with the window that the server says is open; nothing of a
lease is believed but its answers. What may stay charged unsold is taken from the leases' insides
at the moment they are lost, and compared with what the server has in the end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meterd import Bucket, Meter, Plan, Pool, Unavailable
from meterd.errors import OutcomeUnknown
from meterd.lease import Lease
from meterd.testing import ManualClock
from meterd.transport import MaybeSent, NotSent

TTLS_MS = (1_000, 5_000, 40_000)
TOKEN = Bucket("token", 300, "1m", algorithm="token", burst=200)
PLAN = Plan(
    "p",
    default=True,
    includes=[
        Pool("minutely", 200, "1m"),
        Pool("ever", 30_000),
        Bucket("fixed", 100, "20s", algorithm="fixed"),
        Bucket("sliding", 150, "30s"),
        TOKEN,
    ],
)
LIMITS = {"minutely": 200, "ever": 30_000, "fixed": 100, "sliding": 150}
COSTS: tuple[Any, ...] = ("minutely", "ever", "fixed", "sliding", "token", {"ever": 2, "fixed": 1})
STEPS_MS = (1, 40, 300, 2_000, 2_000, 4_999, 5_000, 7_500, 20_000, 30_000, 60_000)


@dataclass(frozen=True)
class Sale:
    at: int
    name: str
    units: int


def per_unit(costs: Any) -> dict[str, int]:
    return {costs: 1} if isinstance(costs, str) else costs


class Machine:
    """`faulty`: requests fail now and then, before or after they were carried out."""

    def __init__(
        self, rng: random.Random, make: Callable[[ManualClock], Meter], *, faulty: bool = False
    ) -> None:
        self.rng = rng
        self.clock = ManualClock(1_735_689_600_000 + rng.randrange(3_600_000))
        self.meters = [make(self.clock) for _ in range(3)]
        self.leases: list[tuple[Lease, Any]] = []
        self.sales: list[Sale] = []
        self.sold: Counter[tuple[str, int | None]] = Counter()
        self.lost: Counter[str] = Counter()  # charged, never sold: exactly, without faults
        self.faulty = faulty
        self.faults = 0
        self.largest = 1
        self.meters[0].usage("acme")  # everything is made ready before anything fails
        for meter in self.meters:
            meter.open()
            self._disturb(meter)

    def _disturb(self, meter: Meter) -> None:
        transport: Any = meter._transport
        send = transport.send

        def disturbed(request: Any, timeout: float) -> Any:
            if not self.faulty or self.rng.random() > 0.15:
                return send(request, timeout)
            self.faults += 1
            kind = self.rng.choice(["never", "unsent", "lost", "answered"])
            if kind == "unsent":
                raise NotSent("away")
            if kind == "answered":
                send(request, timeout)
            if kind != "never":
                raise MaybeSent("lost")
            return send(request, timeout)

        transport.send = disturbed

    # What happens --------------------------------------------------------------------------------

    def step(self) -> None:
        self.rng.choices(
            [self.take, self.sell, self.sell_plainly, self.close, self.crash, self.wait],
            [3, 30, 2, 1, 1, 5],
        )[0]()

    def take(self) -> None:
        if len(self.leases) > 5:
            return
        costs = self.rng.choice(COSTS)
        most = self.rng.choice([1, 7, 40, 100])
        amount = self.rng.randint(1, most)
        try:
            lease = self.rng.choice(self.meters).lease(
                "acme", costs, amount, most=most,
                ttl=self.rng.choice(TTLS_MS) / 1000, least=self.rng.randint(1, amount),
            )  # fmt: skip
        except Unavailable:
            assert self.faulty
            return
        self.leases.append((lease, costs))

    def sell(self) -> None:
        if not self.leases:
            return
        lease, costs = self.rng.choice(self.leases)
        for _ in range(self.rng.choice([1, 3, 20, 60])):
            n = self.rng.choice([1, 1, 1, 2, 5, 30])
            self.largest = max(self.largest, n)
            self.note_late(lease, costs)
            try:
                if lease.consume(n):
                    self.note(costs, n)
            except Unavailable:
                assert self.faulty
            except OutcomeUnknown:
                assert self.faulty
                self.lose(costs, n)  # an ordinary consume: perhaps charged

    def sell_plainly(self) -> None:
        costs, n = self.rng.choice(COSTS[:-1]), self.rng.choice([1, 9, 60])
        try:
            if self.rng.choice(self.meters).consume("acme", costs, n):
                self.note(costs, n)
        except (Unavailable, OutcomeUnknown):
            assert self.faulty
            self.lose(costs, n)

    def close(self) -> None:
        if self.leases:
            lease, costs = self.leases.pop(self.rng.randrange(len(self.leases)))
            self.note_late(lease, costs)
            try:
                lease.close()
                lease.close()
            except (Unavailable, OutcomeUnknown):
                assert self.faulty
                self.leases.append((lease, costs)) if not lease.closed else self.lose(
                    costs, self.bound(100)
                )

    def crash(self) -> None:
        if self.leases:
            lease, costs = self.leases.pop(self.rng.randrange(len(self.leases)))
            self.note_late(lease, costs)
            if lease._chunk is not None and lease._chunk.seen != -1:
                assert lease._ready <= self.bound(lease._chunk.size)
                self.lose(costs, lease._ready)
            if self.faulty:
                self.lose(costs, self.bound(100))

    def wait(self) -> None:
        self.clock.advance(milliseconds=self.rng.choice(STEPS_MS))

    # What is written down ------------------------------------------------------------------------

    def bound(self, size: int) -> int:
        """The most that one lease may lose."""
        return max(size // 16, 4, self.largest)

    def note(self, costs: Any, n: int) -> None:
        faulty, self.faulty = self.faulty, False
        usage = self.meters[0].usage("acme")
        self.faulty = faulty
        for name, each in per_unit(costs).items():
            state = usage[name]
            self.sales.append(Sale(self.clock.now_ms, name, each * n))
            if name != "token":
                assert state.resets_at_ms is not None or name == "ever", "sold outside any window"
                self.sold[name, state.resets_at_ms] += each * n
                assert self.sold[name, state.resets_at_ms] <= LIMITS[name], f"{name} over-admitted"
                assert state.used >= self.sold[name, state.resets_at_ms], f"{name} not charged"

    def note_late(self, lease: Lease, costs: Any) -> None:
        """A chunk whose ttl has passed unnoticed: on a test clock nothing gives it back in time."""
        chunk = lease._chunk
        if chunk is not None and self.clock.now_ms >= chunk.expires and chunk.seen != -1:
            chunk.seen = -1  # once
            self.lose(costs, lease._ready)
        if self.faulty and any(self.clock.now_ms >= c.expires for c in lease._unsettled):
            self.lose(costs, sum(self.bound(c.size) for c in lease._unsettled))

    def lose(self, costs: Any, n: int) -> None:
        for name, each in per_unit(costs).items():
            self.lost[name] += each * n

    # What must hold in the end -------------------------------------------------------------------

    def finish(self) -> None:
        self.faulty, faulty = False, self.faulty
        for lease, costs in self.leases:
            self.note_late(lease, costs)
            lease.close()
        self.clock.advance(milliseconds=max(TTLS_MS) + 1)
        usage = self.meters[0].usage("acme")
        sold = self.sold["ever", None]
        unsold = usage["ever"].used - sold
        if faulty:
            assert 0 <= unsold <= self.lost["ever"]
        else:
            assert unsold == self.lost["ever"], (usage["ever"], sold, self.lost)
        assert all(level.open_holds == 0 for level in usage.levels)
        self.check_token()

    def check_token(self) -> None:
        """In any interval: the burst, and what flowed in during it and the ttl before it."""
        sales = [sale for sale in self.sales if sale.name == "token"]
        for i, first in enumerate(sales):
            total = 0
            for sale in sales[i:]:
                total += sale.units
                length = sale.at - first.at + max(TTLS_MS)
                assert total <= 200 + 300 * length / 60_000 + 1, "token over-admitted"
