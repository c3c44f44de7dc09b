"""Servers that work together: a cluster whose slots can move, a primary with a sentinel.

Both are context managers, and both wait: whatever returns has taken effect everywhere.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from tests.support.single import DEFAULT, Server, start, wait_until

SLOTS = 16384


class Cluster:
    """A real cluster on loopback ports, its slots dealt evenly; a context manager."""

    def __init__(self, name: str = DEFAULT, primaries: int = 3, *args: str) -> None:
        self.name = name
        self._stack = contextlib.ExitStack()
        self._sources: dict[int, Server] = {}
        self._ids: dict[Server, str] = {}
        try:
            self.nodes = self._start(primaries, args)
            self._join()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def id_of(self, node: Server) -> str:
        if node not in self._ids:
            self._ids[node] = node.ask("CLUSTER", "MYID")
        return self._ids[node]

    def node_of(self, slot: int) -> Server:
        """The node that itself claims the slot; waits while a move is in flight."""
        owners: list[Server] = []

        def found() -> bool:
            owners[:] = [node for node in self.nodes if slot in _claimed_slots(node)]
            return len(owners) == 1

        wait_until(f"one owner of slot {slot}", found)
        return owners[0]

    def begin_migration(self, slot: int, dst: Server) -> None:
        """The old way, step one: the source answers ASK for keys it has not (or no longer)."""
        src = self.node_of(slot)
        self._sources[slot] = src
        dst.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(src))
        src.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(dst))

    def migrate_keys(self, slot: int, dst: Server, count: int) -> int:
        """Step two, as often as needed: move up to `count` keys; how many were moved."""
        src = self._sources[slot]
        keys = src.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            assert dst.port is not None
            src.ask("MIGRATE", "127.0.0.1", dst.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def finish_migration(self, slot: int, dst: Server) -> None:
        """Step three: move what is left, and tell every node who owns the slot now."""
        while self.migrate_keys(slot, dst, 100):
            pass
        # The new owner's claim must be the newest. One that has not heard yet how high the others
        # count would lose the slot again to the source's last message from before.
        wait_until("the epochs to get about", lambda: self._knows_epochs(dst))
        src = self._sources.pop(slot)
        others = [node for node in self.nodes if node not in (src, dst)]
        for node in (dst, src, *others):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(dst))

    def move_slot_atomically(self, slot: int, dst: Server) -> None:
        """Valkey 9: the whole slot at once. Returns when every node knows its new owner.

        A move can fail for passing reasons (the source just wrote, a node is behind), so it is
        asked for again until it is through.
        """
        src = self.node_of(slot)
        if src is dst:
            return

        def attempt() -> bool:
            src.ask(*("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(dst)))
            wait_until("the move's end", lambda: not _moves_in_flight(src))
            return slot in _claimed_slots(dst)

        wait_until(f"atomic move of slot {slot}", attempt)
        wait_until("news of the move", lambda: all(self._sees(n, slot, dst) for n in self.nodes))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, primaries: int, args: tuple[str, ...]) -> list[Server]:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *args)

        def start_node(_: int) -> Server:
            return self._stack.enter_context(start(self.name, *options, tcp=True))

        with ThreadPoolExecutor(primaries) as pool:
            return list(pool.map(start_node, range(primaries)))

    def _join(self) -> None:
        for index, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            first = index * SLOTS // len(self.nodes)
            last = (index + 1) * SLOTS // len(self.nodes) - 1
            if self.name == "redis-6.2":
                node.ask("CLUSTER", "ADDSLOTS", *range(first, last + 1))
            else:
                node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes:
            for other in self.nodes:
                if node is not other:
                    assert other.port is not None
                    node.ask("CLUSTER", "MEET", "127.0.0.1", other.port)
        wait_until("a complete cluster", lambda: all(map(self._complete, self.nodes)))

    def _complete(self, node: Server) -> bool:
        lines = node.ask("CLUSTER", "INFO").split()
        facts = dict(line.split(":", 1) for line in lines)
        return facts["cluster_state"] == "ok" and all(
            self._sees(node, owned, other)
            for index, other in enumerate(self.nodes)
            for owned in [index * SLOTS // len(self.nodes)]
        )

    def _sees(self, node: Server, slot: int, owner: Server) -> bool:
        return any(
            first <= slot <= last and entry[0][2] == self.id_of(owner)
            for first, last, *entry in node.ask("CLUSTER", "SLOTS")
        )

    def _knows_epochs(self, node: Server) -> bool:
        """Whether it has heard of the epoch that each node gives for itself."""
        known = _epochs(node)
        return all(known[self.id_of(one)] == _epochs(one)[self.id_of(one)] for one in self.nodes)


def _epochs(node: Server) -> dict[str, int]:
    """By id, the configuration epochs that a node knows of."""
    lines = [line.split() for line in node.ask("CLUSTER", "NODES").splitlines()]
    return {words[0]: int(words[6]) for words in lines}


def _claimed_slots(node: Server) -> set[int]:
    """The slots that a node says it owns itself."""
    mine = next(line for line in node.ask("CLUSTER", "NODES").splitlines() if "myself" in line)
    claimed: set[int] = set()
    for word in mine.split()[8:]:
        if not word.startswith("["):  # [slot->-node] marks a migration under way
            first, _, last = word.partition("-")
            claimed.update(range(int(first), int(last or first) + 1))
    return claimed


def _moves_in_flight(node: Server) -> bool:
    jobs = node.ask("CLUSTER", "GETSLOTMIGRATIONS")
    states = [_fields(job)["state"] for job in jobs]
    return any(state not in ("success", "failed", "cancelled") for state in states)


def _fields(reply: Any) -> dict[str, Any]:
    """A map reply under either protocol."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class Sentinel:
    """One primary, one replica and one sentinel with a quorum of one; a context manager."""

    MASTER = "mymaster"

    def __init__(self, name: str = DEFAULT) -> None:
        self._stack = contextlib.ExitStack()
        try:
            quick = ("--repl-diskless-sync-delay", "0")
            first, second = (
                self._stack.enter_context(start(name, *quick, tcp=True)) for _ in range(2)
            )
            self.servers = (first, second)
            second.ask("REPLICAOF", "127.0.0.1", _port(first))
            wait_until("a linked replica", lambda: _linked(second, first))
            self.sentinel = self._stack.enter_context(start(name, "--sentinel", tcp=True))
            if name != "redis-6.2":  # else it looks at its servers every 10 s
                self.sentinel.ask("SENTINEL", "DEBUG", "INFO-PERIOD", 200)
            self.sentinel.ask("SENTINEL", "MONITOR", self.MASTER, "127.0.0.1", _port(first), 1)
            self.sentinel.ask("SENTINEL", "SET", self.MASTER, "down-after-milliseconds", 1000)
            wait_until("a known replica", self._replica_is_known)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.sentinel.address}/{self.MASTER}"

    @property
    def primary(self) -> Server:
        """The server that the sentinel names now."""
        _, port = self.sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.MASTER)
        return next(server for server in self.servers if server.port == int(port))

    @property
    def replica(self) -> Server:
        return next(server for server in self.servers if server is not self.primary)

    def failover(self) -> None:
        """Swap the roles, and wait until both servers and the sentinel agree."""
        old, new = self.primary, self.replica
        begin = ("SENTINEL", "FAILOVER", self.MASTER)
        wait_until("a failover begun", lambda: self.sentinel.ask(*begin) == "OK")
        wait_until("the promotion", lambda: self.primary is new and _role(new) == "master")
        old.ask("REPLICAOF", "127.0.0.1", _port(new))  # the sentinel would do so 8 s later
        wait_until("the old primary as a replica", lambda: _linked(old, new))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _replica_is_known(self) -> bool:
        replicas = self.sentinel.ask("SENTINEL", "REPLICAS", self.MASTER)
        return any(_fields(entry).get("master-link-status") == "ok" for entry in replicas)


def _port(server: Server) -> int:
    assert server.port is not None
    return server.port


def _role(server: Server) -> str:
    return str(server.ask("ROLE")[0])


def _linked(replica: Server, primary: Server) -> bool:
    role = replica.ask("ROLE")
    return role[0] == "slave" and int(role[2]) == primary.port and role[3] == "connected"
