"""The plain case takes functions made for it, and they say and store what the long way does.

The library under test is the shipped one, but functions are made at the second use, and there are
two switches, keys that exist or not: one ends every call that takes the long way, the other makes
the long way decide limit by limit.
"""

from __future__ import annotations

import random
import re
import shutil
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from meterd import Bucket, Flag, Plan, Pool, wire
from meterd.compile import ABSENT, Policy, compile_policy
from meterd.keys import Keyspace
from meterd.policy import Limit
from meterd.scripts import Scripts, lua_root
from tests.engine.raw import Raw, amounts, extra
from tests.support import servers

NOW = 1_735_689_600_000
DAY = 86_400_000
NAMES = ("a", "b", "c")
RATE_LIMITED = 4  # the code of an answer, its second byte
SHARED = Keyspace().partition(b"x")
TELLING = msgpack.packb({"e": 1})
NO_LONG_WAY, ONE_BY_ONE = b"no long way", b"one by one"
SWITCHES = (
    (
        "function charge.read(keys, args, values, now, unasked)\n",
        f'  if call("EXISTS", "{NO_LONG_WAY.decode()}") == 1 then error("LONG WAY", 0) end\n',
    ),
    (
        "function charge.plainly(count, names, amount_count, now)\n",
        f'  if call("EXISTS", "{ONE_BY_ONE.decode()}") == 1 then return nil end\n',
    ),
)


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "lua"
    shutil.copytree(lua_root(), root)
    file = root / "lib" / "charge.lua"
    text = file.read_text()
    for line, switch in SWITCHES:
        assert text.count(line) == 1
        text = text.replace(line, line + switch)
    file.write_text(text)
    hurry(root, 512, 2, 10**6)
    return root


def hurry(root: Path, most: int, uses: int, late: int) -> None:
    """Other bounds for how many functions are made, and when."""
    file = root / "lib" / "plain.lua"
    bounds = r"(MOST_FORMS, ENOUGH_USES, ENOUGH_LATE =) \d+, \d+, \d+"
    text, found = re.subn(bounds, rf"\1 {most}, {uses}, {late}", file.read_text())
    assert found == 1
    file.write_text(text)


@pytest.fixture(scope="module", params=["valkey-9.1", "redis-7.0", "redis-8.2"])
def raw(request: pytest.FixtureRequest, switched: Path) -> Iterator[Raw]:
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed here")
    with servers.start(request.param) as server:
        yield Raw(server.client(), Scripts(switched))


def policy(*limits: Limit) -> Policy:
    return compile_policy([Plan("p", includes=limits)])


