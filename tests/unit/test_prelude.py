"""The pure-Lua `struct` and `cmsgpack` against those of a real server, and inside fakeredis."""

from __future__ import annotations

import ast
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import msgpack
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterd.testing.prelude import prelude
from tests.support.servers import start

Both = Callable[..., tuple[list[bytes], list[bytes]]]

# Runs an operation with the prelude's libraries and with the server's own. `show` renders any value
# and keeps every bit of a number except a NaN's payload. Arguments come as text, "n…" for a number
# and "s…" for a string.
HARNESS = (
    "local builtin = { struct = struct, cmsgpack = cmsgpack }\n"
    + prelude()
    + r"""
local function show(value)
  if type(value) == "number" then
    return value ~= value and string.sub(tostring(value), 1, 4) or builtin.struct.pack(">d", value)
  elseif type(value) ~= "table" then
    return type(value) .. ":" .. tostring(value)
  end
  local rows = {}
  for key, item in pairs(value) do
    rows[#rows + 1] = show(key) .. "=" .. show(item)
  end
  table.sort(rows)
  return "{" .. table.concat(rows, ",") .. "}"
end
local function outcome(ok, ...)
  if not ok then
    return { "error", (string.gsub(tostring((...)), "^user_script:%d+: ", "")) }
  end
  local rows = { "ok" }
  for i = 1, select("#", ...) do
    rows[i + 1] = show((select(i, ...)))
  end
  return rows
end
local args = {}
for i = 1, #ARGV do
  local text = string.sub(ARGV[i], 2)
  args[i] = string.sub(ARGV[i], 1, 1) == "n" and tonumber(text) or text
end
local function operation(struct, cmsgpack)
  OPERATION
end
return {
  outcome(pcall(operation, struct, cmsgpack)),
  outcome(pcall(operation, builtin.struct, builtin.cmsgpack)),
}
"""
)

INTEGERS = st.integers(-(2**53), 2**53)
SIZED = st.sampled_from([*"bBhHiIlLT"] + [f"{kind}{size}" for kind in "iI" for size in range(1, 9)])
ORDER = st.sampled_from(["", "<", ">", " "])
DOUBLES = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
LUA_STRINGS = st.one_of(st.binary(max_size=40), st.integers(0, 70_000).map(lambda n: b"y" * n))


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """Run a Lua operation with the prelude's libraries and with the server's: what each gave."""
    with start("valkey-9.1") as server:
        client = server.client()

        def run(body: str, *args: float | bytes) -> tuple[list[bytes], list[bytes]]:
            texts = [b"s" + a if isinstance(a, bytes) else b"n" + number(a) for a in args]
            own, builtin = client.eval(HARNESS.replace("OPERATION", body), 0, *texts)  # type: ignore[misc]
            return own, builtin

        yield run


def number(value: float) -> bytes:
    """Text that Lua's tonumber turns into exactly this double."""
    if math.isnan(value):
        return b"-nan" if math.copysign(1, value) < 0 else b"nan"
    return repr(value).encode()


def assert_same(outcomes: tuple[list[bytes], list[bytes]]) -> None:
    own, builtin = outcomes
    assert own == builtin


PACK = "return struct.pack(unpack(args))"
UNPACK = "return struct.unpack(unpack(args))"
ROUND_TRIP = "return struct.unpack(args[1], struct.pack(unpack(args)))"

ITEMS = st.one_of(
    st.tuples(SIZED, INTEGERS),
    st.tuples(SIZED, st.floats(-(2.0**63), 2.0**63 - 1024)),
    st.tuples(st.sampled_from("fd"), DOUBLES),
    st.tuples(st.sampled_from(["c0", "s", "c"]), st.binary(min_size=1, max_size=20)),
    st.binary(max_size=20).map(lambda text: (f"c{max(1, len(text))}", text or b"-")),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(ORDER, ITEMS, st.sampled_from(["", "x"])), max_size=12))
