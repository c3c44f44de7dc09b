"""What is stored of an operation: its note, how long it stays, what came before notes were kept."""

from __future__ import annotations

import msgpack
import pytest
import redis

from meterd import Meter, OpNotFound, Plan, Pool, ScriptError
from meterd.testing import ManualClock
from tests.engine.conftest import Make

PLAN = Plan("p", default=True, includes=[Pool("credits", 10, overage=90), Pool("seats", 5)])


def op_key(meter: Meter, op: str, subject: str = "acme") -> bytes:
    return meter._keys.op(meter._keys.path(subject), op)


def note(value: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Sources, path below the root, cost names, amounts, verb."""
    lengths = value[-9:-1]
    sizes = [
        int.from_bytes(lengths[:3], "little"),
        int.from_bytes(lengths[3:5], "little"),
        int.from_bytes(lengths[5:7], "little"),
        8 * lengths[7],
    ]
    at, parts = len(value) - 9 - sum(sizes), []
    for size in sizes:
        parts.append(value[at : at + size])
        at += size
    return parts[0], parts[1], parts[2], parts[3], value[-1:]


def test_a_plain_charge_and_the_long_way_keep_the_same(make: Make, client: redis.Redis) -> None:
    meter = make([PLAN], clock=ManualClock())
    for number in range(12):  # the first ones take the long way
        meter.consume("acme", {"seats": 0, "credits": 0}, op=f"nothing-{number}")
        meter.report("globex", "seats", op=f"r{number}")
        meter.refund("globex", "seats")
        meter.consume("initech/a", "seats", op=f"c{number}")
        meter.refund("initech/a", "seats")
    notes = {note(client.get(op_key(meter, f"r{n}", "globex"))) for n in range(12)}
    assert [(x[0], x[1], x[2], x[4]) for x in notes] == [(b"", b"", b"seats", b"r")]
    notes = {note(client.get(op_key(meter, f"c{n}", "initech"))) for n in range(12)}
    assert [(x[0], x[1], x[2], x[4]) for x in notes] == [(b"", b"/a", b"seats", b"c")]


def test_only_what_the_answer_does_not_say_is_kept(make: Make, client: redis.Redis) -> None:
    meter = make([PLAN], clock=ManualClock())
    meter.consume("acme", {"credits": 12, "seats": 1}, op="x")
    assert msgpack.unpackb(note(client.get(op_key(meter, "x")))[0]) == [[1, 12, -1, 2]]
    meter.refund("acme", of="x")
    hold = meter.reserve("acme", {"credits": 12, "seats": 1}, ttl="1h")
    hold.commit({"credits": 15})
    value = client.get(meter._keys.hold_end(meter._keys.path("acme"), hold.id))
    start = meter.usage("acme")["credits"].resets_at_ms
    assert start is None  # a pool that never resets began with its record
    (kept, beyond, seats) = msgpack.unpackb(note(value)[0])
    assert (kept[:2], kept[3]) == ([1, 12], 2)
    assert beyond == [1, 3, -1, 3]
    assert seats == [2, 1, kept[2], 0]


def test_a_refund_moves_no_expiry(make: Make, client: redis.Redis) -> None:
    meter = make([PLAN], op_retention="10m")
    meter.consume("acme", "credits", op="x")
    meter.refund("acme", of="x", op="back")
    assert 590_000 < client.pttl(op_key(meter, "back")) <= 600_000
    meter.consume("acme", "credits", op="y")
    before = client.pttl(op_key(meter, "y"))
    meter.refund("acme", of="y")
    assert 590_000 < client.pttl(op_key(meter, "y")) <= before


def test_what_was_stored_without_a_note_is_replayed_and_not_known(
    make: Make, client: redis.Redis
) -> None:
    meter = make([PLAN], clock=ManualClock())
    first = meter.consume("acme", "credits", 3, op="x")
    value = client.get(op_key(meter, "x"))
    client.set(op_key(meter, "x"), value[: len(value) - 9 - sum(map(len, note(value)[:4]))])
    again = meter.consume("acme", "credits", 3, op="x")
    assert again.replayed
    assert again.limits == first.limits
    for ask in (lambda: meter.operation("acme", "x"), lambda: meter.refund("acme", of="x")):
        with pytest.raises(OpNotFound):
            ask()


def test_what_is_damaged_is_refused(make: Make, client: redis.Redis) -> None:
    meter = make([PLAN], clock=ManualClock())
    meter.consume("acme", "credits", 3, op="x")
    value = client.get(op_key(meter, "x"))
    client.set(op_key(meter, "x"), value[:-9] + b"\xff\xff\xff" + value[-6:])
    for ask in (lambda: meter.operation("acme", "x"), lambda: meter.refund("acme", of="x")):
        with pytest.raises(ScriptError, match=r"lua/[a-z/_]+\.lua:\d+: .*METERD-LAYOUT"):
            ask()
    assert meter.usage("acme")["credits"].used == 3
