"""`replay`: what would these plans have done to that traffic?"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from meterd.catalog_toml import load_plans
from meterd.cli.base import State, note, verb
from meterd.client import Meter
from meterd.replay import (
    FORMATS,
    Choice,
    Cost,
    InputError,
    Report,
    Selection,
    Source,
    Traffic,
    built_in,
    check_costs,
    choose,
    read_rows,
    render,
)
from meterd.replay import replay as run_replay
from meterd.testing import ManualClock
from meterd.testing.cleanup import remove_prefix
from meterd.transport import MaybeSent, NotSent


@verb()
@click.argument("file", metavar="FILE")
@click.option("--plans", "plans_from", metavar="FILE|MODULE:PLANS", help="Plans to replay against.")
@click.option("--plan", "plan_id", metavar="ID", help="Which of them; default: the only one.")
@click.option(
    "--subject",
    multiple=True,
    metavar="COLUMN|=TEXT",
    help="Who is charged: a column, or the same for all rows (=all). Repeat it for a path.",
)
@click.option("--time", metavar="COLUMN", help="When; default: a column with a usual name.")
@click.option(
    "--cost",
    "costs",
    multiple=True,
    metavar="NAME=COLUMN+...",
    help="What a row costs; default: 1 of every cost name of the plan. May be repeated.",
)
@click.option("--format", type=click.Choice(FORMATS), help="Default: seen from the content.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, metavar="N",
              help="How many subjects to list.")  # fmt: skip
@click.pass_obj
def replay(
    state: State,
    file: str,
    plans_from: str | None,
    plan_id: str | None,
    subject: tuple[str, ...],
    time: str | None,
    costs: tuple[str, ...],
    format: str | None,
    top: int,
) -> None:
    """Replay recorded traffic through the engine, on the traffic's own clock.

    FILE is an access log (common or combined format), CSV, JSON lines or a JSON array, gzipped or
    not; "-" reads standard input. Every row is one all-or-nothing charge at its own time.

    \b
      meterd replay access.log.gz
      meterd replay llm.csv --subject =all --cost credits=ContextTokens+GeneratedTokens
      meterd replay calls.jsonl --subject org --subject user --plans meterd.toml --plan pro

    Runs on a private server that is gone afterwards; with --url on that server, under a prefix of
    its own that is emptied afterwards.

    Without --plans a built-in plan is used and named: for requests 30 a minute (sliding), 100 a
    day (fixed) and a token bucket of 10 at 1 a second; for --cost sums of columns a pool of
    20,000,000 a day and a token bucket of 500,000 a minute.
    """
    if any(not name or name == "=" for name in subject):
        raise InputError("--subject: give a column, or =TEXT for the same subject in every row")
    if plan_id is not None and plans_from is None:
        raise InputError("--plan chooses among --plans: give both")
    selection = Selection(time, subject, tuple(Cost.parse(cost) for cost in costs))
    if plans_from is not None:
        choice = choose(load_plans(plans_from), plan_id)
    else:
        choice = built_in(selection)
    check_costs(choice, [cost.name for cost in selection.costs])
    selection = replace(selection, default_costs=choice.cost_names)
    with Source(file, format=format) as source:
        traffic = read_rows(source, selection)
        name = source.name if file == "-" else Path(file).name
        report = _run(state, traffic, choice)
        report.describe_input(traffic, source=name, format=source.format)
    state.emit(report.as_dict(top=top), lambda look: render(report, look, top=top))


def _run(state: State, traffic: Traffic, choice: Choice) -> Report:
    clock = ManualClock(traffic.rows[0].time_ms if traffic.rows else 0)
    with _meter(state, choice, clock) as meter, _progress() as on_progress:
        return run_replay(meter, traffic.rows, clock=clock, choice=choice, on_progress=on_progress)


@contextmanager
def _meter(state: State, choice: Choice, clock: ManualClock) -> Iterator[Meter]:
    """A meter that has seen nothing: on a private server, or under a prefix of its own at --url.

    Only an explicit --url counts: a server configured for production is not a place to replay on.
    """
    plans = list(choice.catalog)
    if "url" not in state.given:
        with Meter.embedded(plans=plans, clock=clock) as meter:
            yield meter
        return
    prefix = f"{state.given.get('prefix', 'meterd')}-replay-{secrets.token_hex(4)}"
    try:
        with state.meter(plans=plans, clock=clock, prefix=prefix, accept_eviction=True) as meter:
            yield meter
    finally:
        try:
            remove_prefix(state.given["url"], prefix)
        except (NotSent, MaybeSent):
            note(f"keys that start with {prefix}: could not be removed")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A counter on standard error while it runs, if that is a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return

    def show(done: int, total: int) -> None:
        sys.stderr.write(f"\rreplaying {done:,} of {total:,} rows")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r" + " " * 60 + "\r")
        sys.stderr.flush()


COMMANDS = (replay,)
