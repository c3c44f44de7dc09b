"""What a sink is, and how a delivery may end.

A sink says where an entry goes (`lane`) and takes it there (`send`). Entries of one lane go one
after another; lanes go side by side. It decides what an answer means and nothing else: when to try
again, what to keep and what to give up is the exporter's business.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

from meterd.errors import MeterdError
from meterd.export.entry import Entry

Kind = Literal["delivered", "retry", "waiting", "dead"]


class SinkError(MeterdError):
    """Nothing can be delivered as the sink is set up: wrong key, no such file. Nothing is lost."""


class Outcome(NamedTuple):
    """How a delivery ended.

    "delivered"; "retry", after that many seconds if the receiver said so; "waiting" for something
    that is missing here; "dead": the receiver will never take it. `certain`: what is to be retried
    was certainly not delivered.
    """

    kind: Kind
    reason: str = ""
    after: float | None = None
    certain: bool = False


DELIVERED = Outcome("delivered")


class Sink:
    """Where use goes. `name`: its consumer group, so that each sink gets every entry.

    `workers`: how many lanes at once. `patience`: seconds that one `send` may take at most.
    `window_ms`: for how long the receiver knows an identifier again; None: forever. `batches`: it
    takes entries by the thousand, by `write`, and has no lanes.
    """

    name: str
    workers = 1
    patience = 30.0
    window_ms: int | None = None
    batches = False
    needs_meta = False

    def lane(self, entry: Entry, meta: Mapping[str, Any], now_ms: int) -> Hashable | Outcome:
        """What must not be delivered to twice at once; an `Outcome` if it is not to be sent now."""
        return entry.root

    def send(self, entry: Entry, meta: Mapping[str, Any], now_ms: int) -> Outcome:
        """Delivers one entry. Raises `SinkError` if no entry can be delivered."""
        raise NotImplementedError

    def write(self, entries: Sequence[Entry]) -> None:
        """Delivers all of them, for good; raises if it could not."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of files and connections."""


def backoff(attempts: int, after: float | None = None) -> float:
    """Seconds before the next attempt: doubling up to ten minutes, half of it at random.

    At least `after`, if the receiver asked for that (an hour at most).
    """
    longest = min(0.5 * 2 ** min(attempts, 20), 600.0)
    chosen: float = longest / 2 + random.random() * longest / 2
    return chosen if after is None else max(chosen, min(after, 3600.0))


def retry_after(value: str | None, now_s: float) -> float | None:
    """Seconds from a Retry-After header: a number of them, or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    moment = date_of(value)
    return None if moment is None else max(0.0, moment - now_s)


def date_of(value: str | None) -> float | None:
    """Seconds since 1970 from an HTTP date; None for anything else."""
    if not value:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
