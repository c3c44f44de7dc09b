"""What a subject takes: bytes, and whether a call grows slower when there are a million of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from ..core.effort import Effort
from ..core.floor import Measured
from ..core.lab import Lab
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.stats import Measure
from ..core.workload import Copier, customer, subject
from ..peers.everybody import SYNC
from ..peers.ours import NAME
from .clients import opened

LIMITS = {"1 limit": "pool", "4 limits": "all"}
BYTES = "MEMORY USAGE"
INDEXED = f"{NAME}, and its entry in its partition's index"
OF_A_PARTITION = (b"}:due", b"}:events", b"}:outbox")  # keys that its subjects share
SUBJECTS = 50
MANY = 1000  # subjects of a partition: of a million, about


@scenario("bytes", "bytes per subject with a pool and three buckets")
def size(lab: Lab) -> Iterator[Finding]:
    measure = Measure(BYTES, "bytes", NAME, False)
    peers = [peer for peer in SYNC if peer.role == "peer" or peer.name == NAME]
    absent: dict[str, str] = {}
    found: dict[str, list[int]] = {}
    for peer in peers:
        with opened(lab.tcp, [peer]) as clients, Raw(lab.tcp.path) as raw:
            absent |= clients.absent
            for name, calls in clients.calls.items():
                if calls.four:
                    found[name] = memory(raw, calls.four)
                if name == NAME:
                    entry = index_entry(raw)
                    found[INDEXED] = [record + entry for record in found[NAME]]
    for taken in zip(*found.values(), strict=True):
        measure.add_round(dict(zip(found, taken, strict=True)))
    yield Finding(
        "bytes",
        "Bytes per subject with a pool and three buckets",
        [measure],
        note=f"MEMORY USAGE of every key that one more subject brings, after its first charge: the "
        f"median of {SUBJECTS} subjects, as the server gives a few of them a size more. A log "
        "grows with every charge; a window of `limits` takes no more with a second one. Where a "
        f"pool resets, {NAME} enters the subject in an index, which is one key for all subjects of "
        f"a partition: its share is counted by itself, in a partition of {MANY:,}.",
        absent=absent,
    )


def memory(raw: Raw, four: Callable[[int], object]) -> list[int]:
    """Of the keys that each subject after the first brings; that may bring some for everybody."""
    four(0)
    taken = []
    seen = set(raw.ask(b"KEYS", b"*"))
    for n in range(1, SUBJECTS + 1):
        four(n)
        mine = set(raw.ask(b"KEYS", b"*")) - seen
        seen |= mine
        taken.append(sum(usage(raw, key) for key in mine if not key.endswith(OF_A_PARTITION)))
    return taken


def usage(raw: Raw, key: bytes) -> int:
    return int(raw.ask(b"MEMORY", b"USAGE", key, b"SAMPLES", b"0"))


def index_entry(raw: Raw) -> int:
    """Of one subject among many in an index, as the server stores it."""
    now = 1_735_689_600_000
    for n in range(MANY):
        raw.ask(b"ZADD", b"index", str(now + n).encode(), subject(n).encode())
    taken = usage(raw, b"index")
    raw.ask(b"DEL", b"index")
    return -(-taken // MANY)


@scenario("growth", "server time per call among a thousand to a million subjects")
def growth(lab: Lab) -> Iterator[Finding]:
    """One server for each number of subjects; calls on all of them are interleaved."""
    effort = lab.effort
    fewest = f"{min(effort.growth_sizes):,} subjects"
    with ExitStack() as stack:
        raws: dict[str, Raw] = {}
        calls: dict[str, dict[str, Measured]] = {}
        for subjects in effort.growth_sizes:
            server = stack.enter_context(lab.embedded())
            name = f"{subjects:,} subjects"
            raws[name] = stack.enter_context(Raw(server.path))
            copier = stack.enter_context(Copier(raws[name], server.url))
            calls[name] = populate(copier, subjects, effort)
        for limits in LIMITS:
            measure = Measure("server time", "us", fewest, False)
            for _ in range(effort.growth_rounds):
                measure.add_round(
                    {
                        name: calls[name][limits].usec(raws[name], effort.calls)
                        for name in random.sample(list(raws), len(raws))
                    }
                )
            yield Finding(f"growth-{limits.split()[0]}", f"Growth, consume of {limits}", [measure])


def populate(copier: Copier, subjects: int, effort: Effort) -> dict[str, Measured]:
    """Makes the subjects; the calls are on so many of them, at random, that few come twice."""
    packed = {
        name: copier.capture(lambda cost=cost: copier.meter.consume(subject(0), cost))  # type: ignore[misc]
        for name, cost in LIMITS.items()
    }
    copier.copy_records(customer, subjects)
    wanted = min(subjects, (effort.growth_rounds + 1) * effort.calls)
    chosen = random.sample(range(subjects), wanted)
    return {
        name: Measured(name, "fcall", copier.commands(template, customer, chosen))
        for name, template in packed.items()
    }
