"""Servers for every test that wants a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import servers


@pytest.fixture(scope="session")
def server() -> Iterator[servers.Server]:
    """The default server, shared by the whole session: tests keep to a prefix of their own."""
    with servers.start() as started:
        yield started


@pytest.fixture(scope="session", params=list(servers.BINARIES))
def matrix_server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """Every supported server in turn; those that are not installed are skipped.

    To narrow it: `@pytest.mark.parametrize("matrix_server", ["redis-6.2"], indirect=True)`.
    """
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    with servers.start(request.param) as started:
        yield started
