"""Reads the contract that opens every `lua/<entry>.lua`, strictly: what it cannot read is an error.

--- entry: one sentence.
-- KEYS     one item per line: `1 record`, `1..n record ... (n = 1..4)`, `n + 1 operation id; only
            with ARGV 5`, `2.. the records of up to three levels above`, `then for every level in h
            of ARGV 6: the hash and the sorted set of its holds`, `then with e of ARGV 6: events,
            outbox and index of the partition`, ...
-- ARGV     `1 now  meaning`, or several by comma, or `1..6 as consume`, or `none`
-- RETURNS  `a status: 2 need, 5 done`, one line per status, or prose
-- WRITES   prose
-- @needs   libraries          -- @flags   function flags
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from meterd.scripts import lua_root

_SECTION = re.compile(r"-- (KEYS|ARGV|RETURNS|WRITES|@needs|@flags)(?: +|$)(.*)")
_ITEM = re.compile(r"-- (?:ARGV  |     {2})(\d.*)")


@dataclass(frozen=True)
class Header:
    """What one entry says of itself. `most_keys`, `most_arguments`: the largest counts it takes.

    `one`: it names one record, and reads those above only for when they were last seen.
    `held`: which argument lists the levels whose holds are declared, counted from 1; 0: none does.
    """

    entry: str
    sentence: str
    least_keys: int
    most_keys: int
    one: bool
    held: int
    kinds: tuple[str, ...]
    arguments: tuple[str, ...]
    repeated: bool
    most_arguments: int
    returns: str
    statuses: frozenset[int]
    writes: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]


def _sections(entry: str, text: str) -> tuple[str, dict[str, list[str]]]:
    lines = text.split("\n")
    first = re.fullmatch(rf"--- {entry}: (.+\.)", lines[0])
    assert first, f"{entry}: the first line is {lines[0]!r}"
    found: dict[str, list[str]] = {}
    current = ""
    for line in lines[1:]:
        if not line.startswith("--"):
            break
        match = _SECTION.match(line)
        if match:
            current = match[1]
            assert current not in found, f"{entry}: {current} stands twice"
            found[current] = [line]
        else:
            assert current, f"{entry}: {line!r} belongs to nothing"
            found[current].append(line)
    order = [
        name for name in ("KEYS", "ARGV", "RETURNS", "WRITES", "@needs", "@flags") if name in found
    ]
    assert list(found) == order, f"{entry}: sections in the order {list(found)}"
    return first[1], found


def _plain(lines: list[str]) -> str:
    """The words of a section."""
    match = _SECTION.match(lines[0])
    assert match
    return " ".join([match[2], *(line[2:].strip() for line in lines[1:])])


_SMALL = {"three": 3}
SHARED = ("events", "outbox", "index")


def _keys(entry: str, lines: list[str]) -> tuple[int, int, int, tuple[str, ...]]:
    """Least and most keys, the argument that lists levels with holds, and the kinds of keys."""
    least = most = held = 0
    paths = 1
    kinds = []
    for line in lines:
        text = re.sub(r"^-- (KEYS|    ) +", "", line)
        above = re.fullmatch(
            r"(?:\d\.\. +|then )the records of up to (three) levels above,.*", text
        )
        if above:
            most += _SMALL[above[1]]
        elif levels := re.fullmatch(r"1\.\.n +(record) .*\(n = (\d)\.\.(\d)\)", text):
            least, most, paths = int(levels[2]), most + int(levels[3]), int(levels[3])
            kinds.append(levels[1])
        elif text in ("1 API key", "then   the API key"):
            least, most = least + 1, most + 1
            kinds.append("API key")
        elif text == "n + 1  end of the hold, kept like an operation id":
            least, most = least + 1, most + 1
            kinds.append("end of the hold")
        elif re.fullmatch(
            r"then +the operation id to .*, and the end of the hold of that id", text
        ):
            least, most = least + 2, most + 2
            kinds += ["operation id", "end of the hold"]
        elif holds := re.fullmatch(
            r"then +for every level in h of ARGV (\d+): the hash and the sorted set of its holds",
            text,
        ):
            most, held = most + 2 * paths, int(holds[1])
            kinds.append("hold")
        elif shared := re.fullmatch(
            r"then +(?:with e of ARGV (\d+): )?events, outbox and index of the partition(?:;.*)?",
            text,
        ):
            assert not held or int(shared[1]) == held, f"{entry}: two arguments name keys"
            most += 3
            kinds += SHARED
        elif many := re.fullmatch(r"1\.\.n +records of one partition \(n = 1\.\.(\d+)\)", text):
            least, most, paths = 4, int(many[1]), int(many[1])
            kinds.append("record")
        elif text.startswith("then   for every number in ARGV 4:"):
            most += 2 * paths
            kinds.append("hold")
        elif re.fullmatch(r"(n \+ 1|2) +operation id; only with ARGV \d+", text):
            most += 1
            kinds.append("operation id")
        elif many := re.fullmatch(r"1\.\. everything to remove: (.*); at most (\d+)", text):
            least, most = 1, most + int(many[2])
            kinds += ["record", "meta", "hold", "operation id", "end of the hold", "API key"]
            kinds += ["top-ups"]
            assert many[1] == "record, meta, holds, operation ids, ends of holds, API keys, top-ups"
        else:
            single = re.fullmatch(r"1 (record|meta|catalog)", text)
            assert single, f"{entry}: unreadable key {text!r}"
            least, most = least + 1, most + 1
            kinds.append(single[1])
    behind = [kind for kind in kinds if kind not in SHARED]
    assert behind + list(SHARED) == kinds or behind == kinds, f"{entry}: these three come last"
    assert "hold" not in behind or behind[-1] == "hold" or not held, f"{entry}: holds come before"
    return least, most, held, tuple(dict.fromkeys(kinds))


def _arguments(entry: str, lines: list[str]) -> tuple[tuple[str, ...], bool, int]:
    """Names by position, whether they repeat, and how many there may be."""
    if _plain(lines) == "none":
        return (), False, 0
    names: dict[int, str] = {}
    most = 0
    for line in lines:
        item = _ITEM.match(line)
        if not item:
            assert line.startswith("--          "), f"{entry}: unreadable argument {line!r}"
            continue
        if same := re.match(r"1\.\.(\d+) +as consume", item[1]):
            names |= dict(enumerate(header("consume").arguments[: int(same[1])], 1))
            continue
        single = re.match(r"(\d+) ([a-z]+)(?: {2,}|$)", item[1])
        several = re.findall(r"(?:^|, )(\d+) ([a-z]+)(?=[,:])", item[1])
        for number, name in [single.groups()] if single else several:
            names[int(number)] = name
        if more := re.search(r"\.\.\. up to (\d+) pairs", item[1]):
            most = 2 * int(more[1])
    assert sorted(names) == list(range(1, len(names) + 1)), f"{entry}: arguments {names}"
    listed = tuple(names[i] for i in sorted(names))
    if most:
        assert listed[:2] == listed[2:], f"{entry}: pairs are written out twice"
        return listed[:2], True, most
    return listed, False, len(listed)


def _statuses(returns: str) -> frozenset[int]:
    """The status bytes that an answer may begin with."""
    if without := re.match(r"as consume,? without (\d(?: and \d)*)", returns):
        return header("consume").statuses - {int(n) for n in without[1].split(" and ")}
    if besides := re.match(
        r"as (consume|report);(?: 1 replayed .*;)? besides (\d) [a-z]+", returns
    ):
        return header(besides[1]).statuses | {int(besides[2])}
    if returns.startswith("as consume"):
        return header("consume").statuses
    if returns.startswith(("a status: ", "status ", "a string; its first byte is the status:")):
        return frozenset(int(n) for n in re.findall(r"(?:^|[ ,])([0-8]) [a-z]+", returns))
    assert re.match(r"1 if |how many", returns), returns
    return frozenset()


@cache
def header(entry: str) -> Header:
    text = (lua_root() / f"{entry}.lua").read_text(encoding="utf-8")
    sentence, found = _sections(entry, text)
    missing = {"KEYS", "ARGV", "RETURNS", "WRITES", "@needs"} - set(found)
    assert not missing, f"{entry}: {missing} is missing"
    least, most, held, kinds = _keys(entry, found["KEYS"])
    arguments, repeated, most_arguments = _arguments(entry, found["ARGV"])
    returns = _plain(found["RETURNS"])
    assert not held or arguments[held - 1] == "extra", f"{entry}: ARGV {held} is not extra"
    return Header(
        entry,
        sentence,
        least,
        most,
        any("levels above" in line for line in found["KEYS"]),
        held,
        kinds,
        arguments,
        repeated,
        most_arguments,
        returns,
        _statuses(returns),
        _plain(found["WRITES"]),
        tuple(_plain(found["@needs"]).split()),
        tuple(_plain(found["@flags"]).split()) if "@flags" in found else (),
    )
