"""Where the client's settings come from: options, METERD_* variables, a file, in this order.

The file is `--config` or METERD_CONFIG, else the nearest `meterd.toml`, or `pyproject.toml` with a
`[tool.meterd]` table, in the current directory or above it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meterd.catalog_toml import load_settings
from meterd.errors import PolicyError
from meterd.timespec import refuse

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True,
             "0": False, "false": False, "no": False, "off": False}  # fmt: skip


def read_settings(
    given: Mapping[str, Any],
    *,
    config: str | None = None,
    environ: Mapping[str, str] = os.environ,
    start: Path | None = None,
) -> dict[str, Any]:
    """Keyword arguments for `Meter`. Raises PolicyError naming the variable or the file's field."""
    path = settings_file(config, environ=environ, start=start)
    settings = load_settings(path) if path else {}
    settings.update(_from_environment(environ))
    settings.update({name: value for name, value in given.items() if value is not None})
    return settings


def settings_file(
    config: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    start: Path | None = None,
) -> Path | None:
    """The file that is named, by `config` or METERD_CONFIG, else the nearest one."""
    named = config or environ.get("METERD_CONFIG")
    return Path(named) if named else find_file(start or Path.cwd())


def find_file(start: Path) -> Path | None:
    """The nearest settings file at or above `start`."""
    for folder in (start, *start.parents):
        if (folder / "meterd.toml").is_file():
            return folder / "meterd.toml"
        project = folder / "pyproject.toml"
        if project.is_file() and _has_table(project):
            return project
    return None


def _has_table(project: Path) -> bool:
    try:
        return "meterd" in tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError):
        return False  # somebody else's broken file is not ours to report


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("url", "prefix", "op_retention"):
        if value := environ.get(f"METERD_{name.upper()}"):
            found[name] = value
    if value := environ.get("METERD_TIMEOUT"):
        found["timeout"] = _number(value, "METERD_TIMEOUT", float)
    if value := environ.get("METERD_MAX_CONNECTIONS"):
        found["max_connections"] = _number(value, "METERD_MAX_CONNECTIONS", int)
    if value := environ.get("METERD_ACCEPT_EVICTION"):
        if value.lower() not in _BOOLEANS:
            raise refuse("METERD_ACCEPT_EVICTION", value, "1 or 0")
        found["accept_eviction"] = _BOOLEANS[value.lower()]
    return found


def _number(text: str, name: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise PolicyError(f"{name}: got {text!r}; allowed: a number") from None
