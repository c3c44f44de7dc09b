"""The contract that opens every entry says what the client sends and what the script does."""

from __future__ import annotations

import re

import msgpack
import pytest

from meterd import Meter, wire
from meterd.scripts import ENTRIES, LIBRARIES, READ_ONLY, Scripts, lua_root
from meterd.testing import ManualClock
from tests.engine import workload
from tests.engine.headers import SHARED, Header, header
from tests.engine.raw import is_valid, pairs
from tests.support import servers

MARKS = {
    "record": rb"\}:[sl]:",
    "operation id": rb"\}:o:",
    "hold": rb"\}:[hx]:",
    "end of the hold": rb"\}:e:",
    "meta": rb"\}:m:",
    "catalog": rb"\}:catalog",
    "API key": rb"\}:k:",
    "top-ups": rb"\}:t:",
    "events": rb"\}:events$",
    "outbox": rb"\}:outbox$",
    "index": rb"\}:due$",
}
STATUS = {
    wire.DECIDED: "decided",
    wire.REPLAYED: "replayed",
    wire.NEED: "need",
    wire.STALE: "stale",
    wire.CONFLICT: "conflict",
    wire.DONE: "done",
    wire.UNKNOWN: "unknown",
    wire.HOLDS: "holds",
    wire.DUE: "due",
}
HOLDERS = {
    "reserve",
    "commit",
    "release",
    "renew",
    "tally",
}  # these name all holds of a path at once
OF_IDS = {"refund_of", "operation"}  # these name an operation of earlier


@pytest.fixture(scope="module", params=["functions", "scripts"])
def sent(request: pytest.FixtureRequest) -> workload.Recorder:
    """What a client sends in the course of everything."""
    recorder, clock = workload.Recorder(), ManualClock()
    with (
        servers.start() as server,
        Meter(
            server.url,
            plans=workload.plans(),
            clock=clock,
            functions=request.param == "functions",
            timeout=10,
        ) as meter,
    ):
        workload.everything(recorder.watch(meter), clock)
    return recorder


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_client_sends_what_the_header_says(sent: workload.Recorder, entry: str) -> None:
    said = header(entry)
    calls = sent.of(entry)
    assert calls, f"nothing called {entry}"
    for call in calls:
        assert said.least_keys <= len(call.keys) <= said.most_keys
        if said.repeated:
            assert 0 < len(call.args) <= said.most_arguments
            assert len(call.args) % len(said.arguments) == 0
        else:
            assert len(call.args) == said.most_arguments == len(said.arguments)
        for name, argument in zip(pairs(said.arguments, len(call.args)), call.args, strict=True):
            assert is_valid(entry, name, argument), f"{entry}: {name}={argument!r}"


def levels_held(said: Header, call: workload.Call) -> list[int]:
    """What `extra` lists under h."""
    packed = call.args[said.held - 1] if said.held else b""
    return (
        list(msgpack.unpackb(packed, raw=True, strict_map_key=False).get(b"h", ()))
        if packed
        else []
    )


@pytest.mark.parametrize("entry", ENTRIES)
def test_keys_are_of_the_kinds_and_in_the_order_that_the_header_says(
    sent: workload.Recorder, entry: str
) -> None:
    said = header(entry)
    seen = set()
    for call in sent.of(entry):
        kinds = [kind for key in call.keys for kind, mark in MARKS.items() if re.search(mark, key)]
        assert len(kinds) == len(call.keys)
        seen |= set(kinds)
        if entry == "forget":
            continue
        if SHARED[0] in kinds:
            assert tuple(kinds[-3:]) == SHARED
            kinds = kinds[:-3]
        if entry == "harvest":
            continue
        listed = levels_held(said, call)
        front = kinds[: len(kinds) - 2 * len(listed)]
        assert not {"hold", *SHARED} & set(front)
        assert call.keys[len(front) : len(kinds)] == tuple(
            call.keys[level - 1].replace(b"}:s:", mark)
            for level in listed
            for mark in (b"}:h:", b"}:x:")
        )
        with_id = "op" in said.arguments and call.args[said.arguments.index("op")] != b""
        if entry in OF_IDS:
            assert front[-2:] == ["operation id", "end of the hold"]
            front = front[:-2]
        id_kind = "end of the hold" if entry in ("commit", "release") else "operation id"
        assert front.count(id_kind) == with_id
        if entry == "keys_verify":
            assert front.pop() == "API key"
        if entry in ("subscribe", "grant"):
            assert front[:2] == ["record", "operation id"] or not with_id
        elif with_id:
            assert front[-1] == id_kind
        if entry in HOLDERS:
            assert listed == list(range(1, front.count("record") + 1))
        if kinds[0] == "record":
            lengths = [
                len(k) for k, kind in zip(call.keys, kinds, strict=False) if kind == "record"
            ]
            if said.one:
                assert lengths[0] == max(lengths)  # the one that is meant, whatever stands behind
            else:
                assert lengths == sorted(lengths)
    assert seen == set(said.kinds)


@pytest.mark.parametrize("entry", ENTRIES)
def test_answers_are_of_the_statuses_that_the_header_says(
    sent: workload.Recorder, entry: str
) -> None:
    said = header(entry)
    replies = [call.reply for call in sent.of(entry) if call.reply is not None]
    if not said.statuses:
        assert all(isinstance(reply, int) for reply in replies)
        return
    assert {reply[0] for reply in replies} <= said.statuses
    if entry in (
        *("consume", "report", "refund", "refund_of", "reserve", "commit", "keys_verify"),
    ):
        assert {wire.DECIDED, wire.REPLAYED} <= {reply[0] for reply in replies}