@example([("<", ("d", -0.0), ""), (">", ("f", 16777217.0), "x"), ("", ("d", -math.nan), "")])
@example([("<", ("f", 7.006492321624085e-46), ""), (">", ("d", 5e-324), "")])
@example([("<", ("i8", -(2**63)), ""), (">", ("I8", 2**64 - 2048), "")])
@example([("<", ("f", 3.4028235677973366e38), ""), (">", ("f", 1.1754943157898258e-38), "")])
def test_struct_packs_the_same_bytes(
    both: Both, items: list[tuple[str, tuple[str, Any], str]]
) -> None:
    fmt = "".join(order + kind + pad for order, (kind, _), pad in items)
    values = [value for _, (_, value), _ in items]
    assert_same(both(PACK, fmt.encode(), *values))
    if "c0" not in fmt:
        assert_same(both(ROUND_TRIP, fmt.encode(), *values))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(ORDER, st.one_of(SIZED, st.sampled_from("fdxsc"))), max_size=6),
    st.binary(max_size=48),
    st.integers(1, 12),
)
@example([("<", "B"), ("", "c0"), ("", "s")], b"\x03abc\x00", 1)
@example([("", "s"), ("", "c0")], b"2\x00abc", 1)
@example([("<", "i8"), (">", "I8")], b"\xff" * 16, 1)
def test_struct_reads_the_same_values(
    both: Both, options: list[tuple[str, str]], data: bytes, position: int
) -> None:
    fmt = "".join(order + option for order, option in options).encode()
    assert_same(both(UNPACK, fmt, data, position))


@pytest.mark.parametrize("top", [0x00, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFF])
def test_struct_knows_every_sign_bit(both: Both, top: int) -> None:
    for kind in "iI":
        fmt = ">" + "".join(f"{kind}{size}" for size in range(1, 9))
        data = b"".join(bytes([top]) + b"\x01" * (size - 1) for size in range(1, 9))
        assert_same(both(UNPACK, fmt.encode(), data))


@pytest.mark.parametrize(
    ("body", "args"),
    [
        (PACK, (b"i4", b"x")),
        (PACK, (b"i4",)),
        (PACK, (b"s",)),
        (PACK, (b"q", 1)),
        (PACK, (b"c4", b"abc")),
        (PACK, (b"c99999999999", b"")),
        (PACK, (b"s2", b"a")),
        (PACK, (b"sBc0", 12, b"0x10", b"")),
        (UNPACK, (b"<i4", b"abc")),
        (UNPACK, (b"<i4",)),
        (UNPACK, (b"c0", b"abc")),
        (UNPACK, (b"s", b"abc")),
        (UNPACK, (b"Bc0", b"\x04abc")),
        (UNPACK, (b"bc0", b"\xffabc")),
        (UNPACK, (b"B", b"abc", 0)),
        (UNPACK, (b"B", b"abc", -1)),
        (UNPACK, (b"B", b"abc", 4)),
        (UNPACK, (b"B", b"abc", b"2")),
        (UNPACK, (b"B", b"abc", b"x")),
        (UNPACK, (b"", b"abc", 9)),
        ("return struct.size('<BBc8 I4>I6xI7i7I5c3dfhlT')", ()),
        ("return struct.size('s')", ()),
        ("return struct.size('Bc0')", ()),
        ("return struct.size(nil)", ()),
        ("return struct.pack(nil)", ()),
        ("return cmsgpack.pack()", ()),
        ("return cmsgpack.pack(nil, true, false, print)", ()),
        (
            "return cmsgpack.pack({}, {1, nil, 3}, {[2] = 1}, {[0] = 1}, {[1.5] = 1}, {['1'] = 1})",
            (),
        ),
        ("return cmsgpack.pack({1, 2, 3, x = 4})", ()),
        ("local t = {} t[1] = t return cmsgpack.pack(t)", ()),
        ("local t = {} for i = 1, 70000 do t[i] = 0 end return cmsgpack.pack(t)", ()),
        ("local t = {} for i = 2, 20 do t[i] = 0 end return cmsgpack.pack(t)", ()),
        ("return cmsgpack.unpack()", ()),
        ("return cmsgpack.unpack({})", ()),
        ("return cmsgpack.unpack('\\129\\192\\1')", ()),
        ("return cmsgpack.unpack('\\207' .. string.rep('\\255', 8))", ()),
        ("return cmsgpack.unpack(12)", ()),
    ],
)
def test_corner_cases_and_errors_are_the_same(
    both: Both, body: str, args: tuple[float | bytes, ...]
) -> None:
    own, builtin = (
        [row.replace(b"got no value", b"got nil") for row in rows] for rows in both(body, *args)
    )
    assert own == builtin


SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(allow_nan=False), LUA_STRINGS)
KEYS = st.one_of(INTEGERS, st.integers(1, 4), st.binary(max_size=12))
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=20), st.dictionaries(KEYS, inner, max_size=20)
    ),
    max_leaves=30,
)


@settings(deadline=None, max_examples=300)
@given(DOCUMENTS)
def test_cmsgpack_reads_and_writes_the_same(both: Both, document: object) -> None:
    packed = msgpack.packb(document, use_bin_type=False)
    assert_same(both("return cmsgpack.unpack(unpack(args))", packed))
    assert_same(both("return cmsgpack.pack(builtin.cmsgpack.unpack(unpack(args)))", packed))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(INTEGERS, DOUBLES), min_size=1, max_size=8))
