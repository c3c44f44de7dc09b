"""What a plan may say: Pool, Bucket, Slots, Flag, Plan, Price. A value that exists is a valid one.

All are frozen and checked when made; a bad field or combination raises `PolicyError` naming the
limit, the field, what was given and what is allowed (and the plan, where one is being made).
Nothing here knows about Redis, subjects or the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Final

from meterd import policy_checks as checks
from meterd.errors import PolicyError
from meterd.policy_checks import FrozenMap
from meterd.timespec import DAY_MS, closest, datetime_ms, duration_ms, format_ms, refuse

MAX_AMOUNT: Final = 10**15
MAX_RATE: Final = 10**12
MAX_PER_MS: Final = 366 * DAY_MS
MAX_LIMITS: Final = 64
# A state has that many bits for the thresholds of warn_at and warn_below together.
MAX_WARNINGS: Final = 14

RESETS: Final = ("hour", "day", "week", "month", "quarter", "year")
ANCHORS: Final = ("subscription", "calendar", "first_use")
ALGORITHMS: Final = ("sliding", "fixed", "token")
ON_ERROR: Final = ("raise", "allow", "deny")
BILL: Final = ("use", "overage")
INTERVALS: Final = (*RESETS, "once")


@dataclass(frozen=True, slots=True)
class Pool:
    """Credits: `limit` units per period (None: unlimited, but counted).

    `reset`: None (never), one of `RESETS`, or a duration. `anchor`: where the periods begin, one of
    `ANCHORS`, a day of the month 1-31 (reset "month" only), or an aware datetime. `rollover`: how
    many unused units may move into the next period. `overage`: how far use may go beyond (None: no
    bound). `rates`: cost name -> factor, by default the pool's own name at 1. `auto`: what an
    API-key verification charges unasked. `warn_at`: fractions used; `warn_below`: units remaining.
    `bill`: what a billing export reports, None, "use" or "overage".
    """

    kind: ClassVar[str] = "pool"

    name: str
    limit: int | None
    reset: str | timedelta | None = None
    _: KW_ONLY
    anchor: str | int | datetime = "subscription"
    tz: str = "UTC"
    rollover: int = 0
    overage: int | None = 0
    carry_debt: bool = False
    rates: Mapping[str, int] | None = None
    auto: int | None = None
    warn_at: Sequence[float] = (0.8,)
    warn_below: Sequence[int] = ()
    bill: str | None = None

    def __post_init__(self) -> None:
        name = checks.name(self.name, "pool: name")
        at = f"pool {name!r}: "
        put = checks.setter(self, name=name)
        put("limit", checks.optional(self.limit, f"{at}limit", most=MAX_AMOUNT, none="unlimited"))
        put("reset", _reset(self.reset, f"{at}reset"))
        put("anchor", _anchor(self, f"{at}anchor"))
        put("tz", checks.zone(self.tz, f"{at}tz"))
        put("rollover", checks.integer(self.rollover, f"{at}rollover", most=MAX_AMOUNT))
        put(
            "overage",
            checks.optional(self.overage, f"{at}overage", most=MAX_AMOUNT, none="no bound"),
        )
        put("carry_debt", checks.flag(self.carry_debt, f"{at}carry_debt"))
        put("rates", checks.rates(self.rates, f"{at}rates", most=MAX_AMOUNT))
        default = 'default: 1 for "credits", else 0'
        put("auto", checks.optional(self.auto, f"{at}auto", most=MAX_AMOUNT, none=default))
        put("warn_at", checks.fractions(self.warn_at, f"{at}warn_at"))
        put("warn_below", checks.integers(self.warn_below, f"{at}warn_below", most=MAX_AMOUNT))
        warnings = len(self.warn_at) + len(self.warn_below)
        if warnings > MAX_WARNINGS:
            allowed = f"at most {MAX_WARNINGS} thresholds together"
            raise refuse(f"{at}warn_at and warn_below", warnings, allowed)
        if self.bill is not None:
            put("bill", checks.one_of(self.bill, BILL, f"{at}bill", none=True))
        for moved in ("rollover", "carry_debt"):
            value = getattr(self, moved)
            if value and self.reset is None:
                raise refuse(at + moved, value, "only with a reset", " (this pool has none)")
            if value and self.anchor == "first_use":
                raise refuse(at + moved, value, 'only with an anchor other than "first_use"')

    @property
    def reset_kind(self) -> str | None:
        """None (never), one of `RESETS`, or "duration"."""
        if self.reset is None:
            return None
        word = isinstance(self.reset, str) and self.reset in RESETS
        return str(self.reset) if word else "duration"

    @property
    def interval_ms(self) -> int | None:
        """The length of a period whose reset is a duration; None for every other reset."""
        if self.reset is None or self.reset in RESETS:
            return None
        return duration_ms(self.reset, field="reset")

    @property
    def anchor_kind(self) -> str:
        """One of `ANCHORS`, "day" (of the month) or "instant"."""
        if isinstance(self.anchor, str):
            return self.anchor
        return "day" if isinstance(self.anchor, int) else "instant"

    @property
    def anchor_day(self) -> int | None:
        """The day of the month, 1-31, where the anchor is one."""
        return self.anchor if isinstance(self.anchor, int) else None

    @property
    def anchor_ms(self) -> int | None:
        """The anchor in ms since 1970, where it is an instant."""
        if isinstance(self.anchor, datetime):
            return datetime_ms(self.anchor, field="anchor")
        return None

    @property
    def charges(self) -> Mapping[str, int]:
        """Cost name -> factor, the default filled in."""
        return FrozenMap({self.name: 1}) if self.rates is None else self.rates

    @property
    def auto_amount(self) -> int:
        """What an API-key verification charges unasked, the default filled in."""
        if self.auto is None:
            return 1 if self.name == "credits" else 0
        return self.auto


@dataclass(frozen=True, slots=True)
class Bucket:
    """A rate limit: `limit` units per `per` (a duration of at most 366 days).

    `algorithm`: "sliding" (default), "fixed" or "token". `burst`: how many a full token bucket
    holds (None: as many as `limit`). `on_error`: the answer while the server cannot be asked.
    `rates` and `auto` as for a Pool.
    """

    kind: ClassVar[str] = "bucket"

    name: str
    limit: int
    per: str | timedelta
    _: KW_ONLY
    algorithm: str = "sliding"
    burst: int | None = None
    rates: Mapping[str, int] | None = None
    auto: int = 0
    on_error: str = "raise"

    def __post_init__(self) -> None:
        name = checks.name(self.name, "bucket: name")
        at = f"bucket {name!r}: "
        put = checks.setter(self, name=name)
        put("limit", checks.integer(self.limit, f"{at}limit", most=MAX_RATE))
        per_ms = duration_ms(self.per, field=f"{at}per", most_ms=MAX_PER_MS)
        put("per", str.__str__(self.per) if isinstance(self.per, str) else format_ms(per_ms))
        put("algorithm", checks.one_of(self.algorithm, ALGORITHMS, f"{at}algorithm"))
        burst = checks.optional(self.burst, f"{at}burst", most=MAX_RATE, none="as many as limit")
        if burst is not None and self.algorithm != "token":
            raise refuse(f"{at}burst", burst, f'only algorithm="token", not {self.algorithm!r}')
        put("burst", burst)
        put("rates", checks.rates(self.rates, f"{at}rates", most=MAX_AMOUNT))
        put("auto", checks.integer(self.auto, f"{at}auto", most=MAX_AMOUNT))
        put("on_error", checks.one_of(self.on_error, ON_ERROR, f"{at}on_error"))

    @property
    def per_ms(self) -> int:
        """`per` in milliseconds."""
        return duration_ms(self.per, field="per")

    @property
    def charges(self) -> Mapping[str, int]:
        """Cost name -> factor, the default filled in."""
        return FrozenMap({self.name: 1}) if self.rates is None else self.rates

    @property
    def auto_amount(self) -> int:
        """What an API-key verification charges unasked."""
        return self.auto


@dataclass(frozen=True, slots=True)
class Slots:
    """Concurrency: `limit` units may be held at once, by reservations. `rates` as for a Pool."""

    kind: ClassVar[str] = "slots"

    name: str
    limit: int
    _: KW_ONLY
    rates: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        name = checks.name(self.name, "slots: name")
        at = f"slots {name!r}: "
        put = checks.setter(self, name=name)
        put("limit", checks.integer(self.limit, f"{at}limit", most=MAX_RATE))
        put("rates", checks.rates(self.rates, f"{at}rates", most=MAX_AMOUNT))

    @property
    def charges(self) -> Mapping[str, int]:
        """Cost name -> factor, the default filled in."""
        return FrozenMap({self.name: 1}) if self.rates is None else self.rates


@dataclass(frozen=True, slots=True)
class Flag:
    """A boolean feature: included in the plan or not."""

    kind: ClassVar[str] = "flag"

    name: str

    def __post_init__(self) -> None:
        checks.setter(self, name=checks.name(self.name, "flag: name"))


Limit = Pool | Bucket | Slots | Flag


@dataclass(frozen=True, slots=True)
class Price:
    """What a plan costs, in minor units of `currency`. For display; never used by the engine."""

    amount: int
    currency: str = "usd"
    interval: str = "month"

    def __post_init__(self) -> None:
        put = checks.setter(self)
        put("amount", checks.integer(self.amount, "price: amount", most=MAX_AMOUNT))
        put("currency", checks.currency(self.currency, "price: currency"))
        put("interval", checks.one_of(self.interval, INTERVALS, "price: interval"))


@dataclass(frozen=True, slots=True)
class Plan:
    """An immutable, named set of at most 64 limits.

    Plans of one `group` replace one another, plans of different groups add up. `default`: joined
    by a customer that has no plan of the group. `meta`: anything JSON can say. `includes` is a
    tuple once made; `limits` is the same by name.
    """

    id: str
    _: KW_ONLY
    includes: Sequence[Limit]
    name: str | None = None
    group: str = "base"
    default: bool = False
    price: Price | None = None
    meta: Mapping[str, object] | None = None
    limits: Mapping[str, Limit] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plan_id = checks.name(self.id, "plan: id")
        at = f"plan {plan_id!r}: "
        put = checks.setter(self, id=plan_id)
        includes = _includes(self.includes, at)
        put("includes", includes)
        put("limits", FrozenMap({limit.name: limit for limit in includes}))
        if self.name is not None:
            put("name", checks.label(self.name, f"{at}name"))
        put("group", checks.name(self.group, f"{at}group"))
        put("default", checks.flag(self.default, f"{at}default"))
        if self.price is not None and not isinstance(self.price, Price):
            raise refuse(f"{at}price", self.price, "None or a Price")
        if self.meta is not None:
            put("meta", checks.meta(self.meta, f"{at}meta"))


def _reset(value: object, at: str) -> str | None:
    """The reset as text: a word, or a duration (text as given, a timedelta written out)."""
    if value is None or (isinstance(value, str) and value in RESETS):
        return None if value is None else str.__str__(value)
    words = ", ".join(f'"{word}"' for word in RESETS)
    allowed = f'None, {words}, or a duration such as "5h" or "30d"'
    if not isinstance(value, str | timedelta):
        raise refuse(at, value, allowed)
    if isinstance(value, str) and not value[:1].isdecimal():
        raise refuse(at, value, allowed, closest(value, RESETS))
    ms = duration_ms(value, field=at)
    return str.__str__(value) if isinstance(value, str) else format_ms(ms)


def _anchor(pool: Pool, at: str) -> str | int | datetime:
    """The anchor, checked together with the pool's reset."""
    anchor: object = pool.anchor
    words = ", ".join(f'"{word}"' for word in ANCHORS)
    allowed = f"{words}, a day of the month 1-31, or an aware datetime"
    if isinstance(anchor, datetime):
        datetime_ms(anchor, field=at)
    elif isinstance(anchor, str):
        anchor = checks.one_of(anchor, ANCHORS, at, allowed=allowed)
    elif isinstance(anchor, bool) or not isinstance(anchor, int) or not 1 <= anchor <= 31:
        raise refuse(at, anchor, allowed)
    elif pool.reset != "month":
        raise refuse(at, anchor, f'a day of the month only with reset="month", not {pool.reset!r}')
    if pool.reset is None and anchor != "subscription":
        raise refuse(at, anchor, "only with a reset", " (this pool has none)")
    if anchor == "calendar" and pool.reset not in RESETS:
        words = ", ".join(f'"{word}"' for word in RESETS)
        raise refuse(at, anchor, f'"calendar" only with reset {words}, not {pool.reset!r}')
    return anchor


def _includes(given: object, at: str) -> tuple[Limit, ...]:
    """The plan's limits in their order: known kinds, unique names, at most 64."""
    allowed = "a list of Pool, Bucket, Slots and Flag"
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise refuse(f"{at}includes", given, allowed)
    limits = tuple(given)
    seen: dict[str, Limit] = {}
    for limit in limits:
        if not isinstance(limit, Pool | Bucket | Slots | Flag):
            raise refuse(f"{at}includes", limit, allowed)
        if limit.name in seen:
            kinds = f"{seen[limit.name].kind} and {limit.kind}"
            raise PolicyError(
                f"{at}includes: {limit.name!r} is given twice (as {kinds}); "
                "allowed: one limit per name"
            )
        seen[limit.name] = limit
    if len(limits) > MAX_LIMITS:
        raise PolicyError(f"{at}includes: got {len(limits)} limits; allowed: at most {MAX_LIMITS}")
    return limits
