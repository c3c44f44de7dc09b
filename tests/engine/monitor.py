"""What a server executes, command by command, those inside scripts included."""

from __future__ import annotations

import codecs
import re
import secrets
import socket
from dataclasses import dataclass
from typing import Self

from tests.support.servers import Server

_LINE = re.compile(rb"\+\d+\.\d+ \[(\d+) (.*?)\] (.*)\r\n")
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Command:
    words: tuple[bytes, ...]
    inside: bool
    """Whether a script executed it."""

    @property
    def name(self) -> str:
        return self.words[0].decode().upper()


class Monitor:
    """`with Monitor(server) as seen: ...; seen.commands()`: what happened in between."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        self._socket.connect(self._server.socket)
        self._socket.sendall(b"MONITOR\r\n")
        assert self._lines.readline() == b"+OK\r\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def commands(self) -> list[Command]:
        """Everything since the last call of this."""
        end = secrets.token_hex(8).encode()
        self._server.binary.execute_command("ECHO", end)
        found = []
        while True:
            match = _LINE.fullmatch(self._lines.readline())
            assert match
            words = tuple(codecs.escape_decode(word)[0] for word in _WORD.findall(match[3]))
            assert words
            if words == (b"ECHO", end):
                return found
            found.append(Command(words, match[2] == b"lua"))
