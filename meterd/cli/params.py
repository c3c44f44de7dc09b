"""Command-line words to the engine's arguments: subjects, costs, amounts, instants.

What is wrong here is a usage error (exit code 2) before any server is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from meterd.cli.base import bad_usage
from meterd.errors import PolicyError
from meterd.policy import MAX_AMOUNT
from meterd.timespec import duration_ms, seconds

Subject = str | tuple[str, ...]


class SubjectType(click.ParamType[Subject]):
    """`acme/team/ana`, or a JSON array for segments that contain a slash: `["acme", "a/b"]`."""

    name = "subject"

    def convert(self, value: Any, param: Any, ctx: Any) -> Subject:
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            try:
                segments = json.loads(value)
            except ValueError:
                return value
            if isinstance(segments, list) and all(isinstance(s, str) for s in segments):
                return tuple(segments)
        return str(value)


class InstantType(click.ParamType[str | datetime]):
    """A duration from now (`30d`) or an ISO 8601 time with a zone."""

    name = "instant"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | datetime:
        if isinstance(value, datetime):
            return value
        try:
            duration_ms(value, field="instant", allow_zero=True)
            return str(value)
        except PolicyError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            words = "now or period_end, nor " if isinstance(self, WhenType) else ""
            self.fail(f"{value!r} is neither {words}a duration such as 30d nor a time", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no zone; write {value}Z for UTC, or +01:00", param, ctx)
        return moment


class WhenType(InstantType):
    """`now`, `period_end`, or an instant."""

    name = "when"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | datetime:
        if value in ("now", "period_end"):
            return str(value)
        return super().convert(value, param, ctx)


class AmountType(click.ParamType[Any]):
    """A whole number, or `unlimited` where that is allowed (given on as None inside a tuple)."""

    name = "amount"

    def __init__(self, *, unlimited: bool = False) -> None:
        self.unlimited = unlimited

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if self.unlimited and value == "unlimited":
            return UNLIMITED
        try:
            return amount_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Unlimited:
    """`--limit unlimited`; None would mean that the option was not given."""


UNLIMITED = _Unlimited()
SUBJECT = SubjectType()
AMOUNT = AmountType()


def amount_of(text: str) -> int:
    """A whole number from 0 to 10**15; ValueError otherwise."""
    digits = text.replace("_", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 16):
        raise ValueError(f"{text!r} is not a whole number from 0 to {MAX_AMOUNT}")
    if int(digits) > MAX_AMOUNT:
        raise ValueError(f"{text} is more than {MAX_AMOUNT}")
    return int(digits)


def costs_of(words: Sequence[str], amount: int | None) -> dict[str, int]:
    """`tokens=5 image` (and `--amount` for a single bare name) as amounts by cost name."""
    costs: dict[str, int] = {}
    for word in words:
        name, given, text = word.partition("=")
        if not name:
            bad_usage(f"cost {word!r}: write NAME or NAME=AMOUNT")
        if name in costs:
            bad_usage(f"cost {name!r} is given twice")
        try:
            costs[name] = amount_of(text) if given else 1
        except ValueError as error:
            bad_usage(f"cost {word!r}: {error}")
    if amount is not None:
        if len(words) != 1 or "=" in words[0]:
            bad_usage("--amount goes with a single COST that has no amount of its own")
        costs = dict.fromkeys(costs, amount)
    return costs


def wait_of(text: str | None) -> float:
    """Seconds from `2`, `0.5` or a duration such as `500ms`."""
    if text is None:
        return 0
    try:
        return seconds(text, "--wait", allow_zero=True)
    except PolicyError:
        pass
    try:
        return seconds(float(text), "--wait", allow_zero=True)
    except (ValueError, PolicyError):
        bad_usage(f"--wait: {text!r} is neither seconds nor a duration such as 500ms")


def path_text(subject: Sequence[str] | str) -> str:
    """A subject as the command line takes it: joined by slashes, or a JSON array if it must be."""
    if isinstance(subject, str):
        return subject
    joined = "/".join(subject)
    plain = len(joined.split("/")) == len(subject) and not joined.startswith("[")
    return joined if plain else json.dumps(list(subject), ensure_ascii=False)
