"""Latency at fixed rates, counted from the instant at which a call was due."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.lab import Lab
from ..core.latency import PERCENTILES, open_loop
from ..core.measure import Contender, Quantity, compare
from ..core.registry import Finding, scenario
from ..peers import AsyncCall, missing
from ..peers.everybody import ASYNC
from ..peers.redis_py import ASYNC_FCALL
from .clients import SUBJECTS, async_opened

CONTENDERS = ("meterd", ASYNC_FCALL, "limits, fixed", "limits on coredis, fixed",
              "throttled-py, fixed")  # fmt: skip
CALLERS = 1000  # connections that a pool may open while answers are late
QUANTITIES = [Quantity(name, "ms", False) for name in PERCENTILES]
QUANTITIES.append(Quantity("answered", "%", bare=True))


@scenario("latency", "open loop at fixed rates: p50, p99, p99.9 from when a call was due")
def latency(lab: Lab) -> Iterator[Finding]:
    if why := missing(("hdrhistogram",)):
        yield Finding("latency", "Latency at fixed rates", [], absent={"every contender": why})
        return
    effort = lab.effort
    peers = [peer for peer in ASYNC if peer.name in CONTENDERS]
    for rate in effort.rates:
        with async_opened(lab.tcp, peers, CALLERS) as clients:

            def contender(name: str, call: AsyncCall, rate: int = rate) -> Contender:
                run = clients.run
                return Contender(name, lambda: run(open_loop(call, rate, effort.open_s, SUBJECTS)))

            found = ((name, calls.one) for name, calls in clients.calls.items())
            contenders = [contender(name, call) for name, call in found if call]
            yield Finding(
                f"latency-{rate}",
                f"Latency, {rate:,} calls a second, one limit",
                compare(contenders, effort.open_blocks, ASYNC_FCALL, QUANTITIES),
                note="Open loop: waiting counts from the instant at which a call was due, whether "
                "or not it could be sent then.",
                absent=clients.absent,
            )
