"""`export`: use, to whoever bills it; and what could not be delivered."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meterd.catalog_toml import load_export
from meterd.cli.base import ERROR, State, bad_usage, note, verb
from meterd.cli.params import path_text
from meterd.cli.receivers import ENDPOINT, FILE, SECRET, secret_of
from meterd.settings import settings_file
from meterd.term import Look

if TYPE_CHECKING:
    from meterd.export import Dead, Exporter, Report, Sink, Waiting


@verb()
@click.option(
    "--to", type=click.Choice(["stripe", "webhook", "jsonl"]), required=True, help="The receiver."
)
@click.option("--name", metavar="NAME", help="Of the sink; each name gets every entry.")
@click.option("--follow", is_flag=True, help="Go on until interrupted.")
@click.option("--interval", default="2s", metavar="DURATION", help="Between looks, following.")
@FILE
@ENDPOINT
@SECRET
@click.option(
    "--event-name", "names", multiple=True, metavar="POOL=NAME", help="A Stripe meter's event name."
)
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Calls at once.")
@click.option("--pending", is_flag=True, help="Show what is not delivered yet, and why.")
@click.option("--dead", is_flag=True, help="Show the dead letters.")
@click.option("--resend", multiple=True, metavar="ID|all", help="Send dead letters again.")
@click.option("--discard", multiple=True, metavar="ID|all", help="Give dead letters up.")
@click.option("--retire", is_flag=True, help="Keep nothing for this sink any more.")
@click.pass_obj
def export(
    state: State,
    to: str,
    name: str | None,
    follow: bool,
    interval: str,
    file: str | None,
    endpoint: str | None,
    secret_file: Path | None,
    names: tuple[str, ...],
    workers: int | None,
    pending: bool,
    dead: bool,
    resend: tuple[str, ...],
    discard: tuple[str, ...],
    retire: bool,
) -> None:
    """Deliver use to whoever bills it: everything at least once, under a lasting identifier.

    Exits with 1 if something could not be delivered, or was refused for good. What waits for a
    customer's stripe_customer is no failure; it is shown by --pending.
    """
    chosen = [bool(one) for one in (pending, dead, resend, discard, retire, follow)]
    if sum(chosen) > 1:
        bad_usage("--follow, --pending, --dead, --resend, --discard and --retire go alone")
    from meterd.export import Exporter, Sink

    sink: Sink
    if pending or dead or discard or retire:
        sink = Sink()
        sink.name = name or to
    else:
        sink = _sink(state, to, name, file, endpoint, secret_file, names, workers)
    with state.meter() as meter:
        exporter = Exporter(meter, sink, interval=interval)
        if pending:
            rows = exporter.pending()
            state.emit([row.as_dict() for row in rows], lambda look: _waiting_text(rows, look))
        elif dead:
            letters = exporter.dead()
            state.emit([one.as_dict() for one in letters], lambda look: _dead_text(letters, look))
        elif discard:
            gone = exporter.discard(_ids(discard))
            state.emit([one.as_dict() for one in gone], f"{len(gone)} discarded")
        elif retire:
            exporter.retire()
            state.emit({"sink": sink.name, "retired": True}, f"{sink.name}: retired")
        elif resend:
            _resend(state, exporter, _ids(resend))
        else:
            _run(state, exporter, follow, to == "jsonl" and file is None)


def _ids(words: Sequence[str]) -> list[str] | None:
    return None if "all" in words else list(words)


def _sink(
    state: State,
    to: str,
    name: str | None,
    file: str | None,
    endpoint: str | None,
    secret_file: Path | None,
    names: tuple[str, ...],
    workers: int | None,
) -> Sink:
    from meterd.export import JsonLines, StripeMeter, Webhook

    if file and to != "jsonl":
        bad_usage("--file goes with --to jsonl")
    if names and to != "stripe":
        bad_usage("--event-name goes with --to stripe")
    if to == "jsonl":
        if endpoint or secret_file or workers:
            bad_usage("--endpoint, --secret-file and --workers do not go with --to jsonl")
        return JsonLines(file, name=name or to)
    more: dict[str, Any] = {} if workers is None else {"workers": workers}
    secret = secret_of(to, secret_file)
    if to == "webhook":
        if not endpoint:
            bad_usage("--to webhook needs --endpoint URL")
        return Webhook(endpoint, secret, name=name or to, **more)
    path = settings_file(state.config)
    settings = load_export(path) if path else {}
    given = dict(settings.pop("event_names", {}))
    for pair in names:
        pool, found, event_name = pair.partition("=")
        if not found or not pool or not event_name:
            bad_usage(f"--event-name {pair!r}: write POOL=NAME")
        given[pool] = event_name
    return StripeMeter(
        secret, event_names=given, api_base=endpoint, name=name or to, **settings, **more
    )


def _run(state: State, exporter: Exporter, follow: bool, lines_on_stdout: bool) -> None:
    with _log_to_stderr(), _stopping(exporter.stop):
        report = exporter.run(follow=follow)
    if lines_on_stdout:
        note(_report_text(report))
    else:
        state.emit(report.as_dict(), _report_text(report))
    for reason, count in report.reasons.items():
        note(f"{count:,} not delivered: {reason}")
    if report.dead or report.retrying:
        click.get_current_context().exit(ERROR)


def _resend(state: State, exporter: Exporter, ids: list[str] | None) -> None:
    ended = exporter.resend(ids)
    rows = [
        {"id": one.id, "delivered": outcome.kind == "delivered", "reason": outcome.reason}
        for one, outcome in ended
    ]
    lines = [f"{row['id']}: {'delivered' if row['delivered'] else row['reason']}" for row in rows]
    state.emit(rows, "\n".join(lines) or "no dead letters")
    if not all(row["delivered"] for row in rows):
        click.get_current_context().exit(ERROR)


def _report_text(report: Report) -> str:
    parts = [f"{report.delivered:,} delivered"]
    for count, words in (
        (report.dead, "dead (see --dead)"),
        (report.retrying, "to be tried again (see --pending)"),
        (report.waiting, "waiting (see --pending)"),
        (report.busy, "partitions left to another exporter"),
    ):
        if count:
            parts.append(f"{count:,} {words}")
    return ", ".join(parts)


def _waiting_text(rows: Sequence[Waiting], look: Look) -> str:
    lines = []
    for row in rows:
        entry = row.entry
        tried = f" after {row.attempts} attempts" if row.attempts else ""
        lines.append(
            f"{entry.id}  {look.clean(path_text(entry.subject))}  {entry.pool} {entry.delta:+,}"
            f"  {look.clean(row.reason or 'not tried yet')}{tried}"
        )
    return "\n".join(lines) or "nothing is waiting"


def _dead_text(letters: Sequence[Dead], look: Look) -> str:
    lines = []
    for letter in letters:
        entry = letter.entry
        what = "?"
        if entry is not None:
            what = f"{look.clean(path_text(entry.subject))}  {entry.pool} {entry.delta:+,}"
        lines.append(f"{letter.id}  {what}  {look.clean(letter.reason)}")
    return "\n".join(lines) or "no dead letters"


# Being stopped -----------------------------------------------------------------------------------


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the work in order, a second SIGINT at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        note("stopping; what is under way is finished first")
        stop()

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """What the exporter has to say while it runs."""
    log, handler = logging.getLogger("meterd"), _ToStderr(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


COMMANDS = (export,)
