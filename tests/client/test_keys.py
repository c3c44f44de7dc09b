"""API keys: making one and verifying it, which charges the key and its owner, or neither."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from meterd import ApiKey, Bucket, Flag, KeyCode, Meter, OpConflict, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.key_tools import GROWTH, PLANS, STARTER, used
from tests.client.meter_tools import AnyMeter, Make, look_again, requests_of


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


def test_a_key_is_made_and_verified(meter: AnyMeter, clock: ManualClock) -> None:
    key = meter.keys.create("acme", name="ci", meta={"env": "test", "tags": [1, None]})
    assert isinstance(key, ApiKey)
    assert key.id.startswith("key_")
    assert (key.owner, key.subject) == ("acme", f"acme/{key.id}")
    assert key.secret.startswith("mk_" + key.id.removeprefix("key_") + "_")
    assert (key.name, key.meta) == ("ci", {"env": "test", "tags": [1, None]})
    assert (key.enabled, key.expires, key.join) == (True, None, None)
    assert key.created == clock.now()
    found = meter.keys.verify(key.secret)
    assert found
    assert (found.valid, found.code) == (True, KeyCode.VALID)
    assert found.code == "VALID"
    assert (found.key_id, found.subject, found.owner) == (key.id, key.subject, "acme")
    assert (found.name, found.meta) == (key.name, key.meta)
    # One credit and one call, which plans charge unasked; nothing else.
    assert used(meter, "acme") == {"credits": 1, "api": 1}
    assert found.credits == 99
    assert {name: state.remaining for name, state in found.ratelimits.items()} == {"api": 59}
    assert found.decision.allowed
    assert found.decision.balance == 59
    assert meter.keys.get(key.id) == key
    assert meter.keys.get(key.id).secret is None


@pytest.mark.parametrize("owner", ["acme", "acme/team", "acme/team/ana", ("a/b", "%", "ключ")])
def test_an_owner_is_any_path_of_up_to_three_segments(meter: AnyMeter, owner: Any) -> None:
    segments = tuple(owner.split("/")) if isinstance(owner, str) else owner
    meter.subscribe(owner, limits=[Pool("credits", 5)])
    key = meter.keys.create(owner, limits=[Pool("credits", 3), Bucket("own", 9, "1m", auto=4)])
    assert key.owner == owner
    found = meter.keys.verify(key.secret)
    assert (found.owner, found.subject) == (key.owner, key.subject)
    assert found.credits == 2  # the strictest
    states = {(state.subject, state.name): state.applied for state in found.decision.limits}
    assert states[key.subject, "own"] == 4
    assert states[key.subject, "credits"] == 1
    for depth in range(1, len(segments) + 1):
        above = meter.usage(segments[:depth])
        assert above["credits"].used == 1


def test_owners_that_are_none(meter: AnyMeter) -> None:
    for owner in ("a/b/c/d", "", "a//b", 5, None):
        with pytest.raises(PolicyError):
            meter.keys.create(owner)


def test_costs_and_what_is_charged_unasked(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", limits=[Pool("credits", 50), Bucket("own", 9, "1m", auto=2)])
    assert meter.keys.verify(key.secret, "credits", 5)
    assert used(meter, "acme") == {"credits": 5, "api": 1}
    assert used(meter, key.subject) == {"credits": 5, "own": 2}  # one name, both levels
    assert meter.keys.verify(key.secret, {"prompt": 10, "completion": 2, "api": 3})
    assert used(meter, "acme") == {"credits": 6, "api": 4, "tokens": 16}
    assert meter.keys.verify(key.secret, {"credits": 0, "api": 0, "own": 0})
    assert used(meter, "acme") == {"credits": 6, "api": 4, "tokens": 16}
    assert meter.keys.verify(key.secret, "burst", auto=False)
    assert used(meter, "acme") == {"credits": 6, "api": 4, "tokens": 16, "burst": 1}
    only = meter.keys.verify(key.secret, auto=False)
    assert only.valid
    assert only.decision.limits == ()
    assert (only.credits, only.ratelimits) == (None, {})
    assert used(meter, key.subject) == {"credits": 6, "own": 4}


def test_a_cost_reaches_a_limit_by_its_rates_and_then_nothing_is_added(make: Make) -> None:
    plan = Plan(
        "p",
        default=True,
        includes=[Pool("credits", 100, rates={"image": 10}), Bucket("all", 50, "1m", auto=3)],
    )
    meter = make([plan])
    key = meter.keys.create("acme")
    assert meter.keys.verify(key.secret).decision["credits"].applied == 1
    found = meter.keys.verify(key.secret, "image", 2)
    assert {state.name: state.applied for state in found.decision.limits} == {
        "credits": 20,
        "all": 3,
    }
    assert found.decision.balance == 7  # images


def test_each_level_has_automatic_amounts_of_its_own(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", limits=[Pool("credits", 50, auto=7), Bucket("api", 9, "1m")])
    found = meter.keys.verify(key.secret)
    applied = {(state.subject, state.name): state.applied for state in found.decision.limits}
    assert applied == {("acme", "credits"): 1, ("acme", "api"): 1, (key.subject, "credits"): 7}


def test_the_strictest_refuses_and_nothing_is_charged(meter: AnyMeter, clock: ManualClock) -> None:
    key = meter.keys.create("acme", limits=[Bucket("own", 2, "1m", algorithm="fixed", auto=1)])
    other = meter.keys.create("acme")
    for _ in range(2):
        assert meter.keys.verify(key.secret)
    refused = meter.keys.verify(key.secret)
    assert not refused
    assert refused.code is KeyCode.RATE_LIMITED
    assert [state.name for state in refused.decision.refused] == ["own"]
    assert refused.decision.retry_after == 60
    assert refused.ratelimits["own"].remaining == 0
    assert (refused.key_id, refused.owner) == (key.id, "acme")
    assert used(meter, "acme") == {"credits": 2, "api": 2}
    assert meter.keys.verify(other.secret)  # the owner has enough
    meter.override("acme", "credits", limit=3)
    poor = meter.keys.verify(other.secret)
    assert (poor.code, poor.credits) == (KeyCode.USAGE_EXCEEDED, 0)
    clock.advance(minutes=1)
    assert meter.keys.verify(key.secret).code is KeyCode.USAGE_EXCEEDED
    assert meter.keys.verify(key.secret, {"credits": 0}).valid


def test_what_is_not_included(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", limits=[Flag("beta")])
    for flag in ("sso", "beta"):
        assert meter.keys.verify(key.secret, flag, auto=False)
    found = meter.keys.verify(key.secret, "nothing")
    assert found.code is KeyCode.NOT_INCLUDED
    assert used(meter, "acme") == {}
    with pytest.raises(PolicyError, match="slots"):
        meter.keys.verify(key.secret, "jobs")


def test_no_plan(make: Make) -> None:
    meter = make([GROWTH])
    key = meter.keys.create("acme")
    assert meter.keys.verify(key.secret).code is KeyCode.NO_PLAN
    assert meter.keys.verify(key.secret, "credits").code is KeyCode.NO_PLAN
    assert meter.keys.verify(key.secret, auto=False).code is KeyCode.VALID
    own = meter.keys.create("acme", limits=[Pool("credits", 1)])
    assert [meter.keys.verify(own.secret).code for _ in range(2)] == ["VALID", "USAGE_EXCEEDED"]


def test_plans_that_charge_nothing_unasked(make: Make) -> None:
    meter = make([Plan("p", default=True, includes=[Pool("tokens", 5), Bucket("b", 5, "1m")])])
    key = meter.keys.create("acme")
    for op in (None, "x", "x"):
        found = meter.keys.verify(key.secret, op=op)
        assert found.valid
        assert (found.decision.limits, found.decision.balance) == ((), None)
    assert found.decision.replayed


def test_a_key_is_filled_up_by_grants_alone(meter: AnyMeter) -> None:
    """A pool named credits is charged unasked, whoever made it be there."""
    key = meter.keys.create("acme/team")
    meter.grant(key.subject, "credits", 2, op="top-up")
    meter.grant(key.subject, "other", 2)
    found = [meter.keys.verify(key.secret, op=f"v{n}") for n in range(3)]
    assert [(one.code, one.credits) for one in found] == [
        ("VALID", 1), ("VALID", 0), ("USAGE_EXCEEDED", 0),
    ]  # fmt: skip
    assert used(meter, key.subject) == {"credits": 2}
    assert meter.operation("acme", "v1").costs == {}
    assert meter.refund(key.subject, of="v1")["credits"].remaining == 1
    (grant, _) = meter.usage(key.subject).levels[-1].grants
    assert (grant.id, grant.remaining, grant.consumed) == ("top-up", 1, 1)


def test_nothing_unasked_is_no_bound_whatever_else_is_there(meter: AnyMeter) -> None:
    meter.subscribe("b", limits=[Pool("tokens", 5)])
    meter.grant("b", "tokens", 1, expires="1h", starts="1m")
    found = meter.keys.verify(meter.keys.create("b").secret)
    assert (found.code, found.decision.balance) == ("VALID", None)


def test_join_is_for_the_root_of_the_owner(meter: AnyMeter) -> None:
    meter.consume("held", "credits")
    for owner in ("acme/team", "held"):
        key = meter.keys.create(owner, join="growth")
        assert key.join == "growth"
    assert meter.usage("acme").plans == {"base": "growth"}  # at once, not with the first call
    assert meter.usage("held").plans == {"base": "starter"}
    with pytest.raises(PolicyError, match="not in the catalog"):
        meter.keys.create("other", join="grwoth")
    assert meter.keys.list("other") == []
    for number in range(9):  # within one millisecond of the test clock
        meter.keys.create("several", name=str(number))
    assert [key.name for key in meter.keys.list("several")] == list("012345678")


def test_a_root_whose_record_went_joins_again(make: Make) -> None:
    """One that holds only buckets is forgotten once they are full."""
    more = Plan("more", includes=[Bucket("api", 500, "1m", auto=1)])
    meter = make([Plan("less", default=True, includes=[Bucket("api", 5, "1m", auto=1)]), more])
    key = meter.keys.create("acme", join="more")
    assert meter.keys.verify(key.secret).ratelimits["api"].limit == 500
    path = meter.raw._keys.path("acme")
    flow = meter.raw._session.plain(path.keys[0], (b"DEL", path.keys[0]))
    meter._settled(meter.raw._run(flow))  # the record alone, as its TTL does
    assert meter.keys.verify(key.secret).ratelimits["api"].limit == 500


def test_a_join_that_was_retired_lets_nobody_in(make: Make) -> None:
    meter = make([Plan("old", includes=[Bucket("api", 5, "1m", auto=1)])])
    key = meter.keys.create("acme", join="old")
    meter.apply([], remove=["old"])
    assert meter.keys.verify(key.secret)  # it holds the plan
    with pytest.raises(PolicyError, match="retired"):
        meter.keys.create("other", join="old")
    path = meter.raw._keys.path("acme")
    flow = meter.raw._session.plain(path.keys[0], (b"DEL", path.keys[0]))
    meter._settled(meter.raw._run(flow))
    assert meter.keys.verify(key.secret).code is KeyCode.NO_PLAN


def test_a_changed_catalog_changes_what_is_charged_unasked(make: Make) -> None:
    meter, other = make(PLANS), make(PLANS)
    key = meter.keys.create("acme", limits=[Pool("credits", 50)])
    assert meter.keys.verify(key.secret).decision["api"].applied == 1
    other.apply([Plan("starter", default=True, includes=[Bucket("api", 60, "1m", auto=5)])])
    look_again(meter)
    found = meter.keys.verify(key.secret)
    assert found.decision["api"].applied == 5
    assert [state.subject for state in found.decision.limits] == ["acme", key.subject]
    meter.subscribe("acme", "growth")
    found = meter.keys.verify(key.secret)
    assert [(s.subject, s.name, s.applied) for s in found.decision.limits] == [
        ("acme", "credits", 1),
        (key.subject, "credits", 1),
    ]
    meter.override(key.subject, "credits", limit=3)
    assert meter.keys.verify(key.secret).credits == 0
    assert meter.keys.verify(key.secret).code is KeyCode.USAGE_EXCEEDED


def test_an_operation_id(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", name="first")
    one = meter.keys.verify(key.secret, "prompt", 5, op="x")
    assert (one.decision.op, one.decision.replayed) == ("x", False)
    meter.keys.update(key.id, name="second")
    again = meter.keys.verify(key.secret, "prompt", 5, op="x")
    assert (again.valid, again.decision.replayed, again.name) == (True, True, "second")
    assert again.decision.limits == one.decision.limits
    assert used(meter, "acme") == {"credits": 1, "api": 1, "tokens": 5}
    for call in (
        lambda: meter.keys.verify(key.secret, "prompt", 6, op="x"),
        lambda: meter.keys.verify(key.secret, "prompt", 5, auto=False, op="x"),
        lambda: meter.consume("acme", "prompt", 5, op="x"),
    ):
        with pytest.raises(OpConflict):
            call()
    assert meter.keys.verify(key.secret, auto=False, op="x").valid  # there is nothing to repeat
    meter.keys.update(key.id, enabled=False)
    assert meter.keys.verify(key.secret, "prompt", 5, op="x").code is KeyCode.DISABLED
    made = [meter.keys.verify(key.secret, op=True).decision for _ in range(2)]
    assert made == [None, None]


# How often the server is asked --------------------------------------------------------------------


@pytest.mark.parametrize("functions", [True, False])
def test_one_round_trip_once_the_secret_is_known(make: Make, functions: bool) -> None:
    meter = make(PLANS, functions=functions)
    key = meter.keys.create("acme/team", limits=[Pool("credits", 9)])
    meter.consume("acme", "credits")
    fresh = make(PLANS, functions=functions)
    fresh.consume("other", "credits")
    sent = requests_of(fresh)
    assert fresh.keys.verify(key.secret)
    # The entry; then the call, which without functions has to bring the policies of three levels.
    assert len(sent) <= (2 if functions else 6)
    for costs in (None, "credits", {"prompt": 3, "credits": 1}):
        sent.clear()
        assert fresh.keys.verify(key.secret, costs)
        assert len(sent) == 1
    sent.clear()
    assert fresh.keys.verify(key.secret, auto=False)
    assert len(sent) == 1


def test_a_broken_checksum_asks_nobody(meter: AnyMeter) -> None:
    key = meter.keys.create("acme")
    sent = requests_of(meter)
    last = "a" if key.secret[-1] != "a" else "b"
    for wrong in (key.secret[:-1] + last, "x" + key.secret, "x" + key.secret[1:]):
        found = meter.keys.verify(wrong)
        assert found.code is KeyCode.NOT_FOUND
        assert (found.key_id, found.subject, found.owner, found.decision) == (None,) * 4
        assert (found.name, found.meta) == (None, {})
    assert sent == []


@pytest.mark.parametrize("secret", ["", "old", "é\ud800", "x" * 10_000, "mk_", "\x00", "a b\n"])
def test_what_is_no_secret_is_not_found(meter: AnyMeter, secret: str) -> None:
    assert meter.keys.verify(secret).code is KeyCode.NOT_FOUND
    assert meter.keys.verify(secret, auto=False).code is KeyCode.NOT_FOUND


def test_the_id_alone_opens_nothing(meter: AnyMeter) -> None:
    """Who knows where a key is, and the checksum's rule, still lacks 130 bits."""
    from meterd import secret as secrets

    key = meter.keys.create("acme")
    forged = secrets.new_secret("mk", key.id.removeprefix("key_"))
    for _ in range(2):
        assert meter.keys.verify(forged).code is KeyCode.NOT_FOUND
    assert meter.keys.verify(key.secret)
    for _ in range(2):
        assert meter.keys.verify(forged).code is KeyCode.NOT_FOUND  # the place is known by now
    assert used(meter, "acme") == {"credits": 1, "api": 1}


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""}, {"name": 5}, {"name": "a\nb"}, {"meta": []}, {"meta": {"a": object()}},
        {"meta": {5: "a"}}, {"meta": {"a": "x" * 20_000}}, {"meta": {"a": float("nan")}},
        {"prefix": ""}, {"prefix": "a b"}, {"sha256": "abc"}, {"sha256": 5}, {"join": 5},
        {"limits": [5]}, {"limits": "credits"}, {"limits": 5}, {"expires": "yesterday"},
        {"expires": 5}, {"expires": datetime(2020, 1, 1, tzinfo=UTC)}, {"expires": "0s"},
        {"expires": datetime(2100, 1, 1)},
    ],
)  # fmt: skip
def test_what_create_refuses(meter: AnyMeter, wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        meter.keys.create("acme", **wrong)
    assert meter.keys.list("acme") == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((None,), {}), ((b"x",), {}), ((5,), {}), (("x", "credits", -1), {}), (("x", {}), {}),
        (("x", None, 5), {}), (("x", {"a": 1}, 2), {}), (("x", "a b"), {}), (("x",), {"auto": 1}),
        (("x",), {"op": ""}), (("x",), {"op": 5}), (("x", {f"n{i}": 1 for i in range(64)}), {}),
    ],
)  # fmt: skip
def test_what_verify_refuses(meter: AnyMeter, given: tuple[Any, ...], named: Any) -> None:
    with pytest.raises(PolicyError):
        meter.keys.verify(*given, **named)


