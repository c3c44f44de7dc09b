"""What a meter's subjects have told: the rows of the streams, in order, and the index."""

from __future__ import annotations

from typing import Any

import msgpack
import redis

from meterd import Meter


def rows(client: redis.Redis, meter: Meter, stream: int, root: str = "acme") -> list[Any]:
    key = meter._keys.shared(meter._keys.path(root))[stream]
    return [msgpack.unpackb(next(iter(fields.values()))) for _, fields in client.xrange(key)]


def events(client: redis.Redis, meter: Meter, root: str = "acme") -> list[str]:
    """`type` of each, and of warnings the threshold."""
    return [" ".join([row[0], *row[10:]]) for row in rows(client, meter, 0, root)]


def entries(client: redis.Redis, meter: Meter, root: str = "acme") -> list[tuple[Any, ...]]:
    """(pool, delta, sequence, start of the period) of each."""
    return [(row[1], row[2], row[3], row[5]) for row in rows(client, meter, 1, root)]


def deltas(client: redis.Redis, meter: Meter, root: str = "acme") -> list[int]:
    return [entry[1] for entry in entries(client, meter, root)]


def due(client: redis.Redis, meter: Meter, root: str = "acme") -> dict[str, int]:
    key = meter._keys.shared(meter._keys.path(root)).due
    return {name.decode(): int(at) for name, at in client.zrange(key, 0, -1, withscores=True)}
