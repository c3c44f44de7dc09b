"""One connection, hundreds of tasks, and a network that chops, trickles, cuts and stalls: for long.

Every call has a payload and a key of its own, so a reply that belongs to another call shows at
once, and what the server executed can be read off in the end, call by call.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from meterd.transport import MaybeSent, NotSent, Request, open_async_transport, pack
from meterd.transport.lane import Lane
from tests.faults.fault_tools import connections, fresh_prefix
from tests.support import servers
from tests.support.chaos import Chaos, Rates
from tests.support.servers import Server, wait_until

TASKS = 150
BLOCK = 10_000  # calls between two looks at what the server has executed
WINDOW = 50
RATES = Rates(cut=0.01, trickle=0.01, chop=0.2, delay=0.02, stall=0.0005)


@pytest.fixture
def server() -> Iterator[Server]:
    """One on which every connection is ours."""
    with servers.start() as started:
        yield started


class Soak:
    """Mixed calls until so many replies were checked."""

    def __init__(self, transport: Any, server: Server, seed: int) -> None:
        self.transport = transport
        self.client = server.client()
        self.rng = random.Random(seed)
        self.prefix = fresh_prefix()
        self.ends: Counter[str] = Counter()
        # Key -> what it counts if the call ran, and whether it must have (None: nobody knows).
        self.expected: dict[str, tuple[int, bool | None]] = {}

    async def run(self, replies: int) -> None:
        number = 0
        while self.ends["reply"] < replies:
            numbers = iter(range(number, number + BLOCK))
            async with asyncio.TaskGroup() as group:
                for _ in range(TASKS):
                    group.create_task(self.work(numbers))
            number += BLOCK
            await asyncio.to_thread(self.verify)

    async def work(self, numbers: Any) -> None:
        for number in numbers:
            await self.one(number)

    async def one(self, number: int) -> None:
        key = f"{self.prefix}:{number}"
        request, answer, counts = self.make(number, key)
        how = self.rng.random()
        timeout = self.rng.random() * 0.02 if how < 0.03 else 1
        begin = self.transport.start if number % 2 else self.transport.send
        call = begin(request, timeout)
        ran: bool | None = None
        try:
            if how > 0.9:
                reply = await self.impatiently(call)
            else:
                reply = await call
        except NotSent:
            self.ends["not sent"] += 1
            ran = False
        except MaybeSent:
            self.ends["maybe sent"] += 1
        except asyncio.CancelledError:
            self.ends["cancelled"] += 1
        else:
            self.ends["reply"] += 1
            ran = True
            shown = [str(one) if isinstance(one, Exception) else one for one in as_list(reply)]
            assert shown == answer, (number, request)
        if counts:
            self.expected[key] = counts, ran

    async def impatiently(self, call: Any) -> Any:
        task = asyncio.ensure_future(call)
        if self.rng.random() < 0.5:
            for _ in range(self.rng.randrange(12)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self.rng.random() * 0.01)
        task.cancel()
        return await task

    def make(self, number: int, key: str) -> tuple[Request, list[Any], int]:
        """The request, the only right answer, and how far it counts the key up."""
        kind = self.rng.random()
        if kind < 0.6:
            return Request(pack("INCR", key), None), [1], 1
        payload = b"%d/%b" % (number, self.rng.randbytes(self.rng.randrange(60)))
        if kind < 0.8:
            return Request(pack("ECHO", payload), None), [payload], 0
        if kind < 0.9:
            packed = pack("INCR", key) + pack("ECHO", payload) + pack("INCRBY", key, 2)
            return Request(packed, None, 3), [1, payload, 3], 3
        if kind < 0.93:
            script = pack("EVAL", "return redis.error_reply(ARGV[1])", 0, f"E{number} no")
            return Request(script, None), [f"E{number} no"], 0
        if kind < 0.935:
            payload += self.rng.randbytes(40_000)
            return Request(pack("ECHO", payload), None), [payload], 0
        return Request(pack("GET", key), None), [None], 0

    def verify(self) -> None:
        """No call ran twice, none that was answered did not run, none ran that was never sent."""
        keys = list(self.expected)
        # What lies in the server's own buffers is executed before this.
        for at in range(0, len(keys), 1000):
            part = keys[at : at + 1000]
            found: Any = self.client.mget(part)
            for key, value in zip(part, found, strict=True):
                counts, ran = self.expected[key]
                # Of several commands a cut may leave the first ones.
                allowed = {True: {counts}, False: {0}, None: {0, 1, counts}}[ran]
                assert int(value or 0) in allowed, (key, value, counts, ran)
                self.ends["unknown, ran" if ran is None and value else "verified"] += 1
            self.client.unlink(*part)
        self.expected.clear()


def as_list(reply: Any) -> list[Any]:
    return reply if isinstance(reply, list) else [reply]


def lanes() -> int:
    gc.collect()
    return sum(type(one) is Lane for one in gc.get_objects())


def used() -> tuple[int, int]:
    """Open files, and the most memory so far, in MB."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return len(os.listdir("/proc/self/fd")), peak_kb // 1024


@pytest.mark.asyncio
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("replies", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
async def test_every_reply_is_its_own(server: Server, replies: int) -> None:
    before = lanes()
    with Chaos(server, 7, RATES) as chaos:
        transport: Any = open_async_transport(chaos.url, timeout=5, max_connections=WINDOW)
        transport.depth = 1  # so that most of the tasks wait here
        soak = Soak(transport, server, seed=replies)
        await soak.run(replies // 4)
        files, memory = used()
        await soak.run(replies)
        # A connection that is being cut may be open at either look.
        files_after, memory_after = used()
        assert files_after <= files + 6
        assert memory_after <= memory + 24
        chaos.rates = replace(RATES, stall=0.01)  # so far none may have come about
        while not chaos.stats["stall"]:
            await soak.run(soak.ends["reply"] + BLOCK // 2)
        # The calls whose replies nobody wants any more are the last to be answered.
        chaos.rates = Rates()
        tasks = [transport.send(Request(pack("ECHO", str(i)), None), 5) for i in range(500)]
        assert await asyncio.gather(*tasks) == [b"%d" % i for i in range(500)]
        assert lanes() <= before + 3
        await transport.aclose()
    assert lanes() <= before
    assert soak.ends["reply"] >= replies
    for end in ("cancelled", "not sent", "maybe sent", "unknown, ran"):
        assert soak.ends[end] > 20, soak.ends
    assert chaos.stats["cut"] > 20, chaos.stats
    assert chaos.stats["connections"] > chaos.stats["cut"] // 2
    soak.client.close()
    wait_until("no connection left", lambda: connections(server) == 1)
