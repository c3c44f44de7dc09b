"""`Hold`, what `Meter.reserve` returns: carries out what `meterd.holds` decides."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Self

from meterd.holdbase import Actual, HoldBase
from meterd.holds import Reserved
from meterd.keeper import Handle
from meterd.keys import Subject
from meterd.result import Decision
from meterd.timespec import Seconds

if TYPE_CHECKING:
    from meterd.client import Meter


class Hold(HoldBase):
    """What was reserved. True if it was; else `decision` says why not. Thread-safe.

    As a context manager it raises `Refused` on entry if nothing was reserved. Leaving commits what
    `spend` counted, else what was reserved; leaving by an exception releases it, unless something
    was counted. Nothing more happens on leaving once it was committed or released.
    """

    def __init__(self, meter: Meter, subject: Subject, hold_id: str) -> None:
        super().__init__(meter, subject, hold_id)
        self._meter = meter
        self._renewal: Handle | None = None

    @classmethod
    def _reserved(
        cls, meter: Meter, reserved: Reserved, subject: Subject, ttl: Seconds, keepalive: bool
    ) -> Self:
        hold = cls(meter, subject, reserved.hold_id)
        hold._began(reserved, ttl)
        if keepalive and hold._lasting:
            hold._renew_in(hold._pause())
        return hold

    def commit(self, actual: Actual = None) -> Decision:
        """Settles the hold by what was used, and gives the rest back. Safe to repeat.

        `actual`: amounts by cost name, or the amount where one cost name was reserved; names left
        out are committed as held. None: what `spend` counted, else what was reserved. What goes
        beyond the hold, or comes after it was over, is charged as `report` does. Raises
        `OpConflict` if it was finished otherwise, `OpNotFound` if only the server knew the amounts
        and the hold is over, else as `report`.
        """
        settled = self._committing(actual)
        self._rest()
        if self._degraded:
            return self.decision
        flow = self._holds.commit(self._path, self.id, settled, self._held)
        return self._meter._call("commit", self.subject, flow)

    def release(self) -> None:
        """Gives back all that is held. Safe to repeat; a hold that is over holds nothing.

        Raises `OpConflict` if it was committed.
        """
        needed = self._releasing()
        self._rest()
        if needed:
            flow = self._holds.release(self._path, self.id)
            self._meter._call("release", self.subject, flow)

    def renew(self, ttl: Seconds) -> None:
        """Lets the hold live for `ttl` seconds from now. `OpNotFound` if it is over."""
        flow = self._renewing(ttl)
        if flow is not None:
            self._meter._call("renew", self.subject, flow)
            if self._renewal is not None:
                self._renew_in(self._pause())

    def __enter__(self) -> Self:
        self._refuse_refused()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        way = self._leaving(failed=error is not None)
        if way is None:
            return
        try:
            if way == "commit":
                self.commit()
            else:
                self.release()
        except Exception as failure:
            if error is None:
                raise
            self._say_failed(error, way, failure)

    # Keeping it alive: the keeper knows it only weakly, so one that is forgotten runs out

    def _renew_in(self, seconds: float | None) -> None:
        self._rest()
        if seconds is not None:
            due, known = time.monotonic() + seconds, weakref.ref(self)
            self._renewal = self._meter._keeper.at(due, lambda: _renew(known))

    def _rest(self) -> None:
        """Nothing is due any more."""
        if self._renewal is not None:
            self._renewal.cancel()

    def _renew_again(self) -> None:
        if self._ended:
            return
        problem: Exception | None = None
        try:
            flow = self._holds.renew(self._path, self.id, self._ttl_ms)
            self._meter._call("renew", self.subject, flow)
        except Exception as error:  # noqa: BLE001  # nobody is there to catch it
            problem = error
        self._renew_in(self._pause(problem))


def _renew(known: weakref.ref[Hold]) -> None:
    hold = known()
    if hold is not None:
        hold._renew_again()
