"""Batches: few round trips, and for every call just what it would have got by itself."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
from collections.abc import Iterator
from time import monotonic
from typing import Any

import msgpack
import pytest

from meterd import (
    AsyncMeter,
    BatchError,
    Bucket,
    Decision,
    Meter,
    OpConflict,
    OutcomeUnknown,
    Plan,
    PolicyError,
    Pool,
    Unavailable,
)
from meterd.testing import ManualClock, fake
from tests.client.meter_tools import AnyMeter, Make, fresh_prefix, look_again, requests_of
from tests.support import proxy as faulty
from tests.support import servers
from tests.support.proxy import FaultProxy
from tests.support.servers import Server


def many(meter: AnyMeter, items: Any) -> list[Any]:
    found: list[Any] = meter.consume_many(items, return_exceptions=True)
    return found


def writes_of(meter: AnyMeter) -> list[int]:
    """How many requests each write of a sync meter has, from now on."""
    sent: list[int] = []
    transport = meter.raw._transport
    original = transport.send_many

    def send_many(requests: Any, timeout: float) -> Any:
        sent.append(len(requests))
        return original(requests, timeout)

    transport.send_many = send_many
    return sent


def loads_of(client: Any) -> int:
    """How often a library has been loaded so far."""
    found = client.info("commandstats").get("cmdstat_function|load", {})
    return int(found.get("calls", 0))


def test_every_form_of_an_item(meter: AnyMeter) -> None:
    decisions = meter.consume_many(
        [
            ("ana", "tokens"),
            ("ana", "tokens", 2),
            ["ana", {"tokens": 3, "api": 1}],
            (("b", "x/y"), "tokens"),
            {"subject": "ana", "costs": "tokens", "amount": 4, "op": "one"},
            {"subject": "new", "costs": "tokens", "join": "pro"},
        ]
    )
    assert all(isinstance(decision, Decision) for decision in decisions)
    used = [decision["credits"].used for decision in decisions]
    assert used == [1, 3, 6, 1, 10, 1]
    assert decisions[4].op == "one"
    assert decisions[5]["credits"].limit == 1000
    assert meter.consume_many([]) == []
    assert meter.consume_many(("ana", "tokens") for _ in range(3))[-1]["credits"].used == 13


@pytest.mark.parametrize("known", [False, True], ids=["first sight", "known"])
def test_the_same_answers_as_one_by_one(make: Make, clock: ManualClock, known: bool) -> None:
    rng = random.Random(7)
    items = [
        (
            rng.choice(("ana", "bob", "ana/phone", ("c", "d/e"))),
            rng.choice(("tokens", "image", "api", {"tokens": 3, "api": 1}, "nothing", "export")),
        )
        for _ in range(120)
    ]
    one, two = make(prefix=fresh_prefix()), make(prefix=fresh_prefix())
    if known:
        for meter in (one, two):
            for item in items:
                meter.consume(*item)
            for subject in ("ana", "bob", "c"):
                meter.adjust(subject, "credits", used=0)
    assert two.consume_many(items) == [one.consume(*item) for item in items]
    for subject in ("ana", "bob", "ana/phone", ("c", "d/e")):
        assert two.usage(subject) == one.usage(subject)


@pytest.mark.parametrize("op", [False, True], ids=["bare", "op"])
@pytest.mark.parametrize("functions", [True, False], ids=["functions", "evalsha"])
def test_a_call_with_something_to_tell_is_not_overtaken(
    make: Make, server: Server, functions: bool, op: bool
) -> None:
    """A threshold is crossed, and the pool runs out, in the midst of calls that do neither."""
    plan = Plan("free", includes=[Pool("credits", 30, "month", warn_at=(0.5, 0.8))], default=True)
    meter = make([plan], functions=functions)
    for subject in ("ana", "ana/phone"):
        meter.forget("ana")
        items = [
            {"subject": subject, "costs": "credits", "op": f"{subject} {n}" if op else None}
            for n in range(40)
        ]
        found = meter.consume_many(items)
        assert [d["credits"].used for d in found] == [*range(1, 31), *[30] * 10]
        assert [d.allowed for d in found] == [True] * 30 + [False] * 10
        with server.client() as client:
            entries = client.xrange(meter.raw._keys.shared(meter.raw._keys.path("ana")).events)
        told = [msgpack.unpackb(fields[b"e"])[0] for _, fields in entries]
        assert told[-3:] == ["warn", "warn", "exhausted"]


def test_one_call_that_fails_takes_no_other_with_it(meter: AnyMeter) -> None:
    meter.consume("ana", "tokens", op="taken")
    items: list[Any] = [
        ("ana", "tokens"),
        ("ana", "tokens", -1),
        ("ana", "tokens", True),
        ("", "tokens"),
        ("ana", "tokens", 1000),
        {"subject": "ana", "costs": "tokens", "amount": 7, "op": "taken"},
        {"subject": "ana", "costs": "tokens", "wait": 1},
        {"subject": "ana", "costs": "tokens", "typo": 1},
        {"costs": "tokens"},
        ("ana",),
        5,
        "ab",
        ("ana", "tokens", 1, 1),
        ("ana", "tokens"),
    ]
    found = many(meter, items)
    problems = [type(one) for one in found]
    assert problems[:6] == [Decision, PolicyError, PolicyError, PolicyError, Decision, OpConflict]
    assert problems[6:] == [PolicyError] * 7 + [Decision]
    assert found[4].code == "USAGE_EXCEEDED"
    assert "cannot wait" in str(found[6])
    assert "item 7" in str(found[7])
    assert found[-1]["credits"].used == 3
    with pytest.raises(BatchError, match="11 of 14 calls failed; the first of them, consume of 'a"):
        meter.consume_many(items)
    assert meter.usage("ana")["credits"].used == 5


def test_the_error_carries_everything(meter: AnyMeter) -> None:
    with pytest.raises(BatchError) as caught:
        meter.consume_many([("ana", "tokens"), ("ana", "tokens", 1.5), ("ana", "api", 6)])
    error = caught.value
    assert [type(one) for one in error.results] == [Decision, PolicyError, Decision]
    assert list(error.errors) == [1]
    assert error.__cause__ is error.results[1]
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.results[0] == error.results[0]


@pytest.mark.parametrize("items", ["ana", b"ana", 5, None, {"ana": "tokens"}], ids=repr)
def test_what_is_no_list_of_items(meter: AnyMeter, items: Any) -> None:
    with pytest.raises(PolicyError, match="consume_many: got"):
        meter.consume_many(items)


@pytest.mark.parametrize("subjects", [1, 20])
def test_a_store_that_cannot_be_opened_is_waited_for_once(
    make: Make, server: Server, subjects: int
) -> None:
    """Not once for each call, be they all of one subject."""
    shut = Plan("p", default=True, includes=[Pool("credits", 9), Bucket("api", 9, "1m")])
    lets = Plan("q", includes=[Bucket("free", 9, "1m", on_error="allow")])
    with FaultProxy(server) as proxy:
        proxy.partition(True)
        meter = make([shut, lets], url=proxy.url, timeout=0.3)
        items = [(f"s{n % subjects}", ("credits", "free")[n % 2]) for n in range(60)]
        seen: list[str] = []
        meter.raw._observer = lambda verb, *_: seen.append(verb)
        began = monotonic()
        found = many(meter, items)
        assert monotonic() - began < 4  # of the 18 s that the calls would take by themselves
    assert [type(one) for one in found] == [Unavailable, Decision] * 30
    assert all(one.degraded for one in found[1::2])
    assert seen == ["consume"] * 60


def test_a_closed_meter(meter: AnyMeter) -> None:
    meter.open()
    meter.close()
    with pytest.raises(PolicyError, match="closed"):
        meter.consume_many([("ana", "tokens")])


def test_known_calls_take_one_round_trip(server: Server) -> None:
    plan = Plan("free", includes=[Pool("credits", 10**6)], default=True)
    with Meter(server.url, plans=[plan], prefix=fresh_prefix()) as meter:
        meter.consume("s0", "credits")
        subjects = [f"s{n}" for n in range(2500)]
        writes = writes_of(AnyMeter(meter, None))
        assert len(meter.consume_many([(s, "credits") for s in subjects])) == 2500
        assert writes == [1000, 1000, 500]
        # Ids and first sights are in no shape; they are calls all the same.
        writes.clear()
        meter.consume_many(
            [{"subject": "s1", "costs": "credits", "op": f"o{n}"} for n in range(300)]
        )
        assert writes == [300]
        assert meter.usage("s1")["credits"].used == 301


def test_the_observer_sees_every_call(make: Make) -> None:
    seen: list[tuple[Any, ...]] = []
    meter = make(observer=lambda *call: seen.append(call))
    many(meter, [("ana", "tokens"), ("ana", "tokens", -1), ("ana", "api", 6)])
    assert [call[:3] for call in seen if call[2] != "PolicyError"] == [
        ("consume", "ana", "OK"),
        ("consume", "ana", "RATE_LIMITED"),
    ]
    assert [call[:3] for call in seen if call[2] == "PolicyError"] == [
        ("consume", "ana", "PolicyError")
    ]
    assert all(call[3] >= 0 for call in seen)


def test_the_catalog_is_looked_at_once(make: Make) -> None:
    meter = make()
    meter.consume_many([(f"s{n}", "tokens") for n in range(50)])
    look_again(meter)
    sent = requests_of(meter)
    meter.consume_many([(f"s{n}", "tokens") for n in range(50)])
    assert sum(b":{store}:" in packed for packed in sent) <= 2


def test_a_record_behind_the_catalog(make: Make) -> None:
    meter, other = make(), make(None)
    meter.consume_many([(f"s{n}", "api") for n in range(20)] * 2)
    plan = Plan("free", includes=[Bucket("api", 50, "1m", algorithm="fixed")], default=True)
    other.apply([plan])
    other.consume_many([(f"s{n}", "api") for n in range(0, 20, 2)])
    found = meter.consume_many([(f"s{n}", "api") for n in range(20)] * 2)
    assert {d["api"].limit for d in found[::2]} == {50}
    assert [d["api"].used for d in found[20::2]] == [5] * 10
    assert [d["api"].used for d in found[21::2]] == [4] * 10


def test_lost_functions_and_a_flushed_store(make: Make, server: Server) -> None:
    meter = make()
    items = [(f"s{n}", "tokens") for n in range(30)] * 2
    meter.consume_many(items)
    with server.client() as client:
        client.execute_command("FUNCTION", "FLUSH", "SYNC")
        before = loads_of(client)
    found = meter.consume_many(items)
    assert [d["credits"].used for d in found] == [3] * 30 + [4] * 30
    with server.client() as client:
        assert loads_of(client) == before + 1  # it is long: one of the calls brings it for all


def test_without_functions(make: Make) -> None:
    meter = make(functions=False)
    items = [(f"s{n}", "tokens") for n in range(30)] * 2
    for start in (0, 2):
        found = meter.consume_many(items)
        assert [d["credits"].used for d in found] == [start + 1] * 30 + [start + 2] * 30


# --- Pipelines


def test_a_pipeline_of_every_verb(server: Server, clock: ManualClock) -> None:
    plan = Plan("free", includes=[Pool("credits", 100, "month")], default=True)
    with Meter(server.url, plans=[plan], prefix=fresh_prefix(), clock=clock) as meter:
        with meter.pipeline() as p:
            a = p.consume("ana", "credits", 10)
            b = p.check("ana", "credits", 91)
            c = p.report("ana", "credits", 95, op="r")
            d = p.refund("ana", "credits", 5)
            assert len(p) == 4
            assert not a.done
            with pytest.raises(PolicyError, match="has not run yet"):
                a.result()
        assert a.done
        assert a.result().balance == 90
        assert b.result().code == "USAGE_EXCEEDED"
        assert c.result()["credits"].overage == 5
        assert d.result()["credits"].used == 100
        assert len(p) == 0
        assert p.execute() == []


def test_a_pipeline_awaited(server: Server) -> None:
    plan = Plan("free", includes=[Pool("credits", 100)], default=True)

    async def main() -> None:
        async with AsyncMeter(server.url, plans=[plan], prefix=fresh_prefix()) as meter:
            async with meter.pipeline() as p:
                a, b = p.consume("ana", "credits", 10), p.check("ana", "credits", 91)
            assert a.result().balance == 90
            assert not b.result()
            p.consume("ana", "credits", -1)
            c = p.consume("ana", "credits", 1)
            found = await p.execute(raise_on_error=False)
            assert isinstance(found[0], PolicyError)
            assert found[1] is c.result()
            with pytest.raises(TypeError, match="await"):
                bool(meter.consume_many([("ana", "credits")]))

    asyncio.run(main())


def test_a_pipeline_in_which_calls_fail(server: Server) -> None:
    plan = Plan("free", includes=[Pool("credits", 100)], default=True)
    with Meter(server.url, plans=[plan], prefix=fresh_prefix()) as meter:
        p = meter.pipeline()
        a = p.consume("ana", "credits", 1.5)  # type: ignore[arg-type]
        b = p.refund("ana")
        c = p.consume("ana", "credits")
        with pytest.raises(BatchError, match="2 of 3"):
            p.__exit__(None, None, None)
        with pytest.raises(PolicyError, match="amount"):
            a.result()
        with pytest.raises(PolicyError, match="give costs"):
            b.result()
        assert c.result()
        with meter.pipeline(raise_on_error=False) as p:
            a, c = p.consume("ana", "credits", -1), p.consume("ana", "credits")
        assert c.result()["credits"].used == 2
        with pytest.raises(PolicyError):
            a.result()
        with contextlib.suppress(ZeroDivisionError), meter.pipeline() as p:
            p.consume("ana", "credits")
            _ = 1 / 0
        assert meter.usage("ana")["credits"].used == 2


def test_a_queued_call_is_no_decision(server: Server) -> None:
    plan = Plan("free", includes=[Pool("credits", 100)], default=True)
    with Meter(server.url, plans=[plan], prefix=fresh_prefix()) as meter:
        p = meter.pipeline()
        queued: Any = p.consume("ana", "credits")
        for misuse in (bool, list, lambda q: q["credits"]):
            with pytest.raises(TypeError, match="ask for its result"):
                misuse(queued)
        assert "not run yet" in repr(queued)
        p.execute()
        assert "allowed=True" in repr(queued)


# --- Faults


@pytest.fixture
def behind(make: Make, server: Server) -> Iterator[tuple[AnyMeter, FaultProxy, AnyMeter]]:
    with FaultProxy(server) as proxy:
        plan = Plan(
            "free",
            includes=[Pool("credits", 10**6), Bucket("open", 9, "1h", on_error="allow")],
            default=True,
        )
        meter = make([plan], url=proxy.url, timeout=0.5)
        meter.consume_many([(f"s{n}", "credits") for n in range(10)])
        yield meter, proxy, make([plan])


def test_a_reply_lost_in_the_middle(behind: Any) -> None:
    meter, proxy, aside = behind
    proxy.next(*[faulty.PASS] * 4, faulty.CUT_AFTER)
    found = many(meter, [(f"s{n}", "credits") for n in range(10)])
    assert [type(one) for one in found[:4]] == [Decision] * 4
    assert [type(one) for one in found[4:]] == [OutcomeUnknown] * 6
    used = [aside.usage(f"s{n}")["credits"].used for n in range(10)]
    assert used[:5] == [2] * 5
    assert set(used[5:]) <= {1, 2}
    assert all(many(meter, [(f"s{n}", "credits") for n in range(10)]))


def test_calls_with_an_id_are_repeated(behind: Any) -> None:
    meter, proxy, aside = behind
    proxy.next(*[faulty.PASS] * 4, faulty.CUT_AFTER)
    items = [{"subject": f"s{n}", "costs": "credits", "op": "x"} for n in range(10)]
    found = many(meter, items)
    assert [type(one) for one in found] == [Decision] * 10
    assert [aside.usage(f"s{n}")["credits"].used for n in range(10)] == [2] * 10


def test_nobody_there(behind: Any) -> None:
    meter, proxy, _ = behind
    proxy.close()
    found = many(meter, [("s1", "credits"), ("s1", "open"), ("s2", "credits", -1)])
    assert [type(one) for one in found] == [Unavailable, Decision, PolicyError]
    assert found[1].degraded


# --- Elsewhere


def test_on_a_cluster(make: Make) -> None:
    with servers.Cluster() as cluster:
        meter = make(url=cluster.url, prefix=fresh_prefix(), timeout=10)
        items = [(f"s{n}", "tokens") for n in range(200)] * 2
        for start in (0, 2):
            found = meter.consume_many(items)
            assert [d["credits"].used for d in found] == [start + 1] * 200 + [start + 2] * 200


def test_on_fakeredis() -> None:
    plan = Plan("free", includes=[Pool("credits", 100)], default=True)
    with fake([plan]) as meter:
        found = meter.consume_many([("ana", "credits"), ("bob", "credits"), ("ana", "credits")])
        assert [d["credits"].used for d in found] == [1, 1, 2]
