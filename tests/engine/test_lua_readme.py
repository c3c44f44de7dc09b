"""`lua/README.md` is a map of what is there: every file, key, status, and the sizes as they are."""

from __future__ import annotations

import re
import struct

import msgpack
import pytest
import redis

from meterd import Bucket, Code, Flag, KeyCode, Plan, Pool, Slots, wire
from meterd.keys import Keyspace
from meterd.scripts import ENTRIES, LIBRARIES, lua_root
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.headers import SHARED, header

TEXT = (lua_root() / "README.md").read_text(encoding="utf-8")


def table(first: str) -> list[list[str]]:
    """The rows of the table whose head begins with that cell."""
    lines = TEXT.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_file_stands_in_it() -> None:
    assert [row[0] for row in table("entry")] == [f"`{entry}.lua`" for entry in ENTRIES]
    assert [row[0] for row in table("library")] == [f"`lib/{name}.lua`" for name in LIBRARIES]


def test_what_entries_write() -> None:
    kinds = ("record", "operation id", "meta", "catalog", "hold", "end of the hold")
    kinds += ("API key", *SHARED)
    for name, _, writes in table("entry"):
        said = header(name.strip("`").removesuffix(".lua"))
        for kind in kinds:
            if said.entry != "forget":
                assert (kind in writes) == (kind in said.writes), (name, kind)
        assert (writes == "nothing") == (said.writes == "nothing")


def test_every_kind_of_key() -> None:
    keys = Keyspace()
    path = keys.path("acme/team")
    shapes = [re.sub(r"<\w+>", "", row[0].strip("`")) for row in table("key")]
    for key in (
        path.keys[1],
        keys.limiter("login", ("::1",)).keys[0],
        keys.op(path, "id"),
        keys.meta(path),
        *keys.holds(path, 2),
        keys.hold_end(path, "id"),
        keys.api_key(0, "id"),
        *keys.shared(path),
        keys.catalog,
        keys.policies,
        keys.clock,
        keys.private,
    ):
        shape = re.sub(r"\{...\}", "{tag}", key.decode())
        kept = re.sub(r"(?<=:[slomhxek]:).*", "", shape)
        found = [re.sub(r"(?<=:[slomhxek]:).*", "", s) for s in shapes]
        assert found.count(kept) == (3 if kept.endswith(":k:") else 1), shape
    assert len(shapes) == 17


def test_every_status_and_code() -> None:
    words = {
        "decided": wire.DECIDED,
        "replayed": wire.REPLAYED,
        "need": wire.NEED,
        "stale": wire.STALE,
        "conflict": wire.CONFLICT,
        "done": wire.DONE,
        "unknown": wire.UNKNOWN,
        "holds": wire.HOLDS,
        "due": wire.DUE,
    }
    assert {row[1]: int(row[0]) for row in table("status")} == words
    of_keys = {"DISABLED": wire.KEY_DISABLED, "EXPIRED": wire.KEY_EXPIRED}
    assert {row[1]: int(row[0]) for row in table("code")} == {
        str(code): i for i, code in enumerate(wire.CODES)
    } | of_keys
    assert {row[1] for row in table("code")} == {*Code, *of_keys}
    assert set(KeyCode) == {*Code, *of_keys, "VALID", "NOT_FOUND"} - {"OK"}


def test_every_marker() -> None:
    used: set[str] = set()
    for file in lua_root().rglob("*.lua"):
        used |= set(re.findall(r"\"(METERD-[A-Z]+) ", file.read_text(encoding="utf-8")))
    assert {row[0] for row in table("marker")} == used


def test_every_argument_of_several_entries() -> None:
    named = [name for entry in ENTRIES for name in header(entry).arguments]
    shared = {name for name in named if named.count(name) > 2}
    told = {name for row in table("argument") for name in row[0].split(", ")}
    assert told == shared


