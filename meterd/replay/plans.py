"""Which plan the traffic is replayed against: the one asked for, or a built-in one.

Built in, for traffic without `--plans`:

- access logs and rows that only count requests: per subject 30 requests a minute (sliding), 100 a
  day (fixed) and a token bucket of 10 that refills 1 a second;
- rows with a cost of their own (`--cost credits=A+B`): per subject and cost name a pool of
  20,000,000 per calendar day in UTC and a token bucket of 500,000 a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meterd.catalog import merge
from meterd.policy import Bucket, Flag, Limit, Plan, Pool, Slots
from meterd.replay.inputs import Selection
from meterd.replay.source import InputError
from meterd.timespec import closest

REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Choice:
    """The catalog to load, the plan that every subject joins, and those that apply beside it.

    `effective` is `join` and the default plans of other groups; `built_in` says no plan was given.
    """

    catalog: tuple[Plan, ...]
    join: Plan
    effective: tuple[Plan, ...]
    built_in: bool = False

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What the effective plans add up to."""
        return merge(self.effective)

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Every cost name that a pool or bucket charges, in the limits' order."""
        names = [n for lim in self.limits if not isinstance(lim, Flag) for n in lim.charges]
        return tuple(n for n in dict.fromkeys(names) if n not in self.reserved)

    @property
    def reserved(self) -> dict[str, str]:
        """Cost names that only a reservation charges, with the slots they take."""
        return {n: lim.name for lim in self.limits if isinstance(lim, Slots) for n in lim.charges}


def choose(plans: Sequence[Plan], plan_id: str | None = None) -> Choice:
    """The plan `plan_id`, else the only one, else the only default. Raises `InputError`."""
    by_id = {plan.id: plan for plan in plans}
    if not plans:
        raise InputError("there are no plans to replay against")
    if plan_id is not None:
        if plan_id not in by_id:
            hint = closest(plan_id, by_id)
            raise InputError(f"there is no plan {plan_id!r}; there are {', '.join(by_id)}{hint}")
        join = by_id[plan_id]
    else:
        candidates = list(plans) if len(plans) == 1 else [p for p in plans if p.default]
        if len(candidates) != 1:
            raise InputError(f"which plan? Give --plan, one of {', '.join(by_id)}")
        join = candidates[0]
    beside = [p for p in plans if p.default and p.group != join.group]
    return Choice(tuple(plans), join, (join, *beside))


def built_in(selection: Selection) -> Choice:
    """The built-in plan for rows with these costs."""
    limits: list[Limit] = []
    for name in [cost.name for cost in selection.costs if cost.fields]:
        rates = {name: 1}
        limits.append(Pool(f"{name}-daily", 20_000_000, "day", anchor="calendar", rates=rates))
        limits.append(Bucket(f"{name}-rate", 500_000, "1m", algorithm="token", rates=rates))
    for name in [cost.name for cost in selection.costs if not cost.fields] or (
        [] if selection.costs else [REQUESTS]
    ):
        rates = {name: 1}
        limits.append(Bucket(f"{name}-minute", 30, "1m", rates=rates))
        limits.append(Bucket(f"{name}-day", 100, "1d", algorithm="fixed", rates=rates))
        limits.append(Bucket(f"{name}-burst", 1, "1s", algorithm="token", burst=10, rates=rates))
    plan = Plan("replay-default", includes=limits)
    return Choice((plan,), plan, (plan,), built_in=True)


def check_costs(choice: Choice, names: Sequence[str]) -> None:
    """Raise `InputError` when a cost would reach nothing: every row would be refused for it."""
    known = {*choice.cost_names, *(lim.name for lim in choice.limits if isinstance(lim, Flag))}
    for name in names:
        if name in choice.reserved:
            raise InputError(
                f"cost {name!r} takes slots {choice.reserved[name]!r}, and rows do not say how long"
            )
        if name not in known:
            charged = ", ".join(choice.cost_names) or "nothing"
            raise InputError(
                f"cost {name!r} reaches no limit of plan {choice.join.id!r}, which charges "
                f"{charged}{closest(name, known)}"
            )
