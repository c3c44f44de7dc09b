"""Response header fields: RateLimit-Policy and RateLimit as structured fields, and the older ones.

Everything that spells a field lives here. The fields are those of draft-ietf-httpapi-ratelimit-
headers-11, their syntax is RFC 9651's. No I/O, no framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from meterd.result import LimitState

MAX_INTEGER = 999_999_999_999_999  # 15 digits: what a structured field's Integer can be

Fields = list[tuple[str, str]]
Window = Callable[[LimitState], int | None]


class Reading(NamedTuple):
    """One limit as a response tells of it.

    `window`: seconds after which its policy begins anew, None where that is no fixed number.
    `now_ms`: the instant of the response, on the clock that `resets_at_ms` is on.
    """

    state: LimitState
    window: int | None
    now_ms: int


def sf_string(text: str) -> str:
    """A String: printable ASCII in quotes. Raises `ValueError` for any other character."""
    for character in text:
        if not " " <= character <= "~":
            raise ValueError(f"a structured field's String is printable ASCII, got {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def sf_integer(number: int) -> str:
    """An Integer; what is out of its range becomes the nearest one in it."""
    return str(max(-MAX_INTEGER, min(MAX_INTEGER, number)))


def sf_item(name: str, parameters: Mapping[str, int | str | None]) -> str:
    """A String item with its parameters; those that are None are left out."""
    item = sf_string(name)
    for key, value in parameters.items():
        if value is not None:
            item += f";{key}=" + (sf_string(value) if isinstance(value, str) else sf_integer(value))
    return item


def retry_after_seconds(seconds: float | None) -> int | None:
    """Whole seconds, rounded up, so that whoever waits that long does not come too early."""
    return None if seconds is None else max(0, math.ceil(seconds))


def ratelimit_fields(readings: Iterable[Reading], *, legacy: bool = False) -> Fields:
    """The fields of a response, as (name, value); none where nothing is bounded.

    Of several limits of one name (on several levels) the tightest is told.
    """
    told = tightest(reading for reading in readings if reading.state.limit is not None)
    if not told:
        return []
    fields = [
        ("RateLimit-Policy", ", ".join(_policy(reading) for reading in told)),
        ("RateLimit", ", ".join(_service_limit(reading) for reading in told)),
    ]
    return fields + _legacy(told) if legacy else fields


def tightest(readings: Iterable[Reading]) -> list[Reading]:
    """One reading a name, in the order of first sight; a later one of the same limit counts."""
    found: dict[str, dict[object, Reading]] = {}
    for reading in readings:
        found.setdefault(reading.state.name, {})[reading.state.subject] = reading
    return [min(levels.values(), key=_room) for levels in found.values()]


def _room(reading: Reading) -> tuple[bool, float]:
    left = reading.state.remaining
    return reading.state.allowed, math.inf if left is None else left


def _policy(reading: Reading) -> str:
    state = reading.state
    unit = "concurrent-requests" if state.kind == "slots" else None
    return sf_item(state.name, {"q": state.limit, "qu": unit, "w": reading.window})


def _service_limit(reading: Reading) -> str:
    return sf_item(
        reading.state.name, {"r": _remaining(reading.state), "t": _effective_window(reading)}
    )


def _remaining(state: LimitState) -> int:
    """Never below 0, although a pool with overage may be."""
    return max(0, state.remaining or 0)


def _effective_window(reading: Reading) -> int | None:
    """Seconds. Of a limit that refused: until the call fits, as Retry-After says."""
    state = reading.state
    if not state.allowed and state.retry_after is not None:
        return retry_after_seconds(state.retry_after)
    if state.resets_at_ms is None or state.kind == "slots":
        return None
    return max(0, -((reading.now_ms - state.resets_at_ms) // 1000))


def _legacy(told: Sequence[Reading]) -> Fields:
    fields: Fields = []
    rates = [reading for reading in told if reading.state.kind != "pool"]
    pools = [reading for reading in told if reading.state.kind == "pool"]
    state = min(rates or pools, key=_room).state
    fields.append(("X-RateLimit-Limit", str(state.limit)))
    fields.append(("X-RateLimit-Remaining", str(_remaining(state))))
    if state.resets_at_ms is not None:
        fields.append(("X-RateLimit-Reset", str(-(-state.resets_at_ms // 1000))))
    if pools:
        usage = min(pools, key=_room).state
        fields.append(("X-Usage-Remaining", str(_remaining(usage))))
    return fields