def test_names_are_many_beside_what_is_charged_unasked(make: Make) -> None:
    names = [f"n{i}" for i in range(62)]
    pool = Pool("all", 1000, rates=dict.fromkeys(names, 1))
    meter = make([Plan("p", default=True, includes=[pool, Pool("credits", 5)])])
    key = meter.keys.create("acme")
    found = meter.keys.verify(key.secret, dict.fromkeys(names, 1))
    assert found.decision["all"].applied == 62
    assert found.credits == 4


def test_the_same_on_fakeredis() -> None:
    from meterd.testing import fake

    clock = ManualClock()
    with fake(PLANS, clock=clock) as meter:
        _life(meter, clock)


def _life(meter: Meter, clock: ManualClock) -> None:
    key = meter.keys.create("acme", limits=[Pool("credits", 3)], meta={"a": 1}, expires="1h")
    codes = [meter.keys.verify(key.secret, op=f"o{n}").code for n in range(4)]
    assert codes == ["VALID"] * 3 + ["USAGE_EXCEEDED"]
    new = meter.keys.rotate(key.id, overlap="5s")
    meter.keys.update(key.id, limits=(), name="x")
    for secret in (key.secret, new.secret):
        assert meter.keys.verify(str(secret)).valid
    clock.advance(seconds=5)
    codes = [meter.keys.verify(str(secret)).code for secret in (key.secret, new.secret)]
    assert codes == ["NOT_FOUND", "VALID"]
    clock.advance(minutes=59, seconds=55)
    assert meter.keys.verify(str(new.secret)).code == "EXPIRED"
    assert [k.id for k in meter.keys.list("acme")] == [key.id]
    assert meter.keys.revoke(key.id)
    assert meter.keys.list("acme") == []
    assert meter.forget("acme") > 0


def test_plans_of_the_readme_have_what_they_say() -> None:
    """The default of `auto` is part of the contract."""
    assert STARTER.limits["credits"].auto_amount == 1  # type: ignore[union-attr]
    assert STARTER.limits["tokens"].auto_amount == 0  # type: ignore[union-attr]
