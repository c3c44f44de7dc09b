"""A script touches the keys it was given and no others, and reads before it writes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from meterd import Meter
from meterd.keys import slot_of
from meterd.scripts import ENTRIES, READ_ONLY, Scripts
from meterd.testing import ManualClock
from tests.engine import workload
from tests.engine.headers import header
from tests.engine.monitor import Command, Monitor
from tests.engine.test_headers import HOLDERS, MARKS
from tests.support import servers

FIRST, ALL = slice(1, 2), slice(1, None)
READS = {"GET": FIRST, "MGET": ALL, "HGET": FIRST, "HLEN": FIRST, "ZRANGEBYSCORE": FIRST}
READS["HGETALL"] = FIRST
WRITES = {
    "SET": FIRST,
    "SETRANGE": FIRST,
    "MSET": slice(1, None, 2),
    "HSET": FIRST,
    "ZADD": FIRST,
    "PERSIST": FIRST,
    "HDEL": FIRST,
    "ZREM": FIRST,
    "PEXPIRE": FIRST,
    "DEL": ALL,
    "XADD": FIRST,
}
RECORDS = ("SET", "SETRANGE", "MSET", "DEL")  # one of these carries all that is no hold
MAY_DELETE = {"HDEL", "ZREM", "DEL"}  # a hash or a set that loses its last member is gone
# What a client sends besides scripts. KEYS and FLUSHDB, say, are not among it.
PLAIN = {
    "CLIENT", "CLUSTER", "FUNCTION", "GET", "HELLO", "HGET", "HSET", "INFO", "PING", "SADD", "SCAN",
    "MGET", "SELECT", "SETNX", "SMEMBERS", "SREM", "TIME", "ZRANGEBYSCORE",
}  # fmt: skip


class Run:
    """One script: the entry, its declared keys, and the commands it executed."""

    def __init__(self, entry: str, keys: tuple[bytes, ...]) -> None:
        self.entry = entry
        self.keys = keys
        self.commands: list[Command] = []


def runs_of(commands: list[Command], scripts: Scripts) -> list[Run]:
    by_name = {scripts.function_name(entry).encode(): entry for entry in ENTRIES}
    by_name |= {scripts.script(entry).sha1.encode(): entry for entry in ENTRIES}
    by_name |= {scripts.script(entry).text.encode(): entry for entry in ENTRIES}
    found: list[Run] = []
    for command in commands:
        if command.inside:
            found[-1].commands.append(command)
        elif command.name in ("FCALL", "FCALL_RO", "EVALSHA", "EVAL"):
            count = int(command.words[2])
            found.append(Run(by_name[command.words[1]], command.words[3 : 3 + count]))
            reads = found[-1].entry in READ_ONLY
            assert (command.name == "FCALL_RO") == (reads and command.name.startswith("FCALL"))
        else:
            assert command.name in PLAIN, command
    return found


@pytest.fixture(scope="module", params=["functions", "scripts", "functions, test clock"])
def runs(request: pytest.FixtureRequest) -> Iterator[list[Run]]:
    """Every script that a meter runs in the course of everything."""
    clock = ManualClock() if "clock" in request.param else None
    functions = request.param.startswith("functions")
    with (
        servers.start() as server,
        Meter(
            server.url, plans=workload.plans(), functions=functions, clock=clock, timeout=10
        ) as meter,
        Monitor(server) as monitor,
    ):
        meter.apply(workload.plans(more=2))
        workload.everything(meter, clock)
        yield runs_of(monitor.commands(), Scripts())


def touched(command: Command) -> tuple[bytes, ...]:
    if command.name == "TIME":
        return ()
    return command.words[(READS | WRITES)[command.name]]


def test_every_entry_was_seen(runs: list[Run]) -> None:
    assert {run.entry for run in runs} == set(ENTRIES)
    assert {c.name for run in runs for c in run.commands} >= {
        "GET",
        "MGET",
        "SET",
        "SETRANGE",
        "MSET",
    }


def test_only_declared_keys_are_touched(runs: list[Run]) -> None:
    for run in runs:
        for command in run.commands:
            assert set(touched(command)) <= set(run.keys), (run.entry, command)


def test_all_keys_of_a_script_share_a_slot(runs: list[Run]) -> None:
    for run in runs:
        assert len({slot_of(key) for key in run.keys}) == 1
        assert len(set(run.keys)) == len(run.keys)


def test_a_script_reads_and_then_writes(runs: list[Run]) -> None:
    """One command carries everything that has to happen together.

    Only the index and the outbox are before it; holds, TTLs and events may follow. A harvest does
    this for one record after the other.
    """
    for run in runs:
        if run.entry in ("harvest", "forget"):
            continue
        names = [command.name for command in run.commands if command.name != "TIME"]
        reads = [name for name in names if name in READS]
        writes = [name for name in names if name in WRITES]
        assert names == reads + writes, run.entry
        assert [name for name in reads if name in ("GET", "MGET")] == reads[:1], run.entry
        while writes and writes[0] in ("XADD", "ZADD") and set(RECORDS) & set(writes):
            del writes[0]  # into the outbox, and the index
        assert [name for name in writes[1:] if name in RECORDS] == [], run.entry
        assert [c.name for c in run.commands].count("TIME") <= 1


def test_nothing_is_written_after_it_may_have_been_deleted(runs: list[Run]) -> None:
    """Not even its expiry: it would be set on nothing, or on what another command made anew."""
    for run in runs:
        gone: set[bytes] = set()
        for command in run.commands:
            if command.name in MAY_DELETE:
                gone |= set(touched(command))
            elif command.name in WRITES:
                assert not gone & set(touched(command)), (run.entry, command)


def test_records_hold_what_their_holds_are_about(runs: list[Run]) -> None:
    """A hold is added or changed where the record is at hand, and both its keys together."""
    seen = set()
    for run in runs:
        held = [c for c in run.commands if re.search(MARKS["hold"], (*c.words, b"")[1])]
        added = [c for c in held if c.name in ("HSET", "ZADD")]
        ended = [c for c in held if c.name in ("HDEL", "ZREM")]
        for one, other in (added[i : i + 2] for group in (added,) for i in range(0, len(group), 2)):
            assert (one.name, other.name) == ("HSET", "ZADD")
            assert one.words[1].replace(b"}:h:", b"}:x:") == other.words[1]
            assert one.words[2] == other.words[3]
        names = {name: [c for c in ended if c.name == name] for name in ("HDEL", "ZREM")}
        for one, other in zip(names["HDEL"], names["ZREM"], strict=True):
            assert one.words[1].replace(b"}:h:", b"}:x:") == other.words[1]
            assert one.words[2:] == other.words[2:]
        seen |= {run.entry} if added or ended else set()
        assert not added or run.entry in ("reserve", "renew", "tally")
    assert seen >= {"reserve", "commit", "release", "renew", "tally", "consume", "subscribe"}


def test_only_the_kinds_are_written_that_the_header_names(runs: list[Run]) -> None:
    written: dict[str, set[str]] = {entry: set() for entry in ENTRIES}
    for run in runs:
        for command in run.commands:
            # What has expired goes with whichever call comes next, and is named nowhere.
            passing = command.name in ("HDEL", "ZREM", "PERSIST") and run.entry not in HOLDERS
            if command.name in WRITES and not passing:
                for key in touched(command):
                    kind = next(kind for kind, mark in MARKS.items() if re.search(mark, key))
                    written[run.entry].add(kind)
    for entry, kinds in written.items():
        said = header(entry)
        named = {kind for kind in MARKS if kind in said.writes}
        if "hold" not in said.writes.replace("end of the hold", ""):
            named.discard("hold")
        if entry == "forget":
            named = set(said.kinds) - {"events"}
        # What there is to bill and to look for depends on which millisecond a call came in.
        passing_by = {"outbox", "index"}
        assert kinds <= named <= kinds | passing_by, entry


def test_ids_and_levels_are_read_with_the_record_not_after_it(runs: list[Run]) -> None:
    for run in runs:
        # A script that the server did not know has executed nothing.
        if run.commands and run.entry not in ("set_meta", "forget", "apply"):
            (read,) = (c for c in run.commands if c.name in ("GET", "MGET"))
            behind = ("hold", "events", "outbox", "index")
            held = [k for k in run.keys if any(re.search(MARKS[kind], k) for kind in behind)]
            assert touched(read) == run.keys[: len(run.keys) - len(held)]


# On a cluster -------------------------------------------------------------------------------------


def test_a_cluster_accepts_every_call_and_keeps_every_key_in_its_slot() -> None:
    """A cluster refuses a script that touches a key of another node's slot."""
    with servers.Cluster() as cluster:
        with Meter(cluster.url, plans=workload.plans(), timeout=10) as meter:
            recorder = workload.Recorder()
            workload.everything(recorder.watch(meter))
            assert all(call.reply is not None or call.entry == "adjust" for call in recorder.calls)
            left = sum(1 for _ in meter.subjects())
        owners: dict[bytes, int] = {}
        for index, node in enumerate(cluster.nodes):
            for key in node.client().scan_iter(count=1000):
                owners[key] = index
        assert sum(b"}:s:" in key for key in owners) == left > 0
        for key, index in owners.items():
            assert slot_of(key) * 3 // 16384 == index
        assert {slot_of(call.keys[0]) * 3 // 16384 for call in recorder.calls} == {0, 1, 2}
        # The roots that are left: everything of each lies in one slot.
        for root in workload.ROOTS[1::2]:
            path = meter._keys.path((root,))
            mine = [k for k in owners if k.startswith(b"meterd:{" + path.tag + b"}:")]
            assert {k.partition(b"}:")[2][:1] for k in mine} >= {b"s", b"o", b"m", b"e"}
            assert {slot_of(k) for k in mine} == {slot_of(path.keys[0])}
