"""Where periods end, as the engine reports it, against zoneinfo: every reset, anchor and day, in
zones that do everything to their clocks that zones do.

A pool's boundaries are computed apart (`tests.oracle.calendar`); then the engine is asked for the
next one, a millisecond before each of them and at its very instant.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import hiredis
import pytest

from meterd import Meter, Plan, Pool, wire
from meterd.scripts import Scripts
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.oracle.calendar import (
    Grid,
    calendar_grid,
    grid_from,
    instant_of,
    month_day_grid,
    to_ms,
    wall_at,
)
from tests.support.servers import Server

ZONES = (
    "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca",
    "America/Sao_Paulo", "Pacific/Apia", "Asia/Tehran", "America/Santiago", "Africa/Cairo",
)  # fmt: skip
MOVING = set(ZONES) - {"Asia/Kolkata", "America/Sao_Paulo", "Pacific/Apia", "Asia/Tehran"}
RESETS = ("hour", "day", "week", "month", "quarter", "year")
FROM, TO = to_ms(datetime(2024, 1, 1, tzinfo=UTC)), to_ms(datetime(2041, 1, 1, tzinfo=UTC))
MADE = to_ms(datetime(2023, 12, 3, 4, 5, tzinfo=UTC))  # when the records are
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


@lru_cache
def jumps(tz: str, first: int = FROM, last: int = TO) -> tuple[int, ...]:
    """The instants, to the minute, at which the zone's clock is moved."""
    zone = ZoneInfo(tz)

    def offset(ms: int) -> Any:
        return at(ms).astimezone(zone).utcoffset()

    found = []
    for low in range(first, last, DAY_MS):
        if offset(low) != offset(low + DAY_MS):
            early, late = low, low + DAY_MS
            while late - early > 60_000:
                middle = (early + late) // 2
                early, late = (middle, late) if offset(middle) == offset(low) else (early, middle)
            found.append(late - late % 60_000)
    return tuple(found)


@dataclass(frozen=True)
class Case:
    """One pool of one record, and its grid."""

    key: bytes
    name: str
    grid: Grid


def probes(case: Case, tz: str, rng: random.Random, thorough: bool) -> Iterator[int]:
    """Instants to ask at: around every boundary; of many, around some, half of them near a jump."""
    grid = case.grid
    first, last = grid.index_of(FROM) + 1, grid.index_of(TO)
    chosen: range | set[int] = range(first, last)
    some = 250 if case.name.startswith("day") else 70
    few, many = (100, 2000) if thorough else (5, 10)
    if len(chosen) > (7000 if thorough else some):
        near = rng.sample(jumps(tz), min(len(jumps(tz)), few))
        chosen = {
            n for jump in near for n in range(grid.index_of(jump) - 1, grid.index_of(jump) + 3)
        }
        chosen |= set(rng.sample(range(first, last), many)) | ({-1, 0, 1} & set(range(first, last)))
    for n in chosen:
        boundary = grid.boundary(n)
        yield boundary - 1
        yield boundary


def anchors(tz: str) -> list[datetime]:
    """Instants to count from: every day of a month, leap day, both sides of the clock's jumps."""
    zone = ZoneInfo(tz)
    found = [
        at(instant_of(zone, datetime(2023, 1, day, *((0, 0) if day % 2 else (2, 30)))))
        for day in range(1, 32)
    ]
    found += [
        datetime(2020, 2, 29, 12, tzinfo=UTC),
        datetime(2022, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
    ]
    early = jumps(tz, to_ms(datetime(2022, 1, 1, tzinfo=UTC)), MADE)
    for jump in (*early[-3:], *jumps(tz)[-2:]):
        # Before it, at it, and behind it: with a clock moved back this wall time occurs twice.
        found += [at(jump + minutes * 60_000) for minutes in (-30, 0, 15, 30, 90)]
    return found


class Asker:
    """Many checks in flight at once."""

    def __init__(self, server: Server, meter: Meter) -> None:
        self._meter = meter
        self._name = Scripts().function_name("check").encode()
        self._context = meter._store.context(None)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server.socket)
        self._one = wire.encode_costs("x").amounts

    def close(self) -> None:
        self._socket.close()

    def wrong(self, asked: Iterable[tuple[Case, int]]) -> tuple[int, list[str]]:
        """How many were asked, and those that the engine sees otherwise."""
        found = []
        count, rest = 0, iter(asked)
        # The functions keep policies from call to call: any call brings them there.
        self._meter.usage("first")
        while batch := list(itertools.islice(rest, 400)):
            count += len(batch)
            packed = [
                wire.script_call(
                    (b"FCALL_RO", self._name),
                    (case.key,),
                    (b"%d" % now, self._context, case.name.encode(), self._one, b"", b""),
                )
                for case, now in batch
            ]
            self._socket.sendall(b"".join(packed))
            reader, replies = hiredis.Reader(), []
            while len(replies) < len(batch):
                reader.feed(self._socket.recv(1 << 18))
                while (reply := reader.gets()) is not False:
                    replies.append(reply)
            for (case, now), reply in zip(batch, replies, strict=True):
                assert isinstance(reply, bytes)
                assert reply[0] == wire.DECIDED, reply
                answered, expected = _resets_at(reply), case.grid.first_after(now)
                if answered != expected:
                    found.append(
                        f"{case} at {at(now)}: {at(int(answered))}, expected {at(expected)}"
                    )
        return count, found


