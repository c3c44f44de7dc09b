"""Policies, moves and stored values that are not what they should be: refused, and clearly."""

from __future__ import annotations

from hashlib import sha1
from typing import Any

import msgpack
from redis.exceptions import ResponseError

from meterd import wire
from meterd.scripts import ENTRIES
from tests.engine.fuzz import CLEAR, assert_refused, attempt
from tests.engine.headers import header
from tests.engine.raw import World, applied, extra, snapshot

# Policies and moves -------------------------------------------------------------------------------


def named(blob: bytes) -> bytes:
    return sha1(blob).digest()[:8]


def first_sight(
    w: World, blobs: dict[bytes, bytes], first: bytes
) -> tuple[list[bytes], list[bytes]]:
    """A charge of an unseen root that would join the policy `first`."""
    _, args = w.valid("consume")
    args[1] = args[1][:4] + first
    args[5] = msgpack.packb({"p": blobs}, use_bin_type=False)
    return [w.fresh], args


def test_bytes_that_do_not_hash_to_their_name(w: World, how: str) -> None:
    good = w.policies[w.first]
    for wrong in (b"", good + b"\x00", good[:-1], b"x" * 100, 5, [good], {"a": good}):
        fake = b"fakename"
        keys, args = first_sight(w, {fake: wrong}, fake)
        assert "hash" in assert_refused(w, "consume", keys, args, how)


POOL = [1, "credits", 5, 0, 0, 0, 3, 1, 0, 0, 0, 2, [], [800_000, 1_000_000], [1, 3]]
BUCKET = [3, "api", 5, -(2**53), 1000, []]
SLOTS = [0, "jobs", 5, []]
HELD = [["base", "p", "x" * 8, False]]


def policy(
    *rows: Any,
    zones: Any = (),
    held: Any = HELD,
    layout: Any = 2,
    horizon: Any = 2**45,
    autos: Any = None,
) -> bytes:
    more = [] if autos is None else [autos]
    packed: bytes = msgpack.packb([layout, horizon, zones, held, rows, *more], use_bin_type=False)
    return packed


def swapped(row: list[Any], at: int, value: Any) -> bytes:
    return policy([*row[:at], value, *row[at + 1 :]])


ODD = (None, "x", float("nan"), float("inf"), {}, 0.5)
BAD_POLICIES: list[Any] = [
    b"", b"\xc1", b"\x95\x01", *map(msgpack.packb, (7, {}, [1], "x", None, [])),
    policy(layout=1), policy(layout=3), policy(layout=None),
    policy(horizon="x"), policy(horizon=float("nan")),
    *(policy(zones=zones) for zones in (5, [5], *([["UTC", x]] for x in ("", "x" * 11, 5)))),
    policy(held=5), policy(held=[5]), policy(held=[[None, "p"]]),
    policy(5), policy([]), policy([9, "x"]), policy(["1", "x"]), policy([5]), policy([5, 5]),
    policy({"a": 1}), policy([1.5, "x"]), policy([float("nan"), "x"]),
    policy(*[[5, f"f{i}"] for i in range(65)]),
    policy(POOL[:-1]), policy([*POOL, 1]), policy(BUCKET[:-1]),
    *(swapped(POOL, i, v) for i in range(2, 12) for v in ODD),
    *(swapped(BUCKET, i, v) for i in range(2, 5) for v in ODD),
    *(swapped(POOL, 1, v) for v in (None, 5, {}, "", "a b", "a\n", "x" * 65)),
    *(swapped(BUCKET, 1, v) for v in (None, [], "a,b")),
    swapped(POOL, 11, -1), swapped(POOL, 11, 3),
    *(swapped(POOL, 12, v) for v in (None, "x", 5, ["a"], [1, "a"], ["a", "b"], ["a", 0])),
    *(swapped(POOL, i, v) for i in (13, 14) for v in (
        None, "x", 5, [0], [-1], [0.5], ["1"], [2, 1], [1, 1], [float("nan")], [2**60],
        list(range(1, 14)),
    )),
    swapped(POOL, 13, [1_000_001]),
    *(swapped(BUCKET, 5, v) for v in (None, "x", 5, ["a", 1, 5], [["a"], 1], ["a", 0.5])),
    swapped(POOL, 6, 4), swapped(POOL, 6, 1.5), swapped(POOL, 7, 0), swapped(POOL, 7, -1),
    swapped(POOL, 8, 5), swapped(POOL, 8, -1), swapped(POOL, 10, 1), swapped(POOL, 10, -1),
    swapped(POOL, 2, -1), swapped(POOL, 2, 0.5), swapped(POOL, 2, 1e300),
    swapped(BUCKET, 2, -1), swapped(BUCKET, 2, -(2**53)), swapped(BUCKET, 2, 10**12 + 1),
    swapped(BUCKET, 3, 10**12 + 1), swapped(BUCKET, 4, 0), swapped(BUCKET, 4, 10**15),
    policy(SLOTS[:-1]), policy([*SLOTS, 1]), policy(SLOTS, SLOTS),
    policy(SLOTS, [*POOL[:1], "jobs", *POOL[2:]]),
    *(swapped(SLOTS, 2, v) for v in (*ODD, -1, -(2**53), 10**12 + 1)),
    *(swapped(SLOTS, 1, v) for v in (None, [], "a,b", "")),
    *(swapped(SLOTS, 3, v) for v in (None, "x", 5, ["a", 1, 5], ["a", 0])),
    policy(POOL, POOL),
    *(policy(POOL, SLOTS, [5, "flag"], autos=autos) for autos in (
        5, "x", "", {"a": 1}, [], [1], [1, 0], [1, -1], [1, 0.5], [1, "a"], [0, 1], [4, 1], [2, 1],
        [3, 1],
        [1, 10**15 + 1], [1.5, 1], ["1", 1], [1, 1, 9, 1], [1, float("nan")], [float("nan"), 1],
    )),
]  # fmt: skip


