"""The pytest plugin: `meter`, `async_meter` and `meter_clock`, each test in an empty store.

Override the fixture `meterd_plans` with your own plans. The server is an embedded one, started once
per session, or the one named by METERD_TEST_URL.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.aio import AsyncMeter
    from meterd.client import Meter
    from meterd.policy import Plan
    from meterd.testing.clock import ManualClock

# Nothing of meterd is imported before a fixture is used: the plugin costs other test suites
# nothing.


@pytest.fixture(scope="session")
def meterd_url() -> Iterator[str]:
    """METERD_TEST_URL, else the URL of an embedded server that lives as long as the session."""
    url = os.environ.get("METERD_TEST_URL")
    if url:
        yield url
        return
    from meterd.embedded import EmbeddedServer

    with EmbeddedServer.start() as server:
        yield server.url


@pytest.fixture
def meterd_plans() -> Sequence[Plan]:
    """The plans that the fixtures' meters start with; override it."""
    return ()


@pytest.fixture
def meterd_prefix(meterd_url: str) -> Iterator[str]:
    """A prefix that no other test uses; what is stored under it is removed afterwards."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    yield prefix
    from meterd.testing.cleanup import remove_prefix

    remove_prefix(meterd_url, prefix)


@pytest.fixture
def meter_clock() -> ManualClock:
    """The clock of `meter` and `async_meter`; `meter_clock.advance(days=31)` moves the engine."""
    from meterd.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def meter(
    meterd_url: str, meterd_prefix: str, meterd_plans: Sequence[Plan], meter_clock: ManualClock
) -> Iterator[Meter]:
    """A `Meter` on an empty store that runs on `meter_clock`."""
    from meterd.client import Meter

    with Meter(
        meterd_url, plans=meterd_plans, prefix=meterd_prefix, clock=meter_clock, timeout=5
    ) as made:
        yield made


@pytest.fixture
def async_meter(
    meterd_url: str, meterd_prefix: str, meterd_plans: Sequence[Plan], meter_clock: ManualClock
) -> Iterator[AsyncMeter]:
    """An `AsyncMeter` on the same store as `meter`, for any asyncio plugin or `asyncio.run`."""
    from meterd.aio import AsyncMeter

    made = AsyncMeter(
        meterd_url, plans=meterd_plans, prefix=meterd_prefix, clock=meter_clock, timeout=5
    )
    yield made
    made.abandon()
