"""What one decision asks of the server, counted live: commands, calls inside scripts, time."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.census import server_usec, watch
from ..core.lab import Lab
from ..core.measure import Contender, Quantity, compare
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..peers import Call
from ..peers.everybody import SYNC
from ..peers.redis_py import FCALL
from .clients import SUBJECTS, opened

SENT, INNER, TIME = "commands", "calls in scripts", "server time"
QUANTITIES = [
    Quantity(TIME, "us", False),
    Quantity(SENT, "", False, bare=True),
    Quantity(INNER, "", False, bare=True),
]
ROUNDS = 9


@scenario("decision", "server time, commands and redis calls per decision, through every client")
def decision(lab: Lab) -> Iterator[Finding]:
    calls_each = lab.effort.census_calls

    def contender(name: str, call: Call) -> Contender:
        def work() -> None:
            for n in range(calls_each):
                call(n % len(SUBJECTS))

        for n in SUBJECTS:
            call(n)
        counted = watch(lab.tcp.path, work)
        names = frozenset(counted.commands)

        def sample() -> dict[str, float]:
            with Raw(lab.tcp.path) as raw:
                usec = server_usec(raw, names, work)
            return {
                SENT: counted.sent / calls_each,
                INNER: counted.inner / calls_each,
                TIME: usec / calls_each,
            }

        return Contender(name, sample)

    with opened(lab.tcp, [peer for peer in SYNC if peer.role != "floor"]) as clients:
        for key, title in (("one", "one limit"), ("four", "a pool and three buckets")):
            found = ((name, getattr(calls, key)) for name, calls in clients.calls.items())
            contenders = [contender(name, call) for name, call in found if call]
            yield Finding(
                f"decision-{key}",
                f"Per decision, {title}",
                compare(contenders, min(ROUNDS, lab.effort.blocks), FCALL, QUANTITIES),
                note="Unlike in the pipelined figures of the server, each call meets cold caches.",
                absent=clients.absent,
            )
