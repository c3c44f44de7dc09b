"""How the flows of the HTTP module are carried out: in a thread of its own, or in an event loop.

A flow asks its meter, and for what functions of the request make of it. What it asks may have to be
awaited, or may block; everything that decides anything is in the flow, once.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple, TypeVar

from meterd.aiohold import carried_through
from meterd.errors import PolicyError

T = TypeVar("T")


class Ask(NamedTuple):
    """Call the meter. `blocking`: not in an event loop. `undo(result)`: nobody waits any more."""

    call: Callable[[], Any]
    blocking: bool
    undo: Callable[[Any], Any] | None = None


class Value(NamedTuple):
    """What a function of the request returned, perhaps to be awaited."""

    given: Any
    what: str


Steps = Generator[Ask | Value, Any, T]


def run(steps: Steps[T]) -> T:
    """Carries a flow out, waiting here."""
    try:
        step = next(steps)
        while True:
            try:
                result = step.call() if isinstance(step, Ask) else step.given
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    what = "the meter" if isinstance(step, Ask) else step.what
                    raise PolicyError(f"{what}: asynchronous, and nothing here can await it")
            except Exception as error:  # noqa: BLE001  # the flow knows what to do about it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        done: T = stop.value
        return done


async def run_async(steps: Steps[T]) -> T:
    """Carries a flow out in an event loop; what blocks is done in a thread."""
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Ask) and step.blocking:
                    result = await _in_thread(step.call, step.undo)
                else:
                    result = step.call() if isinstance(step, Ask) else step.given
                    if inspect.isawaitable(result):
                        result = await result
            except Exception as error:  # noqa: BLE001  # the flow knows what to do about it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        done: T = stop.value
        return done
    finally:
        steps.close()


async def run_through(steps: Callable[[], Steps[T]]) -> T:
    """The same, and to its end although the task is cancelled meanwhile; then that goes on."""
    return await carried_through(lambda: run_async(steps()))


async def _in_thread(call: Callable[[], T], undo: Callable[[T], Any] | None) -> T:
    """A thread cannot be cancelled: what it brings after that is taken back."""
    loop = asyncio.get_running_loop()
    work = loop.run_in_executor(None, partial(contextvars.copy_context().run, call))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(partial(_unwanted, loop, undo))
        raise


def _unwanted(
    loop: asyncio.AbstractEventLoop,
    undo: Callable[[Any], Any] | None,
    work: asyncio.Future[Any],
) -> None:
    if not work.cancelled() and work.exception() is None and undo is not None:
        loop.run_in_executor(None, undo, work.result())
