"""Verifications that are packed once: they know at once what anybody changes, and answer alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meterd import ApiKey, Bucket, KeyCode, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.key_tools import PLANS, sha256, used
from tests.client.meter_tools import AnyMeter, Make, look_again


def warm(meter: AnyMeter, secret: str, **how: Any) -> Any:
    """A verification that goes out packed: the third has been packed by the second."""
    for _ in range(2):
        meter.keys.verify(secret, **how)
    packed = set(meter.raw.keys._flows._shapes.young.values())
    found = meter.keys.verify(secret, **how)
    assert packed
    assert packed == set(meter.raw.keys._flows._shapes.young.values())  # it went by one of them
    return found


def no_longer(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.keys.revoke(key.id)


def disabled(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.keys.update(key.id, enabled=False)


def over(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.keys.update(key.id, expires="1m")
    clock.advance(minutes=1)


def forgotten(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.forget("acme")


def rotated(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.keys.rotate(key.id)


def spent(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.adjust("acme", "credits", used=100)


def busy(meter: AnyMeter, key: ApiKey, clock: ManualClock) -> None:
    meter.adjust("acme", "api", used=60)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (no_longer, KeyCode.NOT_FOUND),
        (disabled, KeyCode.DISABLED),
        (over, KeyCode.EXPIRED),
        (forgotten, KeyCode.NOT_FOUND),
        (rotated, KeyCode.NOT_FOUND),
        (spent, KeyCode.USAGE_EXCEEDED),
        (busy, KeyCode.RATE_LIMITED),
    ],
)
def test_what_another_process_changes_is_known_at_once(
    make: Make, clock: ManualClock, change: Callable[..., None], code: KeyCode
) -> None:
    meter = make(PLANS)
    other = make(PLANS)
    key = other.keys.create("acme")
    assert warm(meter, key.secret, costs="credits")
    charged = used(meter, "acme")
    assert charged == {"credits": 3, "api": 3}
    change(other, key, clock)
    for _ in range(2):
        found = meter.keys.verify(key.secret, "credits")
        assert not found
        assert found.code == code
    if code in (KeyCode.DISABLED, KeyCode.EXPIRED):
        assert used(meter, "acme")["credits"] == 3
        other.keys.update(key.id, enabled=True, expires=None)
        assert meter.keys.verify(key.secret, "credits").credits == 96


def test_name_and_meta_are_as_they_are_now(make: Make) -> None:
    meter, other = make(PLANS), make(PLANS)
    key = other.keys.create("acme", name="one", meta={"n": 1})
    assert warm(meter, key.secret).meta == {"n": 1}
    other.keys.update(key.id, name="two", meta={"n": 2})
    found = meter.keys.verify(key.secret)
    assert (found.name, found.meta) == ("two", {"n": 2})
    found.meta["n"] = 9  # the caller's own
    assert meter.keys.verify(key.secret).meta == {"n": 2}


def test_it_answers_as_the_long_way_does(make: Make) -> None:
    meter = make(PLANS)
    key = meter.keys.create("acme", limits=[Pool("credits", 50), Bucket("own", 9, "1m", auto=2)])
    twin = meter.keys.create("globex", limits=[Pool("credits", 50), Bucket("own", 9, "1m", auto=2)])
    for number, how in enumerate(
        (
            {},
            {"costs": "credits"},
            {"costs": "credits", "amount": 2},
            {"costs": {"credits": 1, "prompt": 3}, "auto": False},
            {"auto": False},
            {"costs": {"credits": 0}},
        )
    ):
        for again in range(4):
            short = meter.keys.verify(key.secret, **how).as_dict()
            long = meter.keys.verify(twin.secret, op=f"{number}/{again}", **how).as_dict()
            told = str(short).replace(key.id, twin.id).replace("acme", "globex")
            assert told == str(long).replace(f"'op': '{number}/{again}'", "'op': None")
    assert used(meter, "acme") == used(meter, "globex")
    assert used(meter, key.subject) == used(meter, twin.subject)


def test_an_amount_that_only_equals_one_is_none(make: Make) -> None:
    meter = make(PLANS)
    key = meter.keys.create("acme")
    warm(meter, key.secret, costs="credits", amount=1)
    warm(meter, key.secret, costs={"credits": 1})
    for how in ({"amount": True}, {"amount": 1.0}, {"costs": {"credits": True}}):
        with pytest.raises(PolicyError):
            meter.keys.verify(key.secret, **({"costs": "credits"} | how))


def test_another_catalog_and_another_plan(make: Make) -> None:
    meter, other = make(PLANS), make(PLANS)
    key = other.keys.create("acme")
    assert warm(meter, key.secret, costs="credits").credits == 97
    other.subscribe("acme", "growth")
    assert meter.keys.verify(key.secret, "credits").credits == 9_996
    assert meter.keys.verify(key.secret, "credits").credits == 9_995
    other.apply([Plan("growth", includes=[Pool("credits", 20_000, "month")]), PLANS[0]])
    look_again(meter)
    assert meter.keys.verify(key.secret, "credits").credits == 19_994


def test_an_imported_secret_may_belong_to_another_key_by_now(make: Make) -> None:
    meter, other = make(PLANS), make(PLANS)
    first = other.keys.create("acme", sha256=sha256("old"))
    assert warm(meter, "old").key_id == first.id
    other.keys.revoke(first.id)
    assert meter.keys.verify("old").code == KeyCode.NOT_FOUND
    second = other.keys.create("globex", sha256=sha256("old"))
    for _ in range(3):
        found = meter.keys.verify("old")
        assert (found.key_id, found.owner) == (second.id, "globex")