@example([127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, -32, -33, -128, -129])
@example([-32768, -32769, -(2**31), -(2**31) - 1, 2.0**63, -(2.0**63), math.inf, -math.nan])
@example([-0.0, 0.1, 1.5, 1e300, 3.4028235677973366e38, 1e-45])
def test_cmsgpack_writes_numbers_the_same(both: Both, values: list[float]) -> None:
    assert_same(both("return cmsgpack.pack(unpack(args))", *values))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=24))
@example(b"\xc4\x01a")
@example(b"\xd9\x05abcd")
@example(b"\xdc\x00\x02\x01")
@example(b"\xca\x7f\x80\x00")
def test_cmsgpack_reads_garbage_the_same(both: Both, data: bytes) -> None:
    assert_same(both("return cmsgpack.unpack(unpack(args))", data))


MANY_LUAS = """
local packed = struct.pack("<i6I7d>dc0", -5, 2^52, 7, tonumber(ARGV[1]), "tail")
local a, b, c, d, position = struct.unpack("<i6I7d>d", packed)
local text = string.format("%d %.0f %d %.17g %d", a + 1, b * 2, c, d, position)
local back = cmsgpack.unpack(cmsgpack.pack({ 1, 300, -70000, 2^40, 1.5, "x", true }))
return { packed, text, cmsgpack.pack(back), string.rep("ab", back[1] + 1) }
"""


@pytest.mark.parametrize("version", ["5.1", "5.2", "5.3", "5.4"])
def test_every_lua_that_fakeredis_may_use(version: str) -> None:
    """Lua 5.3 and later tell integers from floats; results must serve as %d and in arithmetic.

    In a process of its own: two versions of Lua do not live in one.
    """
    program = "import sys, fakeredis; print(fakeredis.FakeRedis().eval(sys.argv[1], 0, '0.1'))"
    out = subprocess.run(
        [sys.executable, "-c", program, prelude() + MANY_LUAS],
        env={**os.environ, "FAKEREDIS_LUA_VERSION": version},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    packed, text, document, repeated = ast.literal_eval(out)
    integers = (-5).to_bytes(6, "little", signed=True) + (2**52).to_bytes(7, "little")
    assert packed == integers + struct.pack("<d", 7) + struct.pack(">d", 0.1) + b"tail"
    assert text == b"-4 9007199254740992 7 0.10000000000000001 30"
    assert document == msgpack.packb([1, 300, -70000, 2**40, 1.5, "x", True], use_single_float=True)
    assert repeated == b"abab"


SCRIPT = """local price, name = struct.unpack("<I6s", redis.call("GET", KEYS[1]))
redis.call("SETRANGE", KEYS[1], 0, struct.pack("<I6", price + tonumber(ARGV[1])))
return cmsgpack.pack({ price, name, redis.call("GET", KEYS[1]) })"""
STORED = (2**40).to_bytes(6, "little") + b"\xff\xfe\x00"
ANSWER = [2**40, b"\xff\xfe", (2**40 + 2).to_bytes(6, "little") + b"\xff\xfe\x00"]


def unpacked(reply: object) -> object:
    assert isinstance(reply, bytes)
    return msgpack.unpackb(reply, raw=True)


def test_a_script_runs_behind_it_in_fakeredis() -> None:
    client = fakeredis.FakeRedis()
    client.set("k", STORED)
    digest = client.script_load(prelude() + SCRIPT)
    assert unpacked(client.evalsha(digest, 1, "k", 2)) == ANSWER
    assert client.eval("return type(struct) .. type(cmsgpack)", 0) == b"nilnil", "no globals"


def test_a_function_library_runs_behind_it_in_fakeredis() -> None:
    client = fakeredis.FakeRedis(server_type="valkey")
    client.set("k", STORED)
    library = (
        f"#!lua name=proof\n{prelude()}"
        f"local function run(KEYS, ARGV)\n{SCRIPT}\nend\n"
        "redis.register_function{function_name='proof_run', callback=run}\n"
        "redis.register_function{function_name='proof_size', flags={'no-writes'},\n"
        "  callback=function(_, args) return struct.size(args[1]) end}\n"
    )
    client.function_load(library)
    client.function_load(library, replace=True)
    assert unpacked(client.fcall("proof_run", 1, "k", 2)) == ANSWER  # type: ignore[arg-type]
    assert client.fcall_ro("proof_size", 0, "<BBc8I4I6") == 20  # type: ignore[arg-type]
    with pytest.raises(redis.ResponseError, match="bad argument #1 to 'size'"):
        client.fcall_ro("proof_size", 0, "s")  # type: ignore[arg-type]
