"""Whose turn it is: the leases of the partitions that are being emptied, and the store's clock."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from meterd.export.outbox import Outbox

if TYPE_CHECKING:
    from meterd.client import Meter


class Turn:
    """`patience`: seconds that one delivery may take. `monotonic`: what measures the lease."""

    def __init__(self, meter: Meter, outbox: Outbox, lease: float, patience: float) -> None:
        self._meter = meter
        self._outbox = outbox
        self._lease = lease
        self._patience = patience
        self._token = secrets.token_hex(12).encode()
        self._held: list[int] = []
        self._held_until = 0.0
        self._time = (0, 0.0)
        self.monotonic: Callable[[], float] = time.monotonic
        self.stopping = False

    def take(self, partitions: Sequence[int]) -> list[int]:
        """Those that are ours until `give_back`."""
        started = self.monotonic()
        ttl_ms = round(self._lease * 1000)
        self._held = self._meter._drive(self._outbox.lease(partitions, self._token, ttl_ms))
        self._held_until = started + self._lease
        return self._held

    def keep(self) -> None:
        """Renews the leases when a third of their time is over."""
        started = self.monotonic()
        left = self._held_until - started
        # Shortly before the end it would be too late to be sure that they are still ours.
        if self._held and self._lease / 10 < left < self._lease * 2 / 3:
            ttl_ms = round(self._lease * 1000)
            self._meter._drive(self._outbox.renew(self._held, self._token, ttl_ms))
            self._held_until = started + self._lease

    def may_go(self) -> bool:
        """Whether a delivery that begins now ends while the leases are ours."""
        return not self.stopping and self.monotonic() + self._patience < self._held_until

    def give_back(self) -> None:
        """What has nearly run out is left to run out: it may be somebody else's by then."""
        held, self._held = self._held, []
        if self.monotonic() < self._held_until - self._lease / 10:
            self._meter._drive(self._outbox.release(held, self._token))

    def look_at_clock(self) -> None:
        """Asks the server what time it is."""
        self._time = (self._meter._drive(self._outbox.now_ms()), time.monotonic())

    def now_ms(self) -> int:
        """The store's clock: as of the last look at it, and ours since."""
        given = self._meter._operations.now_argument()
        if given:
            return int(given)
        base, at = self._time
        return base + int((time.monotonic() - at) * 1000)