def test_the_sizes_of_states_add_up_and_are_those_of_the_records(
    make: Make, client: redis.Redis
) -> None:
    sizes = {}
    for name, kind, size, state in table("limit"):
        assert sum(int(n) for n in re.findall(r"\b(\d+)\b", state)) == int(size)
        sizes[name] = int(size)
        assert int(kind) == len(sizes) % 6
    limits = {
        "pool": Pool("x", 5, "day"),
        "fixed": Bucket("x", 5, "1m", algorithm="fixed"),
        "sliding": Bucket("x", 5, "1m"),
        "token": Bucket("x", 5, "1m", algorithm="token"),
        "flag": Flag("x"),
        "slots": Slots("x", 5),
    }
    assert set(sizes) == set(limits)
    meter = make(
        [Plan(name, includes=[limit]) for name, limit in limits.items()], clock=ManualClock()
    )
    for name in limits:
        meter.subscribe(name, name)
        record = client.get(meter._keys.path(name).keys[0])
        assert len(record) == 20 + sizes[name]


def test_a_record_reads_as_the_map_says(make: Make, client: redis.Redis) -> None:
    clock = ManualClock()
    plan = Plan("p", includes=[Pool("c", 100, "1h"), Bucket("b", 9, "1m", algorithm="fixed")])
    meter = make([plan], clock=clock)
    meter.subscribe("a", "p")
    clock.advance(seconds=7)
    meter.report("a", {"c": 103, "b": 2})
    meter.override("a", "b", limit=20, expires="1h")
    rec = client.get(meter._keys.path("a").keys[0])
    (bytes_of,) = ([row[0] for row in table("bytes")],)
    assert bytes_of == [
        "1", "2", "3-10", "11-14", "15-20", "21-", "+ 1, 48 each", "+ 6", "+ 6 more",
        "+ 1, 22 each", "+ rest",
    ]  # fmt: skip
    version, flags, policy, revision = struct.unpack_from("<BB8sI", rec)
    assert (version, flags, revision) == (2, 2 + 64, 1)
    assert client.hexists(meter._keys.policies, policy)
    numbers = [
        int.from_bytes(rec[at : at + size], "little")
        for at, size in (
            (14, 6),
            (20, 6),
            (26, 6),
            (32, 6),
            (38, 7),
            (45, 7),
            (52, 7),
            (59, 7),
            (66, 2),
            (68, 6),
            (74, 5),
        )
    ]
    start = clock.now_ms - 7000
    assert numbers == [
        clock.now_ms, start, start + 3_600_000, start, 100, 0, 3, 0, 7, clock.now_ms, 2,
    ]  # fmt: skip
    assert msgpack.unpackb(rec[79:]) == {"o": {"b": {"l": 20, "e": clock.now_ms + 3_600_000}}}


def test_a_hold_reads_as_the_map_says(make: Make, client: redis.Redis) -> None:
    clock = ManualClock()
    limits = [Pool("c", 100, "1h", overage=5, rates={"c": 3, "d": 1}), Slots("jobs", 9)]
    meter = make([Plan("p", includes=limits, default=True)], clock=clock)
    meter.override("a", "jobs", limit=7)
    clock.advance(seconds=7)
    hold = meter.reserve("a", {"c": 30, "d": 14, "jobs": 2}, ttl=60)
    meter.reserve("a", "jobs", ttl=90)
    path = meter._keys.path("a")
    rec, (held, order) = client.get(path.keys[0]), meter._keys.holds(path, 1)
    tail = 20 + 48 + 7
    assert rec[1] == 2 + 8 + 64
    assert int.from_bytes(rec[68:75], "little") == 3
    assert int.from_bytes(rec[tail : tail + 6], "little") == clock.now_ms + 60_000
    assert msgpack.unpackb(rec[tail + 6 :]) == {"o": {"jobs": {"l": 7}}}
    start = clock.now_ms - 7000
    assert msgpack.unpackb(client.hget(held, hold.id)) == [
        clock.now_ms + 60_000, ["c", "d", "jobs"], [30, 14, 2], [0, 0, 0],
        [["c", 1, 0, start, 4, [3, 1, 0]], ["jobs", 0, 0, 0, 0, [0, 0, 1]]],
    ]  # fmt: skip
    assert client.zscore(order, hold.id) == clock.now_ms + 60_000


