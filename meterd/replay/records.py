"""One reader per format: numbered lines in, `(line, fields)` or a `Problem` out.

A reader never raises for a bad line and never skips one: what it cannot read it hands on as a
`Problem` with the line's number. Blank lines are not lines.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from meterd.replay import accesslog
from meterd.replay.source import InputError, Source

Fields = Mapping[str, Any]


class Problem(NamedTuple):
    """A line that could not be read. For a JSON array `line` is the item's number."""

    line: int
    reason: str


class Record(NamedTuple):
    line: int
    fields: Fields


def read_records(source: Source) -> Iterator[Record | Problem]:
    """Records of `source` in file order; the last item says so if the file ends early."""
    reader = {"log": _log, "csv": _csv, "jsonl": _jsonl, "json": _json}[source.format]
    last = 0
    for record in reader(source):
        last = record.line
        yield record
    if source.truncated:
        yield Problem(last + 1, source.truncated)


def _log(source: Source) -> Iterator[Record | Problem]:
    for number, line in enumerate(source.lines(), start=1):
        fields = accesslog.parse(line)
        if fields is not None:
            yield Record(number, fields)
        elif line.strip():
            yield Problem(number, f"not in common or combined log format: {_excerpt(line)}")


def _jsonl(source: Source) -> Iterator[Record | Problem]:
    for number, line in enumerate(source.lines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Problem(number, f"not JSON: {_reason(error)}")
            continue
        yield _object(number, value)


def _json(source: Source) -> Iterator[Record | Problem]:
    text = "".join(source.lines())
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source.name} is not a JSON document: {_reason(error)}") from None
    if not isinstance(value, list):
        raise InputError(f"{source.name} holds one JSON {_kind(value)}, not an array of objects")
    for number, item in enumerate(value, start=1):
        yield _object(number, item)


def _object(number: int, value: Any) -> Record | Problem:
    if isinstance(value, dict):
        return Record(number, value)
    return Problem(number, f"a JSON {_kind(value)}, not an object")


class _Lines:
    """Counts lines for the CSV reader and can give back those it read for nothing."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: list[str] = []  # reversed: the next line is the last
        self.number = 0
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self) -> bool:
        """Return all lines taken for this record but its first; whether there were any."""
        back = self.taken[1:]
        self._again.extend(reversed(back))
        self.number -= len(back)
        return bool(back)


def _csv(source: Source) -> Iterator[Record | Problem]:
    lines = _Lines(source.lines())
    header, delimiter = _csv_header(lines, source.name)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.taken.clear()
        reason = None
        values: list[str] = []
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
        number = lines.number - len(lines.taken) + 1
        if reason is None and len(values) == len(header):
            yield Record(number, dict(zip(header, values, strict=True)))
            continue
        if reason is None and not "".join(lines.taken).strip():
            continue
        if reason is None:
            reason = f"{len(values)} fields where the header has {len(header)}"
        # An unclosed quote swallows the lines after it: they are read again, as lines.
        if lines.give_back():
            reason = f"an unclosed quote ({reason})"
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        yield Problem(number, reason)


def _csv_header(lines: _Lines, name: str) -> tuple[list[str], str]:
    line = next((line for line in lines if line.strip()), None)
    if line is None:
        raise InputError(f"{name} is empty: a CSV file starts with a line of column names")
    delimiter = max(",;\t|", key=line.count)
    header = [column.strip() for column in next(csv.reader([line], delimiter=delimiter))]
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise InputError(f"{name} has the column {', '.join(map(repr, twice))} more than once")
    return header, delimiter


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _excerpt(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 50 else line[:49] + "…")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