class Records:
    """A path of records, in four copies: one per way to charge them."""

    def __init__(self, raw: Raw, policies: Sequence[Policy], number: int = 0) -> None:
        self.raw, self.policies = raw, policies
        self.extra = msgpack.packb({"p": {p.name: p.blob for p in policies}}, use_bin_type=False)
        self.telling = extra({p.name: p.blob for p in policies}, shared=True)
        self.ways = [
            [b"meterd:{x}:s:%d/%d/%d" % (number, way, level) for level in range(len(policies))]
            for way in range(4)
        ]
        self.context = struct.pack("<I", 0) + ABSENT

    def make(self, now: int) -> None:
        """Records of first sight, each of its policy."""
        for key, held in zip(self.ways[0], self.policies, strict=True):
            self.raw.client.delete(key)
            context = struct.pack("<I", 0) + held.name
            for name in NAMES:
                arguments = [b"%d" % now, context, name.encode(), amounts(1), b"", self.telling]
                reply = self.raw.call("report", [key, *SHARED], arguments)
                assert reply[0] == wire.DECIDED, reply

    def expiring(self, at: int) -> None:
        """Makes the record one that carries its expiry."""
        (key,) = self.ways[0]
        record = self.raw.client.get(key)
        self.raw.client.set(key, record[:1] + b"\x05" + record[2:] + struct.pack("<Q", at)[:6])

    def held(self, until: int) -> None:
        """Makes the root's record one that has a hold, which ends then."""
        key = self.ways[0][0]
        record = self.raw.client.get(key)
        flags = bytes([record[1] | 8])
        self.raw.client.set(key, record[:1] + flags + record[2:] + struct.pack("<Q", until)[:6])

    def spread(self) -> list[bytes | None]:
        """Copies the first to the others. Returns what they hold."""
        values = self.raw.client.mget(self.ways[0])
        for keys in self.ways[1:]:
            self.raw.client.mset(dict(zip(keys, values, strict=True)))
        return list(values)

    def charge(
        self,
        verb: str,
        way: int,
        now: int,
        names: str,
        values: Sequence[int],
        *,
        op: bytes = b"",
        bring: bool = False,
        how: str = "FCALL",
    ) -> tuple[Any, list[Any]]:
        """The reply, and what is stored behind the call."""
        keys = list(self.ways[way])
        if op:
            keys.append(b"meterd:{x}:o:%d/" % way + op)
        arguments = [
            b"%d" % now,
            self.context,
            names.encode(),
            amounts(*values),
            wire.op_argument(bytes(16), DAY) if op else b"",
            self.extra if bring else b"",
        ]
        reply = self.raw.call(verb, keys, arguments, how=how)
        if reply == bytes([wire.HOLDS, 0]):
            arguments[-1] = self.telling if bring else TELLING
            reply = self.raw.call(verb, [*keys, *SHARED], arguments, how=how)
        return reply, self.raw.client.mget(keys)

    def plainly(self, *call: Any, **named: Any) -> tuple[Any, list[Any]] | None:
        """The same where nothing but the plain case is allowed; None if it is not one."""
        self.raw.client.set(NO_LONG_WAY, b"1")
        try:
            reply, stored = self.charge(*call, **named)
        finally:
            self.raw.client.delete(NO_LONG_WAY)
        if isinstance(reply, ResponseError):
            assert "LONG WAY" in str(reply), reply
            return None
        return reply, stored

    def one_by_one(self, *call: Any, **named: Any) -> tuple[Any, list[Any]]:
        self.raw.client.set(ONE_BY_ONE, b"1")
        try:
            return self.charge(*call, **named)
        finally:
            self.raw.client.delete(ONE_BY_ONE)


# What is plain ------------------------------------------------------------------------------------

FOUR = policy(
    Pool("pool", 10**15, "month", rates={"a": 1, "b": 2}),
    Bucket("sliding", 10**6, "1d", rates={"a": 1, "c": 3}),
    Bucket("fixed", 10**6, "1h", algorithm="fixed", rates={"a": 1, "b": 1, "c": 1}),
    Bucket("token", 10**6, "1s", algorithm="token", rates={"a": 1}),
)
POOLS = policy(
    Pool("endless", None, rates={"a": 1, "b": 1}),
    Pool("soft", 100, "month", rollover=50, overage=None, rates={"b": 1, "c": 2}),
)
BUCKETS = policy(Bucket("ip", 10**6, "1m", rates={"a": 1, "b": 1, "c": 1}))


@pytest.mark.parametrize("verb", ["consume", "report", "check"])
@pytest.mark.parametrize(
    "policies", [[FOUR], [POOLS], [BUCKETS], [FOUR, BUCKETS], [POOLS, FOUR, BUCKETS, FOUR]]
)
@pytest.mark.parametrize("names", ["a", "b", "c", "b,c", "a,b,c"])
def test_what_comes_again_is_charged_plainly(
    raw: Raw, verb: str, policies: list[Policy], names: str
) -> None:
    records = Records(raw, policies)
    records.make(NOW)
    call = (verb, 0, NOW + 5, names, [1] * len(names.split(",")))
    for _ in range(2):
        records.charge(*call)
    assert records.plainly(*call), "the long way"
    if verb != "check":
        for op in (b"1", b"2"):
            raw.client.delete(b"meterd:{x}:o:0/" + op)
            records.charge(*call, op=op)
        raw.client.delete(b"meterd:{x}:o:0/3")
        first = records.plainly(*call, op=b"3")
        assert first, "the long way"
        again = records.plainly(*call, op=b"3")
        assert again == (b"\x01" + first[0], first[1])