def _resets_at(reply: bytes) -> float:
    """Of an answer with one limit: the number before the last."""
    value: float = wire.figures(1).unpack(reply[-57:])[6]
    return value


def pools(tz: str, resets: Iterable[str], prefix: str, **fields: Any) -> list[Pool]:
    return [Pool(f"{prefix}-{r}", 10**6, r, tz=tz, **fields) for r in resets]


def calendar_resets(tz: str) -> list[str]:
    """Without hours where the clock moves by half of one: no such grid stands still."""
    return [r for r in RESETS if r != "hour" or tz != "Australia/Lord_Howe"]


@pytest.fixture(scope="module")
def ask(server: Server) -> Iterator[Any]:
    """`ask(tz)` -> (its cases, who asks); each zone in a store of its own."""
    opened: list[Any] = []

    def build(tz: str) -> tuple[list[Case], Asker]:
        instants = anchors(tz)
        picked = {f"at{i}": instant for i, instant in enumerate(instants[28:])}
        own = [
            *pools(tz, calendar_resets(tz), "cal", anchor="calendar"),
            *(Pool(f"day{d}", 10**6, "month", anchor=d, tz=tz) for d in range(1, 32)),
        ]
        plans = [
            Plan("own", includes=own),
            Plan("first", includes=pools(tz, RESETS, "use", anchor="first_use")),
            Plan("anchored", includes=pools(tz, [*RESETS, "36h"], "sub")),
        ]
        plans += [
            Plan(name, includes=pools(tz, [*RESETS, "36h"], name, anchor=instant))
            for name, instant in picked.items()
        ]
        prefix = "cal" + tz.replace("/", "")
        meter = Meter(server.url, plans=plans, clock=ManualClock(MADE), prefix=prefix, timeout=30)
        opened.append(meter.open())
        cases: list[Case] = []

        def add(subject: str, grids: dict[str, Grid]) -> None:
            (key,) = meter._keys.path(subject).keys
            cases.extend(Case(key, name, grid) for name, grid in grids.items())

        for name in ("own", "first"):
            meter.subscribe(name, name)
        grids = {f"cal-{r}": calendar_grid(r, tz) for r in calendar_resets(tz)}
        add("own", grids | {f"day{d}": month_day_grid(d, tz) for d in range(1, 32)})
        everything = {**dict.fromkeys(RESETS), "36h": 36 * HOUR_MS}
        for name, instant in picked.items():
            meter.subscribe(name, name)
            add(
                name,
                {
                    f"{name}-{r}": grid_from(ms or r, tz, to_ms(instant))
                    for r, ms in everything.items()
                },
            )
        for i, instant in enumerate(instants):
            meter.subscribe(f"sub{i}", "anchored", anchor=instant)
            add(
                f"sub{i}",
                {
                    f"sub-{r}": grid_from(ms or r, tz, to_ms(instant))
                    for r, ms in everything.items()
                },
            )
            meter.usage(f"sub{i}")
        for name in picked:
            meter.usage(name)
        meter.usage("own")
        asker = Asker(server, meter)
        opened.append(asker)
        return cases, asker

    yield build
    for one in opened:
        one.close()
    for key in server.binary.scan_iter(match="cal*", count=1000):
        server.binary.delete(key)


