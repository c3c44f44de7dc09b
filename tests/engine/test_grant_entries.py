"""The entries of grants called directly: what is unreadable in store, statuses, what is kept."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from meterd import wire
from meterd.scripts import ENTRIES
from tests.engine.fuzz import CLEAR
from tests.engine.headers import header
from tests.engine.raw import NOW, World, snapshot
from tests.engine.test_hold_entries import after_an_hour, call

HOUR = 3_600_000
READERS = [
    e for e in ENTRIES if header(e).held and e != "keys_verify"
]  # that has a leaf of its own
PLAIN = {"consume", "check", "report"}  # these need not read all of a record
HOLDS, VAR, GRANTS, BOOKS, LISTED, IMPLIED = 8, 2, 16, 32, 64, 128


@pytest.fixture(autouse=True)
def whole(w: World) -> Any:
    yield
    w.reset()


# What is in store ---------------------------------------------------------------------------------


def records(w: World) -> dict[str, bytes]:
    """The leaf's record with grants and less and less besides."""
    found = {"all of it": w.client.get(w.leaf)}
    w.meter.override("acme/team/ana", "credits", clear=True)
    found["no override"] = w.client.get(w.leaf)
    w.meter.hold("acme/team/ana", "open").release()
    found["no hold"] = w.client.get(w.leaf)
    w.meter.void("acme/team/ana", "more")
    w.clock.advance(minutes=11)
    w.meter.void("acme/team/ana", "gift")
    found["no pool of its own"] = w.client.get(w.leaf)
    w.clock.now_ms = NOW
    w.reset()
    return found


def test_the_records_below_are_of_all_kinds(w: World) -> None:
    flags = [record[1] for record in records(w).values()]
    assert flags == [
        LISTED + VAR + HOLDS + GRANTS + IMPLIED,
        LISTED + HOLDS + GRANTS + BOOKS + IMPLIED,
        LISTED + GRANTS + BOOKS + IMPLIED,
        LISTED + GRANTS + BOOKS,
    ]


def assert_unreadable(w: World, entry: str, how: str, what: Any) -> None:
    """Now, and after the hold's end."""
    for keys, args in (w.valid(entry), after_an_hour(w, entry)):
        reply = w.raw.call(entry, keys, args, how=how)
        if isinstance(reply, ResponseError):
            assert CLEAR.match(str(reply)), (entry, what, reply)
            # A move is checked against the record's size before anything of the record is read.
            moved = entry in ("subscribe", "unsubscribe")
            assert "METERD-LAYOUT" in str(reply) or moved, (entry, what, reply)
        else:
            assert entry in PLAIN, (entry, what, reply)


@pytest.mark.parametrize("entry", READERS)
def test_a_record_that_is_cut_short(w: World, entry: str, how: str) -> None:
    """Wherever it ends: an error that says so, never one of Lua's own, and nothing is written."""
    for first, (kind, record) in enumerate(records(w).items()):
        for length in (20, 68, 84, 85, 133, 139, 145, *range(first, len(record), 7)):
            w.client.set(w.leaf, record[:length])
            before = w.client.get(w.leaf)
            assert_unreadable(w, entry, how, (kind, length))
            if entry not in PLAIN:
                assert w.client.get(w.leaf) == before


@pytest.mark.parametrize("entry", ["harvest", "forget"])
def test_a_record_that_is_cut_short_is_left_alone(w: World, entry: str, how: str) -> None:
    """Harvest says which one; forget fails, unless it is told to look at nothing."""
    for kind, record in records(w).items():
        for length in (20, 68, 84, 85, 133, 139, 145, *range(0, len(record), 7)):
            w.client.set(w.leaf, record[:length])
            reply = call(w, entry, how)
            if entry == "harvest":
                assert 2 in wire.decode_harvest(reply).left, (kind, length)
                assert w.client.get(w.leaf) == record[:length]
            elif isinstance(reply, ResponseError):
                assert "METERD-LAYOUT" in str(reply), (kind, length, reply)
                assert w.client.get(w.leaf) == record[:length]
                assert call(w, entry, how, blind=b"1")[0] == wire.DONE
            assert w.client.exists(w.leaf) == (entry == "harvest")
            w.reset()


