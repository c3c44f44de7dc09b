"""`keepalive=True`: a hold outlives its ttl as long as somebody holds on to it, and no longer."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meterd import AsyncMeter, Meter
from tests.client.hold_tools import PLANS
from tests.client.meter_tools import fresh_prefix
from tests.support.proxy import FaultProxy
from tests.support.servers import Server

ROOT = Path(__file__).resolve().parents[2]
TTL = 0.8


class Heard:
    """An observer that counts, verb by verb and outcome by outcome."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, verb: str, subject: Any, outcome: str, seconds: float) -> None:
        self.calls.append((verb, outcome))

    def count(self, verb: str, outcome: str = "OK") -> int:
        return self.calls.count((verb, outcome))


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def keepers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "meterd-keeper"]


# --- Meter


def test_a_hold_is_kept(server: Server) -> None:
    heard = Heard()
    with Meter(server.url, plans=PLANS, prefix=fresh_prefix(), observer=heard) as meter:
        mortal = meter.reserve("acme", "jobs", ttl=TTL)
        assert not keepers()
        with meter.reserve("acme", {"jobs": 1, "tokens": 5}, ttl=TTL, keepalive=True) as hold:
            others = [meter.reserve("acme", "jobs", ttl=TTL, keepalive=True) for _ in range(3)]
            time.sleep(3 * TTL)
            assert meter.usage("acme")["jobs"].used == 4
            assert mortal.commit()["jobs"].applied == 0
            assert len(keepers()) == 1  # for all of them
            hold.spend("tokens", 2)
        assert hold.spent == {"tokens": 2}
        for one in others:
            one.release()
        count = heard.count("renew")
        assert count >= 4 * 4
        time.sleep(TTL)
        assert heard.count("renew") == count
        assert {outcome for _, outcome in heard.calls} == {"OK"}
        assert meter.usage("acme")["credits"].used == 2
    assert not keepers()


def test_a_hold_that_is_forgotten_runs_out(server: Server) -> None:
    with Meter(server.url, plans=PLANS, prefix=fresh_prefix()) as meter:
        hold = meter.reserve("acme", "jobs", ttl=TTL, keepalive=True)
        time.sleep(TTL * 1.5)
        assert meter.usage("acme")["jobs"].used == 1
        del hold
        gc.collect()
        wait_for(lambda: meter.usage("acme")["jobs"].used == 0)


def test_a_dead_one_is_said_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    prefix = fresh_prefix()
    with Meter(server.url, plans=PLANS, prefix=prefix, observer=heard) as meter:
        hold = meter.reserve("acme", {"jobs": 1, "tokens": 5}, ttl=TTL, keepalive=True)
        meter.forget("acme")
        wait_for(lambda: bool(heard.count("renew", "OpNotFound")))
        time.sleep(TTL)
        assert heard.count("renew", "OpNotFound") == 1
        (line,) = [record.message for record in caplog.records]
        assert line.startswith(f"hold {hold.id!r} of 'acme' is not kept alive: renew: no open hold")
        assert hold.commit()["credits"].applied == 5  # as a report


def test_an_unreachable_server_is_asked_again(proxy: FaultProxy) -> None:
    heard = Heard()
    prefix = fresh_prefix()
    meter = Meter(proxy.url, plans=PLANS, prefix=prefix, timeout=0.15, observer=heard)
    with meter:
        hold = meter.reserve("acme", "jobs", ttl=2.4, keepalive=True)
        proxy.partition(True)
        wait_for(lambda: len([c for c in heard.calls if c[0] == "renew"]) >= 1)
        proxy.partition(False)
        wait_for(lambda: heard.count("renew") >= 1)
        time.sleep(2.4)
        assert meter.usage("acme")["jobs"].used == 1
        hold.release()


def test_renewing_by_hand_sets_the_pace(server: Server) -> None:
    heard = Heard()
    with Meter(server.url, plans=PLANS, prefix=fresh_prefix(), observer=heard) as meter:
        hold = meter.reserve("acme", "jobs", ttl="1h", keepalive=True)
        hold.renew(TTL)
        time.sleep(2 * TTL)
        assert heard.count("renew") >= 3
        hold.renew("1h")
        count = heard.count("renew")
        time.sleep(TTL)
        assert heard.count("renew") == count
        hold.commit()


def test_closing_the_meter_ends_it(server: Server) -> None:
    meter = Meter(server.url, plans=PLANS, prefix=fresh_prefix())
    hold = meter.reserve("acme", "jobs", ttl=TTL, keepalive=True)
    assert len(keepers()) == 1
    meter.close()
    assert not keepers()
    del hold


FINISH = """
import sys
from meterd import Meter
url, prefix, hold_id = sys.argv[1:]
with Meter(url, prefix=prefix) as meter:
    decision = meter.hold("acme", hold_id).commit({"tokens": 3})
    print(decision["jobs"].used, decision["credits"].used)
"""


def test_another_process_finishes_what_is_kept_alive(server: Server) -> None:
    prefix = fresh_prefix()
    with Meter(server.url, plans=PLANS, prefix=prefix) as meter:
        hold = meter.reserve("acme", {"jobs": 1, "tokens": 5}, ttl=TTL, keepalive=True)
        words = [sys.executable, "-c", FINISH, server.url, prefix, hold.id]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.split() == ["0", "3"]
        assert hold.commit({"tokens": 3}).replayed


# --- AsyncMeter


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_an_async_hold_is_kept(server: Server) -> None:
    heard = Heard()

    async def main() -> None:
        plans, prefix = PLANS, fresh_prefix()
        async with AsyncMeter(server.url, plans=plans, prefix=prefix, observer=heard) as meter:
            mortal = await meter.reserve("acme", "jobs", ttl=TTL)
            async with meter.reserve(
                "acme", {"jobs": 1, "tokens": 5}, ttl=TTL, keepalive=True
            ) as hold:
                await asyncio.sleep(3 * TTL)
                assert (await meter.usage("acme"))["jobs"].used == 1
                assert (await mortal.commit())["jobs"].applied == 0
                hold.spend("tokens", 2)
            count = heard.count("renew")
            assert count >= 4
            await asyncio.sleep(TTL)
            assert heard.count("renew") == count
            assert not [task for task in asyncio.all_tasks() if "_renewals" in repr(task)]
            assert (await meter.usage("acme"))["credits"].used == 2
            assert {outcome for _, outcome in heard.calls} == {"OK"}

    run(main())


def test_an_async_hold_that_is_forgotten_runs_out(server: Server) -> None:
    async def main() -> None:
        async with AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix()) as meter:
            hold = await meter.reserve("acme", "jobs", ttl=TTL, keepalive=True)
            await asyncio.sleep(TTL * 1.5)
            assert (await meter.usage("acme"))["jobs"].used == 1
            del hold
            gc.collect()
            end = time.monotonic() + 5
            while (await meter.usage("acme"))["jobs"].used:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)

    run(main())


def test_a_dead_async_hold_is_said_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()

    async def main() -> None:
        plans, prefix = PLANS, fresh_prefix()
        async with AsyncMeter(server.url, plans=plans, prefix=prefix, observer=heard) as meter:
            hold = await meter.reserve("acme", {"jobs": 1, "tokens": 5}, ttl=TTL, keepalive=True)
            await meter.forget("acme")
            await until(lambda: bool(heard.count("renew", "OpNotFound")))
            await asyncio.sleep(TTL)
            assert heard.count("renew", "OpNotFound") == 1
            assert "is not kept alive" in caplog.text
            assert (await hold.commit())["credits"].applied == 5

    run(main())
