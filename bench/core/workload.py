"""The workload: plans, subjects, and the commands that a meter really sends, for many subjects.

A meter makes the call once on one subject; its record and its packed command are then copied for
the others, whose keys have the same length. So a million subjects take a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from meterd import Bucket, Meter, Plan, Pool
from meterd.keys import Keyspace, Path
from meterd.transport import Request

from .floor import Measured
from .raw import Raw

NAMES = ("pool", "sliding", "fixed", "token")
PLENTY = 10**6  # per subject, who is charged 1 at a time
PLAN = Plan(
    "bench",
    default=True,
    includes=[
        Pool("pool", 10**15, "month", rates={"pool": 1, "all": 1}),
        Bucket("sliding", PLENTY, "1d", rates={"sliding": 1, "all": 1}),
        Bucket("fixed", PLENTY, "1h", algorithm="fixed", rates={"fixed": 1, "all": 1}),
        Bucket("token", PLENTY, "1s", algorithm="token", rates={"token": 1, "all": 1}),
    ],
)
# For refusals that a process may remember: the only one of the day is taken by the first call.
SCARCE = Plan("scarce", includes=[Bucket("scarce", 1, "1d", algorithm="fixed")])
PLANS = [PLAN, SCARCE]
FOUR = dict.fromkeys(NAMES, 1)
TOO_MUCH = 10 * PLENTY
IP = Bucket("ip", PLENTY, "1m", algorithm="fixed")
SCRIPTED = ("consume, 1 limit", "consume, 4 limits", "refused, 1 limit", "check, 1 limit")

Where = Callable[[int], Path]
_BATCH = 500
_KEYS = Keyspace()


def subject(number: int) -> str:
    """Keys of exactly 30 characters: `meterd:{abc}:s:` and these 15."""
    return f"s{number:014d}"


def poor(number: int) -> str:
    """A subject of the plan "scarce"."""
    return f"p{number:014d}"


def customer(number: int) -> Path:
    return _KEYS.path(subject(number))


def team(number: int) -> Path:
    return _KEYS.path(subject(number) + "/team")


def address(number: int) -> Path:
    return _KEYS.limiter("bench", (subject(number),))


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
        self.meter = Meter(url, plans=PLANS, functions=functions, timeout=10, op_retention="1s")
        self.meter.open()
        self._tap = Tap(self.meter._transport)
        self.meter._transport = self._tap

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self.meter.close()

    def capture(self, call: Callable[[], object]) -> bytes:
        """The command of a call on a subject that the server knows already."""
        call()  # the first time may have to bring the policy, the function, the record
        call()
        return self._tap.last

    def commands(self, packed: bytes, where: Where, numbers: Iterable[int]) -> list[bytes]:
        """A command on subject 0, made into one for each of the subjects."""
        first = where(0)
        mine = b":{%b}:o:%b/" % (first.tag, first.root)  # in the key of an operation id
        made = []
        for number in numbers:
            path = where(number)
            copied = packed.replace(first.keys[0], path.keys[0])
            made.append(copied.replace(mine, b":{%b}:o:%b/" % (path.tag, path.root)))
        return made

    def copy_records(self, where: Where, subjects: int) -> None:
        """Gives that many subjects the records that subject 0 has."""
        records = [self._raw.ask(b"GET", key) for key in where(0).keys]
        for start in range(0, subjects, _BATCH):
            pairs: list[bytes] = []
            for number in range(start, min(start + _BATCH, subjects)):
                for key, record in zip(where(number).keys, records, strict=True):
                    pairs += (key, record)
            self._raw.ask(b"MSET", *pairs)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call, on subject 0. `op`: an operation id that every run of it changes."""

    name: str
    call: Callable[[], object]
    where: Where = customer
    reads: bool = False
    op: str = ""


def kinds(meter: Meter) -> list[Kind]:
    one, deep = subject(0), subject(0) + "/team"
    limiter = meter.limiter("bench", IP)
    a, b = "a" + "0" * 23, "b" + "0" * 23
    return [
        Kind("consume, 1 limit", lambda: meter.consume(one, "pool")),
        Kind("consume, 4 limits", lambda: meter.consume(one, "all")),
        Kind("consume, 4 costs", lambda: meter.consume(one, FOUR)),
        Kind("refused, 1 limit", lambda: meter.consume(one, "sliding", TOO_MUCH)),
        Kind("refused, 4 limits", lambda: meter.consume(one, "all", TOO_MUCH)),
        Kind("check, 1 limit", lambda: meter.check(one, "pool"), reads=True),
        Kind("check, 4 limits", lambda: meter.check(one, "all"), reads=True),
        Kind("report, 1 limit", lambda: meter.report(one, "pool")),
        Kind("report, 4 limits", lambda: meter.report(one, "all")),
        Kind("2 levels, 1 limit", lambda: meter.consume(deep, "pool"), team),
        Kind("2 levels, 4 limits", lambda: meter.consume(deep, "all"), team),
        Kind("fresh op, 1 limit", lambda: meter.consume(one, "pool", op=a), op=a),
        Kind("fresh op, 4 limits", lambda: meter.consume(one, "all", op=b), op=b),
        Kind("limiter, 1 bucket", lambda: limiter.consume(one), address),
    ]


def prepare(copier: Copier, subjects: int) -> list[Measured]:
    """Every kind of call by FCALL; some of them by EVALSHA if the meter does without functions."""
    meter = copier.meter
    evalsha = not meter._session.functions
    meter.consume(subject(0), "all")
    meter.subscribe(subject(0) + "/team", "bench")
    copier.copy_records(team, subjects)
    prepared = []
    for kind in kinds(meter):
        if evalsha and kind.name not in SCRIPTED:
            continue
        packed = copier.capture(kind.call)
        name = kind.name + " (EVALSHA)" if evalsha else kind.name
        stat = "evalsha" if evalsha else "fcall_ro" if kind.reads else "fcall"
        commands = copier.commands(packed, kind.where, range(subjects))
        prepared.append(Measured(name, stat, commands, kind.op.encode()))
    return prepared