def test_bytes_that_are_no_policy(w: World, how: str) -> None:
    for blob in BAD_POLICIES:
        keys, args = first_sight(w, {named(blob): blob}, named(blob))
        assert "polic" in assert_refused(w, "consume", keys, args, how)


def test_the_policy_that_the_bad_ones_are_made_from_is_good(w: World, how: str) -> None:
    blob = policy(POOL, BUCKET, SLOTS, autos=[1, 5, 2, 1])
    keys, args = first_sight(w, {named(blob): blob}, named(blob))
    keys += w.keys.shared(w.keys.path("acme2"))
    args[5] = extra({named(blob): blob}, shared=True)
    assert applied("consume", attempt(w, "consume", keys, args, how))


def test_a_move_by_definitions_that_the_record_is_not_laid_out_by(w: World, how: str) -> None:
    """Reading a record by another layout would make numbers of the wrong bytes."""

    def layout(name: bytes) -> list[int]:
        return [row[0] for row in msgpack.unpackb(w.policies[name], raw=True)[4] if row[0] < 5]

    refused = 0
    for entry in ("consume", "report", "check"):
        keys, args = w.valid(entry)
        for level, key in enumerate(w.path.keys, 1):
            for name in w.policies:
                if layout(name) != layout(w.laid_out[key]):
                    args[5] = w.move(level, old=name, to=name)
                    assert_refused(w, entry, keys, args, how)
                    refused += 1
    assert refused >= 9


def test_needs_are_said_and_nothing_is_written(w: World) -> None:
    """A script keeps no policy from call to call: without the bytes it asks for them."""
    for entry in ENTRIES:
        if "extra" not in header(entry).arguments:
            continue
        keys, args = w.valid(entry)
        at = header(entry).arguments.index("extra")
        given = msgpack.unpackb(args[at], raw=True) if args[at] else {}
        args[at] = extra({}, held=given.get(b"h", ()), shared=b"e" in given)
        reply = attempt(w, entry, keys, args, "EVALSHA")
        assert not isinstance(reply, ResponseError), (entry, reply)
        assert reply[0] in (wire.NEED, wire.STALE), (entry, reply)
        assert snapshot(w.client) == w.whole


# Keys that hold something else --------------------------------------------------------------------


def test_a_record_key_that_holds_no_record(w: World, how: str) -> None:
    for stored in (b"", b"\x02", b"\x02\x00" + w.first, b"\x01" * 200, b"\x03" * 200, b"\x02" * 19):
        w.client.set(b"w:{x}:s:odd", stored)
        for entry in ENTRIES:
            if "now" not in header(entry).arguments:
                continue
            _, args = w.valid(entry)
            reply = w.raw.call(entry, [b"w:{x}:s:odd"], args, how=how)
            assert isinstance(reply, ResponseError)
            assert CLEAR.match(str(reply)), f"{entry}: {reply}"
            assert w.client.get(b"w:{x}:s:odd") == stored
            if header(entry).one:  # it may stand above the record that is meant, too
                reply = w.raw.call(entry, [w.leaf, b"w:{x}:s:odd"], args, how=how)
                assert len(stored) >= 20 or isinstance(reply, ResponseError)
                assert len(stored) >= 20 or CLEAR.match(str(reply)), f"{entry}: {reply}"
    w.reset()


def test_an_operation_id_that_is_none(w: World, how: str) -> None:
    for stored in (b"", b"\x01" * 15, b"\x01" * 21, bytes(22)):
        for entry in ("consume", "report", "refund", "subscribe", "reserve"):
            w.client.set(w.op, stored)
            keys, args = w.valid(entry, op=True)
            reply = w.raw.call(entry, keys, args, how=how)
            if len(stored) == 22:
                assert applied(entry, reply)  # it ended in 1970
            else:
                assert CLEAR.match(str(reply)), f"{entry}: {reply}"
                assert w.client.get(w.op) == stored
            w.reset()


def test_an_api_key_that_is_none(w: World, how: str) -> None:
    good = w.client.get(w.entry)
    for stored in (b"", b"\x01", good[:84], b"\x02" + good[1:], good[:84] + b"\xc1"):
        for entry in ("keys_create", "keys_verify", "keys_update", "keys_rotate"):
            w.client.set(w.entry, stored)
            keys, args = w.valid(entry)
            reply = w.raw.call(entry, [w.entry] if entry == "keys_create" else keys, args, how=how)
            if entry != "keys_verify" or len(stored) < len(good) - 5 or stored[0] != 1:
                assert isinstance(reply, ResponseError) or stored[84:] == b"\xc1", (entry, reply)
            assert not isinstance(reply, ResponseError) or CLEAR.match(str(reply)), reply
            assert w.client.get(w.entry) == stored or entry == "keys_verify"
            w.reset()


def test_meta_that_is_none(w: World, how: str) -> None:
    for stored in (b"\x05", b"\xc1", b"\x81", b""):
        w.client.set(w.meta, stored)
        reply = w.raw.call("set_meta", [w.meta], [b"a", b"1"], how=how)
        assert CLEAR.match(str(reply)), reply
        assert w.client.get(w.meta) == stored
    w.reset()
