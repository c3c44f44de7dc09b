"""What `doctor` looks at: one function per check, each a pure reading of what the servers said.

A check ends as ok, warn or fail, says what it saw, and where it is not ok says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from meterd.cli.backlog import Backlog

OK, WARN, FAIL = "ok", "warn", "fail"
_LATE_S = 86_400  # use that is not delivered for so long is not on its way

Info = Mapping[str, str]

_SUPPORTED = {"Valkey": ((8, 0), (10, 0)), "Redis": ((6, 2), (9, 0))}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's answer. `node` is empty where there is only one server."""

    name: str
    state: str
    found: str
    advice: str = ""
    node: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def server(info: Info) -> Check:
    """Which server it is, and whether this meterd was made for it."""
    kind = "Valkey" if "valkey_version" in info else "Redis"
    text = info.get("valkey_version") or info.get("redis_version", "")
    try:
        version = tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        version = ()
    if not version:
        return Check(
            "server", WARN, f"{kind}, version unknown", "compare with the supported versions"
        )
    low, high = _SUPPORTED[kind]
    found = f"{kind} {text}"
    if version < low:
        return Check("server", FAIL, found, f"upgrade to {kind} {low[0]}.{low[1]} or newer")
    if version >= high:
        return Check("server", WARN, found, "newer than any version meterd was tested with")
    return Check("server", OK, found)


def role(info: Info) -> Check:
    """A primary takes charges; its replicas may lose the newest ones at a failover."""
    if info.get("role", "master") != "master":
        return Check("role", FAIL, "a replica", "point the URL at the primary")
    replicas = info.get("connected_slaves", "0")
    if replicas == "0":
        return Check("role", OK, "primary without replicas")
    return Check("role", OK, f"primary, replicas: {replicas} (a failover may lose recent charges)")


def persistence(info: Info, config: Info) -> Check:
    """What a restart would lose."""
    if info.get("aof_enabled") == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            return Check("persistence", FAIL, "append-only file: the last write failed",
                         "look at the server's log and disk")  # fmt: skip
        sync = config.get("appendfsync", "")
        found = "append-only file" + (f", fsync {sync}" if sync else "")
        if sync == "no":
            return Check("persistence", WARN, found, "set appendfsync everysec, or always")
        return Check("persistence", OK, found)
    advice = "set appendonly yes, or a restart takes charges back"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return Check("persistence", FAIL, "snapshots: the last one failed", advice)
    if "save" not in config:
        return Check("persistence", WARN, "no append-only file; snapshots unknown", advice)
    if config["save"]:
        return Check("persistence", WARN, f"snapshots only (save {config['save']})", advice)
    return Check("persistence", WARN, "none: a restart forgets everything", advice)


def eviction(info: Info, accepted: bool) -> Check:
    """Whether the server may throw balances away when memory runs short."""
    policy = info.get("maxmemory_policy", "")
    most, used = int(info.get("maxmemory", "0")), int(info.get("used_memory", "0"))
    if not policy:
        return Check("eviction", WARN, "maxmemory-policy unknown", "make sure it is noeviction")
    if policy != "noeviction":
        state = WARN if accepted else FAIL
        return Check("eviction", state, f"maxmemory-policy {policy}",
                     "set it to noeviction: this server may delete balances")  # fmt: skip
    if most and used > 0.9 * most:
        return Check("memory", WARN, f"{100 * used // most}% of maxmemory is used",
                     "a full server refuses every charge: raise maxmemory")  # fmt: skip
    share = f", {100 * used // most}% used" if most else ", no maxmemory"
    return Check("eviction", OK, f"noeviction{share}")


def functions(names: list[str] | None, wanted: str) -> Check:
    """Whether the Lua is there already; it is loaded by the first call that misses it."""
    if names is None:
        return Check("functions", OK, "not on this server: scripts are used instead")
    if wanted in names:
        others = len(names) - 1
        more = f" (and {others} older)" if others > 0 else ""
        return Check("functions", OK, f"library {wanted} is loaded{more}")
    return Check("functions", OK, "library not loaded yet; the first call loads it")