@pytest.mark.parametrize("verb", ["consume", "check"])
@pytest.mark.parametrize("names", ["a", "b", "c", "b,c", "a,b,c"])
def test_what_buckets_refuse_again_is_refused_plainly(raw: Raw, verb: str, names: str) -> None:
    records = Records(raw, [FOUR])
    records.make(NOW)
    call = (verb, 0, NOW + 5, names, [10**7] * len(names.split(",")))
    for _ in range(2):
        records.charge(*call)
    refused = records.plainly(*call)
    assert refused, "the long way"
    assert refused[0][1] == RATE_LIMITED


def test_a_record_that_carries_its_expiry_is_charged_plainly_while_that_is_far(raw: Raw) -> None:
    records = Records(raw, [BUCKETS])
    records.make(NOW)
    records.expiring(NOW + 4 * 120_000)
    for _ in range(2):
        records.charge("consume", 0, NOW, "a", [1])
    assert records.plainly("consume", 0, NOW + 120_000, "a", [1])
    assert records.plainly("consume", 0, NOW + 3 * 120_000, "a", [1]) is None


@pytest.mark.parametrize("policies", [[FOUR], [BUCKETS], [POOLS, FOUR]])
def test_a_record_with_holds_is_charged_plainly_until_one_ends(
    raw: Raw, policies: list[Policy]
) -> None:
    records = Records(raw, policies)
    records.make(NOW)
    records.held(NOW + 50)
    for _ in range(2):
        records.charge("consume", 0, NOW, "c", [1])
    before = raw.client.get(records.ways[0][0])
    assert records.plainly("consume", 0, NOW + 49, "c", [1])
    after = raw.client.get(records.ways[0][0])
    assert (len(after), after[-6:]) == (len(before), struct.pack("<Q", NOW + 50)[:6])
    assert records.plainly("consume", 0, NOW + 50, "c", [1]) is None


def test_no_more_functions_are_kept_than_the_collector_should_walk(switched: Path) -> None:
    root = switched.with_name("few")
    shutil.copytree(switched, root)
    hurry(root, 4, 2, 100)
    with servers.start() as server:
        raw = Raw(server.client(), Scripts(root))
        every = [Records(raw, [policy(Pool("a", 10**6 + n))], n) for n in range(6)]
        for records in every:
            records.make(NOW)
            for _ in range(3):
                records.charge("consume", 0, NOW, "a", [1])
        plain = [bool(records.plainly("consume", 0, NOW, "a", [1])) for records in every]
        assert plain == [True] * 4 + [False] * 2
        for _ in range(100):
            every[5].charge("consume", 0, NOW, "a", [1])
        plain = [bool(records.plainly("consume", 0, NOW, "a", [1])) for records in every]
        assert plain == [False] * 5 + [True]


@pytest.mark.parametrize("entry", ["consume", "report", "check"])
def test_a_script_charges_plainly_at_once(raw: Raw, entry: str) -> None:
    records = Records(raw, [FOUR])
    records.make(NOW)
    assert records.plainly(entry, 0, NOW + 5, "a", [7], bring=True, how="EVALSHA")


# It is the same as the long way -------------------------------------------------------------------


def some_limits(rng: random.Random) -> list[Limit]:
    """Limits that much fits into, of every kind and with every oddity that has a plain case."""
    limits: list[Limit] = []
    for number in range(rng.randint(1, 4)):
        name = f"limit{number}"
        rates = {cost: rng.choice((1, 1, 1, 2, 7)) for cost in rng.sample(NAMES, rng.randint(1, 3))}
        kind = rng.choice(("pool", "pool", "sliding", "fixed", "token"))
        if kind == "pool":
            reset = rng.choice((None, "hour", "month", "90s", "week"))
            carries = reset is not None and rng.random() < 0.5
            limits.append(
                Pool(
                    name,
                    rng.choice((None, 30, 10**4, 10**15)),
                    reset,
                    anchor="first_use" if reset and not carries else "subscription",
                    rollover=rng.choice((0, 20, 10**6)) if carries else 0,
                    carry_debt=carries and rng.random() < 0.3,
                    overage=rng.choice((0, 0, 5, None)),
                    rates=rates,
                )
            )
        else:
            limits.append(
                Bucket(
                    name,
                    rng.choice((3, 50, 1000, 10**12)),
                    rng.choice(("1ms", "1s", "7s", "1m", "1h", "366d")),
                    algorithm=kind,
                    burst=rng.choice((None, 40, 10**12)) if kind == "token" else None,
                    rates=rates,
                )
            )
    if rng.random() < 0.2:
        limits.insert(rng.randint(0, len(limits)), Flag("flag"))
    return limits


