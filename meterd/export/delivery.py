"""Delivering a page of entries: what to send, what its end means, when to try again."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from meterd.events import read_metas
from meterd.export.item import Item
from meterd.export.lanes import Lanes
from meterd.export.outbox import Outbox
from meterd.export.report import Report
from meterd.export.sink import DELIVERED, Outcome, Sink, SinkError, backoff
from meterd.export.turn import Turn
from meterd.keys import encode_segment
from meterd.result import instant
from meterd.timespec import format_ms

if TYPE_CHECKING:
    from meterd.client import Meter

_log = logging.getLogger("meterd")

_SETTLE = 64  # entries that are settled together
_MARGIN_MS = 300_000  # before the end of a receiver's memory
_FORGET = 600.0  # seconds after which an entry that has not come again is somebody else's
RECHECK = 30.0  # seconds until a waiting entry is looked at again
_ByLane = dict[Hashable, list[Item]]


class _Later(NamedTuple):
    """An entry that is left for another pass: until when, why, and whether trying again helps."""

    when: float
    reason: str
    retry: bool


class Delivery:
    """Pages of one sink, and what is remembered between them.

    `visits`: by partition, when to look again at what was read before.
    """

    def __init__(self, meter: Meter, sink: Sink, outbox: Outbox, turn: Turn) -> None:
        self._meter = meter
        self._sink = sink
        self._outbox = outbox
        self._turn = turn
        self.visits: dict[int, float] = {}
        self._later: dict[tuple[int, bytes], _Later] = {}
        self._lanes: Lanes | None = None
        self.report = Report()

    def begin(self) -> Report:
        """A run."""
        self.report = Report()
        return self.report

    def begin_pass(self) -> None:
        past = self._turn.monotonic() - _FORGET
        self._later = {which: left for which, left in self._later.items() if left.when > past}
        self.report.busy = 0

    def end_pass(self) -> None:
        self.report.count_left([(left.reason, left.retry) for left in self._later.values()])

    def due(self) -> float | None:
        """When the next entry is to be tried again; None: there is none."""
        return min((left.when for left in self._later.values() if left.retry), default=None)

    def close(self) -> None:
        """Waits for what is under way."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()
        self._sink.close()

    def write(self, items: Sequence[Item]) -> None:
        """To a sink that takes all at once."""
        whole = [item.entry for item in items if item.entry is not None]
        if whole:
            self._sink.write(whole)
        self._settle(
            [
                (item, DELIVERED if item.entry is not None else Outcome("dead", item.broken))
                for item in items
            ]
        )

    def deliver(self, items: Sequence[Item]) -> None:
        """To a sink that takes one at a time."""
        now = self._turn.monotonic()
        due = []
        for item in items:
            left = self._later.get((item.partition, item.stream_id))
            if left is not None and left.when > now:
                self._look_again(item, left.when)
            else:
                due.append(item)
        if self._sink.needs_meta:
            self.read_metas(due)
        lanes, done = self._lanes_of(due)
        marked = []
        if self._sink.window_ms is not None:
            for item in (item for lane in lanes.values() for item in lane):
                if not item.tries.first_ms:
                    item.tries = item.tries._replace(first_ms=self._turn.now_ms())
                    marked.append(item)
            self._meter._drive(self._outbox.mark(marked))
        if lanes:
            self._run_lanes(lanes, {id(item) for item in marked}, done)
        self._settle(done)

    def read_metas(self, items: Sequence[Item]) -> None:
        roots = {(item.partition, encode_segment(item.entry.root)) for item in items if item.entry}
        metas = self._meter._drive(read_metas(self._meter._session, self._meter._keys, roots))
        for item in items:
            if item.entry:
                item.meta = metas[item.partition, encode_segment(item.entry.root)]

    def _lanes_of(self, items: Sequence[Item]) -> tuple[_ByLane, list[tuple[Item, Outcome]]]:
        """What is to be sent, by lane; and what need not be, or cannot be."""
        lanes: _ByLane = {}
        done: list[tuple[Item, Outcome]] = []
        kept: list[Item] = []
        for item in items:
            where = self._where(item)
            if not isinstance(where, Outcome):
                lanes.setdefault(where, []).append(item)
            elif where.kind in ("delivered", "dead"):
                done.append((item, where))
            else:
                known = item.tries
                self._postpone(item, where)
                if item.tries != known:
                    kept.append(item)
        self._meter._drive(self._outbox.mark(kept))
        for lane in lanes.values():
            lane.sort(key=_attempts)  # one that always fails is not to hold up the others
        return lanes, done

    def _where(self, item: Item) -> Hashable | Outcome:
        if item.entry is None:
            return Outcome("dead", item.broken)
        window, first = self._sink.window_ms, item.tries.first_ms
        if window is not None and first and self._turn.now_ms() - first > window - _MARGIN_MS:
            return Outcome(
                "dead",
                f"an attempt at {instant(first).isoformat()} may have arrived, and the receiver "
                f"forgets identifiers after {format_ms(window)}; last answer: "
                f"{item.tries.reason or 'none'}",
            )
        return self._sink.lane(item.entry, item.meta or {}, self._turn.now_ms())

    def _run_lanes(
        self, lanes: _ByLane, marked: set[int], done: list[tuple[Item, Outcome]]
    ) -> None:
        """`marked`: the items of which no earlier attempt may have arrived."""
        problem: BaseException | None = None
        changed: list[Item] = []
        lane_of = {id(item): lane for lane, items in lanes.items() for item in items}
        stopped: dict[Hashable, float] = {}  # until when, of lanes
        if self._lanes is None:
            self._lanes = Lanes(self._sink)
        turn = self._turn
        running = self._lanes.run(lanes, turn.may_go, turn.now_ms, turn.keep)
        with closing(running):
            for item, outcome in running:
                before = 0 if id(item) in marked else item.tries.first_ms
                lane = lane_of[id(item)]
                if isinstance(outcome, Outcome) and outcome.kind in ("delivered", "dead"):
                    done.append((item, outcome))
                elif isinstance(outcome, Outcome):
                    if outcome.certain:
                        item.tries = item.tries._replace(first_ms=before)
                    stopped[lane] = self._postpone(item, outcome)
                    changed.append(item)
                else:
                    if outcome is None or isinstance(outcome, SinkError):  # nothing was sent
                        item.tries = item.tries._replace(first_ms=before)
                        changed.append(item)
                    problem = problem or outcome
                    self._hold(item, stopped.get(lane, turn.monotonic()), "not tried yet", True)
                if len(done) >= _SETTLE:
                    self._settle(done)
                    done.clear()
                    turn.keep()
        self._meter._drive(self._outbox.mark(changed))
        if problem is not None:
            self._settle(done)
            raise problem

    def _postpone(self, item: Item, outcome: Outcome) -> float:
        """Until when."""
        attempts, wait, retry = item.tries.attempts, RECHECK, outcome.kind == "retry"
        if retry:
            attempts += 1
            wait = backoff(attempts, outcome.after)
        item.tries = item.tries._replace(attempts=attempts, reason=outcome.reason)
        when = self._turn.monotonic() + wait
        self._hold(item, when, outcome.reason, retry)
        return when

    def _hold(self, item: Item, until: float, reason: str, retry: bool) -> None:
        self._later[item.partition, item.stream_id] = _Later(until, reason, retry)
        self._look_again(item, until)

    def _look_again(self, item: Item, when: float) -> None:
        self.visits[item.partition] = min(self.visits.get(item.partition, when), when)

    def _settle(self, done: Sequence[tuple[Item, Outcome]]) -> None:
        if not done:
            return
        self._meter._drive(self._outbox.settle(done, self._turn.now_ms()))
        for item, outcome in done:
            self._later.pop((item.partition, item.stream_id), None)
            if outcome.kind == "dead":
                self.report.dead += 1
                name = item.entry.id if item.entry else item.stream_id.decode()
                _log.error("export to %s: %s is dead: %s", self._sink.name, name, outcome.reason)
            else:
                self.report.delivered += 1


def _attempts(item: Item) -> int:
    return item.tries.attempts
