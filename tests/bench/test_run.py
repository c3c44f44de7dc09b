"""The benchmarks run and leave every figure behind; what the figures are is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.core import command
from bench.core.effort import TINY
from bench.core.floor import FLOOR
from bench.core.registry import scenario
from bench.peers.everybody import ASYNC, SYNC
from bench.report.model import Report, Row

# What other libraries warn of is their business.
pytestmark = pytest.mark.filterwarnings("ignore")

SECTIONS = (
    "server decision-one decision-four verify money bytes growth-1 growth-4 sync-one "
    "sync-four threads-1 threads-2 async-1 async-64 async-four connection-1 connection-64 "
    "latency-200 subjects refused-sync refused-async local balance-numbered balance-uuids "
    "cluster-one cluster-four cluster-keys export imports"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run too short to mean anything, through the command and through its files."""
    results = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "QUICK", TINY)
        done = CliRunner().invoke(command.main, ["--quick", "--results", str(results)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "GOALS" in done.stdout
    return Report.from_dict(json.loads((results / "latest.json").read_text(encoding="utf-8")))


def rows(report: Report, key: str, table: int = 0) -> dict[str, Row]:
    section = report.section(key)
    assert section is not None, key
    return {row.name: row for row in section.tables[table].rows}


def test_every_scenario_leaves_its_sections(report: Report) -> None:
    assert " ".join(section.key for section in report.sections) == SECTIONS


def test_every_figure_lies_between_its_quartiles(report: Report) -> None:
    for section in report.sections:
        for table in section.tables:
            assert table.rows, section.key
            for row in table.rows:
                assert 0 <= row.low <= row.value <= row.high, (section.key, row)
                assert row.ratio_low <= row.ratio <= row.ratio_high, (section.key, row)


def test_server_time_is_over_the_floor(report: Report) -> None:
    found = rows(report, "server")
    assert {FLOOR, "GET+SET", "INCRBY", "PING"} < set(found)
    for word in ("consume", "refused", "check", "report", "2 levels", "fresh op", "EVALSHA"):
        assert any(word in name for name in found), word


def test_everybody_is_in_every_comparison(report: Report) -> None:
    for key, peers in (("sync-one", SYNC), ("async-64", ASYNC)):
        everybody = {peer.name for peer in peers if not peer.missing}
        assert {name for name in everybody if not name.endswith("one bucket")} == set(
            rows(report, key)
        )
    assert {"limits, fixed", "pyrate-limiter, log, one bucket"} < set(rows(report, "async-four"))


def test_a_subject_with_four_limits_keeps_its_size(report: Report) -> None:
    found = rows(report, "bytes")
    assert 100 < found["meterd"].value <= 176
    (indexed,) = [row for name, row in found.items() if name.endswith("partition's index")]
    assert 20 < indexed.value - found["meterd"].value <= 144


def test_one_decision_is_one_command(report: Report) -> None:
    for key, calls in (("decision-one", 1), ("decision-four", 4)):
        sent = rows(report, key, 1)
        assert sent["meterd"].value == 1
        assert sent["limits, fixed"].value == calls


def test_the_figures_say_where_they_come_from(report: Report) -> None:
    versions = report.about["versions"]
    assert versions["server"].startswith(("Valkey", "Redis"))
    assert {"meterd", "python", "redis", "hiredis"} < set(versions)
    assert report.about["machine"]["cpus"] > 0
    assert report.about["effort"] == "tiny"


def test_goals_that_can_be_measured_are(report: Report) -> None:
    for goal in report.goals:
        if "lease" not in goal.title and "cached" not in goal.title:
            assert goal.measured is not None, goal.title


def test_no_scenario_is_left_out_of_the_list() -> None:
    listed = CliRunner().invoke(command.main, ["--list"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == scenario.names()


def test_an_unknown_scenario_is_a_mistake_of_usage() -> None:
    done = CliRunner().invoke(command.main, ["--only", "nothing"])
    assert done.exit_code == 2
    assert "no scenario nothing" in done.stderr


def test_only_what_is_asked_for_is_measured_and_json_is_data(tmp_path: Path) -> None:
    done = CliRunner().invoke(command.main, ["--quick", "--only", "bytes", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [section["key"] for section in data["sections"]] == ["bytes"]
    assert [goal["title"] for goal in data["goals"]] == [
        "bytes per subject, pool and three buckets"
    ]
    (tmp_path / "run.json").write_text(done.stdout, encoding="utf-8")
    again = CliRunner().invoke(command.main, ["--from", str(tmp_path / "run.json"), "--json"])
    assert json.loads(again.stdout) == data
