"""Fixtures for the tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.fault_tools import Workshop, fresh_prefix, workshop


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """`either(url, **settings)` -> a blocking meter; closed at the end of the test."""
    with workshop(request.param) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()
