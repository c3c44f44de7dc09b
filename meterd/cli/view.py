"""What people see: decisions, usage, plans, differences. Pure functions of data and a `Look`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from meterd.catalog import Diff
from meterd.cli.params import path_text
from meterd.describe import charges, rule
from meterd.grant import Grant
from meterd.past import Operation
from meterd.policy import Plan
from meterd.result import Decision, Level, LimitState, PlanChange, Usage
from meterd.term import Look, columns, number, span, table
from meterd.verification import ApiKey

_BAR_WIDTH = 20
_HOLDS_SHOWN = 10


def decision_text(decision: Decision, look: Look) -> str:
    """One line with the answer, then a line for each limit that was reached."""
    if decision.allowed:
        word = look.style("allowed", fg="green", bold=True)
    else:
        word = look.style("refused", fg="red", bold=True)
    said = [str(decision.code)]
    if decision.allowed and decision.balance is not None:
        said.append(f"balance {number(decision.balance)}")
    if decision.retry_after is not None:
        said.append(f"fits in {span(round(decision.retry_after * 1000))}")
    elif decision.refused:
        said.append("will not fit by waiting")
    if decision.op:
        said.append(f"op {decision.op}")
    if decision.replayed:
        said.append("replayed")
    if decision.degraded:
        said.append("degraded: the server was not asked")
    lines = [f"{word}  {look.clean(look.dot.join(said))}"]
    return "\n".join([*lines, *limit_lines(decision.limits, look, waits=not decision.allowed)])


def limit_lines(limits: Iterable[LimitState], look: Look, *, waits: bool = True) -> list[str]:
    """A bar per limit: how much of what is used, and when it is new again in local time.

    `waits`: say of a limit that does not fit when it will.
    """
    states = list(limits)
    now = datetime.now(UTC)
    names = [look.clean(state.name) for state in states]
    levels = [look.clean(path_text(state.subject)) for state in states]
    figures = [_figures(state) for state in states]
    show_levels = len(set(levels)) > 1
    name_width = max(map(columns, names), default=0)
    level_width = max(map(columns, levels), default=0)
    figure_width = max(map(len, figures), default=0)
    lines = []
    for state, name, level, figure in zip(states, names, levels, figures, strict=True):
        parts = [name + " " * (name_width - columns(name))]
        if show_levels:
            parts.append(look.dim(level + " " * (level_width - columns(level))))
        parts += [_bar(state, look), figure.ljust(figure_width), _when(state, now, look, waits)]
        lines.append(("  " + "  ".join(parts)).rstrip())
    return lines


def _figures(state: LimitState) -> str:
    if state.kind == "flag":
        return "included"
    if state.limit is None:
        return f"{number(state.used)} used, unlimited"
    text = f"{number(state.used)} / {number(state.limit)}"
    if state.overage:
        text += f", {number(state.overage)} over"
    if state.applied:
        text += f" (+{number(state.applied)})"
    return text


def _bar(state: LimitState, look: Look) -> str:
    if state.kind == "flag" or state.limit is None:
        return " " * _BAR_WIDTH
    capacity = max(state.limit, state.used + max(state.remaining or 0, 0))
    fraction = state.used / capacity if capacity else 1.0
    color = "green" if fraction < 0.8 else "yellow" if fraction < 1 else "red"
    return look.style(look.bar(fraction, _BAR_WIDTH), fg=color)


def _when(state: LimitState, now: datetime, look: Look, waits: bool) -> str:
    said = []
    if waits and not state.allowed:
        wait = state.retry_after
        fits = "never fits" if wait is None else f"fits in {span(round(wait * 1000))}"
        said.append(look.style(fits, fg="red"))
    moment = state.resets_at
    if moment is not None and (state.kind == "pool" or state.used):
        # A bucket frees room all the time; what it names is when nothing of it is used any more.
        word = "resets" if state.kind == "pool" else "free again"
        said.append(f"{word} {local_time(moment, now)}")
    return look.dot.join(said)


def usage_text(usage: Usage, look: Look) -> str:
    """Each level's plans, limits, overrides, grants, changes to come and open holds."""
    now = datetime.now(UTC)
    lines = []
    for level in usage.levels:
        plans = ", ".join(f"{p} ({group})" for group, p in sorted(level.plans.items()))
        said = [f"plan {plans}" if plans else "no plan"]
        if not level.stored:
            said.append("not seen yet; this is what it would join" if plans else "not seen yet")
        title = look.bold(look.clean(path_text(level.subject)))
        lines.append(f"{title}  {look.dim(look.clean(look.dot.join(said)))}")
        lines += limit_lines([s for s in usage.limits if s.subject == level.subject], look)
        for change in level.overrides:
            fields = ", ".join(f"{name} {number(value)}" for name, value in change.fields.items())
            until = f" until {local_time(change.expires, now)}" if change.expires else ""
            lines.append(f"  override {look.clean(change.name)}: {fields}{until}")
        lines += ["  " + look.clean(line) for line in grant_lines(level, now)]
        lines += ["  " + look.clean(change_line(change, now)) for change in level.pending]
        lines += ["  " + look.clean(line) for line in hold_lines(level, now)]
    if not usage.levels:
        lines.append(f"{look.clean(path_text(usage.subject))}: nothing is known of it")
    return "\n".join(lines)


