"""Reservations take functions made for them, and they say and store what the long way does.

The library under test is the shipped one, but functions are made at the first use, and there are
two switches, keys that exist or not: one ends every call that takes the long way, the other lets
every call take it.
"""

from __future__ import annotations

import random
import re
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from meterd import Bucket, Pool, Slots, wire
from meterd.compile import ABSENT, Policy
from meterd.keys import Keyspace
from meterd.policy import Limit
from meterd.scripts import Scripts, lua_root
from tests.engine.raw import Raw, amounts, extra
from tests.engine.test_plain_case import AMOUNTS, DAY, NAMES, NOW, policy, some_limits
from tests.support import servers

NO_LONG_WAY, NO_QUICK_WAY = b"no long way", b"no quick way"
SHARED = Keyspace().partition(b"x")
HELD = msgpack.packb({"h": [1]})
STEPS = (*(0, 1, 3, 250, 1000) * 6, 30_000, 3_600_000, 40 * DAY)


def switch(file: Path, key: bytes, then: str, *lines: str) -> None:
    text = file.read_text()
    for line in lines:
        assert text.count(line) == 1
        test = f'  if call("EXISTS", "{key.decode()}") == 1 then {then} end\n'
        text = text.replace(line, line + test)
    file.write_text(text)


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "lua"
    shutil.copytree(lua_root(), root)
    switch(
        root / "lib" / "charge.lua",
        NO_LONG_WAY,
        'error("LONG WAY", 0)',
        "function charge.read(keys, args, values, now, unasked)\n",
    )
    file = root / "lib" / "quick.lua"
    ends = "local function end_one(keys, now_text, context, names, used, op_text, id, all_back)\n"
    switch(file, NO_QUICK_WAY, "return nil", "function quick.reserve(keys, args)\n", ends)
    bound(root, 1000, 500_000)
    return root


def bound(root: Path, most: int, late: int) -> None:
    """Functions are made at the first use, for so many shapes."""
    file = root / "lib" / "quick.lua"
    bounds = r"(ENOUGH_USES, MOST_SHAPES, ENOUGH_LATE =) \d+, \d+, \d+"
    text, found = re.subn(bounds, rf"\1 1, {most}, {late}", file.read_text())
    assert found == 1
    file.write_text(text)


@pytest.fixture(scope="module", params=["valkey-9.1", "redis-7.0", "redis-8.2"])
def raw(request: pytest.FixtureRequest, switched: Path) -> Iterator[Raw]:
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed here")
    with servers.start(request.param) as server:
        yield Raw(server.client(), Scripts(switched))


class Twins:
    """Two records that are charged alike: one the quick way if there is one, one the long way."""

    def __init__(self, raw: Raw, held: Policy, number: int, now: int) -> None:
        self.raw, self.policy, self.number, self.now = raw, held, number, now
        self.seen: Counter[str] = Counter()
        context = struct.pack("<I", 0) + held.name
        self.context = struct.pack("<I", 0) + ABSENT
        for way in (0, 1):
            for name in NAMES:
                brings = extra({held.name: held.blob}, shared=True)
                arguments = [b"%d" % now, context, name.encode(), amounts(1), b"", brings]
                reply = raw.call("report", [self.record(way), *SHARED], arguments)
                assert reply[0] == wire.DECIDED, reply

    def record(self, way: int) -> bytes:
        return b"meterd:{x}:s:%d/%d" % (self.number, way)

    def pair(self, way: int) -> list[bytes]:
        return [b"meterd:{x}:%b:%d/%d" % (kind, self.number, way) for kind in (b"h", b"x")]

    def end(self, way: int, hold: bytes) -> bytes:
        return b"meterd:{x}:e:%d/%d/%b" % (self.number, way, hold)

    def stored(self, way: int, hold: bytes) -> Any:
        """Everything there is; entries unpacked, as a number has more than one spelling."""
        client = self.raw.client
        holds, order = self.pair(way)
        entries = {key: msgpack.unpackb(raw) for key, raw in client.hgetall(holds).items()}
        return (
            client.get(self.record(way)),
            entries,
            client.zrange(order, 0, -1, withscores=True),
            client.get(self.end(way, hold)),
            client.pttl(self.end(way, hold)) > 0,
        )

    def ask(self, way: int, entry: str, hold: bytes, names: bytes, values: bytes, ttl: int) -> Any:
        op = wire.op_argument(bytes(16), DAY)
        keys = {
            "reserve": [self.record(way), *self.pair(way)],
            "consume": [self.record(way)],
        }.get(entry, [self.record(way), self.end(way, hold), *self.pair(way)])
        now = b"%d" % self.now
        charge = [now, self.context, names, values]
        arguments = {
            "reserve": [*charge, b"", HELD, hold, b"%d" % ttl],
            "consume": [*charge, b"", b""],
            "commit": [*charge, op, HELD, hold],
            "release": [now, self.context, op, HELD, hold],
        }[entry]
        reply = self.raw.call(entry, keys, arguments)
        if isinstance(reply, bytes) and reply[:1] == bytes([wire.HOLDS]):
            if entry == "consume":
                keys += self.pair(way)
            at = -1 if entry == "consume" else arguments.index(HELD)
            arguments[at] = extra({}, held=[1], shared=True)
            reply = self.raw.call(entry, [*keys, *SHARED], arguments)
        return str(reply).partition(" script:")[0]

    def both(
        self, entry: str, hold: bytes, names: bytes = b"", values: bytes = b"", ttl: int = 60_000
    ) -> str:
        """Asks both, and compares. Returns the reply."""
        asked = (entry, hold, names, values, ttl)
        client = self.raw.client
        client.set(NO_LONG_WAY, b"1")
        quick = self.ask(0, *asked)
        client.delete(NO_LONG_WAY)
        if "LONG WAY" in quick:
            quick = self.ask(0, *asked)
        else:
            self.seen[entry] += 1
        client.set(NO_QUICK_WAY, b"1")
        long = self.ask(1, *asked)
        client.delete(NO_QUICK_WAY)
        assert quick == long, (self.number, self.now, asked, self.policy.blob)
        found, wanted = self.stored(0, hold), self.stored(1, hold)
        assert found == wanted, (self.number, self.now, asked, self.policy.blob)
        return quick


