"""Fixtures for the tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meterd import Meter
from tests.faults.fault_tools import CREDITS, Workshop, fresh_prefix, workshop
from tests.support.proxy import FaultProxy
from tests.support.servers import Server


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """`either(url, **settings)` -> a blocking meter; closed at the end of the test."""
    with workshop(request.param) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
def proxy(matrix_server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(matrix_server) as started:
        yield started


@pytest.fixture
def direct(matrix_server: Server, prefix: str) -> Iterator[Meter]:
    with Meter(matrix_server.url, plans=[CREDITS], prefix=prefix, timeout=20) as made:
        yield made
