"""The straight way of plain calls: the bytes, errors and answers of the flow, only sooner."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import random
import threading
import weakref
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from meterd import (
    Bucket,
    Decision,
    Meter,
    NotIncluded,
    OutcomeUnknown,
    Plan,
    PolicyError,
    Pool,
    Unavailable,
)
from meterd.shapes import Memo
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make, fresh_prefix, look_again, requests_of
from tests.support import proxy as faulty
from tests.support.proxy import FaultProxy
from tests.support.servers import Server

VERBS = ("consume", "check", "report", "refund")
SUBJECTS: tuple[Any, ...] = ("ana", "acme/team/ana", ("b", "x/y"), ("%",))
COSTS: tuple[Any, ...] = (
    ("tokens", 1),
    ("tokens", 0),
    ("image", 10**9),
    ({"tokens": 1}, 1),
    ({"tokens": 3, "image": 1, "api": 2}, 1),
    ({"api": 2, "tokens": 3}, 1),
)


def flowless(meter: AnyMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a call that takes the flow fails."""

    def decide(*args: Any, **named: Any) -> Any:
        raise AssertionError("this call took the flow")

    monkeypatch.setattr(meter.raw._operations, "decide", decide)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("manual", [True, False], ids=["test clock", "server clock"])
def test_a_known_shape_sends_the_same_bytes(
    make: Make, clock: ManualClock, verb: str, manual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = make(clock=clock if manual else None, prefix=fresh_prefix())
    meter.raw._shapes.find = lambda *call: None  # the flow's
    cases = [
        (subject, *costs, join)
        for subject, costs in itertools.product(SUBJECTS, COSTS)
        for join in (None, "pro")
        if join is None or verb in ("consume", "check", "report")
    ]
    for subject in SUBJECTS:
        for plan in (None, "pro", "free"):  # a record; the library and the policies are stored
            meter.consume(subject, "api", 0, join=plan)
    sent = requests_of(meter)

    def run() -> list[bytes]:
        sent.clear()
        for subject, costs, amount, join in cases:
            options = {} if join is None else {"join": join}
            getattr(meter, verb)(subject, costs, amount, **options)
            if manual:
                clock.advance(milliseconds=7)
        return list(sent)

    def at_the_same_time() -> list[bytes]:
        clock.set(began)
        return run()

    began = clock.now()
    at_the_same_time()  # pools are in their index, and have said what they have to say
    by_flow = at_the_same_time()
    del meter.raw._shapes.find
    packed = at_the_same_time()
    flowless(meter, monkeypatch)
    again = at_the_same_time()
    assert by_flow == packed == again
    assert len(by_flow) == len(cases)


def test_what_equals_an_amount_is_none(meter: AnyMeter) -> None:
    for _ in range(2):
        assert meter.consume("ana", "tokens", 1)
        assert meter.consume("ana", {"tokens": 1, "api": 0}, 1)
    for amount in (True, 1.0):
        with pytest.raises(PolicyError, match="amount"):
            meter.consume("ana", "tokens", amount)
        with pytest.raises(PolicyError, match="amount"):
            meter.consume("ana", {"tokens": amount, "api": 0})
        with pytest.raises(PolicyError, match="amount"):
            meter.consume("ana", {"tokens": 1, "api": 0}, amount)
    with pytest.raises(PolicyError, match="amount"):
        meter.consume("ana", {"tokens": 1, "api": False})
    login = meter.limiter("login", Bucket("ip", 9, "1m"))
    for _ in range(2):
        assert login.consume("x", 1)
    for amount in (True, 1.0):
        with pytest.raises(PolicyError, match="amount"):
            login.consume("x", amount)


def test_a_text_and_a_tuple_are_not_the_same_subject(meter: AnyMeter) -> None:
    for _ in range(2):
        meter.consume("a/b", "tokens", join="free")
        meter.consume(("a/b",), "tokens", 2, join="free")
        meter.consume(("a", "b"), "tokens", 3, join="free")
    assert meter.usage("a")["credits"].used == 8
    assert meter.usage(("a/b",))["credits"].used == 4


def test_a_mapping_may_change_between_calls(meter: AnyMeter) -> None:
    costs = {"tokens": 1}
    for amount in (1, 2, 3):
        costs["tokens"] = amount
        assert meter.consume("ana", costs)["credits"].applied == amount
    costs["api"] = 1
    assert len(meter.consume("ana", costs).limits) == 2


def test_an_operation_id_and_waiting_take_the_flow(meter: AnyMeter, clock: ManualClock) -> None:
    for _ in range(2):
        assert meter.consume("ana", "tokens").op is None
    assert meter.consume("ana", "tokens", op="x").op == "x"
    assert meter.consume("ana", "tokens", op="x").replayed
    for wait in (True, None, "5"):
        with pytest.raises(PolicyError, match="wait"):
            meter.consume("ana", "tokens", wait=wait)


def test_answers_of_a_known_shape(meter: AnyMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (
        lambda: meter.consume("ana", "api", 6),
        lambda: meter.consume("ana", {"api": 0, "tokens": 0}),
        lambda: meter.refund("ana", "api", 0),
        lambda: meter.consume("ana", "nothing"),
        lambda: meter.check("ana", "tokens", 10**6),
    ):
        first = call()
        with monkeypatch.context() as patch:
            flowless(meter, patch)
            again = call()
        assert again == first
        assert hash(again) == hash(first)
        assert repr(again) == repr(first)
        assert pickle.loads(pickle.dumps(call())) == first
        assert call().as_dict() == first.as_dict()
        for name in ("allowed", "balance", "anything"):
            with pytest.raises(AttributeError, match="cannot be changed"):
                setattr(call(), name, True)
        with pytest.raises(AttributeError, match="no attribute 'anything'"):
            _ = call().anything


def test_reports_and_joins_that_are_refused(meter: AnyMeter) -> None:
    for _ in range(3):
        meter.report("ana", "tokens")
        with pytest.raises(NotIncluded, match="NOT_INCLUDED"):
            meter.report("ana", "nothing")
    meter.apply([], remove=["pro"])
    look_again(meter)
    for _ in range(3):
        with pytest.raises(PolicyError, match="pro"):
            meter.check("new", "tokens", join="pro")
        with pytest.raises(PolicyError, match="nobody"):
            meter.check("new", "tokens", join="nobody")


def test_the_observer_sees_every_call_once(make: Make) -> None:
    seen: list[tuple[Any, ...]] = []
    meter = make(observer=lambda *call: seen.append(call[:3]))
    for _ in range(3):
        meter.consume("ana", "api", 2)
        with pytest.raises(PolicyError):
            meter.consume("ana", "api", -1)
        with pytest.raises(NotIncluded):
            meter.report("ana", "nothing")
    assert [(verb, outcome) for verb, _, outcome in seen] == [
        ("consume", "OK"), ("consume", "PolicyError"), ("report", "NotIncluded"),
        ("consume", "OK"), ("consume", "PolicyError"), ("report", "NotIncluded"),
        ("consume", "RATE_LIMITED"), ("consume", "PolicyError"), ("report", "NotIncluded"),
    ]  # fmt: skip


def test_another_catalog_means_other_shapes(make: Make) -> None:
    meter, other = make(), make(None)
    for _ in range(2):
        assert meter.consume("ana", "api")["api"].limit == 5
    other.apply([Plan("free", includes=[Bucket("api", 50, "1m", algorithm="fixed")], default=True)])
    look_again(meter)
    for subject in ("ana", "new"):
        for _ in range(2):
            assert meter.consume(subject, "api")["api"].limit == 50


def test_a_record_that_is_behind_is_moved_once(make: Make) -> None:
    meter, other = make(), make(None)
    for _ in range(2):
        meter.consume("ana", "api")
    other.apply([Plan("free", includes=[Bucket("api", 50, "1m", algorithm="fixed")], default=True)])
    assert other.check("ana", "api")["api"].limit == 50
    assert other.consume("ana", "api")["api"].limit == 50
    for _ in range(2):
        assert meter.consume("ana", "api")["api"].limit == 50  # found out by the reply
    assert meter.usage("ana")["api"].used == 5


def test_records_that_were_moved_on_are_plain_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter, other = make(), make(None)
    for verb in VERBS:
        getattr(meter, verb)("ana", "api", 1)
    other.apply([Plan("free", includes=[Bucket("api", 50, "1m", algorithm="fixed")], default=True)])
    look_again(meter)
    for _ in range(4):  # the catalog is seen, the record moved, the move not brought again
        assert meter.consume("ana", "api")["api"].limit == 50
    assert meter.raw._operations._hints == {}
    flowless(meter, monkeypatch)
    assert meter.consume("ana", "api")["api"].used == 6


# --- Faults


@pytest.fixture
def warm(make: Make, server: Server) -> Iterator[tuple[AnyMeter, FaultProxy, AnyMeter]]:
    """A meter behind a proxy that knows the shapes of its calls, and one with a way of its own."""
    with FaultProxy(server) as proxy:
        plan = Plan(
            "free",
            includes=[
                Pool("credits", 100, "month"),
                Bucket("open", 50, "1h", on_error="allow"),
            ],
            default=True,
        )
        meter = make([plan], url=proxy.url, timeout=0.4)
        for _ in range(2):
            for verb in VERBS:
                getattr(meter, verb)("ana", "credits")
            meter.consume("ana", "open")
        yield meter, proxy, make([plan])


def used(meter: AnyMeter, name: str = "credits") -> int:
    return int(meter.usage("ana")[name].used)


@pytest.mark.parametrize("verb", ["consume", "report", "refund"])
@pytest.mark.parametrize("fault", [faulty.DROP, faulty.CUT_AFTER, faulty.CUT_MID_REPLY])
def test_a_lost_reply_is_not_asked_for_again(warm: Any, verb: str, fault: Any) -> None:
    meter, proxy, aside = warm
    before = used(aside)
    requests = proxy.stats["requests"]
    proxy.next(fault)
    with pytest.raises(OutcomeUnknown, match=f"^{verb}: sent, but the answer was lost"):
        getattr(meter, verb)("ana", "credits")
    assert proxy.stats["requests"] == requests + 1
    assert used(aside) == before + (-1 if verb == "refund" else 1)


@pytest.mark.parametrize("fault", [faulty.DROP, faulty.CUT_BEFORE, faulty.CUT_AFTER])
def test_a_check_is_asked_again(warm: Any, fault: Any) -> None:
    meter, proxy, aside = warm
    requests = proxy.stats["requests"]
    proxy.next(fault)
    assert meter.check("ana", "credits").balance == 100 - used(aside)
    assert proxy.stats["requests"] == requests + 2


def test_a_server_that_hangs_costs_the_timeout_once(warm: Any) -> None:
    meter, proxy, _ = warm
    requests = proxy.stats["requests"]
    proxy.next(faulty.STALL)
    began = monotonic()
    with pytest.raises(OutcomeUnknown):
        meter.consume("ana", "credits")
    assert monotonic() - began > 0.39
    assert proxy.stats["requests"] == requests + 1


def test_lost_functions_are_repaired_and_nothing_is_charged_twice(
    warm: Any, server: Server
) -> None:
    meter, _, aside = warm
    for verb in (*VERBS, "consume"):
        before = used(aside)
        with server.client() as client:
            client.execute_command("FUNCTION", "FLUSH", "SYNC")
        assert getattr(meter, verb)("ana", "credits")
        step = {"consume": 1, "report": 1, "refund": -1, "check": 0}[verb]
        assert used(aside) == before + step


def test_a_server_that_is_gone(warm: Any) -> None:
    meter, proxy, _ = warm
    proxy.close()
    for verb in VERBS:
        with pytest.raises(Unavailable):
            getattr(meter, verb)("ana", "credits")
    decision = meter.consume("ana", "open")
    assert decision.allowed
    assert decision.degraded
    with pytest.raises(Unavailable):
        meter.report("ana", "open")


# --- Threads, forks, memory


def test_many_threads_on_one_meter(server: Server) -> None:
    """64 of them, every verb, few and many subjects: at the end every unit is accounted for."""
    plan = Plan(
        "free", includes=[Pool("credits", 10**9), Bucket("api", 10**9, "30d")], default=True
    )
    threads, calls = 64, 60
    net = [0] * threads
    failures: list[BaseException] = []
    with Meter(server.url, plans=[plan], prefix=fresh_prefix(), timeout=30) as meter:
        login = meter.limiter("login", Bucket("ip", 10**9, "30d"))
        meter.report("shared", "credits", 10**6)

        def work(number: int) -> None:
            rng = random.Random(number)
            try:
                for _ in range(calls):
                    subject = rng.choice(("shared", "shared", f"own{number}"))
                    verb = rng.choice(("consume", "consume", "report", "refund", "check"))
                    amount = rng.choice((1, 2, 3))
                    costs: Any = rng.choice(("credits", {"credits": amount, "api": 1}))
                    given = amount if costs == "credits" else 1
                    applied = getattr(meter, verb)(subject, costs, given)["credits"].applied
                    if verb != "check":
                        net[number] += -applied if verb == "refund" else applied
                    login.consume("everybody")
            except BaseException as error:  # noqa: BLE001  # shown by the test
                failures.append(error)

        running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert failures == []
        subjects = ["shared", *(f"own{n}" for n in range(threads))]
        total = sum(meter.usage(subject)["credits"].used for subject in subjects)
        assert total == 10**6 + sum(net)
        assert login.check("everybody")["ip"].used == threads * calls


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_keeps_the_shapes_and_no_connection(server: Server) -> None:
    plan = Plan("free", includes=[Pool("credits", 1000)], default=True)
    with Meter(server.url, plans=[plan], prefix=fresh_prefix(), timeout=10) as meter:
        for _ in range(5):
            meter.consume("ana", "credits")
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                good = all(meter.consume("ana", "credits") for _ in range(50))
                os._exit(0 if good else 1)
            children.append(child)
            for _ in range(20):
                meter.consume("ana", "credits")
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        assert meter.usage("ana")["credits"].used == 5 + 4 * 50 + 4 * 20


def test_the_memory_is_bounded() -> None:
    memo: Memo[int, int] = Memo(10)
    for number in range(1000):
        memo.put(number, number)
        assert memo.get(3 if number >= 3 else number) in (3, number, None)
        assert memo.get(number) == number
        assert len(memo) <= 20
    for _ in range(50):  # what is used stays
        assert memo.get(999) == 999
        memo.put(_, _)
    memo.drop(999)
    assert memo.get(999) is None


def test_a_decision_holds_no_meter(server: Server) -> None:
    plan = Plan("free", includes=[Pool("credits", 1000)], default=True)
    meter = Meter(server.url, plans=[plan], prefix=fresh_prefix())
    decision: Decision = [meter.consume("ana", "credits") for _ in range(3)][-1]
    meter.close()
    gone = weakref.ref(meter)
    del meter
    gc.collect()
    assert gone() is None
    assert decision["credits"].used == 3
