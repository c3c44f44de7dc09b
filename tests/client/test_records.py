"""What is kept of a subject besides its plans: overrides, corrections, meta; and its end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Bucket, Flag, Plan, PolicyError, Pool
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make, requests_of


def pool(meter: AnyMeter, subject: Any = "ana") -> tuple[Any, int, Any]:
    state = meter.usage(subject)["credits"]
    return state.limit, state.used, state.resets_at


def day(month: int, of: int = 1, hour: int = 0, year: int = 2025) -> datetime:
    return datetime(year, month, of, hour, tzinfo=UTC)


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
def test_an_override_ends_at_its_instant(meter: AnyMeter, clock: ManualClock, expires: Any) -> None:
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
    tags = ["a", {"b": None}]
    assert meter.set_meta("ana", {"customer": "cus_1", "tags": tags, "n": 1.5}) is None
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


# --- Instants that are nearly never


def test_the_last_instant_there_is(make: Make, clock: ManualClock) -> None:
    """What does not end says so with the latest datetime, in many a database."""
    last = datetime.max.replace(tzinfo=UTC)
    plans = [Plan("p", default=True, includes=[Pool("credits", 10, "month")])]
    meter = make([*plans, Plan("q", includes=[Pool("credits", 5, "month")])], clock=clock)
    grant = meter.grant("acme", "credits", 5, expires=last)
    meter.override("acme", "credits", limit=20, expires=last)
    meter.subscribe("acme", "q", when=last)
    clock.advance(days=200)
    state = meter.usage("acme")["credits"]
    assert (state.limit, state.granted) == (20, 5)
    found = meter.usage("acme").levels[0].grants
    assert [(one.id, one.expires_ms) for one in found] == [(grant.id, grant.expires_ms)]
    assert grant.expires_ms == 253402300799999
    key = meter.keys.create("acme", expires=last)
    assert meter.keys.update(key.id, expires=last).expires_ms == key.expires_ms == grant.expires_ms
    assert meter.keys.verify(str(key.secret))
