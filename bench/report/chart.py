"""A bar chart as SVG: decisions per second, meterd beside everybody else.

Written by hand because two panels of bars need no library; it stays readable on dark pages, for it
brings its own background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..core.measure import RATE
from ..peers.ours import NAME
from .model import Report, Row, Table
from .text import figure

PANELS = (
    ("async-64", "One limit", "asyncio, 64 tasks on one event loop"),
    ("async-four", "A pool and three buckets", "asyncio, 64 tasks; peers: four limits"),
    ("sync-one", "One limit", "one thread"),
    ("sync-four", "A pool and three buckets", "one thread; peers: four limits"),
)
FOOT = (
    "redis-py, redis.asyncio: a bare client that calls meterd's function and does not look at the "
    "answer. One bucket: four rates of one kind and one cost."
)
WIDTH, MARGIN, GAP = 960, 28, 36
PANEL = (WIDTH - 2 * MARGIN - GAP) // 2
LABEL, VALUE, BAR, STEP = 178, 62, 15, 23
TOP, PANEL_HEAD = 70, 46
INK, MUTED, PAPER, TRACK = "#1f2933", "#6b7783", "#ffffff", "#eef1f4"
OURS, CLIENT, PEER = "#0f7b6c", "#9fb8b3", "#b4bcc6"
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    colour: str


def chart(report: Report) -> str:
    """The chart of whatever panels the report has figures for."""
    found = [
        (title, about, bars(table))
        for key, title, about in PANELS
        if (table := rate_table(report, key)) is not None
    ]
    rows = [found[at : at + 2] for at in range(0, len(found), 2)]
    parts: list[str] = []
    top = TOP
    for row in rows:
        for column, (title, about, content) in enumerate(row):
            left = MARGIN + column * (PANEL + GAP)
            parts += panel(left, top, title, about, content)
        top += PANEL_HEAD + max(len(content) for _, _, content in row) * STEP + 26
    height = top + 18
    foot = text(MARGIN, height - 16, FOOT, size=11.5, fill=MUTED)
    return "\n".join([*opening(height, report), *parts, foot, "</svg>"]) + "\n"


def rate_table(report: Report, key: str) -> Table | None:
    section = report.section(key)
    if section is None:
        return None
    return next((table for table in section.tables if table.name == RATE), None)


def bars(table: Table) -> list[Bar]:
    """Whoever limits something, and redis-py with meterd's function, the fastest first."""
    chosen = [row for row in table.rows if shown(row)]
    chosen.sort(key=lambda row: row.value, reverse=True)
    return [Bar(row.name, row.value, colour(row.name)) for row in chosen]


def shown(row: Row) -> bool:
    """Floors are left out: a PING decides nothing."""
    return not row.name.startswith("hiredis") and not row.name.endswith(
        ("PING", "INCRBY", "GET+SET", "limiter")
    )


def colour(name: str) -> str:
    if name == NAME:
        return OURS
    return CLIENT if name.startswith("redis") else PEER


def opening(height: int, report: Report) -> list[str]:
    server = report.about["versions"]["server"]
    where = f"{server}, loopback TCP, medians of one run"
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="Decisions per second" font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="{PAPER}"/>',
        text(MARGIN, 36, "Decisions per second", size=19, weight=600),
        text(WIDTH - MARGIN, 36, where, size=12, fill=MUTED, anchor="end"),
    ]


def panel(left: int, top: int, title: str, about: str, content: Sequence[Bar]) -> list[str]:
    most = max((bar.value for bar in content), default=0) or 1
    room = PANEL - LABEL - VALUE
    parts = [
        text(left, top + 8, title, size=14, weight=600),
        text(left, top + 25, about, size=11.5, fill=MUTED),
    ]
    for at, bar in enumerate(content):
        y = top + PANEL_HEAD + at * STEP
        length = max(1.5, room * bar.value / most)
        weight = 600 if bar.name == NAME else 400
        parts += [
            text(left + LABEL - 10, y + 12, short(bar.name), size=12, anchor="end", weight=weight),
            f'<rect x="{left + LABEL}" y="{y}" width="{room}" height="{BAR}" rx="3" '
            f'fill="{TRACK}"/>',
            f'<rect x="{left + LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" '
            f'fill="{bar.colour}"/>',
            text(left + PANEL, y + 12, figure(bar.value), size=12, anchor="end", weight=weight),
        ]
    return parts


def short(name: str) -> str:
    """A name that fits beside its bar."""
    briefly = {"pyrate-limiter": "pyrate", "token bucket": "token", "meterd's ": ""}
    for long, brief in briefly.items():
        name = name.replace(long, brief)
    return name


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float,
    fill: str = INK,
    anchor: str = "start",
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
