"""The shapes of plain calls: what a charge without an operation id sends, packed once.

Most calls of a process repeat others: the same subject, costs and amount. Their request is the same
byte for byte as long as the catalog is, so it is kept. A shape is found only for arguments that
were checked before and while nothing stands in the way of sending at once; whoever gets none goes
through the flow, which checks, prepares and explains. What a kept request brings back, if it is not
a plain answer, is handed to the flow as well (`Operations.resume`): it goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from meterd import store as stores
from meterd import wire
from meterd.errors import PolicyError
from meterd.flow import Flow
from meterd.keys import Path, Subject
from meterd.result import Decision
from meterd.roles import Joining, Pinned
from meterd.scripts import READ_ONLY
from meterd.timespec import Seconds
from meterd.transport import Request

if TYPE_CHECKING:  # they know each other
    from meterd.operations import Operations

Role = Joining | Pinned
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_KEPT = 8192  # of each generation; a shape takes about a kilobyte
_JUDGED = (b"\0\2\0", b"\0\3\0", b"\0\4\0")  # decided: refused, and why
_ALLOWED = b"\0\0\1"
_SHARED = wire.extra({}, {}, shared=True)


class Memo(Generic[K, V]):
    """A bounded memory in two generations: what was not used while one filled up is let go.

    Threads share it without a lock: each step is one operation of a dict, and what gets lost
    between two of them is only made again.
    """

    __slots__ = ("_old", "_size", "young")

    def __init__(self, size: int = _KEPT) -> None:
        self.young: dict[K, V] = {}  # where a hot path may look by itself
        self._old: dict[K, V] = {}
        self._size = size

    def get(self, key: K) -> V | None:
        found = self.young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        if len(self.young) >= self._size:
            self._old, self.young = self.young, {}
        self.young[key] = value

    def drop(self, key: K) -> None:
        self.young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        self.young, self._old = {}, {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)


class Shape:
    """One packed call. `seconds`: how long its first attempt may take; `role()`: a new role.

    `shared`: it names the partition's keys.
    """

    __slots__ = (
        "_head", "_tail", "costs", "key", "path", "request", "role", "seconds", "shared", "verb",
    )  # fmt: skip

    def __init__(
        self,
        key: Hashable,
        verb: str,
        path: Path,
        costs: wire.Costs,
        role: Callable[[], Role],
        seconds: float,
        head: bytes,
        tail: bytes,
        shared: bool,
    ) -> None:
        self.key = key
        self.verb = verb
        self.path = path
        self.costs = costs
        self.role = role
        self.seconds = seconds
        self._head = head
        self._tail = tail
        self.shared = shared
        self.request = self.at(b"")

    def at(self, now: bytes) -> Request:
        """The request, at an instant of a test clock."""
        return Request(self._head + wire.bulk(now) + self._tail, self.path.keys[0])

    def answer(self, reply: Any) -> Decision | None:
        """The decision, if that is what the reply plainly is."""
        if reply.__class__ is bytes and len(reply) >= wire.HEAD_BYTES:
            start = reply[:3]
            if start == _ALLOWED:
                return wire.decided(True, (wire.head_of, wire.limits_of, reply, self.path))
            if start in _JUDGED and self.verb != "report":
                return wire.decided(False, (wire.head_of, wire.limits_of, reply, self.path))
        return None


class Shapes:
    """Charges by the catalog: as shapes, or as flows.

    Shapes belong to what the store's catalog gives at first sight; another one begins anew.
    """

    scope: object = None  # what tells the refusals of one limiter from those of others

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._store = operations.store
        self._session = operations.session
        self._memo: Memo[Hashable, Shape] = Memo()
        self._epoch: object = None

    def flow(
        self,
        verb: str,
        subject: Any,
        costs: Any,
        amount: int,
        op: str | bool | None,
        join: str | None,
        wait: Seconds,
    ) -> Flow[Decision]:
        """A charge, however it is meant and whatever it takes."""
        return self._operations.charge(verb, subject, costs, amount, op, join, wait)

    def find(
        self,
        verb: str,
        subject: Any,
        costs: Any,
        amount: Any,
        join: Any,
        now: float,
        shared: bool = False,
    ) -> Shape | None:
        """The shape of a call that may go out at once, at the instant `now` of `monotonic`.

        `shared`: one that names the partition's keys unasked.

        Equal is not enough for a key: True and 1.0 equal 1, and are no amounts.
        """
        store = self._store
        if store.first_sights is not self._epoch:
            self._begin()
        if (
            not store.ready
            or now - store.looked > stores.REFRESH_SECONDS
            or not self._session.functions
        ):
            return None
        given = costs
        if costs.__class__ is not str:
            if costs.__class__ is not dict:
                return None
            for value in costs.values():
                if value.__class__ is not int:
                    return None
            costs = tuple(costs.items())
        if subject.__class__ is not str:
            if subject.__class__ is not tuple:
                return None
            for part in subject:
                if part.__class__ is not str:
                    return None
        if amount.__class__ is not int or (join is not None and join.__class__ is not str):
            return None
        key: tuple[Any, ...] = (verb, subject, costs, amount, join)
        if shared:
            key = (*key, "shared")
        found = self._memo.young.get(key)
        if found is None:
            found = self._memo.get(key) or self._make(key, given)
        return found

    def forget(self, shape: Shape) -> None:
        """The next call of this shape is packed anew."""
        self._memo.drop(shape.key)

    def _begin(self) -> None:
        self._memo.clear()
        self._epoch = self._store.first_sights

    def _make(self, key: tuple[Any, ...], given: Any) -> Shape | None:
        verb, subject, _, amount, join = key[:5]
        try:
            path, costs, role = self._parts(subject, given, amount, join)
        except PolicyError:
            return None  # the flow says so
        return self._pack(key, verb, path, costs, role, len(key) > 5)

    def _parts(
        self, subject: Subject, costs: Any, amount: int, join: str | None
    ) -> tuple[Path, wire.Costs, Callable[[], Role]]:
        """What a call is made of; raises `PolicyError`."""
        store = self._store
        store.sight(join)
        path = self._operations.keys.path(subject)
        return path, wire.encode_costs(costs, amount), lambda: Joining(store, join)

    def _pack(
        self,
        key: Hashable,
        verb: str,
        path: Path,
        costs: wire.Costs,
        role: Callable[[], Role],
        shared: bool,
    ) -> Shape | None:
        epoch, store, reads = self._epoch, self._store, verb in READ_ONLY
        like = role()
        first = like.first()
        if self._operations.brings_something(path, like):
            return None
        if not (first is None or reads or store.keeps(first)):
            return None
        keys, extra = path.keys, b""
        if shared:
            keys, extra = keys + self._operations.keys.shared(path), _SHARED
        head, tail = wire.around_now(
            self._session.function(verb),
            keys,
            (like.context(), costs.joined, costs.amounts, b"", extra),
        )
        seconds = self._session.timeout
        if reads and seconds > 0.02:
            seconds /= 2  # the rest is for another try
        shape = Shape(key, verb, path, costs, role, seconds, head, tail, shared)
        if epoch is store.first_sights:
            self._memo.put(key, shape)
        return shape
