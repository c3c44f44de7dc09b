"""Meters on fakeredis, for machines where no server can run; the same Lua runs there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from meterd.aio import AsyncMeter
from meterd.client import Meter
from meterd.errors import MeterdError
from meterd.policy import Plan
from meterd.scripts import Scripts
from meterd.testing.prelude import prelude


@cache
def _scripts() -> Scripts:
    return Scripts(prelude=prelude())


def _server(down: bool) -> Any:
    try:
        import fakeredis
    except ImportError as error:
        raise MeterdError('this needs fakeredis: pip install "meterd[testing]"') from error
    server = fakeredis.FakeServer(server_type="valkey", version=(8,))
    server.connected = not down
    return fakeredis, server


def fake(
    plans: Sequence[Plan] | None = None, *, clock: Any = None, down: bool = False, **settings: Any
) -> Meter:
    """A `Meter` on a fake server of its own. `down`: the server cannot be reached."""
    fakeredis, server = _server(down)
    client = fakeredis.FakeRedis(server=server)
    return Meter(client=client, plans=plans, clock=clock, scripts=_scripts(), **settings)


def async_fake(
    plans: Sequence[Plan] | None = None, *, clock: Any = None, down: bool = False, **settings: Any
) -> AsyncMeter:
    """An `AsyncMeter` on a fake server of its own. `down`: the server cannot be reached."""
    fakeredis, server = _server(down)
    client = fakeredis.FakeAsyncRedis(server=server)
    return AsyncMeter(client=client, plans=plans, clock=clock, scripts=_scripts(), **settings)
