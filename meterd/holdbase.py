"""What a hold knows, and the rule by which a `with` block leaves it. No I/O.

How it is carried out is in `meterd.hold` and `meterd.aiohold`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from meterd import wire
from meterd.errors import OutcomeUnknown, PolicyError, Unavailable
from meterd.flow import Flow
from meterd.holds import Costs, Reserved, ttl_ms
from meterd.keys import Subject
from meterd.result import Decision
from meterd.timespec import Seconds, shown

if TYPE_CHECKING:
    from meterd.base import MeterBase

_log = logging.getLogger("meterd")

Actual = int | Mapping[str, int] | None
Way = Literal["commit", "release"]


class HoldBase:
    """What a hold knows: its decision, its id, what it holds, what was tallied, how it ended.

    True if something is held: `hold.decision` says why not.
    """

    def __init__(self, meter: MeterBase, subject: Subject, hold_id: str) -> None:
        self.id = wire.check_hold_id(hold_id)
        self.subject = subject
        self._path = meter._keys.path(subject)
        self._holds = meter._holds
        self._decision: Decision | None = None
        self._held: dict[str, int] | None = None  # None: reserved elsewhere
        self._tally: dict[str, int] = {}
        self._ttl_ms = 0
        self._lock = threading.Lock()
        self._ended: Way | None = None  # set when that was begun, whether or not it worked
        self._misused = False  # a commit was wanted, but not like this

    def _began(self, reserved: Reserved, ttl: Seconds) -> None:
        self._decision = reserved.decision
        self._held = dict(zip(reserved.costs.names, reserved.costs.values, strict=True))
        self._ttl_ms = ttl_ms(ttl)

    @property
    def decision(self) -> Decision:
        """The answer to the reserve, with every limit it reached."""
        if self._decision is None:
            raise PolicyError(f"hold {self.id!r}: its decision is with whoever reserved it")
        return self._decision

    def __bool__(self) -> bool:
        return self._decision is None or self._decision.allowed

    def __repr__(self) -> str:
        if self._ended:
            state = {"commit": "committed", "release": "released"}[self._ended]
        else:
            state = "held" if self else "refused"
        return f"<{type(self).__name__} {self.id!r} of {self.subject!r}, {state}>"

    def spend(self, costs: Costs, amount: int = 1) -> None:
        """Adds to what was used so far; no I/O. Leaving, or `commit()`, commits the sum.

        Costs that are not held may be named: they are charged as `report` does.
        """
        self._refuse_refused()
        if self._ended:
            raise PolicyError(f"spend: hold {self.id!r} was finished already ({self._ended})")
        packed = wire.encode_costs(costs, amount)
        with self._lock:
            sums = {
                name: wire.check_amount(self._tally.get(name, 0) + value, f"sum of {name!r}")
                for name, value in zip(packed.names, packed.values, strict=True)
            }
            self._tally.update(sums)

    @property
    def spent(self) -> dict[str, int]:
        """What was tallied so far, by cost name."""
        with self._lock:
            return dict(self._tally)

    def _refuse_refused(self) -> None:
        if self._decision is not None:
            self._decision.raise_if_refused()

    @property
    def _degraded(self) -> bool:
        """Allowed without the server: nothing is held there, so there is nothing to settle."""
        return self._decision is not None and self._decision.degraded

    @property
    def _lasting(self) -> bool:
        """Whether the server holds something that can be renewed."""
        if self._decision is None:
            return True
        charged = (state.applied for state in self._decision.limits if state.kind != "flag")
        return self._decision.allowed and not self._degraded and any(charged)

    def _settlement(self, actual: Actual) -> wire.Costs | None:
        """What a commit says: what was given or, without that, tallied; None: all as held."""
        self._refuse_refused()
        given: Mapping[str, int]
        if actual is None:
            given = self.spent
        elif isinstance(actual, Mapping):
            given = actual
        elif self._held is not None and len(self._held) == 1:
            given = {name: wire.check_amount(actual, "actual") for name in self._held}
        elif self._held is None:
            raise PolicyError(
                f"actual: {shown(actual)} does not say of what: this process did not reserve hold "
                f"{self.id!r}; allowed: a mapping of cost names to amounts, or None"
            )
        else:
            listed = ", ".join(self._held)
            raise PolicyError(
                f"actual: {shown(actual)} does not say of what: the hold is of {listed}; "
                "allowed: a mapping of cost names to amounts, or None"
            )
        return wire.encode_costs(given) if given else None

    def _committing(self, actual: Actual) -> wire.Costs | None:
        """From here on it counts as ended, whatever comes of it."""
        try:
            settled = self._settlement(actual)
        except PolicyError:
            self._misused = True
            raise
        self._ended = "commit"
        return settled

    def _releasing(self) -> bool:
        """The same; False: there is nothing to release."""
        self._ended = self._ended or "release"
        return bool(self) and not self._degraded

    def _renewing(self, ttl: Seconds) -> Flow[None] | None:
        """None: the server keeps nothing of it."""
        lives_ms = ttl_ms(ttl)
        self._refuse_refused()
        if not self._lasting:
            return None
        self._ttl_ms = lives_ms
        return self._holds.renew(self._path, self.id, lives_ms)

    def _leaving(self, *, failed: bool) -> Way | None:
        """How a `with` block ends its hold; None: not at all, for that was done, or tried."""
        if self._ended or not self:
            return None
        if failed and not self.spent:
            return None if self._misused else "release"
        return "commit"

    # Keeping it alive

    def _pause(self, failure: Exception | None = None) -> float | None:
        """Seconds until the next renewal, after one that worked or did not; None: no more."""
        if self._ended:
            return None
        if failure is None:
            return max(self._ttl_ms / 3000, 0.001)
        if isinstance(failure, Unavailable | OutcomeUnknown):
            return max(self._ttl_ms / 12_000, 0.001)  # a few more tries before it is over
        if not isinstance(failure, PolicyError):  # that one is a meter that was closed
            _log.warning("hold %r of %r is not kept alive: %s", self.id, self.subject, failure)
        return None

    def _say_failed(self, failure: BaseException, way: Way, error: Exception) -> None:
        """An exception leaves the block, and its hold could not be ended: not to be hidden."""
        text = f"{way} of hold {self.id!r} failed too: {type(error).__name__}: {error}"
        failure.add_note(f"meterd: {text}")
        _log.warning("%s", text)
