"""Asyncio calls cancelled at any moment: nobody gets another call's answer, no connection is lost.

Every call has a subject and an amount of its own, so an answer that belongs to another call shows.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from meterd import AsyncMeter, Decision
from meterd.transport.aiomux import AsyncMux
from tests.faults.fault_tools import CREDITS, PLENTY, connections
from tests.support import servers
from tests.support.servers import Server, wait_until

CALLS = {"valkey-9.1": 10_000, "redis-6.2": 3_000}
SIZE = 16  # calls that are with the server at once
TASKS = 300  # so most of them wait


@pytest.fixture(params=["valkey-9.1", "redis-6.2"])
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server on which every connection is ours."""
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    with servers.start(request.param) as started:
        yield started


@pytest_asyncio.fixture
async def meter(own_server: Server) -> AsyncIterator[AsyncMeter]:
    async with AsyncMeter(
        own_server.url, plans=[CREDITS], timeout=60, max_connections=SIZE
    ) as made:
        yield made


async def settled(server: Server, most: int) -> None:
    """Until the server has so many clients; the loop goes on meanwhile, as it does the closing."""
    await asyncio.to_thread(
        wait_until, f"at most {most} connections", lambda: connections(server) <= most
    )


async def at_rest(meter: AsyncMeter) -> None:
    """Until no reply is owed any more; nobody waits, and there is one connection."""
    (mux,) = meter._transport._pools.values()  # type: ignore[attr-defined]
    assert isinstance(mux, AsyncMux)
    async with asyncio.timeout(10):
        while mux._aside or mux._queue or mux._lane is None or mux._lane.owed:
            await asyncio.sleep(0.01)


