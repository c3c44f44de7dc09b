"""`import meterd` is cheap, and every promised name is where it was promised."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

import meterd
import meterd.http
import meterd.testing

HEAVY = {"asyncio", "click", "fakeredis", "hiredis", "msgpack", "redis", "zoneinfo"}


@pytest.mark.parametrize(
    "module", [meterd, meterd.http, meterd.testing], ids=lambda module: module.__name__
)
def test_every_name_is_there(module: object) -> None:
    names: Sequence[str] = module.__all__  # type: ignore[attr-defined]
    assert list(names) == sorted(names, key=lambda name: (name.islower(), name))
    for name in names:
        found = getattr(module, name)
        assert found.__name__ == name
        assert found.__module__.startswith("meterd.")
        assert found.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'Mter'"):
        module.Mter  # type: ignore[attr-defined]  # noqa: B018
    assert set(names) <= set(dir(module)) or module is not meterd


def test_star() -> None:
    namespace: dict[str, object] = {}
    exec("from meterd import *", namespace)
    assert namespace["Meter"] is meterd.Meter
    assert set(meterd.__all__) <= set(namespace)


@pytest.mark.parametrize("module", ["meterd", "meterd.testing", "meterd.testing.plugin"])
def test_an_import_brings_little_along(module: str) -> None:
    first = "import pytest; " if module.endswith("plugin") else ""
    code = f"import sys; {first}before = set(sys.modules); import {module}; "
    code += "print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in found.stdout.split()} & HEAVY
