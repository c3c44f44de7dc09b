"""Leases: a chunk taken from the server at once and sold from memory. Here what they decide.

A chunk is a hold. Of that hold a *piece* at a time is tallied, which makes it definite: it stays
charged even if this process dies. Only what is definite is sold, so whatever crashes, no unit is
both sold and given back. What this costs: of a process that dies, the unsold rest of one piece
stays charged, and the rest of its chunk is back once its ttl has passed.

`LeaseBase` has flows and no I/O; how they are carried out is `meterd.lease` and `meterd.aiolease`.
Flows of one lease run one at a time, while other threads may sell; what both touch is changed only
under `_lock`, which is never held across a step.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping

from meterd import chunks, wire
from meterd.chunks import Chunk
from meterd.errors import OpNotFound, OutcomeUnknown, PolicyError, Unavailable
from meterd.flow import Flow
from meterd.holds import Costs, Holds, Reserved, ttl_ms
from meterd.keys import Subject
from meterd.operations import Operations, new_op
from meterd.result import Code, Decision
from meterd.roles import Joining
from meterd.timespec import Seconds, refuse

MEMORY = 0.05  # seconds for which a refusal is repeated from memory
WORTH = 8  # a chunk of fewer requests than this costs more round trips than it saves
_ROUNDS = 4  # how often a sale looks for units before it becomes an ordinary consume
_ATTEMPTS = 12  # how often less is asked for
_NOTHING = Decision(False, Code.OK, None)


class LeaseBase:
    """What is left in memory, and how to get more."""

    __slots__ = (
        "__weakref__", "_chunk", "_clock_ms", "_closed", "_costs", "_decision", "_end", "_granted",
        "_holds", "_join", "_least", "_lock", "_most", "_now", "_operations", "_ready", "_refusal",
        "_scarce_until", "_since", "_sold", "_ttl_ms", "_unit", "_unsettled", "_want",
        "subject",
    )  # fmt: skip

    def __init__(
        self,
        operations: Operations,
        holds: Holds,
        subject: Subject,
        costs: Costs,
        amount: int,
        ttl: Seconds,
        least: int,
        most: int | None,
        join: str | None,
    ) -> None:
        operations.keys.path(subject)
        self._ttl_ms = ttl_ms(ttl)
        self._want = chunks.units(amount, "amount")
        self._most = self._want if most is None else chunks.units(most, "most")
        self._least = chunks.units(least, "least")
        if not self._least <= self._want <= self._most:
            raise PolicyError(
                f"lease: least={least!r}, amount={amount!r}, most={self._most!r}; allowed: "
                "least <= amount <= most"
            )
        one = wire.encode_costs(costs)
        wire.check_amount(max(one.values) * self._most, "lease: its largest chunk")
        self.subject = subject
        self._costs: chunks.Units = dict(costs) if isinstance(costs, Mapping) else costs
        self._join = join
        self._operations = operations
        self._holds = holds
        self._clock_ms = operations.clock
        self._now: Callable[[], float] = self._clock_ms or chunks.clock
        self._unit = 0.001 if self._clock_ms is None else 1  # a ms on that clock
        self._closed = False
        self._begin()
        _leases.add(self)

    def _begin(self) -> None:
        """With nothing in hand; also in the child of a fork: what was taken is the parent's."""
        self._lock = threading.Lock()
        self._ready = 0  # definite and not sold: what a sale takes from
        self._end = 0.0  # until then
        self._chunk: Chunk | None = None
        self._granted = _NOTHING  # what a sale from memory returns
        self._decision: Decision | None = None
        self._unsettled: list[Chunk] = []
        self._refusal: tuple[Decision, int, float] | None = None  # of so many units, until then
        self._scarce_until = 0.0
        self._sold = 0  # in all, of what is not in the chunk in hand
        self._since = (self._now(), 0)  # when the pace was last measured, and what was sold then

    # What there is -------------------------------------------------------------------------------

    @property
    def remaining(self) -> int:
        """Units of the chunk in hand that are not sold yet; 0 if there is none, or it is over."""
        with self._lock:
            chunk = self._chunk
            if chunk is None or self._now() >= chunk.end:
                return 0
            return chunk.size - chunk.definite + self._ready

    @property
    def closed(self) -> bool:
        """Nothing more can be sold."""
        return self._closed

    @property
    def decision(self) -> Decision | None:
        """The server's last answer to this lease; None before the first."""
        return self._decision

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.remaining} left"
        return f"<{type(self).__name__} of {self._costs!r} for {self.subject!r}, {state}>"

    def _sell(self, n: int) -> Decision | None:
        """From memory, if that is possible."""
        with self._lock:
            if 0 < n <= self._ready and self._now() < self._end:
                self._ready -= n
                return self._granted
        return None

    def _answer(self, n: object) -> Decision | None:
        """What needs no server: a sale from memory, or a refusal that was heard just now."""
        if type(n) is not int or n < 0:
            raise refuse("n", n, "a plain integer, 0 to 10**15")
        if self._closed:
            raise PolicyError(f"{self!r}: a closed lease sells nothing; take a new one")
        found = self._sell(n)
        if found is None and self._refusal is not None:
            refusal, least, until = self._refusal
            if n >= least and self._now() < until:
                return refusal
        return found

    # Taking more ---------------------------------------------------------------------------------

    def _take(self, n: int, rounds: int) -> Flow[bool]:
        """Makes `n` units ready to be sold; False: that is for an ordinary consume.

        Raises `Unavailable` if the server cannot be asked or its answer is lost: nothing was sold.
        """
        try:
            return (yield from self._prepare(n, rounds))
        except (Unavailable, OutcomeUnknown) as error:
            role = Joining(self._operations.store, self._join)
            if role.degraded(wire.encode_costs(self._costs)) is not None:
                return False  # buckets that say what then holds: the call says it
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"lease: nothing was sold: {error}") from error

    def _prepare(self, n: int, rounds: int) -> Flow[bool]:
        if self._closed:  # meanwhile
            return True
        chunk, now = self._chunk, self._now()
        if chunk is not None and now < chunk.end:
            left = chunk.size - chunk.definite + self._ready
            if n <= left and rounds < _ROUNDS:
                yield from self._secure(chunk, n)
                return True
        want = self._measured(now)
        if n == 0 or n * WORTH > want or now < self._scarce_until or rounds >= _ROUNDS:
            return False
        self._give_up()
        try:
            yield from self._settle()
        except Unavailable:
            self._take_back(chunk)
            raise
        taken = yield from self._reserve(want, max(n * WORTH, self._least))
        if taken is not None and self._now() < taken.end:
            yield from self._secure(taken, n)
            return True
        if self._clock_ms is None:  # for a moment, do not try again
            self._scarce_until = now + MEMORY
        return False

    def _open(self) -> Flow[None]:
        """The first chunk; as much of it as there is, if that is at least the least."""
        try:
            yield from self._reserve(self._want, self._least, first=True)
        except OutcomeUnknown as error:
            raise Unavailable(
                f"lease: nothing was sold; what may be held is back after its ttl: {error}"
            ) from error

    def _reserve(self, size: int, least: int, *, first: bool = False) -> Flow[Chunk | None]:
        """A chunk of `size`, or less where less is left, or none."""
        for _ in range(_ATTEMPTS):
            taken = self._now()
            hold_id = new_op()
            costs, amount = chunks.times(self._costs, size)
            try:
                reserved = yield from self._holds.reserve(
                    self.subject, costs, amount, self._ttl_ms / 1000, None, self._join, 0,
                    hold_id=hold_id,
                )  # fmt: skip
            except OutcomeUnknown:
                # It may be held; then it is to be given back, by the next call or at its expiry.
                path = self._operations.keys.path(self.subject)
                self._unsettled.append(
                    Chunk(size, hold_id, path, taken, taken, self._expiry(taken))
                )
                raise
            decision = reserved.decision
            self._decision = decision
            if decision.degraded:
                return None
            if decision.allowed:
                return (yield from self._begin_chunk(size, reserved, taken))
            if first:
                chunks.refuse_never(self._costs, decision, size)
            if decision.code in (Code.NO_PLAN, Code.NOT_INCLUDED):
                return None
            size = chunks.less(self._costs, decision, size)
            if size < least:
                return None
        return None

    def _begin_chunk(self, size: int, reserved: Reserved, taken: float) -> Flow[Chunk]:
        decision = reserved.decision
        try:
            chunks.refuse_slots(self._costs, decision)
        except PolicyError:
            yield from self._holds.release(reserved.path, reserved.hold_id)
            raise
        lives = chunks.lives_ms(decision, reserved.now_ms, self._ttl_ms)
        if self._clock_ms is None:
            lives -= max(2, lives // 50)  # this clock and the server's differ; and to give back
        end = taken + lives * self._unit
        chunk = Chunk(size, reserved.hold_id, reserved.path, taken, end, self._expiry(taken))
        if not any(state.applied > 0 for state in decision.limits):
            chunk.definite = size  # flags alone: nothing is charged, so nothing comes back
            chunk.hold_id = ""
        with self._lock:
            self._chunk = chunk
            self._granted = decision
            self._ready = chunk.definite
            self._end = end
        return chunk

    def _secure(self, chunk: Chunk, n: int) -> Flow[None]:
        """Makes the next piece of the chunk definite, so that `n` units are ready."""
        more = max(chunk.piece, n) - self._ready
        if more <= 0 or chunk.definite == chunk.size:
            return
        definite = min(chunk.size, max(chunk.definite + more, chunk.asked))
        chunk.asked = definite
        costs, amount = chunks.times(self._costs, definite)
        try:
            yield from self._holds.tally(
                chunk.path, chunk.hold_id, wire.encode_costs(costs, amount), None
            )
        except OpNotFound:
            # Over sooner than expected (a record was removed, a clock was moved): what is ready is
            # charged and can be sold, the rest is gone.
            with self._lock:
                chunk.size = chunk.asked = chunk.definite
            return
        with self._lock:
            self._ready += definite - chunk.definite
            chunk.definite = definite

    def _ordinary(self, n: int) -> Flow[Decision]:
        """A sale that is a call of its own."""
        sent = self._now()
        costs, amount = chunks.times(self._costs, n)
        decision = yield from self._operations.charge(
            "consume", self.subject, costs, amount, None, self._join, 0
        )
        if decision.allowed:
            with self._lock:
                self._sold += n
        elif self.remaining == 0:
            memory = self._remembered(decision)
            self._refusal = (decision, n, sent + memory) if memory else None
        return decision

    # Giving back ---------------------------------------------------------------------------------

    def _give_up(self) -> None:
        """Nothing more of the chunk is sold; what became of it has yet to be settled."""
        with self._lock:
            chunk = self._chunk
            if chunk is not None:
                chunk.sold = chunk.definite - self._ready
                self._sold += chunk.sold
                self._unsettled.append(chunk)
                self._chunk = None
                self._ready = 0

    def _take_back(self, chunk: Chunk | None) -> None:
        """It could not be settled, for sure: what is definite can still be sold."""
        with self._lock:
            if chunk in self._unsettled and chunk is not None and not self._closed:
                self._unsettled.remove(chunk)
                self._chunk = chunk
                self._sold -= chunk.sold
                self._ready = chunk.definite - chunk.sold

    def _settle(self) -> Flow[None]:
        """Ends the holds of chunks that were given up: what was sold stays, the rest goes back."""
        while self._unsettled:
            chunk = self._unsettled[0]
            if chunk.hold_id and self._now() < chunk.expires:
                costs, amount = chunks.times(self._costs, chunk.sold)
                packed = wire.encode_costs(costs, amount)
                yield from self._holds.finish(chunk.path, chunk.hold_id, packed)
            # else it is over: its record has what is definite, and had the rest back
            if chunk in self._unsettled:
                self._unsettled.remove(chunk)

    def _return(self) -> Flow[None]:
        """Gives the rest of the chunk back."""
        self._give_up()
        yield from self._settle()

    def _close(self) -> Flow[None]:
        self._closed = True
        yield from self._return()

    def _tend(self) -> Flow[float | None]:
        """Gives back what is over or idle. Seconds until the next look; None: nothing to look at.

        Idle: nothing was sold since the last look.
        """
        chunk, now = self._chunk, self._now()
        if chunk is not None and now < chunk.end:
            sold = chunk.definite - self._ready
            if sold != chunk.seen:
                chunk.seen = sold
                return min(self._patience, chunk.end - now)
            if now - chunk.taken < self._patience:
                return self._patience - (now - chunk.taken)
        self._give_up()
        try:
            yield from self._settle()
        except (Unavailable, OutcomeUnknown):
            return self._patience  # then once more, if the server has not done so by itself
        return None

    @property
    def _patience(self) -> float:
        """Seconds without a sale after which a lease holds nothing."""
        return max(self._ttl_ms / 2000, 0.001)

    # How much ------------------------------------------------------------------------------------

    def _measured(self, now: float) -> int:
        """The size of the next chunk: what a quarter of the ttl sells, at the pace of late."""
        chunk = self._chunk
        with self._lock:
            sold = self._sold + (chunk.definite - self._ready if chunk is not None else 0)
        since, before = self._since
        self._since = (now, sold)
        elapsed_ms = max((now - since) / self._unit, 0.001)
        pace = int((sold - before) * self._ttl_ms / (4 * elapsed_ms))
        # A single look may mislead, so the size moves fourfold at most.
        size = min(max(pace, self._want // 4), self._want * 4)
        self._want = min(max(size, self._least), self._most)
        return self._want

    def _expiry(self, taken: float) -> float:
        return taken + self._ttl_ms * self._unit

    def _remembered(self, decision: Decision) -> float:
        """For how long a refusal is believed; not at all on a test clock, which may stand still."""
        if self._clock_ms is not None:
            return 0.0
        return min(MEMORY, decision.retry_after or MEMORY)


_leases: weakref.WeakSet[LeaseBase] = weakref.WeakSet()


def _forked() -> None:
    for lease in list(_leases):
        lease._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
