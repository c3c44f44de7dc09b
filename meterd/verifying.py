"""Verifying the secrets of API keys, as flows. What makes and changes keys is in `apikeys`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from meterd import secret as secrets
from meterd import wire
from meterd.administration import Administration
from meterd.errors import PolicyError, ScriptError, Unavailable
from meterd.flow import Flow
from meterd.forgetting import Forgetting
from meterd.keyentry import Entry, Pointer, unpack_about, unpack_meta
from meterd.keys import Path, Subject, display, partition_of
from meterd.needs import Needs
from meterd.operations import new_op
from meterd.refusals import Refusals
from meterd.result import Code, Decision
from meterd.roles import Joining
from meterd.shapes import Memo
from meterd.subscriptions import Subscriptions
from meterd.timespec import refuse
from meterd.verification import KeyCode, Verification

_CODES: Final = {
    Code.OK: KeyCode.VALID,
    Code.NO_PLAN: KeyCode.NO_PLAN,
    Code.NOT_INCLUDED: KeyCode.NOT_INCLUDED,
    Code.USAGE_EXCEEDED: KeyCode.USAGE_EXCEEDED,
    Code.RATE_LIMITED: KeyCode.RATE_LIMITED,
}
_REFUSED: Final = {wire.KEY_DISABLED: KeyCode.DISABLED, wire.KEY_EXPIRED: KeyCode.EXPIRED}
_NOT_FOUND: Final = Verification(KeyCode.NOT_FOUND)


class Place(NamedTuple):
    """Where a key is, and what it charges: that never changes, so a process may remember it."""

    key_id: str
    entry: bytes
    path: Path
    join: str | None


class Verifying:
    """How keys are found and verified; what changes them is in `apikeys`."""

    def __init__(self, administration: Administration, refusals: Refusals | None = None) -> None:
        self._administration = administration
        self._operations = administration.operations
        self._store = administration.store
        self._keys = administration.keys
        self._session = administration.session
        self._subscriptions = Subscriptions(administration.operations)
        self._forgetting = Forgetting(administration)
        self._refusals = refusals  # what this process remembers, and what changes here may end
        self._memo: Memo[str | bytes, Place] = Memo()

    # Verifying -----------------------------------------------------------------------------------

    def verify(
        self,
        secret: str,
        costs: str | Mapping[str, int] | None,
        amount: int,
        auto: bool,
        op: str | bool | None,
    ) -> Flow[Verification]:
        """Whether a secret is good, and if so the charge."""
        if not isinstance(secret, str):
            raise PolicyError(f"verify: a secret is text, got {type(secret).__name__}")
        if type(auto) is not bool:
            raise refuse("auto", auto, "True or False")
        packed = _asked(costs, amount, auto)
        op_id = None if op is None or op is False else new_op() if op is True else wire.check_op(op)
        known = secrets.place_of(secret)
        if known == "":
            return _NOT_FOUND
        sha256 = secrets.digest(secret)
        handle: str | bytes = known or sha256
        place = self._memo.get(handle)
        while True:
            remembered = place is not None
            if place is None:
                place = yield from self._find(known, sha256)
                if place is None:
                    return _NOT_FOUND
                self._memo.put(handle, place)
            found = yield from self._verify(place, sha256, packed, op_id)
            if found is not None:
                return found
            self._memo.drop(handle)
            if known or not remembered:
                return _NOT_FOUND
            place = None  # an imported secret may belong to another key by now

    def known(self, secret: object) -> Subject | None:
        """Whom a secret charges, as far as this process knows."""
        if not isinstance(secret, str):
            return None
        place = self._memo.get(secrets.place_of(secret) or secrets.digest(secret))
        return display(place.path.segments) if place else None

    def _find(self, known: str | None, sha256: bytes) -> Flow[Place | None]:
        yield from self._store.prepare()
        if known:
            key_id = secrets.id_of(known)
            entry = yield from self._entry(known)
            if entry is None or sha256 not in (entry.sha256, entry.former):
                return None
            owner, join = entry.about.owner, entry.about.join
        else:
            raw = yield from self._get(self._keys.api_key_of(sha256))
            if raw is None:
                return None
            key_id, owner, join = Pointer.from_bytes(raw)
        return self._place(key_id, owner, join)

    def _place(self, key_id: str, owner: tuple[str, ...], join: str | None) -> Place:
        path = self._keys.path((*owner, key_id))
        return Place(key_id, self._keys.api_key(partition_of(path.root), key_id), path, join)

    def _verify(
        self, place: Place, sha256: bytes, packed: wire.Costs | None, op: str | None
    ) -> Flow[Verification | None]:
        """None: there is no such key, or this is not its secret."""
        operations, path = self._operations, place.path
        role = Joining(self._store, place.join)
        keys: Sequence[bytes] = (*path.keys, place.entry)
        names, amounts, op_argument = b"", b"", b""
        if packed is None:
            op = None  # there is nothing to apply
        else:
            names, amounts = packed.joined, packed.amounts
        if op is not None and packed is not None:
            keys = (*path.keys, self._keys.op(path, op), place.entry)
            pairs = sorted(zip(packed.names, packed.values, strict=True))
            request = wire.digest("verify", path.keys, pairs)
            op_argument = wire.op_argument(request, operations.op_retention_ms)

        def arguments(needs: Needs) -> list[bytes]:
            return [
                operations.now_argument(),
                role.context(),
                names,
                amounts,
                op_argument,
                needs.packed(),
                sha256,
            ]

        deadline = self._store.deadline()
        if deadline is None:
            deadline = yield from self._store.prepare()
        reply = yield from operations.settle(
            "keys_verify",
            path,
            keys,
            arguments,
            role,
            deadline=deadline,
            op=op,
            harmless=packed is None,
        )
        if reply[0] == wire.UNKNOWN:
            return None
        try:
            about = unpack_about(reply[wire.end_of(reply) :])
            refused = _REFUSED.get(reply[1]) if reply[0] == wire.DECIDED else None
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ScriptError(f"keys_verify: unexpected reply {reply[:80]!r}") from error
        decision, code = None, refused
        if packed is None and refused is None:
            decision = Decision(True, Code.OK, None)
        elif refused is None:
            decision = operations.decision("keys_verify", path, role, reply, op)
            if self._refusals is not None:
                self._refusals.after(None, "verify", path.segments, place.join, decision)
        if decision is not None:
            code = _CODES[decision.code]
        assert code is not None
        return Verification(
            code,
            place.key_id,
            display(path.segments),
            display(about.owner),
            about.name,
            unpack_meta(about.meta),
            decision,
        )

    # Asking --------------------------------------------------------------------------------------

    def _entry(self, where: str) -> Flow[Entry | None]:
        partition = secrets.partition_of_place(where)
        raw = yield from self._get(self._keys.api_key(partition, secrets.id_of(where)))
        return None if raw is None else Entry.from_bytes(raw)

    def _get(self, key: bytes) -> Flow[bytes | None]:
        found: bytes | None = yield from self._plain(key, b"GET", key)
        return found

    def _plain(self, key: bytes, *command: bytes) -> Flow[Any]:
        (reply,) = yield from self._session.plain(key, command)
        if isinstance(reply, ResponseError):
            raise Unavailable(f"keys: {command[0].decode()} failed: {reply}")
        return reply

    def _call(self, entry: str, key: bytes, args: Sequence[bytes]) -> Flow[int]:
        """The status that a script answers which may be repeated."""
        reply = yield from self._session.call(entry, [key], args, harmless=True)
        if not isinstance(reply, bytes) or len(reply) != 1:
            raise ScriptError(f"{entry}: unexpected reply {reply!r}")
        return reply[0]


def _asked(costs: Any, amount: int, auto: bool) -> wire.Costs | None:
    """What a verification charges; None: nothing."""
    if costs is None:
        if amount != 1 or type(amount) is not int:
            raise PolicyError("amount: without costs there is nothing to multiply; name a cost")
        return wire.with_auto(None) if auto else None
    packed = wire.encode_costs(costs, amount)
    return wire.with_auto(packed) if auto else packed
