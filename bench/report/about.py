"""Where figures come from: versions, commit, machine, when."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from ..peers import installed
from ..peers.everybody import PACKAGES

HERE = Path(__file__).parent


def about(server: str, effort: str, seconds: float) -> dict[str, Any]:
    return {
        "versions": versions(server),
        "commit": commit(),
        "machine": machine(),
        "effort": effort,
        "seconds": round(seconds),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def versions(server: str) -> dict[str, str]:
    """The server's and every package's that is installed."""
    found = {name: installed(name) for name in ("meterd", *PACKAGES)}
    return {
        "server": server,
        "python": platform.python_version(),
        **{name: number for name, number in found.items() if number is not None},
    }


def commit() -> str | None:
    """The checkout's commit, "+" behind it if files differ; None outside of a checkout."""
    if not (HERE.parents[1] / "pyproject.toml").is_file():
        return None
    try:
        done = [
            subprocess.run(
                ["git", *words], cwd=HERE, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return done[0] + ("+" if done[1] else "")


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"system": platform.system(), "processor": model, "cpus": os.cpu_count()}
