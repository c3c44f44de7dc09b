"""Server time per call, as a multiple of the floor that was measured next to it.

Every sample of a call stands between two samples of the floor, a few milliseconds apart, so that
whatever else the machine is busy with slows both; the figure is the median over many rounds. The
commands are those that meterd, and `limits`, really send, pipelined over a unix socket.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.floor import Measured
from ..core.floor import prepare as prepare_floor
from ..core.lab import Lab
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.stats import Measure
from ..core.workload import Copier, subject
from ..core.workload import prepare as prepare_calls
from ..peers import missing
from ..peers.limits_lib import STRATEGIES, items

PACKAGES = ("limits", "redis")
LIMITS_ONE = {name: f"limits, {name}, 1 limit" for name in ("fixed", "sliding")}
LIMITS_FOUR = "limits, fixed, 4 limits in 4 calls"


@scenario("server", "server time per call, over the Lua floor GET+TIME+SETRANGE")
def server(lab: Lab) -> Iterator[Finding]:
    effort, absent = lab.effort, {}
    with (
        Raw(lab.unix.path) as raw,
        Copier(raw, lab.unix.url) as functions,
        Copier(raw, lab.unix.url, functions=False) as scripts,
    ):
        floor, *simple = prepare_floor(raw, effort.subjects)
        others = [
            *simple,
            *prepare_calls(functions, effort.subjects),
            *prepare_calls(scripts, effort.subjects),
        ]
        if why := missing(PACKAGES):
            absent = dict.fromkeys((*LIMITS_ONE.values(), LIMITS_FOUR), why)
        else:
            others += prepare_limits(lab.unix.path, effort.subjects)
        measure = bracketed(raw, floor, others, effort.rounds, effort.calls)
    yield Finding(
        "server",
        "Server time per decision",
        [measure],
        note="Pipelined over a unix socket, by the server's own count (INFO commandstats).",
        absent=absent,
    )


def bracketed(
    raw: Raw, floor: Measured, others: Sequence[Measured], rounds: int, calls: int
) -> Measure:
    """Each sample beside the mean of the floor before and after it."""
    measure = Measure("server time", "us", floor.name, False)
    for measured in (floor, *others):
        measured.usec(raw, calls)  # warm
    for _ in range(rounds):
        before = floor.usec(raw, calls)
        measure.add(floor.name, before, before)
        for other in random.sample(others, len(others)):
            taken = other.usec(raw, calls)
            after = floor.usec(raw, calls)
            measure.add(other.name, taken, (before + after) / 2)
            before = after
    return measure


def prepare_limits(path: str, subjects: int) -> list[Measured]:
    """What `limits` sends for a hit, taken from it and copied to other subjects."""
    import redis
    from limits import storage, strategies

    class Tapped(redis.UnixDomainSocketConnection):
        last = b""

        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            Tapped.last = b"".join(command)
            super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    pool = redis.ConnectionPool(connection_class=Tapped, path=path)
    store = storage.RedisStorage(f"redis+unix://{path}", connection_pool=pool)
    one, four, _ = items()
    mine = subject(0).encode()

    def captured(strategy: str, item: Any) -> bytes:
        limiter = getattr(strategies, STRATEGIES[strategy])(store)
        for _ in range(2):  # the first time may have to load the script
            limiter.hit(item, subject(0))
        return Tapped.last

    def copied(*packed: bytes) -> list[bytes]:
        return [
            command.replace(mine, subject(number).encode())
            for number in range(subjects)
            for command in packed
        ]

    prepared = [
        Measured(name, "evalsha", copied(captured(strategy, one)))
        for strategy, name in LIMITS_ONE.items()
    ]
    windows = [captured("fixed", item) for item in four]
    prepared.append(Measured(LIMITS_FOUR, "evalsha", copied(*windows), per=len(windows)))
    pool.disconnect()
    return prepared
