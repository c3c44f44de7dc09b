"""Calling the Lua entries directly, past everything that the client checks.

`World` is a small store that holds one of everything, `World.valid` a correct call of every entry
on it, `snapshot` the bytes of every key.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack
import redis
from redis.exceptions import ResponseError

from meterd import Bucket, Flag, Meter, Plan, Pool, Slots, secret, wire
from meterd.compile import read_policy
from meterd.keyentry import unpack_about
from meterd.keys import Path, partition_of
from meterd.scripts import ENTRIES, READ_ONLY, Scripts, own_scripts
from meterd.testing import ManualClock
from tests.support.servers import Server

NOW = 1_735_689_600_000
AS_THEY_ARE = wire.context(0, bytes(8))
LEVELS = Path(("a", "b", "c", "d"), (b"", b"", b"", b""), b"a", b"")

PLANS = (
    Plan(
        "free",
        includes=[
            Pool("credits", 100, "month", anchor="calendar", tz="Europe/Berlin", rollover=5),
            Bucket("api", 10, "1m", rates={"api": 1, "tokens": 2}),
            Bucket("burst", 5, "10s", algorithm="token", burst=8, rates={"api": 1}),
            Bucket("login", 3, "1h", algorithm="fixed"),
            Flag("sso"),
            Slots("jobs", 4),
        ],
        default=True,
    ),
    Plan("pro", includes=[Pool("credits", 1000, "month"), Bucket("api", 50, "1m")]),
    Plan("seats", includes=[Bucket("seats", 9, "1d"), Flag("audit")], group="addons"),
)


class Raw:
    """Every entry of `scripts` on one server, as a function and as a script."""

    def __init__(self, client: redis.Redis, scripts: Scripts | None = None) -> None:
        self.client = client
        self.scripts = scripts or own_scripts()
        client.execute_command("FUNCTION", "LOAD", "REPLACE", self.scripts.library.text)
        for entry in ENTRIES:
            client.script_load(self.scripts.script(entry).text)

    def call(
        self, entry: str, keys: Sequence[bytes], args: Sequence[bytes], *, how: str = "FCALL"
    ) -> Any:
        """The raw reply; an error reply as a value."""
        name = (
            self.scripts.script(entry).sha1
            if how.startswith("EVALSHA")
            else self.scripts.function_name(entry)
        )
        try:
            return self.client.execute_command(how, name, len(keys), *keys, *args)
        except ResponseError as error:
            return error


def snapshot(client: redis.Redis, match: str = "*") -> dict[bytes, tuple[Any, Any]]:
    """Key -> (DUMP, expiry) of everything in the database."""
    keys = sorted(client.scan_iter(match=match, count=1000))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.dump(key)
        pipeline.execute_command("PEXPIRETIME", key)
    found = pipeline.execute()
    return {key: (found[i * 2], found[i * 2 + 1]) for i, key in enumerate(keys)}


@functools.cache
def database(server: Server, number: int) -> redis.Redis:
    """One client for a database of the session's server that a test has to itself."""
    return server.client(db=number)


def restore(client: redis.Redis, wanted: dict[bytes, tuple[Any, Any]]) -> None:
    """Brings the database back to a snapshot."""
    now = snapshot(client)
    for key in now.keys() | wanted.keys():
        if now.get(key) != wanted.get(key):
            client.delete(key)
            if key in wanted:
                dump, expiry = wanted[key]
                client.restore(key, max(expiry, 0), dump, absttl=expiry > 0)


