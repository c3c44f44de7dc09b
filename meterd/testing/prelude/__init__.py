"""`struct` and `cmsgpack` in pure Lua, for servers whose Lua lacks them.

Rule: a script that runs on a real server runs unchanged behind this text.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def prelude() -> str:
    """Lua that declares the locals `struct` and `cmsgpack`; goes below a library's `#!lua` line."""
    folder = files(__name__)
    return "".join(
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("struct.lua", "cmsgpack.lua")
    )
