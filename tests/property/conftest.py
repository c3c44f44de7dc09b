"""A server for the machines of one file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import start


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start("valkey-9.1") as server:
        yield server.url
