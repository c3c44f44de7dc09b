"""Opening contenders together, so that they can take turns on one server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..core.lab import Lab, TcpServer
from ..core.measure import Contender, async_block, sync_block
from ..peers import AsyncCall, AsyncCalls, AsyncPeer, Call, Calls, Peer, Setting

SUBJECTS = range(100)


@dataclass(slots=True)
class Opened:
    """Contenders that run here, with their calls; `absent` do not, and say why."""

    calls: dict[str, Calls] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def contenders(
        self, lab: Lab, pick: Callable[[Calls], Call | None], subjects: Sequence[int] = SUBJECTS
    ) -> list[Contender]:
        """Those that can do what `pick` picks, one after another in one thread."""
        seconds = lab.effort.block_s

        def contender(name: str, call: Call) -> Contender:
            return Contender(name, lambda: sync_block(call, seconds, subjects))

        found = ((name, pick(calls)) for name, calls in self.calls.items())
        return [contender(name, call) for name, call in found if call is not None]


@contextmanager
def opened(server: TcpServer, peers: Iterable[Peer]) -> Iterator[Opened]:
    """On an empty server."""
    server.flush()
    found = Opened()
    with ExitStack() as stack:
        for peer in peers:
            if peer.missing:
                found.absent[peer.name] = peer.missing
            else:
                setting = Setting(server.url, server.path)
                found.calls[peer.name] = stack.enter_context(peer.open(setting))
        yield found


@dataclass(slots=True)
class AsyncOpened:
    """The same on one event loop, which stands still between blocks."""

    run: Callable[[Any], Any]
    tasks: int
    calls: dict[str, AsyncCalls] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    batches: set[str] = field(default_factory=set)  # whose calls are of `tasks` decisions each

    def contenders(
        self,
        lab: Lab,
        pick: Callable[[AsyncCalls], AsyncCall | None],
        subjects: Sequence[int] = SUBJECTS,
    ) -> list[Contender]:
        seconds = lab.effort.block_s

        def contender(name: str, call: AsyncCall) -> Contender:
            if name in self.batches:
                return Contender(
                    name,
                    lambda: self.run(async_block(call, 1, seconds, subjects, self.tasks)),
                )
            return Contender(
                name, lambda: self.run(async_block(call, self.tasks, seconds, subjects))
            )

        found = ((name, pick(calls)) for name, calls in self.calls.items())
        return [contender(name, call) for name, call in found if call is not None]


@contextmanager
def async_opened(
    server: TcpServer, peers: Iterable[AsyncPeer], tasks: int
) -> Iterator[AsyncOpened]:
    """On an empty server."""
    server.flush()
    with asyncio.Runner() as runner:
        found = AsyncOpened(runner.run, tasks)
        stack = AsyncExitStack()
        try:
            for peer in peers:
                if peer.missing:
                    found.absent[peer.name] = peer.missing
                    continue
                entering = stack.enter_async_context(
                    peer.open(Setting(server.url, server.path, tasks))
                )
                found.calls[peer.name] = runner.run(entering)
                if peer.role == "batch":
                    found.batches.add(peer.name)
            yield found
        finally:
            runner.run(stack.aclose())
