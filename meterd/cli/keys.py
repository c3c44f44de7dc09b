"""`meterd keys ...`: API keys made, verified, listed, changed, rotated and revoked.

A secret is printed once, where it was made. One to be verified comes from a file, METERD_SECRET or
standard input, so that it stands in no history and in no list of processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from meterd.cli.base import REFUSED, MeterdCommand, MeterdGroup, State, bad_usage, fail
from meterd.cli.catalog import only_plan
from meterd.cli.params import AMOUNT, SUBJECT, InstantType, Subject, costs_of, path_text
from meterd.cli.view import decision_text, key_text, keys_text
from meterd.verification import ApiKey

_LIMITS = click.option(
    "--limits",
    metavar="FILE|MODULE:PLANS",
    help="The limits of the only plan in there become the key's own.",
)
_META = click.option("--meta", metavar="JSON", help="A JSON object that is kept with the key.")


class _KeysGroup(MeterdGroup):
    """The group's own options are those of every command."""


@click.group(cls=_KeysGroup)
def keys() -> None:
    """API keys: secrets of customers, with limits of their own beside their owner's."""


def _verb(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    return keys.command(name, cls=MeterdCommand)


@_verb("create")
@click.argument("owner", type=SUBJECT)
@click.option("--name", metavar="TEXT", help="For people.")
@_LIMITS
@click.option("--join", metavar="PLAN", help="Plan that the owner joins if it holds none.")
@click.option("--expires", type=InstantType(), metavar="INSTANT", help="Refused from then on.")
@_META
@click.option(
    "--secret-prefix", metavar="TEXT", default="mk", show_default=True, help="Its first letters."
)
@click.option("--sha256", metavar="HEX", help="Import an existing secret by its digest.")
@click.pass_obj
def create(
    state: State,
    /,
    owner: Subject,
    limits: str | None,
    meta: str | None,
    secret_prefix: str,
    **more: Any,
) -> None:
    """Make a key below an owner and print its secret, this once."""
    own = only_plan(limits) if limits else ()
    about = {"meta": _object(meta), "prefix": secret_prefix, **more}
    with state.meter() as meter:
        key = meter.keys.create(owner, limits=own, **about)
    _show_secret(state, key)


@_verb("rotate")
@click.argument("key_id", metavar="ID")
@click.option("--overlap", metavar="DURATION", default="0s", show_default=True)
@click.pass_obj
def rotate(state: State, key_id: str, overlap: str) -> None:
    """Give a key another secret and print it, this once.

    The old one stays good for --overlap.
    """
    with state.meter() as meter:
        key = meter.keys.rotate(key_id, overlap=overlap)
    _show_secret(state, key)


@_verb("verify")
@click.argument("costs", nargs=-1, metavar="[COST[=AMOUNT]]...")
@click.option("--amount", type=AMOUNT, metavar="N", help="Of a single COST; default 1.")
@click.option("--file", "source", metavar="FILE", help="Read the secret from there; -: stdin.")
@click.option("--no-auto", is_flag=True, help="Charge nothing but the COSTs.")
@click.option("--op", metavar="ID", help="Operation id: repeating it charges nothing twice.")
@click.pass_obj
def verify(
    state: State,
    costs: tuple[str, ...],
    amount: int | None,
    source: str | None,
    no_auto: bool,
    op: str | None,
) -> None:
    """Verify a secret and charge its key, from --file, METERD_SECRET or standard input.

    Exit code 0 if the key is good and everything was charged, 3 if not.
    """
    wanted = costs_of(costs, amount) if costs or amount is not None else None
    secret = _secret(source)
    with state.meter() as meter:
        found = meter.keys.verify(secret, wanted, auto=not no_auto, op=op)
    lines = [f"{found.code}  {path_text(found.subject)}" if found.subject else str(found.code)]
    state.emit(
        found.as_dict(),
        lambda look: "\n".join(
            [look.clean(lines[0])]
            + ([decision_text(found.decision, look)] if found.decision is not None else [])
        ),
    )
    if not found.valid:
        click.get_current_context().exit(REFUSED)


@_verb("get")
@click.argument("key_id", metavar="ID")
@click.pass_obj
def get(state: State, key_id: str) -> None:
    """Show a key; its limits and use are what `meterd show SUBJECT` shows."""
    with state.meter() as meter:
        key = meter.keys.get(key_id)
    if key is None:
        click.get_current_context().exit(fail("there is no such key", 1))
    state.emit(key.as_dict(), lambda look: key_text(key, look, datetime.now(UTC)))


@_verb("list")
@click.argument("owner", type=SUBJECT)
@click.pass_obj
def listing(state: State, owner: Subject) -> None:
    """List the keys of an owner."""
    with state.meter() as meter:
        found = meter.keys.list(owner)
    data = [key.as_dict() for key in found]
    state.emit(data, lambda look: keys_text(found, look, datetime.now(UTC)))


@_verb("update")
@click.argument("key_id", metavar="ID")
@click.option("--enable/--disable", "enabled", default=None, help="Whether it may be used.")
@click.option("--name", metavar="TEXT", help='For people; "" for none.')
@click.option("--expires", metavar="INSTANT", help='Refused from then on; "never".')
@_LIMITS
@click.option("--no-limits", is_flag=True, help="No limits of its own any more.")
@_META
@click.pass_obj
def update(
    state: State,
    key_id: str,
    enabled: bool | None,
    name: str | None,
    expires: str | None,
    limits: str | None,
    no_limits: bool,
    meta: str | None,
) -> None:
    """Change what is given, and nothing else, of a key."""
    changes: dict[str, Any] = {}
    if enabled is not None:
        changes["enabled"] = enabled
    if name is not None:
        changes["name"] = name or None
    if expires is not None:
        kind = InstantType()
        changes["expires"] = None if expires == "never" else kind.convert(expires, None, None)
    if limits and no_limits:
        bad_usage("--limits and --no-limits exclude each other")
    if limits or no_limits:
        changes["limits"] = only_plan(limits) if limits else ()
    if meta is not None:
        changes["meta"] = _object(meta)
    if not changes:
        bad_usage("say what to change: --disable, --name, --expires, --limits or --meta")
    with state.meter() as meter:
        key = meter.keys.update(key_id, **changes)
    state.emit(key.as_dict(), lambda look: key_text(key, look, datetime.now(UTC)))


@_verb("revoke")
@click.argument("key_id", metavar="ID")
@click.pass_obj
def revoke(state: State, key_id: str) -> None:
    """End a key for good. Its secret is refused from now on."""
    with state.meter() as meter:
        found = meter.keys.revoke(key_id)
    if not found:
        click.get_current_context().exit(fail("there is no such key", 1))
    state.emit({"id": key_id, "revoked": True}, f"{key_id}: revoked")


def _show_secret(state: State, key: ApiKey) -> None:
    data = {**key.as_dict(), "secret": key.secret}
    text = f"{key.id}  {path_text(key.subject)}"
    if key.secret is not None:
        text += f"\nsecret, shown this once:\n{key.secret}"
    state.emit(data, lambda look: "\n".join([look.clean(line) for line in text.split("\n")]))


def _secret(source: str | None) -> str:
    """The secret to verify; a terminal is asked without echo."""
    if source is not None and source != "-":
        text = Path(source).read_text(encoding="utf-8")
    elif source is None and os.environ.get("METERD_SECRET"):
        text = os.environ["METERD_SECRET"]
    elif sys.stdin.isatty():
        text = str(click.prompt("Secret", hide_input=True, err=True))
    else:
        text = sys.stdin.read()
    text = text.rstrip("\r\n")
    if not text:
        bad_usage("no secret: give --file FILE, METERD_SECRET, or write it to standard input")
    return text


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        bad_usage('--meta: write a JSON object, such as {"plan": "beta"}')
    return found


COMMANDS = (keys,)
