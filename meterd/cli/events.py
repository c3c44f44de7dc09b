"""`events`: what happened to limits, shown or passed on."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meterd.cli.base import ERROR, State, bad_usage, note, verb
from meterd.cli.params import path_text
from meterd.cli.receivers import ENDPOINT, FILE, SECRET, secret_of
from meterd.errors import Unavailable
from meterd.event import TYPES, Event
from meterd.term import Look

if TYPE_CHECKING:
    from meterd.export import Webhook

_ATTEMPTS = 5  # of a webhook, by a command that does not follow


@verb()
@click.argument("group", default="cli")
@click.option("--follow", is_flag=True, help="Wait for more.")
@click.option("--types", metavar="TYPE,...", help=f"Only these: {', '.join(TYPES)}.")
@click.option("--to", type=click.Choice(["webhook", "jsonl"]), help="Pass them on.")
@ENDPOINT
@SECRET
@FILE
@click.pass_obj
def events(
    state: State,
    group: str,
    follow: bool,
    types: str | None,
    to: str | None,
    endpoint: str | None,
    secret_file: Path | None,
    file: str | None,
) -> None:
    """Show what happened to limits, or pass it on; each event once for a GROUP.

    An event is acknowledged once it is printed, written or taken. One that a webhook refuses for
    good is reported and passed over.
    """
    wanted = None if types is None else [one.strip() for one in types.split(",")]
    if wanted is not None and (unknown := [one for one in wanted if one not in TYPES]):
        bad_usage(f"--types: {unknown[0]!r} is none of {', '.join(TYPES)}")
    if to != "webhook" and (endpoint or secret_file):
        bad_usage("--endpoint and --secret-file go with --to webhook")
    if to != "jsonl" and file:
        bad_usage("--file goes with --to jsonl")
    hand_over, close = _receiver(state, to, endpoint, secret_file, file, follow)
    refused = False
    try:
        with state.meter() as meter, _quietly_stopped():
            for event in _events(meter, group, wanted, follow):
                refused = not hand_over(event) or refused
    except _Stopped:
        pass
    finally:
        close()
    if refused:
        click.get_current_context().exit(ERROR)


def _events(meter: Any, group: str, types: list[str] | None, follow: bool) -> Iterator[Event]:
    """Those of the meter; a server that is away for a while does not end a following command."""
    failures = 0
    while True:
        try:
            for event in meter.events(group, types, follow):
                failures = 0
                yield event
            return
        except Unavailable as error:
            if not follow:
                raise
            if not failures:
                note(f"waiting for the server: {error}")
            failures += 1
            time.sleep(min(0.2 * 2 ** min(failures, 8), 10))


def _receiver(
    state: State,
    to: str | None,
    endpoint: str | None,
    secret_file: Path | None,
    file: str | None,
    follow: bool,
) -> tuple[Callable[[Event], bool], Callable[[], None]]:
    """What takes an event (False: it was refused), and what is done in the end."""
    if to == "webhook":
        from meterd.export import Webhook

        if not endpoint:
            bad_usage("--to webhook needs --endpoint URL")
        hook = Webhook(endpoint, secret_of("webhook", secret_file))
        return lambda event: _post(hook, event, follow), hook.close
    if to == "jsonl" or state.json:
        from meterd.export import JsonLines

        lines = JsonLines(file)

        def write(event: Event) -> bool:
            lines.write_lines([json.dumps(event.as_dict(), ensure_ascii=False)])
            return True

        return write, lines.close
    look = state.look()

    def show(event: Event) -> bool:
        click.echo(_event_line(event, look), color=look.color)
        return True

    return show, lambda: None


def _post(hook: Webhook, event: Event, follow: bool) -> bool:
    from meterd.export.sink import backoff

    attempts = 0
    while True:
        outcome = hook.send_event(event)
        if outcome.kind == "delivered":
            return True
        if outcome.kind == "dead":
            note(f"refused: {event.id}: {outcome.reason}")
            return False
        attempts += 1
        if attempts >= _ATTEMPTS and not follow:
            raise click.ClickException(f"{event.id} stays with the group: {outcome.reason}")
        if attempts == 1:
            note(f"trying again: {event.id}: {outcome.reason}")
        time.sleep(backoff(attempts, outcome.after))


def _event_line(event: Event, look: Look) -> str:
    when = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    colours = {"exhausted": "red", "overage": "red", "warn": "yellow"}
    kind = f"{event.type:<9}"
    if event.type in colours:
        kind = look.style(kind, fg=colours[event.type])
    limit = "unlimited" if event.limit is None else f"{event.limit:,}"
    crossed = f" (past {event.threshold})" if event.threshold is not None else ""
    subject = look.clean(path_text(event.subject))
    return f"{when}  {kind}  {subject}  {event.name} {event.used:,} of {limit}{crossed}"


class _Stopped(BaseException):
    """SIGTERM, between two events."""


@contextmanager
def _quietly_stopped() -> Iterator[None]:
    """SIGTERM ends what waits for events, and that is no error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


COMMANDS = (events,)
