"""Fixtures for the tests of transports and clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from meterd.testing import ManualClock
from tests.client.meter_tools import PLANS, AnyMeter, Make, build, fresh_prefix
from tests.client.transport_tools import Both
from tests.support import servers
from tests.support.proxy import FaultProxy


@pytest.fixture(params=["sync", "async", "async, started"])
def either(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`either(url, **options)` -> a transport; closed at the end of the test."""
    made = []
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param != "sync" else None

        def make(url: str, **options: Any) -> Both:
            made.append(Both(url, runner, request.param == "async, started", **options))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.fixture
def proxy(server: servers.Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as started:
        yield started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sync", "async"])
def make(
    request: pytest.FixtureRequest, server: servers.Server, clock: ManualClock
) -> Iterator[Make]:
    """`make(plans, **settings)` -> a meter of either kind on `clock`, all of a test in one store.

    Settings win over these; `clock=None` is the server's clock, which needs a prefix of its own.
    """
    prefix = fresh_prefix()
    made: list[AnyMeter] = []
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param != "sync" else None

        def make(plans: Any = PLANS, **settings: Any) -> AnyMeter:
            given = {"prefix": prefix, "clock": clock, "timeout": 5, **settings}
            if "client" not in given:
                given.setdefault("url", server.url)
            made.append(build(runner, plans=plans, **given))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    """A meter of either kind on the plans of `meter_tools`."""
    return make()
