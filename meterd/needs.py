"""What a script asked for, and a repeated call brings along."""

from __future__ import annotations

from dataclasses import dataclass, field

from meterd import wire
from meterd.errors import ScriptError
from meterd.flow import Flow
from meterd.roles import pool_names
from meterd.store import Store

Steps = dict[tuple[int, bytes, str], tuple[int, bytes, str]]


@dataclass(slots=True)
class Needs:
    """What a repeated call brings along."""

    policies: dict[bytes, bytes] = field(default_factory=dict)
    # (level, the policy it has) -> (the policy to read it by, the one it becomes)
    moves: dict[tuple[int, bytes], tuple[bytes, bytes]] = field(default_factory=dict)
    revision: int = -1  # of the catalog that the moves and steps lead to
    holds: set[int] = field(default_factory=set)  # levels whose open holds are declared
    shared: bool = False  # the partition's keys are declared
    # (level, the policy it has, group) of a change that is due -> (when, the policy it becomes,
    # names of its plan's pools)
    steps: Steps = field(default_factory=dict)

    def packed(self) -> bytes:
        return wire.extra(self.policies, self.moves, self.holds, self.shared, self.steps)

    def ask(self, levels: bytes) -> None:
        """Keys that a script asks for, by level; 0: those of the partition."""
        self.holds.update(levels.replace(b"\0", b""))
        self.shared = self.shared or b"\0" in levels

    @property
    def leads_on(self) -> bool:
        """Whether records become something else than what is stored."""
        return bool(self.moves or self.steps)

    def targets(self) -> list[bytes]:
        """The policies that records may become."""
        return [to for _, to in self.moves.values()] + [to for _, to, _ in self.steps.values()]

    def start_over(self, revision: int) -> None:
        """Moves and steps of another revision count no more."""
        if self.revision != revision:
            self.moves.clear()
            self.steps.clear()

    def replace(self, short: bytes, longer: bytes) -> None:
        """The policy `longer` takes the place of `short` wherever a record is read or laid out."""

        def instead(name: bytes) -> bytes:
            return longer if name == short else name

        self.moves = {k: (instead(old), instead(to)) for k, (old, to) in self.moves.items()}
        self.steps.clear()  # they are asked for again


def due_steps(store: Store, row: wire.Due, *, root: bool) -> Flow[Steps]:
    """The steps of a record's changes that are due, one after the other.

    A plan of the catalog counts as it is defined now, a retired one as it was last.
    """
    policy = yield from store.policy(row.policy)
    plans = yield from store.plans_of(policy, current=True)
    name, steps = row.policy, Steps()
    for change in row.changes:
        kept = [plan for plan in plans if plan.group != change.group]
        new = []
        if change.definition:
            new = [(yield from store.definition(change.plan, change.definition))]
        elif change.plan:
            if change.plan not in store.catalog.plans:
                yield from store.refresh()
            if change.plan not in store.catalog.plans:
                raise ScriptError(f"plan {change.plan!r}, which a change waits for, is not stored")
            new = [store.catalog.plans[change.plan]]
        plans = store.brought_up([*kept, *new], root=root, join=None)
        target = store.compile(plans)
        steps[row.level, name, change.group] = (change.at_ms, target.name, pool_names(new))
        name = target.name
    return steps
