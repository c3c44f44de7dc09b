"""The verbs that set something: plans of a subject, private plans, overrides, corrections, meta."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Bucket, Code, Flag, OpConflict, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import PRO, AnyMeter, Make, requests_of


def pool(meter: AnyMeter, subject: Any = "ana") -> tuple[Any, int, Any]:
    state = meter.usage(subject)["credits"]
    return state.limit, state.used, state.resets_at


def day(month: int, of: int = 1, hour: int = 0, year: int = 2025) -> datetime:
    return datetime(year, month, of, hour, tzinfo=UTC)


# --- subscribe and unsubscribe


def test_an_upgrade_keeps_use_and_period(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", {"tokens": 60, "api": 5})
    clock.advance(days=10)
    assert meter.subscribe("ana", "pro") is None
    assert pool(meter) == (1000, 60, day(2))
    assert meter.usage("ana").plans == {"base": "pro"}
    assert meter.consume("ana", {"tokens": 989, "sso": 1})  # 1000 and 50 beyond, less 60
    assert meter.check("ana", "tokens", 2).code is Code.USAGE_EXCEEDED
    clock.set(day(2))
    assert pool(meter) == (1000, 0, day(3))


def test_a_new_subject_starts_now(meter: AnyMeter, clock: ManualClock) -> None:
    clock.set(day(1, 31, 5))
    meter.subscribe("ana", "pro")
    assert pool(meter) == (1000, 0, day(2, 28, 5))
    clock.set(day(2, 28, 5))
    assert pool(meter)[2] == day(3, 31, 5)


def test_change_reset_starts_over(meter: AnyMeter, clock: ManualClock) -> None:
    meter.consume("ana", {"tokens": 60, "api": 5})
    clock.set(day(1, 11))
    meter.subscribe("ana", "pro", change="reset")
    assert pool(meter) == (1000, 0, day(2, 11))
    meter.subscribe("ana", "pro", change="keep")
    assert pool(meter) == (1000, 0, day(2, 11))
    clock.set(day(1, 20))
    meter.consume("ana", "tokens", 5)
    meter.subscribe("ana", "free")
    assert pool(meter) == (100, 5, day(2, 11))


def test_buckets_stay_when_pools_start_over(meter: AnyMeter) -> None:
    meter.consume("ana", {"tokens": 60, "api": 5})
    meter.subscribe("ana", "pro", change="reset")
    usage = meter.usage("ana")
    assert (usage["credits"].used, usage["api"].used, usage["api"].limit) == (0, 5, 60)


@pytest.mark.parametrize(
    ("anchor", "ends"),
    [
        (day(12, 15, 12, 2024), day(1, 15, 12)),
        (day(12, 31, 0, 2024), day(1, 31)),
        (timedelta(0), day(2, 10)),
        ("0s", day(2, 10)),
    ],
    ids=["an instant", "a month's end", "timedelta", "duration"],
)
def test_anchor(meter: AnyMeter, clock: ManualClock, anchor: Any, ends: datetime) -> None:
    clock.set(day(1, 10))
    meter.subscribe("new", "pro", anchor=anchor)
    assert pool(meter, "new")[2] == ends
    meter.consume("ana", "tokens", 7)
    meter.subscribe("ana", "pro", anchor=anchor)
    assert pool(meter) == (1000, 7, ends)
    meter.subscribe("ana", "pro", change="reset", anchor=anchor)
    assert pool(meter) == (1000, 0, ends)


def test_subscribing_is_per_group(meter: AnyMeter) -> None:
    meter.consume("ana", "tokens", 60)
    meter.subscribe("ana", "pack")
    assert pool(meter)[:2] == (600, 60)
    assert meter.usage("ana").plans == {"addon": "pack", "base": "free"}
    assert meter.consume("ana", {"support": 1, "export": 1})
    meter.subscribe("ana", "pro")
    assert pool(meter)[:2] == (1500, 60)
    assert meter.usage("ana").plans == {"addon": "pack", "base": "pro"}
    meter.unsubscribe("ana", "pack")
    assert pool(meter)[:2] == (1000, 60)
    assert meter.usage("ana").plans == {"base": "pro"}


def test_a_root_subscribed_to_an_addon_joins_the_default_too(meter: AnyMeter) -> None:
    meter.subscribe("ana", "pack")
    assert meter.usage("ana").plans == {"addon": "pack", "base": "free"}
    meter.subscribe("acme/ana", "pack")
    assert [dict(level.plans) for level in meter.usage("acme/ana").levels][-1] == {"addon": "pack"}


def test_several_groups_add_up(make: Make) -> None:
    def plan(group: str, *limits: Any) -> Plan:
        return Plan(group, includes=limits, group=group)

    meter = make(
        [
            plan("a", Pool("p", 100, overage=5), Bucket("b", 10, "1m", algorithm="token")),
            plan("b", Pool("p", 50, overage=1), Bucket("b", 5, "1m", algorithm="token", burst=20)),
            plan("c", Pool("p", None), Flag("x")),
        ]
    )
    for name in "ab":
        meter.subscribe("ana", name)
    usage = meter.usage("ana")
    assert (usage["p"].limit, usage["b"].limit, usage["b"].remaining) == (150, 15, 30)
    assert meter.check("ana", "p", 156)
    assert not meter.check("ana", "p", 157)
    meter.subscribe("ana", "c")
    assert meter.usage("ana")["p"].limit is None
    assert meter.consume("ana", {"p": 10**12, "x": 1}).balance is None
    for name in "abc":
        meter.unsubscribe("ana", name)
    assert meter.consume("ana", "p").code is Code.NO_PLAN


def test_unsubscribe_falls_back_to_the_default(meter: AnyMeter) -> None:
    meter.subscribe("ana", "pro")
    meter.consume("ana", "tokens", 60)
    assert meter.unsubscribe("ana", "pro") is None
    assert meter.usage("ana").plans == {"base": "free"}
    assert pool(meter)[:2] == (100, 60)
    # What is not held needs no taking away: a repeated call is as good as the first.
    meter.unsubscribe("ana", "pro")
    meter.unsubscribe("nobody", "pro")
    assert meter.usage("ana").plans == {"base": "free"}
    assert meter.subjects() == ["ana"]
    # Below a root there is nothing to fall back to.
    meter.subscribe("acme/ana", "pro")
    meter.unsubscribe("acme/ana", "pro")
    assert [s.subject for s in meter.consume("acme/ana", "tokens").limits] == ["acme"]


@pytest.mark.parametrize("how", [{}, {"limits": [Flag("x")]}], ids=["catalog", "private"])
def test_subscribe_once(meter: AnyMeter, clock: ManualClock, how: dict[str, Any]) -> None:
    name = None if how else "pro"
    meter.subscribe("ana", name, op="order-1", change="reset", **how)
    meter.subscribe("ana", "free")
    clock.advance(hours=1)
    # Delivered again: it has happened, and what came later stays.
    meter.subscribe("ana", name, op="order-1", change="reset", **how)
    assert meter.usage("ana").plans == {"base": "free"}
    others: list[dict[str, Any]] = [
        {"plan": "pack"},
        {"plan": name, "change": "keep", **how},
        {"plan": name, "change": "reset", "anchor": "1d", **how},
        {"limits": [Flag("y")], "change": "reset"},
    ]
    for other in others:
        with pytest.raises(OpConflict, match="'order-1' was already used"):
            meter.subscribe("ana", op="order-1", **other)
    with pytest.raises(OpConflict):
        meter.consume("ana", "tokens", op="order-1")
    meter.subscribe("ana", name, op="order-2", change="reset", **how)
    assert meter.usage("ana").plans == {"base": name or "private"}


def test_an_equally_named_private_limit_is_another_request(meter: AnyMeter) -> None:
    meter.subscribe("ana", limits=[Pool("credits", 5)], op="x")
    with pytest.raises(OpConflict):
        meter.subscribe("ana", limits=[Pool("credits", 6)], op="x")


@pytest.mark.parametrize("anchor", ["1d", timedelta(days=1), day(1, 2)], ids=repr)
def test_a_repeated_subscribe_is_the_same_request_later(
    meter: AnyMeter, clock: ManualClock, anchor: Any
) -> None:
    meter.subscribe("ana", "pro", anchor=anchor, op="x")
    before = pool(meter)
    clock.advance(minutes=5)
    meter.subscribe("ana", "pro", anchor=anchor, op="x")
    assert pool(meter) == before


# --- Private plans


def test_private_plans(make: Make, clock: ManualClock) -> None:
    meter = make()
    meter.consume("ana", "tokens", 60)
    own = [Pool("credits", 70, "month", rates={"tokens": 1}), Flag("beta")]
    meter.subscribe("ana", limits=own)
    assert meter.usage("ana").plans == {"base": "private"}
    assert pool(meter)[:2] == (70, 60)
    assert meter.consume("ana", {"tokens": 10, "beta": 1})
    assert meter.consume("ana", "api").code is Code.NOT_INCLUDED
    assert "private" not in meter.plans()
    # The catalog never replaces it, not even by a plan of that name.
    meter.apply([Plan("private", includes=[Flag("z")])])
    assert meter.consume("ana", "z").code is Code.NOT_INCLUDED
    assert pool(meter)[:2] == (70, 70)
    assert make(None).check("ana", "beta")
    meter.subscribe("ana", "custom", limits=[Pool("credits", 200, "month")])
    assert meter.usage("ana").plans == {"base": "custom"}
    assert pool(meter)[:2] == (200, 70)
    meter.unsubscribe("ana", "custom")
    assert meter.usage("ana").plans == {"base": "free"}
    assert pool(meter)[:2] == (100, 70)
    # On a deeper level it stands alone.
    meter.subscribe("acme/ana", "own", limits=[Bucket("mine", 1, "1h")])
    assert meter.consume("acme/ana", {"mine": 1, "tokens": 1})
    assert not meter.consume("acme/ana", {"mine": 1, "tokens": 1})


# --- Overrides


def test_overrides(make: Make, clock: ManualClock) -> None:
    meter = make()
    assert meter.override("ana", "credits", limit=200) is None
    assert meter.consume("ana", "tokens", 150)["credits"].limit == 200
    override = meter.usage("ana").levels[0].overrides[0]
    assert (override.name, dict(override.fields), override.expires) == (
        "credits",
        {"limit": 200},
        None,
    )
    meter.override("ana", "api", limit=50, expires="2h")
    assert meter.consume("ana", "api", 30)["api"].limit == 50
    # It survives plan changes, sleeps while no plan includes the limit, and wakes.
    meter.subscribe("ana", "pro")
    assert pool(meter)[:2] == (200, 150)
    meter.subscribe("ana", limits=[Flag("nothing")])
    assert [o.name for o in meter.usage("ana").levels[0].overrides] == ["api", "credits"]
    meter.subscribe("ana", "pro")
    assert pool(meter)[0] == 200
    assert make(None).check("ana", "tokens")["credits"].limit == 200
    # A later one replaces it wholly.
    meter.override("ana", "credits", overage=None)
    state = meter.usage("ana")["credits"]
    assert state.limit == 1000
    assert meter.check("ana", "tokens", 10**12)
    meter.override("ana", "credits", limit=None)
    assert meter.usage("ana")["credits"].limit is None
    assert dict(meter.usage("ana").levels[0].overrides[1].fields) == {"limit": None}
    meter.override("ana", "credits", clear=True)
    meter.override("ana", "credits", clear=True)
    meter.override("nobody", "credits", clear=True)
    assert meter.usage("ana")["credits"].limit == 1000
    assert meter.subjects() == ["ana"]


@pytest.mark.parametrize("expires", ["2h", timedelta(hours=2), day(1, 1, 2)], ids=repr)
def test_an_override_ends_at_its_instant(
    meter: AnyMeter, clock: ManualClock, expires: Any
) -> None:
    meter.override("ana", "credits", limit=7, expires=expires)
    meter.override("ana", "api", limit=9)
    assert meter.usage("ana").levels[0].overrides[1].expires == day(1, 1, 2)
    clock.set(day(1, 1, 2) - timedelta(milliseconds=1))
    assert meter.check("ana", "tokens")["credits"].limit == 7
    clock.advance(milliseconds=1)
    for _ in range(2):
        assert meter.check("ana", "tokens")["credits"].limit == 100
        assert [o.name for o in meter.usage("ana").levels[0].overrides] == ["api"]
        meter.consume("ana", "tokens")


def test_override_of_a_token_bucket(make: Make) -> None:
    plan = Plan("p", includes=[Bucket("t", 10, "1m", algorithm="token")], default=True)
    meter = make([plan])
    meter.override("ana", "t", burst=30)
    assert meter.consume("ana", "t", 30)
    meter.override("ana", "t", limit=60, burst=40)
    assert meter.check("ana", "t", 10)
    assert meter.check("ana", "t", 11).retry_after == 1
    with pytest.raises(PolicyError, match="limit and overage are for pools"):
        meter.override("ana", "t", overage=5)


def test_an_override_of_a_level(meter: AnyMeter) -> None:
    meter.subscribe("acme/ana", "pro")
    meter.override("acme/ana", "credits", limit=3, overage=0)
    assert meter.check("acme/ana", "tokens").balance == 3
    assert meter.check("acme/bob", "tokens").balance == 100
    # A limit that the catalog knows may wait for a plan that includes it.
    meter.override("acme/carl", "credits", limit=4)
    assert meter.check("acme/carl", "tokens").balance == 100
    meter.subscribe("acme/carl", "pro")
    assert meter.usage("acme/carl")["credits"].limit == 4


# --- adjust


def test_adjust(meter: AnyMeter, clock: ManualClock) -> None:
    assert meter.adjust("ana", "credits", used=90) is None
    meter.adjust("ana", "api", used=4)
    usage = meter.usage("ana")
    assert (usage["credits"].used, usage["credits"].remaining) == (90, 10)
    assert (usage["api"].used, usage["api"].resets_at) == (4, day(1) + timedelta(minutes=1))
    meter.adjust("ana", "credits", used=120)
    state = meter.usage("ana")["credits"]
    assert (state.used, state.overage, state.remaining) == (120, 20, -20)
    meter.adjust("ana", "credits", used=0)
    assert meter.consume("ana", "tokens", 100)
    meter.adjust("acme", "credits", used=10)
    assert meter.consume("acme/ana", "tokens").balance == 89
    with pytest.raises(PolicyError, match="no pool or bucket 'credits'"):
        meter.adjust("acme/ana", "credits", used=1)
    clock.advance(days=31)
    assert pool(meter)[1] == 0


# --- meta


def test_meta(make: Make) -> None:
    meter = make()
    assert meter.meta("ana") == {}
    assert meter.set_meta("ana", {"customer": "cus_1", "tags": ["a", {"b": None}], "n": 1.5}) is None
    meter.set_meta("ana", {"naïve key": "☃\x00", "flag": False, "empty": "", "zero": 0})
    assert make(None).meta("ana") == {
        "customer": "cus_1",
        "tags": ["a", {"b": None}],
        "n": 1.5,
        "naïve key": "☃\x00",
        "flag": False,
        "empty": "",
        "zero": 0,
    }
    meter.set_meta("ana", {"tags": None, "n": 2, "absent": None})
    assert set(meter.meta("ana")) == {"customer", "n", "naïve key", "flag", "empty", "zero"}
    assert meter.meta("ana")["n"] == 2
    meter.set_meta("ana", {f"f{i}": i for i in range(128)})
    assert len(meter.meta("ana")) == 134
    # Meta is beside a record, not in it: each level has its own, and no record is needed.
    assert meter.meta("ana/x") == {}
    assert meter.subjects() == []
    meter.set_meta("bob", {"a": 1})
    meter.set_meta("bob", {"a": None})
    assert meter.meta("bob") == {}
    assert meter.forget("bob") == 0


# --- forget and subjects


def test_forget_takes_everything_below_along(meter: AnyMeter, clock: ManualClock) -> None:
    keep: list[Any] = ["acme2", "acme2/x", "ac", ("acme/x",), "other/acme"]
    for subject in [*keep, "acme", "acme/a", "acme/a/b", "acme/ab", ("acme", "a/b")]:
        meter.subscribe(subject, "pro")
        meter.set_meta(subject, {"name": "x"})
    meter.consume("acme/a/b", "tokens", 5, op="x")
    meter.consume("acme2", "tokens", 5, op="x")
    assert meter.forget("acme/a") == 4  # itself and a/b, each with meta; neither ab nor "a/b"
    assert meter.meta("acme/a") == {}
    assert {"acme/ab", ("acme", "a/b"), "acme"} <= set(meter.subjects())
    assert meter.usage("acme")["credits"].used == 5
    assert meter.consume("acme/a/b", "tokens", 5, op="x").replayed
    assert meter.forget("acme") == 7  # with the operation id
    assert sorted(map(str, meter.subjects())) == sorted(map(str, keep))
    assert not meter.consume("acme/a/b", "tokens", 5, op="x").replayed
    assert meter.consume("acme2", "tokens", 5, op="x").replayed
    assert meter.meta("acme2/x") == {"name": "x"}
    assert meter.forget("nobody") == 0


def test_an_interrupted_forget_is_finished_by_the_next(meter: AnyMeter) -> None:
    for index in range(450):
        meter.set_meta(("acme", f"{index}"), {"x": 1})
    meter.subscribe("acme", "pro")
    transport = meter.raw._transport
    send, sent = transport.send, [0]

    def breaking(request: Any, timeout: float) -> Any:
        if b"_forget\r\n" in request.packed:
            sent[0] += 1
            if sent[0] == 3:
                raise KeyboardInterrupt
        return send(request, timeout)

    transport.send = breaking
    with pytest.raises(KeyboardInterrupt):
        meter.forget("acme")
    assert meter.subjects() == []  # the record went first
    assert sent[0] == 3
    rest = meter.forget("acme")
    assert 0 < rest < 450
    assert meter.forget("acme") == 0


def test_a_forgotten_subject_starts_anew(meter: AnyMeter, clock: ManualClock) -> None:
    meter.subscribe("ana", "pro")
    meter.override("ana", "credits", limit=5)
    meter.consume("ana", "tokens", 5)
    clock.set(day(1, 15))
    meter.forget("ana")
    assert pool(meter) == (100, 0, day(2, 15))
    assert meter.consume("ana", "tokens", 100)
    # Forgetting also lets the clock go back.
    clock.set(day(1, 5))
    meter.forget("ana")
    assert meter.consume("ana", "tokens")["credits"].resets_at == day(2, 5)


def test_subjects(meter: AnyMeter) -> None:
    subjects: list[Any] = ["a", "a/b", "a/b/c/d", ("a", "x/y"), ("a/b",), "ab", "a%2Fb", "*", "[a]"]
    for subject in subjects:
        meter.subscribe(subject, "pro")
    meter.set_meta("only-meta", {"x": 1})
    meter.limiter("login", Bucket("ip", 5, "1m")).consume("1.2.3.4")
    found = meter.subjects()
    assert len(found) == len(subjects)
    assert set(found) == set(subjects)
    assert set(meter.subjects("a")) == {"a", "a/b", "a/b/c/d", ("a", "x/y")}
    assert meter.subjects("*") == ["*"]
    assert meter.subjects("[a]") == ["[a]"]
    assert meter.subjects("a/b") == [("a/b",)]
    assert meter.subjects("nobody") == []
    for root in ("", 5, b"a", ("a",)):
        with pytest.raises(PolicyError, match="subject"):
            meter.subjects(root)


def test_many_subjects_in_pages(meter: AnyMeter) -> None:
    names = {f"customer-{index}" for index in range(700)}
    login = meter.limiter("x", Bucket("ip", 1, "1m"))
    for name in names:
        meter.consume(name, "tokens", 0)
    login.consume("ip")
    sent = requests_of(meter)
    assert set(meter.subjects()) == names
    assert not any(b"KEYS" in request for request in sent)
    for name in names:
        meter.forget(name)


def test_subscribing_to_what_is_held_is_idempotent(meter: AnyMeter) -> None:
    meter.subscribe("ana", "pro")
    meter.consume("ana", {"tokens": 5, "api": 2})
    before = meter.usage("ana")
    meter.subscribe("ana", "pro")
    assert meter.usage("ana") == before
    assert before.plans == {PRO.group: PRO.id}
