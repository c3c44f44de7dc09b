"""Meters on a real cluster while slots move, and behind a sentinel while the primary changes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import Bucket, Flag, Meter, Plan, Pool, UnsafeServer
from meterd.keys import Keyspace, slot_of
from meterd.testing import ManualClock
from tests.client import scenario
from tests.client.meter_tools import AnyMeter, Make, build, fresh_prefix
from tests.support import servers
from tests.support.servers import Cluster, Sentinel, Server

PLAN = Plan("p", includes=[Pool("credits", 10**9, "month"), Flag("x")], default=True)
# A pool without periods has nothing for the partition: its records need no key but their own.
LASTING = Plan("p", includes=[Pool("credits", 10**9), Flag("x")], default=True)
KEYS = Keyspace()
WORKERS = 6


@pytest.fixture(scope="module", params=["valkey-9.1", "redis-6.2"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One whose slots move atomically and has functions, one with neither."""
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    with Cluster(request.param) as started:
        yield started


def other_than(cluster: Cluster, node: Server) -> Server:
    return next(one for one in cluster.nodes if one is not node)


def slot(root: str) -> int:
    return slot_of(KEYS.path(root).keys[0])


def roots_of_one_slot(like: str) -> Iterator[str]:
    """Customers whose records share a slot with those of `like`."""
    wanted = slot(like)
    return (name for name in (f"c{i}" for i in itertools.count()) if slot(name) == wanted)


def forget_functions(node: Server) -> None:
    if node.name == "redis-6.2":
        node.ask("SCRIPT", "FLUSH")
    else:
        node.ask("FUNCTION", "FLUSH")


# --- Every verb


def test_the_story_is_the_same_on_a_cluster(
    cluster: Cluster, server: Server, make: Make, clock: ManualClock
) -> None:
    told = scenario.play(make(scenario.PLANS, url=cluster.url), clock)
    other_clock = ManualClock()
    with build(
        None, server.url, plans=scenario.PLANS, prefix=fresh_prefix(), clock=other_clock, timeout=5
    ) as alone:
        for mine, theirs in zip(told, scenario.play(alone, other_clock), strict=True):
            assert mine == theirs


def test_subjects_of_all_nodes(cluster: Cluster, make: Make) -> None:
    meter = make([PLAN], url=cluster.url)
    names = {f"customer-{index}" for index in range(60)}
    for name in names:
        meter.consume(name, "credits")
    assert set(meter.subjects()) == names
    holders = {cluster.node_of(slot(name)).port for name in list(names)[:12]}
    assert len(holders) > 1
    for name in names:
        assert meter.forget(name) == 1
    assert meter.subjects() == []


def test_one_node_that_evicts_is_enough_to_refuse(cluster: Cluster, make: Make) -> None:
    meter = make([PLAN], url=cluster.url)
    cluster.nodes[1].ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    try:
        with pytest.raises(UnsafeServer, match=f":{cluster.nodes[1].port}: .*volatile-lru"):
            meter.open()
    finally:
        cluster.nodes[1].ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    meter.open()


# --- Slots on the move


@contextlib.contextmanager
def moving(cluster: Cluster, root: str) -> Iterator[Server]:
    """The slot of `root` is between two nodes, its keys still on the first; yields the second."""
    number = slot(root)
    target = other_than(cluster, cluster.node_of(number))
    cluster.begin_migration(number, target)
    try:
        yield target
    finally:
        cluster.finish_migration(number, target)


def test_between_two_nodes_the_second_without_our_functions(cluster: Cluster, make: Make) -> None:
    """ASK leads to a node that never heard of us: that is where the library has to go."""
    meter = make([LASTING], url=cluster.url)
    meter.consume("acme", "credits", 5)
    roots = roots_of_one_slot("acme")
    with moving(cluster, "acme") as target:
        forget_functions(target)
        # Known records stay where they are served; unseen ones are made at the second node.
        assert meter.consume("acme", "credits", 5)["credits"].used == 10
        new = next(roots)
        assert meter.check(new, "credits")["credits"].used == 0
        assert meter.consume(new, "credits", 3)["credits"].used == 3
        assert meter.usage(new)["credits"].used == 3
        forget_functions(target)
        meter.subscribe(next(roots), limits=[Flag("x")])
        forget_functions(target)
        assert meter.usage(new)["credits"].used == 3
        meter.set_meta(new, {"x": 1})
        assert meter.meta(new) == {"x": 1}
        while cluster.migrate_keys(slot("acme"), target, 1):
            assert meter.report("acme", "credits")["credits"].used > 10
    forget_functions(cluster.node_of(slot("acme")))
    assert meter.refund("acme", "credits", 4)["credits"].applied == 4


