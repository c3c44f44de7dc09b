"""Calls that are refused: the limit of one a day is used up."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.lab import Lab
from ..core.measure import compare
from ..core.registry import Finding, scenario
from ..peers.everybody import ASYNC, SYNC
from .clients import async_opened, opened

REFERENCE = "limits, fixed"
TASKS = 64


@scenario("refusals", "refused calls: sync in one thread, async with 64 tasks")
def refusals(lab: Lab) -> Iterator[Finding]:
    blocks = lab.effort.blocks
    with opened(lab.tcp, SYNC) as clients:
        contenders = clients.contenders(lab, lambda calls: calls.refused)
        reference = REFERENCE if REFERENCE not in clients.absent else "meterd"
        yield Finding(
            "refused-sync",
            "Sync, one thread, refused",
            compare(contenders, blocks, reference),
            absent=clients.absent,
        )
    with async_opened(lab.tcp, ASYNC, TASKS) as tasks:
        contenders = tasks.contenders(lab, lambda calls: calls.refused)
        yield Finding(
            "refused-async",
            f"Async, {TASKS} tasks, refused",
            compare(contenders, blocks, reference),
            absent=tasks.absent,
        )
