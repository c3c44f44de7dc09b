"""Fixtures for the tests of leases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, build, fresh_prefix
from tests.leases.lease_tools import PLANS, AnyLease, Shop
from tests.support.proxy import FaultProxy
from tests.support.servers import Server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as started:
        yield started


@pytest.fixture(params=["sync", "async"])
def shop(request: pytest.FixtureRequest, server: Server, prefix: str) -> Iterator[Shop]:
    """Meters and leases of either kind, behind one interface."""
    made: list[AnyMeter] = []
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param == "async" else None

        def meter(**settings: Any) -> AnyMeter:
            given = {"url": server.url, "prefix": prefix, "timeout": 5, "plans": PLANS, **settings}
            made.append(build(runner, **given))
            return made[-1]

        def lease(of: AnyMeter, *args: Any, **named: Any) -> AnyLease:
            return AnyLease(of.lease(*args, **named), runner)

        yield Shop(meter, lease, runner)
        for one in made:
            one.close()
