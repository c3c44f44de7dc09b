"""Holds and cancellation: what ends a hold is carried through, then the cancellation goes on."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meterd import AsyncHold, AsyncMeter, PolicyError
from tests.client.hold_tools import PLANS
from tests.client.meter_tools import fresh_prefix
from tests.support.proxy import CUT_AFTER, FaultProxy, delay
from tests.support.servers import Server

Body = Callable[[AsyncMeter], Awaitable[None]]


def run(url: str, body: Body, **settings: Any) -> None:
    async def main() -> None:
        given = {"prefix": fresh_prefix(), "timeout": 5, **settings}
        async with AsyncMeter(url, plans=PLANS, **given) as meter:
            await body(meter)

    asyncio.run(asyncio.wait_for(main(), 30))


async def used(meter: AsyncMeter) -> tuple[int, int]:
    usage = await meter.usage("acme")
    return usage["jobs"].used, usage["credits"].used


async def stream(meter: AsyncMeter, started: asyncio.Event, tally: bool) -> None:
    async with meter.reserve("acme", {"jobs": 1, "tokens": 50}) as hold:
        for _ in range(3):
            if tally:
                hold.spend("tokens", 2)
            await asyncio.sleep(0)
        started.set()
        await asyncio.sleep(60)


@pytest.mark.parametrize(("tally", "credits"), [(True, 6), (False, 0)])
def test_cancelled_mid_stream(server: Server, tally: bool, credits: int) -> None:
    async def body(meter: AsyncMeter) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(stream(meter, started, tally))
        await started.wait()
        assert await used(meter) == (1, 50)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await used(meter) == (0, credits)

    run(server.url, body)


@pytest.mark.parametrize("times", [1, 5])
def test_cancelled_while_leaving(proxy: FaultProxy, times: int) -> None:
    """However often: the commit arrives, once, and the task ends cancelled."""

    async def body(meter: AsyncMeter) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(stream(meter, started, True))
        await started.wait()
        proxy.next(delay(100))
        task.cancel()
        for _ in range(times):
            await asyncio.sleep(0.01)
            assert not task.done()
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await used(meter) == (0, 6)

    run(proxy.url, body)


def test_cancelled_while_leaving_normally(proxy: FaultProxy) -> None:
    async def body(meter: AsyncMeter) -> None:
        async def work() -> None:
            async with meter.reserve("acme", {"jobs": 1, "tokens": 50}) as hold:
                hold.spend("tokens", 3)
                proxy.next(delay(100))

        task = asyncio.create_task(work())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await used(meter) == (0, 3)

    run(proxy.url, body)


def test_an_explicit_commit_is_carried_through(proxy: FaultProxy) -> None:
    async def body(meter: AsyncMeter) -> None:
        hold = await meter.reserve("acme", {"jobs": 1, "tokens": 50})
        proxy.next(delay(100))
        task = asyncio.create_task(hold.commit({"tokens": 7}))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await used(meter) == (0, 7)
        assert (await hold.commit({"tokens": 7})).replayed

    run(proxy.url, body)


def commits(task: asyncio.Task[Any]) -> bool:
    return repr(task.get_coro()).startswith("<commit(")


def test_whoever_cancels_every_task(proxy: FaultProxy) -> None:
    """As `asyncio.run` does at its end: the commit's own task is hit as well."""

    async def body(meter: AsyncMeter) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(stream(meter, started, True))
        await started.wait()
        proxy.next(delay(50))
        task.cancel()
        await asyncio.sleep(0.01)
        ours = [one for one in asyncio.all_tasks() if one is task or commits(one)]
        assert len(ours) == 2
        for one in ours:
            one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await used(meter) == (0, 6)

    run(proxy.url, body)


def test_a_timeout_around_it(server: Server) -> None:
    async def body(meter: AsyncMeter) -> None:
        async def work() -> None:
            async with asyncio.timeout(0.05), meter.reserve("acme", "tokens", 50) as hold:
                hold.spend("tokens", 4)
                await asyncio.sleep(60)

        with pytest.raises(TimeoutError):
            await work()
        assert await used(meter) == (0, 4)
        task = asyncio.current_task()
        assert task
        assert not task.cancelling()

    run(server.url, body)


def test_a_task_group(server: Server) -> None:
    async def body(meter: AsyncMeter) -> None:
        async def fails() -> None:
            await started.wait()
            raise KeyError("other")

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(stream(meter, started, True))
                group.create_task(fails())

        started = asyncio.Event()
        with pytest.raises(ExceptionGroup):
            await both()
        assert await used(meter) == (0, 6)

    run(server.url, body)


def test_an_async_generator_that_is_closed(server: Server) -> None:
    async def body(meter: AsyncMeter) -> None:
        async def words() -> Any:
            async with meter.reserve("acme", {"jobs": 1, "tokens": 50}) as hold:
                while True:
                    hold.spend("tokens")
                    yield "word"

        said = words()
        assert [await anext(said) for _ in range(4)] == ["word"] * 4
        await said.aclose()
        assert await used(meter) == (0, 4)

    run(server.url, body)


def test_a_lost_answer_while_cancelled(proxy: FaultProxy) -> None:
    async def body(meter: AsyncMeter) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(stream(meter, started, True))
        await started.wait()
        proxy.next(CUT_AFTER)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await used(meter) == (0, 6)

    run(proxy.url, body)


def test_a_commit_that_fails_while_cancelled(proxy: FaultProxy) -> None:
    async def body(meter: AsyncMeter) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(stream(meter, started, True))
        await started.wait()
        proxy.partition(True)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert "commit of hold" in caught.value.__notes__[0]
        proxy.partition(False)

    run(proxy.url, body, timeout=0.3)


# --- Forgetting to await


MISUSES: dict[str, Callable[[Any], Any]] = {
    "if": lambda made: 1 if made else 2,
    "with": lambda made: made.__enter__(),
    "attribute": lambda made: made.decision,
    "unpacking": list,
}


@pytest.mark.parametrize("verb", ["reserve", "commit", "release", "renew"])
@pytest.mark.parametrize("misuse", MISUSES)
def test_a_forgotten_await_raises(server: Server, verb: str, misuse: str) -> None:
    meter = AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix())
    hold = meter.hold("acme", "x")
    make = {
        "reserve": lambda: meter.reserve("acme", "jobs"),
        "commit": hold.commit,
        "release": hold.release,
        "renew": lambda: hold.renew(5),
    }[verb]
    owner = "meter" if verb == "reserve" else "hold"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
        if misuse == "with":
            with pytest.raises(AttributeError):
                MISUSES[misuse](made)
            made.close()
        else:
            with pytest.raises(
                TypeError, match=rf"{verb} was not awaited: .*await {owner}.{verb}\("
            ):
                MISUSES[misuse](made)
        del made
        gc.collect()
    assert [str(one.message) for one in caught] == []
    meter.abandon()


def test_both_ways_to_begin(server: Server) -> None:
    async def body(meter: AsyncMeter) -> None:
        async with await meter.reserve("acme", "tokens", 3) as hold:
            assert isinstance(hold, AsyncHold)
        pending = meter.reserve("acme", "tokens", 4)
        async with pending as hold:
            assert hold.decision.balance == 993
        assert await used(meter) == (0, 7)
        made, _ = await asyncio.gather(meter.reserve("acme", "jobs"), meter.usage("acme"))
        await made.release()
        with pytest.raises(PolicyError):
            await made.renew(-1)

    run(server.url, body)