def operation_text(found: Operation, look: Look) -> str:
    """What an operation was and when, what it answered, and what came back of it."""
    now = datetime.now(UTC)
    costs = ", ".join(f"{name} {number(amount)}" for name, amount in found.costs.items())
    said = [f"{found.verb} {costs}".rstrip(), path_text(found.subject)]
    said += [local_time(found.at, now), f"kept until {local_time(found.expires, now)}"]
    title = look.bold(look.clean(f"operation {found.op}"))
    lines = [f"{title}  {look.clean(look.dot.join(said))}"]
    if found.decision is not None:
        lines += limit_lines(found.decision.limits, look, waits=False)
    if found.refund is not None:
        back = ", ".join(f"{s.name} {number(s.applied)}" for s in found.refund.limits if s.applied)
        lines.append(look.clean(f"  given back: {back or 'nothing: it was over'}"))
    return "\n".join(lines)


def key_text(key: ApiKey, look: Look, now: datetime) -> str:
    """An API key, and what is said of it."""
    said = _key_state(key, now)
    title = look.bold(look.clean(key.id)) + "  " + look.dim(look.clean(look.dot.join(said)))
    lines = [title, f"  charges {path_text(key.subject)}"]
    if key.name is not None:
        lines.append(f"  name {key.name}")
    lines.append(f"  created {local_time(key.created, now)}")
    if key.overlap is not None and key.overlap > now:
        lines.append(f"  former secret good until {local_time(key.overlap, now)}")
    if key.meta:
        lines.append(f"  meta {json.dumps(dict(key.meta), ensure_ascii=False)}")
    return "\n".join([lines[0], *map(look.clean, lines[1:])])


def keys_text(keys: Sequence[ApiKey], look: Look, now: datetime) -> str:
    """A line per API key."""
    rows = []
    for key in keys:
        instants = [local_time(at, now) if at else "never" for at in (key.expires, key.created)]
        state = "enabled" if key.enabled else "disabled"
        if key.imported:
            state += ", imported"
        rows.append([key.id, key.name or "", state, *[at.partition(" (")[0] for at in instants]])
    if not rows:
        return "no keys"
    return "\n".join(table(look, ["id", "name", "state", "expires", "created"], rows))


def _key_state(key: ApiKey, now: datetime) -> list[str]:
    said = ["enabled" if key.enabled else "disabled"]
    if key.expires is not None:
        word = "expires" if key.expires > now else "expired"
        said.append(f"{word} {local_time(key.expires, now)}")
    return said + (["imported"] if key.imported else [])


def grant_lines(level: Level, now: datetime) -> list[str]:
    """A line per grant that has something left or held, pool by pool, in burn order.

    Where the period's own allowance stands among them, the priority tells: it has 50.
    """
    kept = [grant for grant in level.grants if grant.remaining or grant.held]
    never = 2**63
    kept.sort(key=lambda g: (g.name, g.priority, g.expires_ms or never))  # else: in order of age
    return [grant_text(grant, now) for grant in kept]


