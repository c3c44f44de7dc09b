"""What a verification charges unasked: the same on every way through the engine, however often."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from meterd import Bucket, Flag, Plan, Pool
from meterd.compile import compile_policy
from meterd.policy import Limit
from meterd.testing import ManualClock
from tests.engine.conftest import Make

NAMES = ("credits", "tokens", "calls", "images", "other")
COSTS = (*NAMES, "prompt", "image")
ALGORITHMS = ("fixed", "sliding", "token")


def limits(rng: random.Random) -> list[Limit]:
    """Up to five limits that never refuse, some with an automatic amount, some with rates."""
    made: list[Limit] = []
    for name in rng.sample(NAMES, rng.randrange(6)):
        rates = None
        if rng.random() < 0.5:
            rates = {cost: rng.randrange(1, 4) for cost in rng.sample(COSTS, rng.randrange(1, 4))}
        auto = rng.choice([None, 0, 1, 5]) if name == "credits" else rng.choice([0, 0, 2, 7])
        if name in ("credits", "tokens"):
            made.append(Pool(name, rng.choice([10**9, None]), "day", rates=rates, auto=auto))
        else:
            per, algorithm = "366d", rng.choice(ALGORITHMS)
            made.append(Bucket(name, 10**6, per, algorithm=algorithm, rates=rates, auto=auto or 0))
    return [*made, Flag("flag")]


def expected(owned: list[Limit], costs: dict[str, int], *, auto: bool) -> dict[str, int]:
    """What each limit of one level is charged, where it is reached."""
    found = {}
    for limit in owned:
        if isinstance(limit, Pool | Bucket):
            reached = [name for name in costs if name in limit.charges]
            if reached:
                found[limit.name] = sum(costs[name] * limit.charges[name] for name in reached)
            elif auto and limit.auto_amount:
                found[limit.name] = limit.auto_amount
    return found


@pytest.mark.parametrize("functions", [True, False], ids=["functions", "scripts"])
@pytest.mark.parametrize("seed", range(12))
def test_every_limit_is_charged_what_it_says(make: Make, functions: bool, seed: int) -> None:
    rng, clock = random.Random(seed), ManualClock()
    owner, own = limits(rng), limits(rng)
    meter = make([Plan("p", default=True, includes=owner)], clock=clock, functions=functions)
    key = meter.keys.create("acme", limits=own)
    used: dict[tuple[Any, str], int] = {}
    asked: list[tuple[dict[str, int], bool]] = [({}, True)]
    for _ in range(4):
        names = rng.sample(COSTS, rng.randrange(4))
        asked.append(({name: rng.randrange(4) for name in names}, rng.random() < 0.7))
    for step in range(12):  # the server writes a function for what comes again and again
        for costs, auto in asked:
            if not costs and not auto:
                continue
            wanted = {
                (subject, name): amount
                for subject, owned in (("acme", owner), (key.subject, own))
                for name, amount in expected(owned, costs, auto=auto).items()
            }
            found = meter.keys.verify(str(key.secret), costs or None, auto=auto)
            unknown = [
                name
                for name in costs
                if not any(name in getattr(limit, "charges", {}) for limit in (*owner, *own))
            ]
            if unknown:
                assert found.code == "NOT_INCLUDED"
                continue
            assert found.valid
            assert found.decision is not None
            applied = {(s.subject, s.name): s.applied for s in found.decision.limits}
            assert applied == wanted, (step, costs, auto)
            for where, amount in wanted.items():
                used[where] = used.get(where, 0) + amount
        clock.advance(milliseconds=rng.randrange(3))
    states = {(s.subject, s.name): s.used for s in meter.usage(key.subject) if s.kind == "pool"}
    assert states == {where: used.get(where, 0) for where in states}


def test_policies_say_so_only_where_there_is_something_to_say() -> None:
    plain = compile_policy([Plan("p", includes=[Pool("tokens", 5), Bucket("b", 5, "1m")])])
    assert len(msgpack.unpackb(plain.blob, raw=True)) == 5
    some = compile_policy(
        [Plan("p", includes=[Flag("f"), Pool("credits", 5), Bucket("b", 5, "1m", auto=3)])]
    )
    assert msgpack.unpackb(some.blob, raw=True)[5] == [2, 1, 3, 3]
    none = compile_policy([Plan("p", includes=[Pool("credits", 5, auto=0)])])
    assert len(msgpack.unpackb(none.blob, raw=True)) == 5
