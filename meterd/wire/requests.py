"""What goes to the scripts: cost names and amounts, ids, context, and whole commands."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack
from hiredis import pack_command

from meterd import policy_checks as checks
from meterd.errors import PolicyError
from meterd.timespec import shown

MAX_AMOUNT = 10**15
MAX_OP_BYTES = 128
_ONE = struct.pack("<d", 1)
AUTO = "+"  # among cost names: the automatic amounts of limits that no other name reaches


class Costs(NamedTuple):
    """Cost names and amounts, as they travel."""

    names: tuple[str, ...]
    joined: bytes
    amounts: bytes
    values: tuple[int, ...]


@lru_cache(maxsize=1024)
def _checked_name(name: str) -> bytes:
    return checks.name(name, "costs").encode()


def check_amount(amount: object, what: str = "amount") -> int:
    """A plain integer, 0 .. 10**15; anything else is a `PolicyError`."""
    if type(amount) is not int:
        raise PolicyError(
            f"{what}: {shown(amount)} is not a plain integer; allowed: 0 to 10**15, "
            "so charge the smallest unit you bill"
        )
    if not 0 <= amount <= MAX_AMOUNT:
        raise PolicyError(f"{what}: {amount} is out of range; allowed: 0 to 10**15")
    return amount


def encode_costs(costs: str | Mapping[str, int], amount: int = 1) -> Costs:
    """A cost name, or a mapping of cost names to amounts (then `amount` has to stay 1)."""
    if isinstance(costs, str):
        raw = _checked_name(costs)
        if amount == 1 and type(amount) is int:
            return Costs((costs,), raw, _ONE, (1,))
        value = check_amount(amount, f"amount of {costs!r}")
        return Costs((costs,), raw, struct.pack("<d", value), (value,))
    if not isinstance(costs, Mapping):
        raise PolicyError(
            f"costs: {shown(costs)} is neither a cost name nor a mapping of cost names to amounts"
        )
    if not costs:
        raise PolicyError("costs: an empty mapping charges nothing; name at least one cost")
    if len(costs) > 64:
        raise PolicyError(f"costs: {len(costs)} names; allowed: at most 64")
    if amount != 1 or type(amount) is not int:
        raise PolicyError(
            f"amount: {shown(amount)} beside a mapping of costs; put the amounts into the mapping"
        )
    names = tuple(costs)
    joined = b",".join([_checked_name(name) for name in names])
    values = tuple([check_amount(value, f"amount of {name!r}") for name, value in costs.items()])
    return Costs(names, joined, struct.pack(f"<{len(values)}d", *values), values)


def with_auto(costs: Costs | None, amount: int = 1) -> Costs:
    """Beside `costs`, so many times every automatic amount of limits that they do not reach."""
    packed = struct.pack("<d", amount)
    if costs is None:
        return Costs((AUTO,), AUTO.encode(), packed, (amount,))
    if len(costs.names) > 63:
        raise PolicyError(f"costs: {len(costs.names)} names; allowed: at most 63 beside auto=True")
    return Costs(
        (*costs.names, AUTO),
        costs.joined + b"," + AUTO.encode(),
        costs.amounts + packed,
        (*costs.values, amount),
    )


def check_op(op: object) -> str:
    """Any text up to 128 bytes of UTF-8."""
    return _check_id(op, "op", "an operation id; allowed: text, or True for a new one")


def check_hold_id(hold_id: object) -> str:
    """As an operation id: any text up to 128 bytes of UTF-8."""
    return _check_id(hold_id, "hold_id", "the id of a hold")


def _check_id(given: object, what: str, allowed: str) -> str:
    if not isinstance(given, str) or not given:
        raise PolicyError(f"{what}: {shown(given)} is not {allowed}")
    try:
        size = len(given.encode())
    except UnicodeEncodeError as error:
        raise PolicyError(f"{what}: {given!r} is not valid Unicode text") from error
    if size > MAX_OP_BYTES:
        raise PolicyError(f"{what}: {size} bytes; allowed: at most {MAX_OP_BYTES}")
    return given


def digest(*parts: object) -> bytes:
    """What makes two requests the same, as 16 bytes."""
    return blake2b(msgpack.packb(parts), digest_size=16).digest()


def op_argument(request: bytes, retention_ms: int) -> bytes:
    return request + struct.pack("<Q", retention_ms)[:6]


def context(revision: int, first: bytes, mark: str = "") -> bytes:
    """What a script has to know of the catalog; `mark`: a group to join, or "!" for a limiter."""
    return struct.pack("<I", revision) + first + mark.encode()


def extra(
    policies: Mapping[bytes, bytes],
    moves: Mapping[tuple[int, bytes], tuple[bytes, bytes]],
    holds: Collection[int] = (),
    shared: bool = False,
    steps: Mapping[tuple[int, bytes, str], tuple[int, bytes, str]] | None = None,
) -> bytes:
    """What a repeated call brings along; empty if there is nothing.

    `holds`: the levels whose holds are declared, two keys each behind all others. `shared`: the
    partition's keys are, behind these. `steps`: level, policy and group of a change that is due ->
    when that was, the policy it leads to, its pools.
    """
    if not (policies or moves or holds or shared or steps):
        return b""
    value: dict[str, Any] = {}
    if policies:
        value["p"] = dict(policies)
    if moves:
        value["m"] = [[*where, *becomes] for where, becomes in moves.items()]
    if steps:
        value["c"] = [[*where, *becomes] for where, becomes in steps.items()]
    if holds:
        value["h"] = sorted(holds)
    if shared:
        value["e"] = 1
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def numbers(of: Collection[int]) -> bytes:
    """Numbers of records (from 0) as `harvest` takes them."""
    return b"".join([struct.pack("<H", n + 1) for n in of])


def command(*parts: bytes) -> bytes:
    """One packed RESP command."""
    return _pack(parts)


def script_call(head: Sequence[bytes], keys: Sequence[bytes], args: Sequence[bytes]) -> bytes:
    """FCALL name or EVALSHA digest, with its keys and arguments, packed."""
    return _pack((*head, b"%d" % len(keys), *keys, *args))


def bulk(part: bytes) -> bytes:
    """One argument inside a packed command."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


def around_now(
    head: Sequence[bytes], keys: Sequence[bytes], rest: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """A script's packed call but for its first argument, which stands between the two."""
    parts = (*head, b"%d" % len(keys), *keys)
    before = b"".join([bulk(part) for part in parts])
    tail = b"".join([bulk(part) for part in rest])
    return b"*%d\r\n" % (len(parts) + 1 + len(rest)) + before, tail


def _pack(parts: tuple[bytes, ...]) -> bytes:
    packed: bytes = pack_command(parts)  # type: ignore[arg-type]  # its stub knows one-tuples only
    return packed
