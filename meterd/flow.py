"""Flows: what an operation does, without doing any of it.

An operation is a generator. It yields steps (send this, wait that long) and is given back what came
of them; `Meter` and `AsyncMeter` differ in the few lines that carry a step out. Everything that
decides anything is in the generator, once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from meterd.errors import PolicyError
from meterd.transport import Node, Request

T = TypeVar("T")


class Send(NamedTuple):
    """Route a request; comes back as the reply, or `NotSent` / `MaybeSent` is thrown in."""

    request: Request
    timeout: float


class SendTo(NamedTuple):
    """The same, to one node."""

    node: Node
    request: Request
    timeout: float


class Nodes(NamedTuple):
    """Comes back as the list of primaries."""


class Sleep(NamedTuple):
    """Wait that many seconds."""

    seconds: float


Step = Send | SendTo | Nodes | Sleep
Flow = Generator[Step, Any, T]


def closed() -> PolicyError:
    """The mistake of whoever calls a meter that was closed."""
    return PolicyError("this meter is closed; make a new one")


def without_io(flow: Flow[T]) -> T:
    """Of a call that was under way when its meter was closed: what is known of it already."""
    try:
        next(flow)
    except StopIteration as stop:
        done: T = stop.value
        return done
    flow.close()
    raise closed()
