"""Billing export: use, from the outbox to whoever bills it, delivered at least once.

An `Exporter` empties the outboxes of a store into a sink: `JsonLines` (standard output or a file),
`Webhook` (Standard Webhooks), `StripeMeter` (Stripe billing meter events). Every entry carries an
identifier that never changes, by which the receiver tells a second delivery from the first.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterd.export.entry import Entry
    from meterd.export.exporter import Exporter
    from meterd.export.item import Dead, Waiting
    from meterd.export.jsonl import JsonLines
    from meterd.export.report import Report
    from meterd.export.sink import Outcome, Sink, SinkError
    from meterd.export.stripe_meter import StripeMeter
    from meterd.export.webhook import Webhook

__all__ = [
    "Dead",
    "Entry",
    "Exporter",
    "JsonLines",
    "Outcome",
    "Report",
    "Sink",
    "SinkError",
    "StripeMeter",
    "Waiting",
    "Webhook",
]

_HOMES = {
    "entry": ("Entry",),
    "exporter": ("Exporter",),
    "item": ("Dead", "Waiting"),
    "jsonl": ("JsonLines",),
    "report": ("Report",),
    "sink": ("Outcome", "Sink", "SinkError"),
    "stripe_meter": ("StripeMeter",),
    "webhook": ("Webhook",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'meterd.export' has no attribute {name!r}")
        home = import_module(f"meterd.export.{_HOME_OF[name]}")
        found = globals()[name] = getattr(home, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
