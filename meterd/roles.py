"""What the records of a call follow: a catalog, a limiter's plan, a change of plans.

A role answers what a script may ask for: what an unseen subject gets, and what a record that is
behind becomes. It decides; `operations` asks and sends.

`root`: the first key is a root's. `also`: another policy that the script may lay a record out by.
`first()` looks at the catalog; `context()` and `revision` are of what it saw then, however the
catalog changes meanwhile. When a script is called, all that was made ready is of that revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meterd import wire
from meterd.compile import ABSENT, Policy
from meterd.flow import Flow
from meterd.policy import Bucket, Plan, Pool
from meterd.result import Code, Decision
from meterd.store import Store
from meterd.timespec import refuse


class Joining:
    """Records that follow the catalog; an unseen root joins what `join` and the defaults say."""

    also: Policy | None = None

    def __init__(
        self, store: Store, join: str | None, *, root: bool = True, planless: bool = False
    ) -> None:
        """`planless`: what joins nothing gets a record."""
        if join is not None and not isinstance(join, str):
            raise refuse("join", join, "the id of a plan")
        self._store = store
        self._join = join
        self.root = root
        self._planless = planless
        # Verbs that touch one record of a path count its levels differently: no hints between them.
        self.hint = None if planless else f"join:{join or ''}"
        self.revision = -1
        self._context = b""

    def complain(self) -> None:
        """An unseen root cannot join a retired plan (those who hold it may go on naming it)."""
        if self._store.retired(self._join):
            self._store.catalog.plan(self._join or "")

    def first(self) -> Policy | None:
        self.revision, self._context, found = self._store.sight(self._join)
        if self._planless:
            if found is None or not self.root:
                found = self._store.compile(())
            self._context = wire.context(self.revision, found.name)
        return found

    def context(self) -> bytes:
        return self._context

    def target(self, row: wire.Stale) -> Flow[Policy]:
        policy = yield from self._store.policy(row.policy)
        plans = yield from self._store.plans_of(policy, current=True)
        root = self.root and row.level == 1
        return self._store.compile(self._store.brought_up(plans, root=root, join=self._join))

    def degraded(self, costs: wire.Costs) -> Decision | None:
        """The answer without a server, where costs reach only buckets that allow one."""
        if not self._store.guarded.isdisjoint(costs.names):
            return None
        reached: dict[str, list[Any]] = {name: [] for name in costs.names}
        plans: Sequence[Plan] = [
            *self._store.catalog.plans.values(),
            *(self._store.own_plans or ()),
            *self._store.private_plans(),
        ]
        for plan in plans:
            for limit in plan.includes:
                names = getattr(limit, "charges", {limit.name: 1})
                for name in costs.names:
                    if name in names:
                        reached[name].append(limit)
        return degraded(reached)


class Pinned:
    """Records of a plain limiter: they follow the limiter's own plan and no catalog."""

    hint = "!"
    root = False
    also: Policy | None = None

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store = store
        self._plan = plan

    @property
    def revision(self) -> int:
        return self._store.catalog.revision

    def complain(self) -> None:
        """A limiter's records always have their plan."""

    def first(self) -> Policy:
        return self._store.compile((self._plan,))

    def context(self) -> bytes:
        return wire.context(0, self.first().name, "!")

    def target(self, row: wire.Stale) -> Flow[Policy]:
        yield from self._store.policy(row.policy)
        return self.first()

    def degraded(self, costs: wire.Costs) -> Decision | None:
        reached: dict[str, list[Any]] = {name: [] for name in costs.names}
        for limit in self._plan.includes:
            for name in costs.names:
                if isinstance(limit, Bucket) and name in limit.charges:
                    reached[name].append(limit)
        return degraded(reached)


class NotHeld(Exception):
    """A record does not have the plan that a change of plans is about."""


class Moving:
    """Records whose plans the caller changes: `change(plans)` gives a record's new ones.

    It raises `NotHeld` where there is nothing to change. `unseen`: the plans of a subject that has
    no record yet (None: it must have one). `group`: that of the plan in question, once `change` has
    been asked. `later`: it may be that nothing changes yet; then an unseen subject is laid out by
    `also`, and `leaving` says which pools the group's plan has, by policy.
    """

    hint = None

    def __init__(
        self,
        store: Store,
        *,
        root: bool,
        unseen: Callable[[], list[Plan] | None],
        change: Callable[[list[Plan]], list[Plan]],
        group: Callable[[], str],
        later: bool = False,
    ) -> None:
        self._group = group
        self._later = later
        self.also: Policy | None = None
        self.leaving: dict[bytes, str] = {}
        self._store = store
        self._unseen = unseen
        self.root = root
        self._change = change
        self.revision = -1
        self._context = b""

    def _policy(self, plans: list[Plan]) -> Policy:
        return self._store.compile(self._store.brought_up(plans, root=self.root, join=None))

    def first(self) -> Policy | None:
        self.revision = self._store.catalog.revision
        plans = self._unseen()
        found = None if plans is None else self._policy(plans)
        if self._later:
            self.also = self._policy([])
        self._context = wire.context(self.revision, found.name if found else ABSENT)
        return found

    def context(self) -> bytes:
        return self._context

    def target(self, row: wire.Stale) -> Flow[Policy]:
        policy = yield from self._store.policy(row.policy)
        plans = yield from self._store.plans_of(policy, current=True)
        becomes = self._policy(self._change(plans))
        if self._later:
            left = [plan for plan in plans if plan.group == self._group()]
            self.leaving[row.policy] = pool_names(left)
        return becomes


def pool_names(plans: Iterable[Plan]) -> str:
    """The names of their pools, joined by commas."""
    return ",".join(x.name for plan in plans for x in plan.includes if isinstance(x, Pool))


def degraded(reached: Mapping[str, Sequence[Any]]) -> Decision | None:
    """What buckets with `on_error` answer while the server cannot be asked; None if they cannot."""
    refusing = False
    for limits in reached.values():
        if not limits:
            return None
        for limit in limits:
            if not isinstance(limit, Bucket) or limit.on_error == "raise":
                return None
            refusing = refusing or limit.on_error == "deny"
    code = Code.RATE_LIMITED if refusing else Code.OK
    return Decision(not refusing, code, 0 if refusing else None, degraded=True)
