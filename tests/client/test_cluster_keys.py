"""API keys on a cluster: owners on every node, imported secrets on other nodes than theirs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from meterd import Bucket, Plan, Pool
from meterd.keys import Keyspace, slot_of
from meterd.secret import digest
from tests.client.key_tools import sha256
from tests.client.meter_tools import AnyMeter, Make
from tests.support import servers
from tests.support.servers import Cluster

PLAN = Plan("p", includes=[Pool("credits", 10**9, "month")], default=True)
OWN = [Bucket("own", 10**6, "1h", auto=1)]
SPACE = Keyspace()


@pytest.fixture(scope="module", params=["valkey-9.1", "redis-6.2"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    with Cluster(request.param) as started:
        yield started


@pytest.fixture
def meter(cluster: Cluster, make: Make) -> AnyMeter:
    return make([PLAN], url=cluster.url, timeout=20)


def test_owners_of_all_nodes(cluster: Cluster, meter: AnyMeter, make: Make) -> None:
    owners = [f"customer-{number}" for number in range(24)]
    slots = {owner: slot_of(SPACE.path(owner).keys[0]) for owner in owners}
    assert len({cluster.node_of(slot).port for slot in slots.values()}) == 3
    secrets: dict[str, str] = {}
    apart = 0
    for owner in owners:
        made = meter.keys.create(owner, limits=OWN)
        secrets[str(made.secret)] = owner
        meter.keys.create(owner, sha256=sha256(f"old {owner}"))
        secrets[f"old {owner}"] = owner
        there = slot_of(SPACE.api_key_of(digest(f"old {owner}")))
        apart += cluster.node_of(there) is not cluster.node_of(slots[owner])
    assert apart > 0
    other = make([PLAN], url=cluster.url, timeout=20)
    for secret, owner in secrets.items():
        found = other.keys.verify(secret)
        assert (found.valid, found.owner) == (True, owner)
    for owner in owners:
        assert meter.usage(owner)["credits"].used == 2
        assert len(meter.keys.list(owner)) == 2
        assert meter.forget(owner) >= 6
    assert not any(other.keys.verify(secret) for secret in secrets)
    left = [
        key
        for node in cluster.nodes
        for key in node.client().scan_iter(match=f"{meter.raw._keys.prefix}:*")
        if b":{store}:" not in key
    ]
    assert left == []


def test_a_slot_on_the_move(cluster: Cluster, meter: AnyMeter) -> None:
    """Between two nodes a verification may have to wait; it is charged once, and never wrong."""
    key = meter.keys.create("acme", limits=OWN)
    gone = meter.keys.create("acme")
    assert meter.keys.verify(key.secret)
    slot = slot_of(SPACE.path("acme").keys[0])
    target = next(one for one in cluster.nodes if one is not cluster.node_of(slot))
    with contextlib.ExitStack() as stack:
        cluster.begin_migration(slot, target)
        stack.callback(cluster.finish_migration, slot, target)
        assert meter.keys.verify(key.secret)  # everything is still there
        assert cluster.migrate_keys(slot, target, 1) == 1
        finishing = threading.Timer(0.3, stack.close)
        finishing.start()
        assert meter.keys.verify(key.secret, op="x")
        finishing.join()
    assert meter.keys.verify(key.secret, op="x").decision.replayed
    assert meter.usage("acme")["credits"].used == 3
    assert meter.keys.revoke(gone.id)
    assert meter.keys.verify(gone.secret).code == "NOT_FOUND"
    assert meter.keys.rotate(key.id).id == key.id