def assert_well_formed(entry: str, reply: Any) -> None:
    """A status reply that the client could read to its last byte."""
    if entry == "apply":
        assert isinstance(reply, int)
        return
    assert isinstance(reply, bytes)
    assert reply
    status = reply[0]
    assert status <= wire.DUE, reply
    if status == wire.NEED:
        assert len(reply) > 1
        assert (len(reply) - 1) % 8 == 0
    elif status == wire.STALE:
        assert wire.decode_stale(reply)
        assert (len(reply) - 1) % 13 == 0
    elif entry == "keys_verify" and status in (wire.DECIDED, wire.REPLAYED):
        if reply[1] not in (wire.KEY_DISABLED, wire.KEY_EXPIRED):
            wire.decode_answer(reply, LEVELS).limits()
        unpack_about(reply[wire.end_of(reply) :])
    elif status == wire.DECIDED or (
        status == wire.REPLAYED and entry not in ("subscribe", "release", "operation", "grant")
    ):
        answer = wire.decode_answer(reply, LEVELS)
        for state in answer.limits():
            figures = (state.limit, state.used, state.remaining, state.overage, state.applied)
            assert all(f is None or abs(f) < 2**53 for f in figures), state
        if entry == "usage":
            wire.decode_levels(reply, answer.end())
        else:
            assert answer.end() == len(reply)
    elif entry == "grant" and status in (wire.DONE, wire.REPLAYED):
        done = reply[1:] if status == wire.REPLAYED else reply
        assert done[0] == wire.DONE
        row = msgpack.unpackb(done[1:], raw=True)  # its texts may be any bytes here
        assert len(row) == 12
        assert row[2] == row[3] > 0
    elif entry == "void" and status == wire.DONE:
        assert struct.unpack("<d", reply[1:])[0] % 1 == 0
    elif status == wire.REPLAYED and entry == "operation":
        assert len(reply) > 7
    elif status == wire.REPLAYED:
        assert reply[1:] == bytes([wire.DONE])
    elif status == wire.DUE:
        assert wire.decode_due(reply)
    elif status == wire.UNKNOWN and entry == "refund_of":
        assert len(reply) == 1 or chr(reply[1]) in "crfhmxs"
    elif status == wire.HOLDS:
        assert sorted(set(reply[1:]) & set(range(5))) == list(reply[1:]) != []
    elif entry == "harvest":
        assert wire.decode_harvest(reply).entries >= 0
    elif entry == "forget":
        assert wire.removed(reply) is not None
    else:
        assert len(reply) == 1


def applied(entry: str, reply: Any) -> bool:
    """Whether the reply says that something was (or may have been) written."""
    if isinstance(reply, ResponseError):
        return False
    if isinstance(reply, int):
        return reply > 0
    if reply[0] == wire.DECIDED:
        return entry not in READ_ONLY and bool(reply[2])
    return bool(reply[0] == wire.DONE)


