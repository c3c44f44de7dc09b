"""`grant`, `void`: credits that a pool gets beside its own allowance."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from meterd.cli.base import State, bad_usage, verb
from meterd.cli.params import AMOUNT, SUBJECT, InstantType, Subject, path_text
from meterd.cli.view import grant_text


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("pool")
@click.argument("amount", type=AMOUNT)
@click.option("--expires", type=InstantType(), metavar="INSTANT", help="When what is left is lost.")
@click.option("--starts", type=InstantType(), metavar="INSTANT", help="From when on it is there.")
@click.option(
    "--priority",
    type=click.IntRange(0, 100),
    default=50,
    metavar="N",
    help="Low burns first; the period's allowance has 50, the default.",
)
@click.option("--source", default="", metavar="TEXT", help="Where it comes from: kept with it.")
@click.option("--op", metavar="ID", help="Its id: repeating it grants nothing twice.")
@click.pass_obj
def grant(
    state: State,
    subject: Subject,
    pool: str,
    amount: int,
    expires: str | datetime | None,
    starts: str | datetime | None,
    priority: int,
    source: str,
    op: str | None,
) -> None:
    """Give a pool credits of their own: a top-up, a bonus, what was paid in advance."""
    if amount < 1:
        bad_usage("an AMOUNT of 0 grants nothing")
    with state.meter() as meter:
        given = meter.grant(
            subject,
            pool,
            amount,
            expires=expires,
            starts=starts,
            priority=priority,
            source=source,
            op=op,
        )
    now = datetime.now(UTC)
    data = {"subject": path_text(subject), **given.as_dict()}
    state.emit(data, lambda look: look.clean(f"{path_text(subject)}: {grant_text(given, now)}"))


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("grant_id")
@click.pass_obj
def void(state: State, subject: Subject, grant_id: str) -> None:
    """Take back what a grant has left; what open holds have of it stays with them."""
    with state.meter() as meter:
        taken = meter.void(subject, grant_id)
    data = {"subject": path_text(subject), "id": grant_id, "taken": taken}
    said = f"{path_text(subject)}: grant {grant_id}: {taken:,} taken back"
    state.emit(data, lambda look: look.clean(said))


COMMANDS = (grant, void)