CREDITS = policy(Pool("a", 100), Bucket("b", 50, "1m"), Bucket("c", 90, "1m", algorithm="token"))


@pytest.mark.parametrize("names", [b"a", b"b", b"a,b", b"c,a,b"])
def test_what_comes_again_is_held_and_ended_the_quick_way(raw: Raw, names: bytes) -> None:
    twins = Twins(raw, CREDITS, 10**6 + len(names) + names[0], NOW)
    values = amounts(*[2] * len(names.split(b",")))
    less = amounts(*[1] * len(names.split(b",")))
    twins.both("reserve", b"0", names, values)
    twins.both("commit", b"0")
    for turn in (b"1", b"2"):  # with another one open, and without
        for hold in (turn, turn + b"+"):
            twins.both("reserve", hold, names, values, ttl=70_000)
        twins.both("commit", turn, names, less)
        twins.both("commit", turn + b"+")
    for hold in (b"3", b"4"):
        twins.both("reserve", hold, names, values)
        twins.both("release", hold)
    assert twins.seen == {"reserve": 6, "commit": 4, "release": 2}
    assert twins.stored(0, b"4")[1:3] == ({}, [])


@pytest.mark.parametrize(
    "limits",
    [
        [Pool("a", 100, bill="use")],
        [Slots("a", 5)],
        [Pool("a", 100), Slots("jobs", 5, rates={"a": 1})],
    ],
    ids=["billed", "slots", "slots beside"],
)
def test_what_takes_the_long_way(raw: Raw, limits: list[Limit]) -> None:
    client = raw.client
    held = policy(*limits)
    twins = Twins.__new__(Twins)
    twins.raw, twins.policy, twins.number, twins.now = raw, held, 2 * 10**6, NOW
    twins.seen, twins.context = Counter(), struct.pack("<I", 0) + held.name
    brings = extra({held.name: held.blob}, held=[1], shared=True)
    for way in (0, 1):
        client.delete(twins.record(way), *twins.pair(way))
        keys = [twins.record(way), *twins.pair(way), *SHARED]
        arguments = [b"%d" % NOW, twins.context, b"a", amounts(1), b"", brings, b"0", b"60000"]
        reply = raw.call("reserve", keys, arguments)
        assert reply[0] == wire.DECIDED, reply
    for hold in (b"1", b"2", b"3"):
        for entry, *asked in (("reserve", b"a", amounts(1)), ("commit", b"", b"")):
            client.set(NO_LONG_WAY, b"1")
            reply = twins.ask(0, entry, hold, *asked, 60_000)
            client.delete(NO_LONG_WAY)
            assert "LONG WAY" in reply
            twins.ask(0, entry, hold, *asked, 60_000)


@pytest.mark.parametrize(
    "limit",
    [
        Pool("a", 100, "hour"),
        Bucket("a", 100, "1h", algorithm="fixed"),
        Bucket("a", 100, "1h"),
        Bucket("a", 100, "1h", algorithm="token"),
    ],
    ids=["pool", "fixed", "sliding", "token"],
)
@pytest.mark.parametrize("minutes", [30, 60, 61, 90, 121, 600])
def test_what_comes_back_in_another_window(raw: Raw, limit: Limit, minutes: int) -> None:
    """Others have charged it meanwhile, and not all of that is the hold's to give back."""
    number = 5 * 10**6 + 1000 * minutes + len(str(limit))
    raw.client.flushall()
    twins = Twins(raw, policy(limit, Bucket("b", 9, "1m", rates={"b": 1, "c": 1})), number, NOW)
    for hold in (b"1", b"2", b"3"):  # the first the long way
        twins.both("reserve", hold, b"a", amounts(9), ttl=DAY)
    assert twins.seen["reserve"] >= 2
    twins.now += minutes * 60_000
    for _ in range(3):
        twins.both("consume", b"", b"a", amounts(10))
    twins.both("commit", b"2", b"a", amounts(1))
    twins.now += 1000
    twins.both("release", b"3")
    twins.both("consume", b"", b"a", amounts(1))


