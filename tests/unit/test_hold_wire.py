"""Holds on the wire: what the flows send, byte for byte, and what they make of replies."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from meterd import Bucket, Code, NotIncluded, OpConflict, OpNotFound, Plan, Pool, wire
from meterd.flow import Flow, Send
from meterd.holds import Holds, Reserved, ttl_ms
from meterd.keys import Keyspace
from meterd.operations import Operations
from meterd.scripts import Scripts
from meterd.session import Session
from meterd.store import Store

KEYS = Keyspace("m")
PATH = KEYS.path("acme/ana")
NOW = 1_735_689_600_000
PLAN = Plan("base", default=True, includes=[Pool("tokens", 100), Bucket("api", 5, "1m")])
RETENTION_MS = 86_400_000


class Server:
    """Plays the server's part in flows: keeps what was asked, answers what it was told to."""

    def __init__(self, *replies: bytes) -> None:
        session = Session(Scripts(), 1.0)
        self.store = Store(
            session, KEYS, plans=(PLAN,), apply=False, manual=True, accept_eviction=False
        )
        self.store.ready = True
        self.operations = Operations(
            session, self.store, KEYS, clock=lambda: NOW, op_retention_ms=RETENTION_MS
        )
        self.holds = Holds(self.operations)
        self.replies = list(replies)
        self.asked: list[list[bytes]] = []

    def run(self, flow: Flow[Any]) -> Any:
        try:
            step = next(flow)
            while True:
                assert isinstance(step, Send)
                words = parsed(step.request.packed)
                self.asked.append(words)
                step = flow.send(self.replies.pop(0) if words[0] == b"FCALL" else 1)
        except StopIteration as stop:
            return stop.value

    def calls(self) -> list[tuple[str, list[bytes], list[bytes]]]:
        """(entry, keys, arguments) of every script that was called."""
        found = []
        for words in self.asked:
            if words[0] == b"FCALL":
                count = int(words[2])
                entry = words[1].decode().split("_", 2)[2]
                found.append((entry, words[3 : 3 + count], words[3 + count :]))
        return found


def parsed(packed: bytes) -> list[bytes]:
    words, at = [], packed.index(b"\r\n") + 2
    while at < len(packed):
        end = packed.index(b"\r\n", at)
        size = int(packed[at + 1 : end])
        words.append(packed[end + 2 : end + 2 + size])
        at = end + 4 + size
    return words


def answer(status: int = wire.DECIDED, code: int = 0, allowed: int = 1) -> bytes:
    head = struct.pack("<BBBBdd", 0, code, allowed, 0, NOW, 93)
    return head if status == wire.DECIDED else bytes([status]) + head


