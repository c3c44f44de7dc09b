"""The benchmarks run and leave every figure behind; what the figures are is not tested here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.effort import TINY
from bench.floor import FLOOR, Measured

from bench import __main__ as command
from bench.report import GROWTH_GOAL, MEMORY_GOAL, TIME_GOALS, Goal


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The text and the JSON of a run too short to mean anything."""
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "QUICK", TINY)
        printed: list[str] = []
        patch.setattr("builtins.print", printed.append)
        assert command.main(["--quick", "--json", str(path)]) == 0
    return printed[0], json.loads(path.read_text())


def test_every_scenario_is_measured_against_the_floor(run: tuple[str, dict[str, Any]]) -> None:
    costs = {row["name"]: row for row in run[1]["server_time"]}
    assert costs[FLOOR]["ratio"] == 1
    assert {"GET+SET", "empty function", "INCRBY", "PING", *TIME_GOALS} < set(costs)
    for word in ("refused", "check", "report", "2 levels", "fresh op", "limiter", "EVALSHA"):
        assert any(word in name for name in costs), word
    for row in costs.values():
        assert 0 <= row["low"] <= row["ratio"] <= row["high"]
        assert row["usec"] >= 0


def test_a_subject_with_four_limits_keeps_its_size(run: tuple[str, dict[str, Any]]) -> None:
    size = run[1]["bytes"]
    assert size["key"] == 30
    assert size["record"] < size["memory"] <= MEMORY_GOAL


def test_growth_and_clients_have_their_rows(run: tuple[str, dict[str, Any]]) -> None:
    growth = {(row["name"], row["subjects"]) for row in run[1]["growth"]}
    assert growth == {(name, n) for name in ("1 limit", "4 limits") for n in TINY.growth_sizes}
    assert [row["name"] for row in run[1]["clients"]] == ["sync, 1 thread", "async, 64 tasks"]
    assert all(row["meterd"] > 0 and row["redis_py"] > 0 for row in run[1]["clients"])


def test_the_figures_say_where_they_come_from(run: tuple[str, dict[str, Any]]) -> None:
    found = run[1]
    assert found["versions"]["server"].startswith(("Valkey", "Redis"))
    assert set(found["versions"]) == {"meterd", "python", "server", "redis", "hiredis", "msgpack"}
    assert found["machine"]["cpus"] > 0
    assert "commit" in found


def test_every_goal_is_in_both_forms(run: tuple[str, dict[str, Any]]) -> None:
    text, found = run
    names = [goal["name"] for goal in found["goals"]]
    assert names == [*TIME_GOALS, "bytes per subject", "growth, 1 limit", "growth, 4 limits"]
    for goal in found["goals"]:
        assert goal["met"] == (goal["value"] <= goal["limit"])
    assert text.count("met") + text.count("MISSED") >= len(names)
    assert f"<= {GROWTH_GOAL:g}" in text


def test_a_goal_is_met_up_to_its_limit() -> None:
    assert Goal("a", 1.5, 1.5).word == "<= 1.5 met"
    assert Goal("a", 1.51, 1.5).word == "<= 1.5 MISSED"


def test_only_what_is_asked_for_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--quick", "--only", "bytes", "--json", str(tmp_path / "f")]) == 0
    assert "bytes per subject" in capsys.readouterr().out
    assert json.loads((tmp_path / "f").read_text())["server_time"] == []


def test_a_fresh_text_is_another_one_in_every_command() -> None:
    measured = Measured("ops", "fcall", [b"x a000", b"y a000"], b"a000")
    assert measured.batch(3) == [b"x a001", b"y a002", b"x a003"]
    assert measured.batch(1) == [b"y a004"]
