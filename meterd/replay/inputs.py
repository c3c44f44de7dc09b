"""From traffic to rows `(time_ms, subject, costs)` in time order, every bad line accounted for.

`Selection` says which fields become the time, the subject and the costs; `read_rows` applies it. A
row is taken whole or is a `Problem`: nothing is guessed for a field that is missing or no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from meterd.replay import accesslog
from meterd.replay.records import Fields, Problem, Record, read_records
from meterd.replay.source import InputError, Source
from meterd.replay.times import parse_time_ms

MAX_AMOUNT = 10**15
MAX_SEGMENT_BYTES = 128
MAX_SEGMENTS = 4
TIME_NAMES = (
    "timestamp", "time", "ts", "@timestamp", "datetime", "date", "_time", "time_ms", "timestamp_ms",
    "created_at", "created", "event_time", "eventtime", "start_time", "started_at", "at", "epoch",
)  # fmt: skip


class Row(NamedTuple):
    """One request: when, who, and amounts by cost name. Equal costs share one mapping."""

    time_ms: int
    subject: tuple[str, ...]
    costs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """`name=A+B+3`: the sum of some fields and a constant, charged under `name`."""

    name: str
    fields: tuple[str, ...] = ()
    constant: int = 0

    @classmethod
    def parse(cls, text: str) -> Cost:
        """From `NAME=FIELD+FIELD+3`, or `FIELD` alone for `FIELD=FIELD`."""
        name, given, expression = text.partition("=")
        name = name.strip()
        terms = [term.strip() for term in (expression if given else name).split("+")]
        if not name or not all(terms):
            raise InputError(f"cost {text!r}: write NAME=COLUMN+COLUMN or a whole number")
        numbers = [int(term) for term in terms if term.isdecimal()]
        return cls(name, tuple(t for t in terms if not t.isdecimal()), sum(numbers))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which fields make a row. `None` or empty: the format's default.

    `time`: an access log's own; else the first field with a usual name. `subject`: one field or
    `=constant` per path segment; default the client address, or `=all`. `costs`: default 1 of each
    of the `default_costs` names.
    """

    time: str | None = None
    subject: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    default_costs: tuple[str, ...] = ()


@dataclass(slots=True)
class Traffic:
    """Rows in time order (stable: equal times keep the file's order) and what could not be read."""

    rows: list[Row] = field(default_factory=list)
    unreadable: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first few
    reordered: int = 0  # rows that came later in the file than one of a later time
    time: str = ""
    subject: tuple[str, ...] = ()
    costs: dict[str, str] = field(default_factory=dict)


def read_rows(source: Source, selection: Selection, *, keep_problems: int = 5) -> Traffic:
    """All rows of `source`. Raises `InputError` when a named field does not exist at all.

    Columns of CSV and logs are known from the start; objects in JSON may each have other fields, so
    there the names are settled by the first object that has them all.
    """
    traffic = Traffic()
    extract: Callable[[Fields], Row] | None = None
    unsettled: InputError | None = None
    latest = 0
    for record in read_records(source):
        problem: Problem | None = None
        if isinstance(record, Record):
            try:
                if extract is None:
                    extract = _extractor(record.fields, selection, source.format, traffic)
                row = extract(record.fields)
                traffic.reordered += row.time_ms < latest
                latest = max(latest, row.time_ms)
                traffic.rows.append(row)
                continue
            except InputError as error:
                if source.format not in ("json", "jsonl"):
                    raise
                unsettled = unsettled or error
                problem = Problem(record.line, str(error))
            except ValueError as error:
                problem = Problem(record.line, str(error))
        else:
            problem = record
        traffic.unreadable += 1
        if len(traffic.problems) < keep_problems:
            traffic.problems.append(problem)
    if extract is None and unsettled is not None:
        raise unsettled
    traffic.rows.sort(key=attrgetter("time_ms"))
    return traffic


def _extractor(
    first: Fields, selection: Selection, format: str, traffic: Traffic
) -> Callable[[Fields], Row]:
    """Resolve every name against the first record once; returns the record → row function."""
    log = format == "log"

    def resolve(name: str, what: str) -> str:
        return _resolve(name, what, first, accesslog.ALIASES if log else {})

    time = resolve(selection.time, "--time") if selection.time else _time_field(first)
    names = selection.subject or (("host",) if log else ("=all",))
    if len(names) > MAX_SEGMENTS:
        raise InputError(f"a subject has at most {MAX_SEGMENTS} segments, not {len(names)}")
    subject_of = _subject_reader([n if n[0] == "=" else resolve(n, "--subject") for n in names])
    costs = [
        Cost(c.name, tuple(resolve(f, "--cost") for f in c.fields), c.constant)
        for c in selection.costs
    ] or [Cost(name, constant=1) for name in selection.default_costs]
    if not costs:
        raise InputError("no cost: say what a row costs with --cost NAME=COLUMN")
    costs_of = _costs_reader(costs, dash_is_zero=log)

    traffic.time, traffic.subject = time, tuple(names)
    for cost in costs:
        terms = [*cost.fields, *([str(cost.constant)] if cost.constant or not cost.fields else [])]
        traffic.costs[cost.name] = "+".join(terms)

    def extract(fields: Fields) -> Row:
        at = parse_time_ms(_text(fields, time))
        return Row(at, subject_of(fields), costs_of(fields))

    return extract


