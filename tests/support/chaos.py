"""A relay that knows nothing of RESP: it chops, trickles, delays, cuts or swallows what passes.

`FaultProxy` hits a request that a test names; this one hits whatever is on the way, at rates.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.single import Server

_TRICKLED_BYTES = 40  # of a piece; the rest of it comes at once


@dataclass(frozen=True, slots=True)
class Rates:
    """The probability that a piece, of up to 64 KiB, is treated so."""

    cut: float = 0.0
    """A part of it, or nothing, is passed on; then both ends are closed."""
    trickle: float = 0.0
    """Its first bytes come one at a time."""
    chop: float = 0.0
    """It comes in pieces of random sizes."""
    delay: float = 0.0
    """It, and all behind it, comes up to 5 ms late."""
    stall: float = 0.0
    """It, and all behind it, never comes; the connection stays open until the client closes it."""


class Chaos:
    """Listens on a unix socket before one server; a context manager.

    `rates` may be changed at any time. `stats` counts connections and what was done to pieces.
    """

    def __init__(self, server: Server, seed: int, rates: Rates) -> None:
        self.rates = rates
        self.stats: Counter[str] = Counter()
        self._target = server.socket
        self._rng = random.Random(seed)
        self._path = os.path.join(tempfile.mkdtemp(prefix="chaos", dir=server.dir), "s")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stop = asyncio.Event()
        self._ended: asyncio.Future[None]

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def __enter__(self) -> Self:
        self._thread.start()
        ready = threading.Event()
        self._ended = asyncio.run_coroutine_threadsafe(  # type: ignore[assignment]
            self._serve(ready), self._loop
        )
        assert ready.wait(10)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._ended.result(10)  # type: ignore[call-arg]
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        links: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = asyncio.create_task(self._link(reader, writer))
            links.add(link)
            link.add_done_callback(links.discard)

        server = await asyncio.start_unix_server(accept, self._path)
        ready.set()
        await self._stop.wait()
        server.close()
        for link in list(links):
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats["connections"] += 1
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        ways = [
            asyncio.create_task(self._pass(reader, far_writer)),
            asyncio.create_task(self._pass(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            far_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either end closes, or a cut."""
        rng = self._rng
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                rates, dice = self.rates, rng.random()
                if dice < rates.cut:
                    self.stats["cut"] += 1
                    writer.write(data[: rng.randrange(len(data) + 1)])
                    await writer.drain()
                    return
                if (dice := dice - rates.cut) < rates.trickle:
                    self.stats["trickle"] += 1
                    for at in range(min(len(data), _TRICKLED_BYTES)):
                        writer.write(data[at : at + 1])
                        await asyncio.sleep(0.0002)
                    data = data[_TRICKLED_BYTES:]
                elif (dice := dice - rates.trickle) < rates.chop:
                    self.stats["chop"] += 1
                    while data:
                        size = rng.choice((1, 2, 3, 7, 50, 400, 3000))
                        writer.write(data[:size])
                        data = data[size:]
                        await asyncio.sleep(0)
                elif (dice := dice - rates.chop) < rates.delay:
                    self.stats["delay"] += 1
                    await asyncio.sleep(rng.random() * 0.005)
                elif dice - rates.delay < rates.stall:
                    self.stats["stall"] += 1
                    while await reader.read(65536):
                        pass
                    return
                writer.write(data)
                await writer.drain()
