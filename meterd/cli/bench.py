"""`bench`: the benchmark harness, which has options of its own.

A checkout keeps it in `bench/`, next to this package; a wheel carries it as `meterd._bench`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

import meterd
from meterd.cli.base import State

CHECKOUT = Path(meterd.__file__).resolve().parents[1]


@click.command(
    "bench",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Measure meterd beside the floor and beside other libraries.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]")
@click.pass_obj
def bench(state: State, arguments: tuple[str, ...]) -> int:
    """Measure meterd beside the floor and beside other libraries; see `meterd bench --help`."""
    given = [*arguments, *(["--json"] if state.json else [])]
    code = harness().main(given, prog_name="meterd bench", standalone_mode=False)
    return code if isinstance(code, int) else 0


def harness() -> click.Command:
    """The command of the checkout that this package lies in, else the one that was installed."""
    package = "meterd._bench"
    if (CHECKOUT / "bench" / "core" / "command.py").is_file():
        package = "bench"
        if str(CHECKOUT) not in sys.path:
            sys.path.insert(0, str(CHECKOUT))
    try:
        command: click.Command = import_module(f"{package}.core.command").main
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(package):
            raise
        raise click.ClickException(
            "this installation carries no benchmarks; run `make bench` in a checkout"
        ) from error
    return command


COMMANDS = [bench]