def grant_text(grant: Grant, now: datetime) -> str:
    """`grant order-7: credits 40 of 100 (10 held) until ..., priority 10, from "stripe"`."""
    text = f"grant {grant.id}: {grant.name} {number(grant.remaining)} of {number(grant.amount)}"
    if grant.held:
        text += f" ({number(grant.held)} held)"
    if grant.starts > now:
        text += f" from {local_time(grant.starts, now)}"
    if grant.expires is not None:
        text += f" until {local_time(grant.expires, now)}"
    text += f", priority {grant.priority}"
    return f"{text}, source {grant.source}" if grant.source else text


def change_line(change: PlanChange, now: datetime) -> str:
    """Which plan a group will have, from when on."""
    at = local_time(change.at, now)
    if change.plan is None:
        return f"plan of {change.group} goes at {at}"
    how = "" if change.change == "keep" else f", {change.change}"
    return f"plan {change.plan} ({change.group}{how}) from {at}"


def hold_lines(level: Level, now: datetime) -> list[str]:
    """A line per open hold, those that end first; how many more there are."""
    lines = []
    for hold in level.holds[:_HOLDS_SHOWN]:
        held = ", ".join(f"{name} {number(amount)}" for name, amount in hold.amounts.items())
        spent = ", ".join(f"{name} {number(n)}" for name, n in hold.tallied.items() if n)
        used = f" (used {spent})" if spent else ""
        lines.append(f"hold {hold.id}: {held}{used} until {local_time(hold.expires, now)}")
    if level.open_holds > len(lines):
        more = level.open_holds - len(lines)
        lines.append(f"{number(more)} more open hold{'s' if more > 1 else ''}")
    return lines


def local_time(moment: datetime, now: datetime) -> str:
    """`2024-03-01 01:00 CET (in 3d 4h)`; only the time where it is today."""
    local, today = moment.astimezone(), now.astimezone()
    pattern = "%H:%M:%S" if local.date() == today.date() else "%Y-%m-%d %H:%M"
    left = round((moment - now).total_seconds() * 1000)
    distance = f"in {span(left)}" if left >= 0 else f"{span(-left)} ago"
    return f"{local.strftime(pattern)} {local.tzname()} ({distance})"


def plan_lines(plan: Plan, look: Look) -> list[str]:
    """A plan's title and a table of its limits."""
    said = [f"group {plan.group}"]
    if plan.default:
        said.append("default")
    if plan.price is not None:
        price = plan.price
        said.append(f"{price.amount / 100:.2f} {price.currency.upper()} per {price.interval}")
    name = f" {plan.name}" if plan.name else ""
    title = look.bold(look.clean(plan.id)) + look.clean(name)
    rows = [[limit.name, limit.kind, rule(limit), charges(limit)] for limit in plan.includes]
    lines = [f"{title}  {look.dim(look.dot.join(said))}"]
    if rows:
        body = table(look, ["limit", "kind", "rule", "charges"], rows)
        lines += ["  " + line for line in body]
    return lines


def plans_text(revision: int, plans: Sequence[Plan], retired: Sequence[str], look: Look) -> str:
    """The catalog: every plan, then the ids of retired ones."""
    lines = [look.dim(f"catalog revision {revision}")]
    for plan in plans:
        lines += ["", *plan_lines(plan, look)]
    if retired:
        ids = look.clean(", ".join(retired))
        lines += ["", f"retired (kept by those who hold them): {ids}"]
    if not plans:
        lines.append("no plans; add some with: meterd apply FILE")
    return "\n".join(lines)


def diff_text(diff: Diff, look: Look, *, dry_run: bool) -> str:
    """The difference, a coloured line per change."""
    colors = {"+": "green", "-": "red", "~": "yellow"}
    lines = [
        look.style(look.clean(line), fg=colors[line[0]]) if line[:1] in colors else line
        for line in str(diff).splitlines()
    ]
    if diff:
        lines.append("not applied (dry run)" if dry_run else "applied")
    return "\n".join(lines)
