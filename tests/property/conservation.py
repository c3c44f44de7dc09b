"""After every step: nothing of a grant is lost or made, and what a pool says of grants is theirs.

The engine's own figures are looked at, those of every record that has grants, and compared with
the model's.
"""

from __future__ import annotations

from typing import Any

from meterd.testing import ManualClock
from tests.oracle import invariants
from tests.oracle.model import Oracle
from tests.property.fields import GRANTS, grant_fields, path_of

Path = tuple[str, ...]


class Conservation:
    """What `Machine` looks at between its steps. `looked`: how many grants it has seen."""

    clock: ManualClock
    oracle: Oracle
    meter: Any
    books: dict[tuple[Path, str], Any]
    looked = 0

    def story(self) -> str:
        raise NotImplementedError

    def conserve(self) -> None:
        """Every grant in the books: granted = consumed + remaining + held + expired."""
        invariants.check(self.oracle, self.clock.now_ms)
        if not GRANTS:
            return
        found: dict[tuple[Path, str], Any] = {}
        for path in self.granted():
            expected = self.oracle.usage(path, now_ms=self.clock.now_ms)
            usage = self.meter.usage(path)
            for level in usage.levels:
                where = path_of(level.subject)
                booked = [grant_fields(grant) for grant in level.grants]
                model = [grant_fields(grant) for grant in expected.grants[len(where) - 1]]
                assert booked == model, f"{where}:\n{booked}\n{model}\n{self.story()}"
                for grant in level.grants:
                    self.check_grant(grant)
                    found[where, grant.id] = grant
                self.check_pools(usage, level)
        for place, grant in self.books.items():
            if place not in found and place[0] in self.oracle.levels.records.get(place[0][0], {}):
                self.check_gone(place[0], grant)
        self.books = found
        Conservation.looked += len(found)

    def granted(self) -> list[Path]:
        """The deepest subjects with records that have, or had, grants."""
        paths = {path for path, _ in self.books}
        for level in self.oracle.levels.records.values():
            paths |= {path for path, record in level.items() if record.grants}
        return sorted(p for p in paths if not any(q[: len(p)] == p != q for q in paths))

    def check_grant(self, grant: Any) -> None:
        parts = (grant.consumed, grant.remaining, grant.held, grant.expired)
        assert min(parts) >= 0, f"{grant}\n{self.story()}"
        assert grant.amount == sum(parts), f"{grant}\n{self.story()}"

    def check_pools(self, usage: Any, level: Any) -> None:
        """A pool can spend what its live grants have left, and no more."""
        for state in usage.limits:
            if state.kind != "pool" or state.subject != level.subject:
                continue
            mine = [grant for grant in level.grants if grant.name == state.name]
            assert 0 <= state.granted <= sum(grant.remaining for grant in mine), self.story()
            assert 0 <= state.drawn <= state.used - state.overage, self.story()

    def check_gone(self, path: Path, grant: Any) -> None:
        """It is over, or nothing of it was left for anybody when it was last seen."""
        seen = self.oracle.levels.now(path, self.clock.now_ms)
        over = grant.expires_ms is not None and grant.expires_ms <= seen
        assert over or grant.remaining == grant.held == 0, f"{path}: {grant}\n{self.story()}"
