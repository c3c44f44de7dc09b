"""What is measured: the commands that a meter really sends, copied to many subjects.

A meter makes the call once on one subject; its record and its packed command are then copied for the
others, whose keys have the same length. So a million subjects cost a million SETs and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.floor import Measured
from bench.raw import Raw
from meterd import Bucket, Meter, Plan, Pool
from meterd.keys import Keyspace
from meterd.transport import Request
from meterd.wire import command

NAMES = ("pool", "sliding", "fixed", "token")
PLENTY = 10**9
PLAN = Plan(
    "bench",
    default=True,
    includes=[
        Pool("pool", 10**15, "month", rates={"pool": 1, "all": 1}),
        Bucket("sliding", PLENTY, "1m", rates={"sliding": 1, "all": 1}),
        Bucket("fixed", PLENTY, "1h", algorithm="fixed", rates={"fixed": 1, "all": 1}),
        Bucket("token", PLENTY, "1s", algorithm="token", rates={"token": 1, "all": 1}),
    ],
)
FOUR = {name: 1 for name in NAMES}
_FIRST = 0


def subject(number: int) -> str:
    """Keys of exactly 30 characters: `meterd:{abc}:s:` and these 15."""
    return f"s{number:014d}"


class Tap:
    """A transport that remembers what it carried last."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.last = b""

    def send(self, request: Request, timeout: float) -> Any:
        self.last = request.packed
        return self._inner.send(request, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Copier:
    """Captures calls of a meter and copies them, with the records they need, to other subjects."""

    def __init__(self, raw: Raw, url: str, *, functions: bool = True) -> None:
        self._raw = raw
        self.meter = Meter(url, plans=[PLAN], functions=functions, timeout=10, op_retention="1s")
        self.meter.open()
        self._tap = Tap(self.meter._transport)
        self.meter._transport = self._tap  # type: ignore[assignment]
        self._path = Keyspace().path

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self.meter.close()

    def capture(self, call: Callable[[], object]) -> bytes:
        """The command of a call on a subject that the server knows already."""
        call()  # the first time may have to bring the policy, the function, the record
        call()
        return self._tap.last

    def commands(self, packed: bytes, below: str, numbers: range) -> list[bytes]:
        """A command on subject(0) + `below`, made into one for each of the subjects."""
        first = self._path(subject(_FIRST) + below)
        made = []
        for number in numbers:
            path = self._path(subject(number) + below)
            copied = packed.replace(first.keys[0], path.keys[0])
            # Keys of operation ids hold the root and its tag, too.
            mine = b":{%b}:o:%b/" % (first.tag, first.root)
            made.append(copied.replace(mine, b":{%b}:o:%b/" % (path.tag, path.root)))
        return made

    def copy_records(self, below: str, numbers: range) -> None:
        """Gives each of the subjects the records that subject(0) + `below` has."""
        records = {
            level: self._raw.ask(b"GET", key)
            for level, key in enumerate(self._path(subject(_FIRST) + below).keys)
        }
        for at in range(numbers.start, numbers.stop, 10_000):
            self._raw.run(
                [
                    command(b"SET", self._path(subject(number) + below).keys[level], record)
                    for number in range(at, min(at + 10_000, numbers.stop))
                    for level, record in records.items()
                ]
            )


def prepare(copier: Copier, subjects: int, mark: str = "") -> list[Measured]:
    """Every scenario of server time; `mark` goes behind their names."""
    meter, one, deep = copier.meter, subject(_FIRST), subject(_FIRST) + "/team"
    meter.consume(one, "all")
    meter.subscribe(deep, "bench")
    numbers = range(subjects)
    copier.copy_records("/team", numbers)
    evalsha = not meter._session.functions

    def measured(
        name: str,
        call: Callable[[], object],
        *,
        below: str = "",
        reads: bool = False,
        fresh: bytes = b"",
    ) -> Measured:
        stat = "evalsha" if evalsha else "fcall_ro" if reads else "fcall"
        packed = copier.capture(call)
        return Measured(name + mark, stat, copier.commands(packed, below, numbers), fresh)

    def with_op(name: str, cost: str, letter: str) -> Measured:
        """A call with an operation id that its subject has not used."""
        op = letter + "0" * 23
        return measured(name, lambda: meter.consume(one, cost, op=op), fresh=op.encode())

    refused = PLENTY * 10
    letters = "cd" if evalsha else "ab"
    return [
        measured("consume, 1 limit", lambda: meter.consume(one, "pool")),
        measured("consume, 4 limits", lambda: meter.consume(one, "all")),
        measured("consume, 4 costs", lambda: meter.consume(one, FOUR)),
        measured("refused, 1 limit", lambda: meter.consume(one, "sliding", refused)),
        measured("refused, 4 limits", lambda: meter.consume(one, "all", refused)),
        measured("check, 1 limit", lambda: meter.check(one, "pool"), reads=True),
        measured("check, 4 limits", lambda: meter.check(one, "all"), reads=True),
        measured("report, 1 limit", lambda: meter.report(one, "pool")),
        measured("report, 4 limits", lambda: meter.report(one, "all")),
        measured("2 levels, 1 limit", lambda: meter.consume(deep, "pool"), below="/team"),
        measured("2 levels, 4 limits", lambda: meter.consume(deep, "all"), below="/team"),
        with_op("fresh op, 1 limit", "pool", letters[0]),
        with_op("fresh op, 4 limits", "all", letters[1]),
    ]
