"""Replies that are lost, late, cut or doubled: what was charged, and what the caller is told.

The proxy decides what happens to each request, a second meter without a proxy looks at the balance.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import AsyncMeter, Bucket, Meter, OutcomeUnknown, Plan, Pool, Unavailable
from tests.faults.fault_tools import CREDITS, PLENTY, Workshop, allowing, used
from tests.support import proxy as faulty
from tests.support.proxy import Fault, FaultProxy
from tests.support.servers import Server

# Both clients and both ways to call scripts: functions, and EVALSHA where the server has none.
PAIRS = [("sync", "valkey-9.1"), ("async", "redis-6.2")]
LONG_PAIRS = [
    pytest.param(*pair, marks=pytest.mark.long)
    for pair in [("sync", "redis-6.2"), ("async", "valkey-9.1"), ("async", "redis-8.2")]
]
EVERY_WAY = pytest.mark.parametrize(
    ("either", "matrix_server"), [*PAIRS, *LONG_PAIRS], indirect=True
)

LOSING = (
    faulty.DROP,
    faulty.STALL,
    faulty.CUT_BEFORE,
    faulty.CUT_AFTER,
    faulty.CUT_MID_REPLY,
)
HARMLESS = (faulty.DUPLICATE, faulty.TRICKLE, faulty.delay(5))
RATES = {
    faulty.DROP: 0.004,  # these two cost half of the timeout each, or all of it
    faulty.STALL: 0.004,
    faulty.CUT_BEFORE: 0.06,
    faulty.CUT_AFTER: 0.06,
    faulty.CUT_MID_REPLY: 0.06,
    faulty.DUPLICATE: 0.06,
    faulty.TRICKLE: 0.01,
    faulty.delay(2): 0.05,
}


@pytest.fixture
def proxy(matrix_server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(matrix_server) as started:
        yield started


@pytest.fixture
def direct(matrix_server: Server, prefix: str) -> Iterator[Meter]:
    with Meter(matrix_server.url, plans=[CREDITS], prefix=prefix, timeout=20) as made:
        yield made


@pytest.fixture
def no_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog is read once, so that the requests of a test can be counted."""
    monkeypatch.setattr("meterd.store.REFRESH_SECONDS", 1e9)


def certain(op: str, call: Callable[[], Any]) -> Any:
    """The answer of a call that carries `op`: repeated as long as its outcome is unknown."""
    while True:
        try:
            return call()
        except OutcomeUnknown as error:
            if error.op != op:
                raise


# --- One fault at a time


