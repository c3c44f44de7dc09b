"""Carrying out the rounds of a batch: what its calls want in one round is begun together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from meterd.batch import Rounds
from meterd.flow import Nodes, Send, SendTo, Sleep, Step
from meterd.transport import AsyncTransport, MaybeSent, NotSent, SyncTransport

T = TypeVar("T")


def drive(transport: SyncTransport, rounds: Rounds[T]) -> T:
    """Threads wait here: all that is sent in a round is one write to each node."""
    try:
        steps = next(rounds)
        while True:
            steps = rounds.send(_carried_out(transport, steps))
    except StopIteration as stop:
        done: T = stop.value
        return done


def _carried_out(transport: SyncTransport, steps: Sequence[Step]) -> list[Any]:
    results: list[Any] = [None] * len(steps)
    sends = [(at, step) for at, step in enumerate(steps) if type(step) is Send]
    if sends:
        requests = [step.request for _, step in sends]
        longest = max([step.timeout for _, step in sends])
        replies = transport.send_many(requests, longest)
        for (at, _), reply in zip(sends, replies, strict=True):
            results[at] = reply
    pauses = [step.seconds for step in steps if type(step) is Sleep]
    if pauses:
        time.sleep(max(pauses))
    for at, step in enumerate(steps):
        try:
            if type(step) is SendTo:
                results[at] = transport.send_to(step.node, step.request, step.timeout)
            elif type(step) is Nodes:
                results[at] = transport.nodes()
        except (NotSent, MaybeSent) as error:
            results[at] = error
    return results


async def drive_async(transport: AsyncTransport, rounds: Rounds[T]) -> T:
    """Tasks wait here: all steps of a round are begun at once, in order."""
    try:
        steps = next(rounds)
        while True:
            steps = rounds.send(await _all_of(transport, steps))
    except StopIteration as stop:
        done: T = stop.value
        return done


async def _all_of(transport: AsyncTransport, steps: Sequence[Step]) -> list[Any]:
    futures = [asyncio.ensure_future(_begun(transport, step)) for step in steps]
    try:
        await asyncio.wait(futures)
    finally:
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen; else asyncio complains when a batch is given up
    results: list[Any] = []
    for future in futures:
        problem = future.exception()
        if problem is not None and not isinstance(problem, (NotSent, MaybeSent)):
            raise problem
        results.append(problem or future.result())
    return results


def _begun(transport: AsyncTransport, step: Step) -> Awaitable[Any]:
    if type(step) is Send:
        return transport.start(step.request, step.timeout)
    if type(step) is SendTo:
        return transport.send_to(step.node, step.request, step.timeout)
    if type(step) is Sleep:
        return asyncio.sleep(step.seconds)
    return transport.nodes()