class Storm:
    """Calls by number; what became of each."""

    def __init__(self, meter: AsyncMeter, seed: int) -> None:
        self.meter = meter
        self.rng = random.Random(seed)
        self.ends: Counter[str] = Counter()
        self.answered: set[int] = set()
        self.places = asyncio.Semaphore(TASKS)

    @staticmethod
    def op(index: int) -> str | None:
        return f"op-{index}" if index % 2 else None

    async def call(self, index: int) -> None:
        amount = index + 1
        decision = await self.meter.consume(f"s{index}", "credits", amount, op=self.op(index))
        state = decision["credits"]
        assert (state.used, state.applied, state.remaining) == (amount, amount, PLENTY - amount)
        assert decision.balance == PLENTY - amount
        self.answered.add(index)

    async def question(self, index: int) -> None:
        state = (await self.meter.check(f"fixed-{index % 7}", "credits"))["credits"]
        assert state.used == index % 7 + 1

    async def one(self, index: int) -> None:
        async with self.places:
            work = self.question(index) if index % 10 == 9 else self.call(index)
            task = asyncio.create_task(work)
            how = self.rng.randrange(4)
            if how == 1:
                for _ in range(self.rng.randrange(30)):
                    await asyncio.sleep(0)
                task.cancel()
            elif how == 2:
                asyncio.get_running_loop().call_later(self.rng.random() * 0.05, task.cancel)
            elif how == 3:
                asyncio.get_running_loop().call_later(self.rng.random() * 0.005, task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                self.ends["cancelled"] += 1
            else:
                self.ends["done" if how == 0 else "done before it was cancelled"] += 1


@pytest.mark.asyncio
async def test_thousands_of_calls_cancelled_at_random_moments(
    own_server: Server, meter: AsyncMeter
) -> None:
    calls = CALLS[own_server.name]
    for index in range(7):
        await meter.consume(f"fixed-{index}", "credits", index + 1)
    storm = Storm(meter, seed=13)
    await asyncio.gather(*(storm.one(index) for index in range(calls)))
    assert sum(storm.ends.values()) == calls
    assert all(storm.ends[end] > 200 for end in ("done", "cancelled")), storm.ends

    # Nothing is left of them, and the server sees no more than one connection, and our question.
    await at_rest(meter)
    await settled(own_server, 2)

    applied: Counter[tuple[bool, bool]] = Counter()
    for index in (index for index in range(calls) if index % 10 != 9):
        usage = await meter.usage(f"s{index}")
        used = usage["credits"].used
        if index in storm.answered:
            assert used == index + 1
            continue
        assert used in (0, index + 1)
        applied[bool(storm.op(index)), used > 0] += 1
        if storm.op(index):
            again = await meter.consume(f"s{index}", "credits", index + 1, op=storm.op(index))
            assert again["credits"].used == index + 1
            assert again.replayed == (used > 0)
    # Cancellation hit before, and after, the server had seen the request.
    assert all(applied[with_op, ran] for with_op in (True, False) for ran in (True, False))

    await meter.close()
    await settled(own_server, 1)


@pytest.mark.asyncio
async def test_a_timeout_of_the_caller_is_a_cancellation(meter: AsyncMeter) -> None:
    """`asyncio.timeout` and `wait_for` around calls: the same guarantees."""
    rng = random.Random(5)
    ends: Counter[str] = Counter()

    def patience() -> float:
        return rng.choice([0, 60, rng.random() * 0.004])

    async def impatient(index: int) -> None:
        try:
            async with asyncio.timeout(patience()):
                decision = await meter.consume(f"s{index}", "credits", index + 1)
        except TimeoutError:
            ends["timeout"] += 1
        else:
            assert decision["credits"].used == index + 1
            ends["answer"] += 1

    async def waiting(index: int) -> None:
        try:
            decision = await asyncio.wait_for(
                meter.consume(f"s{index}", "credits", index + 1), patience()
            )
        except TimeoutError:
            ends["timeout"] += 1
        else:
            assert decision["credits"].used == index + 1
            ends["answer"] += 1

    for start in range(0, 800, 40):
        async with asyncio.TaskGroup() as group:
            for index in range(start, start + 40):
                group.create_task((impatient if index % 2 else waiting)(index))
    assert ends["timeout"] > 20, ends
    assert ends["answer"] > 20, ends
    await at_rest(meter)
    for index in range(800):
        assert (await meter.usage(f"s{index}"))["credits"].used in (0, index + 1)


@pytest.mark.asyncio
async def test_cancelled_while_it_opens_the_store(own_server: Server) -> None:
    for round_number in range(60):
        meter = AsyncMeter(own_server.url, plans=[CREDITS], prefix=f"p{round_number}", timeout=60)
        tasks = [
            asyncio.ensure_future(meter.consume("acme", "credits", 3, op=f"op-{index}"))
            for index in range(3)
        ]
        for _ in range(round_number):
            await asyncio.sleep(0)
        tasks[0].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(decision, Decision) for decision in ended[1:]), ended
        await meter.consume("acme", "credits", 3, op="op-0")
        assert (await meter.usage("acme"))["credits"].used == 9
        await meter.close()
    await settled(own_server, 1)


@pytest.mark.asyncio
async def test_a_pending_call_is_a_coroutine_to_asyncio(meter: AsyncMeter) -> None:
    """Whatever takes a coroutine takes a call: tasks, groups, timeouts, shields."""
    first = await asyncio.create_task(meter.consume("acme", "credits", 1))  # type: ignore[arg-type]
    assert first["credits"].used == 1
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(meter.consume("acme", "credits", 1))  # type: ignore[arg-type]
            for _ in range(3)
        ]
    assert sorted(task.result()["credits"].used for task in tasks) == [2, 3, 4]
    assert (await asyncio.shield(meter.consume("acme", "credits", 1)))["credits"].used == 5
    forgotten = meter.consume("acme", "credits", 1)
    forgotten.close()  # type: ignore[attr-defined]
    never_started = asyncio.create_task(meter.usage("acme"))  # type: ignore[arg-type]
    never_started.cancel()
    with pytest.raises(asyncio.CancelledError):
        await never_started
    assert (await meter.usage("acme"))["credits"].used == 5
