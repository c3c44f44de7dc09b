"""Flows: what an operation does, without doing any of it.

An operation is a generator. It yields steps (send this, wait that long) and is given back what came
of them; `Meter` and `AsyncMeter` differ in the few lines that carry a step out. Everything that
decides anything is in the generator, once.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from meterd.transport import Node, Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Route a request; comes back as the reply, or `NotSent` / `MaybeSent` is thrown in."""

    request: Request
    timeout: float


@dataclass(frozen=True, slots=True)
class SendTo:
    """The same, to one node."""

    node: Node
    request: Request
    timeout: float


@dataclass(frozen=True, slots=True)
class Nodes:
    """Comes back as the list of primaries."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait that many seconds."""

    seconds: float


Step = Send | SendTo | Nodes | Sleep
Flow = Generator[Step, Any, T]
