"""What `import meterd` costs, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from ..core.lab import Lab
from ..core.measure import Contender, Quantity, compare
from ..core.registry import Finding, scenario
from ..peers import installed

MODULES = {
    "redis": "redis",
    "meterd": "meterd",
    "limits": "limits",
    "throttled-py": "throttled",
    "pyrate-limiter": "pyrate_limiter",
}
PROGRAM = (
    "import time; started = time.perf_counter(); import {module}; "
    "print(time.perf_counter() - started)"
)
MS = "import"


def milliseconds(module: str) -> dict[str, float]:
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {MS: 1000 * float(done.stdout)}


@scenario("imports", "import time in fresh interpreters")
def imports(lab: Lab) -> Iterator[Finding]:
    absent = {
        name: f"{name} is not installed"
        for name in MODULES
        if name != "meterd" and installed(name) is None
    }
    contenders = [
        Contender(name, lambda module=module: milliseconds(module))  # type: ignore[misc]
        for name, module in MODULES.items()
        if name not in absent
    ]
    quantities = [Quantity(MS, "ms", False)]
    yield Finding(
        "imports",
        "Import",
        compare(contenders, lab.effort.imports, "redis", quantities),
        absent=absent,
    )
