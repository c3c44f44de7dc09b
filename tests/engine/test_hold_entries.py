"""The entries of holds called directly: wrong keys, what is in store and unreadable, refusals."""

from __future__ import annotations

import re
import struct
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from meterd import wire
from meterd.scripts import ENTRIES
from tests.engine.fuzz import CLEAR, assert_refused
from tests.engine.headers import header
from tests.engine.raw import LEVELS, NOW, World, amounts, extra, snapshot

HOLDERS = ["reserve", "commit", "release", "renew", "tally"]
HOUR = 3_600_000


def call(w: World, entry: str, how: str = "FCALL", **changed: bytes) -> Any:
    """A valid call but for these arguments."""
    keys, args = w.valid(entry)
    for name, value in changed.items():
        args[header(entry).arguments.index(name)] = value
    return w.raw.call(entry, keys, args, how=how)


@pytest.fixture(autouse=True)
def whole(w: World) -> Any:
    yield
    w.reset()


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [*HOLDERS, "usage"])
def test_keys_of_holds_that_do_not_go_with_the_record(w: World, entry: str, how: str) -> None:
    keys, args = w.valid(entry)
    at = len(keys) - 6
    front, pairs = keys[:at], keys[at:]
    other = [key.replace(b"acme", b"acm3") for key in pairs[:2]]
    for wrong in (
        [*pairs[2:], *pairs[:2]],
        [pairs[1], pairs[0], *pairs[2:]],
        [*pairs[:5], pairs[4]],
        [*other, *pairs[2:]],
        [w.root, w.root, *pairs[2:]],
        [pairs[0] + b"x", *pairs[1:]],
        [pairs[0].replace(b"{", b"{x"), *pairs[1:]],
        [*pairs[:4], b"", b""],
    ):
        said = assert_refused(w, entry, [*front, *wrong], args, how)
        assert "keys" in said
    assert_refused(w, entry, [*front, *pairs[:4]], args, how)
    assert_refused(w, entry, [*front, *pairs, *pairs[:2]], args, how)


@pytest.mark.parametrize("entry", HOLDERS)
def test_all_levels_have_to_be_named(w: World, entry: str, how: str) -> None:
    keys, args = w.valid(entry)
    at = header(entry).arguments.index("extra")
    front, pairs = keys[:-6], keys[-6:]
    for held in ((), (1,), (3,), (1, 2), (2, 3)):
        named = [key for level in held for key in pairs[level * 2 - 2 : level * 2]]
        args[at] = extra(w.policies, held=held)
        assert_refused(w, entry, [*front, *named], args, how)


def test_a_level_that_the_call_does_not_name(w: World, how: str) -> None:
    for entry in ENTRIES:
        if header(entry).held:
            assert_refused(w, entry, *after_an_hour(w, entry, (4,)), how)


def test_the_end_of_a_hold_needs_a_key(w: World, how: str) -> None:
    for entry in ("commit", "release"):
        keys, args = w.valid(entry)
        assert_refused(w, entry, [key for key in keys if key != w.end], args, how)
        assert_refused(w, entry, [w.fresh if key == w.end else key for key in keys], args, how)


def test_holds_beside_a_record_of_a_limiter(w: World, how: str) -> None:
    _, args = w.valid("consume")
    (key,) = w.keys.limiter("login", ("::1",)).keys
    args[1] = args[1][:4] + w.client.get(key)[2:10] + b"!"
    args[5] = extra(w.policies, held=(1,))
    pair = [key.replace(b"}:l:", mark) for mark in (b"}:h:", b"}:x:")]
    assert_refused(w, "consume", [key, *pair], args, how)


# What is in store ---------------------------------------------------------------------------------

PART = ["credits", 1, 0, NOW, 0, [1, 0, 0]]
GOOD = [NOW + HOUR, ["credits", "api", "jobs"], [1, 1, 1], [0, 0, 0], [PART]]


def swapped(row: list[Any], at: int, value: Any) -> list[Any]:
    return [*row[:at], value, *row[at + 1 :]]


