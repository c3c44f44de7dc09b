"""`show`, `ls`, `override`, `adjust`, `forget`: one subject's record, looked at or corrected."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from meterd.cli.base import State, bad_usage, note, verb
from meterd.cli.params import (
    AMOUNT,
    SUBJECT,
    UNLIMITED,
    AmountType,
    InstantType,
    Subject,
    path_text,
)
from meterd.cli.view import operation_text, usage_text
from meterd.keys import segments_of

_MAYBE_UNLIMITED = AmountType(unlimited=True)


@verb()
@click.argument("subject", type=SUBJECT)
@click.option("--join", metavar="PLAN", help="Plan to show for a subject not seen yet.")
@click.option("--op", metavar="ID", help="What became of this operation, or of the hold.")
@click.pass_obj
def show(state: State, subject: Subject, join: str | None, op: str | None) -> None:
    """Show what a subject has used: a bar per limit, when it resets (local time), grants, holds."""
    if op is not None and join is not None:
        bad_usage("--op looks at what has happened: it goes without --join")
    with state.meter() as meter:
        if op is not None:
            found = meter.operation(subject, op)
            state.emit(found.as_dict(), lambda look: operation_text(found, look))
            return
        usage = meter.usage(subject, join=join)
    state.emit(usage.as_dict(), lambda look: usage_text(usage, look))


@verb()
@click.argument("under", required=False, type=SUBJECT, metavar="[SUBJECT]")
@click.option("-n", "--limit", "most", type=int, metavar="N", help="Stop after so many.")
@click.pass_obj
def ls(state: State, under: Subject | None, most: int | None) -> None:
    """List the subjects that have a record, or those at and below a SUBJECT."""
    above = () if under is None else segments_of(under)
    look, written = state.look(), 0
    with state.meter() as meter:
        for subject in meter.subjects(above[0] if above else None):
            if segments_of(subject)[: len(above)] != above:
                continue
            if most is not None and written >= most:
                break
            text = path_text(subject)
            if state.json:  # an array, written as it comes
                click.echo(("[\n" if not written else ",\n") + json.dumps(text), nl=False)
            else:
                click.echo(look.clean(text))
            written += 1
    if state.json:
        click.echo("\n]" if written else "[]")


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("name", metavar="LIMIT")
@click.option("--limit", type=_MAYBE_UNLIMITED, metavar="N|unlimited", help="Another limit.")
@click.option("--overage", type=_MAYBE_UNLIMITED, metavar="N|unlimited", help="Another overage.")
@click.option("--burst", type=AMOUNT, metavar="N", help="Another burst, of a token bucket.")
@click.option("--expires", type=InstantType(), metavar="INSTANT", help="When it ends by itself.")
@click.option("--clear", is_flag=True, help="End the override of this limit.")
@click.pass_obj
def override(
    state: State,
    subject: Subject,
    name: str,
    limit: Any,
    overage: Any,
    burst: int | None,
    expires: str | datetime | None,
    clear: bool,
) -> None:
    """Change a limit for one subject; replaces an earlier override of it."""
    given = {"limit": limit, "overage": overage, "burst": burst}
    fields = {
        key: None if value is UNLIMITED else value
        for key, value in given.items()
        if value is not None
    }
    if clear and (fields or expires is not None):
        bad_usage("--clear goes alone")
    if not clear and not fields:
        bad_usage("give --limit, --overage or --burst, or --clear")
    with state.meter() as meter:
        meter.override(subject, name, expires=expires, clear=clear, **fields)
    shown = ", ".join(f"{k} {'unlimited' if v is None else v}" for k, v in fields.items())
    data = {"subject": path_text(subject), "limit": name, "cleared": clear, "fields": fields}
    state.emit(data, f"{path_text(subject)}: {name}: {'override cleared' if clear else shown}")


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("name", metavar="LIMIT")
@click.option("--used", type=AMOUNT, required=True, metavar="N", help="What was used so far.")
@click.pass_obj
def adjust(state: State, subject: Subject, name: str, used: int) -> None:
    """Set what was used of a limit, for corrections and imports."""
    with state.meter() as meter:
        meter.adjust(subject, name, used=used)
    data = {"subject": path_text(subject), "limit": name, "used": used}
    state.emit(data, f"{path_text(subject)}: {name}: used {used:,}")


@verb()
@click.argument("subject", type=SUBJECT)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(state: State, subject: Subject, yes: bool) -> None:
    """Delete everything stored about a subject and all below it.

    Asks first on a terminal; elsewhere it needs --yes.
    """
    path = path_text(subject)
    if not yes:
        if not _on_terminal():
            bad_usage(f"forgetting {path} cannot be undone: add --yes")
        if not click.confirm(f"Forget {path} and everything below it?", err=True):
            note("nothing was deleted")
            click.get_current_context().exit(1)
    with state.meter() as meter:
        meter.forget(subject)
    state.emit({"subject": path, "forgotten": True}, f"{path}: forgotten")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


COMMANDS = (show, ls, override, adjust, forget)