def assert_zone(ask: Any, tz: str, thorough: bool) -> None:
    cases, asker = ask(tz)
    rng = random.Random(tz)
    asked = ((case, now) for case in cases for now in probes(case, tz, rng, thorough))
    count, wrong = asker.wrong(asked)
    assert count > 15_000
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong[:10]])


@pytest.mark.parametrize("tz", ZONES)
def test_periods_end_where_zoneinfo_says(ask: Any, tz: str) -> None:
    assert_zone(ask, tz, thorough=False)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tz", ZONES)
def test_every_single_period_ends_where_zoneinfo_says(ask: Any, tz: str) -> None:
    assert_zone(ask, tz, thorough=True)


@pytest.mark.parametrize("tz", ZONES)
def test_boundaries_meet_skipped_and_doubled_wall_times(tz: str) -> None:
    """That the instants asked about are the interesting ones; else the above says little."""
    assert bool(jumps(tz)) == (tz in MOVING)
    zone = ZoneInfo(tz)
    skipped = doubled = 0
    for instant in anchors(tz):
        grid = grid_from("day", tz, to_ms(instant))
        wall = wall_at(zone, to_ms(instant)).time()
        for n in (
            n for jump in jumps(tz) for n in range(grid.index_of(jump), grid.index_of(jump) + 2)
        ):
            moved = wall_at(zone, grid.boundary(n))
            skipped += moved.time() != wall
            folds = {moved.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1)}
            doubled += len(folds) > 1
    assert (skipped > 0) == (tz in MOVING)
    assert (doubled > 0) == (tz in MOVING)


@pytest.mark.parametrize("tz", ZONES)
def test_a_first_use_period_counts_from_its_charge(make: Make, tz: str) -> None:
    clock = ManualClock(MADE)
    pools_of = [Pool(r, 10, r, anchor="first_use", tz=tz, rates={"x": 1}) for r in RESETS]
    meter = make([Plan("p", includes=pools_of, default=True)], clock=clock)
    rng = random.Random(tz)
    moments = [*(rng.randrange(FROM, TO) for _ in range(25))]
    moments += [
        jump + off * 60_000 for jump in jumps(tz)[::3] for off in (-1, 0, 30, -DAY_MS // 60_000)
    ]
    for i, moment in enumerate(moments):
        clock.now_ms = moment
        for state in meter.consume(f"s{i}", "x").limits:
            expected = grid_from(state.name, tz, moment).boundary(1)
            assert state.resets_at_ms == expected, (state.name, at(moment))
            clock.now_ms = expected - 1
            assert meter.check(f"s{i}", "x")[state.name].used == 1
            clock.now_ms = expected
            closed = meter.check(f"s{i}", "x")[state.name]
            assert (closed.used, closed.resets_at_ms) == (0, None)
            clock.now_ms = moment


@pytest.mark.parametrize("tz", ZONES)
def test_missed_periods_are_counted_not_walked(make: Make, tz: str) -> None:
    """With a unit a period that never lapses, what remains is the number of periods begun."""
    clock = ManualClock(MADE)
    anchor = anchors(tz)[30]
    grids: dict[str, Grid] = {f"cal-{r}": calendar_grid(r, tz) for r in calendar_resets(tz)}
    grids |= {f"sub-{r}": grid_from(r, tz, MADE) for r in RESETS}
    grids |= {f"at-{r}": grid_from(r, tz, to_ms(anchor)) for r in RESETS}
    found: list[Pool] = []
    for kind, value in (("cal", "calendar"), ("sub", "subscription"), ("at", anchor)):
        names = [r for r in RESETS if f"{kind}-{r}" in grids]
        found += [
            Pool(f"{kind}-{r}", 1, r, anchor=value, tz=tz, rollover=10**9, rates={"x": 1})
            for r in names
        ]
    meter = make([Plan("p", includes=found)], clock=clock)
    meter.subscribe("a", "p")
    rng = random.Random(tz)
    for moment in sorted([*jumps(tz)[::5], *(rng.randrange(FROM, TO) for _ in range(20))]):
        clock.now_ms = moment
        states = meter.usage("a").limits
        assert len(states) == len(grids)
        for state in states:
            grid = grids[state.name]
            expected = 1 + grid.index_of(moment) - grid.index_of(MADE)
            assert state.remaining == expected, (state.name, at(moment))
