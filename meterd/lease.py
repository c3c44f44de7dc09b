"""`Lease`: sells from memory, in this process. What is decided is in `meterd.leasing`."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar

from meterd.errors import MeterdError, PolicyError
from meterd.flow import Flow
from meterd.keeper import Handle
from meterd.leasing import LeaseBase
from meterd.result import Decision

if TYPE_CHECKING:
    from meterd.client import Meter

T = TypeVar("T")

_SOON = 0.02  # seconds until the next look at a lease that is just taking more


class Lease(LeaseBase):
    """What `Meter.lease` returns. Thread-safe; a context manager that closes it.

    A child of a fork starts with nothing in hand and takes chunks of its own.
    """

    __slots__ = ("_meter", "_taking", "_timer")

    def __init__(self, meter: Meter, *terms: Any) -> None:
        super().__init__(meter._operations, meter._holds, *terms)
        self._meter = meter
        self._carry_out(self._open())

    def _begin(self) -> None:
        super()._begin()
        self._taking = threading.Lock()  # whoever asks the server for this lease
        self._timer: Handle | None = None

    def consume(self, n: int = 1) -> Decision:
        """Sells `n` units, from memory if they are in hand, all or nothing.

        What is granted from memory is the answer of the call that the units came from: its figures
        are as of then. A refusal is the server's, repeated from memory for 50 ms at most. Raises
        `PolicyError` (also if the lease is closed), `Unavailable` (nothing was sold) and, where it
        became an ordinary `Meter.consume`, what that raises.
        """
        if type(n) is int and n > 0:
            lock = self._lock
            lock.acquire()  # `with` takes half as long again
            try:
                if n <= self._ready and self._now() < self._end:
                    self._ready -= n
                    return self._granted
            finally:
                lock.release()
        return self._buy(n)

    def _buy(self, n: int) -> Decision:
        rounds = 0
        answer = self._answer(n)
        while answer is None:
            with self._taking:
                answer = self._answer(n)
                if answer is None:
                    ready = self._carry_out(self._take(n, rounds))
                    rounds += 1
                    if not ready:
                        break
                    answer = self._sell(n)
        return self._call_for(n) if answer is None else answer

    def _call_for(self, n: int) -> Decision:
        """An ordinary consume; what this lease holds itself does not count against it."""
        decision = self._meter._call("consume", self.subject, self._ordinary(n))
        if not decision and self.remaining:
            with self._taking:
                self._carry_out(self._return())
            decision = self._meter._call("consume", self.subject, self._ordinary(n))
        return decision

    def _carry_out(self, flow: Flow[T]) -> T:
        try:
            return self._meter._call("lease", self.subject, flow)
        finally:
            if self._timer is None and self._chunk is not None and self._clock_ms is None:
                self._look_in(self._patience)

    def _look_in(self, seconds: float) -> None:
        lease = weakref.ref(self)  # one that was dropped is not kept alive, nor looked after

        def look() -> None:
            found = lease()
            if found is not None:
                found._look()

        self._timer = self._meter._keeper.at(time.monotonic() + seconds, look)

    def _look(self) -> None:
        if not self._taking.acquire(blocking=False):
            self._look_in(_SOON)
            return
        try:
            self._timer = None
            again = self._meter._call("lease", self.subject, self._tend())
            if again is not None:
                self._look_in(again)
        except PolicyError:  # the meter was closed
            self._give_up()
        finally:
            self._taking.release()

    def close(self) -> None:
        """Gives the rest back; any number of times. Raises `Unavailable` or `OutcomeUnknown` if it
        could not be given back: then call it again, or the server does it once the ttl is over.
        """
        with self._taking:
            if self._timer is not None:
                self._timer.cancel()
            self._carry_out(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except MeterdError as error:
            if failure is None:
                raise
            failure.add_note(f"meterd: closing {self!r} failed too: {error}")
