"""A proxy between a client and a server that loses, delays and cuts at the requests a test names.

It understands just enough RESP to know where a request and a reply end, so a fault hits one request
and the server's part of it is certain: `CUT_BEFORE` never reached the server, every other fault
acts on the reply and so the request has been executed. Commands that set up a connection are passed
through and not counted. One request must have one reply (no subscriptions, no MONITOR).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import tempfile
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit

from tests.support.single import Server

SETUP_COMMANDS = frozenset({"ASKING", "AUTH", "CLIENT", "HELLO", "PING", "READONLY", "SELECT"})
T = TypeVar("T")
_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    delay_ms: int = 0


SETUP = Fault("setup")
PASS = Fault("pass")
DROP = Fault("drop")
"""The reply vanishes; the connection works on, so a client that reuses it reads a later reply."""
STALL = Fault("stall")
"""The reply and everything after it vanish, as when a route breaks; the connection stays open."""
CUT_BEFORE = Fault("cut_before")
"""The connection closes and the request never reaches the server."""
CUT_AFTER = Fault("cut_after")
"""The server has answered; the connection closes instead of delivering it."""
CUT_MID_REPLY = Fault("cut_mid_reply")
"""Half of the reply is delivered, then the connection closes."""
DUPLICATE = Fault("duplicate")
"""The reply is delivered twice."""
TRICKLE = Fault("trickle")
"""The reply is delivered one byte at a time."""


def delay(ms: int) -> Fault:
    """The reply, and with it those behind it, comes `ms` late."""
    return Fault("delay", ms)


class FaultProxy:
    """Listens on a unix socket and forwards to one server; a context manager.

    For each counted request the fault is the next one queued by `next` (or `drop_next`,
    `cut_next`), else what `faults(index)` says, index counting requests from 0 over all
    connections. `stats` counts connections, requests, replies delivered whole, bytes swallowed by a
    partition, and each fault by its kind.
    """

    def __init__(self, target: Server | str) -> None:
        """`target`: a `Server`, or a `unix://` or `redis://` URL without TLS."""
        url = urlsplit(target.url if isinstance(target, Server) else target)
        self.faults: Callable[[int], Fault] = lambda index: PASS
        self.stats: Counter[str] = Counter()
        self._queued: deque[Fault] = deque()
        self._links: set[_Link] = set()
        self._partitioned = False
        self._target = unquote(url.path) if url.scheme == "unix" else (url.hostname, url.port)
        self._credentials = url.netloc.rpartition("@")[0]
        self._own_directory: str | None = None
        # In the server's directory the socket is cleaned up with it, even if the tests are killed.
        if isinstance(target, Server):
            directory = target.dir
        else:
            directory = self._own_directory = tempfile.mkdtemp(prefix="meterd-proxy-", dir="/tmp")
        self.path = os.path.join(directory, f"p{next(_serial)}")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = self._run(asyncio.start_unix_server(self._accept, self.path))

    @property
    def url(self) -> str:
        credentials = f"{self._credentials}@" if self._credentials else ""
        return f"unix://{credentials}{quote(self.path)}"

    def next(self, *faults: Fault) -> None:
        """Queue faults (`PASS` included) for the next requests, one each."""
        self._queued.extend(faults)

    def drop_next(self, n: int = 1) -> None:
        self.next(*[DROP] * n)

    def cut_next(self, fault: Fault = CUT_AFTER) -> None:
        self.next(fault)

    def random(self, seed: int, rates: Mapping[Fault, float]) -> None:
        """Each fault with its probability, decided by seed and request index alone."""
        if sum(rates.values()) > 1:
            raise ValueError("the rates add up to more than 1")
        choices, weights = [*rates, PASS], [*rates.values(), 1 - sum(rates.values())]
        self.faults = lambda index: random.Random(f"{seed}/{index}").choices(choices, weights)[0]

    def calm(self) -> None:
        """Forget all queued and random faults, and heal a partition."""
        self._queued.clear()
        self.faults = lambda index: PASS
        self.partition(False)

    def partition(self, on: bool) -> None:
        """While on, connections are accepted and all bytes of either direction swallowed.

        Off closes the connections that lost something, as a stream with a hole cannot go on.
        """

        async def switch() -> None:
            self._partitioned = on
            if not on:
                for link in [link for link in self._links if link.lossy]:
                    link.close()

        self._run(switch())

    def close(self) -> None:
        """Close the socket and every connection. Safe to repeat."""
        if self._loop.is_closed():
            return

        async def finish() -> None:
            self._listener.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # lets the transports finish closing

        self._run(finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        if self._own_directory:
            shutil.rmtree(self._own_directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats["connections"] += 1
        try:
            if isinstance(self._target, str):
                server = await asyncio.open_unix_connection(self._target)
            else:
                server = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        except asyncio.CancelledError:
            pass  # the proxy closes; a cancelled handler would be reported as an error
        finally:
            self._links.discard(link)
            link.close()

    def _decide(self, request: bytes) -> Fault:
        if command_of(request) in SETUP_COMMANDS:
            return SETUP
        index = self.stats["requests"]
        self.stats["requests"] += 1
        fault = self._queued.popleft() if self._queued else self.faults(index)
        if fault is not PASS:
            self.stats[fault.kind] += 1
        return fault


class _Link:
    """One client connection and its counterpart at the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.lossy = False
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._unanswered: deque[Fault] = deque()

    async def run(self) -> None:
        """Until either side closes or a fault cuts."""
        ways = {
            asyncio.create_task(self._forward_requests()),
            asyncio.create_task(self._deliver_replies()),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            results = await asyncio.gather(*ways, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, OSError):
                raise result

    def close(self) -> None:
        self._to_client.close()
        self._to_server.close()

    async def _forward_requests(self) -> None:
        async for request in self._frames(self._from_client):
            fault = self._proxy._decide(request)
            if fault is CUT_BEFORE:
                return
            self._unanswered.append(fault)
            self._to_server.write(request)
            await self._to_server.drain()

    async def _deliver_replies(self) -> None:
        async for reply in self._frames(self._from_server):
            fault = SETUP if reply.startswith(b">") else self._unanswered.popleft()
            if fault is CUT_AFTER:
                return
            if fault is STALL:
                await asyncio.Event().wait()  # until the client gives up
            if fault.delay_ms:
                await asyncio.sleep(fault.delay_ms / 1000)
            if self._swallows(reply):
                continue
            if fault is CUT_MID_REPLY:
                self._to_client.write(reply[: len(reply) // 2])
                return
            if fault not in (DROP, SETUP):
                self._proxy.stats["replies"] += 1  # first: the test may look at once
            if fault is TRICKLE:
                for at in range(len(reply)):
                    self._to_client.write(reply[at : at + 1])
                    await asyncio.sleep(0.0005)
            elif fault is not DROP:
                self._to_client.write(reply * (2 if fault is DUPLICATE else 1))
            await self._to_client.drain()

    async def _frames(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Whole requests or replies, until the other end closes."""
        unread = b""
        while data := await reader.read(65536):
            if reader is self._from_client and self._swallows(data):
                continue
            unread += data
            start = 0
            while (end := frame_end(unread, start)) is not None:
                yield unread[start:end]
                start = end
            unread = unread[start:]

    def _swallows(self, data: bytes) -> bool:
        # After a hole nothing is passed on, even if the partition is healed in between.
        self.lossy = self.lossy or self._proxy._partitioned
        if self.lossy:
            self._proxy.stats["swallowed"] += len(data)
        return self.lossy


def frame_end(data: bytes, at: int) -> int | None:
    """Where the RESP value that starts at `at` ends; None if it is not complete yet.

    Knows RESP2, RESP3 and inline requests.
    """
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, after = data[at : at + 1], line_end + 2
    if kind not in b"$!=*~>%|":
        return after
    size = int(data[at + 1 : line_end])
    if kind in b"$!=":
        end = after + size + 2 if size >= 0 else after
        return end if end <= len(data) else None
    # An attribute (|) stands before the value it belongs to.
    parts = {b"%": 2 * size, b"|": 2 * size + 1}.get(kind, size)
    end = after
    for _ in range(parts):
        next_end = frame_end(data, end)
        if next_end is None:
            return None
        end = next_end
    return end


def command_of(request: bytes) -> str:
    """The first word of a request, in capitals."""
    words = request.split(b"\r\n", 3)[2:3] if request.startswith(b"*") else request.split(None, 1)
    return words[0].decode(errors="replace").upper() if words else ""
