"""Plans to policy bytes: what the Lua reads, with time zones written out as UTC transitions.

A policy is what the plans of one subject add up to. Its bytes are named by the first 8 bytes of
their SHA-1 and never change, so servers and clients may keep them for ever. The layout stands in
`lua/lib/policy.lua`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgpack

from meterd.catalog import definition_hash, merge
from meterd.policy import Bucket, Limit, Plan, Pool, Slots

NONE = -(2**53)
ABSENT = bytes(8)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_MS = 86_400_000
# Zones are written out up to a first horizon; a record that outlives it is moved to a policy with a
# later one. Past the last, the final offset of a zone stands for all that follows.
_FIRST_HORIZON = 2048
_HORIZON_STEP = 16
_LAST_HORIZON = 2496

_MODES = {"subscription": 0, "calendar": 1, "day": 1, "instant": 2, "first_use": 3}
_HOUR_MODE = 4
_UNITS = {"day": (2, 1), "week": (2, 7), "month": (3, 1), "quarter": (3, 3), "year": (3, 12)}
_FIRST_MONDAY_MS = 4 * _DAY_MS  # 1970-01-05
_BILL = {None: 0, "use": 1, "overage": 2}
_KINDS = {"fixed": 2, "sliding": 3, "token": 4}


@dataclass(frozen=True, slots=True)
class Policy:
    """Compiled plans: `name` (8 bytes) of `blob`, and what a client needs to know of them."""

    name: bytes
    blob: bytes
    horizon: int  # year
    plans: tuple[tuple[str, str, bytes, bool], ...]  # group, id, definition hash, private
    limits: tuple[str, ...]


_PRIVATE = {"meterd": "private"}


def private_plan(plan_id: str, limits: Sequence[Limit]) -> Plan:
    """A plan that one subject has to itself; the catalog never replaces it."""
    return Plan(plan_id, includes=limits, meta=_PRIVATE)


def is_private(plan: Plan) -> bool:
    return plan.meta == _PRIVATE


def year_ms(year: int) -> int:
    """The first instant of a year, UTC, in ms."""
    return int((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) / timedelta(milliseconds=1))


def horizon_for(needed_ms: int) -> int:
    """The year up to which zones have to be written out for `needed_ms` to lie well before it."""
    for year in range(_FIRST_HORIZON, _LAST_HORIZON, _HORIZON_STEP):
        if year_ms(year) > needed_ms:
            return year
    return _LAST_HORIZON


@lru_cache(maxsize=64)
def transitions(tz: str, year: int) -> bytes:
    """(utc ms: 6 bytes, offset in s: 4 bytes) from 1970 to the start of `year`, little-endian."""
    from zoneinfo import ZoneInfo  # slow to load, and many plans need none

    zone = ZoneInfo(tz)

    def offset(second: int) -> int:
        at = _EPOCH + timedelta(seconds=second)
        delta = at.astimezone(zone).utcoffset()
        return int(delta.total_seconds()) if delta is not None else 0

    entries = [(0, offset(0))]
    end = year_ms(year) // 1000
    low, before = 0, entries[0][1]
    while low < end:
        high = low + 86_400
        after = offset(high)
        if after != before:
            first, last = low, high  # offset(first) is the old one, offset(last) the new one
            while last - first > 1:
                middle = (first + last) // 2
                if offset(middle) == before:
                    first = middle
                else:
                    last = middle
            entries.append((last * 1000, after))
            before = after
        low = high
    return b"".join(struct.pack("<Q", ms)[:6] + struct.pack("<i", off) for ms, off in entries)


def _rates(limit: Pool | Bucket | Slots) -> list[Any]:
    flat: list[Any] = []
    for cost, factor in (limit.rates or {}).items():
        flat += [cost, factor]
    return flat


def _millionths(fractions: Sequence[float]) -> list[int]:
    """Thresholds count in millionths, the nearest, at least one."""
    return sorted({max(1, round(fraction * 1_000_000)) for fraction in fractions})


def _or_none(value: int | None) -> int:
    return NONE if value is None else value


def _grid(pool: Pool) -> tuple[int, int, int, int]:
    """unit, every, mode and anchor of a pool's boundaries, as `lua/lib/calendar.lua` reads them."""
    kind = pool.reset_kind
    if kind is None:
        return 0, 0, 0, 0
    mode = _MODES[pool.anchor_kind]
    anchor = pool.anchor_ms or 0
    if kind == "duration":
        return 1, pool.interval_ms or 0, mode, anchor
    if kind == "hour":
        return 1, 3_600_000, _HOUR_MODE if mode == 1 else mode, anchor
    unit, every = _UNITS[kind]
    if pool.anchor_kind == "day":
        anchor = ((pool.anchor_day or 1) - 1) * _DAY_MS
    elif mode == 1 and kind == "week":
        anchor = _FIRST_MONDAY_MS
    return unit, every, mode, anchor


def _row(limit: Limit, zones: list[str]) -> list[Any]:
    if isinstance(limit, Pool):
        zone = 0
        if limit.tz != "UTC" and limit.reset is not None:
            if limit.tz not in zones:
                zones.append(limit.tz)
            zone = zones.index(limit.tz) + 1
        head = [1, limit.name, _or_none(limit.limit), _or_none(limit.overage), limit.rollover]
        head += [int(limit.carry_debt), *_grid(limit), zone, _BILL[limit.bill], _rates(limit)]
        return [*head, _millionths(limit.warn_at), list(limit.warn_below)]
    if isinstance(limit, Bucket):
        head = [_KINDS[limit.algorithm], limit.name, limit.limit, _or_none(limit.burst)]
        return [*head, limit.per_ms, _rates(limit)]
    if isinstance(limit, Slots):
        return [0, limit.name, limit.limit, _rates(limit)]
    return [5, limit.name]


def compile_policy(plans: Sequence[Plan], horizon: int = _FIRST_HORIZON) -> Policy:
    """The policy of a set of plans, at most one per group; the same set gives the same bytes.

    Raises `PolicyError` where the plans do not go together.
    """
    ordered = sorted(plans, key=lambda plan: plan.group)
    zones: list[str] = []
    limits = merge(ordered)
    rows = [_row(limit, zones) for limit in limits]
    held = tuple((p.group, p.id, definition_hash(p), is_private(p)) for p in ordered)
    # A policy without zones is the same at every horizon, under one name.
    horizon_ms = year_ms(horizon) if zones and horizon < _LAST_HORIZON else 2**53
    parts: list[Any] = [2, horizon_ms, [[z, transitions(z, horizon)] for z in zones], held, rows]
    autos: list[int] = []
    for position, limit in enumerate(limits, 1):
        if isinstance(limit, Pool | Bucket) and limit.auto_amount:
            autos += (position, limit.auto_amount)
    if autos:
        parts.append(autos)
    blob = msgpack.packb(parts, use_bin_type=False)
    name = hashlib.sha1(blob).digest()[:8]
    return Policy(name, blob, horizon, held, tuple(limit.name for limit in limits))


def read_policy(blob: bytes) -> Policy:
    """A policy from its bytes."""
    data = msgpack.unpackb(blob, raw=True)
    plans = tuple(
        (group.decode(), plan.decode(), digest, own) for group, plan, digest, own in data[3]
    )
    years = {year_ms(y): y for y in range(_FIRST_HORIZON, _LAST_HORIZON, _HORIZON_STEP)}
    limits = tuple(row[1].decode() for row in data[4])
    name = hashlib.sha1(blob).digest()[:8]
    return Policy(name, blob, years.get(data[1], _LAST_HORIZON), plans, limits)
