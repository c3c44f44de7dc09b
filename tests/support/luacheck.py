"""Lints the Lua as the servers get it: composed, so that a name from another file is known and any
name that is nowhere defined, which would be a global, is an error.

Run as `python -m tests.support.luacheck`. Without luacheck it says so and passes, except in CI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from meterd.scripts import ENTRIES, Program, Scripts
from meterd.testing.prelude import prelude

CONFIG = Path(__file__).resolve().parents[2] / ".luacheckrc"
LUACHECK = ("luacheck", "--config", CONFIG, "--formatter", "plain", "--codes", "--no-color")


def lint(program: Program, *options: str) -> list[str]:
    """Complaints about one composed text, each with the place in our own files."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="utf-8") as file:
        # A server takes the first line of a library off before Lua sees the rest.
        file.write(re.sub(r"\A#!.*", "", program.text))
        file.flush()
        done = subprocess.run(
            [*LUACHECK, file.name, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        complaints = []
        for row in done.stdout.splitlines():
            place, colon, text = row.removeprefix(f"{file.name}:").partition(": ")
            line = program.locate(int(place.split(":")[0])) if colon else None
            complaints.append(f"{line.file}:{line.number}: {text}" if line else row)
    if done.returncode > 1:
        complaints.append(done.stderr.strip())
    return complaints


def main() -> int:
    if shutil.which("luacheck") is None:
        print("*** luacheck is missing: the Lua is NOT linted (Debian: lua-check)", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    scripts = Scripts()
    behind = Program()
    behind.add(prelude(), "meterd/testing/prelude")
    complaints = lint(scripts.library) + lint(behind)
    for entry in ENTRIES:
        # A script takes whole libraries and leaves parts of them unused; its globals still count.
        complaints += lint(scripts.script(entry), "--only", "1")
    print("\n".join(sorted(set(complaints))) or f"luacheck: {len(ENTRIES)} entries are clean")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
