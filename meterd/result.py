"""What a call returns. Values, immutable and cheap: figures are decoded when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from meterd.errors import NoPlan, NotIncluded, RateLimited, Refused, UsageExceeded
from meterd.grant import Grant
from meterd.keys import Subject

_FROM_HEAD = frozenset(("code", "balance", "op", "replayed", "degraded"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Code(StrEnum):
    """Why a call was allowed or refused; the first that applies."""

    OK = "OK"
    NO_PLAN = "NO_PLAN"
    NOT_INCLUDED = "NOT_INCLUDED"
    USAGE_EXCEEDED = "USAGE_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"


def instant(ms: int) -> datetime:
    """An aware UTC datetime; instants past year 9999 become the last one there is."""
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit of one level, after the call (after a refusal or a check: now).

    `kind`: "pool", "bucket", "slots" or "flag". `limit`, `remaining`: units, None for an unlimited
    pool and for a flag. `used` counts everything, `overage` the part of it that no allowance
    covered. `applied`: what this call charged, or gave back. `allowed`: this limit by itself fits.
    `resets_at_ms`: epoch ms of a pool's next boundary, a fixed window's end (None while closed),
    the end of sliding's current window, the instant a token bucket is full (None if it is).
    `retry_after`: seconds, exact to the ms. Of a pool with live grants: `drawn`, what of `used`
    they gave, and `granted`, what of `remaining` is theirs.
    """

    subject: Subject
    name: str
    kind: str
    limit: int | None
    used: int
    remaining: int | None
    overage: int
    applied: int
    allowed: bool
    resets_at_ms: int | None
    retry_after: float | None
    drawn: int = 0
    granted: int = 0

    @property
    def resets_at(self) -> datetime | None:
        """`resets_at_ms` as an aware UTC datetime."""
        return None if self.resets_at_ms is None else instant(self.resets_at_ms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, instants as ISO 8601 text: ready for JSON."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        at = self.resets_at
        del found["resets_at_ms"]
        return found | {"resets_at": at.isoformat() if at else None}


_RAISED: dict[Code, type[Refused]] = {
    Code.USAGE_EXCEEDED: UsageExceeded,
    Code.RATE_LIMITED: RateLimited,
    Code.NOT_INCLUDED: NotIncluded,
    Code.NO_PLAN: NoPlan,
}


# head_of(a, b) -> code, balance; limits_of(a, b) -> limits; a; b
Source = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any], Any, Any]


