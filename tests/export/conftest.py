"""A meter of either kind, and the streams of its store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.meter_tools import PLANS, AnyMeter, Make, build, fresh_prefix
from tests.export.export_tools import Streams
from tests.support import servers


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
def streams(server: servers.Server, prefix: str) -> Streams:
    return Streams(server.admin, prefix)


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, server: servers.Server, prefix: str) -> Iterator[Make]:
    """`make(plans, **settings)` -> a meter of either kind, all of a test in one store."""
    made: list[AnyMeter] = []
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param != "sync" else None

        def make(plans: Any = PLANS, **settings: Any) -> AnyMeter:
            given = {"prefix": prefix, "timeout": 5, "url": server.url, **settings}
            made.append(build(runner, plans=plans, **given))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.fixture
def meter(make: Make) -> AnyMeter:
    return make()