def test_grants_read_as_the_map_says(make: Make, client: redis.Redis) -> None:
    clock = ManualClock()
    limits = [Pool("c", 100), Slots("jobs", 9)]
    meter = make([Plan("p", includes=limits, default=True)], clock=clock)
    start = clock.now_ms
    meter.grant("a", "c", 40, priority=10, expires="1h", op="early")
    meter.grant("a", "c", 7, starts="1m", op="later", source="order 1")
    meter.grant("a", "d", 5, op="beside")
    clock.advance(seconds=7)
    meter.consume("a", {"c": 10, "d": 2})
    hold = meter.reserve("a", {"jobs": 1, "c": 33}, ttl=60)
    path = meter._keys.path("a")
    rec, (held, _) = client.get(path.keys[0]), meter._keys.holds(path, 1)
    assert rec[1] == 8 + 16 + 32 + 64 + 128
    at = 20 + 48 + 7

    def pool(at: int) -> list[int]:
        return [
            int.from_bytes(rec[i : i + size], "little")
            for i, size in zip(range(at + 18, at + 46, 7), [7] * 4, strict=True)
        ]

    assert pool(20) == [3, 40, 0, 0]
    assert rec[at] == 1
    assert pool(at + 1) == [0, 2, 0, 0]
    at += 49
    assert int.from_bytes(rec[at : at + 6], "little") == clock.now_ms + 60_000
    at += 6
    assert rec[at] == 2
    digests = [
        (
            rec[i],
            rec[i + 1],
            *(
                int.from_bytes(rec[i + j : i + j + n], "little")
                for j, n in ((2, 6), (8, 7), (15, 7))
            ),
        )
        for i in (at + 1, at + 23)
    ]
    # The first pool goes on with its allowance until the second grant starts; of the other one
    # place 3 comes next.
    assert digests == [(129, 0, start + 60_000, 0, 0), (131, 3, 2**48 - 1, 3, 0)]
    assert msgpack.unpackb(rec[at + 45 :]) == {
        "k": [
            ["early", "c", 40, 0, 30, 0, start, start + 3_600_000, 10, start, "", 0],
            ["later", "c", 7, 7, 0, 0, start + 60_000, 2**48 - 1, 50, start, "order 1", 0],
            ["beside", "d", 5, 3, 0, 0, start, 2**48 - 1, 50, start, "", 0],
        ],
        "i": ["d"],
    }
    parts = msgpack.unpackb(client.hget(held, hold.id))[4]
    assert parts[0] == ["c", 1, 0, start, 0, [0, 1], [0, 0], ["early", 30, "", 3]]
    assert len(parts[1]) == 6


@pytest.mark.parametrize("number", ["10^15", "9 * 10^15", "10^12", "2^48 - 1", "-2^53"])
def test_the_limits_of_numbers(number: str) -> None:
    assert number in TEXT
    assert number in (lua_root() / "lib" / "base.lua").read_text(encoding="utf-8")


def test_what_is_told_reads_as_the_map_says(make: Make, client: redis.Redis) -> None:
    clock = ManualClock()
    pool = Pool("c", 100, "1h", warn_below=(5,), overage=9, bill="use")
    meter = make([Plan("p", includes=[pool], default=True)], clock=clock)
    meter.consume("a/b", "c", 7)
    meter.harvest()
    path, start = meter._keys.path("a"), clock.now_ms
    clock.advance(minutes=2)
    meter.report("a/b", "c", 90)
    clock.advance(hours=1)
    meter.harvest()
    shared = meter._keys.shared(path)
    events = [msgpack.unpackb(row[b"e"]) for _, row in client.xrange(shared.events)]
    end, late = start + 3_600_000, start + 120_000
    assert events == [
        ["warn", "a", "c", "p", 100, 97, 3, start, end, late, "0.8"],
        ["warn", "a", "c", "p", 100, 97, 3, start, end, late, "5"],
        ["closed", "a", "c", "p", 100, 97, 3, start, end, clock.now_ms],
    ]
    entries = client.xrange(shared.outbox)
    birth = entries[0][0].decode()
    assert [msgpack.unpackb(row[b"o"]) for _, row in entries] == [
        ["a", "c", 7, 1, "", start, end, start, "use"],
        ["a", "c", 90, 2, birth, start, end, clock.now_ms, "use"],
    ]
    rec = client.get(path.keys[0])
    assert rec[1] == 1 + 32
    assert msgpack.unpackb(rec[68:]) == {"b": {"i": birth, "p": {"c": [0, 2, 0]}}}
    assert not client.exists(shared.due)
    meter.consume("a/b", "c", 3)
    assert client.get(path.keys[0])[1] == 1 + 32 + 64
    assert client.zrange(shared.due, 0, -1, withscores=True) == [(b"a", clock.now_ms)]
