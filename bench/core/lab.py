"""Where a run takes place: its private servers, on loopback, gone when it ends."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from functools import cached_property
from typing import Self

from meterd.embedded import EmbeddedServer
from meterd.errors import Unavailable

from .effort import Effort
from .raw import Raw

HOST = "127.0.0.1"
PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def free_port() -> int:
    """A loopback port whose cluster bus, 10,000 above, is free as well.

    Below the range from which systems give clients their ports, so that none takes it meanwhile.
    """
    while True:
        port = random.randrange(11_000, 21_000)
        try:
            for candidate in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((HOST, candidate))
        except OSError:
            continue
        return port


def started(binary: str | None, *options: str, pin: bool = False) -> EmbeddedServer:
    """A private server; with `pin`, on the first processor that this process had."""
    server = EmbeddedServer.start(binary, extra_args=options)
    if pin:
        os.sched_setaffinity(server.pid, {PROCESSORS[0]})
    return server


class TcpServer:
    """A private server with a loopback port beside its unix socket."""

    def __init__(self, binary: str | None, *options: str, pin: bool = False) -> None:
        for attempts_left in range(9, -1, -1):
            self.port = free_port()
            listen = ("--port", str(self.port), "--bind", HOST)
            try:
                self._server = started(binary, *listen, *options, pin=pin)
                return
            except Unavailable as error:  # somebody else may have taken the port
                if not attempts_left or "in use" not in str(error):
                    raise

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def path(self) -> str:
        return self._server.path

    def flush(self) -> None:
        """Removes every key, and waits until it is gone."""
        with Raw(self.path) as raw:
            raw.ask(b"FLUSHALL", b"SYNC")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()


class Lab:
    """Effort and servers of one run; a context manager. Servers start when first asked for.

    `pin`: servers on the first processor, this process on the others. Left alone, a scheduler likes
    to put two that take turns on one.
    """

    def __init__(self, effort: Effort, binary: str | None = None, *, pin: bool = False) -> None:
        self.effort = effort
        self.binary = binary
        self.pin = pin
        if pin:
            os.sched_setaffinity(0, set(PROCESSORS[1:]))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self.pin:
            os.sched_setaffinity(0, set(PROCESSORS))

    def start(self, *options: str) -> TcpServer:
        """Another server, which runs until the end of the run unless it is closed before."""
        return self._stack.enter_context(TcpServer(self.binary, *options, pin=self.pin))

    @cached_property
    def tcp(self) -> TcpServer:
        """The server that clients are compared on; every scenario empties it first."""
        return self.start()

    @cached_property
    def unix(self) -> EmbeddedServer:
        """The server whose own time is measured, over a unix socket."""
        return self._stack.enter_context(self.embedded())

    def embedded(self) -> EmbeddedServer:
        """Another server, with a unix socket only; the caller closes it."""
        return started(self.binary, pin=self.pin)

    @cached_property
    def server(self) -> str:
        """Name and version."""
        with Raw(self.unix.path) as raw:
            brand = "Valkey" if raw.info("valkey_version") else "Redis"
            return f"{brand} {raw.info('valkey_version') or raw.info('redis_version')}"
