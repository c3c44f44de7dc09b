"""A limit in a few words, the way people say it: "60 per minute, sliding"."""

from __future__ import annotations

from meterd.policy import Bucket, Flag, Limit, Pool, Slots
from meterd.term import number
from meterd.timespec import format_ms

_ANCHORS = {
    "subscription": "from subscription",
    "calendar": "calendar",
    "first_use": "from first use",
}
_UNITS = {"1s": "second", "1m": "minute", "1h": "hour", "1d": "day", "1w": "week"}


def rule(limit: Limit) -> str:
    """What the limit allows, without its name."""
    if isinstance(limit, Flag):
        return "included"
    if isinstance(limit, Bucket):
        said = [f"{number(limit.limit)} per {_per(limit.per_ms)}"]
        if limit.burst is not None:
            said.append(f"burst {number(limit.burst)}")
        return ", ".join([*said, limit.algorithm])
    if isinstance(limit, Slots):
        return f"{number(limit.limit)} at once"
    return ", ".join(_pool(limit))


def charges(limit: Limit) -> str:
    """Which cost names reach the limit and at what factor: `"input + 3 x output"`."""
    if isinstance(limit, Flag):
        return limit.name
    return " + ".join(n if f == 1 else f"{f:,} x {n}" for n, f in limit.charges.items())


def _pool(pool: Pool) -> list[str]:
    said = [number(pool.limit)]
    if pool.reset is None:
        said[0] += " in all"
    else:
        interval = pool.interval_ms
        said[0] += f" per {pool.reset if interval is None else _per(interval)}"
        if pool.anchor_kind == "day":
            said.append(f"from day {pool.anchor_day}")
        elif pool.anchor_kind == "instant":
            said.append(f"from {pool.anchor:%Y-%m-%d %H:%M %Z}")
        else:
            said.append(_ANCHORS[str(pool.anchor)])
        if pool.tz != "UTC":
            said.append(pool.tz)
    if pool.rollover:
        said.append(f"rollover {number(pool.rollover)}")
    if pool.overage is None:
        said.append("soft")
    elif pool.overage:
        said.append(f"overage {number(pool.overage)}")
    if pool.carry_debt:
        said.append("carries debt")
    return said


def _per(ms: int) -> str:
    text = format_ms(ms)
    return _UNITS.get(text, text)
