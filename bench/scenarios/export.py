"""Billing export: how fast one process empties outboxes into a file of JSON lines."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack

from meterd import Meter
from meterd.export import Exporter, JsonLines
from meterd.keys import Keyspace, partition_of
from meterd.wire import command

from ..core.lab import Lab
from ..core.measure import Contender, Quantity, compare, shown
from ..core.raw import Raw
from ..core.registry import Finding, scenario
from ..core.workload import customer

DRAINED = "meterd, to JSON lines"
LINES = "a file, the same lines"
RATE, CPU = "entries/s", "CPU µs/entry"
JANUARY, FEBRUARY = 1_735_689_600_000, 1_738_368_000_000
_KEYS = Keyspace()


def outbox(entries: int) -> list[bytes]:
    """Commands that leave one entry for each of so many subjects."""
    made = []
    for number in range(entries):
        root = customer(number).root
        key = _KEYS.partition_key(partition_of(root), b"outbox")
        at = JANUARY + number
        row = [root.decode(), "pool", number + 1, 1, "", JANUARY, FEBRUARY, at, "use"]
        made.append(command(b"XADD", key, b"*", b"o", msgpack.packb(row)))
    return made


def drained(path: str, url: str, commands: list[bytes], file: Path) -> dict[str, float]:
    """One run over a full store. Filling it is not measured."""
    with Raw(path) as raw:
        raw.run(commands)
    file.unlink(missing_ok=True)
    with Meter(url, timeout=10) as meter:
        exporter = Exporter(meter, JsonLines(file))
        cpu, started = time.process_time(), time.perf_counter()
        report = exporter.run()
        found = shown(report.delivered, time.perf_counter() - started, time.process_time() - cpu)
    if report.delivered != len(commands):
        raise RuntimeError(f"{report.delivered} of {len(commands)} entries were delivered")
    return dict(zip((RATE, CPU), found.values(), strict=True))


def written(file: Path, entries: int) -> dict[str, float]:
    """What the disk takes: the same bytes, in one piece."""
    data = file.read_bytes()
    cpu, started = time.process_time(), time.perf_counter()
    again = file.with_suffix(".again")
    again.write_bytes(data)
    found = shown(entries, time.perf_counter() - started, time.process_time() - cpu)
    return dict(zip((RATE, CPU), found.values(), strict=True))


@scenario("export", "billing export of many subjects to JSON lines")
def export(lab: Lab) -> Iterator[Finding]:
    entries = lab.effort.export_entries
    lab.tcp.flush()
    with tempfile.TemporaryDirectory(prefix="meterd-bench-") as folder:
        file = Path(folder) / "use.jsonl"
        commands = outbox(entries)
        drained(lab.tcp.path, lab.tcp.url, commands, file)  # warms up, and leaves a file
        contenders = [
            Contender(DRAINED, lambda: drained(lab.tcp.path, lab.tcp.url, commands, file)),
            Contender(LINES, lambda: written(file, entries)),
        ]
        quantities = [Quantity(RATE, ""), Quantity(CPU, "", False)]
        yield Finding(
            "export",
            f"Billing export, {entries:,} subjects, one process",
            compare(contenders, lab.effort.export_rounds, DRAINED, quantities),
            note="From a full outbox to lines on the disk and an empty outbox: leases, reading, "
            "fsync, acknowledging, deleting. Each subject has one entry.",
        )
