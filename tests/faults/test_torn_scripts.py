"""Each script is torn at each of its commands: what is stored is all of the call, or none of it.

The scripts run as they are, but for one wrapper around `redis.call` that counts down and then
fails, either instead of the command or right after it, and that tells the server's time from a key.
The reference is the same call left alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from meterd import Meter, ScriptError
from meterd.scripts import Scripts
from tests.faults.fault_tools import fresh_prefix, snapshot
from tests.faults.torn_cases import CASES, Case, World
from tests.support import servers
from tests.support.servers import Server

LEFT, TIME = "torn:left", "torn:time"

BOUND = "call = redis.call\n"
WRAPPER = f"""
  call = function(command, ...)
    if command == "TIME" then
      local ms = tonumber(redis.call("GET", "{TIME}"))
      return {{ string.format("%.0f", (ms - ms % 1000) / 1000), tostring(ms % 1000 * 1000) }}
    end
    local left = tonumber(redis.call("GET", "{LEFT}") or "0")
    if left == 0 then
      return redis.call(command, ...)
    end
    local after = left < 0
    left = left + (after and 1 or -1)
    -- A script that may only read tears nothing.
    if redis.pcall("SET", "{LEFT}", left).err or left ~= 0 then
      return redis.call(command, ...)
    end
    redis.call("SET", "{LEFT}", "0")
    if after then
      redis.call(command, ...)
    end
    error("TORN " .. (after and "after " or "instead of ") .. command, 0)
  end
"""


class TornScripts(Scripts):
    """The product's scripts with the wrapper in place of `redis.call`."""

    def _source(self, name: str) -> str:
        text = super()._source(name)
        if name != "lib/base.lua":
            assert "redis.call" not in text.replace("no redis.call", ""), name
            return text
        assert text.count(BOUND) == 1
        return text.replace(BOUND, WRAPPER)


SCRIPTS = TornScripts()


class Bench:
    """One server and one prefix, under which every run starts from nothing."""

    def __init__(self, server: Server, functions: bool) -> None:
        self.server = server
        self.functions = functions
        self.prefix = fresh_prefix()  # the digests of operation ids depend on it
        self._made: list[Meter] = []

    def prepared(self, case: Case) -> World:
        for key in self.server.admin.scan_iter(match=f"{self.prefix}:*", count=1000):
            self.server.ask("DEL", key)
        meter = Meter(
            self.server.url,
            prefix=self.prefix,
            timeout=20,
            scripts=SCRIPTS,
            functions=self.functions,
        )
        self._made.append(meter)
        world = World(meter, lambda ms: self.server.ask("SET", TIME, ms))
        meter.open()
        for step in case.before:
            step(world)
        return world

    def state(self) -> dict[bytes, bytes]:
        found = snapshot(self.server, self.prefix)
        for key in list(found):
            if re.search(rb"\}:(events|outbox|due)$", key):
                # Told beside what is stored, by commands of their own.
                del found[key]
                continue
            if b"}:k:key_" in key:
                stored = self.server.binary.get(self.prefix.encode() + key)
                about = msgpack.unpackb(stored[84:], raw=True)
                found[key] = stored[:84] + repr(sorted(about.items())).encode()
            if b"}:m:" in key:
                # A Lua table has no order, so neither has a meta's map, nor that of an API key.
                fields = msgpack.unpackb(self.server.binary.get(self.prefix.encode() + key))
                found[key] = repr(sorted(fields.items())).encode()
        return found

    @contextlib.contextmanager
    def tearing(self, at: int, after: bool) -> Iterator[None]:
        self.server.ask("SET", LEFT, -at if after else at)
        try:
            yield
        finally:
            self.left = abs(int(self.server.ask("GET", LEFT)))
            self.server.ask("SET", LEFT, 0)

    def close(self) -> None:
        for meter in self._made:
            meter.close()
        self.server.ask("DEL", LEFT, TIME)


# Functions and EVALSHA in any case, the other servers in the long run.
SHORT = ["valkey-9.1", "redis-6.2"]


@pytest.fixture
def bench(matrix_server: Server) -> Iterator[Bench]:
    made = Bench(matrix_server, functions=matrix_server.name != "redis-6.2")
    yield made
    made.close()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "matrix_server",
    [
        pytest.param(name, marks=() if name in SHORT else pytest.mark.long)
        for name in servers.BINARIES
    ],
    indirect=True,
)
def test_all_or_nothing(bench: Bench, name: str) -> None:
    torn_at_all(bench, CASES[name])


def torn_at_all(bench: Bench, case: Case) -> None:
    world = bench.prepared(case)
    before = bench.state()
    case.torn(world)
    after = bench.state()
    assert before != after
    for late in (False, True):
        ends: list[str] = []
        while "untouched" not in ends:
            ends.append(torn_once(bench, case, len(ends) + 1, late, before, after))
        assert len(ends) > 1
        assert ends[-2 if late else 0] == ("after" if late else "before"), ends


def torn_once(
    bench: Bench,
    case: Case,
    at: int,
    late: bool,
    before: dict[bytes, bytes],
    after: dict[bytes, bytes],
) -> str:
    world = bench.prepared(case)
    assert bench.state() == before, "the same steps lead to the same bytes"
    with bench.tearing(at, late):
        error = failure(case, world)
    found = bench.state()
    if bench.left:
        assert error is None
        assert found == after
        return "untouched"
    assert "TORN" in str(error)
    if case.resumable:
        assert found.items() <= before.items()
    else:
        assert found in (before, after), (at, error, sorted(set(found) ^ set(before)))
    if case.repeatable or found == before:
        case.torn(world)
        assert bench.state() == after
    return "before" if found == before else "after" if found == after else "partly"


def failure(case: Case, world: World) -> Any:
    try:
        case.torn(world)
    except ScriptError as error:
        return error
    return None
