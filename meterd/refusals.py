"""Refusals remembered in this process, so that the same call need not be sent again and again.

The rule. A refusal stands until the first instant at which one of its limits would let the call
through (its `retry_after`) or begins anew, and for as long as the user allows at most; all count
from before the call was sent, so memory never outlives the truth. Until then the same call, and one
of larger amounts, would be refused as well: what others spend only takes more away. So the answer
is never wrong, unless another process gives back, raises a limit, grants or changes plans, or an
override ends, a grant begins or ends or a change of plans comes, and then for no longer than
allowed. What this process itself changes is forgotten at once.

`allowed`, `code`, `refused` and every `retry_after` are those that the server would give, and so
are the figures of pools and fixed windows, as long as no other process spends. What flows back
meanwhile into a sliding window or a token bucket is not shown: their `used`, `remaining` and
`resets_at`, and a `balance` that rests on them, are of the refusal that is remembered; so is the
`resets_at` of a pool whose period has not begun, as a refused first sight begins none. A larger
amount gets the remembered answer too: its `retry_after` is when to ask again. It does so only where
its code is certain, that is where a pool refuses already or no pool is reached.

Calls with an operation id or `wait` always ask the server: the id may have been applied.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd import wire
from meterd.errors import PolicyError
from meterd.keys import Path, Subject
from meterd.result import Code, Decision
from meterd.timespec import duration_ms, refuse

if TYPE_CHECKING:
    from meterd.store import Store

RefusalCache = str | timedelta | Mapping[str, str | timedelta]
SIZE = 16_384  # refusals; when there are more, all are forgotten
_STRIPES = 1024
REMEMBERED = frozenset(("consume", "check"))
# What may let a call through that was refused before, or changes what a refusal shows.
FREEING = frozenset(
    (
        "refund", "commit", "release", "lease", "grant", "void",
        "subscribe", "unsubscribe", "override", "adjust", "forget", "reset",
    )
)  # fmt: skip


_new = Decision.__new__
_put_allowed = vars(Decision)["allowed"].__set__
_put_source = vars(Decision)["_source"].__set__


class Spans(NamedTuple):
    """How long a refusal may be remembered, in ms; 0: not at all."""

    buckets: int
    pools: int


def spans(value: Any) -> Spans | None:
    """What `refusal_cache=` means."""
    if value is None:
        return None
    allowed = 'a duration such as "1s", or {"buckets": "1s", "pools": "200ms"}'
    if not isinstance(value, Mapping):
        return Spans(duration_ms(value, field="refusal_cache"), 0)
    if not value or not set(value) <= {"buckets", "pools"}:
        raise refuse("refusal_cache", value, allowed)
    given = {
        name: duration_ms(span, field=f"refusal_cache: {name}") for name, span in value.items()
    }
    return Spans(given.get("buckets", 0), given.get("pools", 0))


class Refusal:
    """One refusal. `began`, `ends`: on the clock of the meter, in s (in ms on a test clock)."""

    __slots__ = ("amounts", "began", "ends", "limits", "manual", "now_ms", "path", "reply")

    def __init__(self, asked: Asked, decision: Decision, reply: bytes, path: Path) -> None:
        self.reply = reply
        self.path = path
        self.amounts = asked.amounts
        self.now_ms = wire.now_of(reply)
        self.began = self.ends = asked.at
        self.manual = asked.manual
        self.limits: frozenset[tuple[Subject, str]] = frozenset(
            [(state.subject, state.name) for state in decision.limits]
        )

    def lasts(self, life_ms: int, decision: Decision) -> None:
        """For so long from when it was asked for, but not beyond the first change by itself."""
        changes = [
            round(state.retry_after * 1000)
            for state in decision.refused
            if state.retry_after is not None
        ]
        changes += [
            state.resets_at_ms - self.now_ms
            for state in decision.limits
            if state.resets_at_ms is not None
        ]
        change = min(changes, default=life_ms)
        if self.manual:
            change += self.now_ms - int(self.began)  # the engine may be ahead of the clock
            self.ends = self.began + min(life_ms, change)
        else:
            self.ends = self.began + min(life_ms, change) / 1000


class Asked(NamedTuple):
    """A call that went to the server: where its refusal will be remembered."""

    root: object
    exact: tuple[Any, ...]
    least: tuple[Any, ...]
    amounts: tuple[int, ...]
    token: int
    at: float
    manual: bool


def head_of(at: float, refusal: Refusal) -> tuple[Code, int | None]:
    return wire.head_of(refusal.reply, refusal.path)


def limits_of(at: float, refusal: Refusal) -> Any:
    """As of then, but the waits are counted from `at`."""
    if refusal.manual:  # whatever the clock, the engine never goes back behind what it has seen
        now_ms = max(refusal.now_ms, int(at))
    else:
        now_ms = refusal.now_ms + int((at - refusal.began) * 1000)
    return wire.limits_at(refusal.reply, refusal.path, now_ms)


class Refusals:
    """Shared by threads without a lock: every step is one operation of a dict."""

    def __init__(self, given: Spans, store: Store, clock: Any) -> None:
        self._spans = given
        self._store = store
        self._clock = clock  # None: the server's, counted on with `monotonic`
        self._epoch: object = None
        self._latest = 0
        self._count = itertools.count(1)
        self._tokens = [0] * _STRIPES
        self._exact: dict[Any, Refusal] = {}
        self._least: dict[Any, Refusal] = {}
        self._roots: dict[object, dict[Any, Any]] = {}

    def known(
        self, scope: Any, subject: Any, costs: Any, amount: Any, join: Any
    ) -> Decision | None:
        """A remembered refusal of just this call, as fast as can be; there may be others."""
        if (
            costs.__class__ is str
            and amount.__class__ is int
            and self._store.first_sights is self._epoch
        ):
            try:
                found = self._exact.get((subject, costs, amount, join, scope))
            except TypeError:
                return None  # a subject or join that is none
            if found is not None:
                now = monotonic() if self._clock is None else self._manual_now()
                if found.began <= now < found.ends:
                    decision = _new(Decision)
                    _put_allowed(decision, False)
                    _put_source(decision, (head_of, limits_of, now, found))
                    return decision
        return None

    def look(
        self, scope: Any, subject: Any, costs: Any, amount: Any, join: Any
    ) -> Decision | Asked | None:
        """A remembered refusal; else what to remember one by; None: the call is no plain one."""
        if self._store.first_sights is not self._epoch:
            self.clear()
        if amount.__class__ is not int or amount > wire.MAX_AMOUNT:
            return None
        if costs.__class__ is str:
            key: tuple[Any, ...] = (subject, costs, amount, join, scope)
        elif costs.__class__ is dict:
            for value in costs.values():
                if value.__class__ is not int or value > wire.MAX_AMOUNT:
                    return None
            if amount != 1:
                return None
            key = (subject, tuple(costs.items()), amount, join, scope)
        else:
            return None
        now = monotonic() if self._clock is None else self._manual_now()
        try:
            found = self._exact.get(key)
        except TypeError:
            return None
        if found is None or not found.began <= now < found.ends:
            return self._look_further(key, costs, now)
        return wire.decided(False, (head_of, limits_of, now, found))

    def _look_further(
        self, key: tuple[Any, ...], costs: Any, now: float
    ) -> Decision | Asked | None:
        subject, _, amount, join, scope = key
        names, amounts = costs, (amount,)
        if costs.__class__ is not str:
            names, amounts = tuple(costs), tuple(costs.values())
        least = (subject, names, join, scope)
        found = self._least.get(least)
        if (
            found is not None
            and found.began <= now < found.ends
            and all(one >= other for one, other in zip(amounts, found.amounts, strict=True))
        ):
            return wire.decided(False, (head_of, limits_of, now, found))
        root = root_of(scope, subject)
        if root is None or now < 0:
            return None
        token = self._tokens[hash(root) % _STRIPES]
        return Asked(root, key, least, amounts, token, now, self._clock is not None)

    def _manual_now(self) -> int:
        """The test clock; negative while it is behind what it once was, and nothing is certain."""
        now: int = self._clock()
        if now < self._latest:
            return -1
        self._latest = now
        return now

    def _learn(self, asked: Asked, decision: Decision) -> None:
        """What the server said."""
        if decision.allowed:
            self._spent(asked.root, asked.exact[3], decision)
            return
        source = getattr(decision, "_source", None)
        if source is None:
            return  # made without the server, or from a record that is behind its plans
        if decision.code not in (Code.RATE_LIMITED, Code.USAGE_EXCEEDED):
            return
        if any(state.kind == "slots" for state in decision.limits):
            return  # only a check says so; to a consume they are a mistake
        _, _, reply, path = source
        pools = any(state.kind == "pool" for state in decision.refused)
        life = self._spans.pools if pools else self._spans.buckets
        if not life or any(state.kind == "pool" and not state.used for state in decision.refused):
            return  # a period that has not begun lies ahead, however long one waits
        if len(self._exact) >= SIZE:
            self.clear()
        refusal = Refusal(asked, decision, reply, path)
        refusal.lasts(life, decision)
        kept = self._roots.setdefault(asked.root, {})
        kept[asked.exact] = (asked.least, refusal)
        self._exact[asked.exact] = refusal
        if pools or all(state.kind != "pool" for state in decision.limits):
            known = self._least.get(asked.least)
            if (
                known is None
                or known.ends <= asked.at
                or all(a <= b for a, b in zip(asked.amounts, known.amounts, strict=True))
            ):
                self._least[asked.least] = refusal
        if self._tokens[hash(asked.root) % _STRIPES] != asked.token:
            # Something was given back while this call was under way.
            self._exact.pop(asked.exact, None)
            self._least.pop(asked.least, None)

    def after(
        self,
        scope: object,
        verb: str,
        subject: Any,
        join: Any,
        outcome: Decision | BaseException,
        asked: Asked | None = None,
    ) -> None:
        """A call of this process has ended."""
        if self._clock is not None:
            self._manual_now()
        if isinstance(outcome, PolicyError):
            return  # nothing was applied
        root = root_of(scope, subject)
        if isinstance(outcome, BaseException) or verb in FREEING:
            self.drop(root)
        elif asked is not None:
            self._learn(asked, outcome)
        else:
            self._spent(root, join, outcome)

    def _spent(self, root: object, join: Any, decision: Decision) -> None:
        """Forgets the refusals that an allowed charge of this process may have changed.

        It has changed the figures of what it charged, and by first sight maybe the plans: those
        who would have joined the same still stand as if they had.
        """
        kept = self._roots.get(root)
        if not kept or not decision.allowed:
            return
        touched = {(state.subject, state.name) for state in decision.limits if state.applied}
        for exact, (least, refusal) in list(kept.items()):
            if exact[3] != join or not touched.isdisjoint(refusal.limits):
                kept.pop(exact, None)
                self._exact.pop(exact, None)
                self._least.pop(least, None)

    def drop(self, root: object) -> None:
        """Forgets all of a root: something may fit now that did not."""
        self._tokens[hash(root) % _STRIPES] = next(self._count)
        for exact, (least, _) in list(self._roots.pop(root, {}).items()):
            self._exact.pop(exact, None)
            self._least.pop(least, None)

    def clear(self) -> None:
        """Forgets everything: the catalog is another one."""
        self._epoch = self._store.first_sights
        for stripe in range(_STRIPES):
            self._tokens[stripe] = next(self._count)
        self._exact, self._least, self._roots = {}, {}, {}

    def __len__(self) -> int:
        return len(self._exact)


def root_of(scope: Any, subject: Any) -> object:
    """What shares a fate: everything below a customer, one subject of a limiter."""
    if scope is not None:
        return scope, subject if subject.__class__ is not tuple or len(subject) > 1 else subject[0]
    if isinstance(subject, str):
        return subject.partition("/")[0]
    if isinstance(subject, (tuple, list)) and subject and isinstance(subject[0], str):
        return subject[0]
    return None
