"""Grants: what a pool has beside its period's allowance, and in which order both are burned.

A charge takes *shares* of a pool's sources: units of the period's allowance (named `None`) and of
grants (named by their ids), in burn order. Everything here is pure: grants in, grants out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

Share = tuple[str | None, int]
ALLOWANCE_PRIORITY = 50


@dataclass(slots=True)
class OGrant:
    """A grant as it is answered. `remaining`: what nobody took; `expired`: what nobody can take."""

    id: str
    name: str
    amount: int
    remaining: int
    held: int
    consumed: int
    expired: int
    starts_ms: int
    expires_ms: int | None
    priority: int
    source: str


class Grant(NamedTuple):
    """`amount == left + held + consumed + expired`, always. `age`: the instant it was given."""

    id: str
    name: str
    amount: int
    priority: int
    starts: int
    expires: int | None
    source: str
    age: int
    left: int
    held: int = 0
    consumed: int = 0
    expired: int = 0
    void: bool = False

    def dead(self, now: int) -> bool:
        """At its very instant of expiry it is."""
        return self.expires is not None and self.expires <= now

    def live(self, now: int) -> bool:
        return not self.void and self.starts <= now and not self.dead(now)

    @property
    def empty(self) -> bool:
        """Nothing left, nothing held: only a refund could return anything to it."""
        return self.left == self.held == 0

    def burn_key(self) -> tuple[float | str, ...]:
        return (self.priority, inf if self.expires is None else self.expires, 1, self.age, self.id)

    def ended(self) -> Grant:
        """What is left of it is lost; what is held has still to come back."""
        return self._replace(left=0, expired=self.expired + self.left)

    def settled(self, kept: int, back: int, now: int) -> Grant:
        """After a hold on `kept + back` of its units has ended."""
        lost = self.void or self.dead(now)
        return self._replace(
            held=self.held - kept - back,
            consumed=self.consumed + kept,
            left=self.left + (0 if lost else back),
            expired=self.expired + (back if lost else 0),
        )

    def refunded(self, units: int, now: int) -> tuple[Grant, int]:
        """After so much of what it gave came back, and how much did: never what it has already.

        What has ended, or is void, loses it.
        """
        back = min(units, self.consumed)
        return self._replace(consumed=self.consumed - back, held=self.held + back).settled(
            0, back, now
        ), back

    def shown(self) -> OGrant:
        return OGrant(
            self.id,
            self.name,
            self.amount,
            self.left,
            self.held,
            self.consumed,
            self.expired,
            self.starts,
            self.expires,
            self.priority,
            self.source,
        )


Grants = tuple[Grant, ...]


def granted(grants: Grants, now: int) -> int:
    """Unspent units of those that are live."""
    return sum(grant.left for grant in grants if grant.live(now))


def shares_of(
    amount: int, room: int | None, end: int | None, grants: Grants, now: int
) -> tuple[list[Share], int]:
    """What a charge takes of each source, in burn order; and what no source covers.

    `room`: units the allowance has (None: no bound). `end`: of its period (None: never).
    """
    sources: list[tuple[tuple[float | str, ...], str | None, float]] = [
        (grant.burn_key(), grant.id, grant.left) for grant in grants if grant.live(now)
    ]
    own_key = (ALLOWANCE_PRIORITY, inf if end is None else end, 0, 0)
    sources.append((own_key, None, inf if room is None else room))
    shares: list[Share] = []
    for _, name, has in sorted(sources, key=lambda source: source[0]):
        units = int(min(amount, has))
        if units:
            shares.append((name, units))
            amount -= units
    return shares, amount


def consumed(grants: Grants, shares: Iterable[Share]) -> Grants:
    """After these shares were taken for good."""
    units = dict(shares)
    return tuple(
        grant._replace(
            left=grant.left - units.get(grant.id, 0),
            consumed=grant.consumed + units.get(grant.id, 0),
        )
        for grant in grants
    )


def held(grants: Grants, shares: Iterable[Share]) -> Grants:
    """After these shares, which were just taken, turn out to be a hold's."""
    units = dict(shares)
    return tuple(
        grant._replace(
            consumed=grant.consumed - units.get(grant.id, 0),
            held=grant.held + units.get(grant.id, 0),
        )
        for grant in grants
    )


def refunded(grants: Grants, most: int, now: int) -> tuple[Grants, int]:
    """Up to `most` units go back to live grants, the last to burn first. And how many did."""
    after = {grant.id: grant for grant in grants}
    left = most
    live = [grant for grant in grants if grant.live(now)]
    for grant in sorted(live, key=Grant.burn_key, reverse=True):
        back = min(left, grant.consumed)
        after[grant.id] = grant._replace(left=grant.left + back, consumed=grant.consumed - back)
        left -= back
    return tuple(after[grant.id] for grant in grants), most - left