ROW = ["gift", "credits", 20, 19, 1, 0, NOW, 2**48 - 1, 10, 1, "", 0]
GOOD = {"k": [ROW], "i": ["extra"]}


def swapped(row: list[Any], at: int, value: Any) -> list[Any]:
    return [*row[:at], value, *row[at + 1 :]]


UNREADABLE = [
    None, 5, "x", [], {}, {"k": 5}, {"k": []}, {"k": "x", "i": ["extra"]}, {"k": [ROW], "i": 5},
    {"k": [ROW], "i": []}, {"k": [ROW], "i": ["extra", "more"]}, {"k": [ROW], "i": [5]},
    {"k": [ROW], "i": ["a b"]}, {"k": [ROW], "i": ["x" * 65]}, {"k": [ROW], "i": [["extra"]]},
    {"k": [5], "i": ["extra"]}, {"k": [[]], "i": ["extra"]}, {"k": [ROW, "x"], "i": ["extra"]},
    *(
        {"k": [swapped(ROW, at, value)], "i": ["extra"]}
        for at in range(len(ROW))
        for value in (None, {}, [1], True, 5 if at in (0, 1, 10) else "five")
    ),
]  # fmt: skip


@pytest.mark.parametrize("entry", ["consume", "usage", "reserve", "refund", "grant", "void"])
def test_grants_that_cannot_be_read(w: World, entry: str, how: str) -> None:
    record = w.client.get(w.leaf)
    at = record.index(msgpack.packb("k") + b"\x92") - 1
    for value in UNREADABLE:
        w.client.set(w.leaf, record[:at] + msgpack.packb(value))
        assert_unreadable(w, entry, how, value)


@pytest.mark.parametrize("entry", ["consume", "usage", "reserve", "refund", "grant", "void"])
def test_a_digest_that_names_what_is_not_there(w: World, entry: str, how: str) -> None:
    record = w.client.get(w.leaf)
    at = 20 + 48 + 16 + 49 + 6
    assert record[at] == 2
    for changed in (
        {at: 0}, {at: 1}, {at: 3}, {at: 255}, {at + 2: 3}, {at + 2: 255}, {at + 24: 7},
    ):  # fmt: skip
        garbled = bytearray(record)
        for place, value in changed.items():
            garbled[place] = value
        w.client.set(w.leaf, bytes(garbled))
        assert_unreadable(w, entry, how, changed)


# Statuses -----------------------------------------------------------------------------------------


def test_an_id_that_a_grant_has(w: World, how: str) -> None:
    """With an operation id or without, and whatever the rest of it says."""
    for known in (b"gift", b"more"):
        assert call(w, "grant", how, id=known) == bytes([wire.CONFLICT])
        assert call(w, "grant", how, id=known, name=b"extra") == bytes([wire.CONFLICT])
    keys, args = w.valid("grant", op=True)
    args[8] = b"gift"
    assert w.raw.call("grant", keys, args, how=how) == bytes([wire.CONFLICT])
    assert snapshot(w.client) == w.whole


def test_a_grant_is_answered_with_its_row(w: World, how: str) -> None:
    reply = call(w, "grant", how)
    row = ["new", "credits", 7, 7, 0, 0, NOW + 1000, NOW + 9000, 60, NOW + 1000, "order 1", 0]
    assert (reply[0], msgpack.unpackb(reply[1:])) == (wire.DONE, row)
    w.reset()
    keys, args = w.valid("grant", op=True)
    first = w.raw.call("grant", keys, args, how=how)
    assert msgpack.unpackb(first[1:]) == row
    assert w.raw.call("grant", keys, args, how=how) == bytes([wire.REPLAYED]) + first
    args[9] = wire.op_argument(b"another request!", 86_400_000)
    assert w.raw.call("grant", keys, args, how=how) == bytes([wire.CONFLICT])


