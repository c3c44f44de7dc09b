"""Server time of what charges credits in more than one way, as a multiple of a plain `consume`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from meterd import Hold, Meter

from ..core.floor import Measured
from ..core.lab import Lab
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.workload import PLANS, PLENTY, Tap, subject
from .server_time import bracketed

Call = Callable[[str], Any]

CONSUME = "consume, 1 limit"
GRANTED = "consume, 8 live grants"
WITH_OP = "consume, operation id"
WITH_HOLD = "consume beside an open hold"
HELD = "reserve, then commit"
RELEASED = "reserve, then release"
ON_A_PATH = "reserve, then commit, on a path of two"
GRANTS = 8


@scenario("money", "server time of grants, operation ids and reservations, over a plain consume")
def money(lab: Lab) -> Iterator[Finding]:
    effort = lab.effort
    with (
        Raw(lab.unix.path) as raw,
        Meter(lab.unix.url, plans=PLANS, prefix="money", op_retention="1s") as meter,
    ):
        tap = Tap(meter._transport)
        meter._transport = tap
        plain, *others = prepared(meter, tap, effort.subjects)
        measure = bracketed(raw, plain, others, effort.rounds, effort.calls)
    yield Finding(
        "money",
        "Grants, operation ids, reservations",
        [measure],
        note="Pipelined over a unix socket, by the server's own count (INFO commandstats). A "
        "reservation and its end are two calls, counted together.",
    )


def prepared(meter: Meter, tap: Tap, subjects: int) -> list[Measured]:
    """Each kind on customers of its own, so that none finds what another left."""
    names = (subject(number) for number in itertools.count())
    op, hold = "o" + "0" * 23, "h" + "0" * 31

    def taken(name: str, *calls: Call, before: Call | None = None, fresh: str = "") -> Measured:
        """The commands of `calls`, made once for every customer."""
        commands = []
        for who in itertools.islice(names, subjects):
            meter.consume(who, "pool")
            if before is not None:
                before(who)
            for call in calls:
                made = call(who)
                packed = tap.last
                if isinstance(made, Hold):
                    held[who] = made
                known = held.get(who)
                commands.append(
                    packed if known is None else packed.replace(known.id.encode(), hold.encode())
                )
        return Measured(name, "fcall", commands, fresh.encode(), len(calls))

    held: dict[str, Hold] = {}
    consume: Call = lambda who: meter.consume(who, "pool")  # noqa: E731
    reserve: Call = lambda who: meter.reserve(who, "pool", 5)  # noqa: E731
    return [
        taken(CONSUME, consume),
        taken(GRANTED, consume, before=lambda who: granted(meter, who)),
        taken(WITH_OP, lambda who: meter.consume(who, "pool", op=op), fresh=op),
        taken(WITH_HOLD, consume, before=lambda who: meter.reserve(who, "pool", ttl="1d")),
        taken(HELD, reserve, lambda who: held[who].commit(3), fresh=hold),
        taken(RELEASED, reserve, lambda who: held[who].release(), fresh=hold),
        taken(
            ON_A_PATH,
            lambda who: meter.reserve(f"{who}/team", "pool", 5),
            lambda who: held[who].commit(3),
            fresh=hold,
        ),
    ]


def granted(meter: Meter, who: str) -> None:
    for number in range(GRANTS):
        meter.grant(who, "pool", PLENTY, expires=f"{number + 1}d")
