"""Servers for every test that wants a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from meterd import store
from tests.support import servers

# The same examples in every run, however slow the machine: a failure is the fault of the change
# that it came with. `make test-long` looks for new ones, in the profile that is named `default`.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

EVERY_SECONDS = store.REFRESH_SECONDS
"""How often a process that nobody tests looks at the catalog."""


@pytest.fixture(scope="session", autouse=True)
def looks_when_told() -> Iterator[None]:
    """Nobody looks at the catalog because a machine is slow: requests are counted, and faults hit
    the request that they are meant for. Tests of the looking ask for `looks_by_itself`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "REFRESH_SECONDS", 1e9)
        yield


@pytest.fixture
def looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog is looked at every few seconds of use, as in a user's process."""
    monkeypatch.setattr(store, "REFRESH_SECONDS", EVERY_SECONDS)


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
