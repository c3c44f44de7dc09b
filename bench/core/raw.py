"""A bare connection: packed commands in, replies out, and the server's account of their time."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Self

import hiredis

from meterd.wire import command

PIPELINE = 64


class Raw:
    """One unix socket, `PIPELINE` commands in flight. An error reply raises `RuntimeError`."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies of packed commands, in order."""
        replies: list[Any] = []
        for at in range(0, len(commands), PIPELINE):
            part = commands[at : at + PIPELINE]
            self._socket.sendall(b"".join(part))
            replies += [self._reply() for _ in part]
        return replies

    def ask(self, *parts: bytes) -> Any:
        """The reply of one command."""
        return self.run([command(*parts)])[0]

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            received = self._socket.recv(1 << 18)
            if not received:
                raise RuntimeError("the server closed the connection")
            self._reader.feed(received)
        if isinstance(reply, hiredis.ReplyError):
            raise RuntimeError(f"error reply: {reply}")
        return reply

    def timed(self, commands: Sequence[bytes], stat: str) -> float:
        """Server time in µs per command, all of which are of the kind `stat` ("fcall")."""
        self.ask(b"CONFIG", b"RESETSTAT")
        self.run(commands)
        calls, usec = self.stats(stat)
        if calls != len(commands):
            raise RuntimeError(f"{stat}: {calls} calls were counted, {len(commands)} were made")
        return usec / calls

    def stats(self, stat: str) -> tuple[int, int]:
        """Calls and µs of a kind of command since the last reset."""
        for line in self.ask(b"INFO", b"commandstats").decode().splitlines():
            name, _, figures = line.partition(":")
            if name == f"cmdstat_{stat}":
                values = dict(part.split("=") for part in figures.split(","))
                return int(values["calls"]), int(values["usec"])
        return 0, 0

    def info(self, name: str) -> str:
        """One field of INFO, empty if the server does not have it."""
        for line in self.ask(b"INFO").decode().splitlines():
            field, _, value = line.partition(":")
            if field == name:
                return str(value.strip())
        return ""
