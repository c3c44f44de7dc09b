"""Synchronous clients over loopback TCP: one thread, then several."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.lab import Lab
from ..core.measure import Contender, compare, thread_block
from ..core.registry import Finding, scenario
from ..peers import Call
from ..peers.everybody import SYNC
from ..peers.redis_py import FCALL
from .clients import SUBJECTS, opened

THREADED = ("meterd", FCALL, "limits, fixed")


@scenario("sync", "one thread: one limit; pool and three buckets (elsewhere: four calls)")
def sync(lab: Lab) -> Iterator[Finding]:
    with opened(lab.tcp, SYNC) as clients:
        ones = clients.contenders(lab, lambda calls: calls.one)
        fours = clients.contenders(lab, lambda calls: calls.four)
        yield Finding(
            "sync-one",
            "Sync, one thread, one limit",
            compare(ones, lab.effort.blocks, FCALL),
            absent=clients.absent,
        )
        yield Finding(
            "sync-four",
            "Sync, one thread, a pool and three buckets",
            compare(fours, lab.effort.blocks, FCALL),
            note="meterd: one atomic call. Peers: a call per limit, or one bucket with four rates "
            "where it says so.",
            absent=clients.absent,
        )


@scenario("threads", "one meter, many threads, one limit")
def threads(lab: Lab) -> Iterator[Finding]:
    with opened(lab.tcp, [peer for peer in SYNC if peer.name in THREADED]) as clients:
        for count in lab.effort.threads:

            def contender(name: str, call: Call, count: int = count) -> Contender:
                seconds = lab.effort.block_s
                return Contender(name, lambda: thread_block(call, count, seconds, SUBJECTS))

            found = ((name, calls.one) for name, calls in clients.calls.items())
            contenders = [contender(name, call) for name, call in found if call]
            yield Finding(
                f"threads-{count}",
                f"One meter in {count} thread{'s' * (count > 1)}, one limit",
                compare(contenders, lab.effort.blocks, FCALL),
                absent=clients.absent,
            )
