"""More policies than a server keeps parsed: one that a call needs may have to make way in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meterd import Meter, Plan, Pool
from meterd.testing import ManualClock
from tests.engine.told import rows
from tests.support import servers

KEPT = 256
FREE = Plan("free", includes=[Pool("credits", 100, "month", bill="use")], default=True)


@pytest.fixture
def server() -> Iterator[servers.Server]:
    """It keeps nothing yet."""
    with servers.start() as started:
        yield started


@pytest.fixture
def meter(server: servers.Server) -> Iterator[Meter]:
    with Meter(server.url, plans=[FREE], clock=ManualClock(), timeout=10) as made:
        yield made


def test_a_change_that_waits(meter: Meter) -> None:
    for n in range(KEPT + 50):
        meter.subscribe(f"u{n}", limits=[Pool("credits", n + 1)], when="1d")
        assert meter.usage(f"u{n}")["credits"].limit == 100


def test_what_is_billed_of_those_that_are_forgotten(meter: Meter, server: servers.Server) -> None:
    """Each in one script with another, whose policy has to be brought along."""
    total = KEPT + 100
    for n in range(total):
        meter.subscribe(f"u/own{n}", limits=[Pool("credits", n + 1)])
    for n in range(total):
        meter.subscribe(f"u/{n}", "free")
        meter.report(f"u/{n}", "credits", 7)
        paths = [meter._keys.path(f"u/{name}") for name in (n, f"own{n}")]
        keys = [path.keys[-1] for path in paths]
        assert meter._run(meter._forgetting._records(paths[0].tag, keys)) == 2
    billed = [(row[0], row[2]) for row in rows(server.client(), meter, 1, "u")]
    assert billed == [(f"u/{n}", 7) for n in range(total)]
