"""What the tests of faults share: plans, both kinds of meter behind one interface, snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from meterd import AsyncMeter, Bucket, Meter, OutcomeUnknown, Plan, Pool
from tests.support import proxy as faulty
from tests.support.proxy import Fault
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


def patience(fault: Fault) -> float:
    """A meter's timeout in seconds. What never comes is waited for, half of it at a time: as short
    as a machine with other work to do allows."""
    return 1.5 if fault in (faulty.DROP, faulty.STALL) else 5


PLENTY = 10**9
CREDITS = Plan("credits", default=True, includes=[Pool("credits", PLENTY, reset="month")])

_serial = itertools.count(1)


def fresh_prefix() -> str:
    """A prefix that no other test of this run has."""
    return f"f{os.getpid()}-{next(_serial)}"


def allowing(algorithm: str, limit: int, name: str = "calls", **more: Any) -> Bucket:
    """A bucket from which nothing flows back while a test runs."""
    return Bucket(name, limit, "366d", algorithm=algorithm, **more)


class Driven:
    """A meter of either kind whose calls block: one text of a test covers both."""

    def __init__(self, meter: Any, runner: asyncio.Runner | None) -> None:
        self.meter = meter
        self._runner = runner

    @property
    def is_async(self) -> bool:
        return self._runner is not None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.meter, name)
        if self._runner is None or not callable(found):
            return found
        runner = self._runner

        def call(*args: Any, **named: Any) -> Any:
            return runner.run(_awaited(found(*args, **named)))

        return call

    def hurry(self, seconds: float) -> None:
        """From now on every call, and what opens a connection for it, has so long."""
        meter = self.meter
        meter._timeout = meter._session.timeout = meter._transport._timeout = seconds

    @property
    def keys(self) -> Driven:
        return Driven(self.meter.keys, self._runner)

    def awaited(self, work: Any) -> Any:
        """The result of a call that a limiter made."""
        return work if self._runner is None else self._runner.run(_awaited(work))


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


class Workshop:
    """Makes meters of one kind and closes them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._made: list[Driven] = []
        self._stack = contextlib.ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner()) if kind == "async" else None

    def __call__(self, url: str, **settings: Any) -> Driven:
        made = (Meter if self._runner is None else AsyncMeter)(url, **settings)
        self._made.append(Driven(made, self._runner))
        return self._made[-1]

    def close(self) -> None:
        for one in self._made:
            one.close()
        self._stack.close()


def used(meter: Any, subject: Any, name: str = "credits") -> int:
    """What a subject's tightest limit of that name counts; 0 for an unseen subject."""
    found: int = meter.usage(subject)[name].used
    return found


def snapshot(server: Server, prefix: str) -> dict[bytes, bytes]:
    """Every key of a store but its policies, without the prefix -> its bytes (DUMP: no TTL).

    Nor the names that private plans guard: one too many only makes a meter more careful.
    """
    client = server.client()
    with contextlib.closing(client):
        head = prefix.encode()
        keys = list(client.scan_iter(match=head + b":*", count=1000))
        found = {key[len(head) :]: client.dump(key) for key in keys}
    # Written by the client beforehand, named by their content: nothing refers to one too many.
    found.pop(b":{store}:policies", None)
    found.pop(b":{store}:private", None)
    return {key: value for key, value in found.items() if value is not None}


def connections(server: Server) -> int:
    """How many clients a server has, our own question included."""
    return len(server.ask("CLIENT", "LIST").splitlines())


@contextlib.contextmanager
def workshop(kind: str) -> Iterator[Workshop]:
    made = Workshop(kind)
    try:
        yield made
    finally:
        made.close()


def certain(op: str, call: Callable[[], Any]) -> Any:
    """The answer of a call that carries `op`: repeated as long as its outcome is unknown."""
    while True:
        try:
            return call()
        except OutcomeUnknown as error:
            if error.op != op:
                raise