UNREADABLE = [
    b"", b"\xc1", b"\x95\x01", *map(msgpack.packb, (None, 5, "x", True, {}, [], [1, 2, 3, 4, 5])),
    *(
        msgpack.packb(swapped(GOOD, at, value))
        for at in range(5)
        for value in (None, "x", "5", True, {"a": 1}, [[1]], 7.5 if at else {})
    ),
    *(
        msgpack.packb(swapped(GOOD, 4, [swapped(PART, at, value)]))
        for at in range(1, 6)
        for value in (None, "1", [], {}, [1], ["1", 0, 0], [1, None, 0])
    ),
    *(
        msgpack.packb(swapped(GOOD, 4, [[*PART, billed]]))
        for billed in ("", "x", 5, False, True, {}, {"a": 1}, [], [1], ["a", 1], [1, "a"])
    ),
    *(
        msgpack.packb(swapped(GOOD, 4, [[*PART, [0, 0], sources]]))
        for sources in (
            "", "x", 5, False, True, {}, {"a": 1}, [], [1], ["a"], ["a", "b"], ["a", None, "b", 1],
            [5, 1], [["a"], 1], ["a", 1, "b"], ["a", -1], ["a", [1]], ["a", 1, 5, 1],
        )
    ),
    *(msgpack.packb(swapped(GOOD, at, [1, 1])) for at in (2, 3)),
    msgpack.packb(GOOD)[:-1],
]  # fmt: skip


def test_a_hold_that_cannot_be_read(w: World, how: str) -> None:
    """An error that says so, of whoever needs it: never one of Lua's own."""
    for stored in UNREADABLE:
        for held in w.pairs[::2]:
            w.client.hset(held, "open", stored)
        before = snapshot(w.client)
        for entry in (*HOLDERS, "usage"):
            reply = call(w, entry, how, **({"hold": b"open"} if entry == "reserve" else {}))
            assert str(reply).startswith("METERD-LAYOUT "), (entry, stored, reply)
        for entry in ENTRIES:
            if header(entry).held:
                reply = w.raw.call(entry, *after_an_hour(w, entry), how=how)
                assert str(reply).startswith("METERD-LAYOUT "), (entry, stored, reply)
        assert snapshot(w.client) == before


def levels_of(entry: str) -> int:
    """Of how many levels an entry may name holds, as `World.valid` calls it."""
    return 1 if header(entry).one else 2 if entry == "keys_verify" else 3


def after_an_hour(w: World, entry: str, held: tuple[int, ...] | None = None) -> Any:
    """Keys and arguments when the hold has expired; `held`: levels to name, by default all."""
    said, count = header(entry), levels_of(entry)
    keys, args = w.valid(entry)
    held = tuple(range(1, count + 1)) if held is None else held
    source = w.laid_out[w.leaf]
    moves = [[1, source, source, source]] if entry in ("subscribe", "unsubscribe") else []
    args[said.held - 1] = extra(w.policies, *moves, held=held)
    args[0] = b"%d" % (NOW + HOUR)
    if entry in ("override", "grant"):
        args[header(entry).arguments.index("expires")] = b""
    path = w.key_path if entry == "keys_verify" else w.path
    pairs = {n: w.keys.holds(path, n) for n in range(1, count + 1)}
    if said.one:
        pairs = {1: w.pairs[-2:]}
    front = [key for key in keys if not re.search(rb"\}:[hx]:", key)]
    return [*front, *(key for n in held for key in pairs.get(n, w.pairs[:2]))], args


def test_a_record_that_ends_before_it_says_when_its_holds_do(w: World, how: str) -> None:
    rec = w.client.get(w.root)
    for cut in (1, 3, 6):
        w.client.set(w.root, rec[:-cut])
        for entry in ("consume", "reserve", "usage", "release"):
            reply = call(w, entry, how)
            assert isinstance(reply, ResponseError), (entry, reply)
            assert CLEAR.match(str(reply)), reply


