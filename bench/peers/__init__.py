"""Everybody who is compared, each behind the same few calls.

An adapter does what the documentation of its library says, with a limit so high that nothing is
refused, and imports the library only when it is opened: what is not installed is reported as such.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PLENTY = 10**6
Call = Callable[[int], object]
AsyncCall = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where to connect, and how many callers there will be at once."""

    url: str
    path: str  # the same server's unix socket, for preparations
    callers: int = 1


@dataclass(frozen=True, slots=True)
class Calls:
    """What a sync contender can do for subject number n; the answer is true if allowed.

    `one`: charge one limit. `four`: charge a pool and three buckets, or four rate limits of the
    longest periods that the library has. `refused`: a call that a full limit refuses.
    """

    one: Call | None = None
    four: Call | None = None
    refused: Call | None = None


@dataclass(frozen=True, slots=True)
class AsyncCalls:
    """The same, awaited."""

    one: AsyncCall | None = None
    four: AsyncCall | None = None
    refused: AsyncCall | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A contender. `role`: "ours", "peer", "floor" (does not limit anything) or "client"."""

    name: str
    open: Callable[[Setting], AbstractContextManager[Calls]]
    packages: tuple[str, ...] = ()
    role: str = "peer"

    @property
    def missing(self) -> str:
        return missing(self.packages)


@dataclass(frozen=True, slots=True)
class AsyncPeer:
    name: str
    open: Callable[[Setting], AbstractAsyncContextManager[AsyncCalls]]
    packages: tuple[str, ...] = ()
    role: str = "peer"

    @property
    def missing(self) -> str:
        return missing(self.packages)


def missing(packages: tuple[str, ...]) -> str:
    """Why it cannot run here, or nothing."""
    for package in packages:
        if installed(package) is None:
            return f"{package} is not installed"
    return ""


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
