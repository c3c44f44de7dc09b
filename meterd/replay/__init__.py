"""What would these plans have done to that traffic? Recorded requests, replayed through the engine.

    traffic = read_rows(source, Selection(costs=(Cost.parse("credits=prompt+answer"),)))
    report = replay(meter, traffic.rows, clock=clock, choice=choose(plans))
    print(render(report, Look.of()))

The rows carry the clock: every charge happens at the instant the file says, in time order, so a day
of traffic replays in seconds and with exactly the resets it would have met.
"""

from meterd.replay.inputs import Cost, Row, Selection, Traffic, read_rows
from meterd.replay.plans import Choice, built_in, check_costs, choose
from meterd.replay.render import render
from meterd.replay.report import LimitTotals, Report, SubjectTotals
from meterd.replay.run import replay
from meterd.replay.source import FORMATS, InputError, Source

__all__ = [
    "FORMATS",
    "Choice",
    "Cost",
    "InputError",
    "LimitTotals",
    "Report",
    "Row",
    "Selection",
    "Source",
    "SubjectTotals",
    "Traffic",
    "built_in",
    "check_costs",
    "choose",
    "read_rows",
    "render",
    "replay",
]
