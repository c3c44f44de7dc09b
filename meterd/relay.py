"""A relay between a client and its server that can lose a reply on purpose.

The request reaches the server and runs; its answer is thrown away and the connection is closed: the
one failure after which a client cannot know what happened.
"""

from __future__ import annotations

import contextlib
import socket
from threading import Lock, Thread
from types import TracebackType
from typing import Self

from meterd.transport import parse_url

_CHUNK_BYTES = 65_536


class Relay:
    """Listens at `url` on the loopback interface and passes everything on to the server behind.

    Use it in a `with` block. `lost` counts the replies that were thrown away.
    """

    def __init__(self, server_url: str) -> None:
        self._node = parse_url(server_url).nodes[0]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = Lock()
        self._armed = False
        self._open: set[socket.socket] = set()
        self.lost = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def lose_next_reply(self) -> None:
        """Throw away the next thing the server says, and close that connection."""
        with self._lock:
            self._armed = True

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # shutdown, because closing a listening socket does not wake the thread that accepts on it.
        for one in (self._listener, *self._open):
            _end(one)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            self._open |= {client, server}
            Thread(target=self._requests, args=(client, server), daemon=True).start()
            Thread(target=self._replies, args=(server, client), daemon=True).start()

    def _connect(self) -> socket.socket:
        if not self._node.path:
            return socket.create_connection((self._node.host, self._node.port))
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.connect(self._node.path)
        return server

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                server.sendall(data)
        _end(server)

    def _replies(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK_BYTES):
                with self._lock:
                    lose, self._armed = self._armed, False
                    self.lost += lose
                if lose:
                    break
                client.sendall(data)
        _end(client)
        _end(server)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
