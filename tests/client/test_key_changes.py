"""API keys that change: disabled, expired, renamed, rotated, imported, revoked, forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from meterd import ApiKey, Bucket, KeyCode, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.key_tools import PLANS, sha256, used
from tests.client.meter_tools import AnyMeter, Make
from tests.support.servers import Server


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make(PLANS)


def code(meter: AnyMeter, secret: Any, **named: Any) -> str:
    return str(meter.keys.verify(secret, **named).code)


# update -------------------------------------------------------------------------------------------


def test_disabled_and_enabled_for_the_very_next_call_of_every_process(make: Make) -> None:
    one, other = make(PLANS), make(PLANS)
    key = one.keys.create("acme", name="x")
    assert code(other, key.secret) == "VALID"
    for enabled, said in ((False, "DISABLED"), (True, "VALID")):
        changed = one.keys.update(key.id, enabled=enabled)
        assert (changed.enabled, changed.name, changed.secret) == (enabled, "x", None)
        for meter in (one, other):
            assert code(meter, key.secret) == code(meter, key.secret, auto=False) == said
    refused = other.keys.update(key.id, enabled=False)
    assert refused.enabled is False
    found = one.keys.verify(key.secret)
    assert (found.key_id, found.subject, found.name) == (key.id, key.subject, "x")
    assert found.decision is None
    assert (found.credits, found.ratelimits) == (None, {})


def test_expired_at_the_very_instant(meter: AnyMeter, clock: ManualClock) -> None:
    at = clock.now() + timedelta(seconds=10)
    key = meter.keys.create("acme", expires=at)
    assert key.expires == at
    clock.advance(milliseconds=9_999)
    assert code(meter, key.secret) == "VALID"
    clock.advance(milliseconds=1)
    assert code(meter, key.secret) == code(meter, key.secret, auto=False) == "EXPIRED"
    assert used(meter, "acme") == {"credits": 1, "api": 1}
    meter.keys.update(key.id, expires="1h")
    assert code(meter, key.secret) == "VALID"
    meter.keys.update(key.id, enabled=False, expires="1ms")
    clock.advance(milliseconds=1)
    assert code(meter, key.secret) == "DISABLED"  # before EXPIRED
    forever = meter.keys.update(key.id, enabled=True, expires=None)
    assert forever.expires is None
    clock.advance(days=10_000)
    assert code(meter, key.secret) == "VALID"


def test_time_does_not_go_back_for_a_key(meter: AnyMeter, clock: ManualClock) -> None:
    """Now is what every record on the path has seen, whatever a clock says."""
    key = meter.keys.create("acme", expires="10s")
    clock.advance(seconds=20)
    meter.consume("acme", "credits")
    clock.now_ms -= 15_000
    assert code(meter, key.secret) == "EXPIRED"


@pytest.mark.parametrize(
    "changes",
    [
        {"enabled": False},
        {"name": "other"},
        {"name": None},
        {"expires": "1h"},
        {"expires": None},
        {"meta": {"b": 2}},
        {"meta": None},
        {"meta": {}},
        {"limits": [Bucket("own", 5, "1m")]},
        {"limits": ()},
        {},
    ],
)
def test_what_is_not_mentioned_stays(
    meter: AnyMeter, clock: ManualClock, changes: dict[str, Any]
) -> None:
    key = meter.keys.create(
        "acme", name="name", meta={"a": 1}, expires="2d", limits=[Pool("credits", 5)], prefix="x_y"
    )
    assert meter.keys.verify(key.secret)
    clock.advance(seconds=5)
    after = meter.keys.update(key.id, **changes)
    assert meter.keys.get(key.id) == after
    hour = clock.now() + timedelta(hours=1)
    wanted = dict(changes)
    if "meta" in wanted:
        wanted["meta"] = wanted["meta"] or {}
    if "expires" in wanted:
        wanted["expires"] = hour if wanted["expires"] else None
    for field in ("enabled", "name", "meta", "expires", "created", "owner", "join", "prefix"):
        assert getattr(after, field) == wanted.get(field, getattr(key, field)), field
    if changes.get("enabled", True):
        assert meter.keys.verify(key.secret, {"credits": 0})
    levels = meter.usage(key.subject).levels
    own = {state.name: state for state in meter.usage(key.subject) if state.subject == key.subject}
    if "limits" not in changes:
        assert (own["credits"].limit, own["credits"].used) == (5, 1)
    else:
        assert set(own) == {limit.name for limit in changes["limits"]}
        assert levels[-1].subject == key.subject or not changes["limits"]


def test_limits_change_and_use_stays(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", limits=[Pool("credits", 2)])
    assert [code(meter, key.secret) for _ in range(3)] == ["VALID", "VALID", "USAGE_EXCEEDED"]
    meter.keys.update(key.id, limits=[Pool("credits", 3), Bucket("own", 1, "1m", auto=1)])
    assert [code(meter, key.secret) for _ in range(2)] == ["VALID", "USAGE_EXCEEDED"]
    meter.keys.update(key.id, limits=())
    assert [code(meter, key.secret) for _ in range(3)] == ["VALID"] * 3
    bare = meter.keys.create("acme")
    assert meter.keys.update(bare.id, limits=[]).id == bare.id  # it had none
    assert code(meter, bare.secret) == "VALID"


@pytest.mark.parametrize(
    "wrong",
    [
        {"enabled": None}, {"enabled": 1}, {"name": ""}, {"meta": 5}, {"limits": 5},
        {"limits": [1]}, {"limits": None}, {"expires": "0s"}, {"expires": 5},
        {"expires": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
)  # fmt: skip
def test_what_update_refuses(meter: AnyMeter, wrong: dict[str, Any]) -> None:
    key = meter.keys.create("acme", name="x", limits=[Pool("credits", 5)])
    with pytest.raises(PolicyError):
        meter.keys.update(key.id, **wrong)
    assert meter.keys.get(key.id) == key
    assert meter.keys.verify(key.secret).credits == 4


# rotate -------------------------------------------------------------------------------------------


def test_rotated_the_old_secret_is_over_at_once(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", name="x", limits=[Pool("credits", 5)], prefix="live")
    meter.keys.verify(key.secret)
    new = meter.keys.rotate(key.id)
    assert (new.id, new.subject, new.name, new.overlap) == (key.id, key.subject, "x", None)
    assert new.secret.startswith("live_")
    assert new.secret != key.secret
    assert code(meter, key.secret) == "NOT_FOUND"
    assert meter.keys.verify(new.secret).credits == 3  # use goes on


def test_rotated_with_an_overlap(meter: AnyMeter, clock: ManualClock) -> None:
    first = meter.keys.create("acme")
    second = meter.keys.rotate(first.id, overlap="10s")
    assert second.overlap == clock.now() + timedelta(seconds=10)
    assert code(meter, first.secret) == code(meter, second.secret) == "VALID"
    clock.advance(milliseconds=9_999)
    assert code(meter, first.secret) == "VALID"
    clock.advance(milliseconds=1)
    assert code(meter, first.secret) == code(meter, first.secret, auto=False) == "NOT_FOUND"
    third = meter.keys.rotate(first.id, overlap=timedelta(minutes=1))
    fourth = meter.keys.rotate(first.id, overlap="1m")
    said = [code(meter, key.secret) for key in (first, second, third, fourth)]
    assert said == ["NOT_FOUND", "NOT_FOUND", "VALID", "VALID"]  # two at most
    meter.keys.update(first.id, enabled=False)
    assert code(meter, third.secret) == code(meter, fourth.secret) == "DISABLED"
    assert {meter.keys.get(first.id).id} == {key.id for key in meter.keys.list("acme")}


@pytest.mark.parametrize("overlap", [5, -1, "soon", None, timedelta(seconds=-1)])
def test_overlaps_that_are_none(meter: AnyMeter, overlap: Any) -> None:
    key = meter.keys.create("acme")
    with pytest.raises(PolicyError, match="overlap"):
        meter.keys.rotate(key.id, overlap=overlap)
    assert code(meter, key.secret) == "VALID"


# Unknown ids --------------------------------------------------------------------------------------


def test_ids_that_lead_nowhere(meter: AnyMeter) -> None:
    key = meter.keys.create("acme")
    unknown = key.id[:-3] + "000"
    assert meter.keys.get(unknown) is None
    assert meter.keys.revoke(unknown) is False
    for call in (lambda: meter.keys.update(unknown, name="x"), lambda: meter.keys.rotate(unknown)):
        with pytest.raises(PolicyError, match=unknown):
            call()
    # A secret in the place of an id is a mistake that must not end in a log.
    for wrong in (key.secret, "key_", "", key.id + "0"):
        assert meter.keys.get(wrong) is None
        assert meter.keys.revoke(wrong) is False
        for call in (
            lambda w=wrong: meter.keys.update(w, name="x"),
            lambda w=wrong: meter.keys.rotate(w),
        ):
            with pytest.raises(PolicyError, match="not the id of a key") as caught:
                call()
            assert not wrong or wrong == "key_" or wrong not in str(caught.value)
    for number in (5, None, b"key_"):
        for verb in ("get", "revoke", "rotate", "update"):
            with pytest.raises(PolicyError, match="an id is text"):
                getattr(meter.keys, verb)(number)


# list ---------------------------------------------------------------------------------------------


def test_the_keys_of_an_owner(meter: AnyMeter, clock: ManualClock) -> None:
    made: list[ApiKey] = []
    for number in range(5):
        made.append(meter.keys.create("acme", name=f"n{number}"))
        clock.advance(milliseconds=number % 2)
    team = meter.keys.create("acme/team")
    slashed = meter.keys.create(("acme/team",))
    assert {key.id for key in meter.keys.list("acme")} == {key.id for key in made}
    instants = [key.created for key in meter.keys.list("acme")]
    assert instants == sorted(instants)
    assert meter.keys.list("acme/team") == [team]
    assert meter.keys.list(("acme/team",)) == [slashed]
    assert meter.keys.list("nobody") == []
    with pytest.raises(PolicyError):
        meter.keys.list("a//b")
    meter.keys.revoke(made[2].id)
    assert made[2].id not in {key.id for key in meter.keys.list("acme")}
    assert all(key.secret is None for key in meter.keys.list("acme"))


def test_very_many_keys_of_one_owner(meter: AnyMeter) -> None:
    made = {meter.keys.create("acme").id for _ in range(450)}
    assert {key.id for key in meter.keys.list("acme")} == made
    assert meter.forget("acme") > 450
    assert meter.keys.list("acme") == []


# Imports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["old-secret", "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "ключ 1"])
def test_an_imported_secret_is_verified_as_it_is(meter: AnyMeter, secret: str) -> None:
    assert code(meter, secret) == "NOT_FOUND"
    key = meter.keys.create("acme", sha256=sha256(secret), name="old")
    assert (key.secret, key.imported, key.name) == (None, True, "old")
    found = meter.keys.verify(secret)
    assert (found.valid, found.key_id, found.owner) == (True, key.id, "acme")
    meter.keys.update(key.id, enabled=False)
    assert code(meter, secret) == "DISABLED"


def test_an_imported_secret_belongs_to_one_key(make: Make) -> None:
    meter, other = make(PLANS), make(PLANS)
    key = meter.keys.create("acme", sha256=sha256("old"))
    assert code(other, "old") == "VALID"
    for owner in ("acme", "acme/team", "globex"):
        with pytest.raises(PolicyError, match=f"imported already, as {key.id}"):
            other.keys.create(owner, sha256=bytes.fromhex(sha256("old")))
    assert other.keys.list("globex") == other.keys.list("acme/team") == []
    assert meter.keys.get(key.id) == key
    # What is revoked may be imported again, by anybody; who knew the old one learns of it.
    meter.keys.revoke(key.id)
    assert code(other, "old") == "NOT_FOUND"
    again = meter.keys.create("globex", sha256=sha256("old"))
    assert other.keys.verify("old").owner == "globex"
    meter.keys.revoke(again.id)
    back = meter.keys.create("acme", sha256=sha256("old"))
    assert meter.keys.verify("old").owner == other.keys.verify("old").owner == "acme"
    assert back.id == key.id


def test_an_imported_key_is_rotated_to_a_secret_of_ours(
    meter: AnyMeter, clock: ManualClock
) -> None:
    key = meter.keys.create("acme", sha256=sha256("old"), prefix="live")
    meter.keys.verify("old")
    new = meter.keys.rotate(key.id, overlap="5s")
    assert new.secret.startswith("live_" + key.id.removeprefix("key_"))
    assert code(meter, "old") == code(meter, new.secret) == "VALID"
    with pytest.raises(PolicyError, match="imported already"):
        meter.keys.create("globex", sha256=sha256("old"))
    clock.advance(seconds=5)
    assert [code(meter, "old"), code(meter, new.secret)] == ["NOT_FOUND", "VALID"]
    last = meter.keys.rotate(key.id)
    moved = meter.keys.create("globex", sha256=sha256("old"))  # the key has no use for it any more
    assert meter.keys.verify("old").key_id == moved.id
    meter.keys.revoke(key.id)
    assert [code(meter, "old"), code(meter, last.secret)] == ["VALID", "NOT_FOUND"]


# revoke and forget --------------------------------------------------------------------------------


def test_a_revoked_key_is_gone_everywhere_and_nothing_is_left_of_it(
    make: Make, server: Server
) -> None:
    one, other = make(PLANS), make(PLANS)
    one.consume("acme", "credits")
    client: redis.Redis = server.client()
    prefix = one.raw._keys.prefix
    before = set(client.scan_iter(match=f"{prefix}:*", count=1000))
    for given in ({}, {"sha256": sha256("old")}):
        key = one.keys.create("acme", limits=[Pool("credits", 5)], meta={"a": 1}, **given)
        secret = key.secret or "old"
        other.keys.verify(secret)
        other.reserve(key.subject, "credits", ttl=600)
        other.set_meta(key.subject, {"x": 1})
        new = one.keys.rotate(key.id, overlap="1h")
        assert one.keys.revoke(key.id) is True
        for meter in (one, other):
            for gone in (secret, new.secret):
                assert code(meter, gone) == code(meter, gone, auto=False) == "NOT_FOUND"
            assert meter.keys.get(key.id) is None
        assert one.keys.revoke(key.id) is False
        for verb in (one.keys.rotate, one.keys.update):
            with pytest.raises(PolicyError, match="there is no key"):
                verb(key.id)
    after = set(client.scan_iter(match=f"{prefix}:*", count=1000))
    left = {key.partition(b"}:")[2] for key in after - before}
    assert left == {b"h:acme", b"x:acme", b"private"}  # the owner's part of what was reserved


def test_forgetting_an_owner_forgets_its_keys(meter: AnyMeter, server: Server) -> None:
    keys = [
        meter.keys.create(owner, **given)
        for owner in ("acme", "acme/team", "acme/team/ana", "acme2", ("acme/team",))
        for given in ({}, {"sha256": sha256(f"{owner}")}, {"limits": [Pool("credits", 5)]})
    ]
    secrets = {key.id: key.secret or str(key.owner) for key in keys}

    def good() -> set[Any]:
        return {key.owner for key in keys if meter.keys.verify(secrets[key.id])}

    assert good() == {"acme", "acme/team", "acme/team/ana", "acme2", ("acme/team",)}
    assert meter.forget("acme/team") > 8
    assert good() == {"acme", "acme2", ("acme/team",)}
    meter.forget("acme")
    assert good() == {"acme2", ("acme/team",)}
    for owner in ("acme2", ("acme/team",)):
        meter.forget(owner)
    assert good() == set()
    left = server.client().scan_iter(match=f"{meter.raw._keys.prefix}:*", count=1000)
    assert all(b":{store}:" in key for key in left)


def test_forgetting_a_keys_own_subject_ends_the_key(meter: AnyMeter) -> None:
    one = meter.keys.create("acme", limits=[Pool("credits", 5)], sha256=sha256("old"))
    two = meter.keys.create("acme")
    meter.consume(("other", one.id), "credits")
    assert meter.forget(("other", one.id)) == 0  # only looks like it
    assert code(meter, "old") == "VALID"
    assert meter.forget(one.subject) == 3  # record, entry, pointer
    assert [code(meter, "old"), code(meter, two.secret)] == ["NOT_FOUND", "VALID"]
    assert [key.id for key in meter.keys.list("acme")] == [two.id]


def test_a_key_is_a_subject_like_others(meter: AnyMeter) -> None:
    key = meter.keys.create("acme", limits=[Pool("credits", 5)])
    meter.keys.verify(key.secret, "credits", 3)
    assert meter.usage(key.subject)["credits"].remaining == 2
    meter.refund(key.subject, "credits", 2)
    assert meter.usage(key.subject)["credits"].remaining == 4
    assert used(meter, "acme") == {"credits": 1, "api": 1}
    assert set(meter.subjects("acme")) == {"acme", key.subject}
    with_hold = meter.reserve(key.subject, {"credits": 2, "jobs": 1}, ttl=5)
    assert with_hold
    assert meter.keys.verify(key.secret, "credits", 3).code is KeyCode.USAGE_EXCEEDED


def test_a_hold_that_expired_is_given_back_by_a_verification(
    meter: AnyMeter, clock: ManualClock
) -> None:
    key = meter.keys.create("acme", limits=[Pool("credits", 5)])
    assert meter.reserve(key.subject, {"credits": 5, "jobs": 1}, ttl=5)
    assert code(meter, key.secret) == "USAGE_EXCEEDED"
    clock.advance(seconds=5)
    assert code(meter, key.secret, op="x") == "VALID"
    assert code(meter, key.secret) == "VALID"
    assert used(meter, key.subject) == {"credits": 2}
