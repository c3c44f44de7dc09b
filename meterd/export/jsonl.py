"""JSON lines: one object per entry, on standard output or at the end of a file."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meterd.export.entry import Entry
from meterd.export.sink import Sink, SinkError

try:
    import fcntl
except ImportError:  # Windows: then it is up to the operator that there is one writer
    fcntl = None  # type: ignore[assignment]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class JsonLines(Sink):
    """Lines of `Entry.as_dict()`. An entry leaves the outbox once its line is on the disk (fsync).

    A file is appended to, by one process at a time; a line that a crash cut short is removed when
    it is opened again (its entry is still in the outbox). Standard output is flushed, and synced
    where that is possible.
    """

    batches = True

    def __init__(self, file: str | Path | None = None, *, name: str = "jsonl") -> None:
        self.name = name
        self._path = None if file is None else Path(file)
        self._descriptor = -1

    def open(self) -> None:
        """Opens the file, which `write` does as well. Raises `SinkError`."""
        if self._path is None or self._descriptor >= 0:
            return
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(self._path, flags, 0o644)
        except OSError as error:
            raise SinkError(f"{self._path}: {error.strerror}") from error
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # a device is shared, and by all
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_torn_line(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            raise SinkError(f"{self._path}: another exporter writes to it") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def write(self, entries: Sequence[Entry]) -> None:
        self.write_lines([_encode(entry.as_dict()) for entry in entries])

    def write_lines(self, lines: Sequence[str]) -> None:
        """Any lines; they are on the disk when this returns. Raises `SinkError`."""
        text = "\n".join(lines) + "\n"
        if self._path is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            with contextlib.suppress(OSError, ValueError):  # a pipe cannot be synced
                os.fsync(sys.stdout.fileno())
            return
        self.open()
        size = os.fstat(self._descriptor).st_size
        try:
            data = memoryview(text.encode())
            while data:
                data = data[os.write(self._descriptor, data) :]
            with _unless_special(self._descriptor):
                os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise SinkError(f"{self._path}: {error.strerror}") from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"<JsonLines {self._path or 'stdout'}>"


def _unless_special(descriptor: int) -> contextlib.AbstractContextManager[None]:
    """A pipe or a device cannot be synced, and that is no failure."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return contextlib.nullcontext()
    return contextlib.suppress(OSError)


def _remove_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        os.lseek(descriptor, start, os.SEEK_SET)
        chunk = os.read(descriptor, end - start)
        found = chunk.rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def as_line(data: dict[str, Any]) -> str:
    """One line of JSON."""
    return _encode(data)
