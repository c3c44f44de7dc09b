"""`meterd bench` hands over to the harness: that of the checkout, or the one in the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterd.cli import bench
from tests.cli.helpers import Run


def test_bench_is_the_harness_of_the_checkout(bare: Run) -> None:
    assert bench.harness().callback.__module__ == "bench.core.command"
    listed = bare("bench", "--list")
    assert listed.exit_code == 0
    assert "growth" in listed.stdout


def test_help_is_that_of_the_harness(bare: Run) -> None:
    result = bare("bench", "--help")
    assert result.exit_code == 0
    assert "Usage: meterd bench" in result.stdout
    assert "--quick" in result.stdout


def test_a_mistake_is_a_mistake_of_usage(bare: Run) -> None:
    assert bare("bench", "--only", "nothing").exit_code == 2
    assert bare("bench", "--no-such-option").exit_code == 2


def test_without_a_harness_it_says_what_to_do(
    bare: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    result = bare("bench", "--list")
    assert result.exit_code == 1
    assert "checkout" in result.stderr
