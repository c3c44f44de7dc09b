"""The stored catalog: who fills it, who may change it, and how a change reaches everybody."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meterd import Bucket, CatalogMismatch, Diff, Flag, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import (
    EXTRA,
    FREE,
    PLANS,
    PRO,
    AnyMeter,
    Make,
    look_again,
    pool_plan,
    requests_of,
)


def limit_of(meter: AnyMeter, subject: str = "ana") -> Any:
    return meter.check(subject, "credits")["credits"].limit


# --- Filling, comparing, refusing


def test_plans_fill_an_empty_catalog(make: Make) -> None:
    meter = make()
    assert meter.plans() == {plan.id: plan for plan in PLANS}
    assert meter.plans(retired=True) == {}
    assert meter.revision == 1
    other = make(None)
    assert other.plans() == {plan.id: plan for plan in PLANS}
    assert other.consume("ana", "tokens")["credits"].limit == 100
    assert other.revision == 1


def test_equal_or_fewer_plans_just_run(make: Make) -> None:
    make().open()
    for plans in (PLANS, tuple(reversed(PLANS)), [FREE], []):
        meter = make(plans)
        assert meter.consume("ana", "tokens", 0)
        assert meter.revision == 1
        assert set(meter.plans()) == {"free", "pro", "pack"}


@pytest.mark.parametrize("nothing", [(), []], ids=["tuple", "list"])
def test_no_plans_leave_an_empty_catalog_empty(make: Make, nothing: Any) -> None:
    meter = make(nothing)
    meter.open()
    assert meter.check("ana", "credits").code == "NO_PLAN"
    assert meter.plans() == {}
    assert make(PLANS).plans().keys() == {"free", "pro", "pack"}
    # The one that came first follows.
    look_again(meter)
    assert meter.consume("ana", "tokens")


def test_never_seen_plans_are_refused_with_the_difference(make: Make) -> None:
    make().open()
    new = (replace(FREE, includes=[Pool("credits", 200, "month")]), Plan("extra", includes=[]))
    meter = make(new)
    for call in (meter.open, lambda: meter.consume("ana", "tokens"), meter.plans):
        with pytest.raises(CatalogMismatch, match=r"revision 1.*\n(.*\n)*.*plan extra") as caught:
            call()
        diff = caught.value.diff
        assert isinstance(diff, Diff)
        assert [plan.id for plan in diff.added] == ["extra"]
        assert [change.id for change in diff.changed] == ["free"]
        assert "limit 100 -> 200" in str(diff)
        json.dumps(diff.as_dict())
    assert make(None).plans()["free"] == FREE
    assert make(None).subjects() == []


def test_a_plan_of_one_revision_and_a_plan_of_another_were_never_together(make: Make) -> None:
    first, second = pool_plan(1), pool_plan(2)
    other_first, other_second = pool_plan(1, "b", default=False), pool_plan(2, "b", default=False)
    meter = make([first, other_first])
    meter.open()
    meter.apply([second, other_second])
    make([first, other_first]).open()
    make([second]).open()
    with pytest.raises(CatalogMismatch):
        make([first, other_second]).open()


def test_apply_true_puts_them_there(make: Make) -> None:
    make([pool_plan(1)]).open()
    meter = make([pool_plan(2)], apply=True)
    assert limit_of(meter) == 2
    assert meter.revision == 2
    # An old process that starts again during the deploy does not take it back.
    old = make([pool_plan(1)], apply=True)
    assert limit_of(old) == 2
    assert old.revision == 2


def test_meter_apply(make: Make) -> None:
    make([pool_plan(1)]).open()
    meter = make([pool_plan(2)])
    change = meter.apply()
    assert [one.id for one in change.changed] == ["base"]
    assert meter.revision == 2
    assert limit_of(meter) == 2
    again = meter.apply()
    assert not again
    assert [plan.id for plan in again.unchanged] == ["base"]
    assert meter.revision == 2


def test_applying_something_else_does_not_excuse_plans_never_seen(make: Make) -> None:
    make([pool_plan(1)]).open()
    meter = make([pool_plan(2)])
    with pytest.raises(PolicyError, match="remove"):
        meter.apply(remove=["nothing"])
    meter.apply([Plan("extra", includes=[])])
    with pytest.raises(CatalogMismatch):
        meter.consume("ana", "credits")
    assert set(make(None).plans()) == {"base", "extra"}


def test_apply_fills_an_empty_catalog(make: Make) -> None:
    meter = make([pool_plan(1)])
    change = meter.apply([EXTRA])
    assert [plan.id for plan in change.added] == ["extra"]
    assert set(meter.plans()) == {"base", "extra"}
    with pytest.raises(PolicyError, match="no plans given"):
        make(None).apply()


def test_dry_run_changes_nothing(make: Make) -> None:
    meter = make([pool_plan(1)])
    change = meter.apply(dry_run=True)
    assert [plan.id for plan in change.added] == ["base"]
    assert make(None).plans() == {}
    meter.open()
    assert make([pool_plan(2)]).apply(dry_run=True).changed
    gone = meter.apply([], remove=["base"], dry_run=True)
    assert [plan.id for plan in gone.removed] == ["base"]
    assert make(None).plans() == {"base": pool_plan(1)}
    assert make(None).revision == 0


# --- Retired plans


def test_retired_plans(make: Make, clock: ManualClock) -> None:
    meter = make()
    meter.subscribe("ana", "pro")
    change = meter.apply([], remove=["pro"])
    assert [plan.id for plan in change.removed] == ["pro"]
    assert set(meter.plans()) == {"free", "pack"}
    assert meter.plans(retired=True) == {"pro": PRO}
    with pytest.raises(PolicyError, match="plan 'pro' is retired"):
        meter.subscribe("bob", "pro")
    with pytest.raises(PolicyError, match="plan 'pro' is retired"):
        meter.consume("bob", "tokens", join="pro")
    assert meter.subjects() == ["ana"]
    # Holders keep it: what they have, what it resets to, and naming it in `join`.
    clock.advance(days=40)
    assert meter.consume("ana", "tokens", 300, join="pro").balance == 750
    assert meter.usage("ana").plans == {"base": "pro"}
    assert make(PLANS).consume("ana", "tokens").balance == 749
    with pytest.raises(PolicyError, match="remove"):
        meter.apply([], remove=["pro"])
    # Applied again, it takes subscribers again.
    assert [plan.id for plan in meter.apply([PRO]).added] == ["pro"]
    assert meter.plans(retired=True) == {}
    meter.subscribe("bob", "pro")


def test_a_meter_retires_one_of_its_own_plans(make: Make) -> None:
    meter = make()
    change = meter.apply(remove=["pro"])
    assert [plan.id for plan in change.removed] == ["pro"]
    assert [plan.id for plan in change.unchanged] == ["free", "pack"]
    assert set(meter.plans()) == {"free", "pack"}
    make().consume("ana", "tokens")  # these are plans of an earlier revision


def test_a_retired_default_is_joined_no_more(make: Make) -> None:
    meter = make()
    meter.consume("ana", "tokens")
    meter.apply([], remove="free")
    assert meter.consume("bob", "tokens").code == "NO_PLAN"
    assert meter.consume("ana", "tokens").balance == 98
    meter.apply([replace(PRO, default=True)])
    assert meter.consume("bob", "tokens")["credits"].limit == 1000
    assert meter.consume("ana", "tokens")["credits"].limit == 100


# --- Changes reach everybody


def test_an_apply_reaches_a_running_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    running, deployed = make([pool_plan(10)]), make(None)
    assert running.consume("ana", "credits", 4)["credits"].limit == 10
    deployed.apply([pool_plan(20)])
    assert limit_of(running) == 10
    monkeypatch.setattr("meterd.store.REFRESH_SECONDS", -1)
    decision = running.consume("ana", "credits", 4)
    assert (decision["credits"].limit, decision["credits"].used) == (20, 8)
    assert running.revision == 2
    assert running.consume("bob", "credits")["credits"].limit == 20


@pytest.mark.usefixtures("looks_by_itself")
def test_a_process_looks_every_few_seconds_of_use(make: Make) -> None:
    from meterd import store

    assert 0 < store.REFRESH_SECONDS <= 2.5  # an apply is to reach everybody within five
    meter = make([pool_plan(10)])
    meter.consume("ana", "credits")
    sent = requests_of(meter)
    meter.consume("ana", "credits")
    assert len(sent) == 1
    look_again(meter)
    meter.consume("ana", "credits")
    assert len(sent) == 4
    assert b"GET" in sent[1]
    assert b"{store}:catalog" in sent[1]
    assert b"{store}:private" in sent[2]
    meter.consume("ana", "credits")
    assert len(sent) == 5


def test_a_subject_is_moved_once_and_never_back(make: Make) -> None:
    old, new = make([pool_plan(10)]), make(None)
    assert old.consume("ana", "credits", 4).balance == 6
    new.apply([pool_plan(20)])
    sent = requests_of(new)
    assert new.consume("ana", "credits").balance == 15
    moved_in = len(sent)
    assert new.consume("ana", "credits").balance == 14
    assert len(sent) == moved_in + 1
    # A process that still holds the old revision sees the record as it is, and leaves it so.
    asked = requests_of(old)
    assert old.consume("ana", "credits").balance == 13
    assert old.check("ana", "credits")["credits"].limit == 20
    assert old.usage("ana")["credits"].limit == 20
    assert old.revision == 1
    assert len(asked) <= 4
    # A new root gets what that process knows, until it looks.
    assert old.consume("bob", "credits")["credits"].limit == 10
    assert new.consume("bob", "credits")["credits"].limit == 20
    assert old.consume("bob", "credits")["credits"].limit == 20
    look_again(old)
    assert old.consume("carl", "credits")["credits"].limit == 20


def test_reading_moves_nothing(make: Make) -> None:
    old, new = make([pool_plan(10)]), make(None)
    old.consume("ana", "credits", 4)
    new.apply([pool_plan(20)])
    for _ in range(2):
        assert new.check("ana", "credits")["credits"].limit == 20
        assert new.usage("ana")["credits"].limit == 20
    assert old.check("ana", "credits")["credits"].limit == 10


def test_two_processes_of_different_revisions_charge_one_record(make: Make) -> None:
    old, new = make([pool_plan(100)]), make(None)
    old.consume("ana", "credits")
    new.apply([Plan("base", includes=[Flag("x"), Pool("credits", 50, "month")], default=True)])
    for done in range(2, 20, 2):
        assert old.consume("ana", "credits")["credits"].used == done
        assert new.consume("ana", "credits")["credits"].used == done + 1
    assert old.check("ana", "credits")["credits"].limit == 50
    assert old.check("ana", "x")


def test_new_defaults_are_joined_by_who_is_there(make: Make) -> None:
    meter = make([pool_plan(10)])
    meter.consume("ana", "credits")
    meter.subscribe("acme/bob", "base")
    meter.apply([Plan("news", includes=[Flag("news")], group="news", default=True)])
    assert meter.consume("ana", "news")
    assert meter.usage("ana").plans == {"base": "base", "news": "news"}
    # Joining is for roots.
    meter.consume("acme/bob", "credits")
    assert dict(meter.usage("acme/bob").levels[1].plans) == {"base": "base"}


def test_limits_come_and_go(make: Make) -> None:
    meter = make([Plan("base", includes=[Pool("a", 5), Bucket("b", 5, "1m")], default=True)])
    meter.consume("ana", {"a": 3, "b": 2})
    meter.apply([Plan("base", includes=[Flag("f"), Pool("a", 9)], default=True)])
    usage = meter.usage("ana")
    assert [(s.name, s.used) for s in usage] == [("f", 0), ("a", 3)]
    assert meter.consume("ana", "a")["a"].used == 4
    meter.apply([Plan("base", includes=[Bucket("b", 5, "1m"), Pool("a", 9)], default=True)])
    assert [(s.name, s.used) for s in meter.usage("ana")] == [("b", 0), ("a", 4)]