class Decision:
    """The answer of one call. True if allowed; unpacks as `allowed, balance`. Immutable.

    `balance`: how many more of the first cost name would fit (None: no bound, or a flag).
    `retry_after`: seconds until the same call would fit, None if never or allowed. `op`: the
    operation id. `replayed`: the stored answer of an earlier call. `degraded`: the server was not
    asked.
    """

    __slots__ = ("_limits", "_source", "allowed", "balance", "code", "degraded", "op", "replayed")

    allowed: bool
    code: Code
    balance: int | None
    op: str | None
    replayed: bool
    degraded: bool
    _limits: tuple[LimitState, ...] | Callable[[], tuple[LimitState, ...]]
    # How a plain answer's head and limits are decoded, and what from; then only `allowed` is set.
    _source: Source

    def __init__(
        self,
        allowed: bool,
        code: Code,
        balance: int | None,
        limits: tuple[LimitState, ...] | Callable[[], tuple[LimitState, ...]] = (),
        op: str | None = None,
        replayed: bool = False,
        degraded: bool = False,
    ) -> None:
        put = object.__setattr__
        put(self, "allowed", allowed)
        put(self, "code", code)
        put(self, "balance", balance)
        put(self, "_limits", limits)
        put(self, "op", op)
        put(self, "replayed", replayed)
        put(self, "degraded", degraded)

    if not TYPE_CHECKING:  # a type checker is to see what is not there

        def __getattr__(self, name):
            """Fills what was left in the reply: only a slot that is still empty comes here."""
            put = object.__setattr__
            if name == "_limits":
                _, limits_of, reply, where = self._source
                put(self, "_limits", limits_of(reply, where))
            elif name in _FROM_HEAD:
                head_of, _, reply, where = self._source
                code, balance = head_of(reply, where)
                put(self, "code", code)
                put(self, "balance", balance)
                put(self, "op", None)
                put(self, "replayed", False)
                put(self, "degraded", False)
            else:
                raise AttributeError(f"a Decision has no attribute {name!r}")
            return getattr(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Decision cannot be changed (tried to set {name!r})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Decision cannot be changed (tried to delete {name!r})")

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """A `LimitState` for every limit that the costs reach, the root's first."""
        found = self._limits
        if not isinstance(found, tuple):
            found = found()
            object.__setattr__(self, "_limits", found)
        return found

    def _values(self) -> tuple[Any, ...]:
        return (
            self.allowed, self.code, self.balance, self.limits,
            self.op, self.replayed, self.degraded,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[type[Decision], tuple[Any, ...]]:
        return Decision, self._values()

    def __repr__(self) -> str:
        extra = f", op={self.op!r}" if self.op else ""
        extra += ", replayed=True" if self.replayed else ""
        extra += ", degraded=True" if self.degraded else ""
        return (
            f"Decision(allowed={self.allowed}, code={str(self.code)!r}, balance={self.balance}, "
            f"retry_after={self.retry_after}, limits={list(self.limits)}{extra})"
        )

    def __bool__(self) -> bool:
        return self.allowed

    def __iter__(self) -> Iterator[Any]:
        yield self.allowed
        yield self.balance

    def __getitem__(self, name: str) -> LimitState:
        """The limit of that name where it is tightest. `KeyError` if none was charged."""
        return tightest(self.limits, name)

    @property
    def refused(self) -> tuple[LimitState, ...]:
        """The limits that refused."""
        if self.allowed:
            return ()
        return tuple(state for state in self.limits if not state.allowed)

    @property
    def retry_after(self) -> float | None:
        """Seconds until the same call would fit; None if never, or allowed."""
        if self.allowed or self.code in (Code.NO_PLAN, Code.NOT_INCLUDED):
            return None
        longest = 0.0
        for state in self.refused:
            if state.retry_after is None:
                return None
            longest = max(longest, state.retry_after)
        return longest or None

    def raise_if_refused(self) -> Self:
        """Itself if allowed, else raises the `Refused` of its code."""
        if self.allowed:
            return self
        names = ", ".join(sorted({state.name for state in self.refused}))
        after = self.retry_after
        text = str(self.code) + (f" by {names}" if names else "")
        raise _RAISED[self.code](text + (f"; retry in {after:.15g} s" if after else ""), self)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "allowed": self.allowed,
            "code": str(self.code),
            "balance": self.balance,
            "retry_after": self.retry_after,
            "limits": [state.as_dict() for state in self.limits],
            "refused": [state.name for state in self.refused],
            "op": self.op,
            "replayed": self.replayed,
            "degraded": self.degraded,
        }


def tightest(limits: tuple[LimitState, ...], name: str) -> LimitState:
    """Of the equal-named limits of several levels, the one with the least left."""
    found: LimitState | None = None
    for state in limits:
        if state.name == name and (
            found is None
            or (not state.allowed and found.allowed)
            or (
                state.allowed == found.allowed
                and state.remaining is not None
                and (found.remaining is None or state.remaining < found.remaining)
            )
        ):
            found = state
    if found is None:
        known = ", ".join(sorted({state.name for state in limits})) or "none"
        raise KeyError(f"no limit {name!r} here; there are: {known}")
    return found


@dataclass(frozen=True, slots=True)
class Override:
    """A changed limit of one subject: `fields` are its "limit", "overage" or "burst"."""

    name: str
    fields: Mapping[str, int | None]
    expires_ms: int | None = None

    @property
    def expires(self) -> datetime | None:
        return None if self.expires_ms is None else instant(self.expires_ms)

    def as_dict(self) -> dict[str, Any]:
        at = self.expires
        return {"name": self.name, **self.fields, "expires": at.isoformat() if at else None}


@dataclass(frozen=True, slots=True)
class PlanChange:
    """A change of plans that waits for its instant, `at_ms` (epoch ms).

    `plan`: the id of the plan that the group will have; None: its plan is taken away, and the
    group's default, if there is one, takes its place. `change`: "keep", "reset" or "prorate".
    """

    group: str
    plan: str | None
    at_ms: int
    change: str

    @property
    def at(self) -> datetime:
        """`at_ms` as an aware UTC datetime."""
        return instant(self.at_ms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "group": self.group,
            "plan": self.plan,
            "at": self.at.isoformat(),
            "change": self.change,
        }


@dataclass(frozen=True, slots=True)
class HoldState:
    """An open hold: when it ends by itself, and its amounts by cost name.

    `amounts`: what was reserved; `tallied`: how much of that stays charged whatever becomes of it.
    """

    id: str
    expires_ms: int
    amounts: Mapping[str, int]
    tallied: Mapping[str, int]

    @property
    def expires(self) -> datetime:
        """`expires_ms` as an aware UTC datetime."""
        return instant(self.expires_ms)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "expires": self.expires.isoformat(),
            "amounts": dict(self.amounts),
            "tallied": dict(self.tallied),
        }


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a path: its plans (group -> plan id), overrides, grants and open holds.

    `stored`: it has a record; else these are the plans it would join. `holds`: those that end
    first, at most 100; `open_holds`: how many there are. `grants`: by pool, in burn order.
    `pending`: changes of plans to come, the next one first.
    """

    subject: Subject
    plans: Mapping[str, str]
    overrides: tuple[Override, ...] = ()
    stored: bool = True
    holds: tuple[HoldState, ...] = ()
    open_holds: int = 0
    grants: tuple[Grant, ...] = ()
    pending: tuple[PlanChange, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "plans": dict(self.plans),
            "overrides": [override.as_dict() for override in self.overrides],
            "grants": [grant.as_dict() for grant in self.grants],
            "stored": self.stored,
            "holds": [hold.as_dict() for hold in self.holds],
            "open_holds": self.open_holds,
            "pending": [change.as_dict() for change in self.pending],
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """A read-only picture of a subject: every limit at every level, and where it comes from.

    A limit's `allowed` says whether one more unit would fit.
    """

    subject: Subject
    limits: tuple[LimitState, ...]
    levels: tuple[Level, ...] = field(default=())

    def __getitem__(self, name: str) -> LimitState:
        return tightest(self.limits, name)

    def __iter__(self) -> Iterator[LimitState]:
        return iter(self.limits)

    def __contains__(self, name: object) -> bool:
        return any(state.name == name for state in self.limits)

    @property
    def plans(self) -> dict[str, str]:
        """Group -> plan id of the deepest level that has plans."""
        for level in reversed(self.levels):
            if level.plans:
                return dict(level.plans)
        return {}

    def as_dict(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "levels": [level.as_dict() for level in self.levels],
            "limits": [state.as_dict() for state in self.limits],
        }
