"""What the tests of the transports share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

from meterd.transport import (
    Request,
    open_async_transport,
    open_transport,
    pack,
)

_serial = count()


def fresh_key() -> str:
    return f"t:{os.getpid()}:{next(_serial)}"


def command(*args: bytes | str | int) -> Request:
    return Request(pack(*args), str(args[1]).encode() if len(args) > 1 else None)


@contextlib.contextmanager
def transport(url: str, connections: int = 8, timeout: float = 2.0) -> Iterator[Any]:
    made = open_transport(url, timeout=timeout, max_connections=connections)
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def async_transport(
    url: str, connections: int = 8, timeout: float = 2.0, *, depth: int = 1
) -> Any:
    """`connections * depth` calls are with the server at once."""
    made: Any = open_async_transport(url, timeout=timeout, max_connections=connections)
    made.depth = depth
    try:
        yield made
    finally:
        await made.aclose()


class Both:
    """The synchronous interface over either transport, so that one test covers both.

    `started`: whether `send` is the asynchronous transport's `start`.
    """

    def __init__(
        self, url: str, runner: asyncio.Runner | None, started: bool = False, **options: Any
    ) -> None:
        self._started = started
        options = {"timeout": 2.0, "max_connections": 8, **options}
        self._runner = runner
        self._inner: Any
        if runner is None:
            self._inner = open_transport(url, **options)
        else:
            self._inner = open_async_transport(url, **options)
        self.url, self.kind = self._inner.url, self._inner.kind

    def __getattr__(self, name: str) -> Any:
        if self._runner is None:
            return getattr(self._inner, name)
        if name == "send" and self._started:
            return lambda *args: self._runner.run(self._start(*args))  # type: ignore[union-attr]
        runner, method = self._runner, getattr(self._inner, "aclose" if name == "close" else name)
        return lambda *args, **named: runner.run(method(*args, **named))

    async def _start(self, *args: Any) -> Any:
        return await self._inner.start(*args)


@contextlib.contextmanager
def listener(serve: Any) -> Iterator[str]:
    """A loopback TCP server of one's own: `serve(socket)` runs in a thread for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one = listening.accept()[0]
                    taken.append(one)
                    threading.Thread(target=guarded, args=(one,), daemon=True).start()

        def guarded(one: socket.socket) -> None:
            with contextlib.suppress(OSError):
                serve(one)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for one in taken:
            one.close()
