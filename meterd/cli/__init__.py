"""The `meterd` command: one command per verb.

Verbs live in one file per group; `base` holds what they share.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from meterd.cli import (
    bench,
    catalog,
    charge,
    diagnose,
    events,
    export,
    grants,
    keys,
    records,
    traffic,
)
from meterd.cli.base import MeterdGroup, State

__all__ = ["main"]


def _version() -> str:
    try:
        return version("meterd")
    except PackageNotFoundError:
        return "unknown"


@click.group(cls=MeterdGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="meterd")
@click.pass_context
def main(context: click.Context) -> None:
    """Rate limits and credits, counted in Redis.

    Try `meterd demo`. The options below may also stand after the command.

    Exit codes: 0 allowed or done, 1 error, 2 usage, 3 refused, 4 server unreachable.
    """
    context.ensure_object(State)


for _module in (
    *(diagnose, traffic, catalog, charge, grants, records, keys, events, export, bench),
):
    for _command in _module.COMMANDS:
        main.add_command(_command)
