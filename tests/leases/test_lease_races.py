"""Threads, tasks, forks and processes that die while they sell."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest

from meterd import AsyncMeter, Bucket, Meter, Plan, Pool
from tests.leases import seller
from tests.leases.lease_tools import PLANS
from tests.support.servers import Server

LIMIT = 30_000
RACE = [Plan("race", default=True, includes=[Pool("credits", LIMIT, "year")])]


def test_threads_share_a_lease(server: Server, prefix: str) -> None:
    """Two meters, two leases, eight threads: all is sold, and nothing more."""
    sold = [0] * 8

    def run(lease: Any, number: int) -> None:
        rng = random.Random(number)
        while True:
            n = rng.choice([1, 1, 1, 5, 40])
            if lease.consume(n):
                sold[number] += n
            elif n == 1:
                return

    with (
        Meter(server.url, plans=RACE, prefix=prefix, timeout=20) as one,
        Meter(server.url, plans=RACE, prefix=prefix, timeout=20) as other,
    ):
        leases = [one.lease("acme", "credits", 2000), other.lease("acme", "credits", 500)]
        threads = [threading.Thread(target=run, args=(leases[i % 2], i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for lease in leases:
            lease.close()
        state = one.usage("acme")["credits"]
        assert sum(sold) == state.used <= LIMIT
        while one.consume("acme", "credits"):
            sold[0] += 1
        assert sum(sold) == LIMIT


def test_closing_while_threads_sell(server: Server, prefix: str) -> None:
    sold = [0] * 4

    def run(lease: Any, number: int) -> None:
        try:
            while lease.consume():
                sold[number] += 1
        except ValueError:  # closed
            return

    with Meter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
        for _ in range(5):
            lease = meter.lease("acme", "credits", 300)
            threads = [threading.Thread(target=run, args=(lease, i)) for i in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.05)
            lease.close()
            for thread in threads:
                thread.join(60)
        assert meter.usage("acme")["credits"].used == sum(sold) > 0


def test_tasks_that_are_cancelled_lose_nothing(server: Server, prefix: str) -> None:
    async def main() -> tuple[int, int]:
        rng = random.Random(7)
        sold = 0
        async with AsyncMeter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
            lease = await meter.lease("acme", "credits", 100, least=100)

            async def sell() -> None:
                nonlocal sold
                while True:
                    n = rng.choice([1, 2, 7])
                    if await lease.consume(n):
                        sold += n
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)

            for _ in range(40):
                tasks = [asyncio.create_task(sell()) for _ in range(10)]
                for _ in range(rng.randrange(30)):
                    await asyncio.sleep(0)
                await asyncio.sleep(rng.random() * 0.003)
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in done)
            closing = asyncio.create_task(lease.close())
            await asyncio.sleep(0)
            closing.cancel()  # goes on all the same
            await asyncio.gather(closing, return_exceptions=True)
            await lease.close()
            return sold, (await meter.usage("acme"))["credits"].used

    sold, used = asyncio.run(main())
    assert used == sold > 100


def test_a_lease_that_is_cancelled_while_it_opens_is_given_back(
    server: Server, prefix: str
) -> None:
    async def main() -> int:
        async with AsyncMeter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
            await meter.usage("acme")
            for ticks in range(12):
                opening = asyncio.create_task(meter.lease("acme", "credits", 100, ttl=60))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                opening.cancel()
                done = await asyncio.gather(opening, return_exceptions=True)
                if not isinstance(done[0], asyncio.CancelledError):
                    await done[0].close()  # it was faster
            for _ in range(100):
                used = (await meter.usage("acme"))["credits"].used
                if used == 0:
                    break
                await asyncio.sleep(0.02)
            return used

    assert asyncio.run(main()) == 0


def test_tasks_share_one_refill(server: Server, prefix: str) -> None:
    async def main() -> None:
        async with AsyncMeter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
            lease = await meter.lease("acme", "credits", 1600)
            sent = 0
            send = meter._transport.send

            async def counted(request: Any, timeout: float) -> Any:
                nonlocal sent
                sent += 1
                return await send(request, timeout)

            meter._transport.send = counted  # type: ignore[method-assign]
            done = await asyncio.gather(*(lease.consume() for _ in range(100)))
            assert all(done)
            assert sent == 1
            await lease.close()

    asyncio.run(main())


def test_nothing_is_sold_after_the_window_it_was_charged_to(server: Server, prefix: str) -> None:
    plan = Plan("fast", default=True, includes=[Bucket("api", 3000, "500ms", algorithm="fixed")])
    sold: Counter[int | None] = Counter()
    late = 0
    with Meter(server.url, plans=[plan], prefix=prefix, timeout=20) as meter:
        leases = [meter.lease("acme", "api", 500, ttl=2) for _ in range(2)]
        until = time.monotonic() + 2
        while time.monotonic() < until:
            for lease in leases:
                now_ms = time.time() * 1000
                decision = lease.consume(3)
                if decision:
                    end = decision["api"].resets_at_ms
                    sold[end] += 3
                    late += now_ms > (end or 0)
        assert len(meter._keeper._due) <= len(leases)
        for lease in leases:
            lease.close()
    assert len(sold) >= 3
    assert max(sold.values()) <= 3000
    assert late == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_sells_nothing_of_its_parents(server: Server, prefix: str) -> None:
    with Meter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
        lease = meter.lease("acme", "credits", 1600)
        assert lease.consume()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                before = lease.remaining
                bought = sum(1 for _ in range(40) if lease.consume())
                lease.close()
                os.write(writer, f"{before} {bought}".encode())
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert os.read(reader, 100) == b"0 40"
        os.close(reader)
        os.close(writer)
        assert lease.remaining == 1599
        assert lease.consume(99)
        lease.close()
        assert meter.usage("acme")["credits"].used == 140


def test_kill_9_loses_a_piece_at_most(server: Server, prefix: str) -> None:
    """Nothing that was sold is given back, and of the rest all but a piece is."""
    context = multiprocessing.get_context("spawn")
    with Meter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
        sold = lost = 0
        for enough in (1, 5, 18):
            reader, writer = context.Pipe()
            process = context.Process(target=seller.sell, args=(server.url, prefix, writer))
            process.start()
            writer.close()
            for _ in range(enough + 3):  # a few more, that it may be killed on its way
                reader.send_bytes(b"sell")
            for _ in range(enough):
                reader.recv_bytes()
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            sold += enough
            with contextlib.suppress(EOFError, ConnectionResetError):
                while True:
                    reader.recv_bytes()
                    sold += 1
            reader.close()
            lost += 4 + 1  # a piece, and a sale that was not told
            time.sleep(seller.TTL + 0.1)
            assert sold <= meter.usage("acme")["few"].used <= sold + lost
        with meter.lease("acme", "few", 10) as lease:
            while lease.consume():
                sold += 1
        assert 100 - lost <= sold <= 100
