"""Finds `lua/`, puts an entry and the libraries it needs together, and maps errors back to files.

Every entry `lua/<operation>.lua` names its libraries in an `@needs` line and its function flags in
an `@flags` line. On servers with Redis Functions all entries load as one library whose name carries
the digest of its text, so that versions of a rolling deploy live side by side; elsewhere each entry
becomes one script holding only what it needs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from meterd.errors import ScriptError

# In the order in which they build on one another.
LIBRARIES = (
    "base",
    "take",
    "once",
    "calendar",
    "event",
    "grants",
    "pool",
    "bucket",
    "slots",
    "policy",
    "implied",
    "request",
    "bill",
    "hold",
    "ledger",
    "partition",
    "change",
    "record",
    "open",
    "store",
    "crop",
    "op",
    "charge",
    "undo",
    "kinds",
    "threshold",
    "holdcode",
    "compile",
    "plain",
    "spend",
    "finish",
    "quick",
    "slow",
    "assign",
    "apikey",
)
ENTRIES = (
    "consume", "check", "report", "refund", "refund_of", "operation", "usage",
    "reserve", "commit", "release", "renew", "tally",
    "grant", "void", "harvest",
    "subscribe", "unsubscribe", "override", "adjust", "set_meta", "forget", "apply",
    "keys_create", "keys_verify", "keys_update", "keys_rotate", "keys_point",
)  # fmt: skip
# What only a function library is for, because it outlives a call; and what only a script is for.
_KEPT = frozenset({"kinds", "threshold", "holdcode", "compile", "plain", "quick"})
_ONCE = frozenset({"once", "slow"})
READ_ONLY = frozenset({"check", "usage", "operation"})


def lua_root() -> Path:
    """The folder of the Lua sources: the checkout's own if this is one, else the package's."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "lua"
    if (checkout / "lib" / "base.lua").is_file() and (package.parent / "pyproject.toml").is_file():
        return checkout
    shipped = package / "lua"
    if (shipped / "lib" / "base.lua").is_file():
        return shipped
    raise ScriptError("the Lua sources are missing from this installation; install meterd again")


def _marked(source: str, mark: str) -> list[str]:
    """The words behind a mark; lines that are indented below it go on."""
    found = re.search(rf"^-- @{mark} (.*(?:\n--  .*)*)$", source, re.MULTILINE)
    return found.group(1).replace("\n--", "").split() if found else []


class Line(NamedTuple):
    file: str
    number: int


class Program:
    """Lua text put together from files, remembering which line came from where."""

    def __init__(self, prelude: str = "") -> None:
        self._lines: list[str] = []
        self._origin: list[Line] = []
        if prelude:
            self.add(prelude, "prelude")

    def join(self, other: Program) -> None:
        self._lines += other._lines
        self._origin += other._origin

    def add(self, text: str, file: str) -> None:
        for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
            self._lines.append(line)
            self._origin.append(Line(file, number))

    @cached_property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    @cached_property
    def sha1(self) -> str:
        return hashlib.sha1(self.text.encode()).hexdigest()

    def locate(self, number: int) -> Line | None:
        """The file and line behind a line of the text, counted from 1."""
        return self._origin[number - 1] if 0 < number <= len(self._origin) else None


class Scripts:
    """The Lua sources of one folder, ready for a server with or without Functions.

    `prelude` is Lua text put in front, for a server that lacks `struct` and `cmsgpack`.
    """

    def __init__(self, root: Path | None = None, prelude: str = "") -> None:
        self._root = root or lua_root()
        self._prelude = prelude
        self._sources: dict[str, str] = {}
        self._scripts: dict[str, Program] = {}

    def _source(self, name: str) -> str:
        if name not in self._sources:
            self._sources[name] = (self._root / name).read_text(encoding="utf-8")
        return self._sources[name]

    def header(self, entry: str, mark: str) -> list[str]:
        """The words after `-- @mark` in an entry."""
        return _marked(self._source(f"{entry}.lua"), mark)

    def _add_libraries(self, program: Program, libraries: Iterable[str]) -> None:
        """Libraries as they build on one another.

        One that `@gives` names to those behind it stands in a function of its own. A script makes
        its closures with every call, and making one takes a walk over all locals of the same
        function that closures hold: in one long chunk that would be most of a call's time.
        """
        for library in libraries:
            source = self._source(f"lib/{library}.lua")
            given = ", ".join(_marked(source, "gives"))
            if given:
                program.add(f"local {given} = (function()", "library")
            program.add(source, f"lua/lib/{library}.lua")
            if given:
                program.add(f"return {given} end)()", "library")

    def _add_entry(self, program: Program, entry: str) -> None:
        program.add(self._source(f"{entry}.lua"), f"lua/{entry}.lua")

    @cached_property
    def _body(self) -> Program:
        """The function library but for its name."""
        program = Program(self._prelude)
        self._add_libraries(program, (name for name in LIBRARIES if name not in _ONCE))
        for entry in ENTRIES:
            self._add_entry(program, entry)
        return program

    @cached_property
    def digest(self) -> str:
        """Eight hex digits of the whole text: the version in the library's name."""
        return self._body.sha1[:8]

    @property
    def library_name(self) -> str:
        return f"meterd_{self.digest}"

    def function_name(self, entry: str) -> str:
        return f"meterd_{self.digest}_{entry}"

    @cached_property
    def library(self) -> Program:
        """Every entry as one function library, for FUNCTION LOAD."""
        program = Program()
        program.add(f"#!lua name={self.library_name}", "library")
        program.join(self._body)
        for entry in ENTRIES:
            flags = ", ".join(f"'{flag}'" for flag in self.header(entry, "flags"))
            program.add(
                f"redis.register_function{{function_name = '{self.function_name(entry)}', "
                f"flags = {{{flags}}},\n"
                f"callback = function(keys, args)\n"
                f"  if not call then bind() end\n"
                f"  return {entry}(keys, args)\n"
                f"end}}",
                "library",
            )
        return program

    def script(self, entry: str) -> Program:
        """One entry with just the libraries it needs, for EVALSHA.

        What `once` can answer is answered before the libraries behind it come to life.
        """
        if entry not in self._scripts:
            program = Program(self._prelude)
            needs = [name for name in self.header(entry, "needs") if name not in _KEPT]
            early = needs.index("once") + 1 if "once" in needs else 0
            self._add_libraries(program, needs[:early])
            if early:
                asked = {"check": "CHECK", "report": "REPORT"}.get(entry, "CHARGE")
                program.add(
                    "bind()\n"
                    f"local answer, values, now, special = plain.answer({asked}, KEYS, ARGV)\n"
                    "if answer then return answer end\n"
                    "function plain.answer() return nil, values, now, special end",
                    "script",
                )
            self._add_libraries(program, needs[early:])
            self._add_entry(program, entry)
            program.add(("" if early else "bind()\n") + f"return {entry}(KEYS, ARGV)", "script")
            self._scripts[entry] = program
        return self._scripts[entry]

    def explain(self, entry: str, message: str, *, functions: bool) -> str:
        """A server's error text with the place in our files, where the text names a line."""
        program = self.library if functions else self.script(entry)
        found = re.search(r"(?:user_script|user_function|\]):(\d+)", message)
        line = program.locate(int(found.group(1))) if found else None
        where = f"{line.file}:{line.number}: " if line else ""
        return f"{where}{message}"


@cache
def own_scripts() -> Scripts:
    """This installation's scripts, put together once in a process."""
    return Scripts()
