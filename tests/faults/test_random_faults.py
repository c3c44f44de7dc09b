"""Hundreds of calls while the network does one thing after another, decided by a seed.

A second meter without a proxy looks at the balance.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import AsyncMeter, Meter, OutcomeUnknown, Unavailable
from tests.faults.fault_tools import EVERY_WAY, LOSING, PLENTY, Workshop, certain, used
from tests.support import proxy as faulty
from tests.support.proxy import FaultProxy

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
    for index in range(200):
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
    count = 200
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
    for turn in range(100):
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
    assert answered > 80
    assert sum(proxy.stats[fault.kind] for fault in LOSING) > 10


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
            # The tasks share a stream. That a reply is lost or doubled in it, with others behind,
            # is nothing that a network does, nor anything that a client could notice.
            never = dict.fromkeys((faulty.STALL, faulty.DROP, faulty.DUPLICATE), 0.0)
            proxy.random(10, RATES | never)
            await asyncio.gather(*(work(meter, number) for number in range(400)))

    asyncio.run(crowd())
    for number in range(16):
        assert used(direct, f"s{number}") == sum(range(number + 1, 401, 16))
    assert proxy.stats["cut_after"] > 5