def cluster(info: Info | None) -> Check:
    """Whether every slot is served."""
    if info is None:
        return Check("cluster", OK, "not a cluster")
    found = (
        f"{info.get('cluster_size', '?')} primaries, {info.get('cluster_slots_ok', '?')} slots ok"
    )
    if info.get("cluster_state") != "ok" or info.get("cluster_slots_ok") != "16384":
        return Check("cluster", FAIL, found, "some slots are not served: see CLUSTER INFO")
    return Check("cluster", OK, found)


def catalog(revision: int, plans: int) -> Check:
    """Whether there is anything to charge against."""
    if not plans:
        return Check("catalog", WARN, "empty", "add plans with: meterd apply FILE")
    return Check("catalog", OK, f"revision {revision}, {plans} plan{'s' * (plans != 1)}")


def store_clock(kind: str | None) -> Check:
    """A store on a test's clock refuses servers that run on real time."""
    if kind == "manual":
        return Check("clock", WARN, "this store runs on a manual clock",
                     "it is for tests and replays only; use another prefix")  # fmt: skip
    found = "the server's clock" if kind else "the server's clock (store not used yet)"
    return Check("clock", OK, found)


def events(backlog: Backlog) -> Check:
    """Whether every group of consumers got every event."""
    if backlog.refused:
        return Check("events", WARN, f"could not be read: {backlog.refused}",
                     "let this user run XLEN, XINFO and XPENDING")  # fmt: skip
    if not backlog.events:
        return Check("events", OK, "none yet")
    found = f"{backlog.events:,} kept"
    if backlog.readers:
        found += f", read by {', '.join(sorted(backlog.readers))}"
    if not backlog.lost:
        return Check("events", OK, found)
    lost = [
        f"{name} has lost {'some' if count is None else f'{count:,}'}"
        for name, count in sorted(backlog.lost.items())
    ]
    return Check("events", WARN, f"{found}; {', '.join(lost)}",
                 "trimmed before they were read: run the consumers more often, or several of them"
                 )  # fmt: skip


def export(backlog: Backlog) -> Check:
    """Whether use to be billed gets where it should."""
    if backlog.refused:
        return Check("export", WARN, f"could not be read: {backlog.refused}",
                     "let this user run XLEN, XINFO and HLEN")  # fmt: skip
    waiting = f"{backlog.entries:,} entries in the outbox"
    if backlog.entries:
        waiting += f", the oldest {_age(backlog.oldest_s)} old"
    if backlog.dead:
        return Check("export", WARN, f"{backlog.dead:,} dead letters; {waiting}",
                     "look at them with: meterd export --to ... --dead")  # fmt: skip
    if backlog.entries and backlog.oldest_s > _LATE_S:
        held_by = [name for name in sorted(backlog.sinks) if backlog.unread[name]]
        whom = f" by {', '.join(held_by)}" if held_by else ""
        return Check("export", WARN, f"{waiting}, not delivered{whom}",
                     "run: meterd export --to ...; why, says --pending; --retire ends a sink"
                     )  # fmt: skip
    return Check("export", OK, waiting if backlog.entries else "nothing to deliver")


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def skew(server_ms: int, local_ms: int, took_ms: int) -> Check:
    """How far this machine's clock is from the server's, which is the one that counts."""
    off = server_ms - local_ms
    if abs(off) <= 1000 + took_ms:
        return Check("time", OK, f"within {abs(off)} ms of this machine")
    return Check("time", WARN, f"{abs(off) / 1000:.1f} s {'ahead of' if off > 0 else 'behind'} "
                 "this machine", "synchronise the clocks; periods follow the server's")  # fmt: skip


def parse_info(text: str) -> dict[str, str]:
    """INFO's `name:value` lines."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
