"""The command: `python -m bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import clients, server_time, storage
from bench.effort import FULL, QUICK, Effort
from bench.raw import Raw
from bench.report import Figures
from meterd.embedded import EmbeddedServer

SECTIONS = ("server", "bytes", "growth", "clients")


def run(effort: Effort, binary: str | None = None, sections: Sequence[str] = SECTIONS) -> Figures:
    """Measures on private servers of their own."""
    figures = Figures()
    with EmbeddedServer.start(binary) as server:
        with Raw(server.path) as raw:
            brand = "Valkey" if raw.info("valkey_version") else "Redis"
            number = raw.info("valkey_version") or raw.info("redis_version")
            figures.server = f"{brand} {number}"
        if "server" in sections:
            figures.costs = server_time.measure(server.url, server.path, effort)
        if "bytes" in sections:
            figures.size = storage.size(server.url, server.path)
        if "clients" in sections:
            figures.clients = clients.measure(server.url, server.path, effort)
    if "growth" in sections:
        figures.growth = storage.growth(effort, binary)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of meterd.")
    parser.add_argument("--quick", action="store_true", help="less than a minute, wider spread")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there, too")
    parser.add_argument("--binary", metavar="PATH", help="the server to measure on")
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure just this; may be repeated"
    )
    options = parser.parse_args(argv)
    effort = QUICK if options.quick else FULL
    figures = run(effort, options.binary, options.only or SECTIONS)
    print(figures.text())
    if options.json:
        options.json.write_text(json.dumps(figures.as_dict(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
