"""What calls return: values that cannot be changed, that travel, and that say what they mean."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import (
    Bucket,
    CatalogMismatch,
    Code,
    Decision,
    LimitState,
    MeterdError,
    NoPlan,
    NotIncluded,
    OpConflict,
    OutcomeUnknown,
    Plan,
    RateLimited,
    Refused,
    Usage,
    UsageExceeded,
)
from tests.client.meter_tools import PLANS, AnyMeter, Make


@pytest.fixture
def allowed(meter: AnyMeter) -> Decision:
    found: Decision = meter.consume("ana", {"tokens": 5, "api": 1}, op="first")
    return found


@pytest.fixture
def refused(meter: AnyMeter) -> Decision:
    found: Decision = meter.consume("ana", {"tokens": 500, "api": 1})
    return found


def test_a_decision_is_what_it_decided(allowed: Decision, refused: Decision) -> None:
    assert allowed
    assert allowed.allowed is True
    ok, balance = allowed
    assert (ok, balance) == (True, 95)
    assert allowed.code is Code.OK
    assert allowed.code == "OK"
    assert (allowed.op, allowed.replayed, allowed.degraded) == ("first", False, False)
    assert allowed.refused == ()
    assert allowed.retry_after is None
    assert allowed.raise_if_refused() is allowed

    assert not refused
    assert refused.allowed is False
    assert list(refused) == [False, 95]
    assert refused.code is Code.USAGE_EXCEEDED
    assert (refused.op, refused.replayed, refused.degraded) == (None, False, False)
    assert refused.refused == (refused["credits"],)
    assert refused["api"].allowed
    assert not refused["credits"].allowed


def test_limits_by_name(allowed: Decision) -> None:
    assert [state.name for state in allowed.limits] == ["credits", "api"]
    state = allowed["credits"]
    assert isinstance(state, LimitState)
    assert (state.subject, state.name, state.kind) == ("ana", "credits", "pool")
    assert (state.limit, state.used, state.remaining, state.overage) == (100, 5, 95, 0)
    assert (state.applied, state.allowed, state.retry_after) == (5, True, None)
    assert state.resets_at == datetime(2025, 2, 1, tzinfo=UTC)
    assert state.resets_at_ms == 1_738_368_000_000
    with pytest.raises(KeyError, match="no limit 'credit' here; there are: api, credits"):
        allowed["credit"]


def test_the_tightest_level_wins(make: Make) -> None:
    meter = make([Plan("base", includes=[Bucket("api", 100, "1m")], default=True)])
    meter.subscribe("acme/ana", limits=[Bucket("api", 3, "1m")])
    decision = meter.consume("acme/ana", "api", 2)
    assert [(s.subject, s.remaining) for s in decision.limits] == [("acme", 98), ("acme/ana", 1)]
    assert decision["api"].subject == "acme/ana"
    assert decision.balance == 1
    assert meter.usage("acme/ana")["api"].subject == "acme/ana"
    refused = meter.consume("acme/ana", "api", 2)
    assert refused["api"].subject == "acme/ana"
    assert [state.subject for state in refused.refused] == ["acme/ana"]
    # The refusing level comes first, however little another one has left.
    meter.adjust("acme", "api", used=100)
    meter.override("acme/ana", "api", limit=50)
    assert meter.check("acme/ana", "api", 20)["api"].subject == "acme"


@pytest.mark.parametrize("kind", ["decision", "state", "usage", "level", "override"])
def test_immutable(meter: AnyMeter, kind: str) -> None:
    meter.override("ana", "credits", limit=7)
    decision = meter.consume("ana", "tokens", op=True)
    usage: Usage = meter.usage("ana")
    value: Any = {
        "decision": decision,
        "state": decision["credits"],
        "usage": usage,
        "level": usage.levels[0],
        "override": usage.levels[0].overrides[0],
    }[kind]
    before = repr(value)
    names = [name for name in dir(value) if not name.startswith("__")]
    assert len(names) > 3
    for name in [*names, "anything"]:
        with pytest.raises((AttributeError, TypeError)):
            setattr(value, name, 1)
    for name in ("limits", "name", "subject", "allowed", "fields", "plans"):
        with pytest.raises((AttributeError, TypeError)):
            delattr(value, name)
    assert not hasattr(value, "__dict__")
    assert repr(value) == before
    assert hash(value) == hash(copy.deepcopy(value)) == hash(pickle.loads(pickle.dumps(value)))
    assert value == copy.deepcopy(value) == pickle.loads(pickle.dumps(value))
    for attribute in ("plans", "fields"):
        mapping = getattr(value, attribute, None)
        if mapping is not None and kind != "usage":
            with pytest.raises(TypeError):
                mapping["base"] = "other"


def test_equal_answers_are_equal(meter: AnyMeter) -> None:
    first, second = meter.check("ana", "tokens"), meter.check("ana", "tokens")
    assert first == second
    assert len({first, second}) == 1
    meter.consume("ana", "tokens")
    assert first != meter.check("ana", "tokens")
    assert first != "OK"


def test_json(meter: AnyMeter, allowed: Decision, refused: Decision) -> None:
    data = json.loads(json.dumps(allowed.as_dict()))
    assert data["allowed"] is True
    assert data["code"] == "OK"
    assert data["balance"] == 95
    assert data["op"] == "first"
    assert data["retry_after"] is None
    assert data["limits"][0] == {
        "subject": "ana",
        "name": "credits",
        "kind": "pool",
        "limit": 100,
        "used": 5,
        "remaining": 95,
        "overage": 0,
        "applied": 5,
        "allowed": True,
        "resets_at": "2025-02-01T00:00:00+00:00",
        "retry_after": None,
        "drawn": 0,
        "granted": 0,
    }
    data = json.loads(json.dumps(refused.as_dict()))
    assert (data["code"], data["refused"]) == ("USAGE_EXCEEDED", ["credits"])

    meter.override("ana", "credits", limit=70, expires="1h")
    usage = json.loads(json.dumps(meter.usage("ana").as_dict()))
    assert usage["subject"] == "ana"
    assert usage["levels"] == [
        {
            "subject": "ana",
            "plans": {"base": "free"},
            "overrides": [{"name": "credits", "limit": 70, "expires": "2025-01-01T01:00:00+00:00"}],
            "grants": [],
            "stored": True,
            "holds": [],
            "open_holds": 0,
            "pending": [],
        }
    ]
    assert [limit["name"] for limit in usage["limits"]] == ["credits", "api", "export"]


def test_usage(meter: AnyMeter, allowed: Decision) -> None:
    usage: Usage = meter.usage("ana/tools")
    assert usage.subject == "ana/tools"
    assert [level.subject for level in usage.levels] == ["ana"]
    assert usage.plans == {"base": "free"}
    assert [state.name for state in usage] == ["credits", "api", "export"]
    assert "credits" in usage
    assert "tokens" not in usage
    assert usage["credits"].used == 5
    assert usage["export"].kind == "flag"
    with pytest.raises(KeyError, match="no limit 'tokens'"):
        usage["tokens"]


REFUSALS = [
    ("ana", {"tokens": 100}, UsageExceeded, "^USAGE_EXCEEDED by credits; retry in 2678400 s$"),
    ("ana", {"tokens": 101}, UsageExceeded, "^USAGE_EXCEEDED by credits$"),
    ("ana", {"api": 5}, RateLimited, "^RATE_LIMITED by api; retry in 60 s$"),
    ("ana", {"tokens": 101, "api": 6}, UsageExceeded, "USAGE_EXCEEDED by api, credits"),
    ("ana", {"video": 1}, NotIncluded, "NOT_INCLUDED"),
    ("ana", {"tokens": 101, "video": 1}, NotIncluded, "NOT_INCLUDED by credits"),
]


@pytest.mark.parametrize(("subject", "costs", "kind", "says"), REFUSALS)
def test_raised_refusals(
    meter: AnyMeter, subject: str, costs: dict[str, int], kind: type[Refused], says: str
) -> None:
    meter.consume(subject, {"tokens": 1, "api": 1})
    decision = meter.check(subject, costs)
    with pytest.raises(Refused, match=says) as caught:
        decision.raise_if_refused()
    assert type(caught.value) is kind
    assert isinstance(caught.value, MeterdError)
    assert caught.value.decision is decision
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.decision) == (kind, str(caught.value), decision)


def test_no_plan(make: Make) -> None:
    meter = make([plan for plan in PLANS if not plan.default])
    for call in (meter.consume, meter.check, meter.refund):
        decision = call("ana", "tokens")
        assert decision.code is Code.NO_PLAN
        assert (decision.allowed, decision.balance, decision.limits) == (False, 0, ())
        assert decision.retry_after is None
        with pytest.raises(NoPlan, match="NO_PLAN"):
            decision.raise_if_refused()
    with pytest.raises(NoPlan, match="nothing was recorded"):
        meter.report("ana", "tokens")
    assert meter.subjects() == []


def test_instants_far_away_stay_instants() -> None:
    state = LimitState("a", "b", "pool", 1, 0, 1, 0, 0, True, 2**53, None)
    assert state.resets_at == datetime.max.replace(tzinfo=UTC)
    state = LimitState("a", "b", "pool", 1, 0, 1, 0, 0, True, 86_400_001, None)
    assert state.resets_at == datetime(1970, 1, 2, tzinfo=UTC) + timedelta(milliseconds=1)


@pytest.mark.parametrize(
    "error",
    [
        CatalogMismatch("text", {"added": []}),
        OutcomeUnknown("text", "op-1"),
        OpConflict("text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel(error: MeterdError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), "text", vars(error))