@EVERY_WAY
@pytest.mark.parametrize("fault", [*LOSING, *HARMLESS], ids=lambda fault: fault.kind)
@pytest.mark.usefixtures("no_refresh")
def test_one_fault(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    waiting = fault in (faulty.DROP, faulty.STALL)  # for what never comes
    meter = either(proxy.url, prefix=prefix, timeout=0.6 if waiting else 5)
    verbs = {"consume": 107} if waiting else {"consume": 107, "report": 107, "refund": 93}
    for verb in verbs:
        getattr(meter, verb)("acme", "credits")  # from here on each is one request
    for verb, after in verbs.items():
        direct.adjust(verb, "credits", used=100)
        call = getattr(meter, verb)
        proxy.next(fault)
        first = certain(verb, lambda v=verb, c=call: c(v, "credits", 7, op=v))
        assert (first["credits"].used, first["credits"].applied) == (after, 7)
        assert first.replayed == (fault in LOSING and fault != faulty.CUT_BEFORE)
        again = certain(verb, lambda v=verb, c=call: c(v, "credits", 7, op=v))
        assert again.replayed
        assert again.limits == first.limits
        assert used(direct, verb) == after

        direct.adjust(verb, "credits", used=100)
        proxy.next(fault)
        if fault in HARMLESS:
            assert call(verb, "credits", 7)["credits"].applied == 7
        else:
            with pytest.raises(OutcomeUnknown) as caught:
                call(verb, "credits", 7)
            assert caught.value.op is None
        assert used(direct, verb) == (100 if fault == faulty.CUT_BEFORE else after)

    for ask in (meter.usage, lambda subject: meter.check(subject, "credits")):
        ask("seen")
        proxy.next(fault)
        assert ask("seen")["credits"].used == 0
    assert proxy.stats[fault.kind] == 2 * len(verbs) + 2


@EVERY_WAY
def test_nothing_comes_back_at_all(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=0.2)
    meter.open()
    meter.consume("acme", "credits", 5)
    proxy.faults = lambda index: faulty.CUT_AFTER
    for ask in (meter.usage, lambda subject: meter.check(subject, "credits")):
        with pytest.raises(Unavailable):
            ask("acme")
    with pytest.raises(OutcomeUnknown) as caught:
        meter.consume("acme", "credits", 7, op="lost")
    assert caught.value.op == "lost"
    proxy.calm()
    first = meter.consume("acme", "credits", 7, op="lost")
    assert first.replayed
    assert first["credits"].used == 12
    assert used(direct, "acme") == 12


# --- Hundreds of calls under random faults


def misbehave(proxy: FaultProxy, seed: int) -> None:
    """Every fault once, then at random."""
    for fault in RATES:
        proxy.next(fault, faulty.PASS)
    proxy.random(seed, RATES)


@EVERY_WAY
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_random_faults_with_op(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, seed: int
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=0.3)
    meter.open()
    misbehave(proxy, seed)
    rng = random.Random(seed)
    model: Counter[str] = Counter()
    answers = []
    for index in range(300):
        root = f"root-{rng.randrange(6)}"
        subject = rng.choice([root, f"{root}/leaf"])
        verb = rng.choice(["consume", "consume", "report", "refund"])
        amount = rng.randrange(1, 1000)
        request = (verb, subject, amount, f"op-{index}")
        first = ask(meter, request)
        applied = -min(amount, model[root]) if verb == "refund" else amount
        model[root] += applied
        state = first["credits"]
        assert (state.used, state.applied) == (model[root], abs(applied)), request
        answers.append((request, first.limits))
    assert {root: used(direct, root) for root in model} == model
    for request, limits in answers:
        again = ask(direct, request)
        assert again.replayed
        assert again.limits == limits
    assert {root: used(direct, root) for root in model} == model


def ask(meter: Any, request: tuple[str, str, int, str]) -> Any:
    """The answer; what ended before it was sent, as too many attempts failed, is asked again."""
    verb, subject, amount, op = request
    while True:
        with contextlib.suppress(Unavailable):
            return certain(op, lambda: getattr(meter, verb)(subject, "credits", amount, op=op))


@EVERY_WAY
@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.long)])
def test_random_faults_without_op(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, seed: int
) -> None:
    """Each call has a subject of its own, so what became of it can be read off in the end."""
    meter = either(proxy.url, prefix=prefix, timeout=0.3)
    meter.open()
    count = 300
    for index in range(0, count, 2):
        direct.consume(f"s{index}", "credits", 1)
    misbehave(proxy, seed)
    possible: list[tuple[int, ...]] = []
    for index in range(count):
        before, amount = 1 - index % 2, index + 10
        try:
            decision = meter.consume(f"s{index}", "credits", amount)
        except Unavailable:
            possible.append((before,))
        except OutcomeUnknown:
            possible.append((before, before + amount))
        else:
            state = decision["credits"]
            assert (state.used, state.applied) == (before + amount, amount)
            possible.append((before + amount,))
    proxy.calm()
    unknown: Counter[bool] = Counter()
    for index, ends in enumerate(possible):
        found = used(direct, f"s{index}")
        assert found in ends
        if len(ends) == 2:
            unknown[found == ends[1]] += 1
    assert unknown[True]
    assert unknown[False]


@EVERY_WAY
def test_random_faults_on_questions(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=1)
    meter.open()
    for index in range(20):
        direct.consume(f"s{index}", "credits", index + 1)
    misbehave(proxy, 5)
    answered = 0
    for turn in range(150):
        index = turn % 20
        try:
            if turn % 3:
                found = meter.check(f"s{index}", "credits", 1)
                assert found.balance == PLENTY - index - 1
            else:
                found = meter.usage(f"s{index}")
        except Unavailable:  # too many faults in a row
            continue
        assert found["credits"].used == index + 1
        answered += 1
    assert answered > 130
    assert sum(proxy.stats[fault.kind] for fault in LOSING) > 20


@pytest.mark.parametrize("matrix_server", ["valkey-9.1", "redis-6.2"], indirect=True)
def test_random_faults_on_many_threads(proxy: FaultProxy, direct: Meter, prefix: str) -> None:
    """One meter, fewer connections than threads; every operation counts once."""
    with Meter(proxy.url, prefix=prefix, timeout=2, max_connections=6) as meter:
        proxy.random(9, RATES | {faulty.STALL: 0.0, faulty.DROP: 0.002})

        def work(number: int) -> None:
            for index in range(25):
                amount = number * 25 + index + 1
                found = ask(meter, ("consume", f"s{number}", amount, f"op-{index}"))
                assert found["credits"].applied == amount

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
    for number in range(16):
        assert used(direct, f"s{number}") == sum(range(number * 25 + 1, number * 25 + 26))
    assert proxy.stats["cut_after"] > 5


