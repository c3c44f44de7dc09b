"""Drives the engine with the traffic's own clock: one all-or-nothing `consume` per row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from meterd.replay.inputs import Row
from meterd.replay.plans import Choice
from meterd.replay.report import Report

if TYPE_CHECKING:
    from meterd.client import Meter

PROGRESS_ROWS = 250


class Clock(Protocol):
    """What a replay needs of `meterd.testing.ManualClock`."""

    now_ms: int


def replay(
    meter: Meter,
    rows: Sequence[Row],
    *,
    clock: Clock,
    choice: Choice,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Charge every row at its own time and count what happened.

    `meter` runs on `clock`, has the catalog of `choice` and has not seen these subjects. `rows` are
    in time order; each subject joins `choice.join` at its first row. `on_progress(done, total)` is
    called now and then, and at the end. A refused row charges nothing, anywhere.
    """
    first, last = (rows[0].time_ms, rows[-1].time_ms) if rows else (0, 0)
    report = Report.empty(choice.effective, first, last)
    report.built_in = choice.built_in
    plan = choice.join.id
    started = time.perf_counter()
    for done, (time_ms, subject, costs) in enumerate(rows):
        if on_progress is not None and done % PROGRESS_ROWS == 0:
            on_progress(done, len(rows))
        clock.now_ms = time_ms
        decision = meter.consume(subject, costs, join=plan)
        if decision.allowed:
            applied = [(state.name, state.applied) for state in decision.limits]
            report.add(time_ms, subject, costs, allowed=True, code=decision.code, applied=applied)
        else:
            names = dict.fromkeys(state.name for state in decision.refused)
            report.add(time_ms, subject, costs, allowed=False, code=decision.code, refused=names)
    report.seconds = time.perf_counter() - started
    if on_progress is not None:
        on_progress(len(rows), len(rows))
    return report
