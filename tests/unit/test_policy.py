"""Every field of every policy class: the values it takes, the values it refuses, what it says."""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd.errors import MeterdError, PolicyError
from meterd.policy import Bucket, Flag, Plan, Pool, Price, Slots
from meterd.policy_checks import FrozenMap

T0 = datetime(2024, 1, 31, tzinfo=UTC)


class Name(enum.StrEnum):
    CREDITS = "credits"


class Count(enum.IntEnum):
    TEN = 10


def pool(**fields: Any) -> Pool:
    return Pool(**{"name": "credits", "limit": 100, **fields})


def bucket(**fields: Any) -> Bucket:
    return Bucket(**{"name": "api", "limit": 100, "per": "1m", **fields})


def slots(**fields: Any) -> Slots:
    return Slots(**{"name": "jobs", "limit": 10, **fields})


def plan(**fields: Any) -> Plan:
    return Plan(**{"id": "pro", "includes": [], **fields})


def price(**fields: Any) -> Price:
    return Price(**{"amount": 500, **fields})


def flag(**fields: Any) -> Flag:
    return Flag(**fields)


Maker = Callable[..., Any]

ACCEPTED: list[tuple[Maker, dict[str, Any]]] = [
    *[(slots, {"limit": value}) for value in (0, 10**12)],
    (slots, {"rates": {"job": 1, "big-job": 4}}),
    (pool, {"limit": 0}),
    (pool, {"limit": 10**15}),
    (pool, {"limit": None}),
    *[(pool, {"reset": word}) for word in ("hour", "day", "week", "month", "quarter", "year")],
    *[(pool, {"reset": text}) for text in (None, "1ms", "5h", "30d", timedelta(hours=5))],
    *[(pool, {"reset": "month", "anchor": day}) for day in (1, 28, 31)],
    *[(pool, {"reset": "5h", "anchor": at}) for at in ("subscription", "first_use", T0)],
    (pool, {"reset": "hour", "anchor": "calendar"}),
    (pool, {"reset": "year", "anchor": "calendar", "tz": "Asia/Kathmandu"}),
    (pool, {"reset": "day", "anchor": datetime(1970, 1, 1, tzinfo=UTC)}),
    (pool, {"tz": "America/Argentina/Buenos_Aires"}),
    (pool, {"tz": "Etc/GMT+5"}),
    (pool, {"reset": "day", "rollover": 10**15, "carry_debt": True}),
    (pool, {"overage": None}),
    (pool, {"overage": 10**15}),
    (pool, {"rates": {"tokens": 1, "images": 10**15}}),
    (pool, {"auto": 0}),
    (pool, {"auto": 10**15}),
    (pool, {"warn_at": ()}),
    (pool, {"warn_at": (0.5, 1)}),
    (pool, {"warn_below": (1, 10**15)}),
    *[(pool, {"bill": word}) for word in (None, "use", "overage")],
    (pool, {"name": "A-z_0.9" + "x" * 57}),
    (bucket, {"limit": 0}),
    (bucket, {"limit": 10**12, "per": "366d"}),
    (bucket, {"per": "1ms"}),
    (bucket, {"per": timedelta(seconds=1)}),
    *[(bucket, {"algorithm": word}) for word in ("fixed", "sliding", "token")],
    (bucket, {"algorithm": "token", "burst": 0}),
    (bucket, {"algorithm": "token", "burst": 10**12}),
    *[(bucket, {"on_error": word}) for word in ("raise", "allow", "deny")],
    (bucket, {"auto": 3}),
    (bucket, {"rates": {"api": 2}}),
    (flag, {"name": "sso"}),
    (price, {"amount": 0}),
    *[(price, {"interval": word}) for word in ("month", "year", "once")],
    (plan, {"includes": ()}),
    (plan, {"includes": [Flag(f"f{n}") for n in range(64)]}),
    (plan, {"name": "Größe XL"}),
    (plan, {"group": "add-ons", "default": True, "price": Price(1)}),
    (plan, {"meta": {"a": [1, 2.5, None, True, {"b": "c"}]}}),
]

