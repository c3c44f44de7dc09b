"""`check`, `consume`, `report`, `refund`: the verbs that ask about use or record it."""

from __future__ import annotations

from collections.abc import Callable

import click

from meterd.cli.base import REFUSED, State, bad_usage, verb
from meterd.cli.params import AMOUNT, SUBJECT, Subject, costs_of, wait_of
from meterd.cli.view import decision_text
from meterd.result import Decision

_Command = Callable[..., None]


def _costs(command: _Command) -> _Command:
    """SUBJECT COST[=AMOUNT]... and --amount."""
    for add in (
        click.option("--amount", type=AMOUNT, metavar="N", help="Of a single COST; default 1."),
        click.argument("costs", nargs=-1, required=True, metavar="COST[=AMOUNT]..."),
        click.argument("subject", type=SUBJECT),
    ):
        command = add(command)
    return command


_join = click.option("--join", metavar="PLAN", help="Plan that a subject joins when first seen.")
_op = click.option("--op", metavar="ID", help="Operation id: repeating it charges nothing twice.")


def _answer(state: State, decision: Decision) -> None:
    state.emit(decision.as_dict(), lambda look: decision_text(decision, look))
    if not decision.allowed:
        click.get_current_context().exit(REFUSED)


@verb()
@_costs
@_join
@click.pass_obj
def check(
    state: State, subject: Subject, costs: tuple[str, ...], amount: int | None, join: str | None
) -> None:
    """What `consume` would answer now; changes nothing.

    Exit code 0 if it fits, 3 if it is refused.
    """
    wanted = costs_of(costs, amount)
    with state.meter() as meter:
        _answer(state, meter.check(subject, wanted, join=join))


@verb()
@_costs
@_join
@_op
@click.option("--wait", metavar="SECONDS", help="Try again as soon as it fits, up to this long.")
@click.pass_obj
def consume(
    state: State,
    subject: Subject,
    costs: tuple[str, ...],
    amount: int | None,
    join: str | None,
    op: str | None,
    wait: str | None,
) -> None:
    """Charge all the costs, or nothing at all.

    Exit code 0 if charged, 3 if refused.
    """
    wanted, patience = costs_of(costs, amount), wait_of(wait)
    with state.meter() as meter:
        _answer(state, meter.consume(subject, wanted, join=join, op=op, wait=patience))


@verb()
@_costs
@_join
@_op
@click.pass_obj
def report(
    state: State,
    subject: Subject,
    costs: tuple[str, ...],
    amount: int | None,
    join: str | None,
    op: str | None,
) -> None:
    """Record use that has already happened, even beyond the limits."""
    wanted = costs_of(costs, amount)
    with state.meter() as meter:
        _answer(state, meter.report(subject, wanted, join=join, op=op))


@verb()
@click.argument("subject", type=SUBJECT)
@click.argument("costs", nargs=-1, metavar="[COST[=AMOUNT]...]")
@click.option("--amount", type=AMOUNT, metavar="N", help="Of a single COST; default 1.")
@click.option("--of", metavar="ID", help="Give this whole operation back, once.")
@_op
@click.pass_obj
def refund(
    state: State,
    subject: Subject,
    costs: tuple[str, ...],
    amount: int | None,
    of: str | None,
    op: str | None,
) -> None:
    """Give back what was used in the running period, never below zero.

    With --of, a whole operation or committed hold, to where it came from.
    """
    if of is not None and (costs or amount is not None):
        bad_usage("--of gives a whole operation back: it goes without COST and --amount")
    if of is None and not costs:
        bad_usage("give COST[=AMOUNT]..., or --of and an operation id")
    with state.meter() as meter:
        if of is not None:
            _answer(state, meter.refund(subject, of=of, op=op))
        else:
            _answer(state, meter.refund(subject, costs_of(costs, amount), op=op))


COMMANDS = (check, consume, report, refund)
