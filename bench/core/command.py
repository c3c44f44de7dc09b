"""The command: choose scenarios, run them, report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from .. import scenarios  # noqa: F401  # enters them into the registry
from ..report.about import about
from ..report.goals import judged
from ..report.model import Report, Section
from ..report.publish import CHART, LATEST, publish
from ..report.text import rendered
from .effort import FULL, QUICK, Effort
from .lab import PROCESSORS, Lab
from .registry import Finding, scenario


def run(
    effort: Effort, only: Sequence[str] = (), binary: str | None = None, *, pin: bool = False
) -> Report:
    """Measures, on private servers that are gone afterwards."""
    started = time.monotonic()
    findings: list[Finding] = []
    with Lab(effort, binary, pin=pin) as lab:
        chosen = scenario.chosen(only)
        for number, each in enumerate(chosen, 1):
            before = time.monotonic()
            click.echo(f"[{number}/{len(chosen)}] {each.name}: {each.about}", err=True, nl=False)
            findings += each.run(lab)
            click.echo(f" ({time.monotonic() - before:.0f} s)", err=True)
        kind = f"{effort.name}, pinned" if pin else effort.name
        found = about(lab.server, kind, time.monotonic() - started)
    goals = [goal for goal in judged(findings) if not only or goal.measured is not None]
    return Report(found, goals, [Section.of(finding) for finding in findings])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Less than three minutes, with a wider spread.")
@click.option("--only", multiple=True, metavar="SCENARIO", help="Just this one; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Name the scenarios and leave.")
@click.option("--binary", metavar="PATH", help="The server to measure on: Redis 7 or later.")
@click.option("--pin", is_flag=True, help="Servers on one processor, the clients on the others.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Write {LATEST}.json, {LATEST}.md and {CHART} there.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Measure nothing; report what the JSON of an earlier run says.",
)
@click.option(
    "--readme",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Put the figures between the markers of this README.",
)
def main(
    quick: bool,
    only: tuple[str, ...],
    listing: bool,
    binary: str | None,
    pin: bool,
    as_json: bool,
    results: Path | None,
    source: Path | None,
    readme: Path | None,
) -> None:
    """Measure meterd beside the floor and beside other libraries, on private servers.

    Everything runs on loopback and ends with the command. Without --quick it takes about twenty
    minutes.
    """
    if listing:
        for each in scenario:
            click.echo(f"{each.name:<12}{each.about}")
        return
    try:
        scenario.chosen(only)
        if pin and len(PROCESSORS) < 2:
            raise ValueError("--pin takes two processors")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if source is not None:
        report = Report.from_dict(json.loads(source.read_text(encoding="utf-8")))
    else:
        report = run(QUICK if quick else FULL, only, binary, pin=pin)
    publish(report, results, readme)
    text = json.dumps(report.as_dict(), indent=1) if as_json else rendered(report, terminal=True)
    click.echo(text.rstrip("\n"))