def test_a_first_charge_waits_for_the_keys_of_its_partition(cluster: Cluster, make: Make) -> None:
    """The record would be new at the second node, the partition's index is still at the first."""
    meter = make([PLAN], url=cluster.url, timeout=20)
    roots = roots_of_one_slot("acme")
    meter.consume("acme", "credits")
    with contextlib.ExitStack() as stack:
        stack.enter_context(moving(cluster, "acme"))
        finishing = threading.Timer(0.3, stack.close)
        finishing.start()
        decision = meter.consume(next(roots), "credits", 7)
        finishing.join()
    assert decision["credits"].used == 7
    assert meter.usage("acme")["credits"].used == 1


def test_a_path_whose_levels_are_on_both_sides_waits(cluster: Cluster, make: Make) -> None:
    meter = make([PLAN], url=cluster.url, timeout=20)
    for subject in ("acme", "acme/team", "acme/team/ana"):
        meter.subscribe(subject, "p")
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(moving(cluster, "acme"))
        assert cluster.migrate_keys(slot("acme"), target, 1) == 1
        finishing = threading.Timer(0.3, stack.close)
        finishing.start()
        decision = meter.consume("acme/team/ana", "credits", 7, op="x")
        finishing.join()
    assert [state.used for state in decision.limits] == [7, 7, 7]
    assert meter.consume("acme/team/ana", "credits", 7, op="x").replayed


def move_key_by_key(cluster: Cluster, number: int, stop: threading.Event) -> int:
    moves = 0
    while not stop.is_set() or moves < 2:
        target = other_than(cluster, cluster.node_of(number))
        forget_functions(target)
        cluster.begin_migration(number, target)
        while cluster.migrate_keys(number, target, 10):
            time.sleep(0.003)
        cluster.finish_migration(number, target)
        moves += 1
        stop.wait(0.03)  # while a slot moves, calls with an id wait
    return moves


def move_atomically(cluster: Cluster, number: int, stop: threading.Event) -> int:
    moves = 0
    while not stop.is_set() or moves < 2:
        target = other_than(cluster, cluster.node_of(number))
        forget_functions(target)
        cluster.move_slot_atomically(number, target)
        moves += 1
    return moves


Move = Callable[[Cluster, int, threading.Event], int]


@pytest.mark.parametrize("move", [move_key_by_key, move_atomically], ids=["keys", "atomic"])
def test_nothing_is_lost_or_doubled_while_slots_move(
    cluster: Cluster, make: Make, move: Move
) -> None:
    if move is move_atomically and cluster.name != "valkey-9.1":
        pytest.skip("this server moves slots key by key only")
    keep_charging(make([PLAN], url=cluster.url, timeout=30), cluster, move, rounds=15)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("move", [move_key_by_key, move_atomically], ids=["keys", "atomic"])
def test_nothing_is_lost_or_doubled_for_long(cluster: Cluster, make: Make, move: Move) -> None:
    if move is move_atomically and cluster.name != "valkey-9.1":
        pytest.skip("this server moves slots key by key only")
    keep_charging(make([PLAN], url=cluster.url, timeout=30), cluster, move, rounds=200)


