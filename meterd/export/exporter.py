"""The delivery loop: from the outboxes to a sink.

For a batch of partitions: take their leases, read what was read before and not settled, then what
is new; deliver; settle. Wherever that is cut off, the next exporter goes on: what was not settled
is delivered again under the same identifier. A sink whose receiver forgets identifiers after a
while gets no entry again that may have arrived longer ago than that: it becomes a dead letter.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from meterd.batch import Rounds
from meterd.caller import Caller
from meterd.errors import MeterdError, PolicyError, Unavailable
from meterd.export import letters
from meterd.export.delivery import RECHECK, Delivery
from meterd.export.item import Dead, Item, Waiting
from meterd.export.outbox import Outbox
from meterd.export.report import Report
from meterd.export.sink import DELIVERED, Outcome, Sink, backoff
from meterd.export.turn import Turn
from meterd.policy_checks import name as checked_name
from meterd.streams import BEGIN, NEW, alone
from meterd.timespec import Seconds, refuse, seconds

if TYPE_CHECKING:
    from meterd.client import Meter

T = TypeVar("T")
_log = logging.getLogger("meterd")

_LONGEST = 60.0  # seconds that a run which does not follow waits for the next attempt
_PAGE, _BATCH_PAGE = 256, 4096  # entries that are read before the first of them is settled


class Exporter:
    """Empties the outboxes of a meter's store into a sink. For one thread at a time.

    `attempts`: after how many passes in vain a `run` that does not follow gives up for now.
    `interval`: seconds between the passes of one that follows. `lease`: seconds for which a
    partition is taken; what an exporter had that is killed is left to the others after that.
    Exporters of one sink may run in any number of processes.
    """

    def __init__(
        self,
        meter: Meter,
        sink: Sink,
        *,
        attempts: int = 5,
        interval: Seconds = 2,
        lease: Seconds = 120,
    ) -> None:
        if not isinstance(meter, Caller):
            raise refuse("meter", meter, "a Meter; beside an event loop, in a thread of its own")
        checked_name(sink.name, "sink: name")
        self._meter = meter
        self._sink = sink
        self._outbox = Outbox(meter._session, meter._keys, sink.name)
        self._attempts = attempts
        self._interval = seconds(interval, "interval")
        self._lease = seconds(lease, "lease")
        if self._lease < 2 * sink.patience:
            raise PolicyError(
                f"lease: {self._lease:g} s; allowed: at least twice what one delivery may take "
                f"({sink.patience:g} s)"
            )
        self._turn = Turn(meter, self._outbox, self._lease, sink.patience)
        self._delivery = Delivery(meter, sink, self._outbox, self._turn)
        self._wake = threading.Event()
        self._sleep: Callable[[float], Any] = self._wake.wait

    # Running -------------------------------------------------------------------------------------

    def run(self, *, follow: bool = False) -> Report:
        """Delivers what there is; with `follow`, goes on until `stop` is called.

        Without `follow` it ends when every entry is settled or waits for something, when `attempts`
        passes in a row have brought nothing, or when the next attempt is to be made in more than a
        minute: what is left is tried by the next `run`. Raises `SinkError`, `Unavailable`.
        """
        report = self._delivery.begin()
        self._turn.stopping = False
        self._wake.clear()
        failures = 0  # passes in a row that came to nothing
        try:
            self._drive(alone(self._meter._store.prepare()))
            while not self._turn.stopping:
                before = report.settled
                try:
                    self._pass()
                except Unavailable as error:
                    if not follow:
                        raise
                    failures += 1
                    _log.warning("export to %s: %s", self._sink.name, error)
                    self._sleep(max(self._interval, backoff(failures)))
                    continue
                failures = 0 if report.settled > before else failures + 1
                if follow:
                    self._sleep(self._interval)
                    continue
                due = self._delivery.due()
                if due is None or failures >= self._attempts:
                    break
                pause = max(0.0, due - self._turn.monotonic())
                if pause > _LONGEST:
                    break
                self._sleep(pause)
        finally:
            self._delivery.close()
        return report

    def stop(self) -> None:
        """Ends a `run` that follows, after what is under way. For signal handlers and threads."""
        self._turn.stopping = True
        self._wake.set()

    def _drive(self, rounds: Rounds[T]) -> T:
        return self._meter._drive(rounds)

    # One pass ------------------------------------------------------------------------------------

    def _pass(self) -> None:
        self._drive(self._outbox.register())  # other sinks may have come meanwhile
        self._meter.harvest()
        self._turn.look_at_clock()
        self._delivery.begin_pass()
        lengths = self._drive(self._outbox.lengths())
        for partitions in self._batches(lengths):
            if self._turn.stopping:
                return
            self._drain(partitions)
        self._delivery.end_pass()

    def _batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Partitions that are emptied together: so many that a page of entries comes of it."""
        taken: list[int] = []
        size = 0
        for at, length in lengths.items():
            if taken and (size + length > self._page or len(taken) >= 256):
                yield taken
                taken, size = [], 0
            taken.append(at)
            size += length
        if taken:
            yield taken

    @property
    def _page(self) -> int:
        return _BATCH_PAGE if self._sink.batches else _PAGE

    def _drain(self, partitions: Sequence[int]) -> None:
        held = self._turn.take(partitions)
        self._delivery.report.busy += len(partitions) - len(held)
        visits = self._delivery.visits
        try:
            now = self._turn.monotonic()
            old = [at for at in held if visits.get(at, 0.0) <= now]
            before = self._drive(self._outbox.visit(old))
            for at in old:
                visits[at] = now + RECHECK
            places = {at: BEGIN if at in before else NEW for at in held}
            while places and self._turn.may_go():
                items = self._read(places)
                if self._sink.batches:
                    self._delivery.write(items)
                else:
                    self._delivery.deliver(items)
                self._turn.keep()
        finally:
            # An error says more than that this failed as well; the lease runs out by itself.
            with suppress(MeterdError):
                self._turn.give_back()

    def _read(self, places: dict[int, bytes]) -> list[Item]:
        """The next page; moves on the places where partitions are read, and drops those done."""
        wants = [(at, place, self._page) for at, place in places.items()]
        found: list[Item] = []
        pages = self._drive(self._outbox.read(wants))
        for (at, place, count), items in zip(wants, pages, strict=True):
            if len(items) < count:
                if place == NEW:
                    del places[at]
                else:
                    places[at] = NEW
            elif place != NEW:
                places[at] = items[-1].stream_id
            found += [item for item in items if item.data]
        return found

    # What is not delivered -----------------------------------------------------------------------

    def pending(self, most: int = 1000) -> list[Waiting]:
        """Entries that this sink has not settled, with what the last attempt said. Read-only."""
        return self._drive(letters.waiting(self._outbox, most))

    def dead(self) -> list[Dead]:
        """The dead letters of this sink, oldest first. Read-only."""
        return [letter.dead for letter in self._drive(letters.letters(self._outbox))]

    def discard(self, ids: Sequence[str] | None = None) -> list[Dead]:
        """Gives up dead letters, all or those of these ids, and returns them.

        For use that is billed already, or never will be. Raises `PolicyError` for an unknown id.
        """
        chosen = self._chosen(ids)
        self._drive(letters.discard(self._outbox, chosen))
        return [letter.dead for letter in chosen]

    def resend(self, ids: Sequence[str] | None = None) -> list[tuple[Dead, Outcome]]:
        """Sends dead letters again, all or those of these ids; what is delivered is off the list.

        It is the caller's word that they have not arrived. Raises `PolicyError` for an unknown id,
        `SinkError`, `Unavailable`.
        """
        ended: list[tuple[Dead, Outcome]] = []
        partitions = dict.fromkeys(letter.item.partition for letter in self._chosen(ids))
        self._turn.look_at_clock()
        try:
            for at in partitions:
                ended += self._resend_in(at, ids)
        finally:
            self._delivery.close()
        return ended

    def retire(self) -> None:
        """Nothing is kept for this sink any more; entries that wait for it alone are removed."""
        self._drive(self._outbox.retire())

    def _chosen(self, ids: Sequence[str] | None) -> list[letters.Letter]:
        found = self._drive(letters.letters(self._outbox))
        if ids is None:
            return found
        unknown = set(ids) - {letter.dead.id for letter in found}
        if unknown:
            raise PolicyError(
                f"no dead letter of {self._sink.name} has the id {', '.join(sorted(unknown))}"
            )
        return [letter for letter in found if letter.dead.id in ids]

    def _resend_in(self, at: int, ids: Sequence[str] | None) -> list[tuple[Dead, Outcome]]:
        held = self._turn.take([at])
        try:
            found = self._drive(letters.letters(self._outbox, [at]))  # as they are under the lease
            chosen = [one for one in found if ids is None or one.dead.id in ids]
            if not held:
                busy = Outcome(
                    "retry", "another exporter holds the partition; try again", 0.0, True
                )
                return [(letter.dead, busy) for letter in chosen]
            places = {at: BEGIN}  # a crash may have left it unacknowledged in the outbox
            while places.get(at, NEW) != NEW:
                self._read(places)
            return [(letter.dead, self._send_again(letter)) for letter in chosen]
        finally:
            with suppress(MeterdError):
                self._turn.give_back()

    def _send_again(self, letter: letters.Letter) -> Outcome:
        item, outbox = letter.item, self._outbox
        if item.entry is None:
            return Outcome("dead", letter.dead.reason)
        self._delivery.read_metas([item])
        where = self._sink.lane(item.entry, item.meta or {}, self._turn.now_ms())
        if isinstance(where, Outcome):
            outcome = where
        else:
            before = letter.dead.reason
            now_ms = self._turn.now_ms()
            self._drive(letters.touch(outbox, letter, before, now_ms, now_ms))
            if self._sink.batches:
                self._sink.write([item.entry])
                outcome = DELIVERED
            else:
                outcome = self._sink.send(item.entry, item.meta or {}, now_ms)
        if outcome.kind == "delivered":
            self._drive(letters.discard(outbox, [letter]))
        elif outcome.reason != letter.dead.reason:
            now_ms = self._turn.now_ms()
            first = now_ms if not isinstance(where, Outcome) else item.tries.first_ms
            self._drive(letters.touch(outbox, letter, outcome.reason, now_ms, first))
        return outcome