class World:
    """A root, two levels below it (one with an override and grants), a hold on all three of them,
    the end of another, meta, an operation id, a limiter."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client = client
        self.raw = Raw(client)
        self.clock = ManualClock(NOW)
        self.meter = Meter(url, plans=PLANS, prefix="w", clock=self.clock)
        meter = self.meter.open()
        meter.consume("acme", "credits", 7, op="first")
        meter.subscribe("acme/team", limits=[Bucket("api", 5, "1m"), Flag("sso")])
        meter.subscribe("acme/team/ana", "pro")
        meter.override("acme/team/ana", "credits", limit=3)
        meter.grant("acme/team/ana", "credits", 20, priority=10, op="gift")
        meter.grant("acme/team/ana", "extra", 5, expires="10m", source="trial", op="more")
        meter.set_meta("acme", {"note": [1]})
        meter.reserve("acme/team/ana", {"credits": 1, "api": 1, "jobs": 1}, ttl="1h", op="open")
        meter.reserve("acme", "jobs", op="over").commit()
        meter.consume("acme/team/ana", "login", op="past")
        meter.limiter("login", Bucket("ip", 5, "1m")).consume("::1")
        self.api_key = meter.keys.create("acme", limits=[Bucket("api", 5, "1m", auto=1)])
        self.keys = meter._keys
        self.path = self.keys.path("acme/team/ana")
        self.root, self.team, self.leaf = self.path.keys
        self.op, self.meta = self.keys.op(self.path, "new"), self.keys.meta(self.keys.path("acme"))
        self.end = self.keys.hold_end(self.path, "open")
        self.pairs = [key for level in (1, 2, 3) for key in self.keys.holds(self.path, level)]
        self.secret = secret.digest(str(self.api_key.secret))
        self.key_path = self.keys.path(self.api_key.subject)
        self.entry = self.keys.api_key(partition_of(self.key_path.root), self.api_key.id)
        self.shared = self.keys.shared(self.path)
        self.used_op = self.keys.op(self.path, "first")
        self.past = self.keys.op(self.path, "past")
        self.fresh = self.keys.path("acme2").keys[0]
        self.context = meter._store.context(None)
        stored = client.hgetall(self.keys.policies)
        self.policies = {name: blob for name, blob in stored.items() if len(name) == 8}
        first = read_policy(self.policies[self.context[4:12]])
        assert [name for _, name, _, _ in first.plans] == ["free"]
        self.first = first.name
        self.extra = extra(self.policies)
        self.held = extra(self.policies, held=(1, 2, 3))
        self.telling = extra(self.policies, shared=True)
        self.laid_out = {key: client.get(key)[2:10] for key in self.path.keys}
        self.whole = snapshot(client)

    def reset(self) -> None:
        restore(self.client, self.whole)

    def move(self, level: int = 1, *, old: bytes | None = None, to: bytes | None = None) -> bytes:
        """Extra that moves a record to the policy `to`, read by `old` (by default what it is)."""
        source = self.laid_out[self.path.keys[level - 1]]
        return extra(self.policies, [level, source, old or source, to or source])

    def valid(self, entry: str, *, op: bool = False) -> tuple[list[bytes], list[bytes]]:
        """Keys and arguments that the entry takes, and that change something where it writes."""
        now, context, bring = b"%d" % (NOW + 1000), self.context, self.extra
        op_argument = wire.op_argument(bytes(16), 86_400_000) if op else b""
        levels = [*self.path.keys, *([self.op] if op else [])]
        charge = [now, context, b"credits,api", struct.pack("<2d", 2, 1), op_argument, bring]
        above = [self.team, self.root]
        calls: dict[str, tuple[list[bytes], list[bytes]]] = {
            "usage": ([*levels, *self.pairs], [now, context, self.held]),
            "refund_of": (
                [*levels, self.past, self.end, *self.pairs],
                [now, context, op_argument, self.held],
            ),
            "operation": ([*self.path.keys, self.past, self.end], [now]),
            **self.of_holds(levels, charge, now, context),
            "subscribe": (
                [self.leaf, *([self.op] if op else []), *above],
                [
                    *(now, context, b"reset", b"", b"credits", op_argument, self.move_leaf()),
                    *(
                        b"period_end",
                        b"base",
                        b"pro",
                        b"",
                        self.laid_out[self.leaf],
                        self.leaving(),
                    ),
                ],
            ),
            "unsubscribe": (
                [self.leaf, *above],
                [now, context, self.move_leaf(), b"period_end", b"base", self.leaving()],
            ),
            "override": (
                [self.leaf, *above],
                [
                    now,
                    context,
                    b"credits",
                    b"9",
                    b"none",
                    b"",
                    b"%d" % (NOW + 5000),
                    b"",
                    b"",
                    bring,
                ],
            ),
            "adjust": ([self.leaf, *above], [now, context, b"credits", b"2", bring]),
            "grant": (
                [self.leaf, *([self.op] if op else []), *above],
                [
                    now,
                    context,
                    b"credits",
                    b"7",
                    b"",
                    b"%d" % (NOW + 9000),
                    b"60",
                    b"order 1",
                    b"new",
                    op_argument,
                    bring,
                ],
            ),
            "void": ([self.leaf, *above], [now, context, b"gift", bring]),
            **self.of_keys(charge, op=op),
            "set_meta": ([self.meta], [b"field", b'"value"']),
            "forget": ([self.leaf, *self.pairs[-2:], *self.shared], [now, self.telling, b""]),
            "harvest": ([*self.path.keys, *self.shared], [now, AS_THEY_ARE, bring, b""]),
            "apply": ([self.keys.catalog], [self.client.get(self.keys.catalog), b"new"]),
        }
        return calls.get(entry, (levels, charge))

    def of_holds(
        self, levels: list[bytes], charge: list[bytes], now: bytes, context: bytes
    ) -> dict[str, tuple[list[bytes], list[bytes]]]:
        """As `valid`, for the entries that make and end holds."""
        path, ended = self.path.keys, [*self.path.keys, self.end, *self.pairs]
        digest = wire.op_argument(bytes(16), 86_400_000)
        ids = [self.held, b"open"]
        return {
            "reserve": ([*levels, *self.pairs], [*charge[:5], self.held, b"new", b"60000"]),
            "commit": (ended, [now, context, b"credits,api", amounts(2, 1), digest, *ids]),
            "release": (ended, [now, context, digest, *ids]),
            "renew": ([*path, *self.pairs], [now, context, *ids, b"90000"]),
            "tally": (
                [*path, *self.pairs],
                [now, context, b"credits,api", amounts(1, 1), *ids, b""],
            ),
        }

    def of_keys(
        self, charge: list[bytes], *, op: bool
    ) -> dict[str, tuple[list[bytes], list[bytes]]]:
        """As `valid`, for the entries of API keys."""
        about = msgpack.packb({"o": ["acme"], "p": "mk"})
        free, pointer = self.entry[:-1] + b"-", self.keys.api_key_of(bytes(32))
        held = [key for level in (1, 2) for key in self.keys.holds(self.key_path, level)]
        path = [*self.key_path.keys, *([self.op] if op else []), self.entry, *held]
        bring = extra(self.policies, held=(1, 2))
        return {
            "keys_create": ([free], [charge[0], bytes(32), b"", about]),
            "keys_verify": (path, [*charge[:5], bring, self.secret]),
            "keys_update": ([self.entry], [b"disabled", b"none", b"=name", b"-"]),
            "keys_rotate": ([self.entry], [charge[0], bytes(32), b"1000"]),
            "keys_point": ([pointer], [b"", b"pointer"]),
        }

    def move_leaf(self) -> bytes:
        """Extra for the verbs that name one record: the leaf, moved to what it is."""
        source = self.laid_out[self.leaf]
        return extra(self.policies, [1, source, source, source])

    def leaving(self) -> bytes:
        """That the leaf leaves a plan with this pool."""
        packed: bytes = msgpack.packb({self.laid_out[self.leaf]: "credits"}, use_bin_type=False)
        return packed


@contextmanager
def world(server: Any) -> Iterator[World]:
    made = World(server.client(), server.url)
    yield made
    made.meter.close()


def extra(
    policies: dict[bytes, bytes],
    *moves: Sequence[Any],
    held: Sequence[int] = (),
    shared: bool = False,
) -> bytes:
    """What a call may bring along: policies, moves (level, from, old, to), levels with holds."""
    value = {"p": policies, "m": moves, **({"h": held} if held else {})}
    if shared:
        value["e"] = 1
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def amounts(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


_NAME = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def _is_name(text: bytes) -> bool:
    return 1 <= len(text) <= 64 and set(text) <= _NAME


def _is_instant(text: bytes) -> bool:
    return text == b"" or (text.isdigit() and len(text) <= 14)


def _is_whole(most: int, *words: bytes) -> Any:
    def test(text: bytes) -> bool:
        return text in words or (text.isdigit() and len(text) <= 16 and int(text) <= most)

    return test


def _is_amounts(text: bytes) -> bool:
    if not text or len(text) % 8 or len(text) > 512:
        return False
    values = struct.unpack(f"<{len(text) // 8}d", text)
    return all(math.isfinite(v) and 0 <= v <= 10**15 and v == math.floor(v) for v in values)


def _is_context(text: bytes) -> bool:
    rest = text[12:]
    if rest == b"!":
        return text[4:12] != bytes(8)
    return 12 <= len(text) <= 76 and (rest == b"" or _is_name(rest))


def _is_leaving(text: bytes) -> bool:
    if not text:
        return True
    reader = msgpack.Unpacker(raw=True, strict_map_key=False)
    reader.feed(text)
    try:
        found = reader.unpack()
    except (ValueError, msgpack.exceptions.UnpackException):
        return False
    if found == []:
        return True  # to Lua an empty map is that, too
    return isinstance(found, dict) and all(
        isinstance(key, bytes)
        and isinstance(names, bytes)
        and (names == b"" or all(map(_is_name, names.split(b","))))
        for key, names in found.items()
    )


def _is_about(text: bytes) -> bool:
    try:
        found = msgpack.unpackb(text, raw=True, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return False
    return isinstance(found, dict) and isinstance(found.get(b"o"), list | dict)


VALID: dict[str, Any] = {
    "now": _is_instant,
    "context": _is_context,
    "costs": lambda t: (
        t in (b"*", b"+")
        or (all(map(_is_name, t.removesuffix(b",+").split(b","))) and t.count(b",") < 64)
    ),
    "amounts": _is_amounts,
    "op": lambda t: t == b"" or (len(t) == 22 and t[16:] != bytes(6)),
    "extra": lambda _: True,  # what it must not be has a table of its own
    "change": lambda t: t in (b"keep", b"reset", b"prorate"),
    "when": lambda t: t == b"period_end" or _is_instant(t),
    "group": lambda t: t == b"" or _is_name(t),
    "plan": _is_name,
    "definition": lambda t: len(t) in (0, 8),
    "before": lambda t: len(t) in (0, 8),
    "leaving": _is_leaving,
    "anchor": _is_instant,
    "pools": lambda t: t == b"" or all(map(_is_name, t.split(b","))),
    "name": _is_name,
    "limit": _is_whole(10**15, b"", b"none"),
    "overage": _is_whole(10**15, b"", b"none"),
    "burst": _is_whole(10**12, b""),
    "expires": _is_instant,
    "clear": lambda t: t in (b"", b"1"),
    "known": lambda t: t in (b"", b"1"),
    "used": _is_whole(10**15),
    "amount": lambda t: _is_whole(10**15)(t) and int(t) > 0,
    "starts": _is_instant,
    "priority": _is_whole(100),
    "source": lambda t: len(t) <= 128,
    "id": lambda t: 1 <= len(t) <= 128,
    "field": bool,
    "value": lambda _: True,
    "expected": lambda _: True,
    "catalog": bool,
    "sha": lambda t: len(t) == 32,
    "until": lambda t: t == b"none" or _is_instant(t),
    "about": _is_about,
    "state": lambda t: t in (b"", b"enabled", b"disabled", b"revoked"),
    "label": lambda t: t in (b"", b"-") or (t[:1] == b"=" and len(t) > 1),
    "notes": lambda t: t in (b"", b"-") or (t[:1] == b"=" and len(t) > 1),
    "overlap": lambda t: t.isdigit() and len(t) <= 14,
    "pointer": lambda _: True,
    "hold": lambda t: 1 <= len(t) <= 128,
    "held": lambda t: (
        len(t) % 2 == 0 and bytes(2) not in {t[i : i + 2] for i in range(0, len(t), 2)}
    ),
    "blind": lambda t: t in (b"", b"1"),
    "ttl": lambda t: t.isdigit() and len(t) <= 11 and 1 <= int(t) <= 366 * 86_400_000,
}
"""Whether a text is allowed at all as an argument of that name, by itself."""
# Where it is otherwise.
_EMPTY = {
    ("commit", "costs"), ("commit", "amounts"), ("tally", "ttl"),
    ("keys_verify", "costs"), ("keys_verify", "amounts"),
}  # fmt: skip
_NEVER_EMPTY = {("commit", "op"), ("release", "op")}
_NOT_NONE = {("keys_create", "until")}


def is_valid(entry: str, name: str, text: bytes) -> bool:
    """As `VALID`, for this entry."""
    if text == b"" and (entry, name) in _EMPTY | _NEVER_EMPTY:
        return (entry, name) in _EMPTY
    if text == b"none" and (entry, name) in _NOT_NONE:
        return False
    return bool(VALID[name](text))


def pairs(names: Sequence[str], count: int) -> list[str]:
    """Argument names by position, where names repeat."""
    return list(itertools.islice(itertools.cycle(names), count)) if names else []