@pytest.mark.parametrize("matrix_server", ["valkey-9.1", "redis-6.2"], indirect=True)
def test_random_faults_on_many_tasks(proxy: FaultProxy, direct: Meter, prefix: str) -> None:
    async def work(meter: AsyncMeter, number: int) -> None:
        op = f"op-{number}"
        while True:
            try:
                found = await meter.consume(f"s{number % 16}", "credits", number + 1, op=op)
            except (OutcomeUnknown, Unavailable):
                continue
            assert found["credits"].applied == number + 1
            return

    async def crowd() -> None:
        async with AsyncMeter(proxy.url, prefix=prefix, timeout=2, max_connections=6) as meter:
            proxy.random(10, RATES | {faulty.STALL: 0.0, faulty.DROP: 0.002})
            await asyncio.gather(*(work(meter, number) for number in range(400)))

    asyncio.run(crowd())
    for number in range(16):
        assert used(direct, f"s{number}") == sum(range(number + 1, 401, 16))
    assert proxy.stats["cut_after"] > 5


# --- What is set


ROLLING = Plan("rolling", includes=[Pool("credits", 100, reset="month", rollover=10_000)])


@EVERY_WAY
@pytest.mark.parametrize("fault", [faulty.CUT_BEFORE, faulty.CUT_AFTER], ids=lambda f: f.kind)
def test_a_period_is_closed_once(
    proxy: FaultProxy, matrix_server: Server, either: Workshop, prefix: str, fault: Fault
) -> None:
    """Every reset brings the unused hundred along, so the remainder counts them."""
    meter = either(proxy.url, prefix=prefix, plans=[ROLLING], timeout=2)
    meter.subscribe("acme", "rolling")

    def remaining() -> int:
        return int(meter.usage("acme")["credits"].remaining)

    proxy.next(fault)
    meter.subscribe("acme", "rolling", change="reset", op="one")
    assert remaining() == 200
    proxy.next(faulty.PASS, fault)  # the first script says what record it found
    with pytest.raises(OutcomeUnknown):
        meter.subscribe("acme", "rolling", change="reset")
    assert remaining() == (200 if fault == faulty.CUT_BEFORE else 300)


@EVERY_WAY
@pytest.mark.parametrize("fault", [faulty.CUT_BEFORE, faulty.CUT_AFTER], ids=lambda f: f.kind)
def test_what_is_set_is_set_whatever_is_lost(
    proxy: FaultProxy, either: Workshop, prefix: str, fault: Fault
) -> None:
    add_on = Plan("add-on", group="extra", includes=[allowing("fixed", 5)])
    meter = either(proxy.url, prefix=prefix, plans=[CREDITS, add_on], timeout=2)
    meter.consume("acme", "credits", 3)

    def losing(call: Callable[[], Any]) -> None:
        """The call with a fault at each of its first requests in turn."""
        for at in range(5):
            proxy.stats.clear()
            proxy.next(*[faulty.PASS] * at, fault)
            call()
            assert at or proxy.stats[fault.kind]
            proxy.calm()

    losing(lambda: meter.adjust("acme", "credits", used=50))
    assert used(meter, "acme") == 50
    losing(lambda: meter.override("acme", "credits", limit=60))
    assert meter.usage("acme")["credits"].remaining == 10
    losing(lambda: meter.set_meta("acme", {"a": 1}))
    assert meter.meta("acme") == {"a": 1}
    meter.subscribe("acme", "add-on")
    losing(lambda: meter.unsubscribe("acme", "add-on"))
    assert not [limit for limit in meter.usage("acme").limits if limit.name == "calls"]
    losing(lambda: meter.override("acme", "credits", clear=True))
    assert meter.usage("acme")["credits"].limit == PLENTY
    losing(lambda: meter.forget("acme"))
    assert used(meter, "acme") == 0
    assert meter.meta("acme") == {}


@EVERY_WAY
def test_a_private_plan_is_taken_away_whatever_is_lost(
    proxy: FaultProxy, either: Workshop, prefix: str
) -> None:
    meter = either(proxy.url, prefix=prefix, plans=[CREDITS], timeout=2)
    for at in range(4):
        subject = f"acme-{at}"
        meter.subscribe(subject, limits=[allowing("fixed", 5)])
        proxy.next(*[faulty.PASS] * at, faulty.CUT_AFTER)
        meter.unsubscribe(subject, "private")
        proxy.calm()
        assert "calls" not in [limit.name for limit in meter.usage(subject).limits]


@EVERY_WAY
def test_a_limiter_counts_once(proxy: FaultProxy, either: Workshop, prefix: str) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=2)
    login = meter.meter.limiter("login", Bucket("ip", 1000, "366d", algorithm="fixed"))
    proxy.random(7, {faulty.CUT_BEFORE: 0.1, faulty.CUT_AFTER: 0.2, faulty.CUT_MID_REPLY: 0.1})
    for index in range(100):
        pending = certain(
            f"op-{index}",
            lambda i=index: meter.awaited(login.consume("1.2.3.4", op=f"op-{i}")),
        )
        assert pending["ip"].used == index + 1
    assert proxy.stats["cut_after"] > 5
