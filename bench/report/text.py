"""Figures as people write them, and a report as Markdown or for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .model import GoalRow, Report, Row, Section, Table

SIGN = {True: "≥", False: "≤"}


def figure(value: float, unit: str = "") -> str:
    """Three significant digits, thousands set apart: 0.65, 12.4, 118,000."""
    if value == 0:
        text = "0"
    elif abs(value) >= 1000:
        text = f"{float(f'{value:.3g}'):,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
        text = text.rstrip("0").rstrip(".") if "." in text and abs(value) >= 100 else text
    return with_unit(text, unit)


def with_unit(text: str, unit: str) -> str:
    return {"": text, "x": f"{text} ×", "us": f"{text} µs", "/s": f"{text}/s"}.get(
        unit, f"{text} {unit}"
    )


def whole(value: float, unit: str) -> str:
    """A goal's limit, as it was set."""
    return with_unit(f"{value:,g}" if value < 10_000 else f"{value:,.0f}", unit)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 1) -> str:
    """A table; columns from number `right` on are set to the right."""
    marks = ["---" if at < right else "---:" for at in range(len(head))]
    lines = [head, marks, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 1) -> str:
    """The same for a terminal."""
    every = [head, *rows]
    widths = [max(len(cells[at]) for cells in every) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if at < right else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, every))


def goal_cells(goal: GoalRow) -> tuple[str, str, str, str]:
    if goal.measured is None or goal.low is None or goal.high is None:
        return goal.title, goal_word(goal), "–", goal.word
    spread = f"{figure(goal.low)} – {figure(goal.high)}"
    shown = f"{figure(goal.measured, goal.unit)} ({spread})"
    title = f"{goal.title} ({goal.against})" if goal.against else goal.title
    return title, goal_word(goal), shown, goal.word


def goal_word(goal: GoalRow) -> str:
    if goal.limit is None:
        return "–"
    return f"{SIGN[goal.at_least]} {whole(goal.limit, goal.unit)}"


GOAL_HEAD = ("goal", "limit", "measured (quartiles)", "")


def section_cells(section: Section) -> tuple[list[str], list[list[str]]]:
    """A column pair per measure: the median, and the ratio with its quartiles."""
    head = [""]
    for table in section.tables:
        unit = table.unit.replace("us", "µs")
        head.append(f"{table.name} [{unit}]" if unit else table.name)
        if not table.bare:
            head.append("ratio")
    rows = [[row.name, *cells_of(section, row.name)] for row in ordered(section.tables[0])]
    return head, rows


def caption(section: Section) -> str:
    """What the ratios refer to."""
    references = {table.reference for table in section.tables if not table.bare}
    if not references:
        return ""
    samples = section.tables[0].samples
    medians = f"; medians of {samples} rounds, quartiles in brackets" if samples > 1 else ""
    return f"Ratio: to {' / '.join(sorted(references))}{medians}."


def ordered(table: Table) -> list[Row]:
    """The best first."""
    return sorted(table.rows, key=lambda row: row.value, reverse=table.more_is_better)


def cells_of(section: Section, name: str) -> list[str]:
    cells = []
    for table in section.tables:
        row = table.row(name)
        cells.append("–" if row is None else figure(row.value))
        if table.bare:
            continue
        if row is None:
            cells.append("–")
        elif name == table.reference:
            cells.append("1")
        else:
            spread = f" ({figure(row.ratio_low)} – {figure(row.ratio_high)})"
            cells.append(figure(row.ratio) + (spread if row.ratio_low != row.ratio_high else ""))
    return cells


def origin(report: Report) -> str:
    """One paragraph: server, versions, machine, commit."""
    about = report.about
    versions = dict(about["versions"])
    server, python = versions.pop("server"), versions.pop("python")
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    machine = about["machine"]
    return (
        f"{server}, Python {python}, {machine['cpus']} × {machine['processor']} "
        f"({machine['system']}), commit {about['commit'] or 'unknown'}, {about['effort']} run of "
        f"{about['seconds'] // 60} min {about['seconds'] % 60} s on {about['date']}; {packages}"
    )


def rendered(report: Report, *, terminal: bool = False) -> str:
    """The whole report."""
    table = plain if terminal else markdown
    blocks = [] if terminal else ["# meterd: measured"]
    blocks.append(origin(report) + ".")
    if report.goals:
        blocks += [
            heading("Goals", terminal),
            table(GOAL_HEAD, [goal_cells(goal) for goal in report.goals], 2),
        ]
    for section in report.sections:
        blocks.append(heading(section.title, terminal))
        if section.tables:
            blocks.append(table(*section_cells(section)))
        notes = [caption(section), section.note]
        if any(notes):
            blocks.append(" ".join(filter(None, notes)))
        if section.absent:
            away = "; ".join(f"{name}: {why}" for name, why in section.absent.items())
            blocks.append(f"Did not run: {away}.")
    return "\n\n".join(blocks) + "\n"


def heading(title: str, terminal: bool) -> str:
    return title.upper() if terminal else f"## {title}"
