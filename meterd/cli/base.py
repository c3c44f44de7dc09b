"""What every command shares: global options, settings, one-line errors, exit codes, output.

Exit codes: 0 allowed or done, 1 error, 2 usage, 3 refused, 4 the server could not be reached or
its answer was lost. Data goes to standard output, all else to standard error. Errors are one line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import click

from meterd.errors import MeterdError, OutcomeUnknown, Refused, Unavailable
from meterd.replay.source import InputError
from meterd.settings import read_settings
from meterd.term import Look
from meterd.transport.url import redact

if TYPE_CHECKING:
    from meterd.client import Meter

ERROR, USAGE, REFUSED, UNREACHABLE = 1, 2, 3, 4


@dataclass
class State:
    """The global options as given, before or after the verb."""

    given: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    json: bool = False

    def settings(self) -> dict[str, Any]:
        """Keyword arguments for `Meter`: options, then METERD_* variables, then the file."""
        return read_settings(self.given, config=self.config)

    def meter(self, **more: Any) -> Meter:
        """A meter with these settings; use it in a `with` block."""
        from meterd.client import Meter  # commands that need no server start faster without it

        return Meter(**{**self.settings(), **more})

    def look(self) -> Look:
        return Look.of()

    def emit(self, data: Any, text: str | Callable[[Look], str]) -> None:
        """Print `data` as JSON under --json, else `text`."""
        if self.json:
            click.echo(json.dumps(data, indent=2))
            return
        look = self.look()
        # Look decides about colour, so click must not strip what it let through.
        click.echo(text if isinstance(text, str) else text(look), color=look.color)


def note(message: str) -> None:
    """A line for people, on standard error."""
    click.echo(message, err=True)


def fail(message: str, code: int) -> int:
    """Print a one-line error; returns the exit code."""
    message = "; ".join(line.strip() for line in message.splitlines() if line.strip())
    message = " ".join(redact(word) if "://" in word else word for word in message.split(" "))
    word = "error:"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        word = click.style(word, fg="red", bold=True)
    click.echo(f"{word} {message}", err=True)
    return code


def exit_code_of(error: Exception) -> int:
    """The exit code that stands for this error."""
    if isinstance(error, click.UsageError | InputError):
        return USAGE
    if isinstance(error, Refused):
        return REFUSED
    if isinstance(error, Unavailable | OutcomeUnknown):
        return UNREACHABLE
    return ERROR


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a global option wherever it stood; the one after the verb wins."""
    state = context.ensure_object(State)
    if value is None or value is False:
        return
    if parameter.name in ("json", "config"):
        setattr(state, parameter.name, value)
    else:
        state.given[str(parameter.name)] = value


def _global_options() -> list[click.Parameter]:
    def option(*names: str, **how: Any) -> click.Parameter:
        return click.Option(names, expose_value=False, callback=_remember, **how)

    return [
        option("--url", metavar="URL", help="The server; also METERD_URL or meterd.toml."),
        option("--prefix", metavar="TEXT", help="What every key starts with; also METERD_PREFIX."),
        option("--timeout", type=float, metavar="SECONDS", help="How long one call may take."),
        option("--config", metavar="FILE", help="Settings file; default: the nearest meterd.toml."),
        option("--json", is_flag=True, help="Print data as JSON."),
    ]


class MeterdCommand(click.Command):
    """A command that also takes the global options."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params += _global_options()


def verb(name: str | None = None, **more: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` with the global options."""
    return click.command(name, cls=MeterdCommand, **more)


class MeterdGroup(click.Group):
    """A click group that ends every failure with one line and the right exit code.

    METERD_DEBUG=1 shows the traceback instead.
    """

    command_class = MeterdCommand

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params += _global_options()

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> Any:
            extra["windows_expand_args"] = windows_expand_args
            return click.Group.main(
                self, args, prog_name, complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode or os.environ.get("METERD_DEBUG"):
            sys.exit(run())
        sys.exit(_guarded(run))


def _guarded(run: Callable[[], Any]) -> int:
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return fail(error.format_message().rstrip(".") + hint, USAGE)
    except click.Abort:
        return fail("interrupted", 130)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except MeterdError as error:
        return fail(str(error) or type(error).__name__, exit_code_of(error))
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}", ERROR)
    except Exception as error:  # noqa: BLE001  # people get a line, not a traceback
        name = type(error).__name__
        return fail(f"unexpected {name}: {error} (METERD_DEBUG=1 shows where)", ERROR)


def bad_usage(message: str) -> NoReturn:
    """A mistake on the command line: exit code 2, with the command's name."""
    raise click.UsageError(message, click.get_current_context(silent=True))
