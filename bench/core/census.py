"""What a decision asks of the server: its commands, what scripts call inside, its time.

MONITOR shows every command, those that a script runs as well; INFO commandstats knows the time of
each kind.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hiredis

from meterd.wire import command

from .raw import Raw

_LINE = re.compile(r'^[\d.]+ \[\d+ (?P<source>\S+)\] "(?P<command>[^"]*)"')


@dataclass(slots=True)
class Census:
    """Commands that clients sent, by name, and how many more scripts made of them."""

    commands: dict[str, int] = field(default_factory=dict)
    inner: int = 0

    def take(self, line: str) -> None:
        """One line of MONITOR."""
        found = _LINE.match(line)
        if found is None:
            return
        if found["source"] == "lua":
            self.inner += 1
        else:
            name = found["command"].lower()
            self.commands[name] = self.commands.get(name, 0) + 1

    @property
    def sent(self) -> int:
        return sum(self.commands.values())


def watch(path: str, work: Callable[[], object]) -> Census:
    """The commands that reach the server on that socket while `work` is done."""
    census, end = Census(), "end of the census"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor, Raw(path) as raw:
        monitor.connect(path)
        reader = hiredis.Reader(encoding="utf-8", errors="replace")
        monitor.sendall(command(b"MONITOR"))
        line = _line(monitor, reader)
        assert line == "OK", line
        work()
        raw.ask(b"ECHO", end.encode())
        while end not in (line := _line(monitor, reader)):
            census.take(line)
    return census


def _line(monitor: socket.socket, reader: Any) -> str:
    while (reply := reader.gets()) is False:
        received = monitor.recv(1 << 18)
        if not received:
            raise RuntimeError("the server closed the connection")
        reader.feed(received)
    return str(reply)


def server_usec(raw: Raw, names: frozenset[str], work: Callable[[], object]) -> float:
    """Time in us that the server spent on those commands while `work` was done."""
    raw.ask(b"CONFIG", b"RESETSTAT")
    work()
    return float(sum(raw.stats(name)[1] for name in names))