NAMES: list[Any] = ["", "a b", "a/b", "é", "x" * 65, "a\n", "a:b", None, 5, b"a", ("a",)]
NO_RATES: list[Any] = [{}, [], "tokens", ("a", 1), 5]
NO_LIMITS: list[Any] = [None, "sso", ["sso"], {}, 5, b"sso"]
NO_META: list[Any] = [[], "x", 5, [("a", 1)]]
COUNTS: list[Any] = [-1, 1.0, float("nan"), True, "5", b"5", (), 10**400]

# maker, the field at fault, the value given, more fields, a piece of the error beyond the field
REFUSED: list[tuple[Maker, str, Any, dict[str, Any], str]] = [
    *[(pool, "name", value, {}, "1 to 64") for value in NAMES],
    *[(bucket, "name", value, {}, "1 to 64") for value in NAMES],
    *[(flag, "name", value, {}, "1 to 64") for value in NAMES],
    *[(slots, "name", value, {}, "1 to 64") for value in NAMES],
    *[(slots, "limit", v, {}, r"0 to 10\*\*12$") for v in (*COUNTS, None, 10**12 + 1)],
    *[(slots, "rates", v, {}, "1 to 64") for v in NO_RATES],
    (slots, "rates", {"a": 0}, {}, "from 1 to"),
    *[(pool, "limit", value, {}, r"10\*\*15, or None \(unlimited\)") for value in COUNTS],
    (pool, "limit", 10**15 + 1, {}, r"10\*\*15"),
    *[(pool, "reset", v, {}, "month") for v in ("monthly", "", "never", "Month", 30, True, b"day")],
    (pool, "reset", "monthly", {}, "did you mean 'month'"),
    *[(pool, "reset", v, {}, "5m") for v in ("5 h", "1h30m")],
    (pool, "reset", "0s", {}, "from 1ms to 366000d"),
    (pool, "reset", timedelta(0), {}, "1ms"),
    *[(pool, "anchor", v, {"reset": "month"}, "day of the month 1-31") for v in (0, 32, -1)],
    *[(pool, "anchor", v, {"reset": "month"}, "day of the month") for v in (True, None, 1.0, b"")],
    (pool, "anchor", "callendar", {"reset": "month"}, "did you mean 'calendar'"),
    (pool, "anchor", datetime(2024, 1, 1), {"reset": "day"}, "no time zone"),
    (pool, "anchor", T0.date(), {"reset": "day"}, "aware datetime"),
    (pool, "anchor", datetime(1969, 12, 31, tzinfo=UTC), {"reset": "day"}, "1970"),
    *[(pool, "anchor", 15, {"reset": r}, 'reset="month"') for r in ("week", "30d", "year", None)],
    *[(pool, "anchor", "calendar", {"reset": v}, '"quarter"') for v in ("5h", timedelta(days=1))],
    *[(pool, "anchor", v, {}, "only with a reset") for v in ("calendar", "first_use", T0)],
    *[(pool, "tz", v, {}, "IANA") for v in ("", "Nowhere/City", "Europe", "/etc/passwd", "..")],
    *[(pool, "tz", v, {}, "IANA") for v in (None, UTC, 5, "\0", "x" * 5000, "zone.tab", "\ud800")],
    *[(pool, "tz", v, {}, "IANA") for v in ("right/UTC", "posix/UTC", "localtime", "Factory")],
    (pool, "tz", "Europe/Berlni", {}, "did you mean 'Europe/Berlin'"),
    *[(pool, "rollover", v, {"reset": "day"}, r"10\*\*15") for v in (*COUNTS, None)],
    (pool, "rollover", 1, {}, "only with a reset"),
    (pool, "rollover", 1, {"reset": "day", "anchor": "first_use"}, "first_use"),
    *[(pool, "overage", v, {}, r"None \(no bound\)") for v in COUNTS],
    *[(pool, "carry_debt", v, {"reset": "day"}, "True or False") for v in (1, 0, None, "yes")],
    (pool, "carry_debt", True, {}, "only with a reset"),
    (pool, "carry_debt", True, {"reset": "day", "anchor": "first_use"}, "first_use"),
    *[(pool, "rates", v, {}, "1 to 64") for v in NO_RATES],
    (pool, "rates", {f"c{n}": 1 for n in range(65)}, {}, "1 to 64"),
    *[(pool, "rates", {"a": v}, {}, r"\['a'\].*from 1 to 10\*\*15") for v in (*COUNTS, 0, None)],
    *[(pool, "rates", {v: 1}, {}, "cost name") for v in NAMES],
    *[(pool, "auto", v, {}, "None") for v in COUNTS],
    *[(pool, "warn_at", v, {}, "fractions") for v in (0.8, "0.8", {0.8: 1}, None, 5)],
    *[(pool, "warn_at", (v,), {}, "fractions") for v in (0, 1.01, -0.5, True, "0.8", None)],
    *[(pool, "warn_at", [v], {}, "fractions") for v in (float("nan"), float("inf"), 10**400)],
    (pool, "warn_at", [80], {}, "80 % is 0.8"),
    (pool, "warn_at", [n / 20 for n in range(1, 18)], {}, "at most 16"),
    *[(pool, "warn_below", v, {}, "list of integers") for v in (5, "5", None)],
    *[(pool, "warn_below", (v,), {}, "from 1 to") for v in (0, -1, 1.0, True, 10**15 + 1, None)],
    *[(pool, "bill", v, {}, '"overage"') for v in ("uses", "", True, 5)],
    *[(bucket, "limit", v, {}, r"10\*\*12") for v in (*COUNTS, None, 10**12 + 1)],
    *[(bucket, "per", v, {}, "5m") for v in (60, 60.0, None, "minute", "1y", True)],
    *[(bucket, "per", v, {}, "366d") for v in ("0s", "367d", "31622400001ms", timedelta(days=367))],
    *[(bucket, "algorithm", v, {}, '"token"') for v in ("", "Token", "gcra", None, True)],
    (bucket, "algorithm", "slidding", {}, "did you mean 'sliding'"),
    *[(bucket, "burst", v, {"algorithm": "token"}, r"10\*\*12") for v in (*COUNTS, 10**12 + 1)],
    *[(bucket, "burst", 5, {"algorithm": a}, "token") for a in ("fixed", "sliding")],
    *[(bucket, "auto", v, {}, r"10\*\*15") for v in (*COUNTS, None)],
    *[(bucket, "on_error", v, {}, '"deny"') for v in ("ignore", None, True)],
    (bucket, "rates", {}, {}, "1 to 64"),
    *[(price, "amount", v, {}, r"10\*\*15") for v in (*COUNTS, None)],
    *[(price, "currency", v, {}, "three letters") for v in ("", "us", "euro", "€€€", None, 5)],
    *[(price, "interval", v, {}, '"month"') for v in ("monthly", None, "", 5)],
    *[(plan, "id", v, {}, "1 to 64") for v in NAMES],
    *[(plan, "group", v, {}, "1 to 64") for v in NAMES],
    *[(plan, "name", v, {}, "printable") for v in ("", "a\n", "x" * 201, 5)],
    *[(plan, "default", v, {}, "True or False") for v in (1, 0, None, "true")],
    *[(plan, "price", v, {}, "a Price") for v in (5, {"amount": 5})],
    *[(plan, "includes", v, {}, "Pool, Bucket, Slots and Flag") for v in NO_LIMITS],
    (plan, "includes", Flag("a"), {}, "Pool, Bucket, Slots and Flag"),
    (plan, "includes", [Flag("a"), None], {}, "Pool, Bucket, Slots and Flag"),
    (plan, "includes", [Flag("a"), Flag("a")], {}, "'a' is given twice"),
    (plan, "includes", [Flag("a"), Pool("a", 1)], {}, "flag and pool"),
    (plan, "includes", [Flag(f"f{n}") for n in range(65)], {}, "at most 64"),
    *[(plan, "meta", v, {}, "mapping") for v in NO_META],
    (plan, "meta", {1: 2}, {}, "text"),
    (plan, "meta", {"a": T0}, {}, r"\['a'\].*JSON"),
    (plan, "meta", {"a": {1, 2}}, {}, "JSON"),
    (plan, "meta", {"a": b"x"}, {}, "JSON"),
    (plan, "meta", {"a": [float("nan")]}, {}, r"\['a'\]\[0\].*finite"),
    (plan, "meta", {"a": 2**53 + 1}, {}, r"2\*\*53"),
    (plan, "meta", {"a": "\ud800"}, {}, "UTF-8"),
    (plan, "meta", {"\ud800": 1}, {}, "UTF-8"),
]


