"""Where traffic comes from: a file or standard input, gzipped or not, as numbered text lines.

Nothing is judged by its name if its bytes can tell: gzip is known by its first two bytes, the
format by the first lines, and only what these leave open is settled by the file's extension.
"""

from __future__ import annotations

import gzip
import io
import itertools
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from meterd.errors import PolicyError
from meterd.replay import accesslog

FORMATS = ("log", "csv", "jsonl", "json")
_SNIFFED_LINES = 5
_BY_EXTENSION = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class InputError(PolicyError):
    """The traffic cannot be read the way it was asked for: says what is there instead."""


class Source:
    """Opened traffic: `lines()` once; `format` is one of `FORMATS`.

    `path` is a file or "-" for standard input. `truncated` says after `lines()` why compressed data
    ended early, if it did: what came before is still good. Raises OSError when the file cannot be
    opened and `InputError` when the format can neither be seen nor was given.
    """

    def __init__(self, path: str | Path, *, format: str | None = None) -> None:
        self.name = "standard input" if str(path) == "-" else str(path)
        self.truncated: str | None = None
        self._raw: IO[bytes] = sys.stdin.buffer if str(path) == "-" else open(path, "rb")  # noqa: SIM115
        self._lines = self._decoded(_maybe_gunzip(self._raw))
        self._head = list(itertools.islice(self._lines, _SNIFFED_LINES))
        suffixes = [s.lower() for s in Path(self.name).suffixes if s.lower() != ".gz"]
        try:
            self.format = format or _sniff(self._head, suffixes[-1] if suffixes else "", self.name)
        except InputError:
            self.close()
            raise

    def lines(self) -> Iterator[str]:
        """Every line with its line end, the sniffed ones included."""
        head, self._head = self._head, []
        return itertools.chain(head, self._lines)

    def close(self) -> None:
        self._lines.close()
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _decoded(self, binary: IO[bytes]) -> Generator[str, None, None]:
        # backslashreplace keeps subjects with different invalid bytes apart; newline="" leaves
        # line ends inside quoted CSV fields as they are.
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="backslashreplace", newline="")
        try:
            # Not `yield from`: closing this generator would close the text, and standard input.
            for line in text:  # noqa: UP028
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.truncated = f"the compressed data is damaged, the rest is missing ({error})"
        finally:
            text.detach()


def _maybe_gunzip(raw: IO[bytes]) -> IO[bytes]:
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
    if buffered.peek(2)[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=buffered))
    return buffered


def _sniff(head: list[str], extension: str, name: str) -> str:
    first = next((line.strip() for line in head if line.strip()), "")
    if first.startswith("{"):
        return "jsonl"
    if extension in _BY_EXTENSION:
        return _BY_EXTENSION[extension]
    if extension == ".json" or first in ("[", "[{") or first.startswith("[{"):
        return "json" if first.startswith("[") else "jsonl"
    if extension == ".log" or any(accesslog.matches(line) for line in head):
        return "log"
    if any(mark in first for mark in ",;\t|"):
        return "csv"
    raise InputError(
        f"{name} is {'empty' if not first else 'neither an access log, CSV nor JSON'}"
        + ("" if not first else f": its first line is {first[:60]!r}; give --format")
    )
