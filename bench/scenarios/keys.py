"""Server time of verifying an API key, as a multiple of `consume` on the same path and limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from meterd import ApiKey, Bucket, Meter, Plan, Pool
from meterd.policy import Limit

from ..core.floor import Measured
from ..core.lab import Lab
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.workload import PLENTY, Tap
from .server_time import bracketed

PLAN = Plan(
    "keys",
    default=True,
    includes=[
        Pool("credits", 10**15, "month", auto=1),
        Bucket("api", PLENTY, "1d", algorithm="fixed"),
    ],
)
OWN: Sequence[Limit] = [Bucket("api", PLENTY, "1d", algorithm="fixed"), Pool("credits", PLENTY)]
CONSUME, VERIFY = "consume", "verify"
PAIRS: dict[str, tuple[Sequence[Limit], dict[str, int]]] = {
    "the owner's pool": ((), {"credits": 1}),
    "the owner's pool and bucket": ((), {"credits": 1, "api": 1}),
    "pools and buckets of both": (OWN, {"credits": 1, "api": 1}),
}


@scenario("verify", "server time of verifying an API key, over consume on the same path")
def verify(lab: Lab) -> Iterator[Finding]:
    effort, measures = lab.effort, []
    with Raw(lab.unix.path) as raw, Meter(lab.unix.url, plans=[PLAN], prefix="keys") as meter:
        for at, (name, (limits, costs)) in enumerate(PAIRS.items()):
            keys = [
                meter.keys.create(f"k{at}{number:012d}", limits=limits)
                for number in range(effort.subjects)
            ]
            named = {cost: 1 for cost in costs if cost == "api"} or None
            consume = measured(meter, keys, CONSUME, consuming(meter, costs))
            both = measured(meter, keys, VERIFY, verifying(meter, named))
            measure = bracketed(raw, consume, [both], effort.rounds, effort.calls)
            measure.name = name
            measures.append(measure)
    yield Finding(
        "verify",
        "Verifying an API key",
        measures,
        note="Pipelined over a unix socket, by the server's own count (INFO commandstats).",
    )


Call = Callable[[ApiKey], Any]


def consuming(meter: Meter, costs: dict[str, int]) -> Call:
    return lambda key: meter.consume(key.subject, costs)


def verifying(meter: Meter, costs: dict[str, int] | None) -> Call:
    return lambda key: meter.keys.verify(str(key.secret), costs)


def measured(meter: Meter, keys: list[ApiKey], name: str, call: Call) -> Measured:
    """The command that each key's call sends once the meter knows the key."""
    inner: Any = meter._transport
    tap = Tap(inner)
    meter._transport = tap
    commands = []
    try:
        for key in keys:
            assert call(key)
            assert call(key)
            commands.append(tap.last)
    finally:
        meter._transport = inner
    return Measured(name, "fcall", commands)
