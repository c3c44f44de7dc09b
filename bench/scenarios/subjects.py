"""One subject that everybody charges, a thousand, a million: what the client sees of it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ..core.lab import Lab
from ..core.measure import Contender, async_block, compare
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.workload import Copier, customer, subject
from ..peers import AsyncCall
from ..peers.everybody import ASYNC
from .clients import async_opened

TASKS = 64
FEW = 1000
CONTENDERS = ("meterd", "limits, fixed")


@scenario("subjects", "a hot key and a million subjects, async, 64 tasks")
def subjects(lab: Lab) -> Iterator[Finding]:
    many = lab.effort.many_subjects
    few = min(FEW, many)
    kinds = {
        f"{few:,} subjects": range(few),
        "hot key: 1 subject": range(1),
        f"{many:,} subjects": random.sample(range(many), min(many, 50_000)),
    }
    peers = [peer for peer in ASYNC if peer.name in CONTENDERS]
    with async_opened(lab.tcp, peers, TASKS) as clients:
        with Raw(lab.tcp.path) as raw, Copier(raw, lab.tcp.url) as copier:
            copier.meter.consume(subject(0), "pool")
            copier.copy_records(customer, many)

        def contender(name: str, call: AsyncCall, numbers: list[int]) -> Contender:
            seconds, run = lab.effort.block_s, clients.run
            return Contender(name, lambda: run(async_block(call, TASKS, seconds, numbers)))

        contenders = [
            contender(f"{name}, {kind}", calls.one, list(numbers))
            for kind, numbers in kinds.items()
            for name, calls in clients.calls.items()
            if calls.one is not None
        ]
        yield Finding(
            "subjects",
            "Async, 64 tasks, one limit: hot key, and many subjects",
            compare(contenders, lab.effort.blocks, f"meterd, {few:,} subjects"),
            absent=clients.absent,
        )
