"""How evenly subjects spread, and a real cluster of three primaries."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from meterd import AsyncMeter
from meterd.keys import partition_of, slot_of, tag_of
from meterd.wire import command

from ..core.lab import HOST, Lab, TcpServer
from ..core.measure import Contender, async_block, compare
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.stats import Measure
from ..core.workload import PLANS
from ..peers.ours import TIMEOUT_S

PARTITIONS, SLOTS = 1024, 16384
PRIMARIES = 3
READY_S = 30.0
TASKS = 64
SHARE = "busiest over even share"


class Cluster:
    """Primaries with the slots dealt evenly, in order. Closed with the lab."""

    def __init__(self, lab: Lab, primaries: int = PRIMARIES) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
        self.nodes = [lab.start(*options) for _ in range(primaries)]
        for at, node in enumerate(self.nodes):
            first, last = at * SLOTS // primaries, (at + 1) * SLOTS // primaries - 1
            with Raw(node.path) as raw:
                raw.ask(b"CLUSTER", b"SET-CONFIG-EPOCH", b"%d" % (at + 1))
                raw.ask(b"CLUSTER", b"ADDSLOTSRANGE", b"%d" % first, b"%d" % last)
        for node in self.nodes:  # only now: one that has met another takes no epoch any more
            with Raw(node.path) as raw:
                for other in self.nodes:
                    if other is not node:
                        raw.ask(b"CLUSTER", b"MEET", HOST.encode(), b"%d" % other.port)
        deadline = time.monotonic() + READY_S
        while not all(map(self._complete, self.nodes)):
            if time.monotonic() > deadline:
                raise TimeoutError("the cluster is not complete")
            time.sleep(0.05)

    def _complete(self, node: TcpServer) -> bool:
        with Raw(node.path) as raw:
            state = raw.ask(b"CLUSTER", b"INFO").decode()
            known = raw.ask(b"CLUSTER", b"SLOTS")
        return "cluster_state:ok" in state and len({bytes(e[2][2]) for e in known}) == len(
            self.nodes
        )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)


def imbalance(counts: Sequence[int]) -> float:
    """How much more than its even share the busiest has: 1 is perfect."""
    return max(counts) * len(counts) / sum(counts) if sum(counts) else 0.0


def counted(where: Sequence[int], places: int) -> list[int]:
    counts = Counter(where)
    return [counts[place] for place in range(places)]


def spread_measures(roots: Sequence[bytes], seed: int) -> Measure:
    """Partitions, slots and primaries, each beside as many places drawn at random."""
    measure = Measure(SHARE, "", "as many dealt at random", False)
    slots = [slot_of(b"{%b}" % tag_of(root)) for root in roots]
    rng = random.Random(seed)
    kinds = {
        f"{PARTITIONS} partitions": ([partition_of(root) for root in roots], PARTITIONS),
        f"{PARTITIONS} slots in use": ([slot // 16 for slot in slots], PARTITIONS),
        "3 primaries": ([slot * 3 // SLOTS for slot in slots], 3),
        "12 primaries": ([slot * 12 // SLOTS for slot in slots], 12),
        "100 primaries": ([slot * 100 // SLOTS for slot in slots], 100),
    }
    for name, (where, places) in kinds.items():
        drawn = counted([rng.randrange(places) for _ in roots], places)
        measure.add(name, imbalance(counted(where, places)), imbalance(drawn))
    return measure


@scenario("balance", "how evenly subjects spread over partitions, slots and primaries")
def balance(lab: Lab) -> Iterator[Finding]:
    many = lab.effort.balance_subjects
    roots = {
        "numbered": [b"customer-%d" % n for n in range(many)],
        "uuids": [random.Random(n).randbytes(16).hex().encode() for n in range(many)],
    }
    for name, mine in roots.items():
        yield Finding(
            f"balance-{name}",
            f"Balance of {many:,} roots, {name}",
            [spread_measures(mine, 1)],
            note="The busiest place's share over an even share: 1 is perfect.",
        )


@scenario("cluster", "a real cluster of three primaries beside one server")
def cluster(lab: Lab) -> Iterator[Finding]:
    lab.tcp.flush()
    made = Cluster(lab)
    roots = [f"customer-{n}" for n in range(1000)]
    names = {"one server": lab.tcp.url, f"{PRIMARIES} primaries": made.url}
    with asyncio.Runner() as runner:
        meters = {}
        for name, url in names.items():
            meters[name] = AsyncMeter(url, plans=PLANS, timeout=TIMEOUT_S)
            runner.run(meters[name].open())

        def contender(name: str, cost: str) -> Contender:
            consume, seconds = meters[name].consume, lab.effort.block_s
            numbers = range(len(roots))

            def sample() -> dict[str, float]:
                done: dict[str, float] = runner.run(
                    async_block(lambda n: consume(roots[n], cost), TASKS, seconds, numbers)
                )
                return done

            return Contender(name, sample)

        for key, cost, title in (
            ("one", "pool", "one limit"),
            ("four", "all", "a pool and three buckets"),
        ):
            yield Finding(
                f"cluster-{key}",
                f"Cluster of {PRIMARIES} primaries, async, {TASKS} tasks, {title}",
                compare([contender(name, cost) for name in names], lab.effort.blocks, "one server"),
                note="All servers share this machine's processors with the client: what is shown "
                "is what routing costs, not how a cluster grows.",
            )
        for meter in meters.values():
            runner.run(meter.close())
    measure = Measure("keys", "", "an even share", False)
    keys = []
    for node in made.nodes:
        with Raw(node.path) as raw:
            keys.append(int(raw.run([command(b"DBSIZE")])[0]))
    for at, count in enumerate(keys, 1):
        measure.add(f"primary {at}", count, sum(keys) / len(keys))
    yield Finding("cluster-keys", f"Keys per primary, {len(roots):,} roots", [measure])
