"""From findings to JSON, Markdown, chart and README; nothing here measures anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.core.measure import CPU, RATE
from bench.core.registry import Finding
from bench.core.stats import Measure
from bench.peers.redis_py import FCALL
from bench.report.chart import chart
from bench.report.goals import judged
from bench.report.model import GoalRow, Report, Section, Table, rounded
from bench.report.publish import BEGIN, END, figures, publish, replaced
from bench.report.text import figure, goal_cells, rendered

ROOT = Path(__file__).resolve().parents[2]
ABOUT: dict[str, Any] = {
    "versions": {"server": "Valkey 9.1.2", "python": "3.11.7", "meterd": "0.1.0"},
    "commit": "abc",
    "machine": {"system": "Linux", "processor": "Some CPU", "cpus": 2},
    "effort": "quick",
    "seconds": 95,
    "date": "2026-01-31",
}
RATES = {"meterd": 40.0, FCALL: 20.0, "limits, fixed": 10.0, "throttled-py, fixed": 5.0}


def finding(key: str, rates: dict[str, float] = RATES, rounds: int = 3) -> Finding:
    measures = [Measure(RATE, "", FCALL), Measure(CPU, "", FCALL, more_is_better=False)]
    for _ in range(rounds):
        measures[0].add_round(rates)
        measures[1].add_round({name: 1 / rate for name, rate in rates.items()})
    absent = {"aiolimiter": "aiolimiter is not installed"}
    return Finding(key, f"Title of {key}", measures, "A note.", absent)


@pytest.fixture
def report() -> Report:
    findings = [finding("sync-one"), finding("sync-four")]
    return Report(ABOUT, judged(findings), [Section.of(each) for each in findings])


def goals(findings: list[Finding]) -> dict[str, GoalRow]:
    return {goal.title: goal for goal in judged(findings)}


def test_a_report_survives_json(report: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_goals_without_figures_are_not_measured() -> None:
    for goal in judged([]):
        assert goal.measured is None
        assert goal.met is None
        assert goal.word == "not measured"


def test_goals_compare_with_whoever_was_best() -> None:
    found = goals([finding("sync-one")])
    goal = found["sync, one thread, one limit, over the best peer"]
    assert (goal.measured, goal.against, goal.met) == (4, "limits, fixed", True)
    cpu = found["CPU per sync call over redis-py's own `fcall`"]
    assert (cpu.measured, cpu.met, cpu.word) == (0.5, False, "missed")


def test_four_rates_in_one_bucket_are_shown_beside_the_goal_of_four_calls() -> None:
    rates = RATES | {"pyrate-limiter, log, one bucket": 16.0, "pyrate-limiter, log": 2.0}
    found = judged([finding("sync-four", rates)])
    at = next(n for n, goal in enumerate(found) if goal.title.startswith("sync, one thread, pool"))
    assert (found[at].measured, found[at].against) == (4, "limits, fixed")
    assert found[at + 1].measured == 2.5
    assert found[at + 1].limit is None
    assert found[at + 1].word == ""


def test_growth_is_judged_by_the_most_subjects_and_the_slower_of_the_two() -> None:
    findings = []
    for limits, slow in (("1", 1.2), ("4", 1.1)):
        measure = Measure("server time", "us", "1,000 subjects", more_is_better=False)
        sizes = {"1,000 subjects": 1.0, "100,000 subjects": 9.0, "1,000,000 subjects": slow}
        measure.add_round(sizes)
        findings.append(Finding(f"growth-{limits}", "Growth", [measure]))
    goal = goals(findings)["server time among the most subjects over the fewest"]
    assert (goal.measured, goal.against) == (1.2, "1,000,000 subjects, 1 limit")


def test_a_goal_is_met_up_to_its_limit() -> None:
    assert GoalRow("a", 1.5, False, "x", 1.5).met
    assert not GoalRow("a", 1.5, False, "x", 1.51).met
    assert GoalRow("a", 1.5, True, "x", 1.5).met
    assert GoalRow("a", 1.5, True, "x", 1.49).word == "missed"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (0.6512, "x", "0.651 ×"),
        (4.0, "us", "4.00 µs"),
        (12.44, "", "12.4"),
        (176.0, "bytes", "176 bytes"),
        (118_234, "/s", "118,000/s"),
        (1_234_567, "", "1,230,000"),
    ],
)
def test_figures_have_three_digits(value: float, unit: str, text: str) -> None:
    assert figure(value, unit) == text
    assert rounded(1 / 3) == 0.3333


def test_the_report_names_origin_goals_figures_and_who_did_not_run(report: Report) -> None:
    for terminal in (False, True):
        text = rendered(report, terminal=terminal)
        assert "Valkey 9.1.2, Python 3.11.7, 2 × Some CPU (Linux), commit abc" in text
        assert "quick run of 1 min 35 s" in text
        assert "aiolimiter is not installed" in text
        assert f"Ratio: to {FCALL}; medians of 3 rounds" in text
    markdown = rendered(report)
    assert "## Title of sync-one" in markdown
    assert "| meterd | 40.0 | 2.00 | 0.0250 | 0.500 |" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| limits, fixed")]
    assert len(rows) == 2


def test_markdown_tables_are_rectangular(report: Report) -> None:
    width = None
    for line in rendered(report).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or line.count("|")
        assert line.count("|") == width


def test_a_finding_without_figures_is_reported_all_the_same() -> None:
    empty = Section.of(Finding("latency", "Latency", [], absent={"everybody": "no hdrhistogram"}))
    text = rendered(Report(ABOUT, [], [empty]))
    assert "## Latency" in text
    assert "everybody: no hdrhistogram" in text


def test_a_spread_stands_beside_its_median() -> None:
    goal = GoalRow("a", 2, True, "x", 3, 2.5, 3.5, "limits")
    assert goal_cells(goal) == ("a (limits)", "≥ 2 ×", "3.00 × (2.50 – 3.50)", "met")


def test_the_chart_is_svg_with_a_bar_for_everybody(report: Report) -> None:
    root = ElementTree.fromstring(chart(report))
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{space}text")]
    for name in ("meterd", "redis-py, fcall", "limits, fixed", "Decisions per second"):
        assert name in words
    assert words.count("meterd") == 2  # in both panels
    bars = [element for element in root.iter(f"{space}rect") if element.get("fill") == "#0f7b6c"]
    assert len(bars) == 2
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter(f"{space}text"):
        assert 0 < float(element.get("x", 0)) < width
        assert 0 < float(element.get("y", 0)) < height


def test_floors_are_not_in_the_chart() -> None:
    table = Table.of(finding("x", RATES | {"redis-py, PING": 99.0}).measures[0])
    section = Section("sync-one", "t", "", [table], {})
    assert "PING" not in chart(Report(ABOUT, [], [section]))


def test_a_chart_of_nothing_is_a_chart() -> None:
    ElementTree.fromstring(chart(Report(ABOUT)))


def test_the_readme_changes_between_its_markers_only(report: Report, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        publish(report, tmp_path / "results", readme)
        text = readme.read_text(encoding="utf-8")
        assert text == f"before\n{BEGIN}\n{figures(report)}\n{END}\nafter\n"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "chart.svg",
        "latest.json",
        "latest.md",
    ]
    with pytest.raises(ValueError, match="markers"):
        replaced("no markers here", "x")


def test_the_readme_shows_the_chart_and_names_every_figure() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("chart.svg", "latest.md", "latest.json"):
        assert f"(bench/results/{name})" in readme
        assert (ROOT / "bench" / "results" / name).is_file()


def test_the_readme_says_what_the_last_results_say() -> None:
    latest = (ROOT / "bench" / "results" / "latest.json").read_text(encoding="utf-8")
    last = Report.from_dict(json.loads(latest))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, figures(last)) == readme
