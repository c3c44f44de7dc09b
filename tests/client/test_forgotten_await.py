"""An `AsyncMeter` call that nobody awaited never passes for an answer."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meterd import AsyncMeter, Bucket
from tests.client.meter_tools import PLANS, fresh_prefix
from tests.support.servers import Server

CALLS: dict[str, Callable[[AsyncMeter], Any]] = {
    "consume": lambda meter: meter.consume("ana", "tokens"),
    "check": lambda meter: meter.check("ana", "tokens"),
    "report": lambda meter: meter.report("ana", "tokens"),
    "refund": lambda meter: meter.refund("ana", "tokens"),
    "usage": lambda meter: meter.usage("ana"),
    "lease": lambda meter: meter.lease("ana", "tokens", 1),
    "limiter": lambda meter: meter.limiter("x", Bucket("ip", 5, "1m")).consume("ip"),
}


def unpack(made: Any) -> None:
    _allowed, _balance = made


MISUSES: dict[str, Callable[[Any], Any]] = {
    "if": lambda made: 1 if made else 2,
    "not": lambda made: not made,
    "and": lambda made: made and 1,
    "unpacking": unpack,
    "list": list,
    "in": lambda made: "credits" in made,
    "index": lambda made: made["credits"],
    "allowed": lambda made: made.allowed,
    "balance": lambda made: made.balance,
    "limits": lambda made: made.limits,
    "raise": lambda made: made.raise_if_refused(),
    "as_dict": lambda made: made.as_dict(),
}


@pytest.fixture
def meter(server: Server) -> Iterator[AsyncMeter]:
    made = AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix(), timeout=10)
    yield made
    made.abandon()


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("misuse", MISUSES)
def test_a_forgotten_await_raises(meter: AsyncMeter, verb: str, misuse: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = CALLS[verb](meter)
        name = "consume" if verb == "limiter" else verb
        with pytest.raises(TypeError, match=rf"{name} was not awaited: write `await meter.{name}"):
            MISUSES[misuse](made)
        del made
        gc.collect()
    assert [str(one.message) for one in caught] == []


@pytest.mark.parametrize("misuse", MISUSES)
def test_it_can_be_awaited_all_the_same(meter: AsyncMeter, misuse: str) -> None:
    async def main() -> None:
        for begin in (lambda made: made, asyncio.ensure_future, asyncio.create_task):
            made: Any = CALLS["consume"](meter)
            for _ in range(2):
                with pytest.raises(TypeError, match="was not awaited"):
                    MISUSES[misuse](made)
            assert (await begin(made)).allowed
        await meter.close()

    asyncio.run(main())


@pytest.mark.parametrize("verb", CALLS)
def test_a_dropped_call_is_warned_of(meter: AsyncMeter, verb: str) -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        CALLS[verb](meter)


@pytest.mark.parametrize("verb", CALLS)
def test_however_it_is_awaited(meter: AsyncMeter, verb: str) -> None:
    async def main() -> None:
        call = CALLS[verb]
        first = await call(meter)
        for made in (
            asyncio.create_task(call(meter)),
            asyncio.ensure_future(call(meter)),
            asyncio.wait_for(call(meter), 10),
            asyncio.gather(call(meter)),
        ):
            found = await made
            found = found[0] if isinstance(found, list) else found
            assert type(found) is type(first)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(call(meter))
        assert type(task.result()) is type(first)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())


def test_it_shows_what_it_is(meter: AsyncMeter) -> None:
    made = meter.consume("ana", "tokens")
    assert repr(made) == "<consume(...), not awaited yet>"
    assert asyncio.iscoroutine(made)
    assert not hasattr(made, "__len__")
    made.close()


def test_a_task_of_one_can_be_cancelled_and_shown(meter: AsyncMeter) -> None:
    async def main() -> None:
        await meter.open()
        task = asyncio.create_task(meter.consume("ana", "tokens", wait=60))
        assert "Task" in repr(task)
        task.print_stack()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await meter.consume("ana", "tokens")

    asyncio.run(main(), debug=True)


def test_awaited_twice(meter: AsyncMeter) -> None:
    async def main() -> None:
        made = meter.consume("ana", "tokens")
        assert await made
        with pytest.raises(RuntimeError, match="already awaited"):
            await made
        assert (await meter.usage("ana"))["credits"].used == 1

    asyncio.run(main())