def _time_field(first: Fields) -> str:
    by_lower = {name.lower(): name for name in reversed(list(first))}
    found = next((by_lower[name] for name in TIME_NAMES if name in by_lower), None)
    if found is None:
        raise InputError(f"which column is the time? Give --time; there are {_names(first)}")
    return found


def _resolve(name: str, what: str, first: Fields, aliases: Mapping[str, str]) -> str:
    """The field meant by `name`: exactly, by alias, ignoring case, or `a.b` inside an object."""
    if _lookup(first, name) is not _MISSING:
        return name
    if name.lower() in aliases:
        return aliases[name.lower()]
    close = [column for column in first if column.lower() == name.lower()]
    if len(close) == 1:
        return close[0]
    raise InputError(f"{what}: there is no column {name!r}; there are {_names(first)}")


def _subject_reader(names: Sequence[str]) -> Callable[[Fields], tuple[str, ...]]:
    seen: dict[tuple[str, ...], tuple[str, ...]] = {}  # one tuple object per subject

    def subject_of(fields: Fields) -> tuple[str, ...]:
        subject = tuple(n[1:] if n[0] == "=" else _text(fields, n) for n in names)
        known = seen.get(subject)
        if known is not None:
            return known
        for name, segment in zip(names, subject, strict=True):
            if not segment:
                raise ValueError(f"the subject is empty ({name})")
            size = len(segment.encode("utf-8", "surrogatepass"))
            if size > MAX_SEGMENT_BYTES:
                raise ValueError(f"the subject is {size} bytes long, {MAX_SEGMENT_BYTES} at most")
        return seen.setdefault(subject, subject)

    return subject_of


def _costs_reader(
    costs: Iterable[Cost], *, dash_is_zero: bool
) -> Callable[[Fields], Mapping[str, int]]:
    costs = tuple(costs)
    fixed = {cost.name: cost.constant for cost in costs}
    for cost in costs:
        if cost.constant > MAX_AMOUNT:
            raise InputError(f"cost {cost.name}: an amount is at most {MAX_AMOUNT}")
    if len(fixed) < len(costs):
        raise InputError("each cost name can be given once")
    if not any(cost.fields for cost in costs):
        return lambda _fields: fixed

    def costs_of(fields: Fields) -> Mapping[str, int]:
        amounts = {}
        for cost in costs:
            amount = cost.constant
            for name in cost.fields:
                amount += _whole(fields, name, dash_is_zero)
            if amount > MAX_AMOUNT:
                raise ValueError(f"{cost.name} is {amount}; an amount is at most {MAX_AMOUNT}")
            amounts[cost.name] = amount
        return amounts

    return costs_of


_MISSING = object()


def _lookup(fields: Fields, name: str) -> Any:
    value = fields.get(name, _MISSING)
    if value is _MISSING and "." in name:
        value = fields
        for part in name.split("."):
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _text(fields: Fields, name: str) -> str:
    value = _lookup(fields, name)
    if value is _MISSING or value is None:
        raise ValueError(f"{name} is missing")
    if isinstance(value, bool | Mapping | list):
        raise ValueError(f"{name} is neither text nor a number")
    return value.strip() if isinstance(value, str) else str(value)


def _whole(fields: Fields, name: str, dash_is_zero: bool) -> int:
    text = _text(fields, name)
    if text.isdecimal() and len(text) <= 30:
        return int(text)
    if text == "-" and dash_is_zero:
        return 0
    whole, _, zeros = text.partition(".")
    if whole.isdecimal() and len(whole) <= 30 and not zeros.strip("0"):
        return int(whole)  # "374.0": tools that keep numbers as floats write whole ones so
    shown = repr(text if len(text) <= 40 else text[:39] + "…")
    raise ValueError(f"{name} is {shown}, not a whole number" if text else f"{name} is empty")


def _names(first: Iterable[str]) -> str:
    names: Iterator[str] = iter(first)
    return ", ".join(str(name) for name in names) or "none"
