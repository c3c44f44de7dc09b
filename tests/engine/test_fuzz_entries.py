"""No argument whatever makes an entry fail in Lua's own words, and no refused call changes a byte.

Every entry is called directly, as a function and as a script, past everything that the client checks.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from hashlib import sha1
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from meterd import wire
from meterd.scripts import ENTRIES, READ_ONLY
from tests.engine.headers import header
from tests.engine.raw import (
    NOW,
    VALID,
    World,
    amounts,
    applied,
    assert_well_formed,
    pairs,
    snapshot,
    world,
)
from tests.support import servers

HOWS = ("FCALL", "EVALSHA")
QUICK = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CLEAR = re.compile(r"METERD-(ARGUMENT|OVERFLOW|HORIZON|LAYOUT) ")


@pytest.fixture(scope="module")
def w() -> Iterator[World]:
    with servers.start() as server, world(server) as made:
        yield made


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def attempt(w: World, entry: str, keys: list[bytes], args: list[bytes], how: str) -> Any:
    """Calls; asserts that the answer is a clear one and that a refusal changed nothing."""
    reply = w.raw.call(entry, keys, args, how=how)
    if isinstance(reply, ResponseError):
        assert CLEAR.match(str(reply)), f"{entry}: {reply}"
    else:
        assert_well_formed(entry, reply)
    after = snapshot(w.client)
    if after != w.whole:
        changed = {k for k in after.keys() | w.whole.keys() if after.get(k) != w.whole.get(k)}
        w.reset()
        assert applied(entry, reply), f"{entry} {args} answered {reply!r} and changed {changed}"
        assert changed <= set(keys), f"{entry} changed {changed}, which was not declared"
        names = pairs(header(entry).arguments, len(args))
        for name, argument in zip(names, args, strict=True):
            assert VALID[name](argument), f"{entry} wrote with {name}={argument!r}"
    return reply


def assert_refused(w: World, entry: str, keys: list[bytes], args: list[bytes], how: str) -> str:
    """Calls; asserts an error that names the argument, and that nothing changed."""
    reply = w.raw.call(entry, keys, args, how=how)
    changed = snapshot(w.client) != w.whole
    w.reset()
    assert isinstance(reply, ResponseError), f"{entry} {args} answered {reply!r}"
    assert str(reply).startswith("METERD-ARGUMENT "), reply
    assert not changed
    return str(reply)


# What is right ------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_calls_that_everything_here_is_made_from_are_right(
    w: World, entry: str, how: str
) -> None:
    """Without this, every other test would pass on calls that are wrong in two places."""
    for op in (False, True):
        keys, args = w.valid(entry, op=op and "operation id" in header(entry).kinds)
        reply = attempt(w, entry, keys, args, how)
        if entry in READ_ONLY:
            assert reply[0] == wire.DECIDED
        else:
            assert applied(entry, reply), reply


# How many there are -------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
def test_arguments_missing_or_too_many(w: World, entry: str, how: str) -> None:
    keys, args = w.valid(entry)
    for wrong in (args[:-1], args[1:], [], [*args, b""], [*args, b"1", b"2", b"3"], [b""] * 300):
        if wrong != args:
            assert_refused(w, entry, keys, wrong, how)


@pytest.mark.parametrize("entry", ENTRIES)
def test_keys_missing_or_too_many(w: World, entry: str, how: str) -> None:
    said = header(entry)
    keys, args = w.valid(entry)
    surplus = [b"w:{x}:s:%d" % i for i in range(said.most_keys + 1)]
    assert_refused(w, entry, [], args, how)
    assert_refused(w, entry, surplus, args, how)
    if "operation id" in said.kinds and entry != "forget":
        assert_refused(w, entry, surplus[: said.most_keys], args, how)
        keys, args = w.valid(entry, op=True)
        without = [key for key in keys if b":o:" not in key]
        assert_refused(w, entry, without, args, how)  # a record stands where the id belongs
        assert_refused(w, entry, [w.op], args, how)
        assert_refused(w, entry, [*without, b"w:{x}:s:an}:o:id"], args, how)


# One wrong argument -------------------------------------------------------------------------------

NUMBERS: dict[str, float] = {
    "nan": float("nan"),
    "-nan": -float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "-5": -5,
    "one half": 0.5,
    "10**15 + 1": 10**15 + 1,
    "17 digits": 12345678901234567,
    "2**53": 2.0**53,
    "1e300": 1e300,
    "the smallest there is": 5e-324,
}
TEXTS = [
    b"nan", b"inf", b"-5", b"+5", b"1e3", b"0x10", b"1.5", b" 5", b"5 ", b"5\n", b"5\x00", b"\x005",
    b"12345678901234567", b"\xff" * 8, b"\x00", b"five", "٣".encode(), b"-0", b"1,5", b"none ", b"!",
]  # fmt: skip
NAMES = [
    b"", b",", b"credits,", b",credits", b"a" * 65, b"a b", b"a/b", b"credits\x00", b"credits\n",
    "crédits".encode(), b"%w", b"a,b,,c", b",".join([b"a"] * 65), b"{x}", b"**", b"*,*",
]  # fmt: skip
WRONG: dict[str, list[bytes]] = {
    "now": [*TEXTS, b"9" * 15],
    "amounts": [
        b"",
        *TEXTS,
        b"1" * 7,
        b"12345678",  # eight digits are a double, too: 6.8e-38
        amounts(*[1.0] * 65),
        *(amounts(v) for v in NUMBERS.values()),
        *(amounts(1, v) for v in NUMBERS.values()),
        amounts(1),
        amounts(1, 1, 1),
        amounts(2, 1)[:-1],
        amounts(2, 1) + b"\x00",
        struct.pack(">2d", 2, 1),
        struct.pack("<2q", 2, 1),
    ],
    "costs": [*NAMES, b"credits", b"credits,api,login", b"*"],
    "op": [b"1", b"x" * 21, b"x" * 23, b"x" * 44, bytes(22)],
    "context": [
        b"", b"x" * 11, bytes(12) + b"a b", bytes(12) + b"!!", bytes(12) + b"\x00", b"x" * 77,
        bytes(12) + b"!",
    ],
    "extra": [
        b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93\x01", msgpack.packb(5), msgpack.packb(None),
        msgpack.packb("p"), msgpack.packb({"p": 1}), msgpack.packb({"m": 1}), msgpack.packb({"m": [1]}),
        *(
            msgpack.packb({"m": [move]}, use_bin_type=False)
            for move in (
                [], [1], [1, b"", b"", b""], [1, b"x" * 8, b"y" * 8], ["1", b"x" * 8, b"x" * 8, b"x" * 8],
                [1, b"x" * 8, b"x" * 8, 5], [1, b"x" * 8, b"x" * 8, b"x" * 8, 5], [[], [], [], []],
                *([level, b"x" * 8, b"x" * 8, b"x" * 8] for level in (*NUMBERS.values(), 0, 5, 1.5)),
            )
        ),
    ],
    "change": [b"", b"KEEP", b"resets", b"prorate", b"keep\x00"],
    "anchor": [*TEXTS, b"9" * 15],
    "pools": [name for name in NAMES if name],
    "name": [*NAMES, b"credits,api", b"*"],
    "limit": TEXTS,
    "overage": [*TEXTS, b"1" + b"0" * 15 + b"1"],
    "burst": [*TEXTS, b"none", b"1000000000001"],
    "expires": [*TEXTS, b"9" * 15, b"1", b"%d" % NOW],
    "clear": [b"0", b"true", b"11", b"1\x00"],
    "known": [b"0", b"yes", b"11"],
    "used": ["".encode(), *TEXTS, b"none", b"1000000000000001"],
    "field": [b""],
    "catalog": [b""],
}  # fmt: skip
FREE = {"value", "expected"}  # any text is one


def positions() -> list[tuple[str, int, str]]:
    return [
        (entry, position, name)
        for entry in ENTRIES
        for position, name in enumerate(header(entry).arguments)
        if name not in FREE
    ]


@pytest.mark.parametrize(("entry", "position", "name"), positions())
def test_one_wrong_argument_is_named_and_changes_nothing(
    w: World, entry: str, position: int, name: str, how: str
) -> None:
    keys, args = w.valid(entry)
    for wrong in WRONG[name]:
        # No text at all: the server's clock, no costs to pay, nothing to bring, ...
        if wrong == b"" and VALID[name](b""):
            continue
        said = assert_refused(w, entry, keys, [*args[:position], wrong, *args[position + 1 :]], how)
        assert "attempt to" not in said


def test_the_table_knows_every_argument() -> None:
    assert {name for _, _, name in positions()} == set(WRONG)
    assert set(WRONG) | FREE == set(VALID)
    for name, wrong in WRONG.items():
        # What is wrong only beside other arguments (a count, an instant) is right by itself.
        assert sum(not VALID[name](text) for text in wrong) >= len(wrong) - 5 or name == "extra", name


def test_an_operation_id_keeps_its_end_when_the_retention_is_absurd(w: World, how: str) -> None:
    """48 bits hold the instant: one that would wrap is not a small one."""
    keys, args = w.valid("consume", op=True)
    args[4] = bytes(16) + b"\xff" * 6
    assert w.raw.call("consume", keys, args, how=how)[0] == wire.DECIDED
    assert w.raw.call("consume", keys, args, how=how)[0] == wire.REPLAYED
    w.reset()


# Policies and moves -------------------------------------------------------------------------------


def named(blob: bytes) -> bytes:
    return sha1(blob).digest()[:8]


def first_sight(w: World, blobs: dict[bytes, bytes], first: bytes) -> tuple[list[bytes], list[bytes]]:
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


POOL = [1, "credits", 5, 0, 0, 0, 3, 1, 0, 0, 0, []]
BUCKET = [3, "api", 5, -(2**53), 1000, []]
HELD = [["base", "p", "x" * 8, False]]


def policy(*rows: Any, zones: Any = (), held: Any = HELD, layout: Any = 1, horizon: Any = 2**45) -> bytes:
    packed: bytes = msgpack.packb([layout, horizon, zones, held, rows], use_bin_type=False)
    return packed


def swapped(row: list[Any], at: int, value: Any) -> bytes:
    return policy([*row[:at], value, *row[at + 1 :]])


BAD_POLICIES: list[Any] = [
    b"", b"\xc1", b"\x95\x01", msgpack.packb(7), msgpack.packb({}), msgpack.packb([1]), msgpack.packb("x"),
    policy(layout=2), policy(layout=None), policy(horizon="x"), policy(horizon=float("nan")),
    policy(zones=5), policy(zones=[5]), policy(zones=[["UTC", ""]]), policy(zones=[["UTC", "x" * 11]]),
    policy(zones=[["UTC", 5]]), policy(held=5), policy(held=[5]), policy(held=[[None, "p"]]),
    policy(5), policy([]), policy([9, "x"]), policy(["1", "x"]), policy([5]), policy([5, 5]),
    policy({"a": 1}), policy([1.5, "x"]), policy([float("nan"), "x"]),
    policy(*[[5, f"f{i}"] for i in range(65)]), policy(POOL[:-1]), policy([*POOL, 1]), policy(BUCKET[:-1]),
    *(swapped(POOL, i, v) for i in range(1, 12) for v in (None, "x", float("nan"), float("inf"), {})
      if not (i in (1,) and v == "x") and not (i == 11 and v == {})),
    *(swapped(BUCKET, i, v) for i in range(1, 6) for v in (None, "x", float("nan"), float("inf"), {})
      if not (i in (1,) and v == "x") and not (i == 5 and v == {})),
    *(swapped(POOL, 11, v) for v in (["a"], [1, "a"], ["a", "b"], ["a", 0], ["a", 1, 5], [["a"], 1])),
    swapped(POOL, 6, 4), swapped(POOL, 6, 1.5), swapped(POOL, 7, 0), swapped(POOL, 7, -1),
    swapped(POOL, 8, 5), swapped(POOL, 8, -1), swapped(POOL, 10, 1), swapped(POOL, 10, -1),
    swapped(POOL, 2, -1), swapped(POOL, 2, 0.5), swapped(POOL, 2, 1e300),
    swapped(BUCKET, 2, -1), swapped(BUCKET, 2, -(2**53)), swapped(BUCKET, 2, 10**12 + 1),
    swapped(BUCKET, 3, 10**12 + 1), swapped(BUCKET, 4, 0), swapped(BUCKET, 4, 10**15),
    policy(POOL, POOL),
]  # fmt: skip


def test_bytes_that_are_no_policy(w: World, how: str) -> None:
    for blob in BAD_POLICIES:
        keys, args = first_sight(w, {named(blob): blob}, named(blob))
        assert "polic" in assert_refused(w, "consume", keys, args, how)


def test_the_policy_that_the_bad_ones_are_made_from_is_good(w: World, how: str) -> None:
    blob = policy(POOL, BUCKET)
    keys, args = first_sight(w, {named(blob): blob}, named(blob))
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
        args[-1] = b""
        reply = attempt(w, entry, keys, args, "EVALSHA")
        assert reply[0] in (wire.NEED, wire.STALE), (entry, reply)
        assert snapshot(w.client) == w.whole


# Keys that hold something else --------------------------------------------------------------------


def test_a_record_key_that_holds_no_record(w: World, how: str) -> None:
    for stored in (b"", b"\x01", b"\x01\x00" + w.first, b"\x02" * 200, b"\x01" * 19):
        w.client.set(b"w:{x}:s:odd", stored)
        for entry in ENTRIES:
            if "now" not in header(entry).arguments:
                continue
            _, args = w.valid(entry)
            reply = w.raw.call(entry, [b"w:{x}:s:odd"], args, how=how)
            assert isinstance(reply, ResponseError)
            assert CLEAR.match(str(reply)), f"{entry}: {reply}"
            assert w.client.get(b"w:{x}:s:odd") == stored
    w.reset()


def test_meta_that_is_none(w: World, how: str) -> None:
    for stored in (b"\x05", b"\xc1", b"\x81", b""):
        w.client.set(w.meta, stored)
        reply = w.raw.call("set_meta", [w.meta], [b"a", b"1"], how=how)
        assert CLEAR.match(str(reply)), reply
        assert w.client.get(w.meta) == stored
    w.reset()


# Anything at all ----------------------------------------------------------------------------------

ANY_NUMBER = st.floats() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([*NUMBERS.values()])
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | st.binary(max_size=12) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.binary(max_size=8) | st.integers(-5, 5) | st.floats(), inner, max_size=4),
    max_leaves=12,
)
ANY_MOVE = st.tuples(
    st.integers(0, 5) | ANY_NUMBER, *[st.binary(min_size=8, max_size=8) | ANY_VALUE] * 3
).map(list)
ANY_EXTRA = st.binary(max_size=60) | st.builds(
    lambda value, binary: msgpack.packb(value, use_bin_type=binary),
    ANY_VALUE
    | st.fixed_dictionaries(
        {},
        optional={
            "p": st.dictionaries(st.binary(min_size=8, max_size=8), ANY_VALUE, max_size=3) | ANY_VALUE,
            "m": st.lists(ANY_MOVE, max_size=3) | ANY_VALUE,
        },
    ),
    st.booleans(),
)
ANY_TEXT = (
    st.binary(max_size=80)
    | st.sampled_from(TEXTS + NAMES + WRONG["op"] + WRONG["context"])
    | st.integers(0, 10**17).map(lambda n: b"%d" % n)
    | st.lists(ANY_NUMBER, max_size=4).map(lambda values: amounts(*map(float, values)))
    | ANY_EXTRA
)


@st.composite
def calls(draw: Any) -> tuple[str, bool, dict[int, bytes], int, int]:
    """An entry, with an id or without, the arguments to replace, and how far the counts are off."""
    entry = draw(st.sampled_from(ENTRIES))
    places = st.integers(0, max(0, len(header(entry).arguments) - 1))
    wrong = draw(st.dictionaries(places, ANY_TEXT, max_size=3))
    off = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1, 2])
    return entry, draw(st.booleans()), wrong, draw(off), draw(off)


def assert_survives(w: World, call: tuple[str, bool, dict[int, bytes], int, int], how: str) -> None:
    entry, op, wrong, keys_off, args_off = call
    keys, args = w.valid(entry, op=op and "operation id" in header(entry).kinds)
    args = [wrong.get(i, argument) for i, argument in enumerate(args)]
    if args_off:
        args = args[:args_off] if args_off < 0 else [*args, *[b"x"] * args_off]
    if keys_off:
        keys = keys[:keys_off] if keys_off < 0 else [*keys, *[w.team, w.fresh][:keys_off]]
    if args_off and header(entry).arguments and not header(entry).repeated:
        assert_refused(w, entry, keys, args, how)
    else:
        attempt(w, entry, keys, args, how)


@given(call=calls())
@QUICK
def test_anything_as_a_function(w: World, call: Any) -> None:
    assert_survives(w, call, "FCALL")


@given(call=calls())
@QUICK
def test_anything_as_a_script(w: World, call: Any) -> None:
    assert_survives(w, call, "EVALSHA")


@given(extra=ANY_EXTRA, entry=st.sampled_from([e for e in ENTRIES if "extra" in header(e).arguments]))
@QUICK
def test_any_extra(w: World, entry: str, extra: bytes) -> None:
    keys, args = w.valid(entry)
    for method in HOWS:
        attempt(w, entry, keys, [*args[:-1], extra], method)


@given(values=st.lists(ANY_NUMBER.map(float), min_size=1, max_size=3), entry=st.sampled_from(["consume", "report", "refund", "check"]))
@QUICK
def test_any_amounts(w: World, entry: str, values: list[float]) -> None:
    """Only what the contract calls an amount is charged, whatever a double can hold."""
    keys, args = w.valid(entry)
    args[2] = b",".join([b"credits", b"api", b"login"][: len(values)])
    args[3] = amounts(*values)
    reply = attempt(w, entry, keys, args, "FCALL")
    assert VALID["amounts"](args[3]) == (not str(reply).startswith("METERD-ARGUMENT"))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", HOWS)
def test_anything_for_longer(w: World, method: str) -> None:
    @given(call=calls())
    @settings(QUICK, max_examples=20_000)
    def run(call: Any) -> None:
        assert_survives(w, call, method)

    run()
