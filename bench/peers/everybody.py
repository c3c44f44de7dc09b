"""The list of all contenders. Importing it imports no peer."""

from __future__ import annotations

from . import AsyncPeer, Peer, bare, limits_lib, ours, pyrate, redis_py, throttled_lib

SYNC: list[Peer] = [
    *ours.SYNC,
    *redis_py.SYNC,
    *bare.SYNC,
    *limits_lib.SYNC,
    *throttled_lib.SYNC,
    *pyrate.SYNC,
]
ASYNC: list[AsyncPeer] = [
    *ours.ASYNC,
    *redis_py.ASYNC,
    *bare.ASYNC,
    *limits_lib.ASYNC,
    *throttled_lib.ASYNC,
    *pyrate.ASYNC,
]
PACKAGES = (
    "aiolimiter",
    "coredis",
    "hdrhistogram",
    "hiredis",
    "limits",
    "pyrate-limiter",
    "redis",
    "throttled-py",
)


def names(contenders: list[Peer] | list[AsyncPeer], role: str) -> list[str]:
    return [contender.name for contender in contenders if contender.role == role]
