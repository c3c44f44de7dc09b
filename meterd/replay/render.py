"""A replay's report for people: summary, a table of limits, who was refused most, a timeline.

A pure function of the report and the `Look`: the same report renders the same everywhere.
"""

from __future__ import annotations

from datetime import UTC, datetime

from meterd.replay.report import Report
from meterd.term import Look, columns, counted, number, percent, span, table
from meterd.timespec import format_ms

_FORMATS = {"log": "access log", "csv": "CSV", "jsonl": "JSON lines", "json": "JSON"}


def render(report: Report, look: Look, *, top: int = 10) -> str:
    """The whole report as text; `top` subjects are listed."""
    sections = [_head(report, look)]
    if report.rows:
        sections += [_limits(report, look), _most(report, look, top), _timeline(report, look)]
    sections.append(_problems(report, look))
    sections.append(_foot(report, look))
    return "\n\n".join("\n".join(section) for section in sections if section)


def _head(report: Report, look: Look) -> list[str]:
    format = _FORMATS.get(report.format, report.format)
    what = [
        report.source,
        format,
        counted(report.rows, "row"),
        counted(len(report.subjects), "subject"),
    ]
    lines = [look.bold(look.clean(look.dot.join(word for word in what if word)))]
    if report.rows:
        length = span(report.last_ms - report.first_ms)
        lines.append(
            f"{_when(report.first_ms)} {look.arrow} {_when(report.last_ms)} UTC ({length})"
        )
    said = []
    if report.columns:
        subject = "/".join(report.columns["subject"])
        said = [f"subject {subject}", f"time {report.columns['time']}"]
        said += [f"cost {name}={terms}" for name, terms in report.columns["costs"].items()]
    plan = " + ".join(plan.id for plan in report.plans)
    note = " (built in; your own with --plans FILE)" if report.built_in else ""
    lines.append(look.clean(look.dot.join([f"plan {plan}{note}", *said])))
    if report.rows:
        width = max(min(look.width - 30, 50), 10)
        full = round(width * report.allowed / report.rows)
        if report.refused and report.allowed:
            full = min(max(full, 1), width - 1)
        on, off = ("█", "░") if look.unicode else ("#", "x")
        bar = look.style(on * full, fg="green") + look.style(off * (width - full), fg="red")
        lines += [
            "",
            f"allowed {number(report.allowed)}  {bar}  {number(report.refused)} refused"
            f" ({percent(report.refused, report.rows)})",
        ]
        shown = [code for code in ("NO_PLAN", "NOT_INCLUDED") if report.codes.get(code)]
        lines += [f"{code}: {counted(report.codes[code], 'row')}" for code in shown]
    return lines


def _limits(report: Report, look: Look) -> list[str]:
    rows = [
        [
            totals.name,
            totals.rule,
            number(totals.allowed),
            number(totals.allowed_amount),
            number(totals.refused),
            number(totals.refused_amount),
            number(totals.refused_alone),
        ]
        for totals in report.limits.values()
    ]
    headers = ["limit", "rule", "allowed", "amount", "refused", "amount", "alone"]
    lines = table(look, headers, rows, right="llrrrrr")
    if report.refused:
        note = "refused: rows that did not fit this limit; alone: that fit every other"
        lines.append(look.dim(look.cut(note, look.width)))
    return lines


def _most(report: Report, look: Look, top: int) -> list[str]:
    most = report.refused_most(top)
    if not most:
        return []
    refused = sum(who.refused > 0 for who in report.subjects.values())
    rows = []
    for who in most:
        asked = who.allowed + who.refused
        by = ", ".join(f"{name} {number(count)}" for name, count in who.by.most_common(3))
        share = percent(who.refused, asked)
        rows.append(["/".join(who.subject), number(asked), number(who.refused), share, by])
    title = f"refused most ({len(most)} of {counted(refused, 'refused subject')})"
    headers = ["subject", "rows", "refused", "share", "by"]
    return [look.bold(title), *table(look, headers, rows, right="lrrrl")]


def _timeline(report: Report, look: Look) -> list[str]:
    steps = report.steps()
    most = max(allowed + refused for _, allowed, refused in steps)
    pattern = "%H:%M:%S" if report.step_ms < 60_000 else "%m-%d %H:%M"
    if report.step_ms >= 86_400_000:
        pattern = "%Y-%m-%d"
    tails = [f"{number(allowed)} / {number(refused)}" for _, allowed, refused in steps]
    label = len(_when(0, pattern))
    width = max(look.width - label - max(map(columns, tails)) - 4, 10)
    on, off = ("█", "░") if look.unicode else ("#", "x")
    lines = [look.bold(f"timeline (a line is {format_ms(report.step_ms)}; allowed / refused)")]
    for (at, allowed, refused), tail in zip(steps, tails, strict=True):
        full = round(width * (allowed + refused) / most)
        missed = round(width * refused / most)
        if refused:  # a refusal must show, however few there are
            full, missed = max(full, 1), max(missed, 1)
        kept = max(full - missed, 1 if allowed else 0)
        kept = min(kept, width - missed)
        bar = look.style(on * kept, fg="green") + look.style(off * missed, fg="red")
        pad = " " * (width - kept - missed)
        lines.append(f"{look.dim(_when(at, pattern))}  {bar}{pad}  {tail}")
    return lines


def _problems(report: Report, look: Look) -> list[str]:
    if not report.unreadable:
        return []
    title = counted(report.unreadable, "unreadable line")
    lines = [look.style(title, fg="yellow", bold=True)]
    for problem in report.problems:
        lines.append(look.cut(look.clean(f"  line {problem.line}: {problem.reason}"), look.width))
    if report.unreadable > len(report.problems):
        lines.append(f"  and {number(report.unreadable - len(report.problems))} more")
    return lines


def _foot(report: Report, look: Look) -> list[str]:
    said = []
    if report.reordered:
        said.append(f"{counted(report.reordered, 'row')} sorted into time order")
    if report.seconds > 0 and report.rows:
        rate = round(report.rows / report.seconds)
        said.append(f"{number(report.rows)} decisions in {report.seconds:.1f} s ({number(rate)}/s)")
    return [look.dim(look.dot.join(said))] if said else []


def _when(ms: int, pattern: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime(pattern)