def test_a_hold_whose_entry_is_gone_holds_nothing(w: World, how: str) -> None:
    """Half of it lost, by hand or by a server that evicts: no error, and it goes with the rest."""
    for lost in ("hash", "set", "both"):
        if lost != "set":
            w.client.delete(w.pairs[0])
        if lost != "hash":
            w.client.delete(w.pairs[1])
        keys, args = w.valid("consume")
        args[0] = b"%d" % (NOW + 2 * HOUR)
        args[5] = w.held
        reply = w.raw.call("consume", [*keys, *w.pairs], args, how=how)
        assert (reply[0], reply[2]) == (wire.DECIDED, 1)
        assert not w.client.exists(w.pairs[1])
        assert not w.client.get(w.root)[1] & 8
        w.reset()


# Statuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [e for e in ENTRIES if header(e).held and e not in HOLDERS])
def test_expired_holds_are_asked_for_level_by_level(w: World, entry: str, how: str) -> None:
    count = levels_of(entry)
    keys, args = after_an_hour(w, entry, ())
    reply = w.raw.call(entry, keys, args, how=how)
    # Of an API key only the root has a hold.
    assert reply == bytes([wire.HOLDS, *([1, 2, 3] if count == 3 else [1])])
    if count == 3:
        reply = w.raw.call(entry, *after_an_hour(w, entry, (2,)), how=how)
        assert reply == bytes([wire.HOLDS, 1, 3])
    assert snapshot(w.client) == w.whole
    args[0] = b"%d" % (NOW + HOUR - 1)
    reply = w.raw.call(entry, keys, args, how=how)
    assert reply[0] == wire.HOLDS if entry == "usage" else reply[0] in (wire.DECIDED, wire.DONE)
    w.reset()
    reply = w.raw.call(entry, *after_an_hour(w, entry), how=how)
    assert reply[0] in (wire.DECIDED, wire.DONE)


def test_an_unknown_hold(w: World, how: str) -> None:
    assert call(w, "renew", how, hold=b"other") == bytes([wire.UNKNOWN])
    assert call(w, "tally", how, hold=b"other") == bytes([wire.UNKNOWN])
    assert call(w, "commit", how, hold=b"other", costs=b"", amounts=b"") == bytes([wire.UNKNOWN])
    assert call(w, "release", how, hold=b"other") == bytes([wire.DONE])
    assert snapshot(w.client) == w.whole
    assert call(w, "reserve", how, hold=b"open") == bytes([wire.CONFLICT])
    assert snapshot(w.client) == w.whole


@pytest.mark.parametrize(
    "changed",
    [
        {"costs": b"credits,api", "amounts": amounts(2, 10**6)},
        {"costs": b"credits,jobs", "amounts": amounts(1, 4)},
        {"costs": b"credits,nothing"},
        {"costs": b"login,api", "amounts": amounts(10**15, 1)},
    ],
)
def test_a_reservation_that_is_refused_writes_nothing(w: World, changed: Any, how: str) -> None:
    reply = call(w, "reserve", how, **changed)
    assert (reply[0], reply[1] > 0, reply[2]) == (wire.DECIDED, True, 0)
    assert all(s.applied == 0 for s in wire.decode_answer(reply, LEVELS).limits())
    assert snapshot(w.client) == w.whole


def test_what_the_hold_does_not_have_cannot_be_tallied(w: World, how: str) -> None:
    for costs, given in ((b"credits,api", (1, 2)), (b"credits,login", (1, 0)), (b"api,x", (1, 1))):
        reply = call(w, "tally", how, costs=costs, amounts=amounts(*given))
        assert str(reply).startswith("METERD-ARGUMENT tally"), reply
    assert snapshot(w.client) == w.whole