def shown_id(value: object) -> str:
    """A test's name for a value, the same in every process: no addresses, no order of a set."""
    if callable(value):
        return value.__name__
    return ascii(sorted(value) if isinstance(value, set) else value).split(" at 0x")[0][:24]


@pytest.mark.parametrize(("make", "fields"), ACCEPTED, ids=shown_id)
def test_accepted(make: Maker, fields: dict[str, Any]) -> None:
    made = make(**fields)
    assert pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) == made
    assert hash(make(**fields)) == hash(made)
    assert dataclasses.replace(made) == made


@pytest.mark.parametrize(("make", "field", "value", "more", "says"), REFUSED, ids=shown_id)
def test_refused(make: Maker, field: str, value: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        make(**{**more, field: value})
    message = str(caught.value)
    quoted = {pool: " 'credits'", bucket: " 'api'", slots: " 'jobs'", plan: " 'pro'"}.get(make, "")
    own_name = quoted if field not in ("name", "id") or (make, field) == (plan, "name") else ""
    assert message.startswith(f"{make.__name__}{own_name}: {field}")
    assert len(message) < 400
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MeterdError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Pool("a", 1, "day", "calendar"),  # type: ignore[call-arg]
        lambda: Bucket("a", 1, "1m", "token"),  # type: ignore[call-arg]
        lambda: Plan("a", [Flag("b")]),  # type: ignore[call-arg]
        lambda: Pool("a"),  # type: ignore[call-arg]
        lambda: Bucket("a", 1),  # type: ignore[call-arg]
        lambda: Slots("a", 1, {"b": 1}),  # type: ignore[misc]
        lambda: Plan("a"),  # type: ignore[call-arg]
        lambda: Pool("a", 1, limits=5),  # type: ignore[call-arg]
    ],
)
def test_signature(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        call()


def test_defaults() -> None:
    made = Pool("x", 5)
    assert (made.reset, made.anchor, made.tz, made.rollover) == (None, "subscription", "UTC", 0)
    assert (made.overage, made.carry_debt, made.rates, made.auto) == (0, False, None, None)
    assert (made.warn_at, made.warn_below, made.bill) == ((0.8,), (), None)
    rate = Bucket("x", 5, "1m")
    assert (rate.algorithm, rate.burst, rate.auto, rate.on_error) == ("sliding", None, 0, "raise")
    offer = Plan("x", includes=[])
    assert (offer.name, offer.group, offer.default, offer.price) == (None, "base", False, None)
    assert offer.meta is None
    assert Price(5) == Price(5, "usd", "month")


@pytest.mark.parametrize("made", [pool(), bucket(), slots(), plan(), price(), Flag("a")])
def test_frozen_and_slotted(made: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, "other")
    assert not hasattr(made, "__dict__")


def test_normalized() -> None:
    given = {"tokens": 2}
    made = Pool(
        "x", 5, timedelta(hours=5), rates=given, warn_at=[1, 0.5, 0.5], warn_below=[9, 3, 9]
    )
    given["images"] = 1
    assert made.reset == "5h"
    assert made.rates == {"tokens": 2}
    assert made.warn_at == (0.5, 1.0)
    assert all(type(mark) is float for mark in made.warn_at)
    assert made.warn_below == (3, 9)
    assert Bucket("x", 5, timedelta(minutes=1)).per == "1m"
    assert Price(5, "EUR").currency == "eur"
    assert Pool("x", 5, "60m").reset == "60m"


def test_subclasses_become_plain() -> None:
    made = Pool(Name.CREDITS, Count.TEN, rates={Name.CREDITS: Count.TEN})
    assert type(made.name) is str
    assert type(made.limit) is int
    assert type(made.rates and made.rates["credits"]) is int
    assert [type(key) for key in made.charges] == [str]
    assert type(Plan(Name.CREDITS, includes=[]).id) is str


@pytest.mark.parametrize(
    ("reset", "kind", "hours"),
    [
        (None, None, None),
        ("month", "month", None),
        ("hour", "hour", None),
        ("5h", "duration", 5),
    ],
)
def test_reset_properties(reset: str | None, kind: str | None, hours: int | None) -> None:
    made = pool(reset=reset)
    assert made.reset_kind == kind
    assert made.interval_ms == (hours * 3_600_000 if hours else None)


@pytest.mark.parametrize(
    ("anchor", "kind", "day", "ms"),
    [
        ("subscription", "subscription", None, None),
        ("calendar", "calendar", None, None),
        ("first_use", "first_use", None, None),
        (31, "day", 31, None),
        (T0, "instant", None, 1_706_659_200_000),
    ],
)
def test_anchor_properties(anchor: Any, kind: str, day: int | None, ms: int | None) -> None:
    made = pool(reset="month", anchor=anchor)
    assert (made.anchor_kind, made.anchor_day, made.anchor_ms) == (kind, day, ms)


def test_charges_and_auto_fill_in_their_defaults() -> None:
    assert pool().charges == {"credits": 1}
    assert pool(rates={"a": 2, "b": 3}).charges == {"a": 2, "b": 3}
    assert bucket().charges == {"api": 1}
    assert pool().auto_amount == 1
    assert pool(auto=0).auto_amount == 0
    assert pool(name="tokens").auto_amount == 0
    assert bucket(name="credits").auto_amount == 0
    assert bucket(auto=2).auto_amount == 2
    assert bucket(per="2h").per_ms == 7_200_000


def test_limits_is_includes_by_name() -> None:
    made = Plan("pro", includes=(limit for limit in (pool(), Flag("sso"))))  # type: ignore[arg-type]
    assert made.includes == (pool(), Flag("sso"))
    assert list(made.limits) == ["credits", "sso"]
    assert made.limits["sso"] == Flag("sso")
    assert "limits" not in repr(made)
    assert dataclasses.replace(made, includes=[Flag("x")]).limits == {"x": Flag("x")}


def test_one_cost_may_reach_many_limits() -> None:
    made = plan(includes=[pool(rates={"tokens": 1}), bucket(rates={"tokens": 1})])
    assert list(made.limits) == ["credits", "api"]


def test_meta_is_frozen_all_the_way_down() -> None:
    inner: dict[str, Any] = {"b": [1]}
    made = plan(meta={"a": inner})
    inner["b"].append(2)
    assert made.meta == {"a": {"b": (1,)}}
    with pytest.raises(TypeError):
        made.meta["a"] = 1  # type: ignore[index]
    looped: dict[str, Any] = {}
    looped["self"] = looped
    with pytest.raises(PolicyError, match="nested too deep"):
        plan(meta=looped)


def test_frozen_map() -> None:
    made = FrozenMap({"a": 1, "b": 2})
    assert made == {"b": 2, "a": 1}
    assert made == FrozenMap({"b": 2, "a": 1})
    assert hash(made) == hash(FrozenMap({"b": 2, "a": 1}))
    assert made != {"a": 1}
    assert repr(made) == "{'a': 1, 'b': 2}"
    assert (len(made), made["b"], "c" in made, list(made)) == (2, 2, False, ["a", "b"])
    assert pickle.loads(pickle.dumps(made)) == made
