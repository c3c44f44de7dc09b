"""Meters in a prefix of their own on the session's server."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from meterd import Meter, Plan
from tests.engine.fuzz import HOWS
from tests.engine.raw import World, world
from tests.support import servers
from tests.support.servers import Server

Make = Callable[..., Meter]


@pytest.fixture
def prefix() -> str:
    return f"e{secrets.token_hex(5)}"


@pytest.fixture
def client(server: Server) -> redis.Redis:
    """For the test's own questions; replies are bytes."""
    return server.binary


@pytest.fixture
def make(server: Server, prefix: str, client: redis.Redis) -> Iterator[Make]:
    """`make(plans, clock=...)`: an open meter, gone after the test; `prefix=` moves it."""
    made: list[Meter] = []

    def build(plans: Sequence[Plan] | None = None, **settings: Any) -> Meter:
        settings = {"prefix": prefix, "timeout": 10.0, **settings}
        made.append(Meter(server.url, plans=plans, **settings))
        return made[-1].open()

    yield build
    for meter in made:
        meter.close()
    for key in client.scan_iter(match=f"{prefix}*", count=1000):
        client.delete(key)


@pytest.fixture(scope="module")
def w() -> Iterator[World]:
    """A store on a server of its own, reached past the client."""
    with servers.start() as server, world(server) as made:
        yield made


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> str:
    """Each way of calling an entry."""
    return str(request.param)