def doubles(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


ALL_LEVELS = [
    b"m:{%b}:h:acme" % PATH.tag,
    b"m:{%b}:x:acme" % PATH.tag,
    b"m:{%b}:h:acme/ana" % PATH.tag,
    b"m:{%b}:x:acme/ana" % PATH.tag,
]
END = b"m:{%b}:e:acme/call-1" % PATH.tag


def extra_of(packed: bytes) -> dict[str, Any]:
    return dict(msgpack.unpackb(packed))


@pytest.mark.parametrize("op", [None, "call-1"])
def test_reserve(op: str | None) -> None:
    server = Server(answer())
    found: Reserved = server.run(
        server.holds.reserve(PATH.shown(2), {"tokens": 7, "api": 1}, 1, "10s", op, None, 0)
    )
    ((entry, keys, args),) = server.calls()
    assert entry == "reserve"
    op_key = [KEYS.op(PATH, "call-1")] if op else []
    assert keys == [*PATH.keys, *op_key, *ALL_LEVELS]
    now, context, costs, amounts, op_argument, extra, hold_id, ttl = args
    assert (now, costs, amounts, ttl) == (b"%d" % NOW, b"tokens,api", doubles(7, 1), b"10000")
    assert len(context) == 12
    assert extra_of(extra) == {"h": [1, 2]}
    assert hold_id.decode() == found.hold_id
    assert (found.decision.allowed, found.decision.balance, found.path) == (True, 93, PATH)
    if op:
        assert found.hold_id == found.decision.op == op
        assert len(op_argument) == 22
        assert op_argument[16:] == struct.pack("<Q", RETENTION_MS)[:6]
    else:
        assert op_argument == b""
        assert len(found.hold_id) == 32


def request_of(*asked: Any) -> bytes:
    server = Server(answer())
    server.run(server.holds.reserve(*asked, "call-1", None, 0))
    return server.calls()[0][2][4]


def test_what_makes_two_reserves_the_same() -> None:
    base = request_of("acme", {"tokens": 7, "api": 1}, 1, 10)
    assert request_of(("acme",), {"api": 1, "tokens": 7}, 1, "10s") == base
    for other in (
        ("acme/ana", {"tokens": 7, "api": 1}, 1, 10),
        ("acme", {"tokens": 8, "api": 1}, 1, 10),
        ("acme", "tokens", 7, 10),
        ("acme", {"tokens": 7, "api": 1}, 1, 10.001),
    ):
        assert request_of(*other) != base
    server = Server(answer())
    server.run(server.operations.charge("consume", "acme", "tokens", 7, "call-1", None, 0))
    assert server.calls()[0][2][4] != request_of("acme", "tokens", 7, 10)


def commit_request(costs: dict[str, int] | None, held: dict[str, int] | None) -> Sequence[bytes]:
    server = Server(answer(), answer())
    packed = None if costs is None else wire.encode_costs(costs)
    decision = server.run(server.holds.commit(PATH, "call-1", packed, held))
    assert (decision.code, decision.op) == (Code.OK, "call-1")
    ((entry, keys, args),) = server.calls()
    assert entry == "commit"
    assert keys == [*PATH.keys, END, *ALL_LEVELS]
    assert extra_of(args[5]) == {"h": [1, 2]}
    assert args[6:] == [b"call-1"]
    return args


def test_commit() -> None:
    as_held = commit_request(None, None)
    assert list(as_held[2:4]) == [b"", b""]
    assert len(as_held[4]) == 22
    spelt_out = commit_request(None, {"jobs": 1, "tokens": 7})
    assert list(spelt_out[2:4]) == [b"jobs,tokens", doubles(1, 7)]
    assert spelt_out[4] == as_held[4]  # it says the same
    elsewhere = commit_request({"tokens": 5, "image": 0}, None)
    assert list(elsewhere[2:4]) == [b"tokens,image", doubles(5, 0)]
    here = commit_request({"image": 0, "tokens": 5}, {"jobs": 1, "tokens": 7})
    assert list(here[2:4]) == [b"jobs,tokens,image", doubles(1, 5, 0)]
    assert here[4] == elsewhere[4] != as_held[4]


def test_what_comes_of_a_commit() -> None:
    server = Server(answer(wire.REPLAYED), b"\6", b"\4", answer(code=2, allowed=0))
    commit = lambda: server.run(server.holds.commit(PATH, "call-1", None))  # noqa: E731
    assert commit().replayed
    with pytest.raises(OpNotFound, match="no open hold 'call-1'"):
        commit()
    with pytest.raises(OpConflict, match="hold 'call-1' was already released, or committed"):
        commit()
    with pytest.raises(NotIncluded, match="nothing was recorded"):
        commit()


def test_release_renew_and_tally() -> None:
    server = Server(b"\5", b"\1\5", b"\5", b"\5", b"\5", b"\6", b"\6")
    holds = server.holds
    server.run(holds.release(PATH, "call-1"))
    server.run(holds.release(PATH, "call-1"))
    server.run(holds.renew(PATH, "call-1", 5000))
    costs = wire.encode_costs({"tokens": 3})
    server.run(holds.tally(PATH, "call-1", costs, None))
    server.run(holds.tally(PATH, "call-1", costs, 60_000))
    released, again, renewed, tallied, both = server.calls()
    assert released == again
    entry, keys, (_, _, op_argument, extra, hold_id) = released
    assert (entry, keys, hold_id) == ("release", [*PATH.keys, END, *ALL_LEVELS], b"call-1")
    assert len(op_argument) == 22
    assert extra_of(extra) == {"h": [1, 2]}
    entry, keys, (_, _, extra, *rest) = renewed
    assert (entry, keys, rest) == ("renew", [*PATH.keys, *ALL_LEVELS], [b"call-1", b"5000"])
    assert extra_of(extra) == {"h": [1, 2]}
    entry, keys, (_, _, names, amounts, extra, *rest) = tallied
    assert (entry, keys, rest) == ("tally", [*PATH.keys, *ALL_LEVELS], [b"call-1", b""])
    assert (names, amounts, extra_of(extra)) == (b"tokens", doubles(3), {"h": [1, 2]})
    assert both[2][-1] == b"60000"
    for flow in (holds.renew(PATH, "x", 1), holds.tally(PATH, "x", costs, None)):
        with pytest.raises(OpNotFound):
            server.run(flow)


def test_a_script_that_needs_holds_is_asked_again_with_them() -> None:
    server = Server(b"\7\2", b"\7\1", answer())
    server.run(server.operations.charge("consume", "acme/ana", "tokens", 1, "op", None, 0))
    keys = [*PATH.keys, KEYS.op(PATH, "op")]
    assert [call[1] for call in server.calls()] == [keys, keys + ALL_LEVELS[2:], keys + ALL_LEVELS]
    extras = [call[2][5] for call in server.calls()]
    assert extras[0] == b""
    assert [extra_of(one) for one in extras[1:]] == [{"h": [2]}, {"h": [1, 2]}]
    server.replies = [answer()]
    server.run(server.operations.charge("consume", "acme/ana", "tokens", 1, None, None, 0))
    assert server.calls()[-1][1] == list(PATH.keys)  # nothing is left of it


def test_extra() -> None:
    assert wire.extra({}, {}) == wire.extra({}, {}, set()) == b""
    assert extra_of(wire.extra({}, {}, {3, 1})) == {"h": [1, 3]}


def test_levels_with_holds() -> None:
    def level(number: int, more: dict[str, Any]) -> bytes:
        packed = msgpack.packb(more, use_bin_type=False) if more else b""
        return struct.pack("<B8sBH", number, b"12345678", 1, len(packed)) + packed

    holds = [["a/b", 5000.0, "jobs,tokens", [1, 7.0], [0, 3]], ["c", 6000, "x", [2], []]]
    reply = (
        level(1, {}) + level(2, {"h": holds, "n": 120, "o": {"x": {"l": 5}}}) + level(3, {"o": {}})
    )
    one, two, three = wire.decode_levels(reply, 0)
    assert (one.overrides, one.holds, one.open_holds) == ({}, (), 0)
    assert (two.overrides, two.open_holds) == ({"x": {"l": 5}}, 120)
    assert two.holds == (
        wire.HoldRow("a/b", 5000, {"jobs": 1, "tokens": 7}, {"jobs": 0, "tokens": 3}),
        wire.HoldRow("c", 6000, {"x": 2}, {}),
    )
    assert (three.level, three.holds) == (3, ())


def test_keys() -> None:
    path = KEYS.path(("a/b", "h"))
    assert KEYS.holds(path, 2) == (
        b"m:{%b}:h:a%%2Fb/h" % path.tag,
        b"m:{%b}:x:a%%2Fb/h" % path.tag,
    )
    assert KEYS.hold_end(path, "x/ü") == b"m:{%b}:e:a%%2Fb/x/\xc3\xbc" % path.tag


def test_ttl_in_ms() -> None:
    assert [ttl_ms(ttl) for ttl in (60, 0.5, "10m", 1e-3)] == [60_000, 500, 600_000, 1]
