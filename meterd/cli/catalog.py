"""`apply`, `plans`, `subscribe`, `unsubscribe`: the catalog and who holds what in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from meterd.catalog import plan_to_dict
from meterd.catalog_toml import load_plans
from meterd.cli.base import State, bad_usage, verb
from meterd.cli.params import SUBJECT, InstantType, Subject, WhenType, path_text
from meterd.cli.view import diff_text, plans_text


@verb()
@click.argument("source", required=False, metavar="FILE|MODULE:PLANS")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--remove", multiple=True, metavar="ID", help="Retire a plan; may be repeated.")
@click.pass_obj
def apply(state: State, source: str | None, dry_run: bool, remove: tuple[str, ...]) -> None:
    """Put plans into the catalog and print the difference.

    From a TOML file, or from a list of plans in a Python module. Plans that are not named stay as
    they are. Every running process follows within seconds.
    """
    if source is None and not remove:
        bad_usage("give a FILE, a MODULE:PLANS or --remove ID")
    plans = load_plans(source) if source is not None else []
    with state.meter() as meter:
        diff = meter.apply(plans, dry_run=dry_run, remove=remove)
    data = {**diff.as_dict(), "applied": bool(diff) and not dry_run}
    state.emit(data, lambda look: diff_text(diff, look, dry_run=dry_run))


@verb()
@click.pass_obj
def plans(state: State) -> None:
    """List the plans of the stored catalog."""
    with state.meter() as meter:
        live, retired = list(meter.plans().values()), sorted(meter.plans(retired=True))
        revision = meter.revision
    data = {
        "revision": revision,
        "plans": [plan_to_dict(plan) for plan in live],
        "retired": retired,
    }
    state.emit(data, lambda look: plans_text(revision, live, retired, look))


_when = click.option(
    "--when",
    type=WhenType(),
    default="now",
    show_default=True,
    metavar="now|period_end|INSTANT",
    help="When it counts from.",
)


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("plan", required=False)
@click.option(
    "--limits",
    metavar="FILE|MODULE:PLANS",
    help="The limits of the only plan in there become a private plan of this subject.",
)
@click.option(
    "--change",
    type=click.Choice(["keep", "reset", "prorate"]),
    default="keep",
    show_default=True,
    help="The limits in full, a new period, or limits in proportion to the time left.",
)
@_when
@click.option("--anchor", type=InstantType(), metavar="INSTANT", help="Where periods begin.")
@click.option("--op", metavar="ID", help="Operation id, for a safe repeat.")
@click.pass_obj
def subscribe(
    state: State,
    subject: Subject,
    plan: str | None,
    limits: str | None,
    change: str,
    when: str | datetime,
    anchor: str | datetime | None,
    op: str | None,
) -> None:
    """Give a subject a plan, in place of the one it has of the same group."""
    if plan is None and limits is None:
        bad_usage("give a PLAN or --limits")
    arguments: dict[str, Any] = {"change": change, "when": when, "anchor": anchor, "op": op}
    if limits is not None:
        arguments["limits"] = only_plan(limits)
    with state.meter() as meter:
        meter.subscribe(subject, plan, **arguments)
    _done(state, subject, plan, "subscribed to", plan or "its own limits", when)


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("plan")
@_when
@click.pass_obj
def unsubscribe(state: State, subject: Subject, plan: str, when: str | datetime) -> None:
    """Take a plan away; the group's default plan, if there is one, takes its place."""
    with state.meter() as meter:
        meter.unsubscribe(subject, plan, when=when)
    _done(state, subject, plan, "unsubscribed from", plan, when)


def only_plan(source: str) -> tuple[Any, ...]:
    """The limits of a file or module that holds a single plan."""
    found = load_plans(source)
    if len(found) != 1:
        bad_usage(f"--limits: {source} has {len(found)} plans; a private plan is a single one")
    return tuple(found[0].includes)


def _done(
    state: State,
    subject: Subject,
    plan: str | None,
    what: str,
    title: str,
    when: str | datetime,
) -> None:
    said = when.isoformat() if isinstance(when, datetime) else when
    data = {"subject": path_text(subject), "plan": plan, "when": said}
    later = {"now": "", "period_end": " (at the end of the period)"}.get(said, f" ({said})")
    state.emit(data, f"{path_text(subject)}: {what} {title}{later}")


COMMANDS = (apply, plans, subscribe, unsubscribe)
