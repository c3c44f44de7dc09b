"""How text is put on a terminal: width, colour, block characters, numbers, tables.

`Look` holds what the output can show and is decided once, so that everything that renders is a pure
function of its data and a `Look`. Text that came from outside goes through `clean` first.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import click

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Look:
    """What the output can show: columns, characters beyond ASCII, colours."""

    width: int = 80
    unicode: bool = True
    color: bool = False

    @classmethod
    def of(cls, stream: TextIO | None = None) -> Look:
        """The look of `stream` (standard output): its encoding, its terminal, NO_COLOR."""
        stream = stream or sys.stdout
        try:
            "█░·→".encode(stream.encoding or "ascii")
            unicode = True
        except (UnicodeEncodeError, LookupError, AttributeError):
            unicode = False
        color = stream.isatty() and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((100, 24)).columns
        return cls(max(width, 40), unicode, color and os.environ.get("TERM") != "dumb")

    def style(self, text: str, **how: Any) -> str:
        """`click.style`, or the bare text where colours are off."""
        return click.style(text, **how) if self.color and text else text

    def bold(self, text: str) -> str:
        return self.style(text, bold=True)

    def dim(self, text: str) -> str:
        return self.style(text, dim=True)

    @property
    def dot(self) -> str:
        return " · " if self.unicode else " - "

    @property
    def arrow(self) -> str:
        return "→" if self.unicode else "->"

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "..."

    def bar(self, fraction: float, width: int) -> str:
        """`fraction` of `width` columns filled, the rest lightly shaded; clamped to 0 … 1."""
        fraction = min(max(fraction, 0.0), 1.0)
        if not self.unicode:
            full = round(fraction * width)
            return "#" * full + "." * (width - full)
        eighths = round(fraction * width * 8)
        if fraction > 0:
            eighths = max(eighths, 1)
        full, part = divmod(eighths, 8)
        return "█" * full + (_EIGHTHS[part] if part else "") + "░" * (width - full - (part > 0))

    def cut(self, text: str, width: int) -> str:
        """`text` shortened to `width` columns, with an ellipsis where something is missing."""
        if columns(text) <= width:
            return text
        room = max(width - len(self.ellipsis), 0)
        while columns(text) > room:
            text = text[:-1]
        return text + self.ellipsis

    def clean(self, text: str) -> str:
        """`text` with control characters, and what the output cannot encode, made visible."""
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        return shown if self.unicode else shown.encode("ascii", "backslashreplace").decode()


def columns(text: str) -> int:
    """Terminal columns that `text` (without colour codes) takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def number(value: int | None) -> str:
    """With thousands separators; `None` is unlimited."""
    return "unlimited" if value is None else f"{value:,}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(part: int, whole: int) -> str:
    """Like `8.8%`; never 0.0% or 100.0% unless it is exactly that."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "<0.1%"
    if 99.95 <= share < 100:
        return ">99.9%"
    return f"{share:.1f}%"


def span(ms: int) -> str:
    """A length of time in its two largest units: `3d 11h`, `4m 2s`, `250ms`."""
    if ms < 1000:
        return f"{ms}ms"
    seconds = ms // 1000
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        parts.append((count, unit))
    first = next(i for i, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)


def table(
    look: Look, headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = ""
) -> list[str]:
    """Aligned lines under a header. `right` has an `r` for each right-aligned column, else `l`.

    The widest left-aligned column gives way where the terminal is too narrow.
    """
    right = right.ljust(len(headers), "l")
    cells = [[look.clean(cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(headers, *cells, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - look.width
    left = [i for i, side in enumerate(right) if side == "l"]
    if excess > 0 and left:
        widest = max(left, key=lambda i: widths[i])
        widths[widest] = max(widths[widest] - excess, min(widths[widest], 8))
    lines = []
    for n, row in enumerate([list(headers), *cells]):
        shown = []
        for whole, width, side in zip(row, widths, right, strict=True):
            cell = look.cut(whole, width)
            pad = " " * (width - columns(cell))
            shown.append(pad + cell if side == "r" else cell + pad)
        line = "  ".join(shown).rstrip()
        lines.append(look.dim(line) if n == 0 else line)
    return lines