STEPS = (*(0, 1, 3, 250, 1000, 1001) * 4, 30_000, 60_000, 3_600_000, DAY, 40 * DAY)
AMOUNTS = (*(1, 1, 1, 2, 3) * 4, 0, 5, 40, 1000, 10**9, 10**15)
ASKED = ("a", "b", "c", "a,b", "c,a,b")


def shown(outcome: tuple[Any, list[Any]]) -> tuple[str, list[Any]]:
    """To compare: error replies are equal if their texts are, but for where it happened."""
    return str(outcome[0]).partition(" script:")[0], outcome[1]


def compare(raw: Raw, rng: random.Random, number: int, steps: int, seen: Counter[str]) -> None:
    """Random charges of random records, each by every way; what they say and store is the same."""
    depth = rng.choice((1, 1, 1, 2, 2, 3))
    limits = [some_limits(rng) for _ in range(depth)]
    records = Records(raw, [policy(*level) for level in limits], number)
    now = NOW + rng.randint(0, 10**9)
    records.make(now)
    windows = [limit for limit in limits[0] if isinstance(limit, Bucket) and not limit.burst]
    if depth == 1 and len(windows) == len(limits[0]) and max(w.per_ms for w in windows) > 5000:
        records.expiring(now + 5 * DAY)  # and no TTL runs out under the test
    if rng.random() < 0.3:
        records.held(now + 10_000 * DAY)
        seen["held"] += 1
    asked = rng.sample(ASKED, 2)
    for step in range(steps):
        now = max(NOW, now + rng.choice(STEPS) - rng.choice((0, 0, 0, 2)))
        names = rng.choice(asked)
        values = [rng.choice(AMOUNTS) for _ in names.split(",")]
        verb = rng.choice(("consume", "consume", "report", "check"))
        op = b"%d %d" % (number, step) if verb != "check" and rng.random() < 0.2 else b""
        call = (now, names, values)
        before = records.spread()
        wanted = records.one_by_one(verb, 1, *call, op=op, bring=True)
        interpreted = records.charge(verb, 2, *call, op=op, bring=True)
        script = records.charge(verb, 3, *call, op=op, bring=True, how="EVALSHA")
        plain = records.plainly(verb, 0, *call, op=op)
        kind = f"{verb}{' op' if op else ''}{' path' if depth > 1 else ''}"
        seen[kind] += plain is not None
        seen[f"{verb} refused"] += plain is not None and plain[0][1] == RATE_LIMITED
        made = plain or records.charge(verb, 0, *call, op=op)
        context = (number, step, verb, call, op, before, [p.blob for p in records.policies])
        assert shown(made) == shown(wanted), ("plain" if plain else "long", *context)
        assert shown(interpreted) == shown(wanted), ("interpreted", *context)
        assert shown(script) == shown(wanted), ("script", *context)


def test_every_way_says_and_stores_the_same(raw: Raw) -> None:
    raw.client.flushall()
    seen: Counter[str] = Counter()
    for number in range(40):
        compare(raw, random.Random(f"plain {number}"), number, 50, seen)
    for verb in ("consume", "report", "check"):
        assert seen[verb] > 30, seen
        assert seen[f"{verb} path"] > 5, seen
    for kind in ("consume op", "consume op path", "consume refused", "check refused", "held"):
        assert seen[kind] > 5, seen