def test_every_status_is_seen(sent: workload.Recorder) -> None:
    """Else the test above looks at too little."""
    seen = {call.reply[0] for call in sent.calls if isinstance(call.reply, bytes)}
    assert seen == set(STATUS)


def test_whoever_opens_a_record_asks_for_holds_that_have_expired(sent: workload.Recorder) -> None:
    asked = {
        call.entry
        for call in sent.calls
        if isinstance(call.reply, bytes)
        and call.reply[0] == wire.HOLDS
        and call.reply.strip(b"\0") != bytes([wire.HOLDS])  # not only for the partition's keys
        and call.entry != "harvest"
    }
    assert asked == {entry for entry in ENTRIES if header(entry).held} - HOLDERS


@pytest.mark.parametrize("entry", ENTRIES)
def test_statuses_have_the_words_that_go_with_them(entry: str) -> None:
    for number, word in re.findall(
        r"(?:^|[ ,])([0-8]) ([a-z]+)", header(entry).returns.split("(")[0]
    ):
        if entry not in ("apply",) and word not in ("and",):
            assert word == STATUS[int(number)] or (int(number), word) in (
                (6, "the"),
                (6, "there"),
                (4, "conflict"),
            )


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_only_reads_is_marked_in_all_places(entry: str) -> None:
    said = header(entry)
    reads = entry in READ_ONLY
    assert ("no-writes" in said.flags) == reads
    assert (said.writes == "nothing") == reads
    assert set(said.flags) <= {"no-writes", "allow-oom"}


def test_only_what_gives_room_or_takes_a_secret_away_may_run_on_a_full_server() -> None:
    assert {e for e in ENTRIES if "allow-oom" in header(e).flags} == {
        "refund",
        "refund_of",
        "commit",
        "release",
        "void",
        "forget",
        "keys_update",
        "keys_rotate",
        "keys_point",
    }


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_code_asks_for_as_many_arguments_as_the_header_says(entry: str) -> None:
    text = (lua_root() / f"{entry}.lua").read_text(encoding="utf-8")
    said = header(entry)
    code = text[text.index("local function") :]
    count = re.search(r"#args ~= (\d+)", code)
    if said.repeated:
        assert f"#args > {said.most_arguments}" in code
        assert f"#args % {len(said.arguments)}" in code
    else:
        assert count
        assert int(count[1]) == said.most_arguments
    # Every argument is looked at: by number, or by handing all of them on.
    if not re.search(r"(read|spend)\(keys, args", code) and not said.repeated:
        for position in range(1, said.most_arguments + 1):
            assert f"args[{position}]" in code, f"{entry}: nobody reads argument {position}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_needs_are_libraries_in_the_order_in_which_they_are_put_together(entry: str) -> None:
    """That none is missing, luacheck sees: a script would use a name that is nowhere defined."""
    needs = header(entry).needs
    assert list(needs) == [name for name in LIBRARIES if name in needs]
    assert needs[0] == "base"


def test_no_library_is_idle() -> None:
    assert {name for entry in ENTRIES for name in header(entry).needs} == set(LIBRARIES)


def test_every_file_is_an_entry_or_a_library_and_every_one_of_these_is_a_file() -> None:
    root = lua_root()
    assert {path.stem for path in root.glob("*.lua")} == set(ENTRIES)
    assert {path.stem for path in (root / "lib").glob("*.lua")} == set(LIBRARIES)
    for library in LIBRARIES:
        text = (root / "lib" / f"{library}.lua").read_text(encoding="utf-8")
        assert re.match(r"-- [A-Z].*[.,:;]?", text), f"{library}: opens without saying what it is"


def test_functions_are_registered_with_the_flags_of_the_header() -> None:
    text = Scripts().library.text
    for entry in ENTRIES:
        found = re.search(rf"function_name = 'meterd_\w+_{entry}', flags = \{{(.*?)\}}", text)
        assert found
        assert tuple(re.findall(r"'([a-z-]+)'", found[1])) == header(entry).flags


REST = "-- RETURNS x\n-- WRITES x\n-- @needs base\n"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("--- consume: charge.\n-- KEYS  1 record\n", "missing"),
        ("--- other: charge.\n", "first line"),
        ("--- consume: no full stop\n", "first line"),
        ("--- consume: x.\n-- ARGV  none\n-- KEYS  1 record\n", "order"),
        ("--- consume: x.\n-- KEYS  1 thing\n-- ARGV  none\n" + REST, "unreadable"),
        ("--- consume: x.\n-- KEYS  1 record\n-- ARGV  2 now  x\n" + REST, "arguments"),
    ],
)  # fmt: skip
def test_the_reader_of_headers_is_strict(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, broken: str, why: str
) -> None:
    folder = tmp_path_factory.mktemp("lua")
    (folder / "consume.lua").write_text(broken)
    monkeypatch.setattr("tests.engine.headers.lua_root", lambda: folder)
    header.cache_clear()
    try:
        with pytest.raises(AssertionError, match=why):
            header("consume")
    finally:
        header.cache_clear()
