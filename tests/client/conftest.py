"""Fixtures for the tests of transports and clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.transport_tools import Both
from tests.support import servers
from tests.support.proxy import FaultProxy


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`either(url, **options)` -> a transport; closed at the end of the test."""
    made = []
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param == "async" else None

        def make(url: str, **options: Any) -> Both:
            made.append(Both(url, runner, **options))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.fixture
def proxy(server: servers.Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as started:
        yield started
