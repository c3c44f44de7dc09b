"""A clock for tests: the whole engine runs on it, and nothing sleeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from meterd.errors import PolicyError
from meterd.timespec import datetime_ms

_START_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z


class ManualClock:
    """Give it to `Meter(clock=...)`; time passes only by `advance` and `set`.

    A store remembers that it runs on a test clock and refuses meters that run on the server's.
    """

    def __init__(self, start_ms: int = _START_MS) -> None:
        self.now_ms = _checked(start_ms)

    def advance(self, delta: timedelta | None = None, /, **parts: float) -> int:
        """Moves by a `timedelta` or its parts (`days=31`, `milliseconds=-5`). Returns `now_ms`.

        Moving back is allowed: records never go back before what they have seen.
        """
        step = (delta or timedelta()) + timedelta(**parts)
        self.now_ms = _checked(self.now_ms + step // timedelta(milliseconds=1))
        return self.now_ms

    def set(self, moment: datetime) -> int:
        """Moves to an aware datetime. Returns `now_ms`."""
        self.now_ms = _checked(datetime_ms(moment, field="clock"))
        return self.now_ms

    def now(self) -> datetime:
        """The time it shows, as an aware UTC datetime."""
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=self.now_ms)

    def __repr__(self) -> str:
        return f"ManualClock({self.now_ms})"


def _checked(ms: int) -> int:
    if type(ms) is not int or not 0 <= ms < 2**46:
        raise PolicyError(f"clock: {ms!r} is not a time; allowed: whole ms from 1970 on")
    return ms
