"""`meter.keys`: the verbs about API keys, for `Meter` and for `AsyncMeter`."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from meterd.apikeys import UNCHANGED, ApiKeys, _Unchanged
from meterd.base import Costs, outcome_of
from meterd.flow import Flow
from meterd.keys import Subject
from meterd.pending import Pending
from meterd.policy import Limit
from meterd.timespec import Instant
from meterd.transport import MaybeSent, NotSent
from meterd.verification import ApiKey, Verification

if TYPE_CHECKING:
    from meterd.aiocaller import AsyncCaller
    from meterd.caller import Caller

T = TypeVar("T")
Listed = list[ApiKey]


class Keys:
    """API keys of one meter: made, verified, changed and revoked."""

    __slots__ = ("_flows", "_meter")

    def __init__(self, meter: Caller, flows: ApiKeys) -> None:
        self._meter = meter
        self._flows = flows

    def verify(
        self,
        secret: str,
        costs: Costs | None = None,
        amount: int = 1,
        *,
        auto: bool = True,
        op: str | bool | None = None,
    ) -> Verification:
        """Whether a secret is good; if so, the key's limits and its owner's are charged, or none.

        Charged are `costs`, and with `auto` every limit's own `auto=` amount that `costs` do not
        reach. `auto=False` charges only `costs`, and without any only looks whether the secret is
        good. `op`: as in `Meter.consume`. Raises as that does; `Unavailable` whatever a bucket's
        `on_error` says, for nobody is let in unseen.
        """
        if self._meter._observer is None:
            return self._verify(secret, costs, amount, auto, op)
        started = time.perf_counter()
        try:
            found = self._verify(secret, costs, amount, auto, op)
        except BaseException as error:
            subject = self._flows.known(secret) or ""
            self._meter._observe("keys.verify", subject, outcome_of(error), started)
            raise
        self._meter._observe("keys.verify", found.subject or "", str(found.code), started)
        return found

    def _verify(
        self, secret: str, costs: Costs | None, amount: int, auto: bool, op: str | bool | None
    ) -> Verification:
        """By its shape if that is known, else by its flow."""
        meter, flows, now = self._meter, self._flows, monotonic()
        shape = None
        if op is None and not meter._closed:
            shape = flows.shape(secret, costs, amount, auto, now)
        if shape is None:
            return meter._run(flows.verify(secret, costs, amount, auto, op))
        request = shape.request
        if meter._manual:
            request = shape.at(meter._operations.now_argument())
        try:
            reply = meter._transport.send(request, shape.seconds)
        except (NotSent, MaybeSent) as error:
            reply = error
        found = flows.answered(shape, reply)
        if found is None:
            found = meter._run(flows.resume(shape, secret, reply, now + meter._timeout))
        return found

    def create(
        self,
        owner: Subject,
        *,
        limits: Sequence[Limit] = (),
        join: str | None = None,
        name: str | None = None,
        expires: Instant | None = None,
        meta: Mapping[str, Any] | None = None,
        prefix: str = "mk",
        sha256: str | bytes | None = None,
    ) -> ApiKey:
        """A new key below `owner`, a path of 1 to 3 segments; its `secret` is shown this once.

        `limits`: of the key itself, beside its owner's. `join`: the plan that the owner's root
        joins if it holds none of that group. `expires`: an instant, or a duration from now. `meta`:
        JSON values. `sha256` (64 hexadecimal digits or 32 bytes) imports an existing secret, of
        any shape but ours; a second import of it is a `PolicyError`.
        """
        flow = self._flows.create(owner, limits, join, name, expires, meta, prefix, sha256)
        return self._meter._call("keys.create", owner, flow)

    def get(self, id: str) -> ApiKey | None:
        """A key by its id, None if there is none (any more)."""
        return self._meter._call("keys.get", "", self._flows.get(id))

    def list(self, owner: Subject) -> Listed:
        """The keys of an owner itself, the oldest first."""
        return self._meter._call("keys.list", owner, self._flows.listed(owner))

    def update(
        self,
        id: str,
        *,
        enabled: bool | _Unchanged = UNCHANGED,
        limits: Sequence[Limit] | _Unchanged = UNCHANGED,
        name: str | _Unchanged | None = UNCHANGED,
        expires: Instant | _Unchanged | None = UNCHANGED,
        meta: Mapping[str, Any] | _Unchanged | None = UNCHANGED,
    ) -> ApiKey:
        """Changes what is given and nothing else; None (`limits=()`) takes it away.

        Use goes on under other limits of the same name, as with `Meter.subscribe`. Raises
        `PolicyError` where there is no such key.
        """
        flow = self._flows.update(id, enabled, limits, name, expires, meta)
        return self._meter._call("keys.update", "", flow)

    def revoke(self, id: str) -> bool:
        """Ends a key for good; whether there was one. May be repeated where it failed."""
        return self._meter._call("keys.revoke", "", self._flows.revoke(id))

    def rotate(self, id: str, *, overlap: str | timedelta = "0s") -> ApiKey:
        """Another secret for the same key, its use and limits unchanged; shown this once.

        The secret it has stays good for `overlap`, the one before that no longer. Raises
        `PolicyError` where there is no such key.
        """
        return self._meter._call("keys.rotate", "", self._flows.rotate(id, overlap))


class AsyncKeys:
    """The same names, arguments and meanings as `Keys`, to be awaited."""

    __slots__ = ("_flows", "_meter")

    def __init__(self, meter: AsyncCaller, flows: ApiKeys) -> None:
        self._meter = meter
        self._flows = flows

    def verify(
        self,
        secret: str,
        costs: Costs | None = None,
        amount: int = 1,
        *,
        auto: bool = True,
        op: str | bool | None = None,
    ) -> Pending[Verification]:
        """See `Keys.verify`."""
        work = self._verify(secret, costs, amount, auto, op)
        if self._meter._observer is not None:
            work = self._observed(secret, work)
        return _PendingKey("verify", work)

    async def _verify(
        self, secret: str, costs: Costs | None, amount: int, auto: bool, op: str | bool | None
    ) -> Verification:
        """By its shape if that is known when it is awaited, else by its flow."""
        meter, flows, now = self._meter, self._flows, monotonic()
        shape = None
        if op is None and not meter._closed:
            shape = flows.shape(secret, costs, amount, auto, now)
        if shape is None:
            return await meter._run(flows.verify(secret, costs, amount, auto, op))
        request = shape.request
        if meter._manual:
            request = shape.at(meter._operations.now_argument())
        try:
            reply = await meter._transport.start(request, shape.seconds)
        except (NotSent, MaybeSent) as error:
            reply = error
        found = flows.answered(shape, reply)
        if found is None:
            found = await meter._run(flows.resume(shape, secret, reply, now + meter._timeout))
        return found

    async def _observed(self, secret: str, work: Coroutine[Any, Any, Verification]) -> Verification:
        started = time.perf_counter()
        try:
            found = await work
        except BaseException as error:
            subject = self._flows.known(secret) or ""
            self._meter._observe("keys.verify", subject, outcome_of(error), started)
            raise
        self._meter._observe("keys.verify", found.subject or "", str(found.code), started)
        return found

    def create(
        self,
        owner: Subject,
        *,
        limits: Sequence[Limit] = (),
        join: str | None = None,
        name: str | None = None,
        expires: Instant | None = None,
        meta: Mapping[str, Any] | None = None,
        prefix: str = "mk",
        sha256: str | bytes | None = None,
    ) -> Pending[ApiKey]:
        """See `Keys.create`."""
        flow = self._flows.create(owner, limits, join, name, expires, meta, prefix, sha256)
        return self._pending("create", owner, flow)

    def get(self, id: str) -> Pending[ApiKey | None]:
        """See `Keys.get`."""
        return self._pending("get", "", self._flows.get(id))

    def list(self, owner: Subject) -> Pending[Listed]:
        """See `Keys.list`."""
        return self._pending("list", owner, self._flows.listed(owner))

    def update(
        self,
        id: str,
        *,
        enabled: bool | _Unchanged = UNCHANGED,
        limits: Sequence[Limit] | _Unchanged = UNCHANGED,
        name: str | _Unchanged | None = UNCHANGED,
        expires: Instant | _Unchanged | None = UNCHANGED,
        meta: Mapping[str, Any] | _Unchanged | None = UNCHANGED,
    ) -> Pending[ApiKey]:
        """See `Keys.update`."""
        flow = self._flows.update(id, enabled, limits, name, expires, meta)
        return self._pending("update", "", flow)

    def revoke(self, id: str) -> Pending[bool]:
        """See `Keys.revoke`."""
        return self._pending("revoke", "", self._flows.revoke(id))

    def rotate(self, id: str, *, overlap: str | timedelta = "0s") -> Pending[ApiKey]:
        """See `Keys.rotate`."""
        return self._pending("rotate", "", self._flows.rotate(id, overlap))

    def _pending(self, verb: str, subject: Subject, flow: Flow[T]) -> Pending[T]:
        return _PendingKey(verb, self._meter._call(f"keys.{verb}", subject, flow))


class _PendingKey(Pending[T]):
    _owner = "meter.keys"
    __slots__ = ()