def test_no_more_functions_are_made_than_are_kept(switched: Path) -> None:
    """Else every call would make some, where customers have plans of their own."""
    root = switched.with_name("few")
    shutil.copytree(switched, root)
    bound(root, 2, 20)
    with servers.start() as server:
        raw = Raw(server.client(), Scripts(root))
        other = Bucket("b", 9, "1m", rates={"b": 1, "c": 1})
        many = [Twins(raw, policy(Pool("a", 1000 + n), other), n, NOW) for n in range(3)]
        for turn in range(8):
            for twins in many:
                twins.both("reserve", b"%d" % turn, b"a", amounts(1))
        assert [twins.seen["reserve"] for twins in many] == [7, 7, 0]
        for turn in range(8, 24):  # the third comes too late often enough
            many[2].both("reserve", b"%d" % turn, b"a", amounts(1))
        assert 0 < many[2].seen["reserve"] < 16


def play(raw: Raw, number: int, steps: int) -> Counter[str]:
    rng = random.Random(f"quick {number}")
    twins = Twins(raw, policy(*some_limits(rng)), number, NOW + rng.randint(0, 10**9))
    open_holds: list[tuple[bytes, int]] = []
    asked = rng.sample((b"a", b"b", b"c", b"a,b", b"c,a,b"), 2)
    for step in range(steps):
        twins.now = max(NOW, twins.now + rng.choice(STEPS) - rng.choice((0, 0, 0, 2)))
        entry = rng.choice(("reserve", "reserve", "commit", "commit", "release", "consume"))
        names = rng.choice(asked)
        count = names.count(b",") + 1
        values = amounts(*(rng.choice(AMOUNTS) for _ in range(count)))
        if entry in ("reserve", "consume"):
            hold = b"%d" % step
            if entry == "reserve" and open_holds and rng.random() < 0.05:
                hold = rng.choice(open_holds)[0]  # which may be open still
            ttl = rng.choice((1, 500, 60_000, 60_000, 3_600_000, 50 * DAY))
            twins.both(entry, hold, names, values, ttl)
            if entry == "reserve":
                open_holds.append((hold, count))
        elif open_holds:
            hold, count = open_holds[at := rng.randrange(len(open_holds))]
            if rng.random() < 0.8:
                del open_holds[at]
            if entry == "release":
                twins.both("release", hold)
            elif rng.random() < 0.4:
                twins.both("commit", hold)
            else:
                twins.both("commit", hold, names, values)
        else:
            continue
    return twins.seen


def test_both_ways_say_and_store_the_same(raw: Raw) -> None:
    raw.client.flushall()
    seen: Counter[str] = Counter()
    for number in range(60):
        seen += play(raw, number, 80)
    assert min(seen[entry] for entry in ("reserve", "commit", "release", "consume")) > 50, seen


def test_errors_are_those_of_the_long_way(raw: Raw) -> None:
    twins = Twins(raw, CREDITS, 3 * 10**6, NOW)
    for hold in (b"1", b"2"):
        twins.both("reserve", hold, b"a", amounts(2))
        twins.both("commit", hold)
    for hold in (b"", b"x" * 129):
        assert "hold: an id" in twins.both("reserve", hold, b"a", amounts(2))
        assert "hold: an id" in twins.both("commit", hold)
    for ttl in (0, 367 * DAY):
        assert "ttl:" in twins.both("reserve", b"3", b"a", amounts(2), ttl=ttl)
    twins.both("reserve", b"4", b"a", amounts(2))
    conflict = str(bytes([wire.CONFLICT]))
    assert twins.both("reserve", b"4", b"a", amounts(2)) == conflict
    for values in (b"", b"x" * 8, amounts(-1), amounts(0.5), amounts(float("nan")), amounts(1, 1)):
        twins.both("reserve", b"5", b"a", values)
        twins.both("commit", b"4", b"a", values)
    keys = [twins.record(0), *twins.pair(1)]  # those of another record
    arguments = [b"%d" % NOW, twins.context, b"a", amounts(1), b"", HELD, b"6", b"1000"]
    assert isinstance(raw.call("reserve", keys, arguments), ResponseError)


def test_a_charge_with_an_open_hold_is_what_it_was(raw: Raw) -> None:
    """Whatever the hold becomes, its record is charged beside it."""
    twins = Twins(raw, CREDITS, 4 * 10**6, NOW)
    for step in range(40):
        twins.both("reserve", b"%d" % step, b"a", amounts(1), ttl=1000 + step)
        twins.both("consume", b"", b"a", amounts(1))
        twins.now += 40
        if step % 3 == 0:
            twins.both("commit", b"%d" % (step // 2))
    assert twins.seen["consume"] > 10