def test_of_nothing_nothing_is_held(w: World, how: str) -> None:
    for costs in (b"credits,api,jobs", b"sso,jobs"):
        zeros = amounts(*[0] * (costs.count(b",") + 1))
        reply = call(w, "reserve", how, costs=costs, amounts=zeros, hold=b"zero")
        assert reply[2] == 1
        assert not any(w.client.hexists(key, "zero") for key in w.pairs[::2])
    reply = call(w, "reserve", how, costs=b"jobs,credits", amounts=amounts(1, 0), hold=b"one")
    assert reply[2] == 1
    assert [bool(w.client.hexists(key, "one")) for key in w.pairs[::2]] == [True, False, False]


def test_a_hold_as_long_as_there_can_be_one(w: World, how: str) -> None:
    name = b"\xff" * 128
    assert call(w, "reserve", how, hold=name, ttl=b"31622400000")[2] == 1
    assert w.client.zscore(w.pairs[1], name) == NOW + 1000 + 31_622_400_000
    assert call(w, "release", how, hold=name) == bytes([wire.DONE])
    assert not w.client.hexists(w.pairs[0], name)


# What usage shows ---------------------------------------------------------------------------------


def test_usage_lists_those_that_end_first_and_stays_short(w: World, how: str) -> None:
    """However long the ids: the length of the list has two bytes."""
    names = [f"{'n' * 60}{i:02}" for i in range(60)]
    raw = msgpack.packb(
        [NOW + HOUR, names, [10**15] * 60, [0] * 60, [[*PART[:5], [1] * 60]]], use_bin_type=False
    )
    held, order = w.pairs[:2]
    ids = [f"{i:04}" + "é" * 62 for i in range(3000)]
    w.client.hset(held, mapping=dict.fromkeys(ids, raw))
    w.client.zadd(order, {name: NOW + 5000 + i for i, name in enumerate(ids)})
    reply = call(w, "usage", how)
    answer = wire.decode_answer(reply, LEVELS)
    root, team, leaf = wire.decode_levels(reply, answer.end())
    assert root.open_holds == 3001
    assert 1 <= len(root.holds) < 100
    assert [row.id for row in root.holds] == ids[: len(root.holds)]
    assert (team.open_holds, leaf.open_holds) == (1, 1)
    assert [row.id for row in leaf.holds] == ["open"]
    assert leaf.overrides == {"credits": {"l": 3}}
    w.client.hset(held, mapping=dict.fromkeys(ids, msgpack.packb(GOOD)))
    reply = call(w, "usage", how)
    root, *_ = wire.decode_levels(reply, wire.decode_answer(reply, LEVELS).end())
    assert (root.open_holds, len(root.holds)) == (3001, 100)
    assert root.holds[0].amounts == {"credits": 1, "api": 1, "jobs": 1}


def test_the_instant_that_a_record_names_is_that_of_the_first(w: World, how: str) -> None:
    def due() -> int:
        rec = w.client.get(w.root)
        assert rec[1] & 8
        return int.from_bytes(rec[-6:], "little")

    assert due() == NOW + HOUR
    call(w, "reserve", how, ttl=b"5000")
    assert due() == NOW + 6000
    call(w, "renew", how, hold=b"new", ttl=b"%d" % (9 * HOUR))
    assert due() == NOW + HOUR
    call(w, "tally", how, ttl=b"2000")
    assert due() == NOW + 3000
    call(w, "release", how)
    assert due() == NOW + 1000 + 9 * HOUR
    keys, args = w.valid("release")
    end = w.keys.hold_end(w.path, "new")
    args[4] = b"new"
    w.raw.call("release", [end if key == w.end else key for key in keys], args, how=how)
    assert not w.client.get(w.root)[1] & 8
    assert not w.client.exists(*w.pairs)


def test_a_digest_decides_whether_an_end_is_the_same(w: World, how: str) -> None:
    first = call(w, "commit", how)
    again = call(w, "commit", how)
    assert (first[0], again) == (wire.DECIDED, bytes([wire.REPLAYED]) + first)
    other = struct.pack("<16sQ", b"other", 1000)[:22]
    assert call(w, "commit", how, op=other) == bytes([wire.CONFLICT])
    assert call(w, "release", how, op=other) == bytes([wire.CONFLICT])
