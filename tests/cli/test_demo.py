"""The demo: every promise holds, and a broken one is noticed."""

from __future__ import annotations

import pytest

from meterd import demo
from tests.cli.helpers import Run, data_of


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MEASURE_S", 0.1)


def test_every_promise_passes(bare: Run) -> None:
    result = bare("demo")
    assert result.exit_code == 0, result.stdout
    assert result.stdout.count("PASS") == 5
    assert "FAIL" not in result.stdout
    assert "decisions/s" in result.stdout
    assert "320 tries, 100 sold, 100 counted, 0 left" in result.stdout


def test_as_json(bare: Run) -> None:
    data = data_of(bare("demo", "--json"))
    assert data["passed"] is True
    assert min(data["decisions_per_second"].values()) > 100


def test_a_broken_promise_fails_the_command(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PROMISES", [("never", lambda url: (False, "seen"))])
    result = bare("demo")
    assert result.exit_code == 1
    assert "FAIL  never" in result.stdout
