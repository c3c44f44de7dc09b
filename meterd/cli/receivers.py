"""What `events` and `export` share: where to, and the secrets for it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meterd.cli.base import bad_usage

SECRET_VARIABLES = {"stripe": "STRIPE_API_KEY", "webhook": "METERD_WEBHOOK_SECRET"}

ENDPOINT = click.option("--endpoint", metavar="URL", help="Where to; --url is the store's.")
SECRET = click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Holds the key or secret; else STRIPE_API_KEY or METERD_WEBHOOK_SECRET.",
)
FILE = click.option("--file", metavar="FILE", help="JSON lines go to its end, not to stdout.")


def secret_of(kind: str, file: Path | None) -> str:
    """A secret, from a file or the environment; never from the command line."""
    variable = SECRET_VARIABLES[kind]
    found = file.read_text(encoding="utf-8").strip() if file else os.environ.get(variable, "")
    if not found:
        bad_usage(f"no secret: set {variable}, or name a file with --secret-file")
    return found
