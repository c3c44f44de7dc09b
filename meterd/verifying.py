"""Verifying the secrets of API keys, as flows. What makes and changes keys is in `apikeys`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from meterd import secret as secrets
from meterd import store as stores
from meterd import wire
from meterd.administration import Administration
from meterd.errors import PolicyError, ScriptError, Unavailable
from meterd.flow import Flow
from meterd.forgetting import Forgetting
from meterd.keyentry import Entry, Pointer
from meterd.keys import Subject, display, partition_of
from meterd.keyshapes import KeyShape, Place, told, verification
from meterd.needs import Needs
from meterd.operations import new_op
from meterd.refusals import Refusals
from meterd.result import Code, Decision
from meterd.roles import Joining
from meterd.session import NOTHING, outcome_unknown
from meterd.shapes import Memo
from meterd.subscriptions import Subscriptions
from meterd.timespec import refuse
from meterd.transport import MaybeSent
from meterd.verification import KeyCode, Verification

NOT_FOUND: Final = Verification(KeyCode.NOT_FOUND)


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
        self._shapes: Memo[Hashable, KeyShape] = Memo()
        self._epoch: object = None

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
        return (yield from self._ask(secret, packed, op_id))

    def _ask(self, secret: str, packed: wire.Costs | None, op: str | None) -> Flow[Verification]:
        known = secrets.place_of(secret)
        if known == "":
            return NOT_FOUND
        sha256 = secrets.digest(secret)
        handle: str | bytes = known or sha256
        place = self._memo.get(handle)
        while True:
            remembered = place is not None
            if place is None:
                place = yield from self._find(known, sha256)
                if place is None:
                    return NOT_FOUND
                self._memo.put(handle, place)
            found = yield from self._verify(place, sha256, packed, op)
            if found is not None:
                return found
            self._memo.drop(handle)
            if known or not remembered:
                return NOT_FOUND
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
        self,
        place: Place,
        sha256: bytes,
        packed: wire.Costs | None,
        op: str | None,
        *,
        given: Any = NOTHING,
        deadline: float | None = None,
    ) -> Flow[Verification | None]:
        """None: there is no such key, or this is not its secret. `given`: as in `decide`."""
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

        if deadline is None:
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
            given=given,
        )
        if reply[0] == wire.UNKNOWN:
            return None
        try:
            about = told(reply[wire.end_of(reply) :])
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ScriptError(f"keys_verify: unexpected reply {reply[:80]!r}") from error
        code, decision = reply[1 if reply[0] == wire.DECIDED else 2], None
        if packed is None and code == 0:
            decision = Decision(True, Code.OK, None)
        elif packed is not None and code < wire.KEY_DISABLED:
            decision = operations.decision("keys_verify", path, role, reply, op)
        return self._noted(place, verification(place, code, about, decision))

    def _noted(self, place: Place, found: Verification) -> Verification:
        """A charge of this process may change what it remembers of refusals."""
        if self._refusals is not None and found.decision is not None:
            self._refusals.after(None, "verify", place.path.segments, place.join, found.decision)
        return found

    # By its shape --------------------------------------------------------------------------------

    def shape(self, secret: Any, costs: Any, amount: Any, auto: Any, now: float) -> KeyShape | None:
        """The shape of a verification that may go out at once, at the instant `now` of `monotonic`.

        None: the flow does it, and says what is wrong if something is.
        """
        store = self._store
        if store.first_sights is not self._epoch:
            self._shapes.clear()
            self._epoch = store.first_sights
        if (
            not store.ready
            or now - store.looked > stores.REFRESH_SECONDS
            or not self._session.functions
            or secret.__class__ is not str
            or amount.__class__ is not int
            or auto.__class__ is not bool
        ):
            return None
        given = costs
        if costs.__class__ is dict:
            if any(value.__class__ is not int for value in costs.values()):
                return None  # equal is not enough: True equals 1 and is no amount
            given = tuple(costs.items())
        elif costs is not None and costs.__class__ is not str:
            return None
        sha256 = secrets.digest(secret)
        key = (sha256, given, amount, auto)
        return self._shapes.get(key) or self._pack(key, secret, costs)

    def _pack(self, key: tuple[Any, ...], secret: str, costs: Any) -> KeyShape | None:
        sha256, _, amount, auto = key
        known = secrets.place_of(secret)
        handle: str | bytes = known or sha256
        place = None if known == "" else self._memo.get(handle)
        if place is None:
            return None
        epoch, store, join = self._epoch, self._store, place.join
        try:
            packed = _asked(costs, amount, auto)
            like = Joining(store, join)
            first = like.first()
        except PolicyError:
            return None  # the flow says so
        if self._operations.brings_something(place.path, like):
            return None
        if first is not None and not store.keeps(first):
            return None
        names, amounts = (b"", b"") if packed is None else (packed.joined, packed.amounts)
        head, tail = wire.around_now(
            self._session.function("keys_verify"),
            (*place.path.keys, place.entry),
            (like.context(), names, amounts, b"", b"", sha256),
        )
        seconds = self._session.timeout
        if packed is None and seconds > 0.02:
            seconds /= 2  # the rest is for another try
        shape = KeyShape(
            key, place, sha256, handle, packed, lambda: Joining(store, join), seconds, head, tail
        )
        if epoch is store.first_sights:
            self._shapes.put(key, shape)
        return shape

    def answered(self, shape: KeyShape, reply: Any) -> Verification | None:
        """What a plain reply to a shape says."""
        found = shape.verified(reply)
        return None if found is None else self._noted(shape.place, found)

    def resume(
        self, shape: KeyShape, secret: str, given: Any, deadline: float
    ) -> Flow[Verification]:
        """Goes on where a packed verification has led to something else than a plain answer."""
        self._shapes.drop(shape.key)
        packed = shape.charges
        if isinstance(given, MaybeSent) and packed is not None:
            raise outcome_unknown("keys_verify", None, given) from given
        found = yield from self._verify(
            shape.place, shape.sha256, packed, None, given=given, deadline=deadline
        )
        if found is not None:
            return found
        self._memo.drop(shape.handle)
        if isinstance(shape.handle, str):
            return NOT_FOUND
        # An imported secret may belong to another key by now.
        return (yield from self._ask(secret, packed, None))

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
