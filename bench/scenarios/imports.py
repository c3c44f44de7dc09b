"""What `import meterd` costs, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from ..core.lab import Lab
from ..core.measure import Contender, Quantity, compare
from ..core.registry import Finding, scenario
from ..peers import installed

WITH_METER = "meterd, with Meter"
STATEMENTS = {
    "redis": "import redis",
    "meterd": "import meterd",  # loads its parts when they are first named
    WITH_METER: "from meterd import Bucket, Meter, Plan, Pool",
    "limits": "import limits",
    "throttled-py": "import throttled",
    "pyrate-limiter": "import pyrate_limiter",
}
PROGRAM = (
    "import time; started = time.perf_counter(); {statement}; print(time.perf_counter() - started)"
)
MS = "import"


def milliseconds(statement: str) -> dict[str, float]:
    command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {MS: 1000 * float(done.stdout)}


@scenario("imports", "import time in fresh interpreters")
def imports(lab: Lab) -> Iterator[Finding]:
    absent = {
        name: f"{name} is not installed"
        for name in STATEMENTS
        if not name.startswith("meterd") and installed(name) is None
    }
    contenders = [
        Contender(name, lambda statement=statement: milliseconds(statement))  # type: ignore[misc]
        for name, statement in STATEMENTS.items()
        if name not in absent
    ]
    quantities = [Quantity(MS, "ms", False)]
    yield Finding(
        "imports",
        "Import",
        compare(contenders, lab.effort.imports, "redis", quantities),
        absent=absent,
    )
