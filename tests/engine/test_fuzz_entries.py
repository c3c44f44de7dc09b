"""No argument whatever makes an entry fail in Lua's own words, and no refused call changes a byte.

Every entry is called directly, as a function and as a script, past all that the client checks.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd import wire
from meterd.scripts import ENTRIES, READ_ONLY
from tests.engine.fuzz import HOWS, QUICK, assert_refused, attempt
from tests.engine.headers import header
from tests.engine.raw import VALID, World, amounts, applied, is_valid
from tests.engine.wrong_arguments import NAMES, NUMBERS, TEXTS, WRONG

FREE = {"value", "expected", "pointer"}  # any text is one

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
            assert reply[0] == (wire.REPLAYED if entry == "operation" else wire.DECIDED)
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
        if wrong == b"" and is_valid(entry, name, b""):
            continue
        said = assert_refused(w, entry, keys, [*args[:position], wrong, *args[position + 1 :]], how)
        assert "attempt to" not in said


def test_the_table_knows_every_argument() -> None:
    assert {name for _, _, name in positions()} == set(WRONG)
    assert set(WRONG) | FREE == set(VALID)
    for name, wrong in WRONG.items():
        # What is wrong only beside other arguments (a count, an instant) is right by itself.
        assert sum(not VALID[name](text) for text in wrong) >= len(wrong) - 5 or name == "extra", (
            name
        )


def test_an_operation_id_keeps_its_end_when_the_retention_is_absurd(w: World, how: str) -> None:
    """48 bits hold the instant: one that would wrap is not a small one."""
    keys, args = w.valid("consume", op=True)
    args[4] = bytes(16) + b"\xff" * 6
    assert w.raw.call("consume", keys, args, how=how)[0] == wire.DECIDED
    assert w.raw.call("consume", keys, args, how=how)[0] == wire.REPLAYED
    w.reset()


# Anything at all ----------------------------------------------------------------------------------

ANY_NUMBER = st.floats() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([*NUMBERS.values()])
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | st.binary(max_size=12) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.binary(max_size=8) | st.integers(-5, 5) | st.floats(), inner, max_size=4
        )
    ),
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
            "p": st.dictionaries(st.binary(min_size=8, max_size=8), ANY_VALUE, max_size=3)
            | ANY_VALUE,
            "m": st.lists(ANY_MOVE, max_size=3) | ANY_VALUE,
            "h": st.lists(st.integers(0, 5) | ANY_NUMBER, max_size=5) | ANY_VALUE,
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


@given(
    extra=ANY_EXTRA, entry=st.sampled_from([e for e in ENTRIES if "extra" in header(e).arguments])
)
@QUICK
def test_any_extra(w: World, entry: str, extra: bytes) -> None:
    keys, args = w.valid(entry)
    args[header(entry).arguments.index("extra")] = extra
    for method in HOWS:
        attempt(w, entry, keys, args, method)


@given(
    values=st.lists(ANY_NUMBER.map(float), min_size=1, max_size=3),
    entry=st.sampled_from(["consume", "report", "refund", "check"]),
)
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