def test_void_says_how_much_it_took(w: World, how: str) -> None:
    assert call(w, "void", how) == struct.pack("<Bd", wire.DONE, 19)  # one is held
    assert call(w, "void", how) == struct.pack("<Bd", wire.DONE, 0)
    assert call(w, "void", how, id=b"more") == struct.pack("<Bd", wire.DONE, 5)
    w.reset()
    for unknown in (b"other", b"Gift", b"x" * 128):
        assert call(w, "void", how, id=unknown) == bytes([wire.UNKNOWN])
    _, args = w.valid("void")
    args[2] = b"gift"
    assert w.raw.call("void", [w.root], args, how=how) == bytes([wire.UNKNOWN])
    assert w.raw.call("void", [w.fresh], args, how=how) == bytes([wire.UNKNOWN])
    assert snapshot(w.client) == w.whole


def test_only_pools_are_granted_to(w: World, how: str) -> None:
    for name in (b"api", b"sso"):
        _, args = w.valid("grant")
        args[2] = name
        reply = w.raw.call("grant", [w.team, w.root], args, how=how)
        assert str(reply).startswith("METERD-ARGUMENT grant: "), reply
        assert name.decode() in str(reply)
    assert snapshot(w.client) == w.whole


def test_instants_of_a_grant(w: World, how: str) -> None:
    now = NOW + 1000
    for starts, expires in (
        (b"", b"%d" % now), (b"", b"0"), (b"%d" % (now + 5), b"%d" % (now + 5)),
        (b"%d" % (now + 5), b"%d" % (now + 4)), (b"9" * 14, b"%d" % (now + 4)),
    ):  # fmt: skip
        reply = call(w, "grant", how, starts=starts, expires=expires)
        assert str(reply).startswith("METERD-ARGUMENT expires"), reply
    assert snapshot(w.client) == w.whole
    for starts, expires in (
        (b"", b"%d" % (now + 1)), (b"0", b"%d" % (now + 1)), (b"", b"9" * 14), (b"9" * 14, b""),
    ):  # fmt: skip
        reply = call(w, "grant", how, starts=starts, expires=expires)
        assert reply[0] == wire.DONE, reply
        w.reset()


# How much of it -----------------------------------------------------------------------------------


def test_sixty_four_live_ones_and_all_of_them_are_kept(w: World, how: str) -> None:
    for number in range(62):
        assert call(w, "grant", how, id=b"g%02d" % number, amount=b"1")[0] == wire.DONE
    reply = call(w, "grant", how)
    assert str(reply).startswith("METERD-ARGUMENT grant: at most 64"), reply
    assert call(w, "void", how, id=b"g07")[0] == wire.DONE
    assert call(w, "grant", how)[0] == wire.DONE
    reply = call(w, "usage", how)
    answer = wire.decode_answer(reply, w.path)
    *_, leaf = wire.decode_levels(reply, answer.end())
    assert [g.id for g in leaf.grants if g.remaining] == [
        "gift", *(f"g{n:02}" for n in range(62) if n != 7), "new", "more",
    ]  # fmt: skip


def test_ids_and_sources_of_any_bytes_up_to_128(w: World, how: str) -> None:
    """The longest record there can be: its list is not cut."""
    longest = "é" * 64
    assert call(w, "grant", how, source=longest.encode(), id=longest.encode())[0] == wire.DONE
    for number in range(61):
        name = f"{number:02}".encode() + b"x" * 126
        assert call(w, "grant", how, source=longest.encode(), id=name)[0] == wire.DONE
    reply = call(w, "usage", how)
    *_, leaf = wire.decode_levels(reply, wire.decode_answer(reply, w.path).end())
    assert len(leaf.grants) == 64
    assert [g.source for g in leaf.grants] == ["", *[longest] * 62, "trial"]
