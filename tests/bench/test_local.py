"""What an older meterd cannot do is reported as absent; what a newer one can is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest

from bench.core.effort import TINY
from bench.core.lab import Lab
from bench.scenarios import local


class Old:
    """A meter without leases that remembers nothing."""

    def __init__(self, url: str, *, plans: Any, timeout: float) -> None:
        self.calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def consume(self, *_: object, **__: object) -> bool:
        self.calls += 1
        return self.calls == 1


class Lease:
    closed = False

    def consume(self) -> bool:
        return True

    def close(self) -> None:
        Lease.closed = True


class New(Old):
    def __init__(self, url: str, *, plans: Any, timeout: float, refusal_cache: str = "") -> None:
        super().__init__(url, plans=plans, timeout=timeout)

    def lease(self, subject: str, cost: str, *, amount: int, ttl: float) -> Lease:
        return Lease()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(TINY) as made:
        yield made


def test_an_old_meter_has_neither(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "Meter", Old)
    with ExitStack() as stack:
        assert local.leased(lab, stack) == "this version has no leases"
        assert local.cached(lab, stack) == "this version remembers no refusals"


def test_a_new_meter_has_both(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "Meter", New)
    with ExitStack() as stack:
        leased, cached = local.leased(lab, stack), local.cached(lab, stack)
        assert callable(leased)
        assert callable(cached)
        assert leased(0)
        assert not cached(0)
    assert Lease.closed
