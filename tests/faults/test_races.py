"""Many callers at once, in processes, threads and tasks: never one unit more than there is."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import AsyncMeter, Decision, Meter, OpConflict, Plan, Pool
from meterd.testing import ManualClock
from tests.faults import racers
from tests.faults.fault_tools import CREDITS, allowing, used
from tests.support.servers import Server

THREADS = 64
START_MS = 1_700_000_000_000
BOTH_WAYS = pytest.mark.parametrize("matrix_server", ["valkey-9.1", "redis-6.2"], indirect=True)


@pytest.fixture
def clock() -> ManualClock:
    """Time stands still: nothing flows back into a bucket during a race."""
    return ManualClock(START_MS)


@pytest.fixture
def make(matrix_server: Server, prefix: str, clock: ManualClock) -> Iterator[Callable[..., Meter]]:
    """`make(plans)` -> a meter whose threads outnumber its connections."""
    with contextlib.ExitStack() as stack:

        def made(*plans: Plan) -> Meter:
            meter = Meter(
                matrix_server.url,
                plans=plans,
                prefix=prefix,
                clock=clock,
                timeout=60,
                max_connections=16,
            )
            return stack.enter_context(meter)

        yield made


def together(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """What `work(number)` returns in each of many threads that start at the same moment."""
    barrier = threading.Barrier(threads)

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


# --- Processes


@pytest.mark.parametrize(
    ("kind", "matrix_server"),
    [
        ("sync", "valkey-9.1"),
        ("async", "redis-6.2"),
        pytest.param("async", "valkey-9.1", marks=pytest.mark.long),
        pytest.param("sync", "redis-6.2", marks=pytest.mark.long),
    ],
    indirect=["matrix_server"],
)
def test_8_processes_sell_a_pool_exactly(matrix_server: Server, prefix: str, kind: str) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(8), context.SimpleQueue()
    processes = [
        context.Process(
            target=racers.race,
            args=(matrix_server.url, prefix, seed, kind, start, results),
            daemon=True,
        )
        for seed in range(8)
    ]
    for process in processes:
        process.start()
    bought = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert sum(bought) == racers.CREDITS, bought
    assert sum(part > 0 for part in bought) > 1, bought
    with Meter(matrix_server.url, prefix=prefix) as meter:
        state = meter.usage("acme")["credits"]
    assert (state.used, state.remaining) == (racers.CREDITS, 0)


# --- Threads and tasks


@BOTH_WAYS
@pytest.mark.parametrize("algorithm", ["fixed", "sliding", "token"])
def test_64_threads_get_exactly_what_a_bucket_admits(
    make: Callable[..., Meter], algorithm: str
) -> None:
    meter = make(Plan("p", default=True, includes=[allowing(algorithm, 500)]))

    def work(number: int) -> int:
        return sum(bool(meter.consume("acme", "calls")) for _ in range(12))

    assert sum(together(work)) == 500
    state = meter.usage("acme")["calls"]
    assert (state.used, state.remaining) == (500, 0)


@BOTH_WAYS
@pytest.mark.parametrize("algorithm", ["fixed", "sliding", "token"])
def test_tasks_get_exactly_what_a_bucket_admits(
    matrix_server: Server, prefix: str, clock: ManualClock, algorithm: str
) -> None:
    async def race() -> list[Decision]:
        plan = Plan("p", default=True, includes=[allowing(algorithm, 500)])
        async with AsyncMeter(
            matrix_server.url, plans=[plan], prefix=prefix, clock=clock, timeout=60
        ) as meter:
            calls = [meter.consume("acme", "calls", 1 + index % 3) for index in range(700)]
            return list(await asyncio.gather(*calls))

    decisions = asyncio.run(race())
    assert sum(decision["calls"].applied for decision in decisions) == 500
    # Refused calls charged nothing, and the last unit went to a call that asked for one.
    assert all(decision["calls"].applied == 0 for decision in decisions if not decision)


@BOTH_WAYS
def test_each_answer_is_unique(make: Callable[..., Meter]) -> None:
    """Every sold unit has a number: the use right after the call. None is told twice."""
    meter = make(Plan("p", default=True, includes=[Pool("credits", 1000)]))

    def work(number: int) -> list[int]:
        decisions = [meter.consume("acme", "credits") for _ in range(20)]
        return [decision["credits"].used for decision in decisions if decision]

    numbers = sorted(number for part in together(work) for number in part)
    assert numbers == list(range(1, 1001))


@BOTH_WAYS
def test_all_limits_or_none(make: Callable[..., Meter]) -> None:
    """The scarcest of three limits on two levels decides; the others show as many charges."""
    meter = make(
        Plan("p", default=True, includes=[Pool("tokens", 10_000), Pool("images", 300)]),
        Plan("team", group="team", includes=[allowing("sliding", 200), Pool("seats", 170)]),
    )
    for team in ("red", "blue"):
        meter.subscribe(f"acme/{team}", "team")
    costs = {"tokens": 3, "images": 1, "calls": 1, "seats": 1}

    def work(number: int) -> Counter[str]:
        team = "red" if number % 2 else "blue"
        return Counter({team: sum(bool(meter.consume(f"acme/{team}", costs)) for _ in range(8))})

    sold = sum(together(work), Counter())
    assert sold.total() == 300
    assert all(0 < count <= 170 for count in sold.values())
    usage = meter.usage("acme")
    assert (usage["tokens"].used, usage["images"].used) == (900, 300)
    for team in ("red", "blue"):
        usage = meter.usage(f"acme/{team}")
        assert (usage["calls"].used, usage["seats"].used) == (sold[team], sold[team])


@BOTH_WAYS
def test_a_period_is_reset_once(make: Callable[..., Meter], clock: ManualClock) -> None:
    """A second reset would bring the rollover along a second time."""
    pool = Pool("credits", 1000, reset="day", rollover=10_000)
    meter = make(Plan("p", default=True, includes=[pool]))
    meter.consume("acme", "credits", 400)
    carried = 600
    for _ in range(3):
        clock.advance(days=1)

        def work(number: int) -> int:
            return sum(meter.consume("acme", "credits")["credits"].applied for _ in range(3))

        assert sum(together(work)) == THREADS * 3
        state = meter.usage("acme")["credits"]
        assert state.used == THREADS * 3
        assert state.remaining == 1000 + carried - THREADS * 3
        carried = state.remaining


@BOTH_WAYS
def test_one_operation_id_in_64_threads(make: Callable[..., Meter]) -> None:
    meter = make(CREDITS)
    decisions = together(lambda number: meter.consume("acme", "credits", 7, op="same"))
    assert sum(not decision.replayed for decision in decisions) == 1
    assert {decision.limits for decision in decisions} == {decisions[0].limits}
    assert used(meter, "acme") == 7

    def differently(number: int) -> int:
        try:
            return meter.consume("acme", "credits", number + 1, op="other")["credits"].applied
        except OpConflict:
            return 0

    (applied,) = [amount for amount in together(differently) if amount]
    assert used(meter, "acme") == 7 + applied


@BOTH_WAYS
def test_one_operation_is_given_back_once(make: Callable[..., Meter]) -> None:
    meter = make(CREDITS)
    meter.consume("acme", "credits", 100)
    for op in ("bare", "with ids"):
        meter.consume("acme", "credits", 7, op=op)

    def work(number: int) -> Decision:
        if number % 2:
            return meter.refund("acme", of="bare")
        return meter.refund("acme", of="with ids", op=f"back {number}")

    decisions = together(work)
    assert sum(not decision.replayed for decision in decisions) == 2
    assert {decision["credits"].applied for decision in decisions} == {7}
    assert used(meter, "acme") == 100


@BOTH_WAYS
def test_operations_are_given_back_while_others_charge(make: Callable[..., Meter]) -> None:
    """At the end there is what was charged and not given back, whoever came first."""
    meter = make(CREDITS)

    def work(number: int) -> int:
        kept = 0
        for turn in range(8):
            op = f"{number}-{turn}"
            meter.consume("acme", "credits", turn + 1, op=op)
            if turn % 2:
                kept += turn + 1
            else:
                meter.refund("acme", of=op)
        return kept

    kept = sum(together(work))
    assert used(meter, "acme") == kept > 0


@BOTH_WAYS
def test_applies_do_not_overwrite_each_other(make: Callable[..., Meter], prefix: str) -> None:
    meter = make(CREDITS)
    before = meter._store.catalog.revision

    def work(number: int) -> None:
        meter.apply([Plan(f"plan-{number}", group=f"g{number}", includes=[Pool("p", number)])])

    together(work, threads=8)
    meter.apply(dry_run=True)
    plans = meter._store.catalog.plans
    assert {plan.limits["p"].limit for name, plan in plans.items() if name != "credits"} == set(
        range(8)
    )
    assert meter._store.catalog.revision == before + 8


@BOTH_WAYS
def test_plans_change_while_64_threads_charge(make: Callable[..., Meter]) -> None:
    """Upgrades keep what was used, whatever runs at the same time."""
    meter = make(
        Plan("small", default=True, includes=[Pool("credits", 2000)]),
        Plan("large", includes=[Pool("credits", 5000), allowing("token", 10_000)]),
    )

    def work(number: int) -> int:
        if number % 8 == 0:
            for turn in range(6):
                meter.subscribe("acme", "large" if turn % 2 else "small")
                meter.override("acme", "credits", limit=4000 + number)
                meter.override("acme", "credits", clear=True)
            return 0
        return sum(bool(meter.consume("acme", "credits")) for _ in range(20))

    sold = sum(together(work))
    assert sold == 56 * 20
    assert used(meter, "acme") == sold


# --- Forks


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_after_use(server: Server, prefix: str) -> None:
    """Children and parent go on with the meter they share, while threads of the parent use it."""
    with Meter(server.url, plans=[CREDITS], prefix=prefix, timeout=30) as meter:
        done = threading.Event()

        def background() -> int:
            count = 0
            while not done.is_set():
                count += bool(meter.consume("acme", "credits"))
            return count

        with ThreadPoolExecutor(4) as pool:
            busy = [pool.submit(background) for _ in range(4)]
            children = []
            try:
                for _ in range(6):
                    pid = os.fork()
                    if not pid:
                        os._exit(child(meter))
                    children.append(pid)
                statuses = [os.waitpid(pid, 0)[1] for pid in children]
            finally:
                done.set()
            charged = sum(thread.result() for thread in busy)
        assert statuses == [0] * 6
        assert charged > 0
        assert used(meter, "acme") == charged + 6 * 50


def child(meter: Meter) -> int:
    """Charges 50, each answer being its own; the exit status says how it went."""
    with contextlib.suppress(BaseException):
        for _ in range(50):
            decision = meter.consume("acme", "credits", 1, op=True)
            if decision["credits"].applied != 1 or decision.replayed:
                return 2
        meter.close()
        return 0
    return 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_meter_made_before_a_fork_opens_in_each_child(server: Server, prefix: str) -> None:
    with contextlib.closing(Meter(server.url, plans=[CREDITS], prefix=prefix, timeout=30)) as meter:
        children = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                os._exit(child(meter))
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
        assert used(meter, "acme") == 4 * 50


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_async_meter_after_a_fork(server: Server, prefix: str) -> None:
    async def charge(meter: AsyncMeter) -> int:
        decisions = [await meter.consume("acme", "credits", op=True) for _ in range(50)]
        return sum(decision["credits"].applied for decision in decisions)

    meter = AsyncMeter(server.url, plans=[CREDITS], prefix=prefix, timeout=30)
    with asyncio.Runner() as runner:
        assert runner.run(charge(meter)) == 50
        pid = os.fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException), asyncio.Runner() as own:
                status = 0 if own.run(charge(meter)) == 50 else 2
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert runner.run(charge(meter)) == 50
        runner.run(meter.close())
    with Meter(server.url, prefix=prefix) as reader:
        assert used(reader, "acme") == 150
