"""Asynchronous clients over loopback TCP, one event loop."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.lab import Lab
from ..core.measure import compare
from ..core.registry import Finding, scenario
from ..peers.bare import ASYNC_NAME
from ..peers.everybody import ASYNC
from ..peers.redis_py import ASYNC_FCALL
from .clients import async_opened

MANY = 64  # tasks with which everybody runs; with other numbers, these do
SOME = ("meterd", ASYNC_FCALL, ASYNC_NAME, "limits, fixed", "limits on coredis, fixed",
        "throttled-py, fixed")  # fmt: skip


@scenario("async", "1, 16, 64, 256 tasks: one limit; with 64: pool and three buckets, everybody")
def asynchronous(lab: Lab) -> Iterator[Finding]:
    for tasks in lab.effort.tasks:
        peers = [peer for peer in ASYNC if tasks == MANY or peer.name in SOME]
        with async_opened(lab.tcp, peers, tasks) as clients:
            ones = clients.contenders(lab, lambda calls: calls.one)
            yield Finding(
                f"async-{tasks}",
                f"Async, {tasks} task{'s' * (tasks > 1)}, one limit",
                compare(ones, lab.effort.blocks, ASYNC_FCALL),
                note=f"{ASYNC_NAME}: as many commands in flight as tasks, no future per call.",
                absent=clients.absent,
            )
            if tasks == MANY:
                fours = clients.contenders(lab, lambda calls: calls.four)
                yield Finding(
                    "async-four",
                    f"Async, {tasks} tasks, a pool and three buckets",
                    compare(fours, lab.effort.blocks, ASYNC_FCALL),
                    note="meterd: one atomic call. Peers: a call per limit, or one bucket with "
                    "four rates where it says so.",
                    absent=clients.absent,
                )
