"""The model's API keys: one example per rule."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.policy import Bucket, Pool
from tests.oracle import PolicyError
from tests.oracle.keys import Keyring
from tests.unit.model_tools import MINUTE, SECOND, T0, give, oracle, used


def keyring(*limits: Any) -> Keyring:
    return Keyring(oracle(*limits))


def test_it_charges_what_is_named_and_the_rest_unasked_at_every_level() -> None:
    keys = keyring(Pool("credits", 10), Bucket("b", 9, "1m", auto=2), Pool("other", 5))
    key = keys.create("a", "k", "s", limits=[Pool("credits", 3, auto=2)], now_ms=T0)
    found = keys.verify("s", now_ms=T0)
    assert (found.outcome, found.credits) == ("VALID", 1)
    assert found.decision is not None
    assert found.decision.balance == 0
    assert [(x.subject, x.name, x.applied) for x in found.decision.limits] == [
        (("a",), "credits", 1),
        (("a",), "b", 2),
        (("a", "k"), "credits", 2),
    ]
    assert keys.verify("s", now_ms=T0).outcome == "USAGE_EXCEEDED"
    named = keys.verify("s", {"credits": 1, "other": 2}, now_ms=T0).decision
    assert named is not None
    assert [x.applied for x in named.limits] == [1, 2, 2, 1]
    alone = keys.verify("s", "other", auto=False, now_ms=T0).decision
    assert alone is not None
    assert [x.name for x in alone.limits] == ["other"]
    assert used(keys.oracle, 0, "b") == 4
    assert keys.verify("s", "nothing", now_ms=T0).outcome == "NOT_INCLUDED"
    keys.update(key.id, limits=(), now_ms=T0)
    assert keys.verify("s", now_ms=T0).outcome == "VALID"


def test_grants_fill_a_key_up() -> None:
    keys = keyring(Pool("other", 5))
    key = keys.create("a", "k", "s", now_ms=T0)
    assert keys.verify("s", now_ms=T0).credits is None
    give(keys.oracle, 1, "g", "credits", key.path)
    assert [keys.verify("s", now_ms=T0).credits for _ in range(2)] == [0, 0]
    assert keys.verify("s", now_ms=T0).outcome == "USAGE_EXCEEDED"


def test_who_is_let_in() -> None:
    keys = keyring(Pool("credits", 10))
    keys.create("a", "k", "s", expires_ms=T0 + MINUTE, now_ms=T0)

    def outcome(secret: str, at: int) -> str:
        return keys.verify(secret, auto=False, now_ms=T0 + at).outcome

    assert (outcome("x", 0), outcome("s", MINUTE - 1)) == ("NOT_FOUND", "VALID")
    keys.rotate("k", "new", SECOND, now_ms=T0)
    assert [outcome("s", SECOND - 1), outcome("new", 0), outcome("s", SECOND)] == [
        "VALID", "VALID", "NOT_FOUND",
    ]  # fmt: skip
    assert outcome("new", MINUTE) == "EXPIRED"
    keys.update("k", enabled=False, now_ms=T0)
    assert outcome("new", MINUTE) == "DISABLED"
    keys.update("k", enabled=True, expires_ms=None, now_ms=T0)
    assert outcome("new", MINUTE) == "VALID"
    assert keys.revoke("k", now_ms=T0)
    assert not keys.revoke("k", now_ms=T0)
    assert outcome("new", 0) == "NOT_FOUND"
    for call in (lambda: keys.update("k", now_ms=T0), lambda: keys.rotate("k", "z", 0, now_ms=T0)):
        with pytest.raises(PolicyError):
            call()


def test_keys_go_with_their_owner_and_nobody_else() -> None:
    keys = keyring(Pool("credits", 10))
    for key_id, owner in (("1", "a/t"), ("2", "a"), ("3", "b")):
        keys.create(owner, key_id, f"s{key_id}", now_ms=T0)
    assert [key.id for key in keys.listed("a")] == ["2"]
    keys.oracle.forget("a/t")
    assert sorted(keys.by_id) == ["2", "3"]
    keys.oracle.forget("a")
    assert keys.get("2") is None
    with pytest.raises(PolicyError):
        keys.create("a/b/c/d", "4", "s4", now_ms=T0)
