"""Files of a report, and the README's section: between two markers, never written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from .chart import chart
from .model import Report
from .text import GOAL_HEAD, goal_cells, markdown, origin, rendered

LATEST, CHART = "latest", "chart.svg"
BEGIN = "<!-- figures: begin (written by `make bench`) -->"
END = "<!-- figures: end -->"


def publish(report: Report, results: Path | None, readme: Path | None) -> None:
    """Writes what was asked for."""
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.as_dict(), indent=1) + "\n"
        (results / f"{LATEST}.json").write_text(text, encoding="utf-8")
        (results / f"{LATEST}.md").write_text(rendered(report), encoding="utf-8")
        (results / CHART).write_text(chart(report), encoding="utf-8")
    if readme is not None:
        before = readme.read_text(encoding="utf-8")
        readme.write_text(replaced(before, figures(report)), encoding="utf-8")


def figures(report: Report) -> str:
    """What stands between the markers: the goals, and where the figures are from."""
    table = markdown(GOAL_HEAD, [goal_cells(goal) for goal in report.goals], 2)
    return f"{table}\n\n{origin(report)}."


def replaced(text: str, between: str) -> str:
    """The text with something else between its markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN!r} and {END!r} are not there, in this order")
    return f"{head}{BEGIN}\n{between}\n{END}{tail}"
