"""What the tests of the clients share: one interface over `Meter` and `AsyncMeter`, and plans."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Callable
from typing import Any

from meterd import AsyncMeter, Bucket, Flag, Meter, Plan, Pool

FREE = Plan(
    "free",
    includes=[
        Pool("credits", 100, "month", rates={"tokens": 1, "image": 10}),
        Bucket("api", 5, "1m", algorithm="fixed"),
        Flag("export"),
    ],
    default=True,
)
PRO = Plan(
    "pro",
    includes=[
        Pool("credits", 1000, "month", rates={"tokens": 1, "image": 10}, overage=50),
        Bucket("api", 60, "1m", algorithm="fixed"),
        Flag("export"),
        Flag("sso"),
    ],
)
PACK = Plan(
    "pack",
    includes=[Pool("credits", 500, "month", rates={"tokens": 1, "image": 10}), Flag("support")],
    group="addon",
)
PLANS = (FREE, PRO, PACK)
EXTRA = Plan("extra", includes=[Flag("support")], group="addon")


def fresh_prefix() -> str:
    return f"t-{secrets.token_hex(6)}"


async def _awaited(made: Any) -> Any:
    return await made


async def _listed(made: Any) -> list[Any]:
    return [item async for item in made]


class AnyMeter:
    """The synchronous interface over either meter or limiter, so that one test covers both."""

    def __init__(self, inner: Any, runner: asyncio.Runner | None) -> None:
        self.raw = inner
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.raw, name)
        if not callable(found):
            return found
        return lambda *args, **named: self._settled(found(*args, **named))

    def __enter__(self) -> AnyMeter:
        self._settled(self.raw.__enter__() if self.runner is None else self.raw.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._settled(
            self.raw.__exit__(*error) if self.runner is None else self.raw.__aexit__(*error)
        )

    def limiter(self, name: str, *limits: Bucket) -> AnyMeter:
        return AnyMeter(self.raw.limiter(name, *limits), self.runner)

    @property
    def keys(self) -> AnyMeter:
        return AnyMeter(self.raw.keys, self.runner)

    def subjects(self, root: Any = None) -> list[Any]:
        found = self.raw.subjects(root) if root is not None else self.raw.subjects()
        return list(found) if self.runner is None else self.runner.run(_listed(found))

    def _settled(self, made: Any) -> Any:
        if self.runner is not None and inspect.isawaitable(made):
            return self.runner.run(_awaited(made))
        return made


# make(plans, url=..., prefix=..., clock=..., **settings) -> AnyMeter
Make = Callable[..., AnyMeter]


def build(runner: asyncio.Runner | None, *args: Any, **settings: Any) -> AnyMeter:
    kind: Any = Meter if runner is None else AsyncMeter
    return AnyMeter(kind(*args, **settings), runner)


def requests_of(meter: AnyMeter) -> list[bytes]:
    """Every request that the meter sends from now on, as it is packed."""
    sent: list[bytes] = []
    transport = meter.raw._transport
    original = transport.send
    if meter.runner is None:

        def send(request: Any, timeout: float) -> Any:
            sent.append(request.packed)
            return original(request, timeout)

        transport.send = send
    else:
        begin = transport.start

        def start(request: Any, timeout: float) -> Any:
            sent.append(request.packed)
            transport.send = original  # which a start may turn to
            try:
                return begin(request, timeout)
            finally:
                transport.send = send_async

        async def send_async(request: Any, timeout: float) -> Any:
            sent.append(request.packed)
            return await original(request, timeout)

        transport.send, transport.start = send_async, start
    return sent


def pool_plan(limit: int, name: str = "base", **more: Any) -> Plan:
    return Plan(name, includes=[Pool("credits", limit, "month")], **{"default": True, **more})


def look_again(meter: AnyMeter) -> None:
    """As if the seconds had passed after which a process looks at the catalog."""
    meter.raw._store.looked = float("-inf")