def keep_charging(meter: AnyMeter, cluster: Cluster, move: Move, rounds: int) -> None:
    """Workers charge records of one slot, with ids and without, while it moves to and fro."""
    leaves = [f"acme/{worker}" for worker in range(WORKERS)]
    for leaf in leaves:
        meter.subscribe(leaf, "p")
    stop = threading.Event()
    with ThreadPoolExecutor(WORKERS + 1) as pool:
        mover = pool.submit(move, cluster, slot("acme"), stop)
        try:
            done = (
                work_in_threads(meter.raw, pool, rounds)
                if meter.runner is None
                else meter.runner.run(work_in_tasks(meter.raw, rounds))
            )
        finally:
            stop.set()
        assert mover.result() >= 2
    assert done == [6 * rounds] * WORKERS
    for worker, leaf in enumerate(leaves):
        assert meter.usage(leaf)["credits"].used in (6 * rounds, 6 * rounds * WORKERS)
        own = [s.used for s in meter.usage(leaf) if s.subject == leaf and s.name == "credits"]
        assert own == [6 * rounds]
        for turn in range(0, rounds, 7):
            assert meter.consume(leaf, "credits", 5, op=f"{worker}-{turn}").replayed
    assert meter.usage("acme")["credits"].used == 6 * rounds * WORKERS
    meter.forget("acme")


def work_in_threads(meter: Meter, pool: ThreadPoolExecutor, rounds: int) -> list[int]:
    def work(worker: int) -> int:
        charged = 0
        for turn in range(rounds):
            decision = meter.consume(f"acme/{worker}", "credits", 5, op=f"{worker}-{turn}")
            assert decision
            assert not decision.replayed
            charged += decision.limits[1].applied
            charged += meter.consume(f"acme/{worker}", "credits").limits[1].applied
        return charged

    return list(pool.map(work, range(WORKERS)))


async def work_in_tasks(meter: Any, rounds: int) -> list[int]:
    async def work(worker: int) -> int:
        charged = 0
        for turn in range(rounds):
            decision = await meter.consume(f"acme/{worker}", "credits", 5, op=f"{worker}-{turn}")
            assert decision
            assert not decision.replayed
            charged += decision.limits[1].applied
            charged += (await meter.consume(f"acme/{worker}", "credits")).limits[1].applied
        return charged

    return list(await asyncio.gather(*(work(worker) for worker in range(WORKERS))))


def test_the_catalog_moves_too(cluster: Cluster, make: Make) -> None:
    """The store's own keys share a slot, which may move as any other."""
    meter = make([PLAN], url=cluster.url, timeout=20)
    meter.consume("acme", "credits")
    number = slot_of(KEYS.catalog)
    target = other_than(cluster, cluster.node_of(number))
    cluster.begin_migration(number, target)
    forget_functions(target)
    cluster.migrate_keys(number, target, 1)
    meter.apply([Plan("q", includes=[Flag("y"), Bucket("api", 5, "1m")])])
    meter.subscribe("bob", "q")
    assert meter.consume("bob", "y")
    cluster.finish_migration(number, target)
    assert set(make(None, url=cluster.url).plans()) == {"p", "q"}
    assert meter.consume("bob", "api")["api"].limit == 5


# --- Sentinel


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Sentinel]:
    with Sentinel() as started:
        yield started


def test_a_failover_is_followed(sentinel: Sentinel, make: Make) -> None:
    meter = make([PLAN], url=sentinel.url, timeout=20)
    assert meter.consume("acme", "credits", 5, op="op-0").balance == 10**9 - 5
    for turn in range(1, 3):
        synced(sentinel)
        old = sentinel.primary
        sentinel.failover()
        assert sentinel.primary is not old
        assert meter.consume("acme", "credits", 5, op=f"op-{turn - 1}").replayed
        assert meter.consume("acme", "credits", 5, op=f"op-{turn}")["credits"].used == 5 * turn + 5
        meter.set_meta("acme", {"turn": turn})
        assert set(meter.subjects()) == {"acme"}
    assert meter.meta("acme") == {"turn": 2}
    assert meter.forget("acme") == 5


def synced(sentinel: Sentinel) -> None:
    """Until the replica has what the primary acknowledged."""

    def same() -> bool:
        offsets = [one.info("replication")["master_repl_offset"] for one in sentinel.servers]
        return len(set(offsets)) == 1

    servers.wait_until("a replica without delay", same)
